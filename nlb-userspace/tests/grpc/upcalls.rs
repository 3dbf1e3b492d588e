//! Destinations without a route: which modules are asked, which answers count, and what callers see of
//! learned routes.

use std::collections::BTreeMap;
use std::time::Duration;

use nlb::model::destination::L4Destination;
use nlb::model::settings::Settings;
use nlb::model::upcall::{NegativeEntry, Question};
use nlb::model::{Ability, L4};
use nlb_common::upcall::NEGATIVE_TTL;
use nlb_proto::*;
use prost::Message as _;
use tokio::sync::mpsc;

use super::fake_module::Fake;
use super::fleet::route;
use super::nlb::{Nlb, settings};

fn answer_with(can_handle: bool, priority: i32) -> Vec<u8> {
    CanHandleResponse { can_handle, priority, ..Default::default() }.encode_to_vec()
}

fn question(port: u16) -> Question {
    let destination = L4Destination { vip: "192.0.2.1".parse().unwrap(), port, l4: L4::Tcp };
    Question { destination, client: "198.51.100.7:40000".parse().unwrap(), key: port.into(), asked_at: 7 }
}

async fn learning() -> (Nlb, mpsc::Sender<Question>, mpsc::Receiver<NegativeEntry>) {
    let mut nlb = Nlb::with(Settings { learn_routes: true, ..settings() }).await;
    let (questions, closed) = nlb.answer_upcalls();
    (nlb, questions, closed)
}

