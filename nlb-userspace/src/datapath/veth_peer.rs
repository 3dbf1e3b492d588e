//! What the other end of a veth has to do for XDP on this end.
//!
//! - It has to take what is redirected to this end: by GRO or an XDP program, either of which makes it poll
//!   (`veth_set_xdp_features` in the kernel). Otherwise such packets are lost.
//! - It has to finish checksums: XDP sees a packet without the mark that its checksum is a partial one.
//!
//! The other end may be in another network namespace, as that of a container's interface is. Then its
//! settings cannot be read.

use std::collections::HashMap;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use anyhow::{Context, ensure};
use nix::libc;
use tracing::{info, warn};

use super::link::{self, Link};

/// Logs what the other ends of an interface lack, or of its ports. Only native XDP redirects by a driver.
pub(super) fn check(ifindex: u32, is_native: bool, links: &HashMap<u32, Link>) {
    for link in link::veths(ifindex, links) {
        let Some(peer) = link.below.and_then(|peer| links.get(&peer)) else {
            info!(
                "{} is a veth, and its other end is in another network namespace: it has to finish checksums{} (`ethtool -K \
                 <its name> tx off gro on` there)",
                link.name,
                if is_native { ", and needs GRO or an XDP program to take redirected packets" } else { "" }
            );
            continue;
        };
        let features = [Feature::Gro, Feature::TxChecksums].map(|feature| feature.is_on(&peer.name));
        match features {
            [Ok(gro), Ok(tx_checksums)] => {
                lacks(&link.name, peer, is_native, gro, tx_checksums).iter().for_each(|lack| warn!("{lack}"));
            }
            [Err(error), _] | [_, Err(error)] => {
                warn!("cannot read the offloads of {}, the other end of {}: {error:#}", peer.name, link.name);
            }
        }
    }
}

/// What a veth's other end lacks, with the remedies.
fn lacks(name: &str, peer: &Link, is_native: bool, gro: bool, tx_checksums: bool) -> Vec<String> {
    let mut lacks = Vec::new();
    let peer_name = &peer.name;
    if is_native && !gro && !peer.native_xdp {
        lacks.push(format!(
            "packets that XDP redirects to {name} are lost: {peer_name}, its other end, has neither GRO nor an XDP program; run \
             `ethtool -K {peer_name} gro on`"
        ));
    }
    if tx_checksums {
        lacks.push(format!(
            "packets from {peer_name}, the other end of {name}, have unfinished checksums, so that receivers drop what XDP \
             forwards; run `ethtool -K {peer_name} tx off`"
        ));
    }
    lacks
}

/// A feature of a device, by the kernel's number of the request that reads it (linux/ethtool.h).
#[derive(Clone, Copy)]
enum Feature {
    TxChecksums = 0x16,
    Gro = 0x2b,
}

impl Feature {
    fn is_on(self, device: &str) -> anyhow::Result<bool> {
        const SIOCETHTOOL: libc::Ioctl = 0x8946;
        let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))?;
        // `struct ethtool_value`: the request, and the answer.
        let mut value = [self as u32, 0];
        // SAFETY: all zeros are valid for this struct.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        ensure!(device.len() < request.ifr_name.len(), "the name is too long");
        for (to, byte) in request.ifr_name.iter_mut().zip(device.bytes()) {
            *to = byte as libc::c_char;
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: the kernel writes the answer into `value`, which lives as long as the request.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        if result < 0 {
            return Err(std::io::Error::last_os_error()).context("ethtool");
        }
        Ok(value[1] != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::link::{Kind, alone};

    #[test]
    fn each_lack_is_named_with_its_remedy() {
        let peer = |native_xdp| Link { below: Some(2), native_xdp, ..alone("far0", Kind::Veth) };
        let [gro_on, tx_off] = ["ethtool -K far0 gro on", "ethtool -K far0 tx off"];
        for (is_native, native_xdp, gro, tx_checksums, remedies) in [
            (true, false, false, true, &[gro_on, tx_off][..]),
            (true, false, false, false, &[gro_on]),
            (true, true, false, false, &[]),
            (true, false, true, false, &[]),
            (false, false, false, false, &[]),
            (false, false, false, true, &[tx_off]),
        ] {
            let lacks = lacks("near0", &peer(native_xdp), is_native, gro, tx_checksums);
            assert_eq!(lacks.len(), remedies.len(), "{lacks:?}");
            assert!(lacks.iter().zip(remedies).all(|(lack, remedy)| lack.contains(remedy)), "{lacks:?}");
        }
    }

    #[test]
    fn a_device_that_does_not_exist_is_an_error() {
        assert!(Feature::Gro.is_on("no-such-device").is_err());
        Feature::Gro.is_on("lo").unwrap();
    }
}
