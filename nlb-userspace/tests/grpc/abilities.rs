//! CanHandle: which modules get new flows by their answers, and what callers see of it.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use nlb_proto::*;
use prost::Message as _;
use tonic::Status;

use super::fake_module::{Fake, FakeHandle};
use super::fleet::route;
use super::nlb::Nlb;

/// A negative priority means that the module cannot handle the route.
fn answer_with(priority: i32) -> Vec<u8> {
    let answer = CanHandleResponse { can_handle: priority >= 0, priority, ..Default::default() };
    answer.encode_to_vec()
}

const HIGHEST: Fake = Fake::Answers(|_| Ok(answer_with(7)));
const ABLE: Fake = Fake::Answers(|_| Ok(answer_with(0)));
const UNABLE: Fake = Fake::Answers(|_| Ok(answer_with(-1)));

impl Nlb {
    /// Waits until new flows of the web route can go to exactly these instances.
    async fn wait_for_owners(&mut self, expected: &[&str]) {
        let mut owners = std::collections::BTreeSet::new();
        for _ in 0..500 {
            owners.clear();
            for port in 1..=20 {
                let context = [("source_port".to_owned(), port.to_string())].into();
                let request = RouteRequestRequest { route: Some(route("?")), context, dry_run: true };
                let answer = self.modules.route_request(request).await.unwrap().into_inner();
                owners.extend(answer.routed.then_some(answer.target_instance_id));
            }
            if owners.iter().eq(expected) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("new flows go to {owners:?}, not to {expected:?}");
    }

    async fn targets(&mut self) -> Vec<String> {
        let table = self.modules.get_routing_table(GetRoutingTableRequest::default()).await.unwrap();
        table.into_inner().entries.into_iter().map(|entry| entry.target_instance_id).collect()
    }
}

async fn asked(module: &FakeHandle, times: usize) {
    for _ in 0..500 {
        if module.calls().len() >= times {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("asked {} times, not {times}", module.calls().len());
}

#[tokio::test]
async fn the_highest_priority_gets_new_flows_and_who_cannot_none() {
    let mut nlb = Nlb::start().await;
    nlb.poll_can_handle();
    nlb.add_fake("a", 1, "v1", ABLE).await;
    nlb.add_fake("b", 2, "v1", UNABLE).await;
    // A module without CanHandle counts as one that answers 0.
    nlb.add_fake("c", 3, "v1", Fake::UNIMPLEMENTED).await;
    nlb.wait_for_owners(&["a", "c"]).await;
    assert_eq!(nlb.targets().await, ["", "a", "c"], "b's own route has no instance");
    let module = nlb.add_fake("d", 4, "v1", HIGHEST).await;
    nlb.wait_for_owners(&["d"]).await;
    let request: CanHandleRequest = module.last("CanHandle").unwrap();
    assert_eq!(
        (request.route.unwrap().route_id, request.context["owner"].as_str()),
        ("web".into(), "module")
    );
    let request = RouteRequestRequest { route: Some(route("?")), ..Default::default() };
    assert_eq!(nlb.modules.route_request(request).await.unwrap().into_inner().priority, 7);
    let request = ValidateRouteRequest { route: Some(route("web")) };
    let valid = nlb.modules.validate_route(request).await.unwrap().into_inner();
    assert_eq!((valid.has_handler, valid.capable_instances.join(",")), (true, "a,c,d".to_owned()));
}

#[tokio::test]
async fn a_changed_answer_is_applied() {
    static PRIORITY: AtomicI32 = AtomicI32::new(5);
    let mut nlb = Nlb::start().await;
    nlb.poll_can_handle();
    nlb.add_fake("a", 1, "v1", Fake::Answers(|_| Ok(answer_with(PRIORITY.load(Ordering::Relaxed))))).await;
    nlb.add_fake("b", 2, "v1", ABLE).await;
    nlb.wait_for_owners(&["a"]).await;
    PRIORITY.store(-1, Ordering::Relaxed);
    nlb.wait_for_owners(&["b"]).await;
    PRIORITY.store(1, Ordering::Relaxed);
    nlb.wait_for_owners(&["a"]).await;
}

#[tokio::test]
async fn a_module_that_falls_silent_keeps_its_last_answer() {
    static CALLS: AtomicI32 = AtomicI32::new(0);
    let mut nlb = Nlb::start().await;
    nlb.poll_can_handle();
    let fades = Fake::Answers(|_| match CALLS.fetch_add(1, Ordering::Relaxed) {
        0 => Ok(answer_with(9)),
        1 => Ok(vec![0xff; 9]),
        _ => Err(Status::unavailable("tired")),
    });
    let module = nlb.add_fake("a", 1, "v1", fades).await;
    nlb.add_fake("b", 2, "v1", ABLE).await;
    nlb.wait_for_owners(&["a"]).await;
    asked(&module, 2).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    nlb.wait_for_owners(&["a"]).await;
}

#[tokio::test]
async fn modules_are_asked_about_operators_routes_and_about_routes_that_change() {
    let mut nlb = Nlb::start().await;
    nlb.poll_can_handle();
    let module = nlb.add_fake("a", 1, "v1", Fake::REFUSES).await;
    asked(&module, 1).await;
    let special = Route { destination_port: 9000, ..route("special") };
    let update = UpdateRoutingRequest { routes: vec![special], ..Default::default() };
    assert!(nlb.modules.update_routing(update).await.unwrap().into_inner().success);
    for _ in 0..500 {
        let request: CanHandleRequest = module.last("CanHandle").unwrap();
        if request.route.unwrap().route_id == "special" {
            assert_eq!(request.context["owner"], "operator");
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no module was asked about the new route");
}