impl Nlb {
    async fn wait_for_learned(&mut self, expected: &[(&str, &str)]) {
        let mut found = Vec::new();
        for _ in 0..500 {
            let table = self.modules.get_routing_table(GetRoutingTableRequest::default()).await.unwrap();
            let entries = table.into_inner().entries.into_iter().map(|entry| {
                let route = entry.route.unwrap();
                (route.metadata.get("learned").cloned(), route.route_id, entry.target_instance_id)
            });
            found = entries.filter(|(learned, ..)| learned.as_deref() == Some("true")).collect();
            if found.iter().map(|(_, id, target)| (id.as_str(), target.as_str())).eq(expected.iter().copied())
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("learned: {found:?}, not {expected:?}");
    }
}

const LEARNED: &str = "learned:192.0.2.1:81/tcp";

#[tokio::test]
async fn only_modules_that_answer_so_can_handle_a_learned_route() {
    let (mut nlb, questions, mut closed) = learning().await;
    nlb.poll_can_handle();
    let first = nlb.add_fake("a", 1, "v1", Fake::Answers(|_| Ok(answer_with(true, 7)))).await;
    nlb.add_fake("b", 2, "v1", Fake::Answers(|_| Ok(answer_with(true, 3)))).await;
    nlb.add_fake("c", 3, "v1", Fake::Answers(|_| Ok(answer_with(false, 9)))).await;
    nlb.add_fake("d", 4, "v1", Fake::UNIMPLEMENTED).await;
    nlb.add_fake("e", 5, "v1", Fake::GARBLED).await;
    nlb.add_fake("f", 6, "v1", Fake::REFUSES).await;
    nlb.add_fake("g", 7, "v1", Fake::Unreachable).await;
    questions.send(question(81)).await.unwrap();
    nlb.wait_for_learned(&[(LEARNED, "a"), (LEARNED, "b")]).await;
    // Later answers to polls change nothing.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    nlb.wait_for_learned(&[(LEARNED, "a"), (LEARNED, "b")]).await;
    let request: CanHandleRequest = first.last("CanHandle").unwrap();
    assert_eq!(
        request.context["owner"].as_str(),
        if request.route.unwrap().route_id == LEARNED { "learned" } else { "module" }
    );

    let asked = RouteRequestRequest {
        route: Some(Route { destination_port: 81, ..route("?") }),
        ..Default::default()
    };
    let answer = nlb.modules.route_request(asked).await.unwrap().into_inner();
    assert_eq!((answer.target_instance_id.as_str(), answer.priority), ("a", 7), "{}", answer.message);
    let routes = nlb.front.get_routes(GetRoutesRequest::default()).await.unwrap().into_inner().routes;
    let learned: Vec<&Route> = routes.iter().filter(|route| route.route_id == LEARNED).collect();
    assert_eq!((learned.len(), learned[0].destination_port), (1, 81));
    assert!(closed.try_recv().is_err());
}

#[tokio::test]
async fn modules_are_given_the_client_of_the_packet() {
    let (mut nlb, questions, mut closed) = learning().await;
    let module = nlb.add_fake("a", 1, "v1", Fake::Answers(|_| Ok(answer_with(false, 0)))).await;
    questions.send(question(82)).await.unwrap();
    let answer = closed.recv().await.unwrap();
    assert_eq!(answer, NegativeEntry { key: 82, until: 7 + NEGATIVE_TTL });
    assert_eq!(module.calls(), ["CanHandle"]);
    let request: CanHandleRequest = module.last("CanHandle").unwrap();
    let context = [("owner", "learned"), ("source_address", "198.51.100.7"), ("source_port", "40000")];
    let context: BTreeMap<String, String> =
        context.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    assert_eq!(request.context.into_iter().collect::<BTreeMap<_, _>>(), context);
    let route = request.route.unwrap();
    assert_eq!(route.protocol(), Protocol::Tcp);
    assert_eq!(
        (route.source_pattern.as_str(), route.destination_pattern.as_str(), route.destination_port),
        ("*", "192.0.2.1", 82)
    );
    nlb.wait_for_learned(&[]).await;
}

#[tokio::test]
async fn learned_routes_follow_the_modules_answers_and_go_with_them() {
    use std::sync::atomic::{AtomicI32, Ordering};
    static PRIORITY: AtomicI32 = AtomicI32::new(5);
    let (mut nlb, questions, _closed) = learning().await;
    nlb.poll_can_handle();
    let flips = Fake::Answers(|_| {
        let priority = PRIORITY.load(Ordering::Relaxed);
        Ok(answer_with(priority >= 0, priority))
    });
    nlb.add_fake("a", 1, "v1", flips).await;
    questions.send(question(81)).await.unwrap();
    nlb.wait_for_learned(&[(LEARNED, "a")]).await;
    // A module that registers later is asked too.
    nlb.add_fake("b", 2, "v1", Fake::Answers(|_| Ok(answer_with(true, 0)))).await;
    nlb.wait_for_learned(&[(LEARNED, "a"), (LEARNED, "b")]).await;
    PRIORITY.store(-1, Ordering::Relaxed);
    nlb.wait_for_learned(&[(LEARNED, "b")]).await;
    assert_eq!(nlb.registry.snapshot().learned.len(), 1);
    let key = question(81).destination.key();
    let unable = Ability { can_handle: false, priority: -1 };
    assert_eq!(nlb.registry.desired().borrow().modules["a"].abilities.get(&key), Some(&unable));

    let epoch = nlb.registry.snapshot().modules["b"].epoch;
    nlb.registry.remove("b", epoch).unwrap();
    nlb.wait_for_learned(&[]).await;
    for _ in 0..500 {
        if nlb.registry.snapshot().learned.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no module can handle it, and the route is still there");
}

#[tokio::test]
async fn an_nlb_below_another_handles_what_it_serves() {
    let (mut nlb, _questions, _closed) = learning().await;
    nlb.add_fake("a", 1, "v1", Fake::Answers(|_| Ok(answer_with(true, 7)))).await;
    for (owner, port, able) in [("learned", 80, true), ("learned", 81, false), ("operator", 81, true)] {
        let route = Some(Route { destination_port: port, ..route("asked") });
        let context = [("owner".to_owned(), owner.to_owned())].into();
        let mut request = tonic::Request::new(CanHandleRequest { route, context });
        request.metadata_mut().insert("nlb-passed-on", "1".parse().unwrap());
        let answer = nlb.front.can_handle(request).await.unwrap().into_inner();
        assert_eq!(answer.can_handle, able, "{owner} {port}: {}", answer.reason);
    }
}
