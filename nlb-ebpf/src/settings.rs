//! Constants that user space sets when it loads the object. The verifier knows their values, and prunes code
//! that they disable.

use nlb_common::abi::{Settings, SnatSource, SnatSources};
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
    snat_stride: 19_619,
    time_wait: 120,
    use_tx: 1,
    jiffy: 4_000_000,
    snat_addresses: 0,
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

/// The step from one port of the range to the next that a search tries: it leads through all of them.
#[inline(always)]
pub fn snat_stride() -> u32 {
    constant(&SETTINGS.snat_stride) as u32
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

/// Source addresses of SNAT, for IPv4 and for IPv6.
#[unsafe(no_mangle)]
static SNAT_SOURCES: [SnatSources; 2] = [SnatSources::NONE; 2];

/// The source address of a flow, if they are set. It follows from the flow's hash, so no entry holds it.
#[inline(always)]
pub fn snat_source(v6: bool, hash: u64) -> Option<SnatSource> {
    // 2^64 by the golden section (Knuth, "The Art of Computer Programming", volume 3, section 6.4): other
    // bits of the hash select the bucket, the backend and the first port.
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    if constant(&SETTINGS.snat_addresses) == 0 {
        return None;
    }
    let sources = &SNAT_SOURCES[v6 as usize];
    let count = constant(&sources.count);
    if count == 0 {
        return None;
    }
    let index = ((hash.wrapping_mul(MULTIPLIER) >> 48) as u32 * count) >> 16;
    sources.addrs.get(index as usize).map(constant)
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
        time_wait: constant(&SETTINGS.time_wait),
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
