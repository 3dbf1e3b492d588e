//! Sequences of packets and changes from a seed. Addresses and ports are from small sets, so that many
//! packets belong to recorded flows and have the same addresses.

use std::net::IpAddr;

use super::model::{Model, data_port, family_of};
use super::quic;
use super::step::{Change, HEALTHS, MODES, Step};
use crate::packet::{Packet, Transport, UdpChecksum};
use crate::random::Random;
use crate::rig::{BACKEND_MAC, CLIENT_MAC, OUR_BACK_MAC, OUR_MAC, families};

/// One to four modules.
pub fn fleet(random: &mut Random) -> Vec<Change> {
    let mut fleet = Vec::new();
    for number in 1..=random.below(4) as u8 + 1 {
        fleet.push(Change::NextHop(number, true));
        fleet.push(any_module(random, number));
        if random.once_in(2) {
            fleet.push(Change::ServerId(number, Some(quic::any_config(random))));
        }
    }
    fleet
}

fn any_module(random: &mut Random, number: u8) -> Change {
    let (_, mode, snat) = random.pick(&MODES);
    Change::Module(number, mode, snat)
}

pub fn change(random: &mut Random) -> Change {
    let number = random.below(4) as u8 + 1;
    match random.below(9) {
        0 => Change::Remove(number),
        1 => any_module(random, number),
        2 | 3 => Change::Health(number, random.pick(&HEALTHS).1),
        4 => Change::Weight(number, random.pick(&[0, 1, 100])),
        5 => Change::NextHop(number, random.once_in(2)),
        6 => Change::Reject(random.once_in(2)),
        7 if random.once_in(3) => Change::ServerId(number, None),
        7 => Change::ServerId(number, Some(quic::any_config(random))),
        _ => Change::DropClosed(random.once_in(2)),
    }
}

/// A packet of a client, or an answer in a flow of the model. Some are made malformed.
pub fn frame(random: &mut Random, model: &Model) -> Step {
    let mut packet = match model.flows.len() {
        0 => request(random),
        _ if random.once_in(3) => answer(random, model),
        flows if random.once_in(2) => repeat(random, model, flows),
        _ => request(random),
    };
    vary(random, &mut packet);
    let mut words = words(&packet);
    let mut bytes = packet.bytes();
    if random.once_in(6) {
        malform(random, &packet, &mut bytes, &mut words);
    }
    Step::Frame(bytes, words)
}

fn request(random: &mut Random) -> Packet {
    let family = random.pick(&families());
    let v4 = family.vip.is_ipv4();
    let others: [&str; 3] = if v4 {
        ["198.51.100.8", "10.0.0.99", "203.0.113.50"]
    } else {
        ["2001:db8:c::8", "fd00::99", "2001:db8:7::50"]
    };
    let other: IpAddr = random.pick(&others).parse().expect("an address");
    let (udp, dport) = random.pick(&[
        (false, 80),
        (false, 80),
        (false, 81),
        (true, 53),
        (true, 53),
        (false, 443),
        (false, 9999),
        (true, 80),
    ]);
    let sport = 40_000 + random.below(3) as u16;
    let l4 = transport(random, udp);
    let src = random.pick(&[family.client, family.client, family.client, other, family.backend]);
    let dst = random.pick(&[
        family.vip,
        family.vip,
        family.vip,
        family.vip2,
        family.vip2,
        family.source,
        family.stranger,
    ]);
    let payload = match udp && random.once_in(2) {
        true => quic::payload(random),
        false => vec![random.word() as u8; random.pick(&[0, 0, 1, 7, 33, 600])],
    };
    family.syn().with(|p| {
        (p.src, p.dst, p.l4, p.payload) = (src, dst, l4, payload);
        (p.sport, p.dport) = (sport, dport);
    })
}

/// One more packet of a flow.
fn repeat(random: &mut Random, model: &Model, flows: usize) -> Packet {
    let (key, _) = model.flows.iter().nth(random.below(flows)).expect("below their number");
    let l4 = transport(random, key.udp);
    let payload = match key.udp && random.once_in(2) {
        true => quic::payload(random),
        false => vec![0x5a; random.below(40)],
    };
    family_of(key.client).syn().with(|p| {
        (p.src, p.dst, p.l4, p.payload) = (key.client, key.vip, l4, payload);
        (p.sport, p.dport) = (key.client_port, key.port);
    })
}

/// A backend's answer in a flow, also of a backend with direct server return.
fn answer(random: &mut Random, model: &Model) -> Packet {
    let (key, flow) = model.flows.iter().nth(random.below(model.flows.len())).expect("below their number");
    let (l4, payload) = (transport(random, key.udp), vec![0xa5; random.below(40)]);
    family_of(key.client).syn().with(|p| {
        (p.dst_mac, p.src_mac) = (OUR_BACK_MAC, BACKEND_MAC);
        (p.src, p.dst, p.l4, p.payload) = (flow.backend.addr, flow.nat_source.0, l4, payload);
        (p.sport, p.dport) = (data_port(&flow.backend, key.port), flow.nat_source.1);
    })
}

