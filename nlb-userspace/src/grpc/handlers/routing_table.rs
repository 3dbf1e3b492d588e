//! GetRoutingTable: each route with the instances that serve it, the number of their flows, and its last use.

use std::collections::BTreeMap;
use std::time::SystemTime;

use nlb_proto::{GetRoutingTableRequest, GetRoutingTableResponse, Protocol, RoutingEntry};

use super::control::Control;
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::numbers::signed_32;
use crate::grpc::convert::{enums, pagination, route, validate};
use crate::model::traffic::Traffic;
use crate::model::{Route, RouteKey};
use crate::registry::Record;
use crate::telemetry::metrics::Activity;

impl Control {
    pub fn routing_table(
        &self,
        request: GetRoutingTableRequest,
    ) -> Result<GetRoutingTableResponse, CallError> {
        let protocol = validate::known::<Protocol>("protocol_filter", request.protocol_filter)?;
        let within = route::net("destination_filter", &request.destination_filter)?;
        let mut entries = self.routing_entries(|route| {
            (protocol == Protocol::Unspecified || enums::protocol_to_wire(route.protocol) == protocol)
                && within.is_none_or(|net| self.overlaps(route.destination, net))
        });
        entries.sort_by(|a, b| sort_key(a).cmp(&sort_key(b)));
        let (entries, pagination) = pagination::run(request.query, entries)?;
        Ok(GetRoutingTableResponse {
            entries,
            total_entries: pagination.total_items,
            pagination: Some(pagination),
        })
    }

    fn routing_entries(&self, wanted: impl Fn(&Route) -> bool) -> Vec<RoutingEntry> {
        let snapshot = self.registry.snapshot();
        let (traffic, activity) = (self.traffic.borrow().clone(), self.metrics.view().activity);
        let uses = Uses::of(&traffic, &activity);
        let entry = |route_id: &str, operators, route: &Route, since, target: Option<(&str, &Record)>| {
            let key = RouteKey { id: route_id.to_owned(), operators };
            let used = target.map(|(id, _)| uses.by(id, &key)).unwrap_or_default();
            let module_type = target.map(|(_, record)| record.registration.module.module_type);
            RoutingEntry {
                route: Some(route::render(route_id, route)),
                target_instance_id: target.map(|(id, _)| id.to_owned()).unwrap_or_default(),
                target_module_type: module_type
                    .map(|t| enums::module_type_to_wire(t).into())
                    .unwrap_or_default(),
                current_connections: signed_32(used.flows),
                created_at: Option::map(since, |since: &SystemTime| (*since).into()),
                last_used: used.last.map(Into::into),
            }
        };
        let mut entries = Vec::new();
        for (id, record) in &snapshot.modules {
            for (route_id, route) in
                record.registration.module.routes.iter().filter(|(_, route)| wanted(route))
            {
                let since = record.routes_since.get(route_id);
                let target = can_handle(record, route_id, false).then_some((id.as_str(), record.as_ref()));
                entries.push(entry(route_id, false, route, since, target));
            }
        }
        for (route_id, route) in snapshot.operator_routes.iter().filter(|(_, route)| wanted(route)) {
            let since = snapshot.operator_routes_since.get(route_id);
            let before = entries.len();
            let able = snapshot.targets(route).filter(|(_, record)| can_handle(record, route_id, true));
            entries.extend(able.map(|target| entry(route_id, true, route, since, Some(target))));
            if entries.len() == before {
                entries.push(entry(route_id, true, route, since, None));
            }
        }
        for (route_id, route) in snapshot.learned_routes.iter().filter(|(_, route)| wanted(route)) {
            let since = snapshot.learned.get(route_id).map(|learned| &learned.since);
            let able = snapshot.answers_on_learned(route_id).filter(|(_, ability)| ability.can_handle);
            let targets = able.filter_map(|(id, _)| Some((id, snapshot.record(id).ok()?)));
            entries.extend(targets.map(|target| entry(route_id, true, route, since, Some(target))));
        }
        entries
    }
}

/// How much a route uses an instance.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    flows: u64,
    /// `None` if the time is unknown.
    last: Option<SystemTime>,
}

/// Uses by instance and route, as the data path counts them.
struct Uses<'a> {
    /// Routes without counters of their own are counted together under `None`.
    by_route: BTreeMap<(&'a str, Option<&'a RouteKey>), Use>,
    by_instance: BTreeMap<&'a str, Use>,
}

impl<'a> Uses<'a> {
    fn of(traffic: &'a Traffic, activity: &Activity) -> Self {
        let mut uses = Uses { by_route: BTreeMap::new(), by_instance: BTreeMap::new() };
        for (backend, counts) in &traffic.backends {
            let found = Use { flows: counts.active_flows, last: activity.last_used(backend) };
            let id = backend.instance_id.as_str();
            uses.by_route.entry((id, backend.route.as_ref())).or_default().add(found);
            uses.by_instance.entry(id).or_default().add(found);
        }
        uses
    }

    /// The use of a route. If the route may be one of those without counters of their own, the flows are all
    /// of the instance's, and the last use is unknown.
    fn by(&self, instance_id: &str, route: &RouteKey) -> Use {
        match self.by_route.get(&(instance_id, Some(route))) {
            Some(used) => *used,
            None if self.by_route.contains_key(&(instance_id, None)) => {
                let all = self.by_instance.get(instance_id).copied().unwrap_or_default();
                Use { last: None, ..all }
            }
            None => Use::default(),
        }
    }
}

impl Use {
    fn add(&mut self, other: Use) {
        self.flows += other.flows;
        self.last = self.last.max(other.last);
    }
}

fn can_handle(record: &Record, route_id: &str, operators: bool) -> bool {
    let key = RouteKey { id: route_id.to_owned(), operators };
    record.registration.module.ability(&key).can_handle
}

fn sort_key(entry: &RoutingEntry) -> (&str, &str) {
    (entry.route.as_ref().map(|route| route.route_id.as_str()).unwrap_or_default(), &entry.target_instance_id)
}
