//! Runs steps through the program and the model, compares the results, and finds the shortest sequence that
//! differs.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use nlb::compile::FlowTuple;
use nlb::model::Backend;
use nlb_common::hash;
use nlb_common::net::Be16;

use super::edits::IcmpError;
use super::model::{Expected, Growth, IPIP_SOURCES, Model, World};
use super::step::{Change, Step};
use super::{edits, tc_ingress};
use crate::rig::{Outcome, Rig, XDP_DROP, XDP_PASS, XDP_REDIRECT};
use crate::sources::sized;
use nlb::model::ForwardMode;

const XDP_TX: u32 = 3;

pub struct Oracle {
    rig: Rig,
    model: Model,
    /// The changes that led to the present tables.
    changes: Vec<Change>,
    counts: BTreeMap<Backend, Growth>,
    /// The number of packets for each exit.
    met: BTreeMap<String, u64>,
    /// Flows with another backend than their hash selects.
    moved: u64,
    hook: Hook,
    /// The rest of the sequence is not compared.
    unknown_state: bool,
}

/// The hook of the program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    /// The TC ingress hook.
    TcIngress,
}

/// How the result of a packet differs from the model's.
pub type Difference = String;

impl Oracle {
    pub fn new(hook: Hook) -> Result<Oracle> {
        let mut rig = match hook {
            Hook::Xdp => {
                let prefixes = IPIP_SOURCES.map(|prefix| prefix.parse().expect("a prefix"));
                Rig::sized(ForwardMode::Nat, &sized(&prefixes)?)?
            }
            Hook::TcIngress => Rig::with_tc_ingress(ForwardMode::Nat)?,
        };
        rig.desired.fail_open = false;
        Ok(Oracle {
            rig,
            model: Model::default(),
            changes: vec![Change::Reject(true)],
            counts: BTreeMap::new(),
            met: BTreeMap::new(),
            moved: 0,
            hook,
            unknown_state: false,
        })
    }

    pub fn model(&self) -> &Model {
        &self.model
    }

    pub fn packets(&self) -> u64 {
        self.met.values().sum()
    }

    /// Begins a sequence: no flows, and these changes made to an empty fleet.
    pub fn start(&mut self, fleet: &[Step]) -> Result<()> {
        self.unknown_state = false;
        self.rig.forget_flows();
        self.rig.forget_fragments()?;
        self.moved += self.model.moved;
        self.model = Model::default();
        let wanted: Vec<Change> = fleet
            .iter()
            .filter_map(|step| match step {
                Step::Change(change) => Some(change.clone()),
                Step::Frame(..) => None,
            })
            .collect();
        if self.changes != wanted {
            self.rig.desired.modules.clear();
            self.rig.hops.clear();
            (self.rig.desired.reject, self.rig.desired.drop_closed_ports) = (false, false);
            for change in &wanted {
                change.make(&mut self.rig);
            }
            self.rig.apply()?;
            self.changes = wanted;
        }
        self.tables_changed()
    }

    /// Runs one step, and returns a difference if there is one.
    pub fn step(&mut self, step: &Step) -> Result<Option<Difference>> {
        match step {
            Step::Change(change) => {
                change.make(&mut self.rig);
                self.rig.apply()?;
                self.changes.push(change.clone());
                self.tables_changed()?;
                Ok(None)
            }
            Step::Frame(..) if self.unknown_state => Ok(None),
            Step::Frame(frame, _) if self.hook == Hook::TcIngress && !tc_ingress::takes(frame) => Ok(None),
            Step::Frame(frame, _) => self.frame(frame),
        }
    }

    /// Runs a sequence from its start, up to the first difference.
    pub fn replay(&mut self, steps: &[Step]) -> Result<Option<Difference>> {
        self.start(&[])?;
        for step in steps {
            if let Some(difference) = self.step(step)? {
                return Ok(Some(difference));
            }
        }
        Ok(None)
    }

    /// Removes steps that a difference does not need: first halves, then ever shorter runs.
    pub fn shortest(&mut self, steps: Vec<Step>, difference: Difference) -> Result<(Vec<Step>, Difference)> {
        let (mut shortest, mut found) = (steps, difference);
        let mut run = shortest.len() / 2;
        while run > 0 {
            let mut at = 0;
            while at < shortest.len() {
                let without = [&shortest[..at], &shortest[(at + run).min(shortest.len())..]].concat();
                match self.replay(&without)? {
                    Some(difference) => (shortest, found) = (without, difference),
                    None => at += run,
                }
            }
            run /= 2;
        }
        Ok((shortest, found))
    }

    /// Fails if some exit was never taken.
    pub fn check_all_exits(&self) -> Result<()> {
        self.met(&[
            "pass not_ip",
            "pass group",
            "pass not_ours",
            "pass protocol",
            "pass closed_port",
            "pass no_flow",
            "pass other_host",
            "send forward",
            "send reply",
            "send reject",
            "park next_hop",
            "park fragment",
            "drop truncated",
            "drop ip_header",
            "drop l4_header",
            "drop ipv6_extensions",
            "drop fragment",
            "drop no_backend",
            "drop ttl_exceeded",
            "send ttl_exceeded",
            "drop loop",
            "drop no_route",
            "drop closed_port",
        ])?;
        anyhow::ensure!(self.moved > 20, "connection ids decided for {} flows only", self.moved);
        Ok(())
    }

    pub fn met(&self, wanted: &[&str]) -> Result<()> {
        let missed: Vec<_> = wanted.iter().filter(|exit| !self.met.contains_key(**exit)).collect();
        anyhow::ensure!(missed.is_empty(), "no packet took the exits {missed:?}, only {:?}", self.met);
        Ok(())
    }

