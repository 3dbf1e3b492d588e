//! Health signals of modules: health checks and outlier detection report here.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tracing::{info, warn};

use super::{Record, Registry, State};
use crate::model::{Backend, Destination, Health, L4, Route};
use crate::policy::health::{HealthSignal, Source, Target};

impl Registry {
    /// Records a new signal of a source for the registration of this epoch.
    pub fn report_signal(&self, instance_id: &str, epoch: u64, source: Source, signal: HealthSignal) {
        let mut state = self.lock();
        let Some(record) = state.modules.get(instance_id).filter(|record| record.epoch == epoch) else {
            return;
        };
        let (before, previous) = (record.health(), record.signal(source).cloned());
        if previous.as_ref() == Some(&signal) {
            return;
        }
        let changed = previous.is_none_or(|previous| previous.health != signal.health);
        let HealthSignal { health, why } = signal.clone();
        let Ok(record) = Arc::make_mut(&mut state).record_mut(instance_id) else { return };
        match source {
            Source::Network => record.network = signal,
            Source::Check => record.check = Some(signal),
            Source::Resets => record.resets = signal,
            // These signals follow from heartbeats, the lease and the drain.
            Source::Module | Source::Lease | Source::Operator => return,
        }
        let after = record.health();
        if changed && health == Health::Unhealthy {
            warn!(instance = instance_id, %source, why, ?after, "module is unhealthy");
        } else if changed {
            info!(instance = instance_id, %source, why, ?after, "module is {health:?}");
        }
        if after != before {
            self.publish(&state);
        }
    }

    /// The target of the health check of the registration of this epoch, if it has a check.
    pub fn check_target(&self, instance_id: &str, epoch: u64) -> Option<Target> {
        let state = self.snapshot();
        let record = state.record(instance_id).ok().filter(|record| record.epoch == epoch)?;
        let check = record.registration.check.as_ref()?;
        Some(Target {
            instance_id: instance_id.to_owned(),
            probe: check.probe.clone(),
            timeout: check.timeout,
            control: record.registration.address.clone(),
            data: state.data_sockets(record, check.port),
        })
    }
}

impl State {
    /// The route of a backend that serves one route alone, if that route still exists.
    pub fn route_of(&self, backend: &Backend) -> Option<&Route> {
        let key = backend.route.as_ref()?;
        match key.operators {
            true => self.operator_routes.get(&key.id).or_else(|| self.learned_routes.get(&key.id)),
            false => self.modules.get(&backend.instance_id)?.registration.module.routes.get(&key.id),
        }
        .map(Arc::as_ref)
    }

    /// The sockets that traffic for a module goes to, in each address family of its VIPs: on this port, or
    /// else on the port of its first TCP route, or else on that of its gRPC server.
    fn data_sockets(&self, record: &Record, port: Option<u16>) -> Vec<SocketAddr> {
        let module = &record.registration.module;
        let mut tcp = self.routes_for(record).filter(|route| route.protocol.l4() == L4::Tcp);
        let port = port.or_else(|| tcp.find_map(|route| route.data_port(module)));
        let port = port.unwrap_or(record.registration.address.port);
        self.data_addresses(record).into_iter().map(|address| SocketAddr::new(address, port)).collect()
    }

    /// The addresses that traffic for a module goes to, in each address family of its VIPs.
    pub fn data_addresses(&self, record: &Record) -> Vec<IpAddr> {
        let module = &record.registration.module;
        let v6 = self.routes_for(record).any(|route| self.is_for(route, IpAddr::is_ipv6));
        let v4 = self.routes_for(record).any(|route| self.is_for(route, IpAddr::is_ipv4));
        let all = module.data.v4.map(IpAddr::from).into_iter().chain(module.data.v6.map(IpAddr::from));
        let (met, others): (Vec<IpAddr>, Vec<IpAddr>) =
            all.partition(|address| if address.is_ipv6() { v6 } else { v4 });
        // Direct server return carries packets of either family to an address of either.
        if met.is_empty() { others } else { met }
    }

    /// The routes that a module serves.
    fn routes_for<'a>(&'a self, record: &'a Record) -> impl Iterator<Item = &'a Route> {
        let (id, module) = (&record.registration.instance_id, &record.registration.module);
        module.served(id, &self.operator_routes).map(|served| served.route)
    }

    /// Whether any VIP of a route has this address family.
    fn is_for(&self, route: &Route, family: fn(&IpAddr) -> bool) -> bool {
        match route.destination {
            Destination::Address(address) => family(&address),
            Destination::Prefix(prefix) => family(&prefix.addr()),
            Destination::EveryVip => self.settings.vips.addresses().iter().any(family),
        }
    }
}
