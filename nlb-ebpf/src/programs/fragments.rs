//! The program for fragments: the first fragment is steered like any packet, and its path is stored; the
//! other fragments take the same path.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use nlb_common::abi::{Address, Backend, FragmentEntry, FragmentKey};
use nlb_common::fragment::{self, Fragment, REASSEMBLY_SECONDS};
use nlb_common::parse::{self, Ip};
use nlb_common::rewrite;
use nlb_common::verdict::{DropReason, Outcome, PassReason, SendReason, Verdict};

use crate::maps::Rate;
use crate::packet::{Context, Packet};
use crate::{clock, forward, fragment_cache, maps, next_hop, punt, rate_limit, steer};

#[inline(always)]
pub fn forward(packet: &mut Packet) -> Outcome {
    let ip = parse::ip(packet)?;
    let scratch = fragment_cache::scratch().ok_or(Verdict::INTERNAL)?;
    let Some(fragment) = fragment_of(packet, &ip) else { return Ok(unknown(&ip)) };
    let protocol = if ip.v6 { 0 } else { ip.protocol as u32 };
    scratch.key = FragmentKey { src: ip.src, dst: ip.dst, id: fragment.id, protocol };
    if !fragment.later {
        let outcome = steer::steer_ip::<true>(packet, &ip);
        if let Ok(next_hop::LOCAL) | Err(next_hop::LOCAL) = outcome {
            fragment_cache::remember_detour(FragmentEntry::LOCAL);
        }
        return outcome;
    }
    let key = &scratch.key;
    match fragment_cache::find(key) {
        Some(entry) => follow(packet, &ip, entry),
        None => Ok(unknown(&ip)),
    }
}

#[inline(always)]
fn follow(packet: &mut Packet, ip: &Ip, entry: &FragmentEntry) -> Outcome {
    let age = clock::now().wrapping_sub(entry.at) as u64 * clock::tick();
    // Up to one tick of it had passed when the entry was written.
    if age > REASSEMBLY_SECONDS * 1_000_000_000 + clock::tick() {
        return Ok(unknown(ip));
    }
    match entry.path {
        FragmentEntry::LOCAL if !packet.is_skb() => return Ok(next_hop::LOCAL),
        FragmentEntry::PUNTED => {
            ip.check_ttl()?;
            return Ok(if maps::is_within(Rate::Fragments) {
                punt::to_be_fragmented(packet, u16::MAX)
            } else {
                Verdict::Drop(DropReason::TooBig)
            });
        }
        _ => {}
    }
    let Some(backend) = maps::backend_of(entry.backend, entry.generation) else { return Ok(unknown(ip)) };
    ip.check_ttl()?;
    if entry.path == FragmentEntry::TO_CLIENT {
        let hop = next_hop::find(packet, entry.src, entry.dst, ip.total_len())?;
        next_hop::check_loop(packet, &hop)?;
        maps::count_reply(entry.backend, ip.total_len(), false);
        rewrite::readdress(packet, ip, entry.src, entry.dst).ok_or(Verdict::INTERNAL)?;
        return forward::send(packet, &hop, SendReason::Reply);
    }
    forward::check_reachable(packet, ip, backend)?;
    rate_limit::pass(
        maps::service(entry.service).ok_or(Verdict::INTERNAL)?,
        backend,
        ip.src,
        ip.total_len(),
        false,
    )?;
    maps::count_forward(entry.backend, ip.total_len());
    if backend.mode != Backend::NAT {
        return forward::send_untranslated(
            packet,
            ip,
            (entry.backend, backend),
            entry.hash,
            SendReason::Forward,
        );
    }
    rewrite::readdress(packet, ip, entry.src, entry.dst).ok_or(Verdict::INTERNAL)?;
    forward::send(packet, &backend.hop, SendReason::Forward)
}

/// The verdict on a fragment without an entry. It may belong to the host itself unless it is for a VIP.
#[inline(always)]
fn unknown(ip: &Ip) -> Verdict {
    if maps::address(ip.dst).0.is(Address::VIP) {
        Verdict::Drop(DropReason::Fragment)
    } else {
        Verdict::Pass(PassReason::NoFlow)
    }
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

/// The id of an IPv6 fragment with `FOUND`, and `LATER` if it is not the first; or 0. Out of line for the
/// reasons that `ipv6_ext` gives.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_fragment(ctx: *mut xdp_md, protocol: u32, offset: u32) -> u64 {
    find(&Packet::xdp(ctx), protocol, offset)
}

/// As [`nlb_fragment`], for socket buffers.
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
