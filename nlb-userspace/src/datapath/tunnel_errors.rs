//! ICMP errors about tunnel packets (dsr-ipip, gue): a router on the way to a module, or the module's host,
//! cannot forward or take them.
//!
//! Such an error says nothing to a client, whose packet is inside. From one that names an MTU the daemon
//! learns the path MTU, and the program answers clients with what fits inside (RFC 1191, RFC 2003 section 5).

use std::net::IpAddr;

use nlb_common::checksum::{full, pseudo_header};
use nlb_common::frame::Frame as _;
use nlb_common::net::{Addr, Be16};
use nlb_common::parse::{self, Ip};
use nlb_common::protocol::{ICMP_LEN, IPV6_LEN, ip as protocol};

/// An ICMP error about a tunnel packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TunnelError {
    /// The address that the packet was sent from, to which the error came.
    pub source: IpAddr,
    /// The end of the tunnel that the packet was sent to.
    pub module: IpAddr,
    /// The node that sent the error.
    pub sender: IpAddr,
    pub problem: Problem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The packet is longer than the MTU of a link on the way.
    TooBig { mtu: u16 },
    /// Any other error, by its name.
    Undelivered(&'static str),
}

/// The error in a frame; `None` if its checksum is wrong, if it is not about a packet to another host, or if
/// it names an MTU that cannot be true.
pub(crate) fn parse(frame: &[u8]) -> Option<TunnelError> {
    let ip = parse::ip(frame).ok()?;
    let icmp = frame.get(ip.next..ip.end)?;
    let pseudo = pseudo_header(ip.src, ip.dst, protocol::ICMPV6, Be16::new(icmp.len() as u16));
    let sum = if ip.v6 { pseudo.apply(full(icmp)) } else { full(icmp) };
    if !sum.is_zero() {
        return None;
    }
    let quote = frame.get(ip.next + ICMP_LEN..ip.end)?;
    let (module, sent_len) = if ip.v6 {
        let payload = Be16::from_word(quote.read(4)?).get();
        (Addr::v6(quote.read(24)?), usize::from(payload) + IPV6_LEN)
    } else {
        (Addr::v4(quote.read(16)?), Be16::from_word(quote.read(2)?).get().into())
    };
    let problem = problem(frame, &ip, sent_len)?;
    let (source, sender) = (ip.dst.into(), ip.src.into());
    Some(TunnelError { source, module: module.into(), sender, problem })
}

fn problem(frame: &[u8], ip: &Ip, sent_len: usize) -> Option<Problem> {
    let [kind, code]: [u8; 2] = frame.read(ip.next)?;
    let name = match (ip.v6, kind, code) {
        (false, 3, 4) => {
            let named = Be16::from_word(frame.read(ip.next + 6)?).get();
            let mtu = if named == 0 { plateau_below(sent_len) } else { named };
            return plausible(mtu.into(), LEAST_MTU, sent_len);
        }
        (true, 2, _) => {
            let named: u32 = u32::from_be(frame.read(ip.next + 4)?);
            return plausible(named as usize, LEAST_MTU_V6, sent_len);
        }
        (false, 3, 2) => "protocol unreachable",
        (false, 3, 3) | (true, 1, 4) => "port unreachable",
        (false, 3, 9 | 10 | 13) | (true, 1, 1) => "administratively prohibited",
        (false, 3, _) | (true, 1, _) => "destination unreachable",
        (false, 11, _) | (true, 3, _) => "time exceeded",
        (true, 4, 1) => "unknown next header",
        _ => "parameter problem",
    };
    Some(Problem::Undelivered(name))
}

/// The smallest path MTU that Linux accepts of an ICMP error (`min_pmtu`): a forged one must not make packets
/// arbitrarily short.
const LEAST_MTU: usize = 552;

/// Every link of IPv6 takes this (RFC 8200 section 5).
const LEAST_MTU_V6: usize = 1280;

