//! Routes by ModuleService of the NLB: those of one instance, or the operator's own.

use std::collections::BTreeMap;
use std::sync::Arc;

use nlb_proto::{
    CanHandleRequest, CanHandleResponse, DeleteRouteRequest, DeleteRouteResponse, GetRoutesRequest,
    GetRoutesResponse, UpdateRoutesRequest, UpdateRoutesResponse,
};

use super::control::Control;
use crate::grpc::client::can_handle::LEARNED;
use crate::grpc::client::fan_out::{Consent, Participant, Unreached, message, peer, split_by_lease};
use crate::grpc::client::peers::{ANSWER_TIMEOUT, Outcome, Peer};
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::numbers::signed_32;
use crate::grpc::convert::pagination;
use crate::grpc::convert::route::{self, Author, ParsedRoutes};
use crate::grpc::convert::validate::{self, FieldViolation};
use crate::model::clock::Now;
use crate::model::{Destination, Route};
use crate::registry::{Commit, Owner};

/// A module that can handle a route; the best one is the greatest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct BestAnswer {
    priority: i32,
    /// Among equal priorities, the first by name.
    instance_id: std::cmp::Reverse<String>,
}

impl Control {
    /// The best answer of all modules that could serve the route.
    pub async fn can_handle(
        &self,
        mut request: CanHandleRequest,
        passed_on: bool,
    ) -> Result<CanHandleResponse, CallError> {
        let asked = request.route.as_mut().ok_or_else(|| FieldViolation::new("route", "is missing"))?;
        if asked.route_id.is_empty() {
            // A request about traffic needs no route id.
            asked.route_id = "asked".to_owned();
        }
        let settings = self.registry.settings();
        let parsed = route::parse(asked.clone(), Author::Operator, &settings.vips);
        let (_, route) = parsed.map_err(|violation| violation.within("route"))?;
        validate::text_map("context", request.context.clone())?;
        let snapshot = self.registry.snapshot();
        let candidates = snapshot.targets(&route).filter(|(_, record)| record.could_serve(&route));
        let candidates: Vec<Peer> = candidates.map(|(_, record)| peer(record)).collect();
        if passed_on {
            // The caller is an NLB with which this NLB is registered as a module; it asks whether it may send
            // such traffic here. For a route that the caller learned, only traffic that this NLB already
            // serves counts, because no configuration assigns the route.
            let learned = request.context.get("owner").is_some_and(|owner| owner == LEARNED);
            let served = match (route.destination, route.port) {
                (Destination::Address(vip), Some(port)) => {
                    self.applied.borrow().image.serves(vip, port, route.protocol.l4())
                }
                _ => false,
            };
            return Ok(CanHandleResponse {
                can_handle: !candidates.is_empty() && (served || !learned),
                reason: format!("{} instances could serve it", candidates.len()),
                ..Default::default()
            });
        }
        let outcomes = self.peers.pass_on(candidates, |_| request.clone(), ANSWER_TIMEOUT, passed_on).await;

        let mut best: Option<(BestAnswer, String)> = None;
        let mut metadata = BTreeMap::new();
        for (instance_id, outcome) in outcomes {
            let (able, text) = match outcome {
                Outcome::Done(answer) if answer.can_handle => {
                    (Some(answer.priority), format!("priority {}: {}", answer.priority, answer.reason))
                }
                Outcome::Done(answer) => (None, format!("cannot: {}", answer.reason)),
                Outcome::Unimplemented => (Some(0), "priority 0: unimplemented".to_owned()),
                outcome => (None, outcome.to_string()),
            };
            metadata.insert(instance_id.clone(), text.clone());
            let Some(priority) = able else { continue };
            let able = BestAnswer { priority, instance_id: std::cmp::Reverse(instance_id) };
            if best.as_ref().is_none_or(|(best, _)| able > *best) {
                best = Some((able, text));
            }
        }
        let metadata = metadata.into_iter().collect();
        Ok(match best {
            Some((BestAnswer { priority, instance_id }, text)) => CanHandleResponse {
                can_handle: true,
                priority,
                reason: format!("{}: {text}", instance_id.0),
                metadata,
            },
            None => CanHandleResponse {
                can_handle: false,
                priority: 0,
                reason: "no module can handle it now".to_owned(),
                metadata,
            },
        })
    }

    /// The routes of an instance; with an empty id all routes. Equal routes of replicas are listed once.
    pub fn routes(&self, request: GetRoutesRequest) -> Result<GetRoutesResponse, CallError> {
        let snapshot = self.registry.snapshot();
        let mut found: Vec<(&String, &Arc<Route>)> = Vec::new();
        if request.instance_id.is_empty() {
            found.extend(snapshot.operator_routes.iter().chain(snapshot.learned_routes.iter()));
            found.extend(snapshot.modules.values().flat_map(|record| &record.registration.module.routes));
            found.sort_by_key(|(route_id, _)| *route_id);
            found = distinct(found);
        } else {
            let instance_id = validate::id("instance_id", &request.instance_id)?;
            found.extend(&snapshot.record(&instance_id)?.registration.module.routes);
        }
        let routes = found.into_iter().map(|(route_id, route)| route::render(route_id, route)).collect();
        let (routes, pagination) = pagination::run(request.query, routes)?;
        Ok(GetRoutesResponse { routes, total_routes: pagination.total_items, pagination: Some(pagination) })
    }

