//! Steps of a sequence: a change of the tables, or a frame. Each is a line of text, which can be pasted into
//! `regressions`.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use nlb::model::{Destination, ForwardMode, Health, Module, Route, Snat};

use super::edits::hex;
use super::quic;
use crate::rig::{self, Rig, families};

#[derive(Clone, Debug)]
pub enum Step {
    Change(Change),
    /// A frame and its description.
    Frame(Vec<u8>, String),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A module at the backend address that ends in its number plus 1.
    Module(u8, ForwardMode, Snat),
    Remove(u8),
    Health(u8, Health),
    Weight(u8, u32),
    /// The configuration of its server id, or none.
    ServerId(u8, Option<u8>),
    /// Whether its next hop is known.
    NextHop(u8, bool),
    Reject(bool),
    DropClosed(bool),
}

pub const MODES: [(&str, ForwardMode, Snat); 6] = [
    ("nat", ForwardMode::Nat, Snat::Always),
    ("nat-on-link", ForwardMode::Nat, Snat::OnLink),
    ("nat-never", ForwardMode::Nat, Snat::Never),
    ("dsr-l2", ForwardMode::DsrL2, Snat::Always),
    ("dsr-ipip", ForwardMode::DsrIpip, Snat::Always),
    ("gue", ForwardMode::Gue, Snat::Always),
];

pub const HEALTHS: [(&str, Health); 5] = [
    ("healthy", Health::Healthy),
    ("degraded", Health::Degraded),
    ("starting", Health::Starting),
    ("unhealthy", Health::Unhealthy),
    ("stopping", Health::Stopping),
];

impl Change {
    /// Changes the desired state. `Rig::apply` changes the tables.
    pub fn make(&self, rig: &mut Rig) {
        let name = |number: &u8| format!("m{number}");
        match self {
            Change::Module(number, mode, snat) => {
                rig.desired.modules.insert(name(number), Arc::new(module(*number, *mode, *snat)));
            }
            Change::Remove(number) => {
                rig.desired.modules.remove(&name(number));
            }
            Change::Health(number, health) => change_module(rig, *number, |module| module.health = *health),
            Change::Weight(number, weight) => change_module(rig, *number, |module| module.weight = *weight),
            Change::ServerId(number, config) => change_module(rig, *number, |module| {
                module.quic = config.and_then(|config| quic::server(*number, config));
            }),
            Change::NextHop(number, known) => {
                let data = rig::module(ForwardMode::Nat, number + 1).data;
                let addresses = [data.v4.map(Into::into), data.v6.map(Into::into)];
                for (addr, family) in addresses.into_iter().flatten().zip(families()) {
                    if *known {
                        rig.know(addr, family.source);
                    } else {
                        rig.hops.remove(&addr);
                    }
                }
            }
            Change::Reject(on) => rig.desired.reject = *on,
            Change::DropClosed(on) => rig.desired.drop_closed_ports = *on,
        }
    }
}

/// Changes a module if it is registered.
fn change_module(rig: &mut Rig, number: u8, change: impl FnOnce(&mut Module)) {
    if let Some(module) = rig.desired.modules.get_mut(&format!("m{number}")) {
        change(Arc::make_mut(module));
    }
}

/// A module with more routes than the rig's: a second port with the same destination, a port for some sources
/// only and, of every second module, every TCP port of the second VIPs.
fn module(number: u8, mode: ForwardMode, snat: Snat) -> Module {
    let mut module = rig::module(mode, number + 1);
    module.snat = snat;
    let tcp = Route::clone(&module.routes["tcp"]);
    let [v4, v6] = families();
    let mut add = |id: &str, route: Route| module.routes.insert(id.to_owned(), route.into());
    add("second", Route { port: Some(81), ..tcp.clone() });
    let source = Some("198.51.100.0/24".parse().expect("a prefix"));
    add("near", Route { port: Some(443), source, destination: Destination::Address(v4.vip), ..tcp.clone() });
    if number.is_multiple_of(2) {
        for (id, vip) in [("wide4", v4.vip2), ("wide6", v6.vip2)] {
            let destination = Destination::Address(vip);
            add(id, Route { port: None, listen_port: None, destination, ..tcp.clone() });
        }
    }
    module
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = |on: &bool| if *on { "on" } else { "off" };
        match self {
            Step::Frame(bytes, words) => write!(f, "frame {} # {words}", hex(bytes)),
            Step::Change(Change::Module(number, mode, snat)) => {
                let mode = MODES.iter().find(|(_, m, s)| (m, s) == (mode, snat)).expect("one of them");
                write!(f, "module {number} {}", mode.0)
            }
            Step::Change(Change::Remove(number)) => write!(f, "remove {number}"),
            Step::Change(Change::Health(number, health)) => {
                let health = HEALTHS.iter().find(|(_, h)| h == health).expect("one of them");
                write!(f, "health {number} {}", health.0)
            }
            Step::Change(Change::Weight(number, weight)) => write!(f, "weight {number} {weight}"),
            Step::Change(Change::ServerId(number, Some(config))) => write!(f, "server-id {number} {config}"),
            Step::Change(Change::ServerId(number, None)) => write!(f, "server-id {number} off"),
            Step::Change(Change::NextHop(number, known)) => write!(f, "next-hop {number} {}", on(known)),
            Step::Change(Change::Reject(value)) => write!(f, "reject {}", on(value)),
            Step::Change(Change::DropClosed(value)) => write!(f, "drop-closed {}", on(value)),
        }
    }
}

/// Parses printed steps.
pub fn parse(text: &str) -> Result<Vec<Step>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| step(line).with_context(|| format!("in the line `{line}`"))).collect()
}

fn step(line: &str) -> Result<Step> {
    let (code, comment) = line.split_once('#').unwrap_or((line, ""));
    let words: Vec<&str> = code.split_whitespace().collect();
    let on = |word: &str| match word {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => bail!("`{word}` is neither on nor off"),
    };
    Ok(Step::Change(match words[..] {
        ["frame", hex] => return Ok(Step::Frame(bytes(hex)?, comment.trim().to_owned())),
        ["module", number, mode] => {
            let found = MODES.iter().find(|(name, ..)| *name == mode).context("no such mode")?;
            Change::Module(number.parse()?, found.1, found.2)
        }
        ["remove", number] => Change::Remove(number.parse()?),
        ["health", number, health] => {
            let found = HEALTHS.iter().find(|(name, _)| *name == health).context("no such health")?;
            Change::Health(number.parse()?, found.1)
        }
        ["weight", number, weight] => Change::Weight(number.parse()?, weight.parse()?),
        ["server-id", number, "off"] => Change::ServerId(number.parse()?, None),
        ["server-id", number, config] => Change::ServerId(number.parse()?, Some(config.parse()?)),
        ["next-hop", number, known] => Change::NextHop(number.parse()?, on(known)?),
        ["reject", word] => Change::Reject(on(word)?),
        ["drop-closed", word] => Change::DropClosed(on(word)?),
        _ => bail!("no such step"),
    }))
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    let digits = hex.as_bytes();
    let pair = |pair: &[u8]| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
    digits.chunks(2).map(pair).collect()
}
