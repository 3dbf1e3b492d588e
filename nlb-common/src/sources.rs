//! Outer source addresses that vary by flow.
//!
//! Networks and receivers spread packets by addresses and ports. An outer IPv4 header has no ports, and the
//! same addresses for all flows to a backend. If a prefix is configured, the outer source address is that
//! prefix with bits of the flow's hash behind it.

use crate::net::Addr;

/// A prefix, and the bits behind it that vary.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    prefix: Addr,
    /// The varying bits of the address's second half, in memory order; 0 if there is no prefix.
    varying: u64,
}

impl Sources {
    pub const NONE: Sources = Sources { prefix: Addr::UNSPECIFIED, varying: 0 };

    /// The addresses of a prefix of `bits` bits, in the v4-mapped form; all bits of `addr` behind it are 0.
    /// At most the last 64 bits vary.
    pub const fn new(addr: Addr, bits: u8) -> Self {
        let varying = match 128_u8.saturating_sub(bits) {
            64.. => u64::MAX,
            behind => (1 << behind) - 1,
        };
        Sources { prefix: addr, varying: varying.to_be() }
    }

    #[inline(always)]
    pub const fn are_none(&self) -> bool {
        self.varying == 0
    }

    /// The address of a flow, by the lower bits of its hash: the upper ones select the backend, so they vary
    /// less among a backend's flows.
    #[inline(always)]
    pub const fn of(&self, hash: u64) -> Addr {
        Addr { hi: self.prefix.hi, lo: self.prefix.lo | hash.to_be() & self.varying }
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    #[test]
    fn the_hash_ends_the_address_and_the_prefix_begins_it() {
        let hash = 0x0123_4567_89ab_cdef;
        for (prefix, bits, of_hash, least) in [
            ("10.200.0.0", 96 + 16, "10.200.205.239", "10.200.0.0"),
            ("10.200.7.0", 96 + 24, "10.200.7.239", "10.200.7.0"),
            ("10.200.7.8", 96 + 31, "10.200.7.9", "10.200.7.8"),
            ("11.0.0.0", 96 + 8, "11.171.205.239", "11.0.0.0"),
            ("fd00:7::", 64, "fd00:7::123:4567:89ab:cdef", "fd00:7::"),
            ("fd00:7::", 48, "fd00:7::123:4567:89ab:cdef", "fd00:7::"),
            ("fd00::5600", 120, "fd00::56ef", "fd00::5600"),
        ] {
            let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
            let sources = Sources::new(addr(prefix), bits);
            assert!(!sources.are_none());
            assert_eq!(
                [hash, 0].map(|hash| sources.of(hash)),
                [addr(of_hash), addr(least)],
                "{prefix} {bits}"
            );
        }
        assert!(Sources::NONE.are_none());
    }
}
