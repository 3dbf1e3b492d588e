//! Changes of routes, and route requests.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use nlb_proto::{
    CanHandleRequest, CanHandleResponse, Error, RouteRequestRequest, RouteRequestResponse, StatusCode,
    UpdateRoutingRequest, UpdateRoutingResponse, ValidateRouteRequest, ValidateRouteResponse,
};

use super::control::Control;
use super::load::full_instances;
use crate::compile::{FlowTuple, MapImage};
use crate::grpc::client::fan_out::peer;
use crate::grpc::client::peers::{ANSWER_TIMEOUT, Outcome};
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::numbers::signed_32;
use crate::grpc::convert::route::{self, Author, ParsedRoutes};
use crate::grpc::convert::validate::{self, FieldViolation};
use crate::grpc::convert::{any, enums};
use crate::model::clock::Now;
use crate::model::destination::L4Destination;
use crate::model::{Backend, Destination, ForwardMode, Routes, Targets, Texts};
use crate::registry::{Commit, Owner, State};

/// A message may have a violation in each of its routes, and the answer has to fit in the message size of
/// clients.
const MAX_REPORTED_VIOLATIONS: usize = 1000;

/// The operator's routes that no registered instance serves, and why, as a sentence.
fn unserved(routes: &Routes, state: &State) -> Option<String> {
    let mut whys = Vec::new();
    for (id, route) in routes {
        if let Targets::Instances(named) = &route.targets {
            let unknown: Vec<&str> =
                named.iter().filter(|named| !state.modules.contains_key(*named)).collect();
            if !unknown.is_empty() {
                whys.push(format!("{id}: {} is not registered", unknown.join(", ")));
                continue;
            }
        }
        if state.targets(route).next().is_none() {
            whys.push(format!("{id}: no instance of its type is registered"));
        }
    }
    (!whys.is_empty()).then(|| format!("without traffic until that changes: {}", whys.join("; ")))
}

impl Control {
    pub async fn update_routing(
        &self,
        request: UpdateRoutingRequest,
    ) -> Result<UpdateRoutingResponse, CallError> {
        let by_module = !request.source_instance_id.is_empty();
        let (owner, author) = if by_module {
            let instance_id = validate::id("source_instance_id", &request.source_instance_id)?;
            (Some(instance_id), Author::Module)
        } else {
            (None, Author::Operator)
        };
        let owner = match &owner {
            Some(instance_id) => Owner::Module { instance_id, registration_id: &request.registration_id },
            None => Owner::Operator,
        };
        let settings = self.registry.settings();
        let vips = &settings.vips;
        let ParsedRoutes { routes, refused } = match route::parse_all("routes", request.routes, author, vips)
        {
            Ok(parsed) => parsed,
            Err(violations) if request.validate_only => {
                let validation_errors =
                    violations.iter().take(MAX_REPORTED_VIOLATIONS).map(FieldViolation::to_string).collect();
                return Ok(UpdateRoutingResponse {
                    message: "the routes are not valid; nothing was changed".to_owned(),
                    validation_errors,
                    error: Some(CallError::from(violations).to_proto()),
                    ..Default::default()
                });
            }
            Err(violations) => return Err(violations.into()),
        };
        let unenforced = route::unenforced(&routes);
        let taken = self.taken_from_host(&routes);
        let unserved = if by_module { None } else { unserved(&routes, &self.registry.snapshot()) };
        let commit = if request.validate_only { Commit::DryRun } else { Commit::Apply };
        let in_force = routes.len();
        let (changed, revision) =
            self.registry.update_routes(owner, routes, request.replace_all, commit, Now::read())?;
        if let Owner::Module { instance_id, registration_id: "" } = owner
            && commit == Commit::Apply
            && changed > 0
        {
            // Anybody may have changed them.
            self.registry.request_reload(instance_id);
        }
        let done = match commit {
            Commit::DryRun => "valid; nothing was changed",
            Commit::Apply => {
                self.routes_settled(owner, revision).await?;
                "applied"
            }
        };
        let texts = [Some(done.to_owned()), refused, unserved, unenforced, taken].into_iter().flatten();
        Ok(UpdateRoutingResponse {
            success: true,
            message: texts.collect::<Vec<_>>().join("; "),
            routes_updated: signed_32(in_force),
            ..Default::default()
        })
    }

