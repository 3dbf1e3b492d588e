//! `max_connections`: an instance has never more flows than that.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::Result;
use nlb::model::{ForwardMode, Health, Module, Texts};
use nlb_common::abi::Backend;
use nlb_common::flow::IdleTimes;

use crate::connection::{Connection, forwards, tcp};
use crate::packet::{ACK, FIN, Packet, RST, SYN, Transport, UdpChecksum};
use crate::random::Random;
use crate::rig::{
    Family, Outcome, Rig, XDP_DROP, XDP_REDIRECT, XDP_TX, families, load_config, module, source_port,
    test_run,
};

const MODES: [ForwardMode; 4] =
    [ForwardMode::Nat, ForwardMode::DsrL2, ForwardMode::DsrIpip, ForwardMode::Gue];

/// A module "m1" with a limit.
fn limited(mode: ForwardMode, limit: u32) -> Result<Rig> {
    let mut rig = Rig::new(mode)?;
    rig.module("m1").max_connections = limit;
    rig.apply()?;
    Ok(rig)
}

/// Adds a module whose addresses end with `host`.
fn add(rig: &mut Rig, name: &str, host: u8, change: impl FnOnce(&mut Module)) -> Result<()> {
    let mut added = module(ForwardMode::Nat, host);
    change(&mut added);
    for family in families() {
        let addr: IpAddr = match family.backend {
            IpAddr::V4(_) => [10, 0, 0, host].into(),
            IpAddr::V6(_) => [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)].into(),
        };
        rig.know(addr, family.source);
    }
    rig.desired.modules.insert(name.to_owned(), added.into());
    rig.apply()
}

fn syn(family: Family, sport: u16) -> Packet {
    family.syn().with(|p| p.sport = sport)
}

fn udp(family: Family, sport: u16) -> Packet {
    family.udp().with(|p| p.sport = sport)
}

/// Whether a packet was sent to a backend, as opposed to dropped because all are full.
fn is_taken(outcome: &Outcome) -> bool {
    let forwarded = outcome.counted.contains_key("send forward");
    if !forwarded {
        assert_eq!(outcome.action, XDP_DROP, "{:?}", outcome.counted);
        assert_eq!(outcome.counted, [("drop full".to_owned(), 1), ("full".to_owned(), 1)].into());
    }
    forwarded
}

fn takes(rig: &mut Rig, packet: &Packet) -> Result<bool> {
    Ok(is_taken(&rig.run(packet)?))
}

/// The flows that count against the limit of the only instance that has one.
fn counted(rig: &Rig) -> u32 {
    let [flows] = rig.counted()[..] else { panic!("one instance has a limit") };
    flows
}

/// The last byte of the address that a forwarded packet goes to.
fn host(frame: &[u8]) -> u8 {
    if frame[12..14] == [0x08, 0] { frame[33] } else { frame[53] }
}

