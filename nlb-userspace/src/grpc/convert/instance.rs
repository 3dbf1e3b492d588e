//! Module instances between protobuf and the registry.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use nlb_common::quic;
use nlb_proto as proto;

use super::numbers::signed_32;
use super::validate::{self, FieldViolation};
use super::{deployment, enums, scaling_config};
use crate::model::endpoint::{Endpoint, Host};
use crate::model::traffic::Counts;
use crate::model::{DEFAULT_WEIGHT, DataAddresses, ForwardMode, Health, Module, Routes, Server, Snat, Texts};
use crate::registry::{Attempt, Claim, Record, Registration};

/// A module's registration, before its names are resolved and without its routes.
pub(crate) fn parse(
    instance: proto::ModuleInstance,
    default_mode: ForwardMode,
) -> Result<(Registration, Claim), FieldViolation> {
    let instance_id = validate::id("instance_id", &instance.instance_id)?;
    let module_type = enums::module_type_from_wire(validate::known("module_type", instance.module_type)?)
        .ok_or_else(|| {
            FieldViolation::new("module_type", "is unspecified; name one, such as MODULE_TYPE_ALB")
        })?;
    let address: Endpoint =
        instance.address.parse().map_err(|problem: String| FieldViolation::new("address", problem))?;
    let health = enums::health_from_wire(validate::known_or_unspecified(instance.health_status));
    validate::unsigned_32("current_connections", instance.current_connections)?;
    let weight = match validate::weight("traffic_weight", instance.traffic_weight)? {
        0 => DEFAULT_WEIGHT,
        weight => weight,
    };
    let mut metadata = validate::text_map("metadata", instance.metadata)?;
    // Secrets, which GetInstances must not return.
    let claim = metadata.remove("registration_id").map_or(Claim::None, Claim::RegistrationId);
    let attempt = attempt(&mut metadata)?;
    let mode = forward_mode(&metadata)?.unwrap_or(default_mode);
    let registration = Registration {
        instance_id,
        data_hosts: data_hosts(&metadata)?.unwrap_or_else(|| vec![address.host.clone()]),
        address,
        module: Module {
            module_type,
            deployment: deployment::of_instance(&metadata, module_type)?,
            version: validate::version("version", &instance.version)?,
            weight,
            health: health.unwrap_or(Health::Healthy),
            data: DataAddresses::default(),
            mode,
            snat: snat(&metadata, mode)?,
            listen_port: validate::port_entry("metadata", &metadata, "listen_port")?,
            max_connections: validate::unsigned_32("max_connections", instance.max_connections)?,
            quic: quic(&metadata)?,
            routes: Routes::new(),
            abilities: BTreeMap::new(),
        },
        check: None,
        started_at: validate::time("started_at", instance.started_at)?,
        attempt,
        scaling: scaling_config::parse_metadata(&metadata)?,
        metadata,
        capabilities: Texts::new(),
    };
    Ok((registration, claim))
}

pub(crate) fn render(record: &Record, counts: Counts) -> proto::ModuleInstance {
    let Registration { instance_id, address, module, started_at, metadata, .. } = &record.registration;
    proto::ModuleInstance {
        instance_id: instance_id.clone(),
        module_type: enums::module_type_to_wire(module.module_type).into(),
        address: address.to_string(),
        health_status: enums::health_to_wire(record.health()).into(),
        metadata: metadata.clone().into_iter().collect(),
        started_at: started_at.map(Into::into),
        current_connections: signed_32(counts.active_flows),
        max_connections: signed_32(module.max_connections),
        version: module.version.clone(),
        traffic_weight: signed_32(module.weight),
    }
}

/// 64 bits and more in hexadecimal: a nonce that can be guessed gives the registration away.
const NONCE_LENGTH: RangeInclusive<usize> = 16..=64;

/// The process that registers, and the number of its call.
fn attempt(metadata: &mut Texts) -> Result<Option<Attempt>, FieldViolation> {
    const NONCE: &str = "metadata.registration_nonce";
    const NUMBER: &str = "metadata.registration_attempt";
    let number = match metadata.remove("registration_attempt") {
        None => None,
        Some(text) => {
            let digits = Some(&text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let number = digits.and_then(|digits| digits.parse::<u64>().ok()).ok_or_else(|| {
                FieldViolation::new(NUMBER, format!("{text:?} is not a whole number from 0 to {}", u64::MAX))
            })?;
            Some(number)
        }
    };
    match (metadata.remove("registration_nonce"), number) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(FieldViolation::new(
            NUMBER,
            "means nothing without a registration_nonce; give both or neither",
        )),
        (Some(nonce), number) => {
            let visible = nonce.bytes().all(|byte| byte.is_ascii_graphic());
            if !visible || !NONCE_LENGTH.contains(&nonce.len()) {
                let (least, most) = (NONCE_LENGTH.start(), NONCE_LENGTH.end());
                let problem = format!("is not {least} to {most} visible ASCII characters, drawn at random");
                return Err(FieldViolation::new(NONCE, problem));
            }
            Ok(Some(Attempt::new(nonce, number.unwrap_or(0))))
        }
    }
}

