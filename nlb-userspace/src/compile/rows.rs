//! The rows of the maps, as the compiler makes them and map stores apply them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use nlb_common::abi;
use nlb_common::net::{Addr, Be16};

use crate::model::L4;
use crate::model::next_hop::Hop;
use crate::model::prefix::Addr128;
use crate::model::{Backend, ForwardMode, Snat};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServiceKey {
    pub vip: IpAddr,
    /// `None` means every port without a service of its own.
    pub port: Option<u16>,
    pub l4: L4,
}

/// The rows of all maps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    pub backends: BTreeMap<u16, abi::Backend>,
    pub vips: BTreeMap<u16, Addr>,
    pub pools: BTreeMap<u16, Arc<[u16]>>,
    /// Pools by service id and source prefix; other clients use the service's own pool.
    pub sources: BTreeMap<(u16, Addr128), u16>,
    pub services: BTreeMap<u16, abi::Service>,
    /// Backends by the server ids of connection ids.
    pub servers: BTreeMap<abi::ServerKey, u16>,
    pub service_ids: BTreeMap<u64, u16>,
    pub addresses: BTreeMap<IpAddr, abi::Address>,
    pub limits: BTreeMap<u16, abi::Limit>,
    pub capacities: BTreeMap<u16, Capacity>,
    pub limited_sources: BTreeMap<Addr128, abi::Limits>,
    pub common_limits: abi::CommonLimits,
}

/// The limit of an instance's flows. The count is the data path's, and starts anew with each generation of
/// the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub limit: u32,
    pub generation: u8,
}

/// The row of a backend.
pub(super) fn backend_row(
    backend: &Backend,
    generation: u8,
    leaving: bool,
    hop: Option<&Hop>,
    source_id: u16,
    limits: abi::Limits,
) -> abi::Backend {
    let mut flags = abi::Backend::PRESENT;
    if leaving {
        flags |= abi::Backend::DRAINING;
    }
    if hop.is_some() {
        flags |= abi::Backend::RESOLVED;
    }
    if hop.is_some_and(|hop| hop.local) {
        flags |= abi::Backend::LOCAL;
    }
    // A process of this host would reply by the host's own routes, past the NLB.
    let on_host = hop.is_some_and(|hop| hop.hop.ifindex == abi::LOOPBACK);
    flags |= match backend.snat {
        Snat::Always => abi::Backend::SNAT_ALWAYS,
        _ if on_host => abi::Backend::SNAT_ALWAYS,
        Snat::OnLink => abi::Backend::SNAT_ON_LINK,
        Snat::Never => 0,
    };
    let mode = match backend.mode {
        ForwardMode::Nat => abi::Backend::NAT,
        ForwardMode::DsrL2 => abi::Backend::DSR_L2,
        ForwardMode::DsrIpip => abi::Backend::DSR_IPIP,
        ForwardMode::Gue => abi::Backend::GUE,
    };
    let mapped = if backend.addr.is_ipv4() { 96 } else { 0 };
    abi::Backend {
        addr: backend.addr.into(),
        source: hop.map_or(Addr::UNSPECIFIED, |h| h.source.into()),
        hop: hop.map_or_else(Default::default, |h| h.hop),
        port: Be16::new(backend.port),
        generation,
        mode,
        flags,
        link_prefix: mapped + hop.map_or(backend_bits(backend), |h| h.link_prefix),
        source_id,
        mtu: hop.map_or(0, |h| h.mtu),
        limits,
        capacity: 0,
    }
}

fn backend_bits(backend: &Backend) -> u8 {
    if backend.addr.is_ipv4() { 32 } else { 128 }
}

/// Whether a backend may reply to its clients' own addresses.
pub(super) fn is_transparent(backend: &Backend) -> bool {
    backend.mode == ForwardMode::Nat && backend.snat != Snat::Always
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_of_processes_on_this_host_are_always_translated() {
        let backend = Backend {
            instance_id: "m1".into(),
            route: None,
            addr: "10.0.0.2".parse().unwrap(),
            port: 8080,
            mode: ForwardMode::Nat,
            snat: Snat::Never,
        };
        let flags = |ifindex, local| {
            let hop = Hop {
                hop: abi::NextHop::without_macs(ifindex),
                source: "10.0.0.1".parse().unwrap(),
                mtu: 1500,
                link_prefix: 24,
                local,
            };
            backend_row(&backend, 0, false, Some(&hop), 1, abi::Limits::NONE).flags
        };
        let known = abi::Backend::PRESENT | abi::Backend::RESOLVED;
        assert_eq!(flags(7, false), known);
        assert_eq!(flags(7, true), known | abi::Backend::LOCAL);
        assert_eq!(flags(abi::LOOPBACK, true), known | abi::Backend::LOCAL | abi::Backend::SNAT_ALWAYS);
    }
}
