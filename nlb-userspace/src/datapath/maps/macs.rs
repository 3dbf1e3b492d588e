//! The maps of accepted MAC addresses.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use nlb_common::abi::{self, AcceptedMac};
use nlb_common::net::Mac;

use super::access::take;
use super::bpf::array;
use super::memory::Words;

/// The MAC addresses that interfaces accept.
pub struct MacTable {
    own: Words,
    all: HashMap<MapData, AcceptedMac, u32>,
    listed: BTreeSet<AcceptedMac>,
}

impl MacTable {
    pub fn take(bpf: &mut Ebpf) -> anyhow::Result<Self> {
        let own = array(bpf, "INTERFACE_MACS")?;
        Ok(MacTable {
            own: Words::new(own.fd().as_fd(), abi::INTERFACE_MACS)
                .context("mapping INTERFACE_MACS into memory")?,
            all: take(bpf, "ACCEPTED_MACS")?.try_into()?,
            listed: BTreeSet::new(),
        })
    }

    /// Sets the own address of each interface, and all addresses that interfaces accept. Addresses that stay
    /// are accepted all the time.
    pub fn set(&mut self, own: &[(u32, Mac)], all: BTreeSet<AcceptedMac>) -> anyhow::Result<()> {
        let mut words = [0; abi::INTERFACE_MACS as usize];
        for (ifindex, mac) in own {
            words[abi::interface_slot(*ifindex) as usize] = abi::interface_mac(*ifindex, *mac);
        }
        let mut macs = own.iter().map(|(_, mac)| *mac);
        words[abi::COMMON_MAC as usize] = match macs.next() {
            Some(first) if macs.all(|mac| mac == first) => abi::common_mac(first),
            _ => u64::MAX,
        };
        for (slot, word) in (0..).zip(words) {
            self.own.store(slot, word);
        }
        for added in all.difference(&self.listed) {
            self.all.insert(added, 1, 0).context("ACCEPTED_MACS")?;
        }
        for removed in self.listed.difference(&all) {
            self.all.remove(removed).context("ACCEPTED_MACS")?;
        }
        self.listed = all;
        Ok(())
    }
}
