//! Programs that the balancer is measured against, and the one that runs them all.
//!
//! The floors do what no balancer can do without, and nothing else. [`drive`] stands in front of each, and of the balancer:
//! BPF_PROG_TEST_RUN repeats a program on what it left behind the last time, so somebody has to make the frame what it was,
//! and to change its flow. In [`live`] frames travel.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

mod baseline;
mod drive;
mod frame;
mod live;

/// For the host the programs are only checked, by the compiler and by clippy.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Never linked in: nothing here can panic, and the verifier would refuse an endless loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
