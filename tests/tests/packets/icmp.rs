//! ICMP errors about packets to and from backends (rows 10 and 11), and those that the NLB sends (row 9).

use anyhow::Result;
use nlb::model::{ForwardMode, Snat};

use crate::packet::{Packet, Transport, UdpChecksum, internet_checksum};
use crate::rig::{
    BACK_MTU, BACKEND_MAC, CLIENT_MAC, Family, OUR_BACK_MAC, OUR_MAC, Outcome, Rig, XDP_DROP, XDP_PASS,
    XDP_REDIRECT, XDP_TX, families, source_port,
};

/// How much of a packet an ICMP error quotes.
#[derive(Clone, Copy, Debug)]
enum Quote {
    EightBytes,
    All,
}

/// Types and codes: frag-needed or packet too big, port unreachable, time exceeded, parameter problem.
const KINDS: [[(u8, u8); 4]; 2] = [[(3, 4), (3, 3), (11, 0), (12, 0)], [(2, 0), (1, 4), (3, 0), (4, 1)]];

/// An ICMP error from `src` to the sender of the packet that it quotes.
fn error(from: &Packet, about: &Packet, (kind, code): (u8, u8), quote: Quote) -> Packet {
    let about_bytes = &about.bytes()[14..];
    let headers = if about.src.is_ipv4() { 20 + about.options.len() } else { 40 };
    let quoted = match quote {
        Quote::EightBytes => &about_bytes[..headers + 8],
        Quote::All => about_bytes,
    };
    from.icmp([kind, code], quoted)
}

/// The answer to a request as the client received it, with the VIP as its source.
fn sent_by_vip(family: &Family, request: &Packet) -> Packet {
    request.with(|p| {
        (p.src, p.dst) = (family.vip, family.client);
        (p.sport, p.dport) = (request.dport, request.sport);
        (p.ttl, p.payload) = (61, b"the answer".to_vec());
    })
}

/// A packet from a router between the NLB and the client to the VIP.
fn from_router(family: &Family) -> Packet {
    family.syn().with(|p| (p.src, p.dst, p.ttl) = (family.stranger, family.vip, 63))
}

/// An error about what a backend answered to a request.
pub fn error_about_an_answer(family: &Family, request: &Packet) -> Packet {
    let [[kind_v4, ..], [kind_v6, ..]] = KINDS;
    let kind = if family.vip.is_ipv4() { kind_v4 } else { kind_v6 };
    error(&from_router(family), &sent_by_vip(family, request), kind, Quote::All)
}

fn requests(family: &Family) -> Vec<Packet> {
    let mut requests = vec![family.syn(), family.udp()];
    if family.vip.is_ipv4() {
        requests.push(family.udp().with(|p| {
            p.l4 = Transport::Udp { checksum: UdpChecksum::Zero };
            p.sport = 40_001;
        }));
        requests.push(family.syn().with(|p| {
            p.sport = 40_002;
            p.options = vec![1, 1, 1, 0];
        }));
    }
    requests
}

#[track_caller]
fn sent(outcome: &Outcome, expected: &Packet) {
    assert_eq!(outcome.action, XDP_REDIRECT, "{:?}", outcome.counted);
    assert_eq!(outcome.counted, [("send icmp_error".to_owned(), 1)].into());
    assert_eq!(outcome.frame, expected.bytes(), "{expected:?}");
}

#[track_caller]
fn passed(outcome: &Outcome, packet: &Packet, reason: &str) {
    assert_eq!((outcome.action, &outcome.counted), (XDP_PASS, &[(format!("pass {reason}"), 1)].into()));
    assert_eq!(outcome.frame, packet.bytes());
}

