//! NAT, both ways. The checksums of expected packets are computed in full, so every test checks the
//! incremental checksums (row 20).

use std::collections::BTreeSet;

use anyhow::Result;
use nlb::model::{Destination, ForwardMode, Route, Snat};

use crate::icmp::is_error;
use crate::packet::{ACK, FIN, Packet, RST, SYN, Transport, UdpChecksum};
use crate::rig::{
    BACK_IFINDEX, CLIENT_MAC, Family, OUR_MAC, Outcome, Rig, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX,
    families, load_config, source_port,
};

/// Checks that `packet` is sent to the backend from a translated port, and returns that port.
fn forwards(rig: &mut Rig, family: &Family, packet: &Packet) -> Result<u16> {
    let outcome = rig.run(packet)?;
    assert_eq!(outcome.action, XDP_REDIRECT, "{packet:?}: {:?}", outcome.counted);
    assert_eq!(outcome.counted, [("send forward".to_owned(), 1)].into());
    let port = port_of(&outcome, packet);
    assert!((1024..=32_767).contains(&port), "{port} is not one of the ports for SNAT");
    assert_eq!(outcome.frame, family.translated(packet, port).bytes(), "{packet:?}");
    Ok(port)
}

/// The source port of a translated packet, whose offset depends on options and tags.
fn port_of(outcome: &Outcome, packet: &Packet) -> u16 {
    let headers = if packet.src.is_ipv4() { 20 + packet.options.len() } else { 40 };
    let extensions: usize = packet.extensions.iter().map(|(_, body)| body.len() + 1).sum();
    let l4 = 14 + 4 * packet.tags.len() + headers + extensions;
    u16::from_be_bytes([outcome.frame[l4], outcome.frame[l4 + 1]])
}

/// Checks that the backend's `answer` is sent to the client as if the VIP had answered `request`.
fn returns(rig: &mut Rig, answer: &Packet, request: &Packet) -> Result<()> {
    let outcome = rig.run(answer)?;
    assert_eq!(outcome.action, XDP_REDIRECT, "{:?}", outcome.counted);
    assert_eq!(outcome.counted, [("send reply".to_owned(), 1)].into());
    let expected = answer.with(|p| {
        (p.dst_mac, p.src_mac) = (CLIENT_MAC, OUR_MAC);
        (p.src, p.dst) = (request.dst, request.src);
        (p.sport, p.dport) = (request.dport, request.sport);
        p.ttl -= 1;
    });
    assert_eq!(outcome.frame, expected.bytes());
    Ok(())
}

/// The name of a packet, and the change that makes it.
type Variant = (&'static str, fn(&mut Packet));

const SYN_ACK: Transport = Transport::Tcp { flags: SYN | ACK, seq: 9000 };

#[test]
fn connection_is_translated_both_ways() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    for family in families() {
        let port = forwards(&mut rig, &family, &family.syn())?;
        let request = family.translated(&family.syn(), port);
        returns(&mut rig, &family.answer(&request, SYN_ACK), &family.syn())?;
        assert_eq!(forwards(&mut rig, &family, &family.ack())?, port, "the flow keeps its port");
        let fin = family.ack().with(|p| p.l4 = Transport::Tcp { flags: FIN | ACK, seq: 1006 });
        assert_eq!(forwards(&mut rig, &family, &fin)?, port);
        let udp_port = forwards(&mut rig, &family, &family.udp())?;
        let request = family.translated(&family.udp(), udp_port);
        let answer = family.answer(&request, Transport::Udp { checksum: UdpChecksum::Computed });
        returns(&mut rig, &answer, &family.udp())?;
    }
    Ok(())
}

#[test]
fn backend_counters_are_exact() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    let family = families()[0];
    let port = forwards(&mut rig, &family, &family.syn())?;
    let answer = family.answer(&family.translated(&family.syn(), port), SYN_ACK);
    returns(&mut rig, &answer, &family.syn())?;
    forwards(&mut rig, &family, &family.ack())?;
    let (id, _) =
        rig.image().backend_ids.iter().find(|(_, b)| b.addr == family.backend && b.port == 8080).unwrap();
    let stats = rig.readings().backend(id)?;
    assert_eq!(stats.new_flows, 1);
    assert_eq!((stats.packets, stats.bytes), (2, family.syn().ip_len() + family.ack().ip_len()));
    assert_eq!((stats.reply_packets, stats.reply_bytes), (1, answer.ip_len()));
    Ok(())
}

