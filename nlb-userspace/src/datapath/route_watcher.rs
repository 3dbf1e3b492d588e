//! Tells the programs that the kernel's ways may have changed, so that replies follow at once: they remember what the kernel said
//! of them last (`nlb-ebpf/src/hop.rs`).

use std::sync::Arc;

use super::maps::bpf::FibGeneration;
use super::netlink::Netlink;

pub async fn run(changed: Arc<FibGeneration>) -> anyhow::Result<()> {
    let (_netlink, mut events) = Netlink::open()?;
    while events.recv().await.is_some() {
        changed.count();
    }
    anyhow::bail!("the kernel's route events have ended")
}
