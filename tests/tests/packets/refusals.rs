//! Answers to clients that cannot be served, if the operator enables them.

use anyhow::Result;
use nlb::model::{ForwardMode, Health};

use crate::packet::{ACK, FIN, Packet, RST, SYN, Transport, internet_checksum, octets};
use crate::rig::{CLIENT_MAC, Family, OUR_MAC, Rig, XDP_DROP, XDP_PASS, XDP_TX, families, test_run};

/// A rig that rejects all flows, because its only module drains.
fn refusing() -> Result<Rig> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    rig.desired.reject = true;
    rig.module("m1").health = Health::Stopping;
    rig.apply()?;
    Ok(rig)
}

fn turned_round(packet: &Packet, l4: Transport) -> Packet {
    packet.with(|p| {
        (p.dst_mac, p.src_mac) = (CLIENT_MAC, OUR_MAC);
        (p.src, p.dst) = (packet.dst, packet.src);
        (p.sport, p.dport) = (packet.dport, packet.sport);
        (p.ttl, p.l4, p.payload, p.options, p.padding) = (64, l4, Vec::new(), Vec::new(), Vec::new());
    })
}

fn segment(family: &Family, flags: u8, payload: usize) -> Packet {
    family.syn().with(|p| {
        p.l4 = Transport::Tcp { flags, seq: 5000 };
        p.payload = vec![7; payload];
    })
}

/// The fields of a reset that the packet builder leaves at other values.
fn as_reset(frame: &[u8], v6: bool, ack: u32) -> Vec<u8> {
    let l4 = if v6 { 54 } else { 34 };
    let mut frame = frame.to_vec();
    if !v6 {
        // No identification and no flags.
        frame[18..22].fill(0);
        frame[24..26].fill(0);
        let sum = internet_checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum);
    } else {
        frame[15..18].fill(0);
    }
    frame[l4 + 8..l4 + 12].copy_from_slice(&ack.to_be_bytes());
    frame[l4 + 14..l4 + 18].fill(0);
    let mut pseudo = if v6 { frame[22..54].to_vec() } else { frame[26..34].to_vec() };
    pseudo.extend([0, 6, 0, 20]);
    pseudo.extend(&frame[l4..l4 + 20]);
    let sum = internet_checksum(&pseudo);
    frame[l4 + 16..l4 + 18].copy_from_slice(&sum);
    frame
}

#[test]
fn row_2_tcp_is_answered_by_a_reset() -> Result<()> {
    let mut rig = refusing()?;
    for family in families() {
        let v6 = family.vip.is_ipv6();
        // The reset acknowledges a segment without an ACK; of one with an ACK, it has the acknowledged
        // number.
        for (flags, payload, seq, ack, answer) in [
            (SYN, 0, 0, 5001, RST | ACK),
            (SYN, 10, 0, 5011, RST | ACK),
            (SYN | FIN, 1, 0, 5003, RST | ACK),
            (ACK, 100, 0, 0, RST),
        ] {
            let packet = segment(&family, flags, payload);
            let outcome = rig.run(&packet)?;
            assert_eq!((outcome.action, outcome.counted), (XDP_TX, [("send reject".to_owned(), 1)].into()));
            let expected = turned_round(&packet, Transport::Tcp { flags: answer, seq }).bytes();
            assert_eq!(outcome.frame, as_reset(&expected, v6, ack), "{flags:#x} with {payload} bytes");
        }
        let tagged = segment(&family, SYN, 0).with(|p| p.tags = vec![(0x8100, 42)]);
        let outcome = rig.run(&tagged)?;
        assert_eq!((outcome.action, &outcome.frame[12..16]), (XDP_TX, &[0x81, 0, 0, 42][..]));
        let reset = rig.run(&segment(&family, RST, 0))?;
        assert_eq!(reset.action, XDP_DROP, "a reset is never answered");
        assert_eq!(reset.counted, [("drop no_backend".to_owned(), 1)].into());
    }
    Ok(())
}

