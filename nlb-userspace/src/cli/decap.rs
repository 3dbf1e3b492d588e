//! `nlb decap`: the decapsulator for dsr-ipip and gue.

use nlb_common::gue;

use crate::config::{Net, XdpMode};
use crate::daemon::shutdown;
use crate::datapath::decap;

#[derive(clap::Args)]
pub(super) struct Settings {
    /// Interfaces on which tunnelled packets arrive [repeat, or separate by commas]
    #[arg(long, value_name = "NAME", value_delimiter = ',', required = true)]
    iface: Vec<String>,
    /// The NLBs: addresses or CIDRs from which tunnelled packets are accepted [repeat, or separate by commas]
    #[arg(long, value_name = "ADDRESS|CIDR", value_delimiter = ',', required = true)]
    peer: Vec<Net>,
    /// The NLBs' --gue-port
    #[arg(long, value_name = "PORT", default_value_t = gue::PORT, value_parser = clap::value_parser!(u16).range(1..))]
    gue_port: u16,
    /// The XDP mode
    #[arg(long, value_enum, default_value = "auto")]
    xdp_mode: XdpMode,
}

pub(super) async fn run(settings: Settings) -> anyhow::Result<()> {
    let peers: Vec<_> = settings.peer.iter().map(|peer| peer.0).collect();
    decap::run(&settings.iface, &peers, settings.gue_port, settings.xdp_mode, shutdown::signal_received())
        .await
}
