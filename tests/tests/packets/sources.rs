//! Outer sources of dsr-ipip, which vary by flow (row 23).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use anyhow::Result;
use ipnet::IpNet;
use nlb::config::OuterSources;
use nlb::datapath::loader::LoadConfig;
use nlb::model::ForwardMode;
use nlb::model::vips::Vips;

use crate::decap::trusting;
use crate::dsr::{forwarded, of_one_family, outer, samples};
use crate::fragments::{first, later};
use crate::icmp::error_about_an_answer;
use crate::packet::{Outer, Packet};
use crate::rig::{Family, GUE_PORT, Rig, XDP_PASS, XDP_REDIRECT, families, load_config, test_run};

/// The prefixes of outer sources, in the order of families.
const PREFIXES: [&str; 2] = ["10.200.0.0/16", "fd00:200::/64"];

fn prefixes() -> [IpNet; 2] {
    PREFIXES.map(|prefix| prefix.parse().expect("a prefix"))
}

pub fn sized(prefixes: &[IpNet]) -> Result<LoadConfig> {
    Ok(LoadConfig { ipip_sources: OuterSources::new(prefixes, &Vips::default())?, ..load_config() })
}

fn rig(mode: ForwardMode, prefixes: &[IpNet], backend: &Family) -> Result<Rig> {
    of_one_family(Rig::sized(mode, &sized(prefixes)?)?, mode, backend)
}

/// The outer source of a forwarded packet. Checks all other bytes.
fn source_of(rig: &mut Rig, backend: &Family, packet: &Packet, request: &Packet) -> Result<IpAddr> {
    let outcome = rig.run(packet)?;
    assert_eq!(outcome.action, XDP_REDIRECT, "{:?}", outcome.counted);
    let at = 14 + 4 * packet.tags.len();
    let src: IpAddr = if backend.vip.is_ipv4() {
        <[u8; 4]>::try_from(&outcome.frame[at + 12..at + 16])?.into()
    } else {
        Ipv6Addr::from(<[u8; 16]>::try_from(&outcome.frame[at + 8..at + 24])?).into()
    };
    let outer = outer(ForwardMode::DsrIpip, backend, request).map(|outer| Outer { src, ..outer });
    assert_eq!(outcome.frame, forwarded(packet).with(|p| p.outer = outer).bytes(), "{packet:?}");
    Ok(src)
}

/// The kinds of packets of one flow.
fn packets(client: &Family, request: &Packet) -> Vec<Packet> {
    let mut packets = vec![request.clone(), error_about_an_answer(client, request)];
    let id = request.sport as u8;
    let long = request.with(|p| p.payload = vec![7; 24]);
    packets.extend([first(&long, id), later(&long, id)]);
    packets
}

#[test]
fn row_23_outer_source_varies_by_flow_and_is_constant_within_a_flow() -> Result<()> {
    for (backend, prefix) in families().iter().zip(prefixes()) {
        let mut rig = rig(ForwardMode::DsrIpip, &prefixes(), backend)?;
        for client in families() {
            for request in [client.syn(), client.udp()] {
                let mut sources = BTreeSet::new();
                for sport in 20_000..20_256 {
                    let request = request.with(|p| p.sport = sport);
                    let of_flow = packets(&client, &request)
                        .iter()
                        .map(|packet| source_of(&mut rig, backend, packet, &request))
                        .collect::<Result<BTreeSet<_>>>()?;
                    assert_eq!(of_flow.len(), 1, "one flow, {of_flow:?}");
                    sources.extend(of_flow);
                }
                assert!(sources.iter().all(|source| prefix.contains(source)), "{prefix}: {sources:?}");
                // Of 256 flows with 65,536 possible addresses, less than one is expected to share one.
                assert!(sources.len() > 250, "only {} sources", sources.len());
            }
            for packet in samples(&client) {
                assert!(prefix.contains(&source_of(&mut rig, backend, &packet, &packet)?));
            }
        }
    }
    Ok(())
}

#[test]
fn the_smallest_prefix_has_two_sources() -> Result<()> {
    let smallest = ["10.200.0.6/31", "fd00:200::6/127"].map(|prefix| prefix.parse().expect("a prefix"));
    for backend in families() {
        let mut rig = rig(ForwardMode::DsrIpip, &smallest, &backend)?;
        let mut count = [0, 0];
        for sport in 20_000..20_256 {
            let request = backend.syn().with(|p| p.sport = sport);
            let source = source_of(&mut rig, &backend, &request, &request)?.to_string();
            count[usize::from(source.ends_with('7'))] += 1;
            assert!(
                ["10.200.0.6", "10.200.0.7", "fd00:200::6", "fd00:200::7"].contains(&&*source),
                "{source}"
            );
        }
        // Within four standard deviations of a half.
        assert!(count.iter().all(|flows| (96..=160).contains(flows)), "{count:?}");
    }
    Ok(())
}

/// The outer sources of the other family and of other modes are the NLB's address.
#[test]
fn prefix_applies_to_its_family_and_mode_only() -> Result<()> {
    for (n, backend) in families().iter().enumerate() {
        let other = prefixes()[1 - n];
        let request = backend.syn();
        let mut of_other_family = rig(ForwardMode::DsrIpip, &[other], backend)?;
        assert_eq!(source_of(&mut of_other_family, backend, &request, &request)?, backend.source);
        let mut gue = rig(ForwardMode::Gue, &prefixes(), backend)?;
        let expected = forwarded(&request).with(|p| p.outer = outer(ForwardMode::Gue, backend, &request));
        assert_eq!(gue.run(&request)?.frame, expected.bytes());
    }
    Ok(())
}

#[test]
fn decap_accepts_outer_sources_of_a_peer_prefix_only() -> Result<()> {
    let mut trusts_prefixes = trusting(GUE_PORT, &prefixes())?;
    let mut trusts_addresses = trusting(GUE_PORT, &families().map(|family| family.source.into()))?;
    for backend in families() {
        let mut rig = rig(ForwardMode::DsrIpip, &prefixes(), &backend)?;
        for client in families() {
            for sport in 20_000..20_032 {
                let request = client.syn().with(|p| p.sport = sport);
                let sent = rig.run(&request)?.frame;
                let taken = test_run(trusts_prefixes.decapsulator()?, &sent)?;
                assert_eq!(taken, (XDP_PASS, forwarded(&request).bytes()));
                let left_alone = test_run(trusts_addresses.decapsulator()?, &sent)?;
                assert_eq!(left_alone, (XDP_PASS, sent));
            }
        }
    }
    Ok(())
}
