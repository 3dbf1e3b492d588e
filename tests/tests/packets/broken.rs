//! Truncated and contradictory headers are dropped, and counted by reason.

use anyhow::Result;
use nlb::model::ForwardMode;

use crate::rig::{Family, Rig, XDP_DROP, XDP_PASS, XDP_REDIRECT, families};

/// The offset of the IP header.
const L3: usize = 14;

fn drops(rig: &mut Rig, what: &str, frame: &[u8], reason: &str) -> Result<()> {
    let outcome = rig.run_bytes(frame)?;
    assert_eq!(outcome.action, XDP_DROP, "{what}");
    assert_eq!(outcome.counted, [(format!("drop {reason}"), 1)].into(), "{what}");
    Ok(())
}

fn l4(family: &Family) -> usize {
    if family.vip.is_ipv4() { L3 + 20 } else { L3 + 40 }
}

/// `frame` with some bytes replaced.
fn patched(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn row_3_contradictory_ipv4_headers_are_dropped() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    let frame = families()[0].syn().bytes();
    drops(&mut rig, "IHL 4", &patched(&frame, L3, &[0x44]), "ip_header")?;
    drops(&mut rig, "version 5", &patched(&frame, L3, &[0x55]), "ip_header")?;
    drops(&mut rig, "total length below the header", &patched(&frame, L3 + 2, &[0, 19]), "ip_header")?;
    drops(&mut rig, "total length beyond the frame", &patched(&frame, L3 + 2, &[0, 41]), "ip_header")?;
    drops(&mut rig, "IHL beyond the total length", &patched(&frame, L3, &[0x4f]), "ip_header")?;
    drops(&mut rig, "no room for the IP header", &frame[..L3 + 19], "truncated")
}

#[test]
fn row_3_contradictory_ipv6_headers_are_dropped() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    let frame = families()[1].syn().bytes();
    drops(&mut rig, "version 4", &patched(&frame, L3, &[0x40]), "ip_header")?;
    drops(&mut rig, "payload length beyond the frame", &patched(&frame, L3 + 4, &[0, 21]), "ip_header")?;
    drops(&mut rig, "no room for the IP header", &frame[..L3 + 39], "truncated")
}

#[test]
fn row_3_contradictory_l4_headers_are_dropped() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    for family in families() {
        let l4 = l4(&family);
        let tcp = family.syn().bytes();
        drops(&mut rig, "data offset 4", &patched(&tcp, l4 + 12, &[0x40]), "l4_header")?;
        drops(&mut rig, "data offset beyond the packet", &patched(&tcp, l4 + 12, &[0x60]), "l4_header")?;
        let udp = family.udp().bytes();
        drops(&mut rig, "UDP length 7", &patched(&udp, l4 + 4, &[0, 7]), "l4_header")?;
        drops(&mut rig, "UDP length beyond the packet", &patched(&udp, l4 + 4, &[0, 17]), "l4_header")?;

        // The IP packet ends inside the L4 header, though the frame goes on.
        let length_at = if family.vip.is_ipv4() { L3 + 2 } else { L3 + 4 };
        let length = |l4_bytes: u8| if family.vip.is_ipv4() { 20 + l4_bytes } else { l4_bytes };
        drops(&mut rig, "19 bytes of TCP", &patched(&tcp, length_at, &[0, length(19)]), "truncated")?;
        drops(&mut rig, "7 bytes of UDP", &patched(&udp, length_at, &[0, length(7)]), "truncated")?;
    }
    Ok(())
}

#[test]
fn packets_to_other_hosts_are_not_parsed_beyond_the_ip_header() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    for family in families() {
        let stray = family.syn().with(|p| p.dst = family.stranger).bytes();
        let outcome = rig.run_bytes(&patched(&stray, l4(&family) + 12, &[0x40]))?;
        assert_eq!(outcome.action, XDP_PASS);
    }
    Ok(())
}

#[test]
fn row_7_a_later_fragment_without_its_first_is_dropped() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    let [v4, v6] = families();
    let fragment = v4.udp().with(|p| p.fragment = (3, false));
    drops(&mut rig, "IPv4", &fragment.bytes(), "fragment")?;
    // Fragment header: reserved byte, offset and flags, identification.
    let fragment = v6.udp().with(|p| p.extensions = vec![(44, vec![0, 0, 3 << 3, 0, 0, 0, 9])]);
    drops(&mut rig, "IPv6", &fragment.bytes(), "fragment")
}

#[test]
fn row_7_first_fragment_with_the_length_of_the_datagram_is_forwarded() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::DsrL2)?;
    let [v4, v6] = families();
    let first = [
        v4.udp().with(|p| p.fragment = (0, true)),
        v6.udp().with(|p| p.extensions = vec![(44, vec![0, 0, 1, 0, 0, 0, 9])]),
    ];
    for (packet, l4) in first.iter().zip([L3 + 20, L3 + 40 + 8]) {
        let outcome = rig.run_bytes(&patched(&packet.bytes(), l4 + 4, &[0x0f, 0xa0]))?;
        assert_eq!(outcome.action, XDP_REDIRECT, "{packet:?}: {:?}", outcome.counted);
    }
    Ok(())
}

#[test]
fn row_6_extension_headers_are_walked_and_the_walk_is_bounded() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::DsrL2)?;
    let family = families()[1];
    let pad = |kind: u8| (kind, vec![0, 1, 4, 0, 0, 0, 0]);
    let authentication = (51, vec![4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for extensions in [
        vec![pad(0)],
        vec![pad(0), pad(60), pad(43), pad(60)],
        vec![authentication],
        vec![(44, vec![0, 0, 1, 0, 0, 0, 9])],
        vec![pad(60); 8],
    ] {
        let packet = family.syn().with(|p| p.extensions = extensions.clone());
        let outcome = rig.run(&packet)?;
        assert_eq!(outcome.action, XDP_REDIRECT, "{extensions:?}: {:?}", outcome.counted);
    }
    let endless = family.syn().with(|p| p.extensions = vec![pad(60); 9]);
    drops(&mut rig, "nine headers", &endless.bytes(), "ipv6_extensions")?;
    let overlong = family.syn().with(|p| p.extensions = vec![(60, vec![200, 1, 4, 0, 0, 0, 0])]);
    drops(&mut rig, "a header longer than the packet", &overlong.bytes(), "ip_header")?;
    // Mobility, HIP, Shim6 and experimental headers: what follows them is unknown.
    for unknown in [135, 139, 140, 253, 254] {
        let packet = family.syn().with(|p| p.extensions = vec![pad(60), pad(unknown)]);
        drops(&mut rig, "an unknown extension header", &packet.bytes(), "ipv6_extensions")?;
        let outcome = rig.run(&packet.with(|p| p.dst = family.stranger))?;
        assert_eq!(outcome.counted, [("pass not_ours".to_owned(), 1)].into(), "{unknown} to others");
    }
    Ok(())
}
