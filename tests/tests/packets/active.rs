//! Which flows of the real flow table the daemon's collector counts as active.

use std::time::Duration;

use anyhow::Result;
use nlb::model::traffic::Counts;
use nlb::model::{ForwardMode, L4};
use nlb_common::flow::IdleTimes;
use nlb_common::hash;
use nlb_common::net::{Addr, Be16};

use crate::connection::{Connection, forwards, tcp};
use crate::packet::{ACK, FIN, Packet, RST, Transport, UdpChecksum};
use crate::rig::{Family, Rig, families, load_config};

/// New, closed and active flows.
fn flows(rig: &mut Rig, later: u16) -> Result<(u64, u64, u64)> {
    let traffic = rig.traffic(later)?;
    let Counts { new_flows, closed_flows, active_flows, .. } = traffic.total();
    assert_eq!(traffic.service_flows.values().sum::<u64>(), active_flows, "the same flows, by service");
    Ok((new_flows, closed_flows, active_flows))
}

fn segment(packet: &Packet, flags: u8) -> Packet {
    tcp(packet, flags, 5000)
}

fn open(rig: &mut Rig, family: Family, sport: u16) -> Result<Connection> {
    Connection::open(rig, family, family.syn().with(|p| p.sport = sport))
}

#[test]
fn connection_is_active_from_its_first_to_its_last_packet() -> Result<()> {
    for family in families() {
        let mut rig = Rig::new(ForwardMode::Nat)?;
        let connection = open(&mut rig, family, 40_000)?;
        assert_eq!(flows(&mut rig, 0)?, (1, 0, 1));
        connection.sends(&mut rig, FIN | ACK, 5000)?;
        assert_eq!(flows(&mut rig, 0)?, (1, 0, 1), "the module's half is still open");
        connection.answers(&mut rig, FIN | ACK)?;
        assert_eq!(flows(&mut rig, 0)?, (1, 1, 0));
        connection.sends(&mut rig, ACK, 5000)?;
        assert_eq!(flows(&mut rig, 0)?, (1, 1, 0), "the last ACK does not bring it back");

        let again = open(&mut rig, family, 40_000)?;
        assert_eq!(flows(&mut rig, 0)?, (2, 1, 1), "the same ports again are another flow");
        again.answers(&mut rig, RST | ACK)?;
        assert_eq!(flows(&mut rig, 0)?, (2, 2, 0));
        assert_eq!(rig.traffic(0)?.total().resets, 1);

        let forged = open(&mut rig, family, 40_001)?;
        forged.sends(&mut rig, RST, 5000)?;
        assert_eq!(flows(&mut rig, 0)?, (3, 3, 0));
        forged.sends(&mut rig, ACK, 5000)?;
        assert_eq!(flows(&mut rig, 0)?.2, 1, "an ACK after the reset makes the flow active");
    }
    Ok(())
}

#[test]
fn late_reset_is_not_active_and_late_fin_expires() -> Result<()> {
    for family in families() {
        let load_config = load_config();
        let mut rig = Rig::sized(ForwardMode::Nat, &load_config)?;
        let IdleTimes { opening, .. } = rig.idle_times(&load_config);
        forwards(&mut rig, &segment(&family.syn(), RST))?;
        assert_eq!(flows(&mut rig, 0)?, (1, 1, 0));
        forwards(&mut rig, &segment(&family.syn().with(|p| p.sport += 1), FIN | ACK))?;
        assert_eq!(flows(&mut rig, 0)?, (2, 1, 1));
        assert_eq!(flows(&mut rig, opening + 2)?, (2, 2, 0));
    }
    Ok(())
}

#[test]
fn flows_are_active_until_their_idle_time_ends() -> Result<()> {
    for family in families() {
        let load_config = load_config();
        let idle = Rig::sized(ForwardMode::Nat, &load_config)?.idle_times(&load_config);
        type Story = fn(&mut Rig, Family) -> Result<()>;
        let stories: [(&str, u16, Story); 6] = [
            ("opening", idle.opening, |rig, family| forwards(rig, &family.syn()).map(drop)),
            ("established", idle.established, |rig, family| open(rig, family, 40_000).map(drop)),
            ("half closed by the client", idle.established, |rig, family| {
                open(rig, family, 40_000)?.sends(rig, FIN | ACK, 5000)
            }),
            ("half closed by the backend", idle.established, |rig, family| {
                open(rig, family, 40_000)?.answers(rig, FIN | ACK)
            }),
            ("one datagram", idle.udp, |rig, family| forwards(rig, &family.udp()).map(drop)),
            ("datagrams both ways", idle.udp, |rig, family| {
                let port = forwards(rig, &family.udp())?;
                let request = family.translated(&family.udp(), port);
                let answer = Transport::Udp { checksum: UdpChecksum::Computed };
                forwards(rig, &family.answer(&request, answer)).map(drop)
            }),
        ];
        for (what, limit, story) in stories {
            let mut rig = Rig::sized(ForwardMode::Nat, &load_config)?;
            story(&mut rig, family)?;
            // The clock may tick in between.
            assert_eq!(flows(&mut rig, limit - 1)?, (1, 0, 1), "{what}");
            let tcp = rig.traffic(0)?.total().active_tcp_flows;
            assert_eq!(tcp, u64::from(!what.contains("datagram")), "{what}");
            assert_eq!(flows(&mut rig, limit + 1)?, (1, 1, 0), "{what}");
            assert_eq!(
                flows(&mut rig, 0)?,
                (1, 1, 0),
                "{what}: an earlier time does not make the flow active"
            );
        }
    }
    Ok(())
}

