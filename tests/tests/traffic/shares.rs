//! One module answers each flow, and modules get flows by weight.

use anyhow::Result;
use nlb_testkit::lab::Lab;

use crate::clients::{L4, assert_shares, flows};
use crate::fleet::{Fleet, Mode, vips};

const FLOWS: u16 = 1000;

fn thousand_flows(mode: Mode) -> Result<()> {
    let fleet = Fleet::start(Lab::one_arm(1, 3)?, mode, &[100, 50, 100], &[])?;
    for vip in vips() {
        for (first, l4) in [(20_000, L4::Tcp), (30_000, L4::Udp)] {
            let counts = flows(&fleet.lab.clients[0], l4, vip, first, FLOWS)?;
            assert_eq!(counts.values().sum::<u32>(), FLOWS as u32);
            assert_shares(&counts, &[("m0", 100), ("m1", 50), ("m2", 100)]);
        }
    }
    Ok(())
}

#[test]
fn nat_flows_are_shared_by_weight() -> Result<()> {
    thousand_flows(Mode::Nat)
}

#[test]
fn dsr_l2_flows_are_shared_by_weight() -> Result<()> {
    thousand_flows(Mode::DsrL2)
}

#[test]
fn dsr_ipip_flows_are_shared_by_weight() -> Result<()> {
    thousand_flows(Mode::DsrIpip)
}

#[test]
fn gue_flows_are_shared_by_weight() -> Result<()> {
    thousand_flows(Mode::Gue)
}