fn forward_mode(metadata: &Texts) -> Result<Option<ForwardMode>, FieldViolation> {
    let problem = match metadata.get("forward_mode").map(String::as_str) {
        None => return Ok(None),
        Some("nat") => return Ok(Some(ForwardMode::Nat)),
        Some("dsr-l2") => return Ok(Some(ForwardMode::DsrL2)),
        Some("dsr-ipip") => return Ok(Some(ForwardMode::DsrIpip)),
        Some("gue") => return Ok(Some(ForwardMode::Gue)),
        Some(other) => format!("{other:?} is none of nat, dsr-l2, dsr-ipip and gue"),
    };
    Err(FieldViolation::new("metadata.forward_mode", problem))
}

fn snat(metadata: &Texts, mode: ForwardMode) -> Result<Snat, FieldViolation> {
    let replies_cross_us = match metadata.get("reply_path").map(String::as_str) {
        None => false,
        Some("nlb") => true,
        Some(other) => {
            let problem =
                format!("{other:?} is not nlb; leave it out if replies do not come back through the NLB");
            return Err(FieldViolation::new("metadata.reply_path", problem));
        }
    };
    let requested = metadata.get("snat").map(String::as_str);
    if mode != ForwardMode::Nat && (requested.is_some() || replies_cross_us) {
        let key = if requested.is_some() { "metadata.snat" } else { "metadata.reply_path" };
        return Err(FieldViolation::new(
            key,
            "is for forward_mode nat only: otherwise the module answers clients directly",
        ));
    }
    match requested {
        None | Some("auto") if replies_cross_us => Ok(Snat::OnLink),
        None | Some("auto" | "always") => Ok(Snat::Always),
        Some("never") => Ok(Snat::Never),
        Some(other) => {
            Err(FieldViolation::new("metadata.snat", format!("{other:?} is none of auto, always and never")))
        }
    }
}

/// How the connection ids of the module's QUIC server name it, in plain text as in QUIC-LB.
fn quic(metadata: &Texts) -> Result<Option<Server>, FieldViolation> {
    const ID: &str = "metadata.quic_server_id";
    const CONFIG: &str = "metadata.quic_config_id";
    let config = match metadata.get("quic_config_id") {
        None => 0,
        Some(number) => number.parse().ok().filter(|number| *number < quic::CONFIGS).ok_or_else(|| {
            FieldViolation::new(CONFIG, format!("{number:?} is not a number from 0 to {}", quic::CONFIGS - 1))
        })?,
    };
    let Some(id) = metadata.get("quic_server_id") else {
        return match metadata.contains_key("quic_config_id") {
            true => Err(FieldViolation::new(
                CONFIG,
                "means nothing without a quic_server_id; give both or neither",
            )),
            false => Ok(None),
        };
    };
    let server = octets(id).and_then(|octets| Server::new(config, &octets));
    server.map(Some).ok_or_else(|| {
        FieldViolation::new(
            ID,
            format!("{id:?} is not 1 to {} octets in hexadecimal, such as 0a1b", quic::MAX_ID),
        )
    })
}

fn octets(hexadecimal: &str) -> Option<Vec<u8>> {
    let digits = hexadecimal.chars().map(|digit| Some(digit.to_digit(16)? as u8));
    let digits: Vec<u8> = digits.collect::<Option<_>>()?;
    let (pairs, odd) = digits.as_chunks();
    odd.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// Up to one host of each family; a name may resolve to both.
fn data_hosts(metadata: &Texts) -> Result<Option<Vec<Host>>, FieldViolation> {
    let Some(list) = metadata.get("data_address") else { return Ok(None) };
    let violation = |problem| FieldViolation::new("metadata.data_address", problem);
    let hosts = list.split(',').map(|host| host.trim().parse::<Host>().map_err(violation));
    let hosts: Vec<Host> = hosts.collect::<Result<_, _>>()?;
    let of =
        |v6: bool| hosts.iter().filter(|host| matches!(host, Host::Address(a) if a.is_ipv6() == v6)).count();
    if hosts.len() > 2 || of(false) > 1 || of(true) > 1 {
        return Err(violation(format!("{list:?} lists more than one IPv4 and one IPv6 address")));
    }
    Ok(Some(hosts))
}
