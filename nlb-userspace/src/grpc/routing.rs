//! Routes: changing them, listing them, and asking what they would do.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nlb_proto::{
    CanHandleRequest, CanHandleResponse, GetRoutingTableRequest, GetRoutingTableResponse, Protocol,
    RouteRequestRequest, RouteRequestResponse, RoutingEntry, UpdateRoutingRequest, UpdateRoutingResponse,
    ValidateRouteRequest, ValidateRouteResponse,
};

use super::failure::Failure;
use super::fault::{self, Fault};
use super::fleet::peer;
use super::modules::by_instance;
use super::numbers::signed_32;
use super::peers::{ANSWER_PATIENCE, Outcome};
use super::route::{self, Author};
use super::{Control, names, query};
use crate::compile::FlowTuple;
use crate::model::{Backend, Destination, ForwardMode, Health, Route, RouteKey, Routes};
use crate::registry::{Commit, Now, Owner, Record, State, Suited, Wanted};

/// Of as many routes as a message holds, each may have a fault; an answer has to fit into what clients take.
const MOST_FAULTS_TOLD: usize = 1000;

impl Control {
    pub async fn update_routing(
        &self,
        request: UpdateRoutingRequest,
    ) -> Result<UpdateRoutingResponse, Failure> {
        let by_module = !request.source_instance_id.is_empty();
        let (owner, author) = if by_module {
            let instance_id = fault::id("source_instance_id", &request.source_instance_id)?;
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
        let routes = match route::parse_all("routes", request.routes, author, vips) {
            Ok(routes) => routes,
            Err(faults) if request.validate_only => {
                return Ok(UpdateRoutingResponse {
                    message: "the routes are not valid; nothing was changed".to_owned(),
                    validation_errors: faults.iter().take(MOST_FAULTS_TOLD).map(Fault::to_string).collect(),
                    ..Default::default()
                });
            }
            Err(faults) => return Err(faults.into()),
        };
        let unenforced = route::unenforced(&routes);
        let commit = if request.validate_only { Commit::DryRun } else { Commit::Apply };
        let (changed, revision) =
            self.registry.update_routes(owner, routes, request.replace_all, commit, Now::read())?;
        let done = match commit {
            Commit::DryRun => "valid; nothing was changed",
            Commit::Apply => {
                self.routes_settled(owner, revision).await?;
                "applied"
            }
        };
        let said = [Some(done.to_owned()), unenforced].into_iter().flatten();
        Ok(UpdateRoutingResponse {
            success: true,
            message: said.collect::<Vec<_>>().join("; "),
            routes_updated: signed_32(changed),
            ..Default::default()
        })
    }

    pub fn routing_table(&self, request: GetRoutingTableRequest) -> Result<GetRoutingTableResponse, Failure> {
        let protocol = fault::known::<Protocol>("protocol_filter", request.protocol_filter)?;
        let within = route::net("destination_filter", &request.destination_filter)?;
        let mut entries = self.routing_entries(|route| {
            (protocol == Protocol::Unspecified || names::protocol_to_wire(route.protocol) == protocol)
                && within.is_none_or(|net| self.overlaps(route.destination, net))
        });
        entries.sort_by(|a, b| sort_key(a).cmp(&sort_key(b)));
        let (entries, pagination) = query::run(request.query, entries)?;
        Ok(GetRoutingTableResponse {
            entries,
            total_entries: pagination.total_items,
            pagination: Some(pagination),
        })
    }

    fn routing_entries(&self, wanted: impl Fn(&Route) -> bool) -> Vec<RoutingEntry> {
        let snapshot = self.registry.snapshot();
        let counts = by_instance(&self.traffic.borrow());
        let entry = |route_id: &str, route: &Route, since, target: Option<(&str, &Record)>| {
            let flows = target.and_then(|(id, _)| counts.get(id)).map_or(0, |counts| counts.active_flows);
            let module_type = target.map(|(_, record)| record.registration.module.module_type);
            RoutingEntry {
                route: Some(route::render(route_id, route)),
                target_instance_id: target.map(|(id, _)| id.to_owned()).unwrap_or_default(),
                target_module_type: module_type
                    .map(|t| names::module_type_to_wire(t).into())
                    .unwrap_or_default(),
                current_connections: signed_32(flows),
                created_at: Option::map(since, |since: &std::time::SystemTime| (*since).into()),
                last_used: None,
            }
        };
        let mut entries = Vec::new();
        for (id, record) in &snapshot.modules {
            for (route_id, route) in
                record.registration.module.routes.iter().filter(|(_, route)| wanted(route))
            {
                let since = record.routes_since.get(route_id);
                let target = can_handle(record, route_id, false).then_some((id.as_str(), record.as_ref()));
                entries.push(entry(route_id, route, since, target));
            }
        }
        for (route_id, route) in snapshot.operator_routes.iter().filter(|(_, route)| wanted(route)) {
            let since = snapshot.operator_routes_since.get(route_id);
            let before = entries.len();
            let able = snapshot.targets(route).filter(|(_, record)| can_handle(record, route_id, true));
            entries.extend(able.map(|target| entry(route_id, route, since, Some(target))));
            if entries.len() == before {
                entries.push(entry(route_id, route, since, None));
            }
        }
        for (route_id, route) in snapshot.learned_routes.iter().filter(|(_, route)| wanted(route)) {
            let since = snapshot.learned.get(route_id).map(|learned| &learned.since);
            let able = snapshot.said_of_learned(route_id).filter(|(_, ability)| ability.can_handle);
            let targets = able.filter_map(|(id, _)| Some((id, snapshot.record(id).ok()?)));
            entries.extend(targets.map(|target| entry(route_id, route, since, Some(target))));
        }
        entries
    }

    fn overlaps(&self, destination: Destination, net: IpNet) -> bool {
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
    ) -> Result<ValidateRouteResponse, Failure> {
        let message = request.route.ok_or_else(|| Fault::new("route", "is missing"))?;
        let settings = self.registry.settings();
        let vips = &settings.vips;
        let (_, route) = match route::parse(message.clone(), Author::Operator, vips) {
            Ok(parsed) => parsed,
            Err(fault) => {
                return Ok(ValidateRouteResponse {
                    validation_errors: vec![fault.within("route").to_string()],
                    ..Default::default()
                });
            }
        };
        let snapshot = self.registry.snapshot();
        let suited = snapshot.targets(&route).filter(|(_, record)| {
            let module = &record.registration.module;
            let takes_flows = matches!(record.health(), Health::Healthy | Health::Degraded);
            takes_flows && route.suits_ports(module).is_ok() && route.suits_family(module).is_ok()
        });
        let suited = suited.map(|(_, record)| peer(record)).collect();
        let context = [("owner".to_owned(), "operator".to_owned())].into();
        let question = CanHandleRequest { route: Some(message), context };
        let outcomes = self.pass_on(suited, |_| question.clone(), ANSWER_PATIENCE, false).await;
        // Whoever does not say is able, as in the data path.
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

    /// What the data path would do with a new flow. Nothing is installed.
    pub fn route_request(&self, request: RouteRequestRequest) -> Result<RouteRequestResponse, Failure> {
        let message = request.route.ok_or_else(|| Fault::new("route", "is missing"))?;
        let context = fault::text_map("context", request.context)?;
        let flow = self.flow(message, &context)?;
        let image = self.applied.borrow().image.clone();
        let Some(backend) = image.choose(&flow) else {
            return Ok(RouteRequestResponse {
                message: format!(
                    "no backend takes a new {} flow from {} to {} port {}",
                    flow.l4, flow.client, flow.vip, flow.port
                ),
                ..Default::default()
            });
        };
        let snapshot = self.registry.snapshot();
        let record = snapshot.record(&backend.instance_id)?;
        let port =
            if backend.port == 0 || backend.mode != ForwardMode::Nat { flow.port } else { backend.port };
        let mode = names::forward_mode_name(backend.mode);
        Ok(RouteRequestResponse {
            routed: true,
            target_instance_id: backend.instance_id.clone(),
            target_module_type: names::module_type_to_wire(record.registration.module.module_type).into(),
            target_address: std::net::SocketAddr::new(backend.addr, port).to_string(),
            priority: self.priority(&snapshot, &flow, backend),
            message: format!("{} port {} from {} goes by {mode}", flow.vip, flow.port, flow.client),
            error: None,
        })
    }

    /// The flow that a route describes: one destination, and the client that the context or the source names.
    fn flow(
        &self,
        message: nlb_proto::Route,
        context: &BTreeMap<String, String>,
    ) -> Result<FlowTuple, Fault> {
        let within = |fault: Fault| fault.within("route");
        let protocol = route::protocol(message.protocol).map_err(within)?;
        // Nothing is decided by these, and yet they are not taken whatever they hold.
        fault::optional_id("route_id", &message.route_id).map_err(within)?;
        fault::text("path_pattern", &message.path_pattern, fault::TEXT_LENGTH).map_err(within)?;
        fault::text_map("headers", message.headers).map_err(within)?;
        fault::text_map("metadata", message.metadata).map_err(within)?;
        let settings = self.registry.settings();
        let vips = settings.vips.addresses();
        let vip = match route::destination(&message.destination_pattern).map_err(within)? {
            Destination::Address(address) => address,
            Destination::EveryVip if vips.len() == 1 => *vips.iter().next().expect("one"),
            _ => {
                return Err(Fault::new("route.destination_pattern", "must be one address: a packet has one"));
            }
        };
        let port = fault::port("destination_port", message.destination_port).map_err(within)?;
        let Some(port) = port.or(protocol.well_known_port()) else {
            return Err(Fault::new(
                "route.destination_port",
                "must be given: this protocol has no well-known port",
            ));
        };
        let source = route::source(&message.source_pattern).map_err(within)?;
        let single = source.filter(|net| net.prefix_len() == net.max_prefix_len()).map(|net| net.addr());
        let unspecified: IpAddr =
            if vip.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let client = match context.get("source_address").map(|text| (text, text.parse::<IpAddr>())) {
            None => single.unwrap_or(unspecified),
            Some((_, Ok(address))) if address.is_ipv6() == vip.is_ipv6() => address,
            Some((text, _)) => {
                let problem = format!("{text:?} is not an address of the destination's family");
                return Err(Fault::new("context.source_address", problem));
            }
        };
        let source_port = fault::port("source_port", message.source_port).map_err(within)?;
        let client_port = fault::port_entry("context", context, "source_port")?.or(source_port).unwrap_or(0);
        Ok(FlowTuple { client, client_port, vip, port, l4: protocol.l4() })
    }

    /// The priority that the module gave the route, else the route's own: the highest of those that match it.
    fn priority(&self, state: &State, flow: &FlowTuple, backend: &Backend) -> i32 {
        let Ok(record) = state.record(&backend.instance_id) else { return 0 };
        let module = &record.registration.module;
        let learned = Wanted { vip: flow.vip, port: flow.port, l4: flow.l4 }.key();
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

fn can_handle(record: &Record, route_id: &str, operators: bool) -> bool {
    let key = RouteKey { id: route_id.to_owned(), operators };
    record.registration.module.ability(&key).can_handle
}

fn sort_key(entry: &RoutingEntry) -> (&str, &str) {
    (entry.route.as_ref().map(|route| route.route_id.as_str()).unwrap_or_default(), &entry.target_instance_id)
}
