//! ICMP errors between clients and modules.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Result, ensure};
use nlb_testkit::lab::{Lab, VIP4, VIP6};
use nlb_testkit::process::MAX_WAIT;

use crate::fleet::{Fleet, Mode};

/// As on a direct connection, the client gets the error of a port without a listener.
#[test]
fn a_backends_port_unreachable_reaches_the_client() -> Result<()> {
    let fleet = Fleet::with_foreign_module(Lab::one_arm(1, 1)?, Mode::Nat, 53, 5353)?;
    for vip in [IpAddr::from(VIP4), VIP6.into()] {
        let socket = fleet.lab.clients[0].netns.run(|| {
            let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect(SocketAddr::new(vip, 53))?;
            std::io::Result::Ok(socket)
        })??;
        socket.set_read_timeout(Some(MAX_WAIT))?;
        socket.send(b"is anybody there?")?;
        let result = socket.recv(&mut [0; 64]).map_err(|error| error.kind());
        ensure!(result == Err(ErrorKind::ConnectionRefused), "{vip}: {result:?}");
    }
    Ok(())
}
