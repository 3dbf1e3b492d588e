//! Values of settings, in the form that operators write.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use ipnet::IpNet;
use nlb_common::net::Mac;
use serde::{Deserialize, Serialize};

use crate::model::ForwardMode;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// Native mode if the driver supports it, otherwise generic mode.
    #[default]
    Auto,
    /// In the driver; an error if it does not support XDP.
    Native,
    /// In the kernel's stack: on every interface, but slower.
    Generic,
}

/// A forward mode in the form that operators write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Destination rewritten; replies come back through the NLB
    Nat,
    /// MAC addresses rewritten; modules answer clients directly
    DsrL2,
    /// Outer IP header added; modules answer clients directly
    DsrIpip,
    /// Outer IP and UDP headers added; modules answer clients directly
    Gue,
}

impl From<ForwardMode> for Mode {
    fn from(mode: ForwardMode) -> Self {
        match mode {
            ForwardMode::Nat => Mode::Nat,
            ForwardMode::DsrL2 => Mode::DsrL2,
            ForwardMode::DsrIpip => Mode::DsrIpip,
            ForwardMode::Gue => Mode::Gue,
        }
    }
}

impl From<Mode> for ForwardMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Nat => ForwardMode::Nat,
            Mode::DsrL2 => ForwardMode::DsrL2,
            Mode::DsrIpip => ForwardMode::DsrIpip,
            Mode::Gue => ForwardMode::Gue,
        }
    }
}

/// An address, or a CIDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Net(pub IpNet);

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net = text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse::<IpNet>());
        let net = net.map_err(|_| format!("{text:?} is neither an address nor a CIDR"))?;
        if net.trunc() != net {
            return Err(format!(
                "{text:?} has bits beyond its prefix; write {} or {}",
                net.trunc(),
                net.addr()
            ));
        }
        match crate::model::vips::unusable(net.addr()) {
            Some(kind) if net.prefix_len() == net.max_prefix_len() => {
                Err(format!("{text:?} is {kind}: clients cannot connect to it"))
            }
            _ => Ok(Net(net)),
        }
    }
}

/// A MAC address that an interface accepts as a destination; `None` stands for any.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct AcceptMac {
    pub interface: String,
    pub mac: Option<Mac>,
}

impl FromStr for AcceptMac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is not of the form eth0=00:00:5e:00:01:33 or eth0=any");
        let (interface, mac) = text.split_once('=').ok_or_else(form)?;
        let mac = match mac {
            "any" => None,
            mac => Some(mac_address(mac).ok_or_else(form)?),
        };
        match mac {
            Some(mac) if mac.is_group() => Err(format!(
                "{text:?} names a multicast or broadcast address: the kernel receives those frames"
            )),
            Some(Mac::NONE) => Err(format!("{text:?} names the address of no host")),
            _ => Ok(AcceptMac { interface: interface.to_owned(), mac }),
        }
    }
}

/// Six numbers in hexadecimal, separated by colons.
fn mac_address(text: &str) -> Option<Mac> {
    let mut parts = text.split(':').map(|part| {
        let is_byte = (1..=2).contains(&part.len()) && part.chars().all(|c| c.is_ascii_hexdigit());
        is_byte.then(|| u8::from_str_radix(part, 16).ok())?
    });
    let mut bytes = [0; 6];
    for byte in &mut bytes {
        *byte = parts.next()??;
    }
    parts.next().is_none().then(|| Mac::new(bytes))
}

impl fmt::Display for AcceptMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mac {
            Some(mac) => write!(f, "{}={mac:?}", self.interface),
            None => write!(f, "{}=any", self.interface),
        }
    }
}

/// A range of ports.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ports(pub RangeInclusive<u16>);

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ends =
            text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        match ends {
            Some((first, last)) if first > 0 && first <= last => Ok(Ports(first..=last)),
            _ => Err(format!("{text:?} is not a range of ports, such as 1024-32767")),
        }
    }
}

/// A length of time, such as `500ms`, `10s`, `5m` or `2h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => 0,
        };
        let span =
            number.parse::<u32>().map(|number| Duration::from_millis(u64::from(number) * milliseconds));
        span.ok()
            .filter(|span| !span.is_zero())
            .map(Span)
            .ok_or_else(|| format!("{text:?} is not a length of time, such as 500ms, 10s, 5m or 2h"))
    }
}

macro_rules! from_text {
    ($($name:ident),+) => {$(
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
    )+};
}
from_text!(AcceptMac, Net, Ports, Span);

impl From<AcceptMac> for String {
    fn from(accept: AcceptMac) -> String {
        accept.to_string()
    }
}

impl From<Net> for String {
    fn from(net: Net) -> String {
        match net.0 {
            net if net.prefix_len() == net.max_prefix_len() => net.addr().to_string(),
            net => net.to_string(),
        }
    }
}

impl From<Ports> for String {
    fn from(ports: Ports) -> String {
        format!("{}-{}", ports.0.start(), ports.0.end())
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        let milliseconds = span.0.as_millis();
        let units = [(3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
        let (length, unit) =
            units.into_iter().find(|(length, _)| milliseconds.is_multiple_of(*length)).unwrap_or((1, "ms"));
        format!("{}{unit}", milliseconds / length)
    }
}
