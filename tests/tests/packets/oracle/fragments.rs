//! Fragments in the model: where each packet's first fragment was sent. Later ones are sent there, too (row
//! 7).

use std::collections::BTreeMap;
use std::net::IpAddr;

use nlb::compile::FlowTuple;
use nlb::model::Backend;

use super::headers::{Fragment, Ip};

/// The identity of a packet that its fragments share; the protocol is part of it in IPv4 only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PacketId {
    src: IpAddr,
    dst: IpAddr,
    protocol: Option<u8>,
    id: u32,
}

/// Where a packet's first fragment was sent.
#[derive(Clone, Debug)]
pub struct Followed {
    pub backend: Backend,
    /// The addresses that it was sent with.
    pub src: IpAddr,
    pub dst: IpAddr,
    /// The client's flow, if it came from the client.
    pub tuple: Option<FlowTuple>,
}

impl PacketId {
    fn of(ip: &Ip, fragment: &Fragment) -> PacketId {
        PacketId { src: ip.src, dst: ip.dst, protocol: (!ip.v6).then_some(ip.protocol), id: fragment.id }
    }
}

/// Where a packet's first fragment is.
#[derive(Clone, Debug)]
pub enum First {
    Sent(Followed),
    /// In user space, since it was too long.
    Punted,
}

/// The packets whose first fragment was sent on or punted.
#[derive(Default)]
pub struct Fragments(BTreeMap<PacketId, First>);

impl Fragments {
    /// Removes those whose backend may not be used.
    pub fn retain(&mut self, usable: impl Fn(&Backend) -> bool) {
        self.0.retain(|_, first| match first {
            First::Sent(followed) => usable(&followed.backend),
            First::Punted => true,
        });
    }

    /// Records a first fragment that was sent on.
    pub fn remember(&mut self, ip: &Ip, fragment: Option<Fragment>, followed: Followed) {
        if let Some(fragment) = fragment.filter(|fragment| fragment.more) {
            self.0.insert(PacketId::of(ip, &fragment), First::Sent(followed));
        }
    }

    /// Records a first fragment that was punted.
    pub fn punted(&mut self, ip: &Ip, fragment: Option<Fragment>) {
        if let Some(fragment) = fragment.filter(|fragment| fragment.more && !fragment.later) {
            self.0.insert(PacketId::of(ip, &fragment), First::Punted);
        }
    }

    /// Where the first fragment of the same packet went.
    pub fn first_of(&self, ip: &Ip, fragment: &Fragment) -> Option<First> {
        self.0.get(&PacketId::of(ip, fragment)).cloned()
    }
}