/// The NLB sees only the client's half then.
#[test]
fn with_direct_server_return_the_clients_fin_ends_a_flow() -> Result<()> {
    for family in families() {
        let load_config = load_config();
        let mut rig = Rig::sized(ForwardMode::DsrL2, &load_config)?;
        let IdleTimes { closing, established, .. } = rig.idle_times(&load_config);
        for (flags, limit) in [(ACK, established), (FIN | ACK, closing)] {
            forwards(&mut rig, &family.syn())?;
            forwards(&mut rig, &segment(&family.syn(), flags))?;
            assert_eq!(flows(&mut rig, limit - 1)?.2, 1);
            assert_eq!(flows(&mut rig, limit + 1)?.2, 0);
        }
    }
    Ok(())
}

#[test]
fn evicted_opening_flows_are_not_active() -> Result<()> {
    let mut small = load_config();
    small.flows.max = 4;
    assert_eq!(small.flow_buckets(), 1, "all flows share one bucket of four");
    for family in families() {
        for l4 in [L4::Tcp, L4::Udp] {
            let first = if l4 == L4::Tcp { family.syn() } else { family.udp() };
            let opens = |rig: &mut Rig, n: u16| forwards(rig, &first.with(|p| p.sport = 20_000 + n));
            // Repeats this if it took so long that the first flow may be evicted.
            let mut rig = loop {
                let mut rig = Rig::sized(ForwardMode::DsrL2, &small)?;
                let begun = rig.jiffies()?;
                (0..4).try_for_each(|n| opens(&mut rig, n).map(drop))?;
                let four = flows(&mut rig, 0)?;
                opens(&mut rig, 4)?;
                if rig.between(begun, rig.jiffies()?) < Duration::from_millis(500) {
                    assert_eq!(four, (4, 0, 4));
                    break rig;
                }
            };
            assert_eq!(flows(&mut rig, 0)?, (4, 0, 4), "{l4}: all are too young to be evicted");
            // Flows that are still opening may be evicted after two ticks, and the program looks for room in
            // a full bucket once a tick.
            rig.age_flows(2);
            rig.wait_ticks(1)?;
            (4..7).try_for_each(|n| opens(&mut rig, n).map(drop))?;
            assert_eq!(flows(&mut rig, 0)?, (7, 3, 4), "{l4}");
            let unrecorded = rig.traffic(0)?.unrecorded;
            assert_eq!(unrecorded, 1, "{l4}: the fifth, when there was no room");
        }
    }
    Ok(())
}

#[test]
fn established_flows_evicted_by_nat_are_not_active() -> Result<()> {
    let mut small = load_config();
    small.flows.max = 4096;
    for family in families() {
        let mut rig = Rig::sized(ForwardMode::Nat, &small)?;
        let in_first_bucket = |sport: &u16| {
            let [client, vip] = [family.client, family.vip].map(Addr::from);
            let hash = hash::flow(client, vip, Be16::new(*sport), Be16::new(80), L4::Tcp as u8);
            hash as u32 & (small.flow_buckets() - 1) == 0
        };
        for (n, sport) in (1024..u16::MAX).filter(in_first_bucket).take(9).enumerate() {
            open(&mut rig, family, sport)?;
            let new = n as u64 + 1;
            // All of them are in one bucket of four.
            assert_eq!(flows(&mut rig, 0)?, (new, new.saturating_sub(4), new.min(4)));
        }
    }
    Ok(())
}

#[test]
fn backend_with_a_reused_id_starts_counting_at_zero() -> Result<()> {
    let mut small = load_config();
    // The rig's module has four backends: two routes in two families.
    small.limits.backends = 4;
    for family in families() {
        let mut rig = Rig::sized(ForwardMode::DsrL2, &small)?;
        for round in 0..3 {
            forwards(&mut rig, &family.syn())?;
            forwards(&mut rig, &family.udp())?;
            assert_eq!(flows(&mut rig, 0)?, (2, 0, 2), "round {round}");
            let module = rig.desired.modules.remove("m1").expect("the rig's module");
            rig.apply()?;
            assert_eq!(flows(&mut rig, 0)?, (2, 2, 0), "what it counted last");
            rig.desired.modules.insert("m1".to_owned(), module);
            rig.apply()?;
        }
    }
    Ok(())
}

/// What a backend has counted since the last reading is not lost when it goes.
#[test]
fn last_counts_of_a_removed_backend_are_published() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    let [family, _] = families();
    forwards(&mut rig, &family.syn())?;
    let new_flows = |rig: &mut Rig| Ok::<_, anyhow::Error>(rig.traffic(0)?.instance("m1").new_flows);
    assert_eq!(new_flows(&mut rig)?, 1);
    for sport in 41_000..41_040 {
        forwards(&mut rig, &family.syn().with(|p| p.sport = sport))?;
    }
    rig.desired.modules.remove("m1");
    rig.apply()?;
    for _ in 0..5 {
        let traffic = rig.traffic(0)?;
        let counts = traffic.instance("m1");
        assert_eq!((counts.new_flows, counts.closed_flows, counts.active_flows), (41, 41, 0));
    }
    assert_eq!(new_flows(&mut rig)?, 0, "whoever reads them once a second has seen them");
    Ok(())
}
