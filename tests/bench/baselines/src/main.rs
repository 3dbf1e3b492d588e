//! XDP programs that the NLB is measured against, and the driver that runs them.
//!
//! The baselines do only what every load balancer must do. [`drive`] runs before each of them and before the
//! NLB: BPF_PROG_TEST_RUN repeats a program on the frame that the last run left, so the driver restores the
//! frame and changes its flow. The programs of [`live`] send frames over links.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

mod baseline;
mod drive;
mod frame;
mod live;

/// The host target exists so that the compiler and clippy check the programs.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Never linked: nothing here can panic, and the verifier would refuse an endless loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
