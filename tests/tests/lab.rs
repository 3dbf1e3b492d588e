//! The lab itself, whose links all other tests need.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use anyhow::Result;
use nlb_testkit::lab::{DefaultRoute, Host, Lab, VIP4, VIP6};
use nlb_testkit::netns::output;
use nlb_testkit::process::MAX_WAIT;

#[test]
fn hosts_of_one_segment_reach_each_other() -> Result<()> {
    let lab = Lab::one_arm(2, 2)?;
    for host in [&lab.nlb, &lab.clients[1], &lab.modules[0], &lab.modules[1]] {
        ping(&lab.clients[0], host.v4.into())?;
        ping(&lab.clients[0], host.v6.into())?;
    }
    ping(&lab.clients[1], VIP4.into())?;
    ping(&lab.clients[1], VIP6.into())
}

#[test]
fn the_nlb_routes_between_two_segments() -> Result<()> {
    for route in [DefaultRoute::Nlb, DefaultRoute::Gateway] {
        let lab = Lab::two_arm(1, 1, route)?;
        let (client, module) = (&lab.clients[0], &lab.modules[0]);
        ping(client, module.v4.into())?;
        ping(client, module.v6.into())?;
        ping(client, VIP4.into())?;
        assert_eq!(lab.gateway.is_some(), route == DefaultRoute::Gateway);
        let out = module.netns.ip(&["route", "get", &client.v4.to_string()])?;
        let expected = if route == DefaultRoute::Nlb { "via 10.77.1.1 " } else { "via 10.77.1.254 " };
        assert!(out.contains(expected), "{out}");
    }
    Ok(())
}

#[test]
fn tcp_carries_data_with_checksums_in_software() -> Result<()> {
    let lab = Lab::one_arm(1, 1)?;
    let module = &lab.modules[0];
    for address in [IpAddr::from(module.v4), module.v6.into()] {
        let listener = module.netns.run(|| TcpListener::bind((address, 7000)))??;
        let echo = thread::spawn(move || -> std::io::Result<()> {
            let (mut peer, _) = listener.accept()?;
            let mut data = Vec::new();
            peer.read_to_end(&mut data)?;
            peer.write_all(&data)
        });
        let to = SocketAddr::new(address, 7000);
        let mut stream = lab.clients[0].netns.run(|| TcpStream::connect_timeout(&to, MAX_WAIT))??;
        stream.set_read_timeout(Some(MAX_WAIT))?;
        let sent = [7; 100_000];
        stream.write_all(&sent)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        assert!(received == sent, "{} of {} bytes came back as sent", received.len(), sent.len());
        echo.join().expect("the echo thread")?;
    }
    Ok(())
}

#[test]
fn module_with_a_vip_does_not_answer_arp_for_it() -> Result<()> {
    let lab = Lab::one_arm(1, 1)?;
    for vip in [IpAddr::from(VIP4), VIP6.into()] {
        lab.modules[0].add_vip_without_arp(vip)?;
        ping(&lab.clients[0], vip)?;
        let neighbours = lab.clients[0].netns.ip(&["neighbour", "show", &vip.to_string()])?;
        let nlb = lab.nlb.netns.ip(&["-brief", "link", "show", "eth0"])?;
        let mac = nlb.split_whitespace().nth(2).expect("a MAC address");
        assert!(neighbours.contains(mac), "{vip}: {neighbours}, the nlb's interface: {nlb}");
    }
    Ok(())
}

#[test]
fn dropped_lab_leaves_no_namespaces_files_or_processes() -> Result<()> {
    let lab = Lab::one_arm(1, 0)?;
    let mut sleeper = lab.start("sleeper", lab.clients[0].netns.command("sleep").arg("1000"))?;
    // The lab ends the processes that have entered its namespaces.
    let comm = format!("/proc/{}/comm", sleeper.pid());
    sleeper.wait_until("it sleeps", MAX_WAIT, || {
        std::fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n")
    })?;
    let (name, files) = (lab.name().to_owned(), lab.files());
    assert!(namespaces(&name)? == 3 && files.exists() && sleeper.ended()?.is_none());
    drop(lab);
    assert_eq!(namespaces(&name)?, 0);
    assert!(!files.exists());
    sleeper.wait(MAX_WAIT).map(drop)
}

fn ping(from: &Host, to: IpAddr) -> Result<()> {
    output(from.netns.command("ping").args(["-c1", "-W60", "-q", &to.to_string()])).map(drop)
}

fn namespaces(lab: &str) -> Result<usize> {
    let list = output(Command::new("ip").args(["netns", "list"]))?;
    Ok(list.lines().filter(|line| line.starts_with(&format!("{lab}-"))).count())
}
