//! The program for services that go by QUIC's connection ids: their packets are steered as all others are, but to the backend
//! that their id names, if it does.
//!
//! Reading the id is out of line for the reasons that `record` gives.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use nlb_common::abi::{Address, ServerKey, Service};
use nlb_common::parse::{self, Ip, Segment};
use nlb_common::quic::{self, Lengths};
use nlb_common::verdict::{PassReason, Verdict};

use crate::packet::{Context, Packet, bounded};
use crate::{ipv6_ext, maps, steer};

/// Sends a client's packet to the backend of its connection.
#[inline(always)]
pub fn forward(packet: &mut Packet) -> Result<Verdict, Verdict> {
    let ip = parse::ip(packet)?;
    let segment = ipv6_ext::segment(packet, &ip)?;
    let (vip, _) = maps::address(ip.dst);
    if !vip.is(Address::VIP) {
        // It was one a moment ago.
        return Ok(Verdict::Pass(PassReason::NotOurs));
    }
    let service = maps::service_id(&vip, segment.dport, segment.l4);
    if service == 0 {
        // Nor is there a service any more.
        return Ok(steer::to_closed_port(&ip, &segment, &vip));
    }
    steer::to_service::<false, true>(packet, &ip, &segment, &vip, service)
}

/// The backend that a packet's connection id names; 0 if it names none that is there.
#[inline(always)]
pub fn named(packet: &Packet, ip: &Ip, segment: &Segment, service_id: u16, service: &Service) -> u16 {
    let (udp, end, lengths) = (segment.offset as u32, ip.end as u32, service.quic.word());
    match packet.context() {
        Context::Xdp(ctx) => nlb_named(ctx, udp, end, lengths, service_id as u32) as u16,
        Context::Skb(ctx) => nlb_tc_named(ctx, udp, end, lengths, service_id as u32) as u16,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_named(ctx: *mut xdp_md, udp: u32, end: u32, lengths: u32, service: u32) -> u32 {
    find(&Packet::xdp(ctx), udp, end, lengths, service)
}

/// The same for socket buffers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_tc_named(ctx: *mut __sk_buff, udp: u32, end: u32, lengths: u32, service: u32) -> u32 {
    find(&Packet::skb(ctx), udp, end, lengths, service)
}

#[inline(always)]
fn find(packet: &Packet, udp: u32, end: u32, lengths: u32, service: u32) -> u32 {
    let server = quic::server(packet, bounded(udp as usize), end as usize, Lengths::from_word(lengths));
    let Some(server) = server else { return 0 };
    let backend = maps::backend_named(&ServerKey::new(service as u16, &server));
    match maps::backend(backend) {
        Some(_) => backend as u32,
        None => 0,
    }
}
