//! Next hops by the kernel's FIB, a cache of them, and the loop check.

use aya_ebpf::bindings::{
    __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
    BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibParams, xdp_md,
};
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::bpf_fib_lookup;
use nlb_common::abi::{LOOPBACK, NextHop};
use nlb_common::hash;
use nlb_common::net::{Addr, Mac};
use nlb_common::rewrite;
use nlb_common::verdict::{DropReason, PassReason, Verdict};

use crate::maps::{self, CachedNextHop};
use crate::packet::{Aligned, Context, Packet};
use crate::{punt, tail_call};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A packet that has to go through the kernel's stack: XDP leaves it to the program at TC ingress.
pub const LOCAL: Verdict = Verdict::Pass(PassReason::Local);

/// A FIB look-up and its result.
#[repr(C)]
struct FibQuery {
    src: Addr,
    dst: Addr,
    hop: NextHop,
    /// The path MTU.
    mtu: u64,
}

/// The verdict on a packet whose source MAC address is the one that this node would send it with: this node
/// has sent it before.
#[inline(always)]
pub fn check_loop(packet: &Packet, hop: &NextHop) -> Result<(), Verdict> {
    if hop.src() != Mac::NONE && rewrite::source_mac(packet) == Some(hop.src()) {
        return Err(Verdict::Drop(DropReason::Loop));
    }
    Ok(())
}

/// The next hop towards `dst` for an IP packet of `len` bytes, from the kernel's routes and neighbours.
#[inline(always)]
pub fn find(packet: &Packet, src: Addr, dst: Addr, len: usize) -> Result<NextHop, Verdict> {
    let len = len as u32;
    if !packet.is_skb()
        && let Some(hop) = cached(src, dst, len)
    {
        return Ok(hop);
    }
    let mut query = FibQuery { src, dst, hop: NextHop::default(), mtu: 0 };
    const NO_ROUTE: Verdict = Verdict::Drop(DropReason::NoRoute);
    match packet.context() {
        Context::Xdp(ctx) => match nlb_fib_lookup(ctx, &mut query, len) {
            answer if answer & TOO_LONG != 0 => Err(tail_call::to_too_big(answer & !TOO_LONG)),
            BPF_FIB_LKUP_RET_SUCCESS => Ok(query.hop),
            ON_THIS_HOST => Err(LOCAL),
            BPF_FIB_LKUP_RET_NO_NEIGH => Err(punt::until_resolved(packet, dst)),
            // The FIB gives this result for this host's own addresses too.
            BPF_FIB_LKUP_RET_NOT_FWDED if maps::is_local_link(LOOPBACK) => Err(LOCAL),
            _ => Err(NO_ROUTE),
        },
        Context::Skb(ctx) => match nlb_tc_fib_lookup(ctx, &mut query, len) {
            answer if answer & TOO_LONG != 0 => Err(tail_call::to_too_big(answer & !TOO_LONG)),
            BPF_FIB_LKUP_RET_SUCCESS => Ok(query.hop),
            // The stack resolves its neighbours itself, and queues packets meanwhile.
            BPF_FIB_LKUP_RET_NO_NEIGH => Ok(NextHop::without_macs(query.hop.ifindex)),
            BPF_FIB_LKUP_RET_NOT_FWDED => Ok(NextHop::without_macs(LOOPBACK)),
            _ => Err(NO_ROUTE),
        },
    }
}

/// A flag of the result: the packet is too long, and the other bits hold the MTU.
const TOO_LONG: u32 = 1 << 31;

/// The result for a next hop that XDP cannot send to.
const ON_THIS_HOST: u32 = 1 << 30;

/// Looks up the kernel's FIB. The result is one of `BPF_FIB_LKUP_RET_*`, `ON_THIS_HOST`, or `TOO_LONG` with
/// the MTU. Out of line, because the kernel's struct takes much of the stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_fib_lookup(ctx: *mut xdp_md, query: *mut FibQuery, len: u32) -> u32 {
    if query.is_null() {
        return BPF_FIB_LKUP_RET_NOT_FWDED;
    }
    // SAFETY: not null. The verifier makes callers pass a whole `FibQuery`, and they keep no other reference
    // to it.
    let query = unsafe { &mut *query };
    // Read before the look-up, so that a change during the look-up invalidates the cached result.
    let epoch = maps::next_hop_epoch();
    let answer = fib_lookup(ctx.cast(), query, len);
    match answer {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH if maps::is_local_link(query.hop.ifindex) => {
            ON_THIS_HOST
        }
        BPF_FIB_LKUP_RET_SUCCESS => {
            store(query, epoch);
            answer
        }
        _ => answer,
    }
}

