//! Routes between protobuf and the model. A route that the data path cannot enforce is refused.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use nlb_proto as proto;

use super::enums;
use super::validate::{self, FieldViolation};
use crate::model::vips::Vips;
use crate::model::{Destination, L4, ModuleType, Protocol, Route, Routes, Targets, Texts, UDP_REBALANCE};

/// The owner of a route, which decides which metadata keys have a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Author {
    Module,
    Operator,
}

const OPERATORS_KEYS: [&str; 2] = ["target_instances", "target_module_type"];
const INSTANCES_KEYS: [&str; 6] =
    ["forward_mode", "snat", "reply_path", "data_address", "quic_server_id", "quic_config_id"];

/// The routes of one message.
#[derive(Debug)]
pub(crate) struct ParsedRoutes {
    pub routes: Routes,
    /// Routes with a protocol of a later contract, as a sentence: they alone are refused.
    pub refused: Option<String>,
}

/// The routes of one message by id, or all violations in them.
pub(crate) fn parse_all(
    field: &str,
    routes: Vec<proto::Route>,
    author: Author,
    vips: &Vips,
) -> Result<ParsedRoutes, Vec<FieldViolation>> {
    let mut parsed = Routes::new();
    let (mut violations, mut refused) = (Vec::new(), Vec::new());
    for (index, route) in routes.into_iter().enumerate() {
        let place = format!("{field}[{index}]");
        if proto::Protocol::try_from(route.protocol).is_err()
            && validate::id("route_id", &route.route_id).is_ok()
        {
            refused.push(format!("{} (protocol {})", route.route_id, route.protocol));
            continue;
        }
        match parse(route, author, vips) {
            Ok((id, _)) if parsed.contains_key(&id) => {
                violations
                    .push(FieldViolation::new("route_id", format!("{id:?} is listed twice")).within(place));
            }
            Ok((id, route)) => drop(parsed.insert(id, route.into())),
            Err(violation) => violations.push(violation.within(place)),
        }
    }
    if !violations.is_empty() {
        return Err(violations);
    }
    let refused = (!refused.is_empty())
        .then(|| format!("refused, with a protocol that this NLB does not know: {}", refused.join(", ")));
    Ok(ParsedRoutes { routes: parsed, refused })
}

pub(crate) fn parse(
    route: proto::Route,
    author: Author,
    vips: &Vips,
) -> Result<(String, Route), FieldViolation> {
    let id = validate::id("route_id", &route.route_id)?;
    let protocol = protocol(route.protocol)?;
    let source = source(&route.source_pattern)?;
    let destination = destination(&route.destination_pattern)?;
    vips.admit(&destination).map_err(|problem| FieldViolation::new("destination_pattern", problem))?;
    same_family(source, destination)?;
    if route.source_port != 0 {
        return Err(FieldViolation::new("source_port", "must be 0: clients' ports are not matched on"));
    }
    let port = validate::port("destination_port", route.destination_port)?.or(protocol.well_known_port());
    if port.is_none() && !protocol.may_have_every_port() {
        let problem = format!(
            "is 0, and {} has no well-known port; give one",
            enums::protocol_to_wire(protocol).as_str_name()
        );
        return Err(FieldViolation::new("destination_port", problem));
    }
    let metadata = validate::text_map("metadata", route.metadata)?;
    if validate::bool_entry("metadata", &metadata, UDP_REBALANCE)? && protocol.l4() != L4::Udp {
        let problem = "is for routes of UDP: a TCP connection cannot move to another module";
        return Err(FieldViolation::new(format!("metadata.{UDP_REBALANCE}"), problem));
    }
    let route = Route {
        protocol,
        source,
        destination,
        port,
        priority: route.priority,
        listen_port: validate::port_entry("metadata", &metadata, "listen_port")?,
        targets: targets(author, &metadata)?,
        headers: validate::text_map("headers", route.headers)?,
        path_pattern: validate::text("path_pattern", &route.path_pattern, validate::TEXT_LENGTH)?,
        metadata,
    };
    Ok((id, route))
}

pub(crate) fn render(id: &str, route: &Route) -> proto::Route {
    let destination = match route.destination {
        Destination::EveryVip => "*".to_owned(),
        Destination::Address(address) => address.to_string(),
        Destination::Prefix(prefix) => prefix.to_string(),
    };
    proto::Route {
        route_id: id.to_owned(),
        protocol: enums::protocol_to_wire(route.protocol).into(),
        source_pattern: route.source.map_or_else(|| "*".to_owned(), render_net),
        destination_pattern: destination,
        source_port: 0,
        destination_port: route.port.unwrap_or(0).into(),
        headers: route.headers.clone().into_iter().collect(),
        path_pattern: route.path_pattern.clone(),
        priority: route.priority,
        metadata: route.metadata.clone().into_iter().collect(),
    }
}

