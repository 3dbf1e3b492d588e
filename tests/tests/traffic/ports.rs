//! Source ports of translated connections, with real servers: half-closed connections, servers in TIME_WAIT,
//! several source addresses, and the ports of the host's own connections.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nlb_testkit::lab::{Host, Lab};
use nlb_testkit::process::MAX_WAIT;

use crate::fleet::{Fleet, Mode, PORT, vips};
use crate::stacked::refusal;

const LISTEN_PORT: u16 = 8081;

/// A daemon with these settings, and a module that registers and serves nothing yet.
fn fleet(clients: usize, serve: &[&str]) -> Result<Fleet> {
    let mut fleet = Fleet::for_foreign_modules_with(Lab::one_arm(clients, 1)?, serve)?;
    fleet.add_foreign("server", 0, Mode::Nat, (PORT, LISTEN_PORT), &[])?;
    fleet.wait_for(1)?;
    Ok(fleet)
}

fn listen(module: &Host) -> Result<TcpListener> {
    Ok(module.netns.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, LISTEN_PORT)))??)
}

fn connect(client: &Host, to: SocketAddr) -> Result<TcpStream> {
    let stream = client.netns.run(|| TcpStream::connect(to))??;
    stream.set_read_timeout(Some(MAX_WAIT))?;
    Ok(stream)
}

/// Answers a client that has closed its half with what it sent: one that sent "wait" after a word from the
/// test.
fn answer(mut stream: TcpStream, waiting: &Receiver<()>) -> Option<()> {
    let mut request = String::new();
    stream.read_to_string(&mut request).ok()?;
    if request == "wait" {
        waiting.recv().ok()?;
    }
    stream.write_all(request.as_bytes()).ok()
}

/// The client half-closes and waits for longer than the closing time, while other connections use all ports.
#[test]
fn half_closed_connections_get_their_answers() -> Result<()> {
    let fleet = fleet(1, &["--idle-closing", "1s", "--snat-ports", "2000-2015"])?;
    let (client, listener) = (&fleet.lab.clients[0], listen(&fleet.lab.modules[0])?);
    let (go_on, waiting): (Vec<Sender<()>>, Vec<Receiver<()>>) =
        vips().map(|_| channel()).into_iter().unzip();
    let server = thread::spawn(move || {
        // The first connection of each VIP waits, the others are answered in turn.
        let mut waiting = waiting.into_iter();
        let mut threads = Vec::new();
        for stream in listener.incoming().map_while(Result::ok) {
            let word = match stream.peer_addr().map(|peer| peer.ip().to_canonical()) {
                Ok(_) if threads.len() < 2 => waiting.next(),
                _ => None,
            };
            threads.push(thread::spawn(move || answer(stream, &word.unwrap_or_else(|| channel().1))));
            if threads.len() == 2 + 2 * 64 {
                break;
            }
        }
        threads.into_iter().all(|thread| thread.join().is_ok_and(|answered| answered.is_some()))
    });
    let exchange = |to, text: &str| -> Result<TcpStream> {
        let mut stream = connect(client, to)?;
        stream.write_all(text.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        Ok(stream)
    };
    let mut held = vips().into_iter().map(|vip| exchange(vip, "wait")).collect::<Result<Vec<_>>>()?;
    thread::sleep(Duration::from_secs(3));
    for n in 0..64 {
        for vip in vips() {
            let mut answer = String::new();
            exchange(vip, "now")?.read_to_string(&mut answer)?;
            ensure!(answer == "now", "connection {n} to {vip} got {answer:?}");
        }
    }
    for (stream, word) in held.iter_mut().zip(go_on) {
        word.send(())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).with_context(|| format!("from {:?}", stream.peer_addr()))?;
        ensure!(answer == "wait", "{answer:?}");
    }
    ensure!(server.join().is_ok_and(|answered| answered), "a connection broke at the server");
    Ok(())
}

