//! Rate limits (row 31): what is over one is dropped and counted against it, what is under is untouched.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use aya::programs::Xdp;
use nlb::model::{ForwardMode, L4, LimitTarget, LimitUnit, RateLimit, Texts};
use nlb_common::abi::LimitStats;

use crate::packet::Packet;
use crate::rig::{Rig, XDP_DROP, XDP_REDIRECT, families, load_config, module, test_run};

/// So many in an hour, and that many at once: during a test, nothing comes back.
fn few(target: LimitTarget, unit: LimitUnit, units: u64) -> RateLimit {
    RateLimit {
        target,
        unit,
        per_second: 0,
        per_minute: 0,
        per_hour: units,
        burst: units,
        enabled: true,
        metadata: Texts::new(),
    }
}

fn limit(rig: &mut Rig, id: &str, limit: RateLimit) -> Result<()> {
    rig.desired.rate_limits.insert(id.to_owned(), limit.into());
    rig.apply()
}

fn counts(rig: &Rig, id: &str) -> Result<(u64, u64)> {
    let id = rig.image().limit_ids.get(&id.to_owned()).expect("a limit in force");
    let LimitStats { passed, refused } = rig.readings().limit(id)?;
    Ok((passed, refused))
}

/// How many of these packets get through.
fn through(rig: &mut Rig, packets: impl IntoIterator<Item = Packet>) -> Result<usize> {
    let mut passed = 0;
    for packet in packets {
        let outcome = rig.run(&packet)?;
        match outcome.action {
            XDP_REDIRECT => passed += 1,
            XDP_DROP => assert_eq!(outcome.counted.keys().collect::<Vec<_>>(), ["drop rate_limit"]),
            other => panic!("action {other}: {:?}", outcome.counted),
        }
    }
    Ok(passed)
}

/// SYNs of as many flows.
fn syns(packet: &Packet, count: u16) -> impl Iterator<Item = Packet> {
    (0..count).map(|i| packet.with(|p| p.sport = 20_000 + i))
}

#[test]
fn row_31_new_flows_over_a_limit_are_dropped_and_known_ones_go_on() -> Result<()> {
    for family in families() {
        for target in [
            LimitTarget::All,
            LimitTarget::Service(family.vip, 80, L4::Tcp),
            LimitTarget::Route("tcp".to_owned()),
            LimitTarget::Source(ipnet::IpNet::new(family.client, 24)?.trunc()),
        ] {
            let mut rig = Rig::new(ForwardMode::Nat)?;
            limit(&mut rig, "few", few(target.clone(), LimitUnit::NewFlows, 5))?;
            assert_eq!(through(&mut rig, syns(&family.syn(), 20))?, 5, "{target:?}");
            assert_eq!(through(&mut rig, syns(&family.ack(), 5))?, 5, "{target:?}: flows on record");
            assert_eq!(counts(&rig, "few")?, (5, 15), "{target:?}");

            rig.desired.rate_limits.clear();
            rig.apply()?;
            assert_eq!(through(&mut rig, syns(&family.syn(), 20))?, 20, "{target:?} without the limit");
        }
    }
    Ok(())
}

#[test]
fn row_31_other_services_routes_and_sources_are_not_limited() -> Result<()> {
    for (family, other) in families().into_iter().zip(families().into_iter().rev()) {
        for target in [
            LimitTarget::Service(family.vip2, 80, L4::Tcp),
            LimitTarget::Service(family.vip, 80, L4::Udp),
            LimitTarget::Service(other.vip, 80, L4::Tcp),
            LimitTarget::Route("udp".to_owned()),
            LimitTarget::Source(ipnet::IpNet::from(other.client)),
            LimitTarget::Source(ipnet::IpNet::from(family.stranger)),
            LimitTarget::Source(ipnet::IpNet::new(other.client, 0)?.trunc()),
        ] {
            let mut rig = Rig::new(ForwardMode::Nat)?;
            limit(&mut rig, "few", few(target.clone(), LimitUnit::Packets, 1))?;
            assert_eq!(through(&mut rig, syns(&family.syn(), 10))?, 10, "{target:?}");
            assert_eq!(counts(&rig, "few")?, (0, 0), "{target:?}");
        }
    }
    Ok(())
}

