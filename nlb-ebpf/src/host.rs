//! What a route for every port leaves to this host, where the VIP is an address of the host's own: the ports
//! that the operator protects, and the host's connections.
//!
//! Only packets without a flow of such a service come here, so known flows and other services pay nothing.
//! The look-up is out of line for the reasons that `record` gives.

use core::ffi::c_void;

use aya_ebpf::bindings::{__sk_buff, bpf_sock, xdp_md};
use aya_ebpf::helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use nlb_common::net::{Addr, Be16, L4};
use nlb_common::parse::{Ip, Segment};
use nlb_common::verdict::{PassReason, Verdict};

use crate::packet::{Context, Packet, on_stack};
use crate::{arguments, maps};

/// Whether a route for every port takes the packet. Otherwise it is the host's.
#[inline(always)]
pub fn check_taken(packet: &Packet, ip: &Ip, segment: &Segment, vip: u16) -> Result<(), Verdict> {
    let (ports, to) = (arguments::ports(segment), arguments::vip(vip, segment.l4));
    let is_own = match nlb_owner_of_port(vip as u32, segment.dport.word() as u32) {
        ANYBODY => 0,
        HOST => 1,
        _ => match packet.context() {
            Context::Xdp(ctx) => nlb_has_socket(ctx, ip.src.hi, ip.src.lo, ports, to),
            Context::Skb(ctx) => nlb_tc_has_socket(ctx, ip.src.hi, ip.src.lo, ports, to),
        },
    };
    if is_own != 0 { Err(Verdict::Pass(PassReason::Host)) } else { Ok(()) }
}

const ANYBODY: u32 = 0;
const HOST: u32 = 1;
/// The host, where it has a socket.
const SOCKETS: u32 = 2;

/// Whose packets to a port of this VIP are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_owner_of_port(vip: u32, port: u32) -> u32 {
    match maps::vip(vip as u16) {
        Some(vip) if maps::is_host_address(vip) => {
            if maps::is_protected(Be16::from_word(port as u16)) {
                HOST
            } else {
                SOCKETS
            }
        }
        _ => ANYBODY,
    }
}

/// 1 if this host has a socket for a packet from this address to this VIP between these ports.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_has_socket(ctx: *mut xdp_md, hi: u64, lo: u64, ports: u32, vip: u32) -> u32 {
    has_socket(ctx.cast(), Addr { hi, lo }, ports, vip) as u32
}

/// As [`nlb_has_socket`], for socket buffers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_tc_has_socket(ctx: *mut __sk_buff, hi: u64, lo: u64, ports: u32, vip: u32) -> u32 {
    has_socket(ctx.cast(), Addr { hi, lo }, ports, vip) as u32
}

/// Whether the host has a connection, or a connected UDP socket, that such packets belong to.
#[inline(always)]
fn has_socket(ctx: *mut c_void, src: Addr, ports: u32, vip: u32) -> bool {
    let (vip, l4) = arguments::from_vip(vip);
    let Some(dst) = maps::vip(vip) else { return false };
    // `struct bpf_sock_tuple`: source, destination, and their ports. One call for both families keeps the
    // verifier's paths few.
    let is_v4 = src.is_v4();
    let ([a, b, c, src], [d, e, f, dst]) = (src.words(), dst.words());
    let tuple = if is_v4 { [src, dst, ports, 0, 0, 0, 0, 0, 0] } else { [a, b, c, src, d, e, f, dst, ports] };
    let length = if is_v4 { 12 } else { size_of_val(&tuple) };
    on_stack(tuple, |tuple: &[u32; 9]| is_connected(ctx, tuple, length as u32, l4))
}

#[inline(always)]
fn is_connected(ctx: *mut c_void, tuple: &[u32; 9], length: u32, l4: L4) -> bool {
    /// The namespace of the interface.
    const CURRENT_NETNS: u64 = u64::MAX;
    const TCP_LISTEN: u32 = 10;
    let tuple = tuple.as_ptr().cast_mut().cast();
    // SAFETY: valid context; the helpers only read the tuple. A socket that is found is released.
    unsafe {
        match l4 {
            L4::Tcp => {
                let found: *mut bpf_sock = bpf_skc_lookup_tcp(ctx, tuple, length, CURRENT_NETNS, 0);
                if found.is_null() {
                    return false;
                }
                let state = (&raw const (*found).state).read_volatile();
                bpf_sk_release(found.cast());
                state != TCP_LISTEN
            }
            L4::Udp => {
                let found: *mut bpf_sock = bpf_sk_lookup_udp(ctx, tuple, length, CURRENT_NETNS, 0);
                if found.is_null() {
                    return false;
                }
                let peer = (&raw const (*found).dst_port).read_volatile();
                bpf_sk_release(found.cast());
                peer != 0
            }
        }
    }
}
