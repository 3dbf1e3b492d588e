//! The NLB's metrics of TCP, compared with the segments that clients and modules sent. Connections close, are
//! reset by either side, stay open, and lose packets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nlb_proto::MetricDataPoint;
use nlb_testkit::lab::{Host, Lab};
use nlb_testkit::process::MAX_WAIT;
use nlb_testkit::programs::ECHO_PORT;
use tokio::net::UdpSocket;

use crate::capture::{Capture, Segment};
use crate::clients::{Connection, on};
use crate::fleet::{Fleet, Mode, vips};
use crate::metrics::sum;

const FIRST_PORT: u16 = 20_000;
/// The number of connections to each VIP.
const CONNECTIONS: u16 = 40;
/// The length of a line of many segments.
const LONG_LINE: usize = 100_000;
const DOOMED: u16 = 7;

/// The expected values by the ends of metrics' names.
type Expected = BTreeMap<&'static str, u64>;

/// A connection, without its segments.
#[derive(Clone, Debug)]
struct Flow {
    vip: SocketAddr,
    module: String,
    is_open: bool,
}

/// The flows of a test by the client's address, with the client's ends of those that are open.
#[derive(Default)]
struct Traffic {
    flows: BTreeMap<(IpAddr, u16), Flow>,
    held: Vec<Connection>,
}

/// Opens connections that close, are reset, or stay open.
async fn talk(fleet: &Fleet, mode: Mode) -> Result<Traffic> {
    let client = &fleet.lab.clients[0];
    let mut traffic = Traffic::default();
    for vip in vips() {
        let own: IpAddr = if vip.is_ipv4() { client.v4.into() } else { client.v6.into() };
        for n in 0..CONNECTIONS {
            let from = SocketAddr::new(own, FIRST_PORT + n);
            let mut connection = Connection::open_from(Some(from), vip).await?;
            let answered = connection.request().await;
            let mut flow = Flow { vip, module: "broken".to_owned(), is_open: false };
            if let Ok(module) = answered {
                flow.module = module;
                match n % 4 {
                    0 => drop(connection),
                    1 => connection.reset()?,
                    _ => {
                        flow.is_open = true;
                        traffic.held.push(connection);
                    }
                }
            } else if mode == Mode::DsrL2 {
                // A reset that does not pass the NLB.
                flow.is_open = true;
            }
            traffic.flows.insert((own, from.port()), flow);
        }
    }
    for connection in &mut traffic.held {
        connection.echo(&"x".repeat(LONG_LINE)).await.context("a long line")?;
    }
    Ok(traffic)
}

