//! Fragments: the id of the packet that one belongs to (RFC 791 section 3.2, RFC 8200 section 4.5).
//!
//! Only the first fragment has ports. Its path is stored by the packet's addresses and id
//! ([`crate::abi::FragmentKey`]), and the other fragments follow it.

use crate::frame::Frame;
use crate::net::Be16;
use crate::parse::{self, Ip};
use crate::protocol::extension;
use crate::protocol::fragment::V6_OFFSET;

/// How long the fragments of a packet may take, in seconds, as in Linux.
pub const REASSEMBLY_SECONDS: u64 = 30;

/// A fragment's place in its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// In memory order.
    pub id: u32,
    /// Whether this is not the first fragment.
    pub later: bool,
}

/// The place of an IPv4 fragment.
#[inline(always)]
pub fn v4<F: Frame + ?Sized>(frame: &F, ip: &Ip) -> Option<Fragment> {
    let id: u16 = frame.read(ip.l3 + 4)?;
    Some(Fragment { id: id as u32, later: ip.later_fragment })
}

/// The place of an IPv6 fragment, by its fragment header. The extension headers begin at `offset` with one of
/// type `protocol`.
#[inline(always)]
pub fn v6<F: Frame + ?Sized>(frame: &F, mut protocol: u8, mut offset: usize) -> Option<Fragment> {
    let mut walked = 0;
    while walked < parse::MAX_EXTENSIONS && parse::is_extension(protocol) {
        let h: [u8; 8] = frame.read(offset)?;
        if protocol == extension::FRAGMENT {
            let id = u32::from_ne_bytes([h[4], h[5], h[6], h[7]]);
            return Some(Fragment { id, later: Be16::from_bytes([h[2], h[3]]).get() & V6_OFFSET != 0 });
        }
        offset += parse::extension_len(protocol, h[1]);
        protocol = h[0];
        walked += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fragment_header_is_found_behind_others() {
        let destination = [44, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let fragment = [17, 0, 0, 0x11, 1, 2, 3, 4];
        let headers = [&destination[..], &fragment].concat();
        let id = u32::from_ne_bytes([1, 2, 3, 4]);
        assert_eq!(v6(&headers[..], 60, 0), Some(Fragment { id, later: true }));
        assert_eq!(v6(&headers[16..], 44, 0), Some(Fragment { id, later: true }));
        assert_eq!(v6(&[17, 0, 0, 1, 1, 2, 3, 4][..], 44, 0), Some(Fragment { id, later: false }));
        assert_eq!(v6(&headers[..20], 60, 0), None, "cut short");
        assert_eq!(v6(&[17, 0, 0, 0, 0, 0, 0, 0][..], 60, 0), None, "no fragment header");
    }
}
