//! Time as the kernel's tick counter has it.

use aya_ebpf::helpers::bpf_jiffies64;

use crate::settings::{jiffy, tick_shift};

/// Time in ticks of about half a second, as flows are stamped with it.
#[inline(always)]
pub fn now() -> u16 {
    ticks() as u16
}

/// The same, which does not come round.
#[inline(always)]
pub fn ticks() -> u32 {
    // SAFETY: the helper takes no arguments.
    (unsafe { bpf_jiffies64() } >> tick_shift()) as u32
}

/// Time in nanoseconds, from jiffy to jiffy.
#[inline(always)]
pub fn nanoseconds() -> u64 {
    // SAFETY: the helper takes no arguments.
    unsafe { bpf_jiffies64() }.wrapping_mul(jiffy())
}
