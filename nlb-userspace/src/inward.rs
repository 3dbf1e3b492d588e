//! The links that lead inward: to this host itself, to containers and virtual machines on it, and to whatever XDP cannot send
//! to, such as VLAN devices.
//!
//! XDP meets what comes in from a wire. Modules and clients on the NLB's own host are behind loopback, bridges and veths,
//! where the program at the stack's door meets them. Such links come and go with containers' networks, so the kernel's
//! notes about links are followed.

use std::collections::BTreeMap;

use nlb_common::abi::LOOPBACK;
use tracing::{info, warn};

use crate::link::Link;
use crate::loader::{Attached, Door};
use crate::maps::bpf::LocalLinks;
use crate::netlink::Netlink;
use crate::wires::Wires;

/// Keeps the program at the door of every link that it belongs to, for as long as the daemon runs.
pub async fn run(wires: Wires, mut door: Door, mut local: LocalLinks) -> anyhow::Result<()> {
    let (netlink, mut notes) = Netlink::open()?;
    let mut doors = BTreeMap::new();
    let mut starting = true;
    loop {
        let links = netlink.links().await?;
        let has_door =
            |ifindex: u32, link: &Link| ifindex == LOOPBACK || wires.include(link) || wires.is_inward(link);
        doors.retain(|ifindex, _: &mut Attached| {
            let stays = links.get(ifindex).is_some_and(|link| has_door(*ifindex, link));
            if !stays {
                local.remove(*ifindex);
            }
            stays
        });
        for (ifindex, link) in links.iter().filter(|(ifindex, link)| has_door(**ifindex, link)) {
            if doors.contains_key(ifindex) {
                continue;
            }
            let is_wire = wires.include(link);
            let attached = door.attach(&link.name).and_then(|attached| {
                if is_wire { Ok(attached) } else { local.insert(*ifindex).map(|()| attached) }
            });
            match attached {
                Ok(attached) => {
                    info!("at the stack's door of {}", link.name);
                    doors.insert(*ifindex, attached);
                }
                Err(error) if starting && (is_wire || *ifindex == LOOPBACK) => return Err(error),
                // It may be gone again.
                Err(error) => warn!("modules and clients behind {} are not served: {error:#}", link.name),
            }
        }
        starting = false;
        if notes.recv().await.is_none() {
            return Ok(());
        }
    }
}
