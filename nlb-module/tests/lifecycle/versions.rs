//! Weights and promotions of versions, which the NLB decides.

use nlb_module::proto::*;
use tonic::{Code, Request};

use super::fake_nlb::FakeNlb;
use super::mirror::{active_weight, control, passed_on, run};

#[tokio::test]
async fn the_weight_of_its_version_is_not_its_own() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance.weight(40));
    let mut module = control(&nlb).await;
    let of_version = SetTrafficWeightRequest { version: "v1".into(), weight: 5, ..Default::default() };
    for call in [passed_on(of_version.clone()), Request::new(of_version)] {
        let answer = module.set_traffic_weight(call).await.expect("an answer").into_inner();
        assert!(answer.success, "{answer:?}");
        assert_eq!(active_weight(&mut module).await, 40);
    }
    let of_another = SetTrafficWeightRequest { version: "v2".into(), weight: 5, ..Default::default() };
    assert_eq!(
        module.set_traffic_weight(of_another).await.expect_err("refused").code(),
        Code::InvalidArgument
    );

    let of_instance =
        SetTrafficWeightRequest { instance_id: "mirror-1".into(), version: "v1".into(), weight: 5 };
    assert!(module.set_traffic_weight(of_instance).await.expect("an answer").into_inner().success);
    assert_eq!(active_weight(&mut module).await, 5);
    assert_eq!(nlb.see(|seen| seen.weights.len()), 1, "only the call about the instance");
}

#[tokio::test]
async fn versions_are_promoted_and_rolled_back_by_the_nlb() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance);
    let mut module = control(&nlb).await;
    let promote = PromoteVersionRequest { promotion_rate: 10, ..Default::default() };
    let back = RollbackRequest { target_version: "v0".into(), ..Default::default() };
    let answer = module.promote_version(passed_on(promote.clone())).await.expect("an answer").into_inner();
    assert_eq!((answer.success, answer.promoted_version.as_str()), (true, "v1"));
    let answer = module.rollback(passed_on(back.clone())).await.expect("an answer").into_inner();
    assert_eq!((answer.success, answer.current_version.as_str()), (true, "v0"));
    assert_eq!(nlb.see(|seen| (seen.promotions.len(), seen.rollbacks.len())), (0, 0), "calls back");

    assert!(module.promote_version(promote).await.expect("an answer").into_inner().success);
    let told = nlb.see(|seen| seen.promotions[0].clone());
    assert_eq!(
        (told.instance_id.as_str(), told.version.as_str(), told.promotion_rate),
        ("mirror-1", "v1", 10)
    );
    let answer = module.rollback(back.clone()).await.expect("an answer").into_inner();
    assert_eq!((answer.success, answer.current_version.as_str()), (true, "v0"));
    assert_eq!(nlb.see(|seen| seen.rollbacks[0].target_version.clone()), "v0");

    let other = PromoteVersionRequest { version: "v2".into(), immediate: true, ..Default::default() };
    let refused = module.promote_version(other).await.expect_err("another version");
    assert_eq!(refused.code(), Code::InvalidArgument);
    nlb.see(|seen| seen.refuses = Some((StatusCode::NotFound, "no former split")));
    let answer = module.rollback(back).await.expect("an answer").into_inner();
    assert_eq!((answer.success, answer.error.expect("why").code()), (false, StatusCode::NotFound));
}
