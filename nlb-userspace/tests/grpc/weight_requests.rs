//! GetActiveVersion of modules: a weight request is applied once, and operators can override it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use nlb_module::{Connection, Instance};
use nlb_proto::*;
use prost::Message as _;
use tonic::Status;

use super::fake_module::{Fake, FakeHandle};
use super::fleet::route;
use super::nlb::Nlb;

fn answer_with(weights: &[(&str, i32)]) -> Vec<u8> {
    let version_weights = weights.iter().map(|(version, weight)| (version.to_string(), *weight)).collect();
    GetActiveVersionResponse { active_version: "v2".into(), config: None, version_weights }.encode_to_vec()
}

const TEN_NINETY: Fake = Fake::Answers(|_| Ok(answer_with(&[("v1", 10), ("v2", 90)])));

impl Nlb {
    async fn shares(&mut self) -> BTreeMap<String, i32> {
        let asked = self.front.get_active_version(GetActiveVersionRequest::default()).await.unwrap();
        asked.into_inner().version_weights.into_iter().collect()
    }

    async fn wait_for_shares(&mut self, v1: i32, v2: i32) {
        let expected = [("v1".to_owned(), v1), ("v2".to_owned(), v2)].into();
        for _ in 0..500 {
            if self.shares().await == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("new flows are shared {:?}, not {expected:?}", self.shares().await);
    }

    async fn weigh(&mut self, instance_id: &str, version: &str, weight: i32) {
        let request =
            SetTrafficWeightRequest { instance_id: instance_id.into(), version: version.into(), weight };
        let answer = self.front.set_traffic_weight(request).await.unwrap().into_inner();
        assert!(answer.success, "{}", answer.message);
    }
}

/// Waits until it has been asked this many more times, and its answers are recorded.
async fn asked_again(module: &FakeHandle, times: usize) {
    let asked = || module.calls().iter().filter(|call| *call == "GetActiveVersion").count();
    let enough = asked() + times;
    for _ in 0..500 {
        if asked() >= enough {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("asked {} times, not {enough}", asked());
}

#[tokio::test]
async fn a_split_counts_when_it_is_new() {
    static GREEN: AtomicI32 = AtomicI32::new(90);
    let requests = Fake::Answers(|call| match call {
        "GetActiveVersion" => Ok(answer_with(&[("v1", 10), ("v2", GREEN.load(Ordering::Relaxed))])),
        _ => Ok(vec![0x08, 0x01]),
    });
    let mut nlb = Nlb::start().await;
    nlb.poll_active_versions();
    nlb.add_fake("a", 1, "v1", Fake::UNIMPLEMENTED).await;
    let module = nlb.add_fake("b", 2, "v2", requests).await;
    nlb.wait_for_shares(10, 90).await;

    nlb.weigh("", "v2", 5).await;
    asked_again(&module, 3).await;
    nlb.wait_for_shares(10, 5).await;
    GREEN.store(80, Ordering::Relaxed);
    nlb.wait_for_shares(10, 80).await;
}

#[tokio::test]
async fn a_split_waits_for_its_versions() {
    let mut nlb = Nlb::start().await;
    nlb.poll_active_versions();
    let module = nlb.add_fake("a", 1, "v1", TEN_NINETY).await;
    asked_again(&module, 2).await;
    assert_eq!(nlb.shares().await, [("v1".to_owned(), 100)].into());
    nlb.add_fake("b", 2, "v2", Fake::REFUSES).await;
    nlb.wait_for_shares(10, 90).await;
}

#[tokio::test]
async fn modules_without_an_answer_make_no_weight_request() {
    let mut nlb = Nlb::start().await;
    nlb.poll_active_versions();
    let mut all = Vec::new();
    for (host, fake) in [
        (1, Fake::UNIMPLEMENTED),
        (2, Fake::GARBLED),
        (3, Fake::REFUSES),
        (4, Fake::Answers(|_| Ok(Vec::new()))),
        (5, Fake::Answers(|_| Ok(answer_with(&[("v1", -7), ("v2", 5)])))),
        (6, Fake::Answers(|_| Err(Status::unavailable("tired")))),
    ] {
        let version = if host < 4 { "v1" } else { "v2" };
        all.push(nlb.add_fake(&format!("m{host}"), host, version, fake).await);
    }
    nlb.add_fake("m7", 7, "v1", Fake::Unreachable).await;
    let revision = nlb.registry.desired().borrow().revision;
    for module in &all {
        asked_again(module, 2).await;
    }
    nlb.wait_for_shares(400, 300).await;
    assert_eq!(nlb.registry.desired().borrow().revision, revision);
}

/// A module of the SDK at 10.0.0.`host`, and its version.
fn run(nlb: &Nlb, instance_id: &str, version: &str, host: u8) -> tokio::task::JoinHandle<()> {
    let instance = Instance::new(instance_id, ModuleType::Alb)
        .nlb(format!("http://{}", nlb.address))
        .version(version)
        .control_listen(([127, 0, 0, 1], 0).into())
        .route(route("web"))
        .metadata("data_address", format!("10.0.0.{host}"))
        .metadata("listen_port", "8080");
    tokio::spawn(async move {
        let ran = instance.run_until(|_: Connection| async { Ok(()) }, std::future::pending()).await;
        panic!("the module ended: {ran:?}");
    })
}

#[tokio::test]
async fn modules_of_the_sdk_do_not_override_operators() {
    let mut nlb = Nlb::start().await;
    nlb.poll_active_versions();
    let running = [run(&nlb, "a", "v1", 1), run(&nlb, "b", "v2", 2)];
    nlb.wait_for_shares(100, 100).await;
    nlb.weigh("", "v1", 95).await;
    nlb.weigh("", "v2", 5).await;
    nlb.weigh("a", "", 30).await;
    let revision = nlb.registry.desired().borrow().revision;
    // Long enough for a few more polls.
    tokio::time::sleep(Duration::from_millis(700)).await;
    nlb.wait_for_shares(95, 5).await;
    assert_eq!(nlb.listed("a").await.unwrap().traffic_weight, 30);
    assert_eq!(nlb.registry.desired().borrow().revision, revision);
    for module in running {
        assert!(!module.is_finished());
        module.abort();
    }
}
