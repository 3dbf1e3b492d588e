//! Time by the kernel's tick counter.

use aya_ebpf::helpers::bpf_jiffies64;

use crate::settings::{jiffy, tick_shift};

/// Time in ticks ([`tick`]), which flows are stamped with.
#[inline(always)]
pub fn now() -> u16 {
    ticks() as u16
}

/// Time in the same ticks in 32 bits, which wrap around after more than 60 years.
#[inline(always)]
pub fn ticks() -> u32 {
    // SAFETY: the helper takes no arguments.
    (unsafe { bpf_jiffies64() } >> tick_shift()) as u32
}

/// The length of a tick in nanoseconds: 512 ms to 853 ms, depending on the kernel's tick rate.
#[inline(always)]
pub fn tick() -> u64 {
    jiffy() << tick_shift()
}

/// Time in nanoseconds, in steps of a jiffy.
#[inline(always)]
pub fn nanoseconds() -> u64 {
    // SAFETY: the helper takes no arguments.
    unsafe { bpf_jiffies64() }.wrapping_mul(jiffy())
}