#[test]
fn instances_have_no_more_flows_than_their_limit() -> Result<()> {
    for mode in MODES {
        let mut rig = limited(mode, 5)?;
        for family in families() {
            type Open = fn(Family, u16) -> Packet;
            for open in [syn as Open, udp as Open] {
                let before = rig.traffic(0)?.full;
                let taken: Vec<u16> = (40_000..40_020)
                    .filter_map(|port| {
                        takes(&mut rig, &open(family, port)).map(|taken| taken.then_some(port)).transpose()
                    })
                    .collect::<Result<_>>()?;
                assert_eq!(taken, (40_000..40_005).collect::<Vec<_>>(), "{mode:?}");
                assert_eq!((counted(&rig), rig.traffic(0)?.full - before), (5, 15));
                assert!(takes(&mut rig, &open(family, 40_002))?, "a flow that is open goes on");
                assert_eq!(rig.traffic(0)?.total().active_flows, 5);
                rig.lose_flows()?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_closed_connection_makes_room_at_once() -> Result<()> {
    let mut rig = limited(ForwardMode::Nat, 1)?;
    for family in families() {
        let connection = Connection::open(&mut rig, family, syn(family, 40_000))?;
        assert!(!takes(&mut rig, &syn(family, 40_001))?);
        connection.sends(&mut rig, FIN | ACK, 5000)?;
        assert!(!takes(&mut rig, &syn(family, 40_001))?, "the other half is open");
        connection.answers(&mut rig, FIN | ACK)?;
        assert!(takes(&mut rig, &syn(family, 40_001))?, "both halves are closed");
        connection.sends(&mut rig, ACK, 5001)?;
        assert_eq!(counted(&rig), 1, "the last ACK of the first changes nothing");

        rig.lose_flows()?;
        let connection = Connection::open(&mut rig, family, syn(family, 40_000))?;
        connection.answers(&mut rig, RST | ACK)?;
        assert!(takes(&mut rig, &syn(family, 40_001))?, "the module has reset the connection");

        // The module closes first.
        rig.lose_flows()?;
        let connection = Connection::open(&mut rig, family, syn(family, 40_000))?;
        connection.answers(&mut rig, FIN | ACK)?;
        connection.sends(&mut rig, FIN | ACK, 5000)?;
        assert!(takes(&mut rig, &syn(family, 40_001))?);
        rig.lose_flows()?;
    }
    Ok(())
}

/// A client's reset may be forged, so the flow counts until its idle time is over.
#[test]
fn a_clients_reset_makes_room_when_silence_follows() -> Result<()> {
    let load_config = load_config();
    for mode in [ForwardMode::Nat, ForwardMode::DsrL2] {
        let mut rig = limited(mode, 1)?;
        for family in families() {
            assert!(takes(&mut rig, &syn(family, 40_000))?);
            assert!(takes(&mut rig, &tcp(&syn(family, 40_000), ACK, 1001))?);
            assert!(takes(&mut rig, &tcp(&syn(family, 40_000), RST, 1001))?);
            let IdleTimes { closing, .. } = rig.idle_times(&load_config);
            rig.traffic(closing - 1)?;
            assert!(!takes(&mut rig, &syn(family, 40_001))?);
            assert!(takes(&mut rig, &tcp(&syn(family, 40_000), ACK, 1001))?, "it was forged");
            rig.traffic(closing + 2)?;
            assert!(!takes(&mut rig, &syn(family, 40_001))?);
            assert!(takes(&mut rig, &tcp(&syn(family, 40_000), RST, 1001))?);
            rig.traffic(closing + 2)?;
            assert!(takes(&mut rig, &syn(family, 40_001))?);
            assert_eq!(counted(&rig), 1);
            rig.lose_flows()?;
        }
    }
    Ok(())
}

#[test]
fn idle_flows_make_room() -> Result<()> {
    let load_config = load_config();
    for mode in [ForwardMode::Nat, ForwardMode::DsrL2] {
        let mut rig = limited(mode, 2)?;
        for family in families() {
            let IdleTimes { opening, closing, udp: idle, .. } = rig.idle_times(&load_config);
            assert!(takes(&mut rig, &syn(family, 40_000))? && takes(&mut rig, &udp(family, 40_001))?);
            assert!(!takes(&mut rig, &udp(family, 40_002))?);
            rig.traffic(opening.min(idle) + 2)?;
            assert_eq!(counted(&rig), 1);
            rig.traffic(opening.max(idle) + 2)?;
            assert_eq!(counted(&rig), 0);
            assert!(takes(&mut rig, &udp(family, 40_001))?, "the flow goes on after its idle time");
            assert_eq!(counted(&rig), 1, "and counts again");
            assert!(takes(&mut rig, &udp(family, 40_008))?);
            assert!(!takes(&mut rig, &tcp(&syn(family, 40_000), ACK, 1001))?, "there is no room to go on");
            rig.traffic(opening.max(idle) + 2)?;
            assert!(takes(&mut rig, &tcp(&syn(family, 40_000), ACK, 1001))?);
            if mode == ForwardMode::DsrL2 {
                // Of a connection with direct server return, the end shows only on the client's side.
                assert!(takes(&mut rig, &tcp(&syn(family, 40_004), ACK, 1))?);
                assert!(takes(&mut rig, &tcp(&syn(family, 40_004), FIN | ACK, 1))?);
                assert!(!takes(&mut rig, &syn(family, 40_005))?);
                rig.traffic(closing + 2)?;
                assert!(takes(&mut rig, &syn(family, 40_005))?);
            }
            rig.lose_flows()?;
        }
    }
    Ok(())
}

/// A client that comes again from the same port has left its former connection.
#[test]
fn the_same_client_port_takes_its_own_room_again() -> Result<()> {
    let mut rig = limited(ForwardMode::Nat, 1)?;
    for family in families() {
        let connection = Connection::open(&mut rig, family, syn(family, 40_000))?;
        connection.sends(&mut rig, RST, 1001)?;
        assert!(!takes(&mut rig, &syn(family, 40_001))?);
        assert!(takes(&mut rig, &tcp(&syn(family, 40_000), SYN, 70_000))?);
        assert_eq!(counted(&rig), 1);
        rig.lose_flows()?;
    }
    Ok(())
}

#[test]
fn flows_that_are_refused_or_unreachable_do_not_count() -> Result<()> {
    let mut rig = limited(ForwardMode::Nat, 3)?;
    rig.hops.clear();
    rig.apply()?;
    for family in families() {
        for port in 40_000..40_010 {
            let outcome = rig.run(&syn(family, port))?;
            assert!(!outcome.counted.contains_key("drop full"), "{:?}", outcome.counted);
        }
        assert_eq!(counted(&rig), 0);
    }
    Ok(())
}

#[test]
fn flows_of_a_full_instance_go_to_the_others() -> Result<()> {
    for family in families() {
        let mut rig = limited(ForwardMode::Nat, 2)?;
        add(&mut rig, "m2", 3, |m| m.weight = 300)?;
        add(&mut rig, "m3", 4, |_| {})?;
        let mut hosts = BTreeMap::<u8, u32>::new();
        for port in 40_000..41_000 {
            let outcome = rig.run(&syn(family, port))?;
            assert!(is_taken(&outcome));
            *hosts.entry(host(&outcome.frame)).or_default() += 1;
        }
        assert_eq!(hosts[&2], 2);
        // Weights 300 and 100: within 9 standard deviations.
        assert!((620..880).contains(&hosts[&3]), "{hosts:?}");
        assert_eq!(rig.traffic(0)?.full, 0);

        // One that has room is found, however small its share is.
        rig.module("m2").max_connections = 1;
        rig.module("m3").max_connections = hosts[&4] + 1;
        rig.module("m3").weight = 1;
        rig.module("m2").weight = 10_000;
        rig.apply()?;
        rig.traffic(0)?;
        let outcome = rig.run(&syn(family, 50_000))?;
        assert_eq!((is_taken(&outcome), host(&outcome.frame)), (true, 4));
        assert!(!takes(&mut rig, &syn(family, 50_001))?);
        // A CPU that has tried all members does not do so again at once.
        std::thread::sleep(std::time::Duration::from_millis(3));
        // Only a flow to m3 makes room.
        let last = Connection { family, syn: syn(family, 50_000), port: source_port(&outcome.frame) };
        last.sends(&mut rig, FIN | ACK, 5000)?;
        let request = family.translated(&last.syn, last.port);
        let mut fin = family.answer(&request, Transport::Tcp { flags: FIN | ACK, seq: 9000 });
        fin.src = backend(family, 4);
        let outcome = rig.run(&fin)?;
        assert_eq!(outcome.counted, [("send reply".to_owned(), 1)].into());
        assert!(takes(&mut rig, &syn(family, 50_001))?);
    }
    Ok(())
}

fn backend(family: Family, host: u8) -> IpAddr {
    match family.backend {
        IpAddr::V4(_) => [10, 0, 0, host].into(),
        IpAddr::V6(_) => [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)].into(),
    }
}

#[test]
fn routes_of_lower_priority_take_what_a_full_pool_cannot() -> Result<()> {
    for family in families() {
        let mut rig = limited(ForwardMode::Nat, 3)?;
        rig.route("m1", "tcp").priority = 20;
        add(&mut rig, "m2", 3, |m| m.max_connections = 4)?;
        rig.route("m2", "tcp").priority = 10;
        add(&mut rig, "m3", 4, |m| m.max_connections = 1)?;
        let mut hosts = Vec::new();
        for port in 40_000..40_008 {
            let outcome = rig.run(&syn(family, port))?;
            assert_eq!(outcome.action, XDP_REDIRECT, "{:?}", outcome.counted);
            hosts.push(host(&outcome.frame));
        }
        assert_eq!(hosts, [2, 2, 2, 3, 3, 3, 3, 4]);
        assert_eq!(rig.traffic(0)?.full, 5);
        assert!(!takes(&mut rig, &syn(family, 40_008))?);

        let first = Connection { family, syn: syn(family, 40_000), port: 0 };
        let outcome = rig.run(&tcp(&first.syn, FIN | ACK, 1001))?;
        let first = Connection { port: source_port(&outcome.frame), ..first };
        first.answers(&mut rig, FIN | ACK)?;
        let outcome = rig.run(&syn(family, 40_009))?;
        assert_eq!(host(&outcome.frame), 2, "the higher priority again");
    }
    Ok(())
}

#[test]
fn services_that_refuse_clients_refuse_those_of_a_full_pool() -> Result<()> {
    let mut rig = limited(ForwardMode::Nat, 1)?;
    rig.desired.reject = true;
    rig.apply()?;
    for family in families() {
        assert!(takes(&mut rig, &syn(family, 40_000))?);
        for packet in [syn(family, 40_001), udp(family, 40_001)] {
            let outcome = rig.run(&packet)?;
            assert_eq!(outcome.action, XDP_TX);
            assert_eq!(outcome.counted, [("send reject".to_owned(), 1), ("full".to_owned(), 1)].into());
        }
        rig.lose_flows()?;
    }
    Ok(())
}

#[test]
fn a_limit_that_is_set_or_changed_leaves_open_flows_alone() -> Result<()> {
    for family in families() {
        let mut rig = Rig::new(ForwardMode::Nat)?;
        for port in 40_000..40_004 {
            forwards(&mut rig, &syn(family, port))?;
        }
        rig.module("m1").max_connections = 3;
        rig.apply()?;
        assert_eq!(counted(&rig), 4, "flows from before count, too");
        for port in 40_000..40_004 {
            forwards(&mut rig, &tcp(&syn(family, port), ACK, 1001))?;
        }
        assert!(!takes(&mut rig, &syn(family, 40_010))?);
        rig.module("m1").max_connections = 5;
        rig.apply()?;
        assert!(takes(&mut rig, &syn(family, 40_010))? && !takes(&mut rig, &syn(family, 40_011))?);
        rig.module("m1").max_connections = 0;
        rig.apply()?;
        assert!(takes(&mut rig, &syn(family, 40_011))? && counted(&rig) == 6);
        rig.module("m1").max_connections = 6;
        rig.apply()?;
        assert!(!takes(&mut rig, &syn(family, 40_012))?, "without a limit they were counted, too");
    }
    Ok(())
}

/// An instance that registers with another address has the room of its former flows again when they come.
#[test]
fn flows_of_a_former_address_are_not_in_their_own_way() -> Result<()> {
    for family in families() {
        let mut rig = limited(ForwardMode::Nat, 4)?;
        for port in 40_000..40_004 {
            assert!(takes(&mut rig, &udp(family, port))?);
        }
        rig.know(backend(family, 9), family.source);
        rig.module("m1").data = module(ForwardMode::Nat, 9).data;
        rig.apply()?;
        for port in 40_000..40_004 {
            let outcome = rig.run(&udp(family, port))?;
            assert_eq!((is_taken(&outcome), host(&outcome.frame)), (true, 9));
        }
        assert_eq!(counted(&rig), 4);
        assert!(!takes(&mut rig, &udp(family, 40_004))?);
    }
    Ok(())
}

/// While an instance moves to another port, packets find the old one or the new one.
#[test]
fn no_packet_is_dropped_while_an_instance_with_a_limit_moves() -> Result<()> {
    let family = families()[0];
    let mut rig = limited(ForwardMode::Nat, 1_000_000)?;
    for round in 0..20 {
        let port = 9000 + round;
        for id in ["tcp", "udp"] {
            rig.route("m1", id).listen_port = Some(port);
        }
        let mut sport = 1024 + round * 1000;
        rig.apply_under(|program| {
            sport = sport.wrapping_add(1).max(1024);
            let (action, _) = test_run(program, &udp(family, sport).bytes())?;
            anyhow::ensure!(action == XDP_REDIRECT, "a packet was dropped in round {round}");
            Ok(())
        })?;
        rig.lose_flows()?;
    }
    Ok(())
}

/// Open UDP flows leave a draining instance for one with room, and stay if there is none.
#[test]
fn udp_flows_stay_at_a_draining_instance_while_the_others_are_full() -> Result<()> {
    for family in families() {
        for kind in [Health::Stopping, Health::Unhealthy] {
            let mut rig = limited(ForwardMode::Nat, 0)?;
            for port in 40_000..40_010 {
                assert!(takes(&mut rig, &udp(family, port))?);
            }
            add(&mut rig, "m2", 3, |m| m.max_connections = 3)?;
            rig.module("m1").health = kind;
            rig.apply()?;
            let mut hosts = BTreeMap::<u8, u32>::new();
            for port in (40_000..40_010).chain(40_000..40_010) {
                let outcome = rig.run(&udp(family, port))?;
                assert_eq!(outcome.action, XDP_REDIRECT, "{:?}", outcome.counted);
                *hosts.entry(host(&outcome.frame)).or_default() += 1;
            }
            assert_eq!(hosts, [(2, 14), (3, 6)].into());
            let outcome = rig.run(&udp(family, 50_000))?;
            assert!(!is_taken(&outcome), "a new flow finds no room");
        }
    }
    Ok(())
}

/// One bucket of four entries, in which flows of an instance with a limit and of one without displace each
/// other.
#[test]
fn displaced_flows_do_not_count() -> Result<()> {
    let mut small = load_config();
    small.flows.max = 4;
    for mode in [ForwardMode::Nat, ForwardMode::DsrL2] {
        for family in families() {
            let mut rig = Rig::sized(mode, &small)?;
            rig.module("m1").max_connections = 3;
            add(&mut rig, "m2", 3, |m| m.mode = mode)?;
            for port in 40_000..40_100 {
                let outcome = rig.run(&syn(family, port))?;
                assert_eq!(counted(&rig), recorded(&rig), "after port {port}: {:?}", outcome.counted);
                rig.age_flows(1);
            }
            let taken = rig.traffic(0)?.instance("m1").new_flows;
            assert!(taken > 3, "{mode:?}: displaced flows make room: {taken}");
        }
    }
    Ok(())
}

/// The flows in the table that count.
fn recorded(rig: &Rig) -> u32 {
    let entries = rig.readings().flows.all().iter().flat_map(|bucket| &bucket.entries);
    let counted = entries.filter_map(|entry| entry.snapshot()).filter(|(_, state)| state.is_counted());
    counted.map(|(key, _)| assert!(key.is_forward())).count() as u32
}

/// All CPUs open connections, and close some, as fast as they can.
#[test]
fn the_limit_is_exact_while_all_cpus_open_flows() -> Result<()> {
    const LIMIT: u32 = 7;
    const ROUNDS: u16 = 3000;
    for mode in [ForwardMode::Nat, ForwardMode::DsrL2] {
        let mut rig = limited(mode, LIMIT)?;
        let family = families()[0];
        let capacities = rig.readings().capacities.clone();
        let id = usize::from(*rig.image().rows.capacities.keys().next().expect("one instance has a limit"));
        let (over, number) = (AtomicU32::new(0), AtomicU32::new(0));
        let done = AtomicBool::new(false);
        let work = |program: &aya::programs::Xdp| {
            let cpu = number.fetch_add(1, Ordering::Relaxed) as u16;
            let mut open: Vec<(u16, u16)> = Vec::new();
            let mut taken = 0_u32;
            for round in 0..ROUNDS {
                let port = 1024 + cpu * ROUNDS + round;
                let (action, frame) = test_run(program, &syn(family, port).bytes())?;
                if action == XDP_REDIRECT {
                    taken += 1;
                    open.push((port, source_port(&frame)));
                }
                over.fetch_max(capacities.all()[id].count().flows(), Ordering::Relaxed);
                if mode == ForwardMode::Nat
                    && action == XDP_DROP
                    && let Some((port, translated)) = open.pop()
                {
                    test_run(program, &tcp(&syn(family, port), FIN | ACK, 1001).bytes())?;
                    let request = family.translated(&syn(family, port), translated);
                    let fin = family.answer(&request, Transport::Tcp { flags: FIN | ACK, seq: 9000 });
                    test_run(program, &fin.bytes())?;
                }
            }
            done.store(true, Ordering::Relaxed);
            Ok(taken)
        };
        let taken: u32 = rig.on_each_cpu(work)?.into_iter().sum();
        assert_eq!(over.into_inner(), LIMIT, "the most at a time");
        match mode {
            ForwardMode::Nat => assert!(taken > 2 * LIMIT, "closed connections made room: {taken}"),
            _ => assert_eq!(taken, LIMIT),
        }
        assert_eq!(counted(&rig), recorded(&rig));
    }
    Ok(())
}

/// Whatever packets come and however modules change, the count is what the table has, and no new flow is
/// taken beyond the limit.
#[test]
fn counts_agree_with_the_table_after_any_packets() -> Result<()> {
    let seed = std::env::var("NLB_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    for (seed, mode) in (seed..).zip([ForwardMode::Nat, ForwardMode::DsrL2, ForwardMode::Nat]) {
        let mut small = load_config();
        small.flows.max = 32;
        let mut rig = Rig::sized(mode, &small)?;
        rig.module("m1").max_connections = 6;
        add(&mut rig, "m2", 3, |m| m.mode = mode)?;
        let mut random = Random::new(seed);
        for step in 0..4000 {
            let family = random.pick(&families());
            let port = 40_000 + random.below(40) as u16;
            let flags = random.pick(&[ACK, FIN | ACK, RST, ACK]);
            let mut before = counted(&rig);
            match random.below(40) {
                0..12 => drop(rig.run(&syn(family, port))?),
                12..18 => drop(rig.run(&udp(family, port))?),
                18..26 => drop(rig.run(&tcp(&syn(family, port), flags, 1001))?),
                26..34 => {
                    let request = family.translated(&syn(family, port), random.pick(&ports(&rig)));
                    let mut answer = family.answer(&request, Transport::Tcp { flags, seq: 9000 });
                    answer.src = backend(family, random.pick(&[2, 3]));
                    drop(rig.run(&answer)?);
                }
                34..36 => {
                    let request = family.translated(&udp(family, port), random.pick(&ports(&rig)));
                    drop(
                        rig.run(
                            &family.answer(&request, Transport::Udp { checksum: UdpChecksum::Computed }),
                        )?,
                    );
                }
                36 => rig.age_flows(random.below(200) as u16),
                37 => {
                    // Flows count again whose module goes on after their idle time, beyond the limit, too.
                    rig.traffic(0)?;
                    before = u32::MAX;
                }
                38 if random.once_in(4) => {
                    let data = module(mode, random.pick(&[2, 4])).data;
                    rig.module("m1").data = data;
                    let addr = rig.module("m1").data.v4.expect("both families").into();
                    rig.know(addr, families()[0].source);
                    rig.apply()?;
                }
                38 => {
                    rig.module("m1").max_connections = random.pick(&[0, 3, 6, 9]);
                    rig.apply()?;
                    // Flows from before count from now on.
                    before = u32::MAX;
                }
                _ => {
                    rig.module("m1").health = random.pick(&[Health::Healthy, Health::Stopping]);
                    rig.apply()?;
                }
            }
            let limit = rig.module("m1").max_connections;
            assert!(
                counted(&rig) <= before.max(if limit == 0 { u32::MAX } else { limit })
                    || rig.image().rows.capacities.is_empty(),
                "seed {seed}, step {step}"
            );
            assert_eq!(counted(&rig), recorded_of_limited(&rig), "seed {seed}, step {step}");
        }
    }
    Ok(())
}

/// With `udp_rebalance` a UDP flow follows the Maglev table, unless its new backend is full.
#[test]
fn udp_flows_move_where_a_route_wants_it() -> Result<()> {
    for mode in [ForwardMode::Nat, ForwardMode::Gue] {
        let mut rig = Rig::new(mode)?;
        add(&mut rig, "m2", 3, |m| m.mode = mode)?;
        for family in families() {
            for wanted in [false, true] {
                let value = if wanted { "true" } else { "false" };
                let metadata: Texts = [("udp_rebalance".to_owned(), value.to_owned())].into_iter().collect();
                for name in ["m1", "m2"] {
                    rig.route(name, "udp").metadata = metadata.clone();
                }
                rig.module("m2").weight = 0;
                rig.module("m2").max_connections = 0;
                rig.apply()?;
                let ports = 40_000..40_100;
                for port in ports.clone() {
                    forwards(&mut rig, &udp(family, port))?;
                    forwards(&mut rig, &syn(family, port))?;
                }
                // The scale-out: about half of the slots are the new module's.
                rig.module("m2").weight = 100;
                rig.module("m2").max_connections = 20;
                rig.apply()?;
                for _ in 0..2 {
                    let start = rig.traffic(0)?.instance("m2").packets;
                    for port in ports.clone() {
                        forwards(&mut rig, &tcp(&syn(family, port), ACK, 1001))?;
                    }
                    assert_eq!(rig.traffic(0)?.instance("m2").packets, start, "connections stay");
                    for port in ports.clone() {
                        forwards(&mut rig, &udp(family, port))?;
                    }
                    let moved = rig.traffic(0)?.instance("m2").packets - start;
                    assert_eq!(moved, if wanted { 20 } else { 0 }, "{mode:?}: as many as it takes");
                }
                assert_eq!(rig.traffic(0)?.total().active_flows, 200);
                // When it leaves, its flows go back.
                rig.module("m2").weight = 0;
                rig.apply()?;
                let start = rig.traffic(0)?.instance("m2").packets;
                for port in ports.clone() {
                    forwards(&mut rig, &udp(family, port))?;
                }
                assert_eq!(rig.traffic(0)?.instance("m2").packets, start);
                rig.lose_flows()?;
            }
        }
    }
    Ok(())
}

/// Source ports that the backends see, and one that nobody has.
fn ports(rig: &Rig) -> Vec<u16> {
    let entries = rig.readings().flows.all().iter().flat_map(|bucket| &bucket.entries);
    let forward = entries.filter_map(|entry| entry.snapshot()).filter(|(key, _)| key.is_forward());
    forward.map(|(key, state)| state.translated_port(&key).get()).chain([1]).collect()
}

/// Flows in the table that count, of backends that are there or were removed from an instance that is.
fn recorded_of_limited(rig: &Rig) -> u32 {
    let entries = rig.readings().flows.all().iter().flat_map(|bucket| &bucket.entries);
    let counted = entries.filter_map(|entry| entry.snapshot()).filter(|(_, state)| state.is_counted());
    let rows = &rig.image().rows.backends;
    let of = |id: u16, generation: u8| -> Option<&Backend> {
        rows.get(&id).filter(|row| row.generation == generation && row.capacity != 0)
    };
    counted.filter(|(_, state)| of(state.backend(), state.generation()).is_some()).count() as u32
}
