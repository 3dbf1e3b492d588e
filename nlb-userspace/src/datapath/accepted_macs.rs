//! The destination MAC addresses that interfaces accept.
//!
//! The kernel takes a frame for this host only if it is to an address of the link. XDP sees every frame that
//! the driver lets through: on a switch that floods, also those to other hosts, such as the active one of a
//! pair. The program passes these, and the kernel drops them.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use nlb_common::abi::AcceptedMac;
use nlb_common::net::Mac;

use super::link::{Kind, Link};
use super::maps::macs::MacTable;
use crate::config::AcceptMac;

/// Keeps the maps of accepted addresses in line with the links.
pub(crate) struct AcceptedMacs {
    table: MacTable,
    configured: Vec<AcceptMac>,
}

impl AcceptedMacs {
    pub(crate) fn new(table: MacTable, configured: Vec<AcceptMac>) -> Self {
        AcceptedMacs { table, configured }
    }

    /// Sets the addresses that the interfaces that XDP serves accept now.
    pub(crate) fn update(
        &mut self,
        is_served: impl Fn(&Link) -> bool,
        links: &HashMap<u32, Link>,
        addresses: &[(u32, IpNet)],
    ) -> anyhow::Result<()> {
        let (mut own, mut all) = (Vec::new(), BTreeSet::new());
        for (ifindex, link) in links.iter().filter(|(_, link)| is_served(link)) {
            let macs = of_links(*ifindex, links, addresses);
            let configured = self.configured.iter().filter(|accept| accept.interface == link.name);
            let configured: Vec<_> = configured.map(|accept| accept.mac).collect();
            // The frames of a bond come in by its ports.
            let ports = links.iter().filter(|(_, port)| port.controller == Some(*ifindex));
            for ifindex in ports.map(|(port, _)| *port).chain([*ifindex]) {
                own.push((ifindex, link.mac));
                all.extend(macs.iter().map(|mac| AcceptedMac::new(ifindex, *mac)));
                all.extend(configured.iter().map(|mac| match mac {
                    Some(mac) => AcceptedMac::new(ifindex, *mac),
                    None => AcceptedMac::any(ifindex),
                }));
            }
        }
        self.table.set(&own, all)
    }
}

/// The addresses for which frames on an interface are this host's: those of the interface, of the links that
/// it is a port of, of its own ports, and of macvlan devices on any of these.
fn of_links(ifindex: u32, links: &HashMap<u32, Link>, addresses: &[(u32, IpNet)]) -> BTreeSet<Mac> {
    let mut seen = BTreeSet::from([ifindex]);
    let mut found = vec![ifindex];
    while let Some(ifindex) = found.pop() {
        let controller = links.get(&ifindex).and_then(|link| link.controller);
        let related = links.iter().filter(|(index, link)| {
            Some(**index) == controller
                || link.controller == Some(ifindex)
                || link.below == Some(ifindex) && takes_frames(**index, link, addresses)
        });
        found.extend(related.map(|(index, _)| *index).filter(|index| seen.insert(*index)));
    }
    seen.iter().filter_map(|ifindex| links.get(ifindex)).map(|link| link.mac).collect()
}

/// Whether a macvlan device takes frames to its address. VRRP daemons keep the device of a virtual router up
/// while another host is active; it then has no address.
fn takes_frames(ifindex: u32, link: &Link, addresses: &[(u32, IpNet)]) -> bool {
    let has_address = || {
        addresses.iter().any(|(index, net)| {
            *index == ifindex && !matches!(net.addr(), IpAddr::V6(addr) if addr.is_unicast_link_local())
        })
    };
    link.kind == Kind::MacVlan && link.up && (!is_of_vrrp(link.mac) || has_address())
}

/// Whether it is the address of a virtual router (RFC 9568 section 7.3).
fn is_of_vrrp(mac: Mac) -> bool {
    matches!(mac.bytes(), [0, 0, 0x5e, 0, 1 | 2, _])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::link::alone;

    const VRRP: Mac = Mac::new([0, 0, 0x5e, 0, 1, 51]);

    fn mac(last: u8) -> Mac {
        Mac::new([2, 0, 0, 0, 0, last])
    }

    fn link(kind: Kind, mac: Mac) -> Link {
        Link { mac, ..alone("", kind) }
    }

    #[test]
    fn an_interface_accepts_the_addresses_of_its_bond_its_ports_and_its_macvlans() {
        let links = HashMap::from([
            (2, Link { controller: Some(9), ..link(Kind::Other, mac(2)) }),
            (3, Link { controller: Some(9), ..link(Kind::Other, mac(3)) }),
            (4, link(Kind::Other, mac(4))),
            (5, Link { below: Some(9), ..link(Kind::MacVlan, mac(5)) }),
            (6, Link { below: Some(9), up: false, ..link(Kind::MacVlan, mac(6)) }),
            (7, Link { below: Some(4), ..link(Kind::MacVtap, mac(7)) }),
            (8, Link { below: Some(4), ..link(Kind::Veth, mac(8)) }),
            (9, link(Kind::Bond, mac(9))),
        ]);
        let bonded = BTreeSet::from([2, 3, 5, 9].map(mac));
        assert_eq!([2, 3, 9].map(|ifindex| of_links(ifindex, &links, &[])), [&bonded; 3].map(Clone::clone));
        assert_eq!(of_links(4, &links, &[]), [mac(4)].into(), "neither a virtual machine's nor a peer's");
    }

    #[test]
    fn a_virtual_router_accepts_frames_while_it_holds_an_address() {
        let router = Link { below: Some(2), ..link(Kind::MacVlan, VRRP) };
        let links = HashMap::from([(2, link(Kind::Other, mac(2))), (3, router)]);
        let held = |ifindex, text: &str| vec![(ifindex, text.parse::<IpNet>().unwrap())];
        for (addresses, active) in [
            (vec![], false),
            (held(2, "192.0.2.1/32"), false),
            (held(3, "fe80::1/64"), false),
            (held(3, "192.0.2.1/32"), true),
            (held(3, "2001:db8::1/128"), true),
        ] {
            let accepted = of_links(2, &links, &addresses);
            assert_eq!(accepted.contains(&VRRP), active, "{addresses:?}");
            assert!(accepted.contains(&mac(2)));
        }
    }
}
