//! Receives datagrams, and answers each from the address that it was sent to.
//!
//! A socket bound to every address would answer from the host's own address. With direct server return the
//! client sent to the VIP and expects the answer from there, so both directions carry the local address
//! (`IP_PKTINFO`).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use nix::libc::{in_pktinfo, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg,
    sendmsg, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use crate::Serve;
use crate::state::State;

/// The most datagrams that are being answered. Further ones wait in the kernel's buffer.
const IN_FLIGHT: usize = 1024;
const LARGEST: usize = 65_535;

/// The local address of a datagram, in the form that the kernel gives and takes.
#[derive(Clone, Copy)]
enum Local {
    V4(in_pktinfo),
    V6(in6_pktinfo),
}

/// Binds a socket that receives the local address of every datagram.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address).await?;
    match address {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
        // Includes IPv4 addresses, as mapped ones.
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(socket)
}

/// Serves until the instance is closed, then until the datagrams received are answered.
pub(crate) async fn listen(socket: UdpSocket, serve: Arc<impl Serve>, state: Arc<State>) {
    let socket = Arc::new(socket);
    let in_flight = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut buffer = vec![0; LARGEST];
    loop {
        let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else { return };
        let received = tokio::select! {
            received = receive(&socket, &mut buffer) => received,
            () = state.closed() => break,
        };
        let (length, client, local) = match received {
            Ok(received) => received,
            Err(error) => {
                // Mostly an ICMP error for an earlier answer.
                debug!(%error, "cannot receive a datagram");
                continue;
            }
        };
        let payload = buffer[..length].to_vec();
        state.count_received(length);
        let received = Instant::now();
        let (socket, serve, state) = (Arc::clone(&socket), Arc::clone(&serve), Arc::clone(&state));
        tokio::spawn(async move {
            let answered = answer(&socket, &*serve, &state, &payload, client, local, received).await;
            state.count_request(answered.is_ok());
            if let Err(error) = answered {
                warn!(%client, %error, "a datagram is not answered");
            }
            drop(permit);
        });
    }
    let _ = in_flight.acquire_many(IN_FLIGHT as u32).await;
}

async fn answer(
    socket: &UdpSocket,
    serve: &impl Serve,
    state: &State,
    payload: &[u8],
    client: SocketAddr,
    local: Option<Local>,
    received: Instant,
) -> io::Result<()> {
    if let Some(reply) = serve.datagram(payload, client).await? {
        send(socket, &reply, client, local).await?;
        state.count_sent(reply.len());
        state.count_latency(received.elapsed());
    }
    Ok(())
}

async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, Option<Local>)> {
    socket
        .async_io(Interest::READABLE, || {
            let mut space = nix::cmsg_space!(in6_pktinfo);
            let mut into = [IoSliceMut::new(buffer)];
            let message = recvmsg::<SockaddrStorage>(
                socket.as_raw_fd(),
                &mut into,
                Some(&mut space),
                MsgFlags::MSG_DONTWAIT,
            )?;
            let client =
                message.address.as_ref().and_then(socket_address).ok_or(io::ErrorKind::InvalidData)?;
            let local = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => Some(Local::V4(info)),
                ControlMessageOwned::Ipv6PacketInfo(info) => Some(Local::V6(info)),
                _ => None,
            });
            Ok((message.bytes, client, local))
        })
        .await
}

async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr, local: Option<Local>) -> io::Result<()> {
    let from = [IoSlice::new(reply)];
    let to = SockaddrStorage::from(client);
    // The interface is left out: the route to the client selects it.
    let (v4, v6);
    let control = match local {
        Some(Local::V4(info)) => {
            v4 = in_pktinfo { ipi_ifindex: 0, ..info };
            Some(ControlMessage::Ipv4PacketInfo(&v4))
        }
        Some(Local::V6(info)) => {
            v6 = in6_pktinfo { ipi6_ifindex: 0, ..info };
            Some(ControlMessage::Ipv6PacketInfo(&v6))
        }
        None => None,
    };
    socket
        .async_io(Interest::WRITABLE, || {
            sendmsg(socket.as_raw_fd(), &from, control.as_slice(), MsgFlags::MSG_DONTWAIT, Some(&to))?;
            Ok(())
        })
        .await
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address: &SockaddrIn| SocketAddr::V4((*address).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address: &SockaddrIn6| SocketAddr::V6((*address).into())))
}