#[test]
fn rows_4_5_8_and_25_padding_options_tags_and_data_in_the_syn() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    for family in families() {
        let variants: &[Variant] = &[
            ("row 4: padded to 60 bytes", |p| p.padding = vec![0xee; 6]),
            ("row 8: 802.1Q", |p| p.tags = vec![(0x8100, 42)]),
            ("row 8: QinQ", |p| p.tags = vec![(0x88a8, 42), (0x8100, 7)]),
            ("row 25: data in the SYN", |p| p.payload = vec![b'x'; 999]),
            ("an odd length", |p| p.payload = vec![0xff; 33]),
        ];
        for (sport, (what, change)) in (41_000..).zip(variants) {
            let packet = family.syn().with(|p| p.sport = sport).with(change);
            forwards(&mut rig, &family, &packet).map_err(|e| e.context(*what))?;
        }
    }
    let v4 = families()[0];
    for (sport, words) in (42_000..).zip([1, 5, 10]) {
        // No-operation options, and an end of list.
        let packet = v4.ack().with(|p| {
            p.sport = sport;
            p.options = [vec![1; words * 4 - 1], vec![0]].concat();
        });
        forwards(&mut rig, &v4, &packet)?;
    }
    let v6 = families()[1];
    let packet = v6.syn().with(|p| p.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0])]);
    forwards(&mut rig, &v6, &packet)?;
    Ok(())
}

/// The backend answers a reset that does not fit by an ACK (RFC 5961), and the connection stays open.
#[test]
fn row_15_reset_challenge_keeps_the_connection_open() -> Result<()> {
    for (family, challenged) in families().into_iter().flat_map(|family| [(family, false), (family, true)]) {
        let mut rig = Rig::new(ForwardMode::Nat)?;
        let port = source_port(&rig.run(&family.syn())?.frame);
        rig.run(&family.ack())?;
        rig.module("m1").weight = 0;
        rig.apply()?;
        rig.run(&family.syn().with(|p| p.l4 = Transport::Tcp { flags: RST, seq: 77 }))?;
        if challenged {
            let request = family.translated(&family.ack(), port);
            rig.run(&family.answer(&request, Transport::Tcp { flags: ACK, seq: 7000 }))?;
        }
        let outcome = rig.run(&family.syn())?;
        let expected = if challenged { "send forward" } else { "drop no_backend" };
        assert_eq!(outcome.counted, [(expected.to_owned(), 1)].into());
    }
    Ok(())
}

#[test]
fn row_16_flows_of_one_client_port_to_two_vips_stay_apart() -> Result<()> {
    for snat in [Snat::Always, Snat::Never] {
        let mut rig = Rig::new(ForwardMode::Nat)?;
        rig.module("m1").snat = snat;
        rig.apply()?;
        for family in families() {
            let first = family.syn();
            let second = first.with(|p| p.dst = family.vip2);
            let mut ports = Vec::new();
            for request in [&first, &second] {
                let outcome = rig.run(request)?;
                assert_eq!(outcome.counted, [("send forward".to_owned(), 1)].into());
                ports.push(source_port(&outcome.frame));
            }
            assert_ne!(ports[0], ports[1], "{snat:?}: two flows with one source port");
            for (request, port) in [&first, &second].into_iter().zip(ports) {
                let as_seen = family.translated(request, port).with(|p| {
                    if snat == Snat::Never {
                        p.src = family.client;
                    }
                });
                returns(&mut rig, &family.answer(&as_seen, SYN_ACK), request)?;
            }
        }
    }
    Ok(())
}

#[test]
fn client_keeps_address_and_port_if_replies_cross_the_nlb() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    rig.module("m1").snat = Snat::OnLink;
    rig.apply()?;
    for family in families() {
        let outcome = rig.run(&family.syn())?;
        let unchanged = family.translated(&family.syn(), family.syn().sport).with(|p| p.src = family.client);
        assert_eq!(outcome.frame, unchanged.bytes());
        returns(&mut rig, &family.answer(&unchanged, SYN_ACK), &family.syn())?;

        // The backend would reply directly to a client on its own link.
        let near = if family.vip.is_ipv4() { "10.0.0.99" } else { "fd00::99" }.parse()?;
        let packet = family.syn().with(|p| p.src = near);
        forwards(&mut rig, &family, &packet)?;
    }
    Ok(())
}

