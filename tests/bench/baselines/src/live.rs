//! Programs for live frames: one makes frames, one counts and drops them, and one forwards them in between
//! with the minimum of work.
//!
//! The kernel runs [`generate`] on recycled pages that hold whatever was last written to them
//! (BPF_F_TEST_XDP_LIVE_FRAMES). The program therefore writes all headers, each time for the next flow.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::frame::{count, read, write, write_head};

/// Offsets in a frame of UDP over IPv4 without options.
const ETHER_TYPE: usize = 12;
const PROTOCOL: usize = 23;
const LAST_OF_DESTINATION: usize = 33;
const SOURCE_PORT: usize = 34;
const PAYLOAD: usize = 42;

/// The length of the headers and the first bytes of the payload.
const HEAD: usize = 48;

/// The frame's head, for a source port of 0; user space writes it.
#[btf_map]
static HEADERS: Array<[u64; HEAD / 8], 1> = Array::new();

/// The number of frames that this CPU has made.
#[btf_map]
static MADE: PerCpuArray<u64, 1> = PerCpuArray::new();

/// The number of frames that arrived, by the last byte of their destination.
#[btf_map]
static ARRIVED: PerCpuArray<u64, 256> = PerCpuArray::new();

/// The next hop of packets, by the last byte of their destination.
#[btf_map]
static HOPS: Array<Hop, 256> = Array::new();

/// MAC addresses in the order of the frame, and the interface.
#[repr(C)]
#[derive(Clone, Copy)]
struct Hop {
    macs: [u32; 3],
    ifindex: u32,
}

/// The number of source ports, a power of two. Each is a flow.
const PORTS: u16 = 1024;
const FIRST_PORT: u16 = 4096;

/// Sends the next flow's frame by the interface that the context names.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    if make(ctx.ctx).is_some() { xdp_action::XDP_TX } else { xdp_action::XDP_ABORTED }
}

#[inline(always)]
fn make(ctx: *mut xdp_md) -> Option<()> {
    let turn = count(&MADE, 0)?;
    let port = FIRST_PORT + (turn as u16 & (PORTS - 1));
    write_head(ctx, HEADERS.get(0)?)?;
    write(ctx, SOURCE_PORT, port.to_be())?;
    // Compensates for the port, so that the checksum is correct for every flow.
    write(ctx, PAYLOAD, (!port).to_be())
}

/// Counts and drops UDP over IPv4, and passes everything else.
#[xdp]
pub fn sink(ctx: XdpContext) -> u32 {
    if taken(ctx.ctx).is_some() { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}

#[inline(always)]
fn taken(ctx: *mut xdp_md) -> Option<()> {
    const UDP: u8 = 17;
    let address = read::<u8>(ctx, LAST_OF_DESTINATION)?;
    if read::<u16>(ctx, ETHER_TYPE)? != 0x0800_u16.to_be() || read::<u8>(ctx, PROTOCOL)? != UDP {
        return None;
    }
    count(&ARRIVED, address as u32).map(drop)
}

/// A router with one look-up in an array: writes the MACs, and redirects to the interface of the
/// destination.
#[xdp]
pub fn pass_on(ctx: XdpContext) -> u32 {
    next(ctx.ctx).map_or(xdp_action::XDP_PASS, |ifindex| {
        // SAFETY: the helper has no conditions.
        unsafe { bpf_redirect(ifindex, 0) as u32 }
    })
}

#[inline(always)]
fn next(ctx: *mut xdp_md) -> Option<u32> {
    let address = read::<u8>(ctx, LAST_OF_DESTINATION)?;
    if read::<u16>(ctx, ETHER_TYPE)? != 0x0800_u16.to_be() {
        return None;
    }
    let hop = *HOPS.get(address as u32)?;
    if hop.ifindex == 0 {
        return None;
    }
    write(ctx, 0, hop.macs)?;
    Some(hop.ifindex)
}