/// An MTU can be true only if it is smaller than the packet that was sent (RFC 8201 section 4).
fn plausible(mtu: usize, least: usize, sent_len: usize) -> Option<Problem> {
    let mtu = Some(mtu).filter(|mtu| *mtu >= least && *mtu < sent_len)?;
    u16::try_from(mtu).ok().map(|mtu| Problem::TooBig { mtu })
}

/// The MTU to try if a router names none, as those of before RFC 1191 do: the next common one (section 7.1).
fn plateau_below(sent_len: usize) -> u16 {
    const PLATEAUS: [u16; 8] = [32_000, 17_914, 8166, 4352, 2002, 1492, 1006, 552];
    PLATEAUS.into_iter().find(|mtu| usize::from(*mtu) < sent_len).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use nlb_common::protocol::IPV4_LEN;

    use super::*;

    /// An ICMP error of this type and code, with this second word, about an IPIP packet of so many bytes.
    fn error(head: [u8; 2], rest: u32, sent_len: u16) -> Vec<u8> {
        let [a, b] = sent_len.to_be_bytes();
        let quote =
            [0x45, 0, a, b, 0, 0, 0x40, 0, 63, 4, 0, 0, 10, 0, 0, 1, 10, 0, 9, 2, 0x45, 0, 0, 0, 0, 0, 0, 0];
        let mut icmp = [&head[..], &[0, 0], &rest.to_be_bytes(), &quote].concat();
        let sum = full(&icmp);
        icmp[2..4].copy_from_slice(&sum.bytes());
        let total = (IPV4_LEN + icmp.len()) as u8;
        let ip = [0x45, 0, 0, total, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 5, 1, 10, 0, 0, 1];
        [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0][..], &ip, &icmp].concat()
    }

    fn found(head: [u8; 2], rest: u32, sent_len: u16) -> Option<Problem> {
        parse(&error(head, rest, sent_len)).map(|found| found.problem)
    }

    #[test]
    fn the_mtu_is_that_of_the_path_to_the_module() {
        let found = parse(&error([3, 4], 1400, 1500)).expect("a whole error");
        let [source, module, sender] = ["10.0.0.1", "10.0.9.2", "10.0.5.1"].map(|ip| ip.parse().unwrap());
        let problem = Problem::TooBig { mtu: 1400 };
        assert_eq!(found, TunnelError { source, module, sender, problem });
    }

    #[test]
    fn an_mtu_of_more_than_16_bits_is_ignored() {
        // A quote may say that the packet had 65,575 bytes: the length is without the header.
        for mtu in [65_536, 65_540, 65_574, u32::MAX as usize] {
            assert_eq!(plausible(mtu, LEAST_MTU_V6, 65_575), None);
        }
        assert_eq!(plausible(9000, LEAST_MTU_V6, 65_575), Some(Problem::TooBig { mtu: 9000 }));
    }

    #[test]
    fn an_mtu_that_cannot_be_true_is_ignored() {
        assert_eq!(found([3, 4], 1500, 1500), None, "the packet would have fitted");
        assert_eq!(found([3, 4], 551, 1500), None, "less than any router of today names");
        assert_eq!(found([3, 4], 552, 1500), Some(Problem::TooBig { mtu: 552 }));
        let mut corrupt = error([3, 4], 1400, 1500);
        corrupt[41] ^= 1;
        assert_eq!(parse(&corrupt), None, "the checksum is wrong");
    }

    #[test]
    fn a_router_that_names_no_mtu_makes_the_next_common_one_be_tried() {
        for (sent, mtu) in [(1500, 1492), (1492, 1006), (9000, 8166), (553, 552)] {
            assert_eq!(found([3, 4], 0, sent), Some(Problem::TooBig { mtu }), "{sent}");
        }
        assert_eq!(found([3, 4], 0, 552), None);
    }

    #[test]
    fn other_errors_have_names() {
        assert_eq!(found([3, 2], 0, 1500), Some(Problem::Undelivered("protocol unreachable")));
        assert_eq!(found([3, 13], 0, 1500), Some(Problem::Undelivered("administratively prohibited")));
        assert_eq!(found([11, 0], 0, 1500), Some(Problem::Undelivered("time exceeded")));
    }
}
