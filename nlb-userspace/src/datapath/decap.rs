//! `nlb decap`: removes the outer headers of dsr-ipip and gue packets, for module hosts without a kernel
//! tunnel.

use anyhow::Context;
use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use tracing::info;

use super::loader::Datapath;
use super::maps::bpf;
use crate::config::XdpMode;
use crate::model::prefix::Addr128;

/// Decapsulates packets from `peers` on `interfaces`, of UDP only those to `gue_port`, until `until`
/// completes. All other packets pass unchanged.
pub(crate) async fn run(
    interfaces: &[String],
    peers: &[IpNet],
    gue_port: u16,
    mode: XdpMode,
    until: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let mut datapath = Datapath::load_decap(gue_port)?;
    let mut trusted = bpf::peers(&mut datapath.bpf)?;
    for peer in peers {
        let prefix = Addr128::from(*peer);
        trusted
            .insert(&Key::new(prefix.bits as u32, prefix.addr), 1, 0)
            .with_context(|| format!("listing the peer {peer}"))?;
    }
    for interface in interfaces {
        datapath.attach_decap(interface, mode)?;
    }
    let from: Vec<_> = peers.iter().map(IpNet::to_string).collect();
    info!("decapsulating packets on {} from {}", interfaces.join(", "), from.join(", "));
    until.await
}
