//! Datagrams that exceed the MTU: one module has to get all their fragments, and the client those of the
//! answer.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nlb_testkit::lab::Lab;

use crate::fleet::{Fleet, Mode, vips};

/// The length of a datagram of three fragments.
const LONG: usize = 4000;

fn long_datagrams(mode: Mode) -> Result<()> {
    let fleet = Fleet::start(Lab::one_arm(1, 2)?, mode, &[100, 100], &[])?;
    let client = &fleet.lab.clients[0];
    for vip in vips() {
        let mut answered = BTreeSet::new();
        // With 20 ports, both modules answer.
        for n in 0..20_u8 {
            let answer = client.netns.run(|| request(vip, n))??;
            let (name, rest) = answer.split_once(' ').context("an answer begins with the module's name")?;
            ensure!(
                rest.len() == LONG && rest.bytes().all(|byte| byte == b'a' + n),
                "{mode:?} {vip}: {answer}"
            );
            answered.insert(name.to_owned());
        }
        ensure!(answered.len() == 2, "{mode:?} {vip}: only {answered:?} answered");
    }
    Ok(())
}

fn request(vip: SocketAddr, n: u8) -> Result<String> {
    let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(vip)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    socket.send(&[b'a' + n; LONG])?;
    let mut answer = vec![0; 2 * LONG];
    let len = socket.recv(&mut answer).with_context(|| format!("no answer to {LONG} bytes from {vip}"))?;
    Ok(String::from_utf8(answer[..len].to_vec())?)
}

#[test]
fn long_datagrams_are_answered_with_nat() -> Result<()> {
    long_datagrams(Mode::Nat)
}

#[test]
fn long_datagrams_are_answered_with_direct_server_return() -> Result<()> {
    long_datagrams(Mode::DsrL2)
}