    pub(super) fn overlaps(&self, destination: Destination, net: IpNet) -> bool {
        match destination {
            Destination::EveryVip => {
                self.registry.settings().vips.addresses().iter().any(|vip| net.contains(vip))
            }
            Destination::Address(address) => net.contains(&address),
            Destination::Prefix(prefix) => net.contains(&prefix) || prefix.contains(&net),
        }
    }

    pub async fn validate_route(
        &self,
        request: ValidateRouteRequest,
    ) -> Result<ValidateRouteResponse, CallError> {
        let message = request.route.ok_or_else(|| FieldViolation::new("route", "is missing"))?;
        let settings = self.registry.settings();
        let vips = &settings.vips;
        let (_, route) = match route::parse(message.clone(), Author::Operator, vips) {
            Ok(parsed) => parsed,
            Err(violation) => {
                return Ok(ValidateRouteResponse {
                    validation_errors: vec![violation.within("route").to_string()],
                    ..Default::default()
                });
            }
        };
        let snapshot = self.registry.snapshot();
        let suited = snapshot.targets(&route).filter(|(_, record)| record.could_serve(&route));
        let suited = suited.map(|(_, record)| peer(record)).collect();
        let context = [("owner".to_owned(), "operator".to_owned())].into();
        let question = CanHandleRequest { route: Some(message), context };
        let outcomes = self.peers.pass_on(suited, |_| question.clone(), ANSWER_TIMEOUT, false).await;
        // A module without an answer counts as able, as in the data path.
        let is_able = |outcome: &Outcome<CanHandleResponse>| !matches!(outcome, Outcome::Done(answer) if !answer.can_handle);
        let able = outcomes.into_iter().filter(|(_, outcome)| is_able(outcome));
        let capable_instances: Vec<String> = able.map(|(id, _)| id).collect();
        let port = route.port.map_or_else(|| "every port".to_owned(), |port| format!("port {port}"));
        let mut details = BTreeMap::from([("matches".to_owned(), format!("{} {port}", route.protocol.l4()))]);
        details.extend(
            route::unenforced(&Routes::unit("this route".to_owned(), route.clone().into()))
                .map(|note| ("not_matched".to_owned(), note)),
        );
        Ok(ValidateRouteResponse {
            valid: true,
            has_handler: !capable_instances.is_empty(),
            capable_instances,
            validation_errors: Vec::new(),
            details: details.into_iter().collect(),
        })
    }

    /// What the data path would do with a new flow. The call changes nothing.
    pub fn route_request(&self, request: RouteRequestRequest) -> Result<RouteRequestResponse, CallError> {
        let message = request.route.ok_or_else(|| FieldViolation::new("route", "is missing"))?;
        let context = validate::text_map("context", request.context)?;
        let flows = self.flows(message, &context)?;
        let image = self.applied.borrow().image.clone();
        let snapshot = self.registry.snapshot();
        let traffic = self.traffic.borrow().clone();
        let full = full_instances(&snapshot, &traffic);
        let has_room = |backend: &Backend| !full.contains(backend.instance_id.as_str());
        let chosen = flows.iter().find_map(|flow| Some((*flow, image.choose_with_room(flow, has_room)?)));
        let Some((flow, backend)) = chosen else {
            return Ok(not_routed(&flows, &image));
        };
        let record = snapshot.record(&backend.instance_id)?;
        let port =
            if backend.port == 0 || backend.mode != ForwardMode::Nat { flow.port } else { backend.port };
        let mode = enums::forward_mode_name(backend.mode);
        Ok(RouteRequestResponse {
            routed: true,
            target_instance_id: backend.instance_id.clone(),
            target_module_type: enums::module_type_to_wire(record.registration.module.module_type).into(),
            target_address: std::net::SocketAddr::new(backend.addr, port).to_string(),
            priority: self.priority(&snapshot, &flow, backend),
            message: format!("{} port {} from {} goes by {mode}", flow.vip, flow.port, flow.client),
            error: None,
        })
    }