#[test]
fn row_18_backend_reaches_itself_by_its_vip() -> Result<()> {
    for snat in [Snat::Always, Snat::OnLink, Snat::Never] {
        let mut rig = Rig::new(ForwardMode::Nat)?;
        rig.module("m1").snat = snat;
        rig.apply()?;
        for family in families() {
            let call = family.syn().with(|p| p.src = family.backend);
            forwards(&mut rig, &family, &call)?;
        }
    }
    Ok(())
}

#[test]
fn row_19_udp_checksums() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    let [v4, v6] = families();
    for family in [v4, v6] {
        let unsummed = family.udp().with(|p| p.l4 = Transport::Udp { checksum: UdpChecksum::Zero });
        forwards(&mut rig, &family, &unsummed)?;
    }
    // A sum of zero is sent as all ones. Every value of a free word is tried, so one gives that sum.
    for family in [v4, v6] {
        let base = family.udp();
        let port = forwards(&mut rig, &family, &base)?;
        let mut all_ones = 0;
        for word in 0..=u16::MAX {
            let packet = base.with(|p| p.payload = word.to_be_bytes().to_vec());
            let translated = family.translated(&packet, port);
            let l4 = if family.vip.is_ipv4() { 34 } else { 54 };
            let expected = translated.bytes();
            if expected[l4 + 6..l4 + 8] == [0xff, 0xff] {
                all_ones += 1;
                assert_eq!(rig.run(&packet)?.frame, expected);
            }
        }
        assert!(all_ones >= 1, "no payload gave the sum in question");
    }
    Ok(())
}

#[test]
fn row_21_packet_with_expired_ttl_is_answered() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    for family in families() {
        for ttl in [0, 1] {
            let packet = family.syn().with(|p| p.ttl = ttl);
            let outcome = rig.run(&packet)?;
            assert_eq!(outcome.action, XDP_TX);
            assert_eq!(outcome.counted, [("send ttl_exceeded".to_owned(), 1)].into());
            let v4 = packet.src.is_ipv4();
            let quoted = packet.bytes()[14..14 + if v4 { 28 } else { 60 }].to_vec();
            is_error(
                &outcome.frame,
                &packet.with(|p| {
                    (p.dst_mac, p.src_mac) = (CLIENT_MAC, OUR_MAC);
                    (p.src, p.dst, p.ttl) = (packet.dst, packet.src, 64);
                    p.l4 = Transport::Other(if v4 { 1 } else { 58 });
                    p.payload = [&[if v4 { 11 } else { 3 }, 0, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
                }),
            );
            let to_group = rig.run(&packet.with(|p| p.src_mac[0] |= 1))?;
            assert_eq!(to_group.action, XDP_DROP, "an answer would go to a group");
            assert_eq!(to_group.counted, [("drop ttl_exceeded".to_owned(), 1)].into());
        }
        forwards(&mut rig, &family, &family.syn().with(|p| p.ttl = 2))?;
    }
    Ok(())
}

#[test]
fn replies_without_a_flow_pass() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    for family in families() {
        let port = forwards(&mut rig, &family, &family.syn())?;
        let answer = family.answer(&family.translated(&family.syn(), port), SYN_ACK);
        let others: &[Variant] = &[
            ("to another port of ours", |p| p.dport ^= 1),
            ("from another port of the backend", |p| p.sport += 1),
            ("of another protocol", |p| p.l4 = Transport::Udp { checksum: UdpChecksum::Computed }),
        ];
        for (what, change) in others {
            let outcome = rig.run(&answer.with(change))?;
            assert_eq!(outcome.action, XDP_PASS, "{what}");
            assert_eq!(outcome.counted, [("pass no_flow".to_owned(), 1)].into(), "{what}");
        }
        returns(&mut rig, &answer, &family.syn())?;
    }
    Ok(())
}

#[test]
fn packet_leaves_by_the_interface_of_its_next_hop() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    // The backend is on the loopback interface, which test packets seem to come in by.
    let family = families()[0];
    let hop = rig.hops.get_mut(&family.backend).expect("known");
    assert_eq!(hop.hop.ifindex, BACK_IFINDEX);
    hop.hop.ifindex = 1;
    rig.apply()?;
    const XDP_TX: u32 = 3;
    assert_eq!(rig.run(&family.syn())?.action, XDP_TX);
    Ok(())
}