/// Drops modules' answers until TCP of each of half the connections has retransmitted.
async fn lose_packets(
    fleet: &Fleet,
    mode: Mode,
    held: &mut [Connection],
    capture: &Capture<'_>,
) -> Result<()> {
    let peer = if mode == Mode::Nat { &fleet.lab.nlb } else { &fleet.lab.clients[0] };
    let routes = |verb: &str, module: &Host| -> Result<()> {
        for address in [format!("{}/32", peer.v4), format!("{}/128", peer.v6)] {
            module.netns.ip(&["route", verb, "blackhole", &address])?;
        }
        Ok(())
    };
    fleet.lab.modules.iter().try_for_each(|module| routes("add", module))?;
    let (first, rest) = held.split_at_mut(held.len() / 2);
    let before = capture.retransmitted()?;
    for connection in first.iter_mut() {
        connection.send("who?").await.context("sending while answers are lost")?;
    }
    let started = Instant::now();
    while capture.retransmitted()? < before + first.len() as u64 {
        ensure!(started.elapsed() < MAX_WAIT, "not every connection has sent again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fleet.lab.modules.iter().try_for_each(|module| routes("del", module))?;
    for connection in first {
        connection.answer("who?").await?;
    }
    for connection in rest {
        connection.request().await?;
    }
    Ok(())
}

/// The expected metrics of those flows.
fn expected<'a>(
    flows: impl Iterator<Item = (&'a (IpAddr, u16), &'a Flow)>,
    sent: &[Segment],
    replies: impl Iterator<Item = &'a Segment>,
) -> Expected {
    let flows: BTreeMap<_, _> = flows.collect();
    let open = flows.values().filter(|flow| flow.is_open).count() as u64;
    let sent: Vec<&Segment> = sent.iter().filter(|segment| flows.contains_key(&segment.src)).collect();
    let replies: Vec<&Segment> = replies.collect();
    let bytes = |segments: &[&Segment]| segments.iter().map(|segment| segment.bytes).sum();
    let new = flows.len() as u64;
    [
        ("new_flows_total", new),
        ("closed_flows_total", new - open),
        ("active_flows", open),
        ("active_tcp_flows", open),
        ("packets_total", sent.len() as u64),
        ("bytes_total", bytes(&sent)),
        ("reply_packets_total", replies.len() as u64),
        ("reply_bytes_total", bytes(&replies)),
        ("resets_total", replies.iter().filter(|segment| segment.reset).count() as u64),
    ]
    .into()
}

fn differences(
    metrics: &[MetricDataPoint],
    scope: &str,
    labels: &[(&str, &str)],
    wanted: &Expected,
) -> Vec<String> {
    let of = |name: &&str| sum(metrics, &format!("nlb_{scope}_{name}"), labels);
    let wrong = wanted.iter().filter(|(name, value)| of(name) != **value);
    wrong
        .map(|(name, value)| format!("{scope} {labels:?} {name}: {} counted, {value} sent", of(name)))
        .collect()
}

/// Sends datagrams that the NLB has to drop, and some to a port without a service.
async fn send_doomed() -> Result<()> {
    let [vip, _] = vips();
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.set_ttl(1)?;
    for _ in 0..DOOMED {
        socket.send_to(b"doomed", vip).await?;
    }
    socket.set_ttl(64)?;
    for _ in 0..DOOMED + 1 {
        socket.send_to(b"no service", SocketAddr::new(vip.ip(), vip.port() + 1)).await?;
    }
    Ok(())
}

fn compare(mode: Mode) -> Result<()> {
    let common = ["--heartbeat", "1"];
    let serve = ["--idle-closing", "1s", "--max-reset-percent", "0"];
    let lab = Lab::one_arm(1, 3)?;
    let version = |name| [&common[..], &["--version", name]].concat();
    let mut fleet = Fleet::start_with(lab, mode, &[100, 100], &version("v1"), &serve)?;
    fleet.prepare(2, mode)?;
    fleet.add("broken", 2, mode, 50, &[&version("v2")[..], &["--broken"]].concat())?;
    fleet.wait_for(3)?;

    let client = &fleet.lab.clients[0];
    let mut client_capture = Capture::start(client)?;
    let mut answers = fleet.lab.modules.iter().map(Capture::start).collect::<Result<Vec<_>>>()?;
    let traffic = on(client, || async {
        let mut traffic = talk(&fleet, mode).await?;
        lose_packets(&fleet, mode, &mut traffic.held, &client_capture).await?;
        send_doomed().await?;
        Ok(traffic)
    })?;
    ensure!(traffic.flows.values().any(|flow| flow.module == "broken"), "nothing was reset");
    ensure!(client_capture.retransmitted()? > 0, "nothing was sent again");

    let deadline = Instant::now() + MAX_WAIT;
    loop {
        let metrics = fleet.metrics()?;
        client_capture.read()?;
        answers.iter_mut().try_for_each(Capture::read)?;
        let wrong = judge(&metrics, &traffic, &client_capture, &answers, mode);
        if wrong.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{mode:?}: {wrong:#?}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The differences between the NLB's metrics and the captured segments.
fn judge(
    metrics: &[MetricDataPoint],
    traffic: &Traffic,
    client_capture: &Capture,
    answers: &[Capture],
    mode: Mode,
) -> Vec<String> {
    // Replies cross the NLB with NAT only. They have translated ports, so they are matched by family and
    // module.
    let replies = |module: Option<&str>, vip: Option<SocketAddr>| -> Vec<Segment> {
        let of_module = ["m0", "m1", "broken"].into_iter().zip(answers);
        let of_module = of_module.filter(|(name, _)| module.is_none_or(|wanted| wanted == *name));
        let seen = of_module.flat_map(|(_, capture)| &capture.segments).filter(|segment| {
            mode == Mode::Nat
                && segment.src.1 == ECHO_PORT
                && vip.is_none_or(|vip| vip.is_ipv4() == segment.src.0.is_ipv4())
        });
        seen.cloned().collect()
    };
    let check = |scope: &str, labels: &[(&str, &str)], module: Option<&str>, vip: Option<SocketAddr>| {
        let fits = |flow: &Flow| {
            module.is_none_or(|module| flow.module == module) && vip.is_none_or(|vip| flow.vip == vip)
        };
        let flows = traffic.flows.iter().filter(|(_, flow)| fits(flow));
        let wanted = expected(flows, &client_capture.segments, replies(module, vip).iter());
        differences(metrics, scope, labels, &wanted)
    };
    let mut wrong = check("forwarded", &[], None, None);
    for module in ["m0", "m1", "broken"] {
        wrong.extend(check("instance", &[("instance_id", module)], Some(module), None));
        for vip in vips() {
            let route = format!("echo-protocol_tcp-{}-{}", vip.ip(), vip.port());
            let labels = [("instance_id", module), ("route_id", route.as_str())];
            wrong.extend(check("backend", &labels, Some(module), Some(vip)));
        }
    }
    for vip in vips() {
        let route = format!("echo-protocol_tcp-{}-{}", vip.ip(), vip.port());
        wrong.extend(check("backend", &[("route_id", &route)], None, Some(vip)));
    }
    wrong.extend(check("version", &[("version", "v2")], Some("broken"), None));
    let (sent, replied) = (
        client_capture.segments.iter().filter(|s| traffic.flows.contains_key(&s.src)).count(),
        replies(None, None).len(),
    );
    for (verdict, reason, packets) in [
        ("send", "forward", sent as u64),
        ("send", "reply", replied as u64),
        ("send", "ttl_exceeded", DOOMED.into()),
        ("pass", "closed_port", u64::from(DOOMED) + 1),
    ] {
        let counted = sum(metrics, "nlb_packets_total", &[("verdict", verdict), ("reason", reason)]);
        if counted != packets {
            wrong.push(format!("{verdict} {reason}: {counted} counted, {packets} sent"));
        }
    }
    wrong
}

#[test]
fn tcp_through_nat_is_counted_as_it_was_sent() -> Result<()> {
    compare(Mode::Nat)
}

#[test]
fn tcp_with_direct_server_return_is_counted_as_it_was_sent() -> Result<()> {
    compare(Mode::DsrL2)
}
