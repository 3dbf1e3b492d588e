//! Restores the frame, sets the client of the next flow, and runs the program that is measured.
//!
//! The driver does the same work in front of every program, whether it is needed or not. Its own cost is
//! measured in front of [`crate::baseline::nothing`] and subtracted.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::btf_maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::frame;

/// The length of every frame.
const FRAME: usize = 128;

/// The frame to restore; user space writes it.
#[btf_map]
static TEMPLATE: Array<[u64; FRAME / 8], 1> = Array::new();

/// The number of frames that this CPU has restored.
#[btf_map]
static TURN: PerCpuArray<u64, 1> = PerCpuArray::new();

/// The measured program.
#[btf_map]
static MEASURED: ProgramArray<1> = ProgramArray::new();

/// The constants that user space sets before it loads the driver.
#[repr(C)]
#[derive(Clone, Copy)]
struct Plan {
    /// The number of flows, a power of two, minus 1.
    flows: u32,
    /// The offsets of the last four bytes of the client's address and of the port that varies.
    client_at: u32,
    port_at: u32,
    /// The first of these ports; there are two to the power of `port_bits`.
    first_port: u32,
    port_bits: u32,
}

#[unsafe(no_mangle)]
static PLAN: Plan = Plan { flows: 0, client_at: 26, port_at: 34, first_port: 4096, port_bits: 12 };

#[xdp]
pub fn drive(ctx: XdpContext) -> u32 {
    match prepare(ctx.ctx) {
        // SAFETY: valid context, and nothing here has to be dropped.
        Some(()) => unsafe {
            MEASURED.tail_call(&ctx, 0);
        },
        None => return xdp_action::XDP_ABORTED,
    }
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn prepare(ctx: *mut xdp_md) -> Option<()> {
    // SAFETY: a valid reference. Volatile, because user space replaces the value, which the compiler must not
    // assume away.
    let plan = unsafe { core::ptr::read_volatile(&PLAN) };
    let moved = frame::len(ctx) as i32 - FRAME as i32;
    // SAFETY: valid context; no pointer into the frame is kept.
    if unsafe { bpf_xdp_adjust_head(ctx, moved) } != 0 {
        return None;
    }
    frame::write_head(ctx, TEMPLATE.get(0)?)?;
    let turn = frame::count(&TURN, 0)?;
    // An odd factor visits every flow once a round, in an order that hardware does not prefetch.
    let flow = (turn as u32).wrapping_mul(0x9e37_79b1) & plan.flows;
    let port = plan.first_port + (flow & ((1 << plan.port_bits) - 1));
    frame::write(ctx, plan.client_at as usize, (0xc633_0000 + (flow >> plan.port_bits)).to_be())?;
    frame::write(ctx, plan.port_at as usize, (port as u16).to_be())
}