#[test]
fn row_10_errors_about_answers_reach_the_nat_backend_that_sent_them() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    for (family, kinds) in families().iter().zip(KINDS) {
        for request in requests(family) {
            let opened = rig.run(&request.with(|p| p.options.clear()))?;
            let port = source_port(&opened.frame);
            for kind in kinds {
                for quote in [Quote::EightBytes, Quote::All] {
                    let answer = sent_by_vip(family, &request);
                    let outcome = rig.run(&error(&from_router(family), &answer, kind, quote))?;
                    let as_sent = answer.with(|p| {
                        (p.src, p.dst) = (family.backend, family.source);
                        (p.sport, p.dport) = (8080, port);
                    });
                    let towards = from_router(family).with(|p| {
                        (p.dst_mac, p.src_mac) = (BACKEND_MAC, OUR_BACK_MAC);
                        (p.src, p.dst, p.ttl) = (family.source, family.backend, 62);
                    });
                    sent(&outcome, &error(&towards, &as_sent, kind, quote));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn row_10_dsr_forwards_errors_about_answers_unchanged() -> Result<()> {
    for mode in [ForwardMode::DsrL2, ForwardMode::DsrIpip, ForwardMode::Gue] {
        let mut rig = Rig::new(mode)?;
        for family in &families() {
            // A flow that is not recorded goes by its hash, like its packets.
            for on_record in [false, true] {
                for request in requests(family) {
                    if on_record {
                        rig.run(&request.with(|p| p.options.clear()))?;
                    }
                    let arrived = error_about_an_answer(family, &request);
                    let expected = arrived.with(|p| {
                        (p.dst_mac, p.src_mac, p.ttl) = (BACKEND_MAC, OUR_BACK_MAC, 62);
                        p.outer = crate::dsr::outer(mode, family, &request);
                    });
                    sent(&rig.run(&arrived)?, &expected);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn row_11_errors_about_requests_reach_the_client() -> Result<()> {
    for snat in [Snat::Always, Snat::Never] {
        let mut rig = Rig::new(ForwardMode::Nat)?;
        rig.module("m1").snat = snat;
        rig.apply()?;
        for (family, kinds) in families().iter().zip(KINDS) {
            for request in requests(family) {
                let opened = rig.run(&request.with(|p| p.options.clear()))?;
                let (source, port) = match snat {
                    Snat::Never => (family.client, request.sport),
                    _ => (family.source, source_port(&opened.frame)),
                };
                for kind in kinds {
                    // From the backend itself, or from a router in front of it.
                    for from in [family.backend, family.stranger] {
                        for quote in [Quote::EightBytes, Quote::All] {
                            let forwarded = request.with(|p| {
                                (p.src, p.dst) = (source, family.backend);
                                (p.sport, p.dport, p.ttl) = (port, 8080, 63);
                            });
                            let towards_us = request.with(|p| {
                                (p.dst_mac, p.src_mac) = (OUR_BACK_MAC, BACKEND_MAC);
                                (p.src, p.dst, p.ttl) = (from, source, 64);
                                p.options.clear();
                            });
                            let outcome = rig.run(&error(&towards_us, &forwarded, kind, quote))?;
                            let as_sent = request.with(|p| p.ttl = 63);
                            let towards_client = towards_us.with(|p| {
                                (p.dst_mac, p.src_mac) = (CLIENT_MAC, OUR_MAC);
                                (p.src, p.dst, p.ttl) = (family.vip, family.client, 63);
                            });
                            sent(&outcome, &error(&towards_client, &as_sent, kind, quote));
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn other_icmp_packets_pass_to_the_kernel() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    for (family, kinds) in families().iter().zip(KINDS) {
        let about = sent_by_vip(family, &family.syn());
        let router = from_router(family);
        passed(
            &rig.run(&error(&router, &about, kinds[0], Quote::All))?,
            &error(&router, &about, kinds[0], Quote::All),
            "no_flow",
        );

        rig.run(&family.syn())?;
        let echo = error(&router, &about, if family.vip.is_ipv4() { (8, 0) } else { (128, 0) }, Quote::All);
        passed(&rig.run(&echo)?, &echo, "protocol");
        let redirect =
            error(&router, &about, if family.vip.is_ipv4() { (5, 1) } else { (137, 0) }, Quote::All);
        passed(&rig.run(&redirect)?, &redirect, "protocol");
        // The error goes only to the sender of the quoted packet.
        let elsewhere = error(&router, &about.with(|p| p.src = family.vip2), kinds[0], Quote::All);
        passed(&rig.run(&elsewhere)?, &elsewhere, "protocol");
        let cut = error(&router, &about, kinds[0], Quote::EightBytes)
            .with(|p| p.payload.truncate(p.payload.len() - 1));
        passed(&rig.run(&cut)?, &cut, "protocol");
        let other_protocol =
            error(&router, &about.with(|p| p.l4 = Transport::Other(132)), kinds[0], Quote::All);
        passed(&rig.run(&other_protocol)?, &other_protocol, "protocol");
        let to_us = error(
            &router.with(|p| p.dst = family.source),
            &about.with(|p| p.src = family.source),
            kinds[0],
            Quote::All,
        );
        passed(&rig.run(&to_us)?, &to_us, "no_flow");

        let old = error(&router.with(|p| p.ttl = 1), &about, kinds[0], Quote::All);
        assert_eq!(rig.run(&old)?.counted, [("drop ttl_exceeded".to_owned(), 1)].into());
        let looped = error(&router.with(|p| p.src_mac = OUR_BACK_MAC), &about, kinds[0], Quote::All);
        assert_eq!(rig.run(&looped)?.counted, [("drop loop".to_owned(), 1)].into());
    }
    Ok(())
}

#[test]
fn row_9_packet_too_big_to_encapsulate_is_answered_with_the_mtu() -> Result<()> {
    for (mode, udp) in [(ForwardMode::DsrIpip, 0), (ForwardMode::Gue, 8)] {
        too_big_to_wrap(&mut Rig::new(mode)?, udp)?;
    }
    Ok(())
}

/// With outer headers of so many bytes after the IP header.
fn too_big_to_wrap(rig: &mut Rig, udp: u16) -> Result<()> {
    for family in families() {
        let v4 = family.vip.is_ipv4();
        let (outer, header) = if v4 { (20 + udp, 20) } else { (40 + udp, 40) };
        let mtu = BACK_MTU - outer;
        for options in [0, 4, 40] {
            let options = if v4 { options } else { 0 };
            let room = mtu as usize - header - options - 20;
            let packet = family.ack().with(|p| {
                p.options = vec![1; options];
                p.payload = vec![1; room];
            });
            assert_eq!(rig.run(&packet)?.action, XDP_REDIRECT);
            let packet = packet.with(|p| p.payload.push(1));
            let outcome = rig.run(&packet)?;
            assert_eq!((outcome.action, outcome.counted), (XDP_TX, [("send too_big".to_owned(), 1)].into()));
            // An IPv6 error quotes 40 bytes more.
            let more = if v4 { options } else { 40 };
            let quoted = &packet.bytes()[14..14 + header + more + 8];
            let rest = u32::from(mtu).to_be_bytes();
            let expected = packet.with(|p| {
                (p.dst_mac, p.src_mac) = (CLIENT_MAC, OUR_MAC);
                (p.src, p.dst, p.ttl) = (family.vip, family.client, 64);
                p.options.clear();
                p.l4 = Transport::Other(if v4 { 1 } else { 58 });
                p.payload =
                    [&[if v4 { 3 } else { 2 }, if v4 { 4 } else { 0 }, 0, 0], &rest[..], quoted].concat();
            });
            is_error(&outcome.frame, &expected);
        }
        if v4 {
            let mut frame = family.ack().with(|p| p.payload = vec![1; 1500]).bytes();
            frame[20] = 0;
            let outcome = rig.run_bytes(&frame)?;
            assert_eq!(
                (outcome.action, outcome.counted),
                (XDP_DROP, [("park fragment".to_owned(), 1)].into()),
                "may be fragmented"
            );
        }
    }
    Ok(())
}

/// Checks that the frame is this packet but for the ICMP checksum, which has to be correct, and the IP
/// header's id, flow label and flags.
pub fn is_error(frame: &[u8], expected: &Packet) {
    let icmp = if expected.src.is_ipv4() { 34 } else { 54 };
    let bytes = expected.bytes();
    assert_eq!(frame.len(), bytes.len());
    assert_eq!(frame[..14], bytes[..14]);
    let mut summed = frame[icmp..].to_vec();
    if expected.src.is_ipv4() {
        assert_eq!(internet_checksum(&frame[14..34]), [0, 0]);
        assert_eq!(
            (&frame[16..18], &frame[22..24], &frame[26..34]),
            (&bytes[16..18], &bytes[22..24], &bytes[26..34])
        );
    } else {
        assert_eq!(frame[18..54], bytes[18..54]);
        let len = (frame.len() - icmp) as u32;
        summed = [&frame[22..54], &len.to_be_bytes(), &[0, 0, 0, 58], &summed].concat();
    }
    assert_eq!(internet_checksum(&summed), [0, 0]);
    assert_eq!((&frame[icmp..icmp + 2], &frame[icmp + 4..]), (&bytes[icmp..icmp + 2], &bytes[icmp + 4..]));
}
