//! Sends packets of the pending queue through the balancer again.
//!
//! Since Linux 5.18 the kernel can do that itself with live frames, as if the packets had just arrived.
//! Before, it runs the program on a copy and returns the action, and the daemon sends the copy. The kernel
//! does not return the interface, but the program has written that interface's MAC address into the frame.

use anyhow::Context as _;
use nix::ifaddrs::getifaddrs;

use super::loader::{Datapath, XdpAction};

/// Sends a punted frame through the balancer, which forwards it. `from` is the interface on which the frame
/// arrived, `egress` the one that leads to its next hop.
pub fn inject(datapath: &Datapath, frame: &[u8], from: u32, egress: Option<u32>) -> anyhow::Result<()> {
    if datapath.has_live_frames() {
        datapath.inject_live(frame, from)
    } else {
        inject_copy(datapath, frame, from, egress)
    }
}

/// Like [`inject`], on kernels without live frames: runs the program on a copy and sends the result.
pub fn inject_copy(datapath: &Datapath, frame: &[u8], from: u32, egress: Option<u32>) -> anyhow::Result<()> {
    let (action, frame) = datapath.test_run(frame, from)?;
    match action {
        XdpAction::Passed => datapath.receive(&frame, from),
        XdpAction::SentBack => datapath.send(&frame, from),
        XdpAction::SentOn => datapath.send(&frame, outgoing_interface(&frame, &links()?, from, egress)),
        XdpAction::Dropped => Ok(()),
    }
}

/// An interface's index and MAC address.
type Link = (u32, [u8; 6]);

fn links() -> anyhow::Result<Vec<Link>> {
    let all = getifaddrs().context("listing interfaces")?;
    let links = all.filter_map(|interface| {
        let address = interface.address?;
        let link = address.as_link_addr()?;
        Some((link.ifindex() as u32, link.addr()?))
    });
    Ok(links.collect())
}

/// The interface by which a frame leaves: the one that has the frame's source address. If several have it, as
/// VLAN devices and the interface below them do, `egress` comes first, then `from`: the packet may have
/// taken another route than the one that it waited for, and a rejection returns from the address that the
/// packet was sent to.
fn outgoing_interface(frame: &[u8], links: &[Link], from: u32, egress: Option<u32>) -> u32 {
    let source = frame.get(6..12).unwrap_or_default();
    let having_it: Vec<_> =
        links.iter().filter(|(_, mac)| mac == source).map(|(ifindex, _)| *ifindex).collect();
    let likely = egress.into_iter().chain([from]).find(|ifindex| having_it.contains(ifindex));
    likely.or(having_it.first().copied()).unwrap_or(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_leaves_by_the_interface_with_its_source_address() {
        let mac = |last| [2, 0, 0, 0, 0, last];
        let links = [(1, [0; 6]), (2, mac(2)), (3, mac(3)), (4, mac(3)), (5, mac(5))];
        let out = |last, from, egress| {
            let frame = [&mac(0xee)[..], &mac(last), &[8, 0]].concat();
            outgoing_interface(&frame, &links, from, egress)
        };
        assert_eq!(out(3, 2, Some(4)), 4, "the interface that leads to its next hop");
        assert_eq!(out(3, 4, Some(2)), 4, "the interface that it arrived on, if its route is another");
        assert_eq!(out(3, 2, Some(5)), 3, "the first of several");
        assert_eq!(out(5, 2, None), 5);
        assert_eq!(
            out(9, 2, Some(3)),
            2,
            "back by the interface that it arrived on, if no interface has the address"
        );
    }
}
