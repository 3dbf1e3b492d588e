//! Constants that user space sets when it loads the object. The verifier knows their values, and prunes code
//! that they disable.

use nlb_common::abi::Settings;
use nlb_common::flow::IdleTimes;
use nlb_common::gue;
use nlb_common::net::{Addr, Be16};
use nlb_common::sources::Sources;

#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings {
    flow_mask: 63,
    tick_shift: 7,
    opening: 60,
    established: 7200,
    closing: 20,
    udp: 120,
    snat_first: 1024,
    snat_count: 31_744,
    use_tx: 1,
    jiffy: 4_000_000,
};

/// The value that user space has set.
#[inline(always)]
fn constant<T: Copy>(constant: &'static T) -> T {
    // SAFETY: a valid reference. The load is volatile, because user space replaces the value before the
    // program is loaded, and the compiler must not assume the one that it sees.
    unsafe { core::ptr::read_volatile(constant) }
}

/// Whether packets may leave by XDP_TX through the interface they came from.
#[inline(always)]
pub fn uses_tx() -> bool {
    constant(&SETTINGS.use_tx) != 0
}

/// The first source port of SNAT, and the number of ports.
#[inline(always)]
pub fn snat_ports() -> (u16, u16) {
    (constant(&SETTINGS.snat_first), constant(&SETTINGS.snat_count))
}

/// GUE's UDP port. It is apart from `SETTINGS`, which `nlb decap` does not set.
#[unsafe(no_mangle)]
static GUE_PORT: u16 = gue::PORT;

#[inline(always)]
pub fn gue_port() -> Be16 {
    Be16::new(constant(&GUE_PORT))
}

/// The prefixes of outer source addresses of dsr-ipip, for IPv4 and for IPv6.
#[unsafe(no_mangle)]
static IPIP_SOURCES: [Sources; 2] = [Sources::NONE; 2];

/// The outer source address of a flow, if the sources vary by flow.
#[inline(always)]
pub fn ipip_source(v6: bool, hash: u64) -> Option<Addr> {
    let [over_v4, over_v6] = &IPIP_SOURCES;
    let sources = if v6 { over_v6 } else { over_v4 };
    let sources = constant(sources);
    (!sources.are_none()).then(|| sources.of(hash))
}

/// The length of a jiffy in nanoseconds.
#[inline(always)]
pub fn jiffy() -> u64 {
    constant(&SETTINGS.jiffy) as u64
}

#[inline(always)]
pub fn idle_times() -> IdleTimes {
    IdleTimes {
        opening: constant(&SETTINGS.opening),
        established: constant(&SETTINGS.established),
        closing: constant(&SETTINGS.closing),
        udp: constant(&SETTINGS.udp),
    }
}

/// The number of buckets of the flow table, less 1.
#[inline(always)]
pub fn flow_mask() -> u32 {
    constant(&SETTINGS.flow_mask)
}

/// Ticks are jiffies shifted right by this.
#[inline(always)]
pub fn tick_shift() -> u32 {
    constant(&SETTINGS.tick_shift)
}
