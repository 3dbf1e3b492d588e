//! Fragments in the model: a packet's first goes its way by its ports, the others go the same way (row 7).

use std::net::IpAddr;

use nlb::compile::FlowTuple;
use nlb::model::{Backend, Desired};

use super::edits;
use super::headers::{Exits, Fragment, Ip};
use super::model::{
    Decision, Expected, Model, World, grown, offered, sent_on, too_long, towards_client, waits,
};
use crate::rig::{BACK_MTU, CLIENT_MAC, OUR_BACK_MAC, OUR_MAC};

/// What the fragments of one packet have in common; the protocol only of IPv4.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PacketId {
    src: IpAddr,
    dst: IpAddr,
    protocol: Option<u8>,
    id: u32,
}

/// Which way a packet's first fragment went.
#[derive(Clone, Debug)]
pub struct Followed {
    pub backend: Backend,
    /// The addresses that it got.
    pub src: IpAddr,
    pub dst: IpAddr,
    /// The client's flow, if it came from the client.
    pub tuple: Option<FlowTuple>,
}

impl PacketId {
    pub fn of(ip: &Ip, fragment: &Fragment) -> PacketId {
        PacketId { src: ip.src, dst: ip.dst, protocol: (!ip.v6).then_some(ip.protocol), id: fragment.id }
    }
}

impl Model {
    /// Those whose backend is gone have nowhere to go.
    pub fn forget_fragments(&mut self, desired: &Desired) {
        self.fragments.retain(|_, followed| offered(desired, &followed.backend));
    }

    /// Of a first fragment that was sent on.
    pub fn remember(&mut self, ip: &Ip, fragment: Option<Fragment>, followed: Followed) {
        if let Some(fragment) = fragment.filter(|fragment| fragment.more) {
            self.fragments.insert(PacketId::of(ip, &fragment), followed);
        }
    }

    /// What becomes of a later fragment; `unknown` if its first was not seen.
    pub fn follow(
        &mut self,
        world: &World,
        frame: &[u8],
        ip: &Ip,
        fragment: &Fragment,
        unknown: Exits,
    ) -> Decision {
        let followed = self.fragments.get(&PacketId::of(ip, fragment)).cloned().ok_or(unknown)?;
        if ip.ttl <= 1 {
            return Err(&["drop ttl_exceeded"]);
        }
        let growth = self.grown.entry(followed.backend.clone()).or_default();
        let bytes = (ip.end - ip.l3) as u64;
        let Some(tuple) = followed.tuple else {
            if let Some(stopped) = towards_client(frame, ip, followed.dst) {
                return stopped;
            }
            growth.reply_packets += 1;
            growth.reply_bytes += bytes;
            let reply = edits::readdressed(frame, ip, followed.src, followed.dst);
            return Ok(Expected::Sent("send reply", reply.macs(CLIENT_MAC, OUR_MAC)));
        };
        let backend = &followed.backend;
        if !world.hops.contains_key(&backend.addr) {
            return Err(waits(frame));
        }
        if frame[6..12] == OUR_BACK_MAC {
            return Err(&["drop loop"]);
        }
        if let Some(stopped) = too_long(frame, ip, BACK_MTU - grown(backend)) {
            return stopped;
        }
        growth.packets += 1;
        growth.bytes += bytes;
        sent_on(world, frame, ip, backend, &tuple, || {
            edits::readdressed(frame, ip, followed.src, followed.dst)
        })
    }
}