    fn frame(&mut self, frame: &[u8]) -> Result<Option<Difference>> {
        let outcome = match self.hook {
            Hook::Xdp => self.rig.run_bytes(frame)?,
            Hook::TcIngress => self.rig.run_at_tc_ingress(frame)?,
        };
        let punted = self.rig.punted();
        let world = world(&self.rig, self.hook);
        let expected = match self.model.packet(&world, frame, &outcome.frame) {
            Ok(expected) => expected,
            Err(difference) => {
                return Ok(Some(format!("{difference}; the program's result\n{}", describe(&outcome))));
            }
        };
        let after = counts(&self.rig)?;
        let grown: BTreeMap<Backend, Growth> = after
            .iter()
            .map(|(backend, count)| (backend.clone(), count.since(&self.counts[backend])))
            .filter(|(_, growth)| *growth != Growth::default())
            .collect();
        self.counts = after;
        for exit in outcome.counted.keys() {
            *self.met.entry(exit.clone()).or_default() += 1;
        }
        self.model.grown.retain(|_, growth| *growth != Growth::default());
        let is_punted = outcome.counted.keys().any(|exit| exit.starts_with("park"));
        let expected_punts: Vec<&[u8]> = if is_punted { vec![frame] } else { Vec::new() };
        if self.hook == Hook::TcIngress && tc_ingress::stack_finds_next_hop(&expected, &outcome) {
            self.unknown_state = true;
            return Ok(None);
        }
        let right = match self.hook {
            Hook::Xdp => is_expected(&expected, frame, &outcome),
            Hook::TcIngress => tc_ingress::is_expected(&expected, frame, &outcome),
        };
        if !right {
            return Ok(Some(format!(
                "the model's result\n{expected:?}\nthe program's result\n{}",
                describe(&outcome)
            )));
        }
        if grown != self.model.grown {
            let wanted = &self.model.grown;
            return Ok(Some(format!(
                "backends' counters should grow by\n{wanted:?}\nthey grew by\n{grown:?}"
            )));
        }
        if punted != expected_punts {
            return Ok(Some(format!(
                "{} frames went to user space, instead of {}",
                punted.len(),
                expected_punts.len()
            )));
        }
        Ok(None)
    }

    fn tables_changed(&mut self) -> Result<()> {
        self.model.tables_changed(&world(&self.rig, self.hook));
        self.counts = counts(&self.rig)?;
        Ok(())
    }
}

fn world(rig: &Rig, hook: Hook) -> World<'_> {
    let at_tc_ingress = hook == Hook::TcIngress;
    World { desired: &rig.desired, hops: &rig.hops, image: rig.image(), at_tc_ingress, flow_hash }
}

/// The hash of labels, outer ports and outer sources. No protocol defines it, only that they vary by flow.
fn flow_hash(flow: &FlowTuple) -> u32 {
    let (sport, dport) = (Be16::new(flow.client_port), Be16::new(flow.port));
    hash::flow(flow.client.into(), flow.vip.into(), sport, dport, flow.l4 as u8) as u32
}

fn counts(rig: &Rig) -> Result<BTreeMap<Backend, Growth>> {
    let count = |(id, backend): (u16, &Arc<Backend>)| {
        let stats = rig.readings().backend(id)?;
        let count = Growth {
            new_flows: stats.new_flows,
            packets: stats.packets,
            bytes: stats.bytes,
            reply_packets: stats.reply_packets,
            reply_bytes: stats.reply_bytes,
            resets: stats.resets,
        };
        Ok((Backend::clone(backend), count))
    };
    rig.image().backend_ids.iter().map(count).collect()
}

impl Growth {
    fn since(&self, before: &Growth) -> Growth {
        Growth {
            new_flows: self.new_flows - before.new_flows,
            packets: self.packets - before.packets,
            bytes: self.bytes - before.bytes,
            reply_packets: self.reply_packets - before.reply_packets,
            reply_bytes: self.reply_bytes - before.reply_bytes,
            resets: self.resets - before.resets,
        }
    }
}

fn is_expected(expected: &Expected, frame: &[u8], outcome: &Outcome) -> bool {
    let exits: Vec<(&String, &u64)> = outcome.counted.iter().collect();
    let [(exit, 1)] = exits[..] else { return false };
    let untouched = outcome.frame == frame;
    match expected {
        Expected::Untouched(exits) => {
            let action = if exit.starts_with("pass") { XDP_PASS } else { XDP_DROP };
            exits.contains(&exit.as_str()) && outcome.action == action && untouched
        }
        Expected::Sent(name, bytes) => {
            let action = if *name == "send reject" { XDP_TX } else { XDP_REDIRECT };
            exit == name && outcome.action == action && bytes.is(&outcome.frame)
        }
        Expected::IcmpError(ip, error) => {
            let (answered, silent) = match error {
                IcmpError::PortUnreachable => ("send reject", "drop no_backend"),
                IcmpError::TtlExceeded => ("send ttl_exceeded", "drop ttl_exceeded"),
                IcmpError::TooBig(_) => ("send too_big", "drop too_big"),
            };
            exit == silent && outcome.action == XDP_DROP && untouched
                || exit == answered
                    && outcome.action == XDP_TX
                    && edits::is_icmp_error(frame, ip, *error, &outcome.frame)
        }
    }
}

fn describe(outcome: &Outcome) -> String {
    format!("{:?}, action {}\n{}", outcome.counted, outcome.action, edits::hex(&outcome.frame))
}
