//! The kernel's own balancer, IPVS, as a peer. The same traffic goes through IPVS and through the NLB, and
//! clients and backends have to see the same results.
//!
//! [`DIFFERENCES`] lists the exceptions, which docs/testing.md explains.

pub mod backend;
mod balancer;
pub mod client;
mod script;

use anyhow::{Result, ensure};
use aya::util::KernelVersion;

use crate::fleet::Mode;
use balancer::Site;

/// An expected difference.
struct Difference {
    modes: &'static [Mode],
    /// The kernel that ends the difference, if there is one.
    before: Option<KernelVersion>,
    step: &'static str,
    ipvs: &'static str,
    nlb: &'static str,
}

const DIFFERENCES: &[Difference] = &[Difference {
    modes: &[Mode::Nat],
    before: Some(KernelVersion::new(6, 1, 0)),
    step: "IPv6, a datagram to a port that no backend listens on",
    ipvs: "no answer",
    nlb: "connection refused",
}];

#[test]
#[ignore = "needs a kernel with IPVS; `cargo xtask verify --kernel 6.12` boots one"]
fn nat_is_like_masquerading() -> Result<()> {
    compare(Mode::Nat)
}

#[test]
#[ignore = "needs a kernel with IPVS; `cargo xtask verify --kernel 6.12` boots one"]
fn dsr_l2_is_like_gatewaying() -> Result<()> {
    compare(Mode::DsrL2)
}

#[test]
#[ignore = "needs a kernel with IPVS; `cargo xtask verify --kernel 6.12` boots one"]
fn dsr_ipip_is_like_tunneling() -> Result<()> {
    compare(Mode::DsrIpip)
}

#[test]
#[ignore = "needs a kernel with IPVS; `cargo xtask verify --kernel 6.12` boots one"]
fn gue_is_like_tunneling_in_udp() -> Result<()> {
    compare(Mode::Gue)
}

fn compare(mode: Mode) -> Result<()> {
    let theirs = script::play(&Site::of_ipvs(mode)?)?;
    let ours = script::play(&Site::of_nlb(mode)?)?;
    ensure!(theirs.len() == ours.len(), "{} steps, and {} steps", theirs.len(), ours.len());
    let (mut same, mut different) = (0, Vec::new());
    println!("\n{} with IPVS and with the NLB:", mode.name());
    for ((step, theirs), (_, ours)) in theirs.iter().zip(&ours) {
        if theirs == ours {
            println!("  same       {step}: {ours}");
            same += 1;
        } else {
            println!("  different  {step}: {theirs} (IPVS), {ours} (nlb)");
            different.push((step.as_str(), theirs.as_str(), ours.as_str()));
        }
    }
    println!("  {same} steps alike, {} not", different.len());
    let kernel = KernelVersion::current()?;
    let expected: Vec<_> = DIFFERENCES
        .iter()
        .filter(|known| known.modes.contains(&mode) && known.before.is_none_or(|other| kernel < other))
        .map(|known| (known.step, known.ipvs, known.nlb))
        .collect();
    ensure!(different == expected, "not the expected differences: {expected:#?}");
    Ok(())
}