#[test]
fn rows_24_and_30_syn_flood_does_not_evict_an_established_connection() -> Result<()> {
    let mut small = load_config();
    small.flows.max = 4;
    assert_eq!(small.flow_buckets(), 1, "all flows share one bucket of four, and each takes two entries");
    for family in families() {
        let mut rig = Rig::sized(ForwardMode::Nat, &small)?;
        let held = family.syn().with(|p| p.sport = 50_000);
        let data = family.ack().with(|p| p.sport = 50_000);
        let port = forwards(&mut rig, &family, &held)?;
        let answer = family.answer(&family.translated(&held, port), SYN_ACK);
        returns(&mut rig, &answer, &held)?;
        forwards(&mut rig, &family, &data)?;
        returns(
            &mut rig,
            &family.answer(&family.translated(&data, port), Transport::Tcp { flags: ACK, seq: 9001 }),
            &data,
        )?;
        for sport in 20_000..20_200 {
            let outcome = rig.run(&family.syn().with(|p| p.sport = sport))?;
            assert_eq!(outcome.counted, [("send forward".to_owned(), 1)].into());
        }
        assert_eq!(forwards(&mut rig, &family, &data)?, port, "the connection unchanged its port");
        returns(&mut rig, &answer, &held)?;
    }
    Ok(())
}

/// More Maglev tables than one map has room for, replaced so often that slots are reused.
#[test]
fn services_keep_their_pools_after_many_changes() -> Result<()> {
    const PORTS: u16 = 40;
    let [family, _] = families();
    let mut rig = Rig::new(ForwardMode::Nat)?;
    let route = Route::clone(&rig.module("m1").routes["tcp"]);
    for round in 0..6 {
        let first = 9000 + round * PORTS;
        rig.module("m1").routes = (0..PORTS)
            .map(|i| {
                let (port, listen_port) = (Some(1000 + i), Some(first + i));
                let destination = Destination::Address(family.vip);
                let ports = Route { port, listen_port, destination, ..route.clone() };
                (format!("r{i}"), ports)
            })
            .collect();
        rig.apply()?;
        for i in 0..PORTS {
            let syn = family.syn().with(|p| (p.sport, p.dport) = (20_000 + round * PORTS + i, 1000 + i));
            let outcome = rig.run(&syn)?;
            assert_eq!(outcome.action, XDP_REDIRECT, "{:?}", outcome.counted);
            let port = u16::from_be_bytes([outcome.frame[36], outcome.frame[37]]);
            assert_eq!(port, first + i, "round {round}, service {i}");
        }
    }
    Ok(())
}

/// Four SNAT ports towards one backend allow four flows at a time.
#[test]
fn row_17_flow_without_a_free_snat_port_is_dropped_and_counted() -> Result<()> {
    let mut load_config = load_config();
    load_config.snat_ports = 2000..=2003;
    let mut rig = Rig::sized(ForwardMode::Nat, &load_config)?;
    let idle = rig.idle_times(&load_config);
    for family in families() {
        let syn = |n: u16| family.syn().with(|p| p.sport = 40_000 + n);
        let mut ports = BTreeSet::new();
        for n in 0..4 {
            let outcome = rig.run(&syn(n))?;
            assert_eq!(outcome.action, XDP_REDIRECT, "{n}: {:?}", outcome.counted);
            ports.insert(source_port(&outcome.frame));
        }
        assert_eq!(ports, (2000..=2003).collect());
        let refused = rig.run(&syn(4))?;
        assert_eq!((refused.action, refused.counted), (XDP_DROP, [("drop snat_ports".to_owned(), 1)].into()));
        assert_eq!(rig.run(&syn(0))?.action, XDP_REDIRECT, "flows with a port continue");
        assert_eq!(
            rig.run(&family.udp())?.action,
            XDP_REDIRECT,
            "all four ports are free towards the backend's other port"
        );

        // A flow that is idle for longer than its idle time gives its port up.
        rig.age_flows(idle.opening + 1);
        let outcome = rig.run(&syn(4))?;
        assert_eq!(outcome.action, XDP_REDIRECT, "{:?}", outcome.counted);
        let port = source_port(&outcome.frame);
        let answer = family.answer(&family.translated(&syn(4), port), SYN_ACK);
        returns(&mut rig, &answer, &syn(4))?;
        // The flow that had the port is a new flow now, with another port.
        for n in 0..4 {
            let outcome = rig.run(&syn(n).with(|p| p.l4 = Transport::Tcp { flags: ACK, seq: 1001 }))?;
            let other = outcome.action == XDP_REDIRECT && source_port(&outcome.frame) != port;
            assert!(other || outcome.counted.contains_key("drop snat_ports"), "{n}: {:?}", outcome.counted);
        }
        returns(&mut rig, &answer, &syn(4))?;
    }
    Ok(())
}
