//! The baselines: programs that each do a part of the NLB's work.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, xdp_action, xdp_md};
use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::frame::{self, read, write};

const ETHERNET: usize = 14;
const IPV4: usize = 20;

/// The tunnel of each service, by address, port and protocol: the only look-up of a stateless balancer.
#[btf_map]
static TUNNELS: HashMap<[u32; 2], Tunnel, 1024, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// The addresses of outer headers: IPv4, and MACs in the order of the frame.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tunnel {
    src: u32,
    dst: u32,
    macs: [u32; 3],
}

/// As many cache lines as a flow table has; user space sets their number, a power of two. The flag aligns
/// them to a page.
#[btf_map]
static LINES: Array<[u64; 8], 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// The number of lines, minus 1.
#[unsafe(no_mangle)]
static LAST_LINE: u32 = 0;

/// Does nothing, so that its time is the driver's.
#[xdp]
pub fn nothing(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Sends the frame back to its sender, which is the minimum of an XDP program that sends packets.
#[xdp]
pub fn mac_swap(ctx: XdpContext) -> u32 {
    let (Some(dst), Some(src)) = (read::<[u16; 3]>(ctx.ctx, 0), read::<[u16; 3]>(ctx.ctx, 6)) else {
        return xdp_action::XDP_DROP;
    };
    match write(ctx.ctx, 0, src).and(write(ctx.ctx, 6, dst)) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_DROP,
    }
}

/// Reads the headers, looks the service up in a hash map of the kernel, and writes the MACs.
#[xdp]
pub fn look_up(ctx: XdpContext) -> u32 {
    sent(found(ctx.ctx).and_then(|(tunnel, _)| write(ctx.ctx, 0, tunnel.macs)))
}

/// The same, and adds an outer IPv4 header: a balancer without state, counters or a choice of backends.
#[xdp]
pub fn ipip(ctx: XdpContext) -> u32 {
    sent(wrap(ctx.ctx))
}

/// The same, and reads a cache line of the flow's own: the minimum cost of a table of so many flows.
#[xdp]
pub fn ipip_of_flow(ctx: XdpContext) -> u32 {
    sent(own_line(ctx.ctx).and_then(|_| wrap(ctx.ctx)))
}

/// The same, and writes to that line: the minimum cost of a new flow.
#[xdp]
pub fn ipip_of_new_flow(ctx: XdpContext) -> u32 {
    let noted = own_line(ctx.ctx).map(|line| line[1] = line[1].wrapping_add(1));
    sent(noted.and_then(|()| wrap(ctx.ctx)))
}

#[inline(always)]
fn sent(done: Option<()>) -> u32 {
    if done.is_some() { xdp_action::XDP_TX } else { xdp_action::XDP_PASS }
}

/// The line of the packet's flow, unless its first word is set. It never is, but the program has to read it.
#[inline(always)]
fn own_line(ctx: *mut xdp_md) -> Option<&'static mut [u64; 8]> {
    let (client, port) = (read::<u32>(ctx, ETHERNET + 12)?, read::<u16>(ctx, ETHERNET + IPV4)?);
    let hash = (client as u64 | (port as u64) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    // SAFETY: a valid reference. Volatile, because user space replaces the value.
    let last = unsafe { core::ptr::read_volatile(&LAST_LINE) };
    // SAFETY: the packets of a run are processed one after the other.
    let line = LINES.get_ptr_mut(hash as u32 & last).map(|line| unsafe { &mut *line });
    line.filter(|line| line[0] == 0)
}

#[inline(always)]
fn found(ctx: *mut xdp_md) -> Option<(Tunnel, u16)> {
    if read::<u16>(ctx, 12)? != 0x0800_u16.to_be() {
        return None;
    }
    let header = read::<[u8; IPV4]>(ctx, ETHERNET)?;
    let len = u16::from_be_bytes([header[2], header[3]]);
    if header[0] != 0x45 || frame::len(ctx) < ETHERNET + len as usize || header[9] != 6 && header[9] != 17 {
        return None;
    }
    let port = read::<u16>(ctx, ETHERNET + IPV4 + 2)?;
    let key = [read::<u32>(ctx, ETHERNET + 16)?, port as u32 | (header[9] as u32) << 16];
    // SAFETY: user space writes it before the first packet.
    Some((unsafe { *TUNNELS.get(key)? }, len))
}

#[inline(always)]
fn wrap(ctx: *mut xdp_md) -> Option<()> {
    let (tunnel, len) = found(ctx)?;
    let Tunnel { src, dst, macs } = tunnel;
    let len = (len + IPV4 as u16).to_be();
    let words = [u32::from_ne_bytes([0x45, 0, len as u8, (len >> 8) as u8]), 0, 0x40 | 4 << 8, src, dst];
    let mut sum = 0_u64;
    let mut i = 0;
    while i < words.len() {
        sum += words[i] as u64;
        i += 1;
    }
    sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let [first, second, third, ..] = words;
    grow(ctx, IPV4)?;
    write(ctx, 0, macs)?;
    write(ctx, 12, 0x0800_u16.to_be())?;
    write(ctx, ETHERNET, [first, second, third | (!sum as u32 & 0xffff) << 16, src, dst])
}

#[inline(always)]
fn grow(ctx: *mut xdp_md, bytes: usize) -> Option<()> {
    // SAFETY: valid context; no pointer into the frame is kept.
    (unsafe { bpf_xdp_adjust_head(ctx, -(bytes as i32)) } == 0).then_some(())
}
