//! QUIC connection ids that name a server, so that a connection continues when the client changes its
//! address.
//!
//! Connection ids are not encrypted: the client puts the one that its server chose in every packet. QUIC-LB
//! (draft-ietf-quic-load-balancers-21) defines how servers choose ids for a load balancer. In plain text an
//! id is
//!
//! ```text
//! first octet                                       then
//! | configuration (3 bits) | the server's own (5) | server id (1 to 8 octets here) | nonce (4 or more) |
//! ```
//!
//! The connection id is at the same place in every version of QUIC (RFC 8999). A short header does not hold
//! its length; the configuration defines it.

use crate::frame::Frame;
use crate::net::Be16;
use crate::protocol::UDP_LEN;

/// The longest server id.
pub const MAX_ID: usize = 8;

/// Configurations are numbered from 0. The remaining number means that the id names no server.
pub const CONFIGS: u8 = 7;

/// The flag of a long header, in its first byte.
const LONG: u8 = 0x80;
/// Where a long header holds the length of the destination's connection id: behind the first byte and the
/// version.
const DCID_LEN: usize = 5;
/// Bytes that are read: the one before the connection id, the first octet of the id, and the longest server
/// id.
const HEAD: usize = 2 + MAX_ID;
/// The shortest nonce of any configuration.
const LEAST_NONCE: u32 = 4;

/// A server, as connection ids name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Server {
    pub config: u8,
    /// Octets of the id.
    pub len: u8,
    /// The id, beginning with the highest octet.
    pub id: u64,
}

impl Server {
    /// `None` if the configuration does not exist, or no id has this length.
    pub fn new(config: u8, octets: &[u8]) -> Option<Self> {
        let mut id = [0; MAX_ID];
        id.get_mut(..octets.len()).filter(|id| !id.is_empty())?.copy_from_slice(octets);
        let server = Server { config, len: octets.len() as u8, id: u64::from_be_bytes(id) };
        (config < CONFIGS).then_some(server)
    }
}

/// The length of server ids by configuration: four bits each, 0 if it is not in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Lengths(u32);

impl Lengths {
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Lengths(word)
    }

    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }

    #[inline(always)]
    pub const fn of(self, config: u8) -> u32 {
        self.0 >> (4 * (config & 7) as u32) & 0xf
    }

    /// Whether ids of the server's configuration have the length of its id.
    pub const fn matches(self, server: &Server) -> bool {
        self.of(server.config) == server.len as u32
    }

    /// The lengths, with the server's configuration in use.
    pub const fn with(self, server: &Server) -> Self {
        let shift = 4 * server.config as u32;
        Lengths(self.0 & !(0xf << shift) | (server.len as u32) << shift)
    }
}

/// The server that the connection id of a QUIC packet names, whether or not it exists. `udp` is the offset of
/// the UDP header, and `end` that of the end of the IP packet.
#[inline(always)]
pub fn server<F: Frame + ?Sized>(frame: &F, udp: usize, end: usize, lengths: Lengths) -> Option<Server> {
    let len: [u8; 2] = frame.read(udp + 4)?;
    let datagram_end = udp + Be16::from_bytes(len).get() as usize;
    let payload = udp + UDP_LEN;
    let [first_byte, _]: [u8; 2] = frame.read(payload)?;
    let is_long = first_byte & LONG != 0;
    let at = if is_long { payload + DCID_LEN } else { payload };
    // Every QUIC packet is long enough for these bytes, whatever the length of its id.
    if at + HEAD > end || at + HEAD > datagram_end {
        return None;
    }
    let head: [u8; HEAD] = frame.read(at)?;
    let [before, first, a, b, c, d, e, f, g, h] = head;
    let config = first >> 5;
    let len = lengths.of(config);
    if len == 0 || is_long && (before as u32) < 1 + len + LEAST_NONCE {
        return None;
    }
    let id = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    Some(Server { config, len: len as u8, id: id & u64::MAX.wrapping_shl(64_u32.wrapping_sub(8 * len)) })
}
