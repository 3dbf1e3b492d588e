//! Where a packet goes next, and what to do when that is not known yet.

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

/// Where a packet has to go through the kernel's stack, XDP leaves it to the program at the stack's door.
pub const LOCAL: Verdict = Verdict::Pass(PassReason::Local);

/// A question for the kernel and its answer.
#[repr(C)]
struct FibQuery {
    src: Addr,
    dst: Addr,
    hop: NextHop,
    /// The longest packet that may go there.
    mtu: u64,
}

/// The verdict on a packet that we sent on to this hop before.
#[inline(always)]
pub fn check_loop(packet: &Packet, hop: &NextHop) -> Result<(), Verdict> {
    if hop.src() != Mac::NONE && rewrite::source_mac(packet) == Some(hop.src()) {
        return Err(Verdict::Drop(DropReason::Loop));
    }
    Ok(())
}

/// The next hop towards `dst` of an IP packet of `len` bytes, from the kernel's own routes and neighbours.
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
            BPF_FIB_LKUP_RET_NO_NEIGH => Err(punt::punt(packet, dst)),
            // Also the answer about this host's own addresses.
            BPF_FIB_LKUP_RET_NOT_FWDED if maps::is_local_link(LOOPBACK) => Err(LOCAL),
            _ => Err(NO_ROUTE),
        },
        Context::Skb(ctx) => match nlb_tc_fib_lookup(ctx, &mut query) {
            BPF_FIB_LKUP_RET_SUCCESS => Ok(query.hop),
            // The stack finds its neighbours itself, and packets wait there meanwhile.
            BPF_FIB_LKUP_RET_NO_NEIGH => Ok(NextHop::without_macs(query.hop.ifindex)),
            BPF_FIB_LKUP_RET_NOT_FWDED => Ok(NextHop::without_macs(LOOPBACK)),
            _ => Err(NO_ROUTE),
        },
    }
}

/// With the MTU, in place of an answer.
const TOO_LONG: u32 = 1 << 31;

/// In place of an answer that XDP cannot follow.
const ON_THIS_HOST: u32 = 1 << 30;

/// Asks the kernel; the answer is one of `BPF_FIB_LKUP_RET_*`, `ON_THIS_HOST`, or `TOO_LONG`. Out of line, because the kernel's
/// struct takes much of the stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_fib_lookup(ctx: *mut xdp_md, query: *mut FibQuery, len: u32) -> u32 {
    if query.is_null() {
        return BPF_FIB_LKUP_RET_NOT_FWDED;
    }
    // SAFETY: not null, and the verifier holds callers to passing a whole `FibQuery`, which nobody else has.
    let query = unsafe { &mut *query };
    // Read before the kernel is asked, so that a change meanwhile counts.
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

/// A cached next hop holds until user space hears of a change, and no longer than to the end of a tick,
/// half a second at most: to ask it for every packet costs several times what all the rest does.
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

/// The same for socket buffers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_tc_fib_lookup(ctx: *mut __sk_buff, query: *mut FibQuery) -> u32 {
    if query.is_null() {
        return BPF_FIB_LKUP_RET_NOT_FWDED;
    }
    // SAFETY: as in `nlb_fib_lookup`.
    let query = unsafe { &mut *query };
    // How long it may be, the kernel sees for itself: a buffer may be cut into segments later.
    fib_lookup(ctx.cast(), query, 0)
}

/// The kernel answers only for interfaces that forward; asking on behalf of loopback makes the packet one of our own, and
/// lets us leave the real interfaces' settings alone. User space makes `lo` forward.
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
    // SAFETY: valid context, and `params` is as long as we say.
    let answer = unsafe { bpf_fib_lookup(ctx, params, size_of::<FibParams>() as i32, 0) } as u32;
    // SAFETY: a union of two 16-bit numbers; where it was told a length, the kernel has put this one there.
    let mtu = unsafe { params.__bindgen_anon_1.mtu_result };
    if answer == BPF_FIB_LKUP_RET_FRAG_NEEDED && len != 0 {
        return TOO_LONG | mtu as u32;
    }
    query.mtu = mtu as u64;
    // On success the kernel has filled in both MAC addresses.
    query.hop = NextHop::new(mac(&params.dmac), mac(&params.smac), params.ifindex);
    answer
}

/// A MAC address on the stack. Volatile, word by word: the compiler would use wider loads, which packets may be read with
/// but the stack may not.
#[inline(always)]
fn mac(bytes: &[u8; 6]) -> Mac {
    let words: *const u16 = bytes.as_ptr().cast();
    // SAFETY: six bytes are three words, and the kernel's struct has both MAC addresses at even offsets.
    let [a, b, c] =
        unsafe { [words.read_volatile(), words.add(1).read_volatile(), words.add(2).read_volatile()] };
    Mac { first: a as u32 | (b as u32) << 16, last: c }
}