/// How often a host has sent a RST (RFC 4898): a client does when a server in TIME_WAIT answers its SYN by an
/// ACK.
fn resets_sent(host: &Host) -> Result<u64> {
    let text = host.netns.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (rows.next().context("no names")?, rows.next().context("no values")?);
    let place = names.split(' ').position(|name| name == "OutRsts").context("no OutRsts")?;
    Ok(values.split(' ').nth(place).context("no value")?.parse()?)
}

/// The server closes first and keeps each connection in TIME_WAIT for a minute. In that minute each port is
/// used several times, half of them in each round.
#[test]
fn servers_in_time_wait_accept_the_next_connection() -> Result<()> {
    const ROUNDS: usize = 5;
    const EACH: usize = 128;
    let fleet = fleet(1, &["--snat-ports", "2000-2255"])?;
    let (client, listener) = (&fleet.lab.clients[0], listen(&fleet.lab.modules[0])?);
    let all = ROUNDS * EACH * vips().len();
    let server = thread::spawn(move || {
        let streams = listener.incoming().map_while(Result::ok).take(all);
        streams.map(|mut stream| stream.write_all(b"bye")).filter(Result::is_ok).count()
    });
    let before = resets_sent(client)?;
    for round in 0..ROUNDS {
        for n in 0..EACH {
            for vip in vips() {
                let mut answer = String::new();
                connect(client, vip)?.read_to_string(&mut answer)?;
                ensure!(answer == "bye", "connection {n} of round {round} to {vip} got {answer:?}");
            }
        }
        // No port is used again within two ticks.
        thread::sleep(Duration::from_secs(2));
    }
    ensure!(server.join().is_ok_and(|served| served == all), "not all were served");
    let resets = resets_sent(client)? - before;
    ensure!(resets == 0, "{resets} of {all} SYNs met a connection in TIME_WAIT");
    Ok(())
}

#[test]
fn connections_come_from_all_source_addresses() -> Result<()> {
    let addresses: [IpAddr; 4] =
        ["10.99.0.1", "10.99.0.2", "fd99::1", "fd99::2"].map(|addr| addr.parse().expect("an address"));
    let list = addresses.map(|addr| addr.to_string()).join(",");
    let fleet = fleet(1, &["--snat-address", &list, "--snat-ports", "2000-2063"])?;
    let (nlb, module) = (&fleet.lab.nlb, &fleet.lab.modules[0]);
    for addr in addresses {
        let net = format!("{addr}/{}", if addr.is_ipv4() { 32 } else { 128 });
        let via = if addr.is_ipv4() { IpAddr::from(nlb.v4) } else { nlb.v6.into() };
        nlb.netns.add_address("eth0", addr, if addr.is_ipv4() { 32 } else { 128 })?;
        module.netns.ip(&["route", "add", &net, "via", &via.to_string()])?;
    }
    let listener = listen(module)?;
    let server = thread::spawn(move || -> std::io::Result<BTreeSet<IpAddr>> {
        let mut seen = BTreeSet::new();
        for _ in 0..160 {
            let (mut stream, peer) = listener.accept()?;
            seen.insert(peer.ip().to_canonical());
            stream.write_all(b"hello")?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest)?;
        }
        Ok(seen)
    });
    for n in 0..80 {
        for vip in vips() {
            let mut stream = connect(&fleet.lab.clients[0], vip)?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).with_context(|| format!("connection {n} to {vip}"))?;
        }
    }
    let seen = server.join().expect("the server ends")?;
    ensure!(seen == addresses.into(), "the module saw {seen:?}");
    Ok(())
}

/// The host's own connections would fail where both use a port towards one backend.
#[test]
fn ports_that_the_host_uses_itself_are_refused_with_the_remedy() -> Result<()> {
    let lab = Lab::one_arm(1, 1)?;
    lab.nlb.netns.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
    let error = refusal(&lab, "eth0")?;
    let remedy = "sysctl -w net.ipv4.ip_local_reserved_ports=1024-32767";
    ensure!(error.contains("--snat-ports 1024-32767") && error.contains(remedy), "{error}");
    lab.nlb.netns.sysctl("net/ipv4/ip_local_reserved_ports", "1024-32767")?;
    drop(nlb_testkit::programs::serve(&lab, "eth0", &[])?);
    Ok(())
}
