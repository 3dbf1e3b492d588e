//! Maps in memory, for tests: they fail on demand, and have a dump that is easy to read and compare.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use nlb_common::abi;
use nlb_common::quic::Server;

use crate::compile::Rows;
use crate::reconcile::change::{Change, MapError, MapStore};

/// Clones share their contents, so that a test sees the maps that the reconciler writes.
#[derive(Clone, Default)]
pub struct FakeMaps(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    rows: Rows,
    applied: Vec<Change>,
    /// Changes that still succeed before the fault; `None` means no fault.
    until_fault: Option<usize>,
    /// Failures that the fault still causes.
    faults: usize,
}

impl FakeMaps {
    /// After `successes` more changes, the next `failures` fail.
    pub fn fail_after(&self, successes: usize, failures: usize) {
        let mut contents = self.lock();
        contents.until_fault = Some(successes);
        contents.faults = failures;
    }

    pub fn rows(&self) -> Rows {
        self.lock().rows.clone()
    }

    /// The changes so far, in order.
    pub fn applied(&self) -> Vec<Change> {
        self.lock().applied.clone()
    }

    /// Every row as a line, sorted; Maglev tables as the number of slots of each backend.
    pub fn dump(&self) -> String {
        dump(&self.lock().rows)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl MapStore for FakeMaps {
    fn apply(&mut self, change: &Change) -> Result<(), MapError> {
        let mut contents = self.lock();
        match contents.until_fault {
            Some(0) if contents.faults > 0 => {
                contents.faults -= 1;
                return Err(MapError::Kernel { map: "fake", reason: "injected failure".to_owned() });
            }
            Some(left) if left > 0 => contents.until_fault = Some(left - 1),
            _ => {}
        }
        change.apply_to(&mut contents.rows);
        contents.applied.push(change.clone());
        Ok(())
    }
}

fn dump(rows: &Rows) -> String {
    let mut out = String::new();
    for (ip, a) in &rows.addresses {
        let names = [
            (abi::Address::VIP, "vip"),
            (abi::Address::SOURCE, "source"),
            (abi::Address::BACKEND, "backend"),
            (abi::Address::UPCALL, "ask"),
        ];
        let kinds: Vec<&str> =
            names.iter().filter(|(flag, _)| a.flags & flag != 0).map(|(_, n)| *n).collect();
        let _ = write!(out, "address {ip} id {} {}", a.id, kinds.join("+"));
        if a.any_port.tcp != 0 {
            let _ = write!(out, " any-tcp {}", a.any_port.tcp);
        }
        if a.any_port.udp != 0 {
            let _ = write!(out, " any-udp {}", a.any_port.udp);
        }
        out.push('\n');
    }
    for (key, service) in &rows.service_ids {
        let (vip, port, l4) =
            (*key as u16, u16::from_be((*key >> 16) as u16), if *key >> 32 == 6 { "tcp" } else { "udp" });
        let _ = writeln!(out, "service vip {vip} port {port}/{l4} id {service}");
    }
    for (id, service) in &rows.services {
        let by_source = if service.flags & abi::Service::BY_SOURCE != 0 { " by-source" } else { "" };
        let every_port = if service.flags & abi::Service::EVERY_PORT != 0 { " every-port" } else { "" };
        let limits = chains(service.limits);
        let _ = writeln!(out, "service {id} pool {}{by_source}{every_port}{limits}", service.pool);
    }
    for (key, backend) in &rows.servers {
        let Server { config, len, id } = key.server();
        let digits = 2 * usize::from(len);
        let id = &format!("{id:016x}")[..digits];
        let _ = writeln!(out, "server service {} config {config} id {id} backend {backend}", key.service());
    }
    for ((service, prefix), pool) in &rows.sources {
        let addr = IpAddr::from(nlb_common::net::Addr::v6(prefix.addr));
        let _ = writeln!(out, "source service {service} {addr} bits {} pool {pool}", prefix.bits);
    }
    for (id, table) in &rows.pools {
        let mut slots: BTreeMap<u16, u32> = BTreeMap::new();
        for backend in table.iter() {
            *slots.entry(*backend).or_default() += 1;
        }
        let shares: Vec<String> = slots.iter().map(|(backend, n)| format!("{backend}:{n}")).collect();
        let _ = writeln!(out, "pool {id} slots {}", shares.join(" "));
    }
    for (id, b) in &rows.backends {
        let mode = ["nat", "dsr-l2", "dsr-ipip", "gue"][b.mode as usize];
        let _ = write!(out, "backend {id} generation {} {:?}:{:?} {mode}", b.generation, b.addr, b.port);
        let names = [
            (abi::Backend::DRAINING, "draining"),
            (abi::Backend::RESOLVED, "resolved"),
            (abi::Backend::SNAT_ALWAYS, "snat"),
            (abi::Backend::SNAT_ON_LINK, "snat-on-link"),
            (abi::Backend::UDP_REBALANCE, "udp-rebalance"),
        ];
        for (_, name) in names.iter().filter(|(flag, _)| b.has(*flag)) {
            let _ = write!(out, " {name}");
        }
        let _ = writeln!(out, "{}", chains(b.limits));
    }
    if rows.common_limits.all != abi::Limits::NONE {
        let _ = writeln!(out, "all services{}", chains(rows.common_limits.all));
    }
    for (prefix, limits) in &rows.limited_sources {
        let addr = IpAddr::from(nlb_common::net::Addr::v6(prefix.addr));
        let _ = writeln!(out, "clients {addr} bits {}{}", prefix.bits, chains(*limits));
    }
    for (id, limit) in &rows.limits {
        let unit = ["flows", "packets", "bytes"][limit.unit as usize];
        let _ = write!(out, "limit {id} {unit}");
        for (window, name) in limit.windows.iter().zip(["second", "minute", "hour"]) {
            if window.cost != 0 {
                let nanoseconds = |time: u64| time >> window.shift;
                let (each, early) = (nanoseconds(window.cost), nanoseconds(window.tolerance));
                let _ = write!(out, ", by the {name} one in {each} ns and up to {early} ns early");
            }
        }
        let next = if limit.next != 0 { format!(", then {}", limit.next) } else { String::new() };
        let _ = writeln!(out, "{next}");
    }
    out
}

fn chains(limits: abi::Limits) -> String {
    let chain = |name, head| if head != 0 { format!(" {name}-limits {head}") } else { String::new() };
    chain("flow", limits.flows) + &chain("packet", limits.packets)
}
