//! Captures every TCP segment that a host sends, with retransmissions, by an AF_PACKET socket.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nlb_testkit::lab::Host;

/// Room for all frames of a test until they are read.
const BUFFER: usize = 256 << 20;
const OUTGOING: u8 = 4;
const LONGEST_FRAME: usize = 2048;

/// A segment that was sent.
#[derive(Clone, Debug)]
pub struct Segment {
    pub src: (IpAddr, u16),
    /// The length of the IP packet.
    pub bytes: u64,
    pub reset: bool,
}

/// A capture at a host's `eth0`.
pub struct Capture<'a> {
    host: &'a Host,
    socket: OwnedFd,
    frames: u64,
    /// The frames that the link had sent before.
    before: u64,
    pub segments: Vec<Segment>,
}

impl<'a> Capture<'a> {
    pub fn start(host: &'a Host) -> Result<Capture<'a>> {
        let captured = host.netns.run(|| {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
        })??;
        setsockopt(&captured, sockopt::RcvBufForce, &BUFFER).context("making room for frames")?;
        // A frame that is sent in between makes `read` fail.
        let before = sent_by_link(host)?;
        Ok(Capture { host, socket: captured, frames: 0, before, segments: Vec::new() })
    }

    /// Reads the frames that were sent since the last call. Fails if one was missed.
    pub fn read(&mut self) -> Result<()> {
        let eth0 = self.host.netns.run(|| nix::net::if_::if_nametoindex("eth0"))??;
        let sent = sent_by_link(self.host)?;
        let mut frame = [0; LONGEST_FRAME];
        loop {
            let (len, from) = match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut frame) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error).context("reading the capture"),
            };
            let from = from.context("frames come from a link")?;
            if from.pkttype() != OUTGOING || from.ifindex() != eth0 as usize {
                continue;
            }
            self.frames += 1;
            self.segments.extend(segment(&frame[..len])?);
        }
        let found = self.before + self.frames;
        ensure!(found >= sent, "the link has sent {sent} frames and the capture has {found}");
        Ok(())
    }

    /// The number of segments that the host's TCP retransmitted.
    pub fn retransmitted(&self) -> Result<u64> {
        let table = self.host.netns.run(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
        let mut tcp = table.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = tcp.next().zip(tcp.next()).context("no line about TCP")?;
        let mut columns = names.split(' ').zip(values.split(' '));
        let (_, value) = columns.find(|(name, _)| *name == "RetransSegs").context("no RetransSegs")?;
        Ok(value.parse()?)
    }
}

/// The link's own count of sent frames.
fn sent_by_link(host: &Host) -> Result<u64> {
    let links: serde_json::Value =
        serde_json::from_str(&host.netns.ip(&["-s", "-j", "link", "show", "eth0"])?)?;
    links[0]["stats64"]["tx"]["packets"].as_u64().context("the link has no count")
}

fn segment(frame: &[u8]) -> Result<Option<Segment>> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    let (src, bytes): (IpAddr, usize) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            (header.source_addr().into(), header.total_len().into())
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            (header.source_addr().into(), 40 + usize::from(header.payload_length()))
        }
        _ => return Ok(None),
    };
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return Ok(None) };
    Ok(Some(Segment { src: (src, tcp.source_port()), bytes: bytes as u64, reset: tcp.rst() }))
}