    pub async fn update_routes(
        self,
        request: UpdateRoutesRequest,
        passed_on: bool,
    ) -> Result<UpdateRoutesResponse, CallError> {
        let (instance_id, author) = match request.instance_id.as_str() {
            "" => (None, Author::Operator),
            id => (Some(validate::id("instance_id", id)?), Author::Module),
        };
        let settings = self.registry.settings();
        let ParsedRoutes { routes, refused } =
            route::parse_all("routes", request.routes.clone(), author, &settings.vips)?;
        let unenforced = route::unenforced(&routes);
        let taken = self.taken_from_host(&routes);
        let turn = self.peers.serialise(passed_on).await;
        let owner = owner(&instance_id);
        let update = |commit| {
            self.registry.update_routes(owner, routes.clone(), request.replace_all, commit, Now::read())
        };
        update(Commit::DryRun)?;
        let (participants, unreached) = match &instance_id {
            Some(instance_id) if !passed_on => self.route_participants(instance_id, request.clone())?,
            _ => Default::default(),
        };
        let agreement = self.peers.agree(participants, unreached).await?;
        let ((_, revision), missed) = agreement.commit(|| update(Commit::Apply)).await?;
        missed.unaware().for_each(|instance_id| self.registry.request_reload(instance_id));
        drop(turn);
        self.routes_settled(owner, revision).await?;
        Ok(UpdateRoutesResponse {
            success: true,
            message: message("applied", [refused, unenforced, taken, missed.note()]),
            routes_updated: signed_32(routes.len()),
            error: None,
        })
    }

    pub async fn delete_route(
        self,
        request: DeleteRouteRequest,
        passed_on: bool,
    ) -> Result<DeleteRouteResponse, CallError> {
        let route_id = validate::id("route_id", &request.route_id)?;
        let instance_id = match request.instance_id.as_str() {
            "" => None,
            id => Some(validate::id("instance_id", id)?),
        };
        let turn = self.peers.serialise(passed_on).await;
        let owner = owner(&instance_id);
        let delete = |commit| self.registry.delete_route(owner, &route_id, commit);
        delete(Commit::DryRun)?;
        let (participants, unreached) = match &instance_id {
            Some(instance_id) if !passed_on => self.route_participants(instance_id, request.clone())?,
            _ => Default::default(),
        };
        let agreement = self.peers.agree(participants, unreached).await?;
        let (revision, missed) = agreement.commit(|| delete(Commit::Apply)).await?;
        missed.unaware().for_each(|instance_id| self.registry.request_reload(instance_id));
        drop(turn);
        self.routes_settled(owner, revision).await?;
        Ok(DeleteRouteResponse { success: true, message: message("deleted", [missed.note()]), error: None })
    }

    /// An instance as the participant of a change of its routes; its present routes undo the change.
    fn route_participants<C: Clone>(
        &self,
        instance_id: &str,
        call: C,
    ) -> Result<(Vec<Participant<C, UpdateRoutesRequest>>, Unreached), CallError> {
        let snapshot = self.registry.snapshot();
        let former = &snapshot.record(instance_id)?.registration.module.routes;
        let undo = UpdateRoutesRequest {
            instance_id: instance_id.to_owned(),
            routes: former.iter().map(|(route_id, route)| route::render(route_id, route)).collect(),
            replace_all: true,
        };
        let (peers, unreached) = split_by_lease(&snapshot, &[instance_id.to_owned()])?;
        let participant =
            |peer| Participant { peer, call: call.clone(), undo: undo.clone(), consent: Consent::Required };
        Ok((peers.into_iter().map(participant).collect(), unreached))
    }
}

/// Distinct routes of a list that is sorted by id.
fn distinct<'a>(routes: Vec<(&'a String, &'a Arc<Route>)>) -> Vec<(&'a String, &'a Arc<Route>)> {
    let mut distinct: Vec<(&String, &Arc<Route>)> = Vec::new();
    for (route_id, route) in routes {
        let mut same_id = distinct.iter().rev().take_while(|(other, _)| *other == route_id);
        if !same_id.any(|(_, other)| *other == route) {
            distinct.push((route_id, route));
        }
    }
    distinct
}

/// ModuleService has no credentials: any caller may act for any instance, as an operator does.
fn owner(instance_id: &Option<String>) -> Owner<'_> {
    match instance_id {
        Some(instance_id) => Owner::OnBehalf { instance_id },
        None => Owner::Operator,
    }
}
