//! The program for fragments: the first is steered like any packet and remembered, the others follow it.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::btf_maps::{LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use nlb_common::abi::{Address, Backend, FRAGMENTED, FragmentEntry, FragmentKey};
use nlb_common::fragment::{self, Fragment, SECONDS};
use nlb_common::net::Addr;
use nlb_common::parse::{self, Ip};
use nlb_common::rewrite;
use nlb_common::verdict::{DropReason, PassReason, SendReason, Verdict};

use crate::packet::{Context, Packet};
use crate::steer::{self, INTERNAL};
use crate::{maps, next_hop, rate_limit};

/// Packets of which fragments are on their way. Floods push out what is oldest.
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentEntry, { FRAGMENTED }> = LruHashMap::new();

/// The fragment at hand. Here and not on the stack, of which steering takes most.
#[btf_map]
static FRAGMENT: PerCpuArray<Remembered, 1> = PerCpuArray::new();

#[repr(C)]
struct Remembered {
    key: FragmentKey,
    way: FragmentEntry,
}

#[inline(always)]
pub fn forward(packet: &mut Packet) -> Result<Verdict, Verdict> {
    let ip = parse::ip(packet)?;
    let at_hand = at_hand().ok_or(INTERNAL)?;
    let Some(fragment) = fragment_of(packet, &ip) else { return Ok(unknown(&ip)) };
    let protocol = if ip.v6 { 0 } else { ip.protocol as u32 };
    at_hand.key = FragmentKey { src: ip.src, dst: ip.dst, id: fragment.id, protocol };
    if !fragment.later {
        return steer::steer_ip::<true>(packet, &ip);
    }
    let key = &at_hand.key;
    // SAFETY: map values stay readable while the program runs. Should another fragment's way be written there meanwhile, that
    // one is followed, and the packet will not be put together.
    match unsafe { FRAGMENTS.get(key) } {
        Some(way) => follow(packet, &ip, way),
        None => Ok(unknown(&ip)),
    }
}

/// Remembers where the first fragment at hand goes, and with which addresses.
#[inline(always)]
pub fn remember(backend_id: u16, backend: &Backend, service: u16, reply: bool, to: (Addr, Addr), hash: u64) {
    let Some(at_hand) = at_hand() else { return };
    at_hand.way = FragmentEntry {
        src: to.0,
        dst: to.1,
        backend: backend_id,
        service,
        at: maps::now(),
        generation: backend.generation,
        reply: reply as u8,
        hash,
    };
    // By reference: a copy would be on the stack.
    let (key, way) = (&at_hand.key, &at_hand.way);
    // Without room the others are dropped, and the sender begins anew.
    let _ = FRAGMENTS.insert(key, way, 0);
}

#[inline(always)]
fn follow(packet: &mut Packet, ip: &Ip, way: &FragmentEntry) -> Result<Verdict, Verdict> {
    let age = maps::now().wrapping_sub(way.at) as u64;
    // A tick is half a second, or a little more.
    if age > 2 * SECONDS {
        return Ok(unknown(ip));
    }
    let Some(backend) = maps::backend(way.backend) else { return Ok(unknown(ip)) };
    if backend.generation != way.generation {
        return Ok(unknown(ip));
    }
    if ip.ttl <= 1 {
        return Ok(Verdict::Drop(DropReason::TtlExceeded));
    }
    let bytes = steer::bytes(ip);
    if way.reply != 0 {
        let hop = next_hop::towards(packet, way.src, way.dst, bytes)?;
        if steer::came_back(packet, &hop) {
            return Ok(Verdict::Drop(DropReason::Loop));
        }
        if let Some(stats) = maps::backend_stats(way.backend) {
            stats.reply_packets += 1;
            stats.reply_bytes += bytes as u64;
        }
        rewrite::readdress(packet, ip, way.src, way.dst).ok_or(INTERNAL)?;
        return steer::send(packet, &hop, SendReason::Reply);
    }
    steer::reachable(packet, ip, backend)?;
    rate_limit::pass(maps::service(way.service).ok_or(INTERNAL)?, backend, ip.src, bytes, false)?;
    if let Some(stats) = maps::backend_stats(way.backend) {
        stats.packets += 1;
        stats.bytes += bytes as u64;
    }
    if backend.mode != Backend::NAT {
        return steer::send_untranslated(packet, ip, (way.backend, backend), way.hash, SendReason::Forward);
    }
    rewrite::readdress(packet, ip, way.src, way.dst).ok_or(INTERNAL)?;
    steer::send(packet, &backend.hop, SendReason::Forward)
}

/// What becomes of a fragment whose first was not seen: what may be the host's own is left to it.
#[inline(always)]
fn unknown(ip: &Ip) -> Verdict {
    if maps::address(ip.dst).0.is(Address::VIP) {
        Verdict::Drop(DropReason::Fragment)
    } else {
        Verdict::Pass(PassReason::NoFlow)
    }
}

#[inline(always)]
fn at_hand() -> Option<&'static mut Remembered> {
    // SAFETY: this CPU's own copy, and an XDP program is not interrupted by another.
    FRAGMENT.get_ptr_mut(0).map(|at_hand| unsafe { &mut *at_hand })
}

#[inline(always)]
fn fragment_of(packet: &Packet, ip: &Ip) -> Option<Fragment> {
    if !ip.v6 {
        return fragment::v4(packet, ip);
    }
    let (protocol, next) = (ip.protocol as u32, ip.next as u32);
    let found = match packet.context() {
        Context::Xdp(ctx) => nlb_fragment(ctx, protocol, next),
        Context::Skb(ctx) => nlb_tc_fragment(ctx, protocol, next),
    };
    (found & FOUND != 0).then_some(Fragment { id: found as u32, later: found & LATER != 0 })
}

const FOUND: u64 = 1 << 63;
const LATER: u64 = 1 << 62;

/// The id of an IPv6 fragment with `FOUND`, and perhaps `LATER`; or 0. Out of line for the reasons that `extensions` gives.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_fragment(ctx: *mut xdp_md, protocol: u32, offset: u32) -> u64 {
    find(&Packet::xdp(ctx), protocol, offset)
}

/// The same for socket buffers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_tc_fragment(ctx: *mut __sk_buff, protocol: u32, offset: u32) -> u64 {
    find(&Packet::skb(ctx), protocol, offset)
}

#[inline(always)]
fn find(packet: &Packet, protocol: u32, offset: u32) -> u64 {
    // An IPv6 header behind two VLAN tags ends at 62.
    let offset = offset as usize & 63;
    fragment::v6(packet, protocol as u8, offset)
        .map_or(0, |fragment| FOUND | if fragment.later { LATER } else { 0 } | fragment.id as u64)
}