#[test]
fn row_31_packets_and_bytes_of_known_flows_are_limited() -> Result<()> {
    for mode in [ForwardMode::Nat, ForwardMode::DsrL2, ForwardMode::DsrIpip, ForwardMode::Gue] {
        for family in families() {
            let mut rig = Rig::new(mode)?;
            assert_eq!(through(&mut rig, [family.syn()])?, 1);
            limit(&mut rig, "packets", few(LimitTarget::All, LimitUnit::Packets, 7))?;
            let again = || std::iter::repeat_n(family.ack(), 20);
            assert_eq!(through(&mut rig, again())?, 7);
            assert_eq!(counts(&rig, "packets")?, (7, 13));

            rig.desired.rate_limits.clear();
            let bytes = family.ack().bytes().len() as u64 - 14;
            limit(&mut rig, "bytes", few(LimitTarget::All, LimitUnit::Bytes, 3 * bytes + 1))?;
            assert_eq!(through(&mut rig, again())?, 3);
            assert_eq!(counts(&rig, "bytes")?, (3 * bytes, 17 * bytes));
        }
    }
    Ok(())
}

#[test]
fn row_31_a_packet_has_to_pass_every_limit_and_one_that_is_refused_uses_up_none() -> Result<()> {
    let [family, _] = families();
    let mut rig = Rig::new(ForwardMode::Nat)?;
    let service = LimitTarget::Service(family.vip, 80, L4::Tcp);
    limit(&mut rig, "wide", few(LimitTarget::All, LimitUnit::NewFlows, 100))?;
    limit(&mut rig, "narrow", few(service.clone(), LimitUnit::NewFlows, 3))?;
    limit(&mut rig, "source", few(LimitTarget::Source(family.client.into()), LimitUnit::Packets, 50))?;
    limit(&mut rig, "twice", few(service, LimitUnit::Packets, 60))?;
    assert_eq!(through(&mut rig, syns(&family.syn(), 10))?, 3);
    assert_eq!(counts(&rig, "wide")?, (3, 0));
    assert_eq!(counts(&rig, "narrow")?, (3, 7));
    assert_eq!(counts(&rig, "source")?, (3, 0));
    assert_eq!(through(&mut rig, std::iter::repeat_n(syns(&family.ack(), 1).next().unwrap(), 60))?, 47);
    assert_eq!(counts(&rig, "source")?, (50, 13));
    assert_eq!(counts(&rig, "twice")?, (50, 0));
    Ok(())
}

#[test]
fn row_31_nested_prefixes_limit_together() -> Result<()> {
    let [family, _] = families();
    let mut rig = Rig::new(ForwardMode::DsrL2)?;
    let net = |bits| LimitTarget::Source(ipnet::IpNet::new(family.client, bits).unwrap().trunc());
    limit(&mut rig, "outer", few(net(16), LimitUnit::NewFlows, 6))?;
    limit(&mut rig, "inner", few(net(24), LimitUnit::NewFlows, 4))?;
    assert_eq!(through(&mut rig, syns(&family.syn(), 10))?, 4);
    let neighbour = family.syn().with(|p| p.src = "198.51.101.7".parse().unwrap());
    assert_eq!(through(&mut rig, syns(&neighbour, 10))?, 2, "what the inner prefix left of the outer one's");
    Ok(())
}

/// A port with a limit of its own, though its route is for every port.
#[test]
fn row_31_one_port_of_a_route_for_every_port() -> Result<()> {
    let [family, _] = families();
    let mut rig = Rig::new(ForwardMode::DsrL2)?;
    rig.route("m1", "tcp").port = None;
    limit(&mut rig, "few", few(LimitTarget::Service(family.vip, 443, L4::Tcp), LimitUnit::NewFlows, 2))?;
    assert_eq!(through(&mut rig, syns(&family.syn().with(|p| p.dport = 443), 10))?, 2);
    assert_eq!(through(&mut rig, syns(&family.syn().with(|p| p.dport = 444), 10))?, 10);
    Ok(())
}

/// A limit that changes starts anew, and keeps its counts.
#[test]
fn row_31_a_limit_can_be_raised() -> Result<()> {
    let [family, _] = families();
    let mut rig = Rig::new(ForwardMode::Nat)?;
    limit(&mut rig, "few", few(LimitTarget::All, LimitUnit::NewFlows, 2))?;
    assert_eq!(through(&mut rig, syns(&family.syn(), 5))?, 2);
    limit(&mut rig, "few", few(LimitTarget::All, LimitUnit::NewFlows, 4))?;
    let later = family.syn().with(|p| p.src = family.stranger);
    assert_eq!(through(&mut rig, syns(&later, 10))?, 4);
    assert_eq!(counts(&rig, "few")?, (6, 9));
    Ok(())
}