/// A cached next hop is valid until user space reports a change of the FIB, and at most until the end of the
/// tick. A FIB look-up for every packet would cost several times as much as the rest of a
/// reply.
#[inline(always)]
fn cached(src: Addr, dst: Addr, len: u32) -> Option<NextHop> {
    let entry = maps::cached_next_hop(hash::addr(dst))?;
    let holds = entry.dst == dst
        && entry.src == src
        && entry.epoch == maps::next_hop_epoch()
        && len as u64 <= entry.mtu;
    holds.then_some(entry.hop)
}

#[inline(always)]
fn store(query: &FibQuery, epoch: u64) {
    if let Some(entry) = maps::cached_next_hop(hash::addr(query.dst)) {
        let FibQuery { src, dst, hop, mtu } = *query;
        *entry = CachedNextHop { src, dst, hop, mtu, epoch };
    }
}

/// As [`nlb_fib_lookup`], for socket buffers; the result is one of `BPF_FIB_LKUP_RET_*`, or `TOO_LONG` with
/// the MTU.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_tc_fib_lookup(ctx: *mut __sk_buff, query: *mut FibQuery, len: u32) -> u32 {
    if query.is_null() {
        return BPF_FIB_LKUP_RET_NOT_FWDED;
    }
    // SAFETY: as in `nlb_fib_lookup`.
    let query = unsafe { &mut *query };
    fib_lookup(ctx.cast(), query, len)
}

/// Looks up on behalf of loopback. The kernel answers only for interfaces that forward, and with loopback as
/// the input it treats the packet as the host's own, so the settings of real interfaces do not matter. User
/// space enables forwarding on `lo`.
#[inline(always)]
fn fib_lookup(ctx: *mut c_void, query: &mut FibQuery, len: u32) -> u32 {
    // SAFETY: all of the struct's fields are integers or unions of them, for which zero is valid.
    let mut params: Aligned<FibParams> = unsafe { core::mem::zeroed() };
    let params = &mut params.0;
    params.ifindex = LOOPBACK;
    params.__bindgen_anon_1.tot_len = len as u16;
    if query.dst.is_v4() {
        params.family = AF_INET;
        params.__bindgen_anon_3.ipv4_src = query.src.words()[3];
        params.__bindgen_anon_4.ipv4_dst = query.dst.words()[3];
    } else {
        params.family = AF_INET6;
        params.__bindgen_anon_3.ipv6_src = query.src.words();
        params.__bindgen_anon_4.ipv6_dst = query.dst.words();
    }
    // SAFETY: valid context, and the size of `params` is right.
    let answer = unsafe { bpf_fib_lookup(ctx, params, size_of::<FibParams>() as i32, 0) } as u32;
    // SAFETY: a union of two 16-bit numbers; the kernel has stored the MTU.
    let mtu = unsafe { params.__bindgen_anon_1.mtu_result };
    if answer == BPF_FIB_LKUP_RET_FRAG_NEEDED {
        return TOO_LONG | mtu as u32;
    }
    query.mtu = mtu as u64;
    // On success the kernel has stored both MAC addresses.
    query.hop = NextHop::new(mac(&params.dmac), mac(&params.smac), params.ifindex);
    answer
}

/// A MAC address on the stack, read by volatile 16-bit loads: the compiler would merge them to wider loads,
/// which the verifier refuses on the stack.
#[inline(always)]
fn mac(bytes: &[u8; 6]) -> Mac {
    let words: *const u16 = bytes.as_ptr().cast();
    // SAFETY: six bytes are three words, and both MAC addresses of the kernel's struct are at even offsets.
    let [a, b, c] =
        unsafe { [words.read_volatile(), words.add(1).read_volatile(), words.add(2).read_volatile()] };
    Mac { first: a as u32 | (b as u32) << 16, last: c }
}
