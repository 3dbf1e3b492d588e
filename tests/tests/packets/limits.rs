//! Rate limits (row 31): packets over a limit are dropped and counted, others are not affected.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use aya::programs::Xdp;
use nlb::model::{ForwardMode, L4, LimitTarget, LimitUnit, RateLimit, Texts};
use nlb_common::abi::LimitStats;
use nlb_testkit::process::MAX_WAIT;

use crate::packet::Packet;
use crate::rig::{Rig, XDP_DROP, XDP_REDIRECT, families, load_config, module, test_run};

/// A limit of so many units in an hour with a burst of as many. A test ends before more units are allowed.
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

/// The number of these packets that pass.
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

/// The SYNs of so many flows.
fn syns(packet: &Packet, count: u16) -> impl Iterator<Item = Packet> {
    (0..count).map(|i| packet.with(|p| p.sport = 20_000 + i))
}

#[test]
fn row_31_new_flows_over_a_limit_are_dropped_and_known_flows_pass() -> Result<()> {
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
fn row_31_refused_packet_is_charged_to_no_limit() -> Result<()> {
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
    assert_eq!(through(&mut rig, syns(&neighbour, 10))?, 2, "what remains of the outer limit");
    Ok(())
}

/// A limit of one port, with a route for every port.
#[test]
fn row_31_limit_of_one_port_applies_to_a_route_for_every_port() -> Result<()> {
    let [family, _] = families();
    let mut rig = Rig::new(ForwardMode::DsrL2)?;
    rig.route("m1", "tcp").port = None;
    limit(&mut rig, "few", few(LimitTarget::Service(family.vip, 443, L4::Tcp), LimitUnit::NewFlows, 2))?;
    assert_eq!(through(&mut rig, syns(&family.syn().with(|p| p.dport = 443), 10))?, 2);
    assert_eq!(through(&mut rig, syns(&family.syn().with(|p| p.dport = 444), 10))?, 10);
    Ok(())
}

/// A changed limit starts with a whole burst, and keeps its counts.
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

/// The packets that one CPU sent under a limit.
struct Sent {
    passed: u64,
    last: Instant,
    /// The time in which this CPU sent nothing although the burst was used up.
    unused: Duration,
}

impl Sent {
    fn note(&mut self, passed: u64, burst: Duration) {
        let now = Instant::now();
        self.passed += passed;
        self.unused += now.duration_since(self.last).saturating_sub(burst);
        self.last = now;
    }
}

/// All CPUs send packets under one limit without a pause. Together they pass as many as the limit allows in
/// the elapsed time. The elapsed time is that of the program's clock, which stands still while a virtual
/// machine has no CPU. The burst covers four seconds in which this process does not run; what the limit loses
/// in a longer pause is not expected. Emulated machines reach the rate.
#[test]
fn row_31_all_cpus_together_pass_the_configured_rate() -> Result<()> {
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
        // A flow that passed is recorded, so the next packet has to be another flow's.
        let next = || match what {
            "new flows an hour" => {
                let [_, host, port @ ..] = flows.fetch_add(1, Ordering::Relaxed).to_be_bytes();
                let flow = packet
                    .with(|p| (p.src, p.sport) = ([203, 0, 113, host].into(), u16::from_be_bytes(port)));
                flow.bytes()
            }
            _ => packet.bytes(),
        };
        // Sends packets until one is refused.
        let pass_all = |program: &Xdp| -> Result<u64> {
            let (mut passed, mut frame) = (0, next());
            while test_run(program, &frame)?.0 == XDP_REDIRECT {
                passed += 1;
                frame = next();
            }
            Ok(passed)
        };
        // Repeats that until a refusal is dated to a jiffy. Nothing is then left of the burst.
        let pass_all_at_a_known_time = |rig: &mut Rig| -> Result<(u64, u32)> {
            let mut passed = 0;
            loop {
                let before = rig.jiffies()?;
                passed += pass_all(rig.balancer()?)?;
                let after = rig.jiffies()?;
                if after.wrapping_sub(before) <= 1 {
                    return Ok((passed, after));
                }
            }
        };
        let (burst, first) = pass_all_at_a_known_time(&mut rig)?;
        let (start, whole_burst) = (Instant::now(), Duration::from_secs(BURST / RATE));
        let mut sent = rig.on_each_cpu(|program| {
            let mut sent = Sent { passed: 0, last: start, unused: Duration::ZERO };
            while start.elapsed() < Duration::from_secs(6) || sent.passed == 0 && start.elapsed() < MAX_WAIT {
                sent.note(pass_all(program)?, whole_burst);
            }
            Ok(sent)
        })?;
        let (rest, last) = pass_all_at_a_known_time(&mut rig)?;
        sent.iter_mut().for_each(|sent| sent.note(0, whole_burst));
        let passed: Vec<u64> = sent.iter().map(|sent| sent.passed).collect();
        // The limit is unused only while no CPU sends.
        let unused = sent.iter().map(|sent| sent.unused).min().unwrap_or_default();
        let most = RATE as f64 * rig.between(first, last).as_secs_f64();
        let least = most - RATE as f64 * unused.as_secs_f64();
        assert!(passed.len() > 1, "this test needs two CPUs");
        assert!(passed.iter().all(|passed| *passed > 0), "{what}: {passed:?}");
        let total = passed.iter().sum::<u64>() + rest;
        assert!(burst >= BURST, "{what}: {burst} at once");
        assert_eq!(counts(&rig, "rate")?.0, (burst + total) * units, "{what}: the counter of passed units");
        let is_right = total as f64 > 0.98 * least && (total as f64) < 1.02 * most;
        assert!(is_right, "{what}: {passed:?} and {rest} passed, not {least:.0} to {most:.0}");
    }
    Ok(())
}

/// Many limits that apply at once.
#[test]
fn row_31_ten_thousand_limits_apply_at_once() -> Result<()> {
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
