//! Generic UDP Encapsulation: the outer headers, and when UDP has a checksum (rows 19, 20 and 23).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context, Result};
use nlb::model::ForwardMode;

use crate::dsr::{forwarded, outer, outer_port, rig_of_one_family, samples, sends};
use crate::packet::{Outer, OuterUdp, Packet, Transport, UdpChecksum};
use crate::rig::{Family, Rig, families, load_config};

const GUE: ForwardMode = ForwardMode::Gue;

/// The packet as the backend receives it.
fn encapsulated(backend: &Family, packet: &Packet) -> Packet {
    forwarded(packet).with(|p| p.outer = outer(GUE, backend, packet))
}

/// The outer UDP header of a frame without tags.
fn outer_udp(frame: &[u8]) -> [u16; 4] {
    let at = if frame[12..14] == [8, 0] { 34 } else { 54 };
    [0, 2, 4, 6].map(|field| u16::from_be_bytes([frame[at + field], frame[at + field + 1]]))
}

/// Over IPv4 the outer UDP header has no checksum; over IPv6 it has one over the whole packet.
#[test]
fn every_pair_of_families_is_encapsulated() -> Result<()> {
    for backend in families() {
        let mut rig = rig_of_one_family(GUE, &backend)?;
        for client in families() {
            for packet in samples(&client) {
                sends(&mut rig, &packet, &encapsulated(&backend, &packet))?;
            }
            for len in [0, 1, 2, 999, 1000] {
                let packet = client.udp().with(|p| p.payload = (0..len).map(|n| n as u8 ^ 0x5a).collect());
                sends(&mut rig, &packet, &encapsulated(&backend, &packet))?;
            }
        }
    }
    Ok(())
}

#[test]
fn row_23_source_port_varies_by_flow_and_is_constant_within_a_flow() -> Result<()> {
    for backend in families() {
        let mut rig = rig_of_one_family(GUE, &backend)?;
        for client in families() {
            let mut ports = BTreeSet::new();
            for sport in 20_000..20_256 {
                let [port, ..] = outer_udp(&rig.run(&client.syn().with(|p| p.sport = sport))?.frame);
                let [again, ..] = outer_udp(&rig.run(&client.ack().with(|p| p.sport = sport))?.frame);
                assert!(port >= 49_152, "{port} is not a dynamic port");
                assert_eq!(port, again);
                ports.insert(port);
            }
            // Of 256 flows with 16,384 possible ports, 2 are expected to share one.
            assert!(ports.len() > 240, "only {} ports", ports.len());
        }
    }
    Ok(())
}

#[test]
fn row_19_a_checksum_that_comes_to_zero_is_sent_as_all_ones() -> Result<()> {
    let [_, v6] = families();
    let mut rig = rig_of_one_family(GUE, &v6)?;
    for client in families() {
        let packet = client.ack();
        // At one backend address of the link, the checksum comes to zero.
        let mut backends = (2..=u16::MAX).map(|host| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host));
        let comes_to_zero = |backend: &Ipv6Addr| {
            let expected = encapsulated(&Family { backend: IpAddr::V6(*backend), ..v6 }, &packet);
            let [.., checksum] = outer_udp(&expected.bytes());
            checksum == 0xffff
        };
        let backend = backends.find(comes_to_zero).context("no checksum comes to zero")?;
        rig.know(backend.into(), v6.source);
        rig.module("m1").data.v6 = Some(backend);
        rig.apply()?;
        let expected = encapsulated(&Family { backend: backend.into(), ..v6 }, &packet);
        sends(&mut rig, &packet, &expected)?;
    }
    Ok(())
}

/// RFC 6935 allows a tunnel without a checksum, and a sum over all bytes would cost too much.
#[test]
fn no_outer_checksum_unless_the_inner_one_covers_the_packet() -> Result<()> {
    let [v4, v6] = families();
    let mut rig = rig_of_one_family(GUE, &v6)?;
    for packet in [
        v4.udp().with(|p| p.l4 = Transport::Udp { checksum: UdpChecksum::Zero }),
        v4.ack().with(|p| p.options = vec![1, 1, 1, 0]),
        v6.ack().with(|p| p.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0])]),
    ] {
        sends(&mut rig, &packet, &encapsulated_without_checksum(&v6, &packet))?;
    }
    for packet in [v4.udp(), v6.udp()] {
        let expected = ends_early(&encapsulated_without_checksum(&v6, &packet));
        assert_eq!(rig.run_bytes(&ends_early(&packet))?.frame, expected);
    }
    Ok(())
}

fn encapsulated_without_checksum(backend: &Family, packet: &Packet) -> Packet {
    encapsulated(backend, packet).with(|p| p.outer = p.outer.map(Outer::without_udp_checksum))
}

/// The bytes of a datagram whose length field is two bytes less than its IP packet has.
fn ends_early(packet: &Packet) -> Vec<u8> {
    let mut frame = packet.bytes();
    let length_at = frame.len() - packet.payload.len() - 4;
    frame[length_at..length_at + 2].copy_from_slice(&(6 + packet.payload.len() as u16).to_be_bytes());
    frame
}

/// The outer checksum carries the error of a wrong inner one, so that the tunnel's receiver detects it.
#[test]
fn wrong_inner_checksum_makes_the_outer_one_wrong() -> Result<()> {
    let [_, backend] = families();
    let mut rig = rig_of_one_family(GUE, &backend)?;
    for client in families() {
        let mut frame = client.ack().bytes();
        let mut expected = encapsulated(&backend, &client.ack()).bytes();
        *frame.last_mut().context("empty")? ^= 1;
        *expected.last_mut().context("empty")? ^= 1;
        assert_eq!(rig.run_bytes(&frame)?.frame, expected);
    }
    Ok(())
}

#[test]
fn destination_port_is_configurable() -> Result<()> {
    let mut rig = Rig::sized(GUE, &nlb::datapath::loader::LoadConfig { gue_port: 7777, ..load_config() })?;
    for family in families() {
        let packet = family.syn();
        let expected = encapsulated(&family, &packet).with(|p| {
            let udp = p.outer.and_then(|outer| outer.udp).expect("in UDP");
            p.outer = p.outer.map(|outer| Outer { udp: Some(OuterUdp { dport: 7777, ..udp }), ..outer });
        });
        sends(&mut rig, &packet, &expected)?;
        assert_eq!(outer_udp(&expected.bytes())[0], outer_port(&packet));
    }
    Ok(())
}