fn transport(random: &mut Random, udp: bool) -> Transport {
    const FLAGS: [u8; 12] = [2, 2, 2, 16, 16, 16, 24, 18, 17, 17, 4, 20];
    if random.once_in(25) {
        Transport::Other(random.pick(&[1, 58, 132, 47, 50, 59, 135]))
    } else if udp {
        let checksum = if random.once_in(5) { UdpChecksum::Zero } else { UdpChecksum::Computed };
        Transport::Udp { checksum }
    } else {
        let flags = if random.once_in(10) { random.below(64) as u8 } else { random.pick(&FLAGS) };
        Transport::Tcp { flags, seq: random.word() as u32 }
    }
}

/// Adds rare but valid fields.
fn vary(random: &mut Random, packet: &mut Packet) {
    if random.once_in(6) {
        packet.tags = random.pick(&[
            vec![(0x8100, 42)],
            vec![(0x88a8, 42), (0x8100, 7)],
            vec![(0x8100, 1), (0x8100, 2), (0x8100, 3)],
        ]);
    }
    if random.once_in(8) {
        packet.ttl = random.pick(&[0, 1, 2, 255]);
    }
    if random.once_in(6) {
        packet.tos = random.word() as u8;
    }
    if random.once_in(6) {
        packet.padding = vec![0xee; random.below(20)];
    }
    if random.once_in(12) {
        packet.payload = vec![0x77; random.pick(&[1412, 1413, 1432, 1440, 1452, 1453, 2100])];
    }
    if random.once_in(20) {
        packet.src_mac = random.pick(&[OUR_BACK_MAC, OUR_MAC, CLIENT_MAC]);
    }
    if random.once_in(30) {
        packet.dst_mac =
            random.pick(&[[0xff; 6], [1, 0, 0x5e, 0, 0, 1], BACKEND_MAC, CLIENT_MAC, OUR_BACK_MAC]);
    }
    if packet.src.is_ipv4() {
        if random.once_in(8) {
            packet.options = vec![1; 4 * (random.below(10) + 1)];
        }
        if random.once_in(6) {
            packet.id = random.pick(&[1, 0x4242]);
            packet.fragment = random.pick(&[(0, true), (0, true), (3, true), (185, false)]);
        }
    } else if random.once_in(6) {
        for _ in 0..random.pick(&[1, 1, 2, 3, 8, 9]) {
            packet.extensions.push(random.pick(&[
                (0, vec![0, 1, 4, 0, 0, 0, 0]),
                (60, vec![1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                (43, vec![0, 4, 0, 0, 0, 0, 0]),
                (44, vec![0, 0, 0, 0, 0, 0, 9]),
                (44, vec![0, 0, 1, 0, 0, 0, 9]),
                (51, vec![4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ]));
        }
        if random.once_in(6) {
            packet.extensions.push((44, vec![0, 0, 0x18, 0, 0, 0, 9]));
        }
    }
}

/// Makes a frame malformed: truncates it, overwrites bytes, or flips a bit.
fn malform(random: &mut Random, packet: &Packet, bytes: &mut Vec<u8>, words: &mut String) {
    let l3 = 14 + 4 * packet.tags.len();
    match random.below(4) {
        // The kernel runs no program on frames shorter than an Ethernet header.
        0 => {
            bytes.truncate(14 + random.below(bytes.len() - 13));
            *words += &format!(", cut to {}", bytes.len());
        }
        1 => {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
            *words += &format!(", bit flipped in byte {at}");
        }
        // The lengths, offsets and checksums of most packets are in this range.
        2 => {
            let at = (l3 + random.below(64)).min(bytes.len() - 1);
            bytes[at] = random.pick(&[0, 1, 0x0f, 0x40, 0x45, 0x4f, 0x60, 0xff]);
            *words += &format!(", byte {at} is {:#x}", bytes[at]);
        }
        _ => {
            let at = (l3 + 2 * random.below(32)).min(bytes.len() - 2);
            let any = random.word() as u16;
            let word = random.pick(&[0, 1, 7, 8, 19, 20, 0xffff, any]);
            bytes[at..at + 2].copy_from_slice(&u16::to_be_bytes(word));
            *words += &format!(", word at {at} is {word:#x}");
        }
    }
}

fn words(packet: &Packet) -> String {
    let mut words = match packet.l4 {
        Transport::Tcp { flags, .. } => format!("TCP flags {flags:#04x}"),
        Transport::Udp { .. } => "UDP".to_owned(),
        Transport::Other(number) => format!("protocol {number}"),
    };
    words += &format!(" {} port {} to {} port {}", packet.src, packet.sport, packet.dst, packet.dport);
    words += &format!(", {} bytes, ttl {}", packet.payload.len(), packet.ttl);
    for (what, there) in [
        ("tags", !packet.tags.is_empty()),
        ("options", !packet.options.is_empty()),
        ("extensions", !packet.extensions.is_empty()),
        ("fragment", packet.fragment != (0, false)),
        ("padding", !packet.padding.is_empty()),
    ] {
        if there {
            words += &format!(", {what}");
        }
    }
    words
}
