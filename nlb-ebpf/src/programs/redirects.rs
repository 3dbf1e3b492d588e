//! Counts the packets that the kernel could not send where XDP redirected them.
//!
//! A program that redirects a packet does not learn what becomes of it: the kernel looks at the interface
//! after the program has ended. Tracepoints report the failures, those of all network namespaces. Successes
//! cost nothing: `xdp_redirect_err` stands in the path of errors, and `xdp_devmap_xmit`, which is passed by
//! each batch, is used by old kernels only.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use nlb_common::abi::lost_redirect;

use crate::maps;

/// `xdp_redirect_err(dev, xdp, tgt, err, map_type, map_id, index)`: without a map, `index` is the interface
/// that the packet was redirected to.
#[raw_tracepoint]
pub fn nlb_redirect_err(ctx: RawTracePointContext) -> i32 {
    if is_ours(ctx.arg(0)) {
        maps::count_lost_redirects(lost_redirect(ctx.arg(6), ctx.arg(3)), 1);
    }
    0
}

/// `xdp_devmap_xmit(from_dev, to_dev, sent, drops, err)`: before Linux 6.3 a veth refuses packets here.
#[raw_tracepoint]
pub fn nlb_devmap_xmit(ctx: RawTracePointContext) -> i32 {
    /// A driver whose queue is full takes a part of a batch, without an error.
    const ENOBUFS: i32 = -105;
    let (drops, err): (i32, i32) = (ctx.arg(3), ctx.arg(4));
    if drops > 0 && is_ours(ctx.arg(0)) {
        let to: *const u8 = ctx.arg(1);
        let ifindex = read(to, maps::redirect_filter().map_or(0, |filter| filter.dev_ifindex));
        let err = if err == 0 { ENOBUFS } else { err };
        maps::count_lost_redirects(lost_redirect(ifindex, err), drops as u64);
    }
    0
}

/// Whether a device is in the daemon's network namespace.
#[inline(always)]
fn is_ours(dev: *const u8) -> bool {
    maps::redirect_filter().is_some_and(|filter| {
        let net: *const u8 = read::<u64>(dev, filter.dev_net) as *const u8;
        read::<u64>(net, filter.net_cookie) == filter.cookie
    })
}

/// Reads a field of a kernel's struct; 0 if that fails.
#[inline(always)]
fn read<T: Default>(of: *const u8, offset: u32) -> T {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(of.wrapping_add(offset as usize).cast()) }.unwrap_or_default()
}