/// The fields that were accepted and are not matched, as a sentence.
pub(crate) fn unenforced(routes: &Routes) -> Option<String> {
    let deep = routes.iter().filter(|(_, route)| !route.headers.is_empty() || !route.path_pattern.is_empty());
    let ids: Vec<&str> = deep.map(|(id, _)| id.as_str()).collect();
    (!ids.is_empty()).then(|| {
        format!(
            "headers and path_pattern of {} are kept and shown to modules, but not matched: the NLB does not look into \
             streams",
            ids.join(", ")
        )
    })
}

pub(crate) fn protocol(number: i32) -> Result<Protocol, FieldViolation> {
    let wire = validate::known("protocol", number)?;
    enums::protocol_from_wire(wire)
        .ok_or_else(|| FieldViolation::new("protocol", "is unspecified; name one, such as PROTOCOL_TCP"))
}

pub(crate) fn destination(pattern: &str) -> Result<Destination, FieldViolation> {
    Ok(match net("destination_pattern", pattern)? {
        None => Destination::EveryVip,
        Some(net) if net.prefix_len() == net.max_prefix_len() => Destination::Address(net.addr()),
        Some(net) => Destination::Prefix(net),
    })
}

pub(crate) fn source(pattern: &str) -> Result<Option<IpNet>, FieldViolation> {
    net("source_pattern", pattern)
}

/// An address or CIDR; `None` for the wildcard.
pub(crate) fn net(field: &str, pattern: &str) -> Result<Option<IpNet>, FieldViolation> {
    if pattern.is_empty() || pattern == "*" {
        return Ok(None);
    }
    let violation = |problem| Err(FieldViolation::new(field, format!("{pattern:?} {problem}")));
    let net = match (pattern.parse::<IpAddr>(), pattern.parse::<IpNet>()) {
        (Ok(address), _) => IpNet::from(address),
        (_, Ok(net)) => net,
        _ => {
            return violation(
                "is neither an address, a CIDR nor *; domain names cannot be enforced on packets".to_owned(),
            );
        }
    };
    if net.trunc() != net {
        return violation(format!("has bits beyond its prefix; write {} or {}", net.trunc(), net.addr()));
    }
    if matches!(net, IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some()) {
        return violation("is v4-mapped; write it as IPv4".to_owned());
    }
    Ok(Some(net))
}

fn same_family(source: Option<IpNet>, destination: Destination) -> Result<(), FieldViolation> {
    let destination = match destination {
        Destination::EveryVip => return Ok(()),
        Destination::Address(address) => address.is_ipv6(),
        Destination::Prefix(prefix) => prefix.addr().is_ipv6(),
    };
    match source {
        Some(source) if source.addr().is_ipv6() != destination => Err(FieldViolation::new(
            "source_pattern",
            "is of another address family than destination_pattern: nothing matches",
        )),
        _ => Ok(()),
    }
}

fn targets(author: Author, metadata: &Texts) -> Result<Targets, FieldViolation> {
    let misplaced = |key: &str, place| Err(FieldViolation::new(format!("metadata.{key}"), place));
    if let Some(key) = INSTANCES_KEYS.into_iter().find(|key| metadata.contains_key(*key)) {
        return misplaced(key, "belongs to instance.metadata: it holds for all routes of an instance");
    }
    let given = OPERATORS_KEYS.map(|key| metadata.get(key).map(String::as_str));
    match (author, given) {
        (_, [None, None]) => Ok(Targets::Implied),
        (Author::Module, [Some(_), _]) => misplaced(OPERATORS_KEYS[0], "is for operators' routes only"),
        (Author::Module, _) => misplaced(OPERATORS_KEYS[1], "is for operators' routes only"),
        (Author::Operator, [Some(_), Some(_)]) => {
            misplaced(OPERATORS_KEYS[0], "and target_module_type exclude each other")
        }
        (Author::Operator, [Some(ids), None]) => {
            let ids = ids.split(',').map(|id| validate::id("metadata.target_instances", id.trim()));
            Ok(Targets::Instances(ids.collect::<Result<BTreeSet<String>, _>>()?.into()))
        }
        (Author::Operator, [None, Some(name)]) => Ok(Targets::Type(target_type(name)?)),
    }
}

fn target_type(name: &str) -> Result<ModuleType, FieldViolation> {
    let known = enums::module_type_by_name(name);
    known.ok_or_else(|| {
        FieldViolation::new(
            "metadata.target_module_type",
            format!("{name:?} is none of ALB, DBLB, AILB, RTMP and NLB"),
        )
    })
}

fn render_net(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}
