//! Punted packets pass through the balancer again and are really sent: by the kernel's live frames if it has
//! them, and by the daemon on every kernel.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nlb::model::ForwardMode;
use nlb_common::abi::{AcceptedMac, NextHop};
use nlb_common::net;
use nlb_testkit::netns::Namespace;

use crate::rig::{BACKEND_MAC, OUR_BACK_MAC, Rig, families};

#[test]
fn row_22_punted_packets_are_sent_as_the_program_decides() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::DsrL2)?;
    let host = Namespace::create(format!("nlb-{}-punted-host", std::process::id()))?;
    rig.namespace().cable("back0", &host, "eth0")?;
    rig.namespace().ip(&["link", "set", "back0", "address", "02:00:00:00:00:02"])?;
    let index = |name| rig.namespace().run(|| if_nametoindex(name));
    let (front, back) = (index("up0")??, index("back0")??);
    let hop = NextHop::new(net::Mac::new(BACKEND_MAC), net::Mac::new(OUR_BACK_MAC), back);
    rig.hops.values_mut().for_each(|known| known.hop = hop);
    rig.apply()?;
    rig.accept(AcceptedMac::any(front))?;
    rig.accept(AcceptedMac::any(back))?;
    let (here, there) = (rig.namespace().run(|| listen("back0"))??, host.run(|| listen("eth0"))??);

    let ways = if rig.has_live_frames() { &[false, true][..] } else { &[false] };
    for live in ways {
        for family in families() {
            let request = family.ack();
            let sent = request.with(|p| {
                (p.dst_mac, p.src_mac) = (BACKEND_MAC, OUR_BACK_MAC);
                p.ttl -= 1;
            });
            for (from, way) in [(front, "on"), (back, "back out of the interface that it came in by")] {
                rig.inject(*live, &request.bytes(), from)?;
                ensure!(receives(&there, &sent.bytes())?, "{} is not sent {way}, live: {live}", family.vip);
            }
            let stray = request.with(|p| p.dst = family.stranger).bytes();
            rig.inject(*live, &stray, back)?;
            ensure!(receives(&here, &stray)?, "{} is not received, live: {live}", family.stranger);
        }
    }
    Ok(())
}

/// A socket that receives all frames that an interface sends and receives.
fn listen(interface: &str) -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    let link = getifaddrs()?
        .filter(|found| found.interface_name == interface)
        .find_map(|found| found.address?.as_link_addr().copied())
        .with_context(|| format!("{interface} is not there"))?;
    bind(socket.as_raw_fd(), &link)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(60))?;
    Ok(socket)
}

/// Whether this frame is among the next. The kernel sends a few frames of its own.
fn receives(socket: &OwnedFd, frame: &[u8]) -> Result<bool> {
    let mut received = [0; 2048];
    for _ in 0..100 {
        match recv(socket.as_raw_fd(), &mut received, MsgFlags::empty()) {
            Ok(len) if received[..len] == *frame => return Ok(true),
            Ok(_) => {}
            Err(nix::errno::Errno::EAGAIN) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}
