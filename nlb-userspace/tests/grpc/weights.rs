//! SetTrafficWeight on the NLB's own ModuleService, and the consent of modules.

use nlb_proto::*;
use prost::Message as _;

use super::fake_module::Fake;
use super::fleet::{instance, registration, registration_at, with_metadata, without_control};
use super::nlb::Nlb;

fn weigh(instance_id: &str, version: &str, weight: i32) -> SetTrafficWeightRequest {
    SetTrafficWeightRequest { instance_id: instance_id.into(), version: version.into(), weight }
}

#[tokio::test]
async fn an_instance_is_weighed() {
    let mut nlb = Nlb::start().await;
    nlb.add(without_control(registration_at("a", 1, "v1"))).await;
    nlb.add(without_control(registration_at("b", 2, "v1"))).await;
    let answer = nlb.front.set_traffic_weight(weigh("a", "", 0)).await.unwrap().into_inner();
    assert!(answer.success, "{}", answer.message);
    let alone = answer.current_config.unwrap();
    assert_eq!(
        (alone.blue_version.as_str(), alone.blue_weight, alone.active_version.as_str()),
        ("v1", 100, "v1")
    );
    assert_eq!((alone.green_version.as_str(), alone.green_weight), ("", 0));
    assert!(!alone.canary_enabled && alone.canary_percent == 0 && alone.deployment_started.is_none());
    assert_eq!(nlb.listed("a").await.unwrap().traffic_weight, 0);
    let dump = nlb.maps.dump();
    assert!(nlb.maps.rows().pools.values().all(|table| table.iter().all(|slot| *slot == table[0])), "{dump}");

    let answer = nlb.front.set_traffic_weight(weigh("a", "v2", 5)).await.unwrap().into_inner();
    let error = answer.error.unwrap();
    assert!(!answer.success && error.code() == StatusCode::InvalidArgument, "{}", error.message);
    let answer = nlb.front.set_traffic_weight(weigh("ghost", "", 5)).await.unwrap().into_inner();
    assert_eq!(answer.error.unwrap().code(), StatusCode::NotFound);
}

#[tokio::test]
async fn a_version_is_weighed_against_the_others() {
    let mut nlb = Nlb::start().await;
    nlb.add(without_control(registration_at("a", 1, "v1"))).await;
    assert_eq!(nlb.split("a").await.blue_version, "v1", "one version alone");
    nlb.add(without_control(registration_at("b", 2, "v2"))).await;
    let unset = nlb.split("b").await;
    assert_eq!((unset.blue_weight, unset.green_weight, unset.active_version.as_str()), (100, 100, "v1"));
    assert!(!unset.canary_enabled && unset.canary_percent == 0, "no split was set");
    let answer = nlb.front.set_traffic_weight(weigh("", "v2", 25)).await.unwrap().into_inner();
    assert!(answer.success, "{}", answer.message);
    let split = answer.current_config.unwrap();
    assert_eq!((split.blue_version.as_str(), split.blue_weight), ("v1", 100));
    assert_eq!((split.green_version.as_str(), split.green_weight), ("v2", 25));
    assert_eq!((split.active_version.as_str(), split.canary_percent), ("v1", 20));
    assert!(split.canary_enabled && split.deployment_started.is_some());
    let both = nlb.front.get_active_version(GetActiveVersionRequest::default()).await.unwrap();
    assert_eq!((both.into_inner().config.as_ref(), &nlb.split("a").await), (Some(&split), &split));
    let answer = nlb.front.set_traffic_weight(weigh("", "v3", 25)).await.unwrap().into_inner();
    assert_eq!(answer.error.unwrap().code(), StatusCode::NotFound);
}

impl Nlb {
    /// The split in GetModuleInfo.
    async fn split(&mut self, instance_id: &str) -> BlueGreenConfig {
        let request = GetModuleInfoRequest { instance_id: instance_id.into() };
        let answer = self.modules.get_module_info(request).await.unwrap().into_inner();
        answer.deployment_config.expect("there is a version")
    }
}

#[tokio::test]
async fn the_call_is_passed_on_to_the_module() {
    let mut nlb = Nlb::start().await;
    let module = nlb.add_fake("alb-1", 1, "v1", Fake::CONFIRMS).await;
    for call in [weigh("alb-1", "v1", 7), weigh("", "v1", 9)] {
        assert!(nlb.front.set_traffic_weight(call.clone()).await.unwrap().into_inner().success);
        assert_eq!(module.last("SetTrafficWeight"), Some(call));
    }
}

#[tokio::test]
async fn a_modules_refusal_leaves_the_data_path_as_it_was() {
    let says_no = Fake::Answers(|_| {
        let error = Some(Error { message: "busy".into(), ..Default::default() });
        Ok(SetTrafficWeightResponse { error, ..Default::default() }.encode_to_vec())
    });
    for module in [Fake::REFUSES, says_no] {
        let mut nlb = Nlb::start().await;
        nlb.add_fake("alb-1", 1, "v1", module).await;
        let revision = nlb.registry.desired().borrow().revision;
        let answer = nlb.front.set_traffic_weight(weigh("alb-1", "", 7)).await.unwrap().into_inner();
        let error = answer.error.unwrap();
        assert!(!answer.success);
        assert_eq!(error.details["alb-1"], "busy", "a module's failure is reported per instance");
        assert_eq!(nlb.registry.desired().borrow().revision, revision);
        assert_eq!(nlb.listed("alb-1").await.unwrap().traffic_weight, 100);
    }
}

#[tokio::test]
async fn a_module_that_does_not_know_the_call_is_weighed_all_the_same() {
    let mut nlb = Nlb::start().await;
    nlb.add_fake("alb-1", 1, "v1", Fake::UNIMPLEMENTED).await;
    assert!(nlb.front.set_traffic_weight(weigh("alb-1", "", 7)).await.unwrap().into_inner().success);
}

#[tokio::test]
async fn a_call_does_not_go_round_in_circles() {
    let mut nlb = Nlb::start().await;
    // A module that gives the NLB's own address.
    let instance = with_metadata(instance("alb-1"), &[("data_address", "10.0.0.1")]);
    let instance = Some(ModuleInstance { address: nlb.address.to_string(), ..instance });
    nlb.add(RegisterModuleRequest { instance, ..registration("alb-1") }).await;
    assert!(nlb.front.set_traffic_weight(weigh("alb-1", "", 7)).await.unwrap().into_inner().success);
    assert_eq!(nlb.listed("alb-1").await.unwrap().traffic_weight, 7);
}