    /// The flows that a route stands for: from the client in the context or the source pattern, or from a
    /// random one; to its destination, or to any VIP. There is at least one.
    fn flows(&self, message: nlb_proto::Route, context: &Texts) -> Result<Vec<FlowTuple>, FieldViolation> {
        let within = |violation: FieldViolation| violation.within("route");
        let protocol = route::protocol(message.protocol).map_err(within)?;
        // These fields do not affect the answer, and still have to be valid.
        validate::optional_id("route_id", &message.route_id).map_err(within)?;
        validate::text("path_pattern", &message.path_pattern, validate::TEXT_LENGTH).map_err(within)?;
        validate::text_map("headers", message.headers).map_err(within)?;
        validate::text_map("metadata", message.metadata).map_err(within)?;
        let settings = self.registry.settings();
        let vips: Vec<IpAddr> = match route::destination(&message.destination_pattern).map_err(within)? {
            Destination::Address(address) => vec![address],
            Destination::EveryVip => settings.vips.addresses().iter().copied().collect(),
            Destination::Prefix(_) => {
                let problem = "must be one address, or empty for any VIP: a packet has one";
                return Err(FieldViolation::new("route.destination_pattern", problem));
            }
        };
        let port = validate::port("destination_port", message.destination_port).map_err(within)?;
        let Some(port) = port.or(protocol.well_known_port()) else {
            return Err(FieldViolation::new(
                "route.destination_port",
                "must be given: this protocol has no well-known port",
            ));
        };
        let source = route::source(&message.source_pattern).map_err(within)?;
        let source_port = validate::port("source_port", message.source_port).map_err(within)?;
        let client_port = validate::port_entry("context", context, "source_port")?.or(source_port);
        let client_port = client_port.unwrap_or_else(any::port);
        let client = context.get("source_address").map(|text| {
            let problem =
                || FieldViolation::new("context.source_address", format!("{text:?} is not an address"));
            text.parse::<IpAddr>().map_err(|_| problem())
        });
        let client = client.transpose()?;
        let l4 = protocol.l4();
        let flows = vips.into_iter().filter_map(|vip| {
            let client = client.unwrap_or_else(|| any::client(source, vip.is_ipv6()));
            (client.is_ipv6() == vip.is_ipv6()).then_some(FlowTuple { client, client_port, vip, port, l4 })
        });
        let flows: Vec<FlowTuple> = flows.collect();
        if flows.is_empty() {
            return Err(match context.get("source_address") {
                Some(text) => {
                    let problem = format!("{text:?} is not an address of the destination's family");
                    FieldViolation::new("context.source_address", problem)
                }
                None => FieldViolation::new(
                    "route.destination_pattern",
                    "names no VIP, and none is configured; give one",
                ),
            });
        }
        Ok(flows)
    }

    /// The priority that the module gave the route, or the route's own: the highest among matching routes.
    fn priority(&self, state: &State, flow: &FlowTuple, backend: &Backend) -> i32 {
        let Ok(record) = state.record(&backend.instance_id) else { return 0 };
        let module = &record.registration.module;
        let learned = L4Destination { vip: flow.vip, port: flow.port, l4: flow.l4 }.key();
        let mut asked_about = backend.route.iter().chain([&learned]);
        if let Some(ability) = asked_about.find_map(|route| module.abilities.get(route)) {
            return ability.priority;
        }
        let routes = module.served(&backend.instance_id, &state.operator_routes).map(|served| served.route);
        let matching = routes.filter(|route| {
            route.protocol.l4() == flow.l4
                && route.port.is_none_or(|port| port == flow.port)
                && route.source.is_none_or(|net| net.contains(&flow.client))
                && self.overlaps(route.destination, flow.vip.into())
        });
        matching.map(|route| route.priority).max().unwrap_or(0)
    }
}

/// Why the data path forwards none of these flows.
fn not_routed(flows: &[FlowTuple], image: &MapImage) -> RouteRequestResponse {
    let served = flows.iter().find(|flow| image.serves(flow.vip, flow.port, flow.l4));
    let full = flows.iter().find(|flow| image.choose(flow).is_some());
    let (code, problem) = match (full, served) {
        (Some(_), _) => {
            (StatusCode::Unavailable, "all instances are at their max_connections, and none takes")
        }
        (None, Some(_)) => (StatusCode::Unavailable, "no backend takes"),
        (None, None) => (StatusCode::NotFound, "no service matches"),
    };
    let Some(flow) = full.or(served).or(flows.first()) else { return RouteRequestResponse::default() };
    let message =
        format!("{problem} a new {} flow from {} to {} port {}", flow.l4, flow.client, flow.vip, flow.port);
    let occurred_at = Some(std::time::SystemTime::now().into());
    let error = Error { code: code.into(), message: message.clone(), occurred_at, ..Default::default() };
    RouteRequestResponse { message, error: Some(error), ..Default::default() }
}
