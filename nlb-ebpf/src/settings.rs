//! Constants that user space sets when it loads the object. The verifier knows them, and leaves out what they switch off.

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

/// What user space has put in the place of a constant.
#[inline(always)]
fn constant<T: Copy>(constant: &'static T) -> T {
    // SAFETY: a valid reference. Volatile, because the value is replaced before the program is loaded, which the compiler must
    // not assume away.
    unsafe { core::ptr::read_volatile(constant) }
}

/// Whether packets may go back out of the interface they came in by with XDP_TX.
#[inline(always)]
pub fn uses_tx() -> bool {
    constant(&SETTINGS.use_tx) != 0
}

/// The first source port of SNAT, and how many there are.
#[inline(always)]
pub fn snat_ports() -> (u16, u16) {
    (constant(&SETTINGS.snat_first), constant(&SETTINGS.snat_count))
}

/// The UDP port that GUE is sent to. Apart from the settings, which `nlb decap` has none of.
#[unsafe(no_mangle)]
static GUE_PORT: u16 = gue::PORT;

#[inline(always)]
pub fn gue_port() -> Be16 {
    Be16::new(constant(&GUE_PORT))
}

/// Where outer headers of dsr-ipip come from, over IPv4 and over IPv6.
#[unsafe(no_mangle)]
static IPIP_SOURCES: [Sources; 2] = [Sources::NONE; 2];

/// The source of a flow's outer headers, if those vary by flow.
#[inline(always)]
pub fn ipip_source(v6: bool, hash: u64) -> Option<Addr> {
    let [over_v4, over_v6] = &IPIP_SOURCES;
    let sources = if v6 { over_v6 } else { over_v4 };
    let sources = constant(sources);
    (!sources.are_none()).then(|| sources.of(hash))
}

/// Nanoseconds from one jiffy to the next.
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

/// Buckets of the flow table, less 1.
#[inline(always)]
pub fn flow_mask() -> u32 {
    constant(&SETTINGS.flow_mask)
}

/// A tick is a jiffy shifted right by this.
#[inline(always)]
pub fn tick_shift() -> u32 {
    constant(&SETTINGS.tick_shift)
}