/// One limit for all CPUs: each of them asks without end, and together they get what the limit gives in the
/// time that really went by. That is by the program's clock, which stands still where a virtual machine is
/// not given the CPU that moves it on. The burst bridges seconds in which this process is not given one, and
/// the rate is one that emulated machines reach.
#[test]
fn row_31_the_rate_is_what_was_asked_for_on_all_cpus_together() -> Result<()> {
    const RATE: u64 = 50;
    const BURST: u64 = 4 * RATE;
    let [family, _] = families();
    let none = || few(LimitTarget::All, LimitUnit::Packets, 0);
    let bytes = family.ack().bytes().len() as u64 - 14;
    for (what, packet, units, limit_of) in [
        ("packets a second", family.ack(), 1, RateLimit { per_second: RATE, burst: BURST, ..none() }),
        (
            "bytes a minute",
            family.ack(),
            bytes,
            RateLimit {
                unit: LimitUnit::Bytes,
                per_minute: 60 * RATE * bytes,
                burst: BURST * bytes,
                ..none()
            },
        ),
        (
            "new flows an hour",
            family.syn(),
            1,
            RateLimit { unit: LimitUnit::NewFlows, per_hour: 3600 * RATE, burst: BURST, ..none() },
        ),
    ] {
        let mut rig = Rig::new(ForwardMode::DsrL2)?;
        assert_eq!(through(&mut rig, [family.syn()])?, 1);
        limit(&mut rig, "rate", limit_of)?;
        let flows = AtomicU32::new(0);
        // A flow that got through is on record, so the next packet is another flow's.
        let next = || match what {
            "new flows an hour" => {
                let [_, host, port @ ..] = flows.fetch_add(1, Ordering::Relaxed).to_be_bytes();
                let flow = packet
                    .with(|p| (p.src, p.sport) = ([203, 0, 113, host].into(), u16::from_be_bytes(port)));
                flow.bytes()
            }
            _ => packet.bytes(),
        };
        // Asks until it is refused.
        let ask = |program: &Xdp| -> Result<u64> {
            let (mut passed, mut frame) = (0, next());
            while test_run(program, &frame)?.0 == XDP_REDIRECT {
                passed += 1;
                frame = next();
            }
            Ok(passed)
        };
        // The same until a moment that is known, at which nothing is left over from the burst, or from a
        // pause in which nobody asked.
        let ask_for_all = |rig: &mut Rig| -> Result<(u64, u32)> {
            let mut passed = 0;
            loop {
                let before = rig.jiffies()?;
                passed += ask(rig.balancer()?)?;
                let after = rig.jiffies()?;
                if after.wrapping_sub(before) <= 1 {
                    return Ok((passed, after));
                }
            }
        };
        let (burst, first) = ask_for_all(&mut rig)?;
        let end = Instant::now() + Duration::from_secs(6);
        let passed = rig.on_each_cpu(|program| {
            let mut passed = 0;
            while Instant::now() < end {
                passed += ask(program)?;
            }
            Ok(passed)
        })?;
        let (rest, last) = ask_for_all(&mut rig)?;
        let wanted = RATE as f64 * rig.between(first, last).as_secs_f64();
        assert!(passed.len() > 1, "this machine has one CPU: nothing to share");
        assert!(passed.iter().all(|passed| *passed > 0), "{what}: {passed:?}");
        let total = passed.iter().sum::<u64>() + rest;
        assert!(burst >= BURST, "{what}: {burst} at once");
        assert_eq!(counts(&rig, "rate")?.0, (burst + total) * units, "{what}: the counter says the same");
        let error = (total as f64 - wanted) / wanted;
        assert!(
            error.abs() < 0.02,
            "{what}: {passed:?} passed, {wanted} should have: {:.2} %",
            error * 100.0
        );
    }
    Ok(())
}

/// As many limits as there is room for by default, all in force at once.
#[test]
fn row_31_ten_thousand_limits() -> Result<()> {
    let [family, _] = families();
    let mut load_config = load_config();
    load_config.limits.rate_limits = 16_384;
    let mut rig = Rig::sized(ForwardMode::DsrL2, &load_config)?;
    rig.desired.modules.insert("m1".to_owned(), module(ForwardMode::DsrL2, 2).into());
    for i in 0..10_000_u16 {
        let client = std::net::Ipv4Addr::from(0x0b00_0000 + u32::from(i));
        let limit = few(LimitTarget::Source(std::net::IpAddr::from(client).into()), LimitUnit::NewFlows, 1);
        rig.desired.rate_limits.insert(format!("client-{i}"), limit.into());
    }
    rig.apply()?;
    for i in (0..10_000_u16).step_by(97) {
        let client = std::net::Ipv4Addr::from(0x0b00_0000 + u32::from(i));
        let syn = family.syn().with(|p| p.src = client.into());
        assert_eq!(through(&mut rig, syns(&syn, 3))?, 1, "{client}");
    }
    Ok(())
}
