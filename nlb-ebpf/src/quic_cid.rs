//! The backend that a QUIC packet's connection id names. Out of line for the reasons that `record` gives.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use nlb_common::abi::{ServerKey, Service};
use nlb_common::parse::{Ip, Segment};
use nlb_common::quic::{self, Lengths};

use crate::maps;
use crate::packet::{Context, Packet, bounded};

/// The backend that the connection id names; 0 if it names none that exists.
#[inline(always)]
pub fn backend(packet: &Packet, ip: &Ip, segment: &Segment, service_id: u16, service: &Service) -> u16 {
    let (udp, end, lengths) = (segment.offset as u32, ip.end as u32, service.quic.word());
    match packet.context() {
        Context::Xdp(ctx) => nlb_quic_backend(ctx, udp, end, lengths, service_id as u32) as u16,
        Context::Skb(ctx) => nlb_tc_quic_backend(ctx, udp, end, lengths, service_id as u32) as u16,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_quic_backend(ctx: *mut xdp_md, udp: u32, end: u32, lengths: u32, service: u32) -> u32 {
    find(&Packet::xdp(ctx), udp, end, lengths, service)
}

/// As [`nlb_quic_backend`], for socket buffers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_tc_quic_backend(
    ctx: *mut __sk_buff,
    udp: u32,
    end: u32,
    lengths: u32,
    service: u32,
) -> u32 {
    find(&Packet::skb(ctx), udp, end, lengths, service)
}

#[inline(always)]
fn find(packet: &Packet, udp: u32, end: u32, lengths: u32, service: u32) -> u32 {
    let server = quic::server(packet, bounded(udp as usize), end as usize, Lengths::from_word(lengths));
    let Some(server) = server else { return 0 };
    let backend = maps::quic_server(&ServerKey::new(service as u16, &server));
    match maps::backend(backend) {
        Some(_) => backend as u32,
        None => 0,
    }
}
