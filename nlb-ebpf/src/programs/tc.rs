//! The balancer at TC ingress, for packets from and to this host and its containers.
//!
//! A driver cannot send to a bridge or to loopback, and packets of a local stack have unfinished checksums
//! and segments. At TC ingress, where the kernel's stack takes packets in, these programs get such packets:
//! on loopback, on bridges, and on the interfaces of the balancer, where XDP passes local packets on. They
//! steer packets as XDP does. Packets that do not concern the balancer pass unchanged and uncounted.

use core::ptr::null_mut;

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use nlb_common::abi::{Address, LOOPBACK};
use nlb_common::icmp::is_icmp;
use nlb_common::net::Mac;
use nlb_common::parse;
use nlb_common::protocol::{ETH_LEN, IPV4_LEN, TCP_LEN, UDP_LEN};
use nlb_common::rewrite;
use nlb_common::verdict::{Program, SEEN_COUNTER, SendReason, Verdict};

use super::{fragments, icmp, quic, too_big};
use crate::packet::Packet;
use crate::{maps, steer, tail_call};

/// The headers of the shortest packet that concerns the balancer: Ethernet, IPv4, UDP.
const LEAST: usize = ETH_LEN + IPV4_LEN + UDP_LEN;
/// The bytes in which all parsed headers end: tags, options or extensions, and the packet that an ICMP error
/// quotes.
const MOST: usize = 256;

/// Runs a tail-called program on a packet whose headers are linear. A macro, for the reason that `main`
/// gives.
macro_rules! run {
    ($ctx:expr, $program:path) => {{
        let skb = $ctx.skb.skb;
        let mut packet = Packet::skb(skb);
        if packet.pull(MOST).is_none() {
            return TC_ACT_UNSPEC;
        }
        let (Ok(verdict) | Err(verdict)) = $program(&mut packet);
        finish(skb, &packet, verdict)
    }};
}

/// The balancer.
#[classifier]
pub fn nlb_tc(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let mut packet = Packet::skb(skb);
    if is_already_balanced(skb) || is_of_vlan(skb) || !concerns_us(&mut packet) {
        return TC_ACT_UNSPEC;
    }
    let (Ok(verdict) | Err(verdict)) = steer::steer(&mut packet);
    finish(skb, &packet, verdict)
}

/// Tail call: ICMP.
#[classifier]
pub fn nlb_tc_icmp(ctx: TcContext) -> i32 {
    run!(ctx, icmp::forward)
}

/// Tail call: fragments.
#[classifier]
pub fn nlb_tc_fragments(ctx: TcContext) -> i32 {
    run!(ctx, fragments::forward)
}

/// Tail call: a packet that is longer than the MTU.
#[classifier]
pub fn nlb_tc_too_big(ctx: TcContext) -> i32 {
    run!(ctx, too_big::forward)
}

/// Tail call: packets that may be QUIC.
#[classifier]
pub fn nlb_tc_quic(ctx: TcContext) -> i32 {
    run!(ctx, quic::forward)
}

/// Whether the kernel has removed a VLAN's tag from the frame but not yet passed it to the VLAN's device,
/// where it reaches TC ingress again. A frame sent on from here would get its tag back. VLAN 0 is no VLAN
/// (IEEE 802.1Q, priority tags).
#[inline(always)]
fn is_of_vlan(skb: *mut __sk_buff) -> bool {
    // SAFETY: valid context.
    unsafe { (*skb).vlan_present != 0 && (*skb).vlan_tci & 0xfff != 0 }
}

/// Whether the packet may concern the balancer; then its headers are linear. Most packets on loopback do not
/// concern it.
#[inline(always)]
fn concerns_us(packet: &mut Packet) -> bool {
    if packet.pull(LEAST).is_none() {
        return false;
    }
    let Ok(ip) = parse::ip(packet) else { return false };
    let (known, transparent) = maps::address(ip.dst);
    if !known.is(Address::ANY) && !transparent && !is_icmp(&ip) {
        return false;
    }
    packet.pull(if parse::has_extensions(&ip) { MOST } else { ip.next + TCP_LEN }).is_some()
}

#[inline(always)]
fn finish(skb: *mut __sk_buff, packet: &Packet, verdict: Verdict) -> i32 {
    let verdict = match verdict {
        Verdict::Pass(_) => return TC_ACT_UNSPEC,
        // Senders on this host get no refusal.
        Verdict::TailCall(Program::Reject) => Verdict::Drop(tail_call::refusal().silent()),
        Verdict::TailCall(program) => {
            tail_call::tail_call(packet, program);
            verdict
        }
        _ => verdict,
    };
    maps::count(SEEN_COUNTER);
    maps::count(verdict.counter());
    match verdict {
        // User space sends the answer.
        Verdict::Send(SendReason::TooBig, _) => TC_ACT_SHOT,
        Verdict::Send(_, LOOPBACK) => {
            mark(skb);
            // SAFETY: the helper takes plain numbers.
            (unsafe { bpf_redirect(LOOPBACK, BPF_F_INGRESS as u64) }) as i32
        }
        Verdict::Send(_, ifindex) if is_without_mac(packet) => {
            // SAFETY: without parameters the helper takes the next hop from the packet's destination.
            (unsafe { bpf_redirect_neigh(ifindex, null_mut(), 0, 0) }) as i32
        }
        // SAFETY: the helper takes plain numbers.
        Verdict::Send(_, ifindex) => (unsafe { bpf_redirect(ifindex, 0) }) as i32,
        Verdict::Pass(_) | Verdict::Punt(_) | Verdict::Drop(_) | Verdict::TailCall(_) => TC_ACT_SHOT,
    }
}

/// Whether the stack has to resolve the neighbour's MAC address.
#[inline(always)]
fn is_without_mac(packet: &Packet) -> bool {
    rewrite::destination_mac(packet) == Some(Mac::NONE)
}

/// Marks a frame that is redirected to loopback, where it reaches this program again. `tc_index` is for
/// classifiers, and the stack does not read it.
const BALANCED_MARK: u32 = 0x4e4c;

#[inline(always)]
fn mark(skb: *mut __sk_buff) {
    // SAFETY: valid context.
    unsafe { (*skb).tc_index = BALANCED_MARK };
}

#[inline(always)]
fn is_already_balanced(skb: *mut __sk_buff) -> bool {
    // SAFETY: valid context.
    let here = unsafe { (*skb).tc_index == BALANCED_MARK };
    if here {
        // SAFETY: valid context.
        unsafe { (*skb).tc_index = 0 };
    }
    here
}
