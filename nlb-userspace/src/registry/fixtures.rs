//! Fixtures for tests of the registry and of what uses it.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use tokio::time::Instant;

use crate::model::settings::LeaseConfig;
use crate::model::settings::TableSizes;
use crate::model::{
    DataAddresses, Deployment, Destination, ForwardMode, Health, Module, ModuleType, Protocol, Route, Routes,
    Snat, Targets,
};
use crate::policy::health::{Check, Probe};

use super::{Claim, Deployments, Registered, Registration, Registry, RegistryError};
use crate::model::clock::Now;
use crate::model::settings::Settings;

pub(crate) fn settings() -> Settings {
    Settings {
        vips: ["192.0.2.1/32", "2001:db8::1/128"].iter().map(|net| net.parse::<IpNet>().unwrap()).collect(),
        fail_open: true,
        reject: false,
        drop_closed_ports: false,
        learn_routes: false,
        lease: LeaseConfig::default(),
        promotion: Default::default(),
        resets: Default::default(),
        max_modules: 4,
        max_routes: 8,
        limits: TableSizes {
            backends: 64,
            services: 64,
            pools: 64,
            addresses: 64,
            rate_limits: 64,
            source_prefixes: 1000,
            counted_routes: 64,
        },
        accept_empty_ids: false,
        forward_mode: ForwardMode::Nat,
        drain_timeout: Duration::from_secs(30),
    }
}

pub(crate) fn registry() -> Registry {
    Registry::new(settings())
}

/// The time at this many seconds after `start`.
pub(crate) fn at(start: Instant, seconds: u64) -> Now {
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 + seconds);
    Now { at: start + Duration::from_secs(seconds), wall }
}

/// Connects every 10 s, with 2 s for the answer; 3 failures or 2 successes change the signal.
pub(crate) const CHECK: Check = Check {
    probe: Probe::Connect,
    port: None,
    interval: Duration::from_secs(10),
    timeout: Duration::from_secs(2),
    unhealthy_threshold: 3,
    healthy_threshold: 2,
};

/// The deployment of ALBs.
pub(crate) fn alb() -> Deployment {
    ModuleType::Alb.into()
}

/// The same, for calls.
pub(crate) fn albs() -> Deployments {
    [alb()].into()
}

/// An ALB at 10.0.0.1 with a route for TCP port 80 of every VIP.
pub(crate) fn registration(instance_id: &str) -> Registration {
    Registration {
        instance_id: instance_id.into(),
        address: "10.0.0.1:50051".parse().unwrap(),
        data_hosts: vec!["10.0.0.1".parse().unwrap()],
        module: Module {
            module_type: ModuleType::Alb,
            deployment: ModuleType::Alb.into(),
            version: "v1".into(),
            weight: 100,
            health: Health::Healthy,
            data: DataAddresses { v4: Some("10.0.0.1".parse().unwrap()), v6: None },
            mode: ForwardMode::Nat,
            snat: Snat::Always,
            listen_port: None,
            max_connections: 0,
            quic: None,
            routes: Routes::unit("web".into(), route(80).into()),
            abilities: Default::default(),
        },
        check: None,
        started_at: None,
        attempt: None,
        metadata: Default::default(),
        capabilities: Default::default(),
        scaling: None,
    }
}

pub(crate) fn route(port: u16) -> Route {
    Route {
        protocol: Protocol::Tcp,
        source: None,
        destination: Destination::EveryVip,
        port: Some(port),
        priority: 0,
        listen_port: None,
        targets: Targets::Implied,
        headers: Default::default(),
        path_pattern: String::new(),
        metadata: Default::default(),
    }
}

pub(crate) fn route_to(vip: &str, port: u16) -> Route {
    Route { destination: Destination::Address(vip.parse::<IpAddr>().unwrap()), ..route(port) }
}

/// Registers modules in tests.
pub(crate) trait Fleet {
    fn admit(&self, registration: Registration, now: Now) -> Result<Registered, RegistryError>;
    /// Registers an instance, and returns its registration_id.
    fn add(&self, instance_id: &str) -> String;
}

impl Fleet for Registry {
    fn admit(&self, registration: Registration, now: Now) -> Result<Registered, RegistryError> {
        self.register(registration, &Claim::None, now)
    }

    fn add(&self, instance_id: &str) -> String {
        let registered = self.admit(registration(instance_id), Now::read()).expect("the registry accepts it");
        registered.registration_id.reveal().to_owned()
    }
}