#[test]
fn row_2_udp_is_answered_by_port_unreachable() -> Result<()> {
    let mut rig = refusing()?;
    for family in families() {
        let v6 = family.vip.is_ipv6();
        for payload in [0, 1, 8, 600] {
            let packet = family.udp().with(|p| p.payload = vec![9; payload]);
            let outcome = rig.run(&packet)?;
            assert_eq!((outcome.action, outcome.counted), (XDP_TX, [("send reject".to_owned(), 1)].into()));
            // An IPv6 error quotes 40 bytes more, in whole words.
            let (ip, quoted) = if v6 { (40, 48 + (payload & !3).min(40)) } else { (20, 28) };
            let frame = outcome.frame;
            assert_eq!(frame.len(), 14 + ip + 8 + quoted);
            assert_eq!((&frame[..6], &frame[6..12]), (&CLIENT_MAC[..], &OUR_MAC[..]));
            let icmp = 14 + ip;
            assert_eq!(&frame[icmp..icmp + 2], if v6 { &[1, 4] } else { &[3, 3] }, "port unreachable");
            assert_eq!(frame[icmp + 8..], packet.bytes()[14..14 + quoted], "what could not be delivered");
            // The sum over all bytes including the checksum is zero.
            let mut summed = Vec::new();
            if v6 {
                assert_eq!(
                    (frame[20], &frame[22..38], &frame[38..54]),
                    (58, &octets(packet.dst)[..], &octets(packet.src)[..])
                );
                summed.extend(&frame[22..54]);
                summed.extend([0, 0, 0, (8 + quoted) as u8, 0, 0, 0, 58]);
            } else {
                assert_eq!(
                    (frame[23], &frame[26..30], &frame[30..34]),
                    (1, &octets(packet.dst)[..], &octets(packet.src)[..])
                );
                assert_eq!(internet_checksum(&frame[14..34]), [0, 0]);
            }
            summed.extend(&frame[icmp..]);
            assert_eq!(internet_checksum(&summed), [0, 0]);
        }
    }
    Ok(())
}

#[test]
fn row_2_and_37_multicast_and_unspecified_sources_are_not_answered() -> Result<()> {
    let mut rig = refusing()?;
    for family in families() {
        let sources = match family.vip.is_ipv6() {
            false => ["224.0.0.1", "255.255.255.255", "127.0.0.1", "0.0.0.0"],
            true => ["ff02::1", "ff0e::1", "::1", "::"],
        };
        for sent in [family.syn(), family.udp()] {
            let from =
                sources.iter().map(|source| sent.with(|p| p.src = source.parse().expect("an address")));
            for packet in from {
                let outcome = rig.run(&packet)?;
                let dropped = [("drop martian_source".to_owned(), 1)].into();
                assert_eq!((outcome.action, outcome.counted), (XDP_DROP, dropped), "{packet:?}");
            }
            let outcome = rig.run(&sent.with(|p| p.src_mac[0] |= 1))?;
            let dropped = [("drop no_backend".to_owned(), 1)].into();
            assert_eq!((outcome.action, outcome.counted), (XDP_DROP, dropped), "from a group's MAC address");
        }
    }
    Ok(())
}

#[test]
fn icmp_errors_are_limited_in_rate() -> Result<()> {
    let mut rig = refusing()?;
    let family = families()[0];
    let frame = family.udp().bytes();
    // Each CPU may answer a thousand a second, counted by ticks of the program's clock. A slow machine takes
    // more ticks.
    let per_tick = rig.tick().as_millis() as u64;
    let first = rig.ticks()?;
    let answers = rig.on_each_cpu(|program| {
        let mut answers = 0;
        for _ in 0..20_000 {
            answers += u64::from(test_run(program, &frame)?.0 == XDP_TX);
        }
        Ok(answers)
    })?;
    let ticks = u64::from(rig.ticks()?.wrapping_sub(first)) + 1;
    assert!(answers.iter().all(|answers| *answers <= per_tick * ticks), "{answers:?} in {ticks} ticks");
    Ok(())
}

#[test]
fn row_1_closed_ports_are_dropped_if_configured() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    // Also while there are no modules, and so no services.
    for without_modules in [false, true] {
        if without_modules {
            rig.desired.modules.clear();
        }
        for drop_closed_ports in [false, true] {
            rig.desired.drop_closed_ports = drop_closed_ports;
            rig.apply()?;
            let (action, verdict) = if drop_closed_ports { (XDP_DROP, "drop") } else { (XDP_PASS, "pass") };
            for family in families() {
                let outcome = rig.run(&family.syn().with(|p| p.dport = 81))?;
                let counted = [(format!("{verdict} closed_port"), 1)].into();
                assert_eq!((outcome.action, outcome.counted), (action, counted), "{without_modules}");
            }
        }
    }
    Ok(())
}
