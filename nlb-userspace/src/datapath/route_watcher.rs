//! Counts the kernel's changes of routes and neighbours in the FIB generation. A new value invalidates the
//! programs' next-hop cache (`nlb-ebpf/src/next_hop.rs`), so replies follow a change at once.

use std::sync::Arc;

use super::maps::bpf::FibGeneration;
use super::netlink::Netlink;

pub(crate) async fn run(changed: Arc<FibGeneration>) -> anyhow::Result<()> {
    let (_netlink, mut events) = Netlink::open()?;
    while events.recv().await.is_some() {
        changed.count();
    }
    anyhow::bail!("the kernel's route events have ended")
}
