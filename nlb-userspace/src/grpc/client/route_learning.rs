//! Asks modules whether they can handle a destination that no route covers.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt, join_all};
use nlb_proto::CanHandleRequest;

use super::can_handle::{LEARNED, ability_in};
use super::fan_out::peer;
use super::peers::{ANSWER_TIMEOUT, Outcome, Peer, Peers};
use crate::grpc::convert::route;
use crate::model::Ability;
use crate::model::upcall::Question;
use crate::registry::Registry;

/// Asks all modules that take new flows at once. Only answers count: a module that does not implement the
/// call, or is unreachable, is not configured for the destination.
pub fn ask_can_handle(
    registry: Arc<Registry>,
    peers: Peers,
) -> impl Fn(&Question) -> BoxFuture<'static, BTreeMap<String, Ability>> {
    move |question| {
        let (candidates, request) = (candidates(&registry, question), request(question));
        let peers = peers.clone();
        let asked = candidates.into_iter().map(move |peer| {
            let (peers, request) = (peers.clone(), request.clone());
            async move {
                let outcome = peers.ask(&peer, request, ANSWER_TIMEOUT).await;
                (peer.instance_id, outcome)
            }
        });
        join_all(asked)
            .map(|outcomes| {
                let answers = outcomes.into_iter().filter_map(|(instance_id, outcome)| match outcome {
                    Outcome::Done(answer) => Some((instance_id, ability_in(&answer))),
                    _ => None,
                });
                answers.collect()
            })
            .boxed()
    }
}

fn candidates(registry: &Registry, question: &Question) -> Vec<Peer> {
    let (snapshot, route) = (registry.snapshot(), question.destination.route());
    let candidates = snapshot.modules.values().filter(|record| record.could_serve(&route));
    candidates.map(|record| peer(record)).collect()
}

/// The same request as later polls send, with the packet's source in addition.
fn request(question: &Question) -> CanHandleRequest {
    let Question { destination, client, .. } = question;
    let context = [
        ("owner", LEARNED.to_owned()),
        ("source_address", client.ip().to_string()),
        ("source_port", client.port().to_string()),
    ];
    CanHandleRequest {
        route: Some(route::render(&destination.route_id(), &destination.route())),
        context: context.map(|(key, value)| (key.to_owned(), value)).into(),
    }
}
