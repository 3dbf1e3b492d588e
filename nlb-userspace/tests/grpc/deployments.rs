//! Versions by deployment: a call changes one deployment's split, and names it where that is not clear.

use nlb_proto::*;
use tonic::{Code, Request};

use super::fake_module::{Fake, FakeHandle};
use super::fleet::{registration_at, without_control};
use super::nlb::Nlb;

/// A registration of this module type at 10.0.0.`host`.
fn of_type(module_type: ModuleType, instance_id: &str, host: u8, version: &str) -> RegisterModuleRequest {
    let mut request = registration_at(instance_id, host, version);
    request.instance.as_mut().unwrap().module_type = module_type.into();
    request
}

/// ALBs and DBLBs of v1 and v2.
async fn fleet(fake: Fake) -> (Nlb, [FakeHandle; 4]) {
    let mut nlb = Nlb::start().await;
    let modules = [
        nlb.add_fake_as(of_type(ModuleType::Alb, "alb-1", 1, "v1"), fake).await,
        nlb.add_fake_as(of_type(ModuleType::Alb, "alb-2", 2, "v2"), fake).await,
        nlb.add_fake_as(of_type(ModuleType::Dblb, "dblb-1", 3, "v1"), fake).await,
        nlb.add_fake_as(of_type(ModuleType::Dblb, "dblb-2", 4, "v2"), fake).await,
    ];
    (nlb, modules)
}

/// The call, with this metadata `deployment` if it is not empty.
fn naming<T>(deployment: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !deployment.is_empty() {
        request.metadata_mut().insert("deployment", deployment.parse().unwrap());
    }
    request
}

fn at_once(instance_id: &str) -> PromoteVersionRequest {
    let version = if instance_id.is_empty() { "v2" } else { "" };
    PromoteVersionRequest {
        instance_id: instance_id.into(),
        version: version.into(),
        immediate: true,
        ..Default::default()
    }
}

impl Nlb {
    async fn promote_in(
        &mut self,
        deployment: &str,
        request: PromoteVersionRequest,
    ) -> PromoteVersionResponse {
        self.front.promote_version(naming(deployment, request)).await.unwrap().into_inner()
    }

    async fn roll_back_in(&mut self, deployment: &str, request: RollbackRequest) -> RollbackResponse {
        self.front.rollback(naming(deployment, request)).await.unwrap().into_inner()
    }

    /// The shares of v1 and v2 in a deployment.
    async fn shares_in(&mut self, deployment: &str) -> (i32, i32) {
        let asked = naming(deployment, GetActiveVersionRequest::default());
        let weights = self.front.get_active_version(asked).await.unwrap().into_inner().version_weights;
        (weights["v1"], weights["v2"])
    }
}

/// What a refusal says.
fn text(error: Option<Error>) -> String {
    error.expect("a refusal").message
}

#[tokio::test]
async fn promotions_and_rollbacks_of_two_deployments_do_not_meet() {
    let (mut nlb, [old_alb, alb, old_dblb, dblb]) = fleet(Fake::CONFIRMS).await;
    let answer = nlb.promote_in("ALB", at_once("")).await;
    assert!(answer.success && answer.promoted_version == "v2", "{}", answer.message);
    assert_eq!((nlb.shares_in("ALB").await, nlb.shares_in("DBLB").await), ((0, 100), (100, 100)));
    assert_eq!(alb.last::<PromoteVersionRequest>("PromoteVersion").unwrap().version, "v2");
    assert!(!dblb.calls().contains(&"PromoteVersion".to_owned()), "it is of another deployment");

    // The instance stands for its deployment, and another promotion runs meanwhile.
    let by_rate = PromoteVersionRequest { immediate: false, promotion_rate: 20, ..at_once("dblb-2") };
    let answer = nlb.promote_in("", by_rate).await;
    assert!(answer.success, "{}", answer.message);
    assert_eq!((nlb.shares_in("ALB").await, nlb.shares_in("DBLB").await), ((0, 100), (30, 70)));
    let status = nlb.front.get_status(GetStatusRequest::default()).await.unwrap().into_inner();
    assert_eq!(status.details["promotion"], "ALB: v2 has 100 % of new flows; DBLB: v2 has 70 % of new flows");

    let answer = nlb.roll_back_in("ALB", RollbackRequest::default()).await;
    assert!(answer.success, "{}", answer.message);
    assert_eq!((answer.previous_version.as_str(), answer.current_version.as_str()), ("v2", "v1"));
    assert_eq!((nlb.shares_in("ALB").await, nlb.shares_in("DBLB").await), ((100, 100), (30, 70)));
    for told in [&old_alb, &alb] {
        assert_eq!(told.last::<RollbackRequest>("Rollback").unwrap().target_version, "v1");
    }
    for untold in [&old_dblb, &dblb] {
        assert!(!untold.calls().contains(&"Rollback".to_owned()));
    }
    for (instance_id, deployment, green) in [("alb-1", "ALB", 100), ("dblb-1", "DBLB", 70)] {
        let request = GetModuleInfoRequest { instance_id: instance_id.into() };
        let info = nlb.modules.get_module_info(request).await.unwrap().into_inner();
        assert_eq!(info.deployment_config.unwrap().green_weight, green, "{instance_id}");
        assert_eq!(info.details["deployment"], deployment);
    }
}

#[tokio::test]
async fn a_call_that_may_be_for_several_is_refused_with_their_names() {
    let (mut nlb, _) = fleet(Fake::UNIMPLEMENTED).await;
    let weigh =
        |version: &str| SetTrafficWeightRequest { version: version.into(), weight: 5, ..Default::default() };
    let which = "several deployments have version \"v2\": ALB, DBLB; name one, or \"all\", in metadata deployment or by --deployment";
    let error = nlb.promote_in("", at_once("")).await.error;
    assert_eq!(text(error.clone()), which);
    assert_eq!(error.unwrap().code(), StatusCode::Error);
    let answer = nlb.front.set_traffic_weight(weigh("v2")).await.unwrap().into_inner();
    assert_eq!(text(answer.error), which);
    let answer =
        nlb.roll_back_in("", RollbackRequest { target_version: "v2".into(), ..Default::default() }).await;
    assert_eq!(text(answer.error), which);
    let none = nlb.roll_back_in("", RollbackRequest::default()).await.error.unwrap();
    assert_eq!(none.code(), StatusCode::NotFound, "{}", none.message);
    for deployment in ["", "all"] {
        let asked = naming(deployment, GetActiveVersionRequest::default());
        let status = nlb.front.get_active_version(asked).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(
            status.message(),
            "there is a split for each deployment: ALB, DBLB; name one in metadata deployment"
        );
    }

    let answer = nlb.front.set_traffic_weight(naming("all", weigh("v2"))).await.unwrap().into_inner();
    assert!(answer.success && answer.message.starts_with("in ALB, DBLB: "), "{}", answer.message);
    assert_eq!(answer.current_config, None, "it describes one split");
    let which = text(nlb.roll_back_in("", RollbackRequest::default()).await.error);
    assert!(which.contains("several deployments have a former split: ALB, DBLB"), "{which}");
    assert_eq!((nlb.shares_in("ALB").await, nlb.shares_in("DBLB").await), ((100, 5), (100, 5)));

    // With one deployment that has the version, nothing has to be named.
    nlb.add(without_control(of_type(ModuleType::Dblb, "dblb-3", 5, "v3"))).await;
    let answer = nlb.front.set_traffic_weight(weigh("v3")).await.unwrap().into_inner();
    assert_eq!(answer.current_config.unwrap().blue_version, "v1");
    assert_eq!(nlb.registry.desired().borrow().splits.len(), 2);
}

#[tokio::test]
async fn a_name_that_does_not_fit_is_refused() {
    let (mut nlb, _) = fleet(Fake::UNIMPLEMENTED).await;
    let answer = nlb.promote_in("shop", at_once("")).await.error.unwrap();
    assert_eq!(answer.code(), StatusCode::NotFound);
    assert_eq!(answer.message, "there is no deployment \"shop\"; there are: ALB, DBLB");
    for (name, shown) in [("DBLB", "\"DBLB\""), ("all", "\"all\"")] {
        let error = nlb.promote_in(name, at_once("alb-2")).await.error.unwrap();
        assert_eq!(error.code(), StatusCode::InvalidArgument);
        assert!(
            error.message.contains("in deployment ALB") && error.message.contains(shown),
            "{}",
            error.message
        );
        let asked = naming(name, GetActiveVersionRequest { instance_id: "alb-2".into() });
        assert_eq!(nlb.front.get_active_version(asked).await.unwrap_err().code(), Code::InvalidArgument);
        let request = RollbackRequest { instance_id: "alb-2".into(), ..Default::default() };
        let error = nlb.roll_back_in(name, request).await.error.unwrap();
        assert_eq!(error.code(), StatusCode::InvalidArgument);
        let request =
            SetTrafficWeightRequest { instance_id: "alb-2".into(), weight: 5, ..Default::default() };
        let answer = nlb.front.set_traffic_weight(naming(name, request)).await.unwrap().into_inner();
        assert_eq!(answer.error.unwrap().code(), StatusCode::InvalidArgument);
    }
    let two_words = naming("two words", at_once(""));
    let status = nlb.front.promote_version(two_words).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("metadata.deployment: "), "{status}");
    assert!(nlb.registry.desired().borrow().splits.is_empty(), "nothing was changed");
}

#[tokio::test]
async fn all_are_changed_as_one_and_modules_hear_what_the_caller_named() {
    let (mut nlb, modules) = fleet(Fake::CONFIRMS).await;
    let before = nlb.registry.desired().borrow().revision;
    let answer = nlb.promote_in("all", at_once("")).await;
    assert!(answer.success, "{}", answer.message);
    assert!(answer.message.starts_with("in ALB, v2 has all new flows"), "{}", answer.message);
    assert!(answer.message.contains("; in DBLB, v2 has all new flows"), "{}", answer.message);
    assert_eq!(nlb.registry.desired().borrow().revision, before + 1);
    for module in [&modules[1], &modules[3]] {
        assert_eq!(module.last_deployment("PromoteVersion").as_deref(), Some("all"));
    }
    let answer = nlb.roll_back_in("DBLB", RollbackRequest::default()).await;
    assert!(answer.success, "{}", answer.message);
    assert_eq!(modules[2].last_deployment("Rollback").as_deref(), Some("DBLB"));
    assert_eq!((nlb.shares_in("ALB").await, nlb.shares_in("DBLB").await), ((0, 100), (100, 100)));
    let answer = nlb.roll_back_in("", RollbackRequest::default()).await;
    assert!(answer.success, "only the ALBs have a former split: {}", answer.message);
    assert_eq!(modules[1].last_deployment("Rollback"), None, "the caller named none");
}

/// The call that undoes a change is for the same deployment.
#[tokio::test]
async fn a_refusal_of_one_module_undoes_the_change_in_its_deployment_only() {
    let mut nlb = Nlb::start().await;
    let told = nlb.add_fake("alb-2", 2, "v2", Fake::CONFIRMS).await;
    nlb.add_fake("alb-3", 3, "v2", Fake::REFUSES).await;
    let other = nlb.add_fake_as(of_type(ModuleType::Dblb, "dblb-2", 4, "v2"), Fake::CONFIRMS).await;
    let answer = nlb.promote_in("ALB", at_once("")).await;
    assert!(!answer.success && answer.error.unwrap().details.contains_key("alb-3"));
    assert_eq!(told.last_deployment("Rollback").as_deref(), Some("ALB"));
    assert!(other.calls().iter().all(|call| call != "Rollback" && call != "PromoteVersion"));
    assert!(nlb.registry.desired().borrow().splits.is_empty());
}

#[tokio::test]
async fn instances_name_their_deployment_in_metadata() {
    let mut nlb = Nlb::start().await;
    for (host, shop) in [(1, "orders"), (2, "search")] {
        for version in ["v1", "v2"] {
            let host = host + if version == "v2" { 2 } else { 0 };
            let mut request = without_control(registration_at(&format!("{shop}-{version}"), host, version));
            let instance = request.instance.as_mut().unwrap();
            instance.metadata.insert("deployment".into(), shop.into());
            nlb.add(request).await;
        }
    }
    let answer = nlb.promote_in("orders", at_once("")).await;
    assert!(answer.success, "{}", answer.message);
    assert_eq!((nlb.shares_in("orders").await, nlb.shares_in("search").await), ((0, 100), (100, 100)));
    let unknown = text(nlb.promote_in("ALB", at_once("")).await.error);
    assert!(unknown.contains("there are: orders, search"), "{unknown}");

    let joining = |module_type, deployment: &str| {
        let mut request = of_type(module_type, "bad", 9, "v1");
        request.instance.as_mut().unwrap().metadata.insert("deployment".into(), deployment.into());
        request
    };
    for name in ["all", "DBLB"] {
        let status = nlb.modules.register_module(joining(ModuleType::Alb, name)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("metadata.deployment"), "{status}");
    }
    let answer = nlb.modules.register_module(joining(ModuleType::Dblb, "orders")).await.unwrap().into_inner();
    let error = answer.error.unwrap();
    assert_eq!(error.code(), StatusCode::Error);
    assert!(error.message.contains("deployment orders has instances of type ALB"), "{}", error.message);
    assert_eq!(nlb.listed("bad").await, None);
}

/// An NLB with ALBs of v1 and v2 and DBLBs of v1, all of which have former splits, as a module of another
/// one.
async fn with_child() -> (Nlb, Nlb) {
    let (mut parent, mut child) = (Nlb::start().await, Nlb::start().await);
    let alb = |id: &str, host, version: &str| without_control(of_type(ModuleType::Alb, id, host, version));
    child.add(alb("alb-1", 1, "v1")).await;
    child.add(alb("alb-2", 2, "v2")).await;
    child.add(without_control(of_type(ModuleType::Dblb, "dblb-1", 3, "v1"))).await;
    for deployment in ["ALB", "DBLB"] {
        let weigh = SetTrafficWeightRequest { version: "v1".into(), weight: 80, ..Default::default() };
        let answer = child.front.set_traffic_weight(naming(deployment, weigh)).await.unwrap().into_inner();
        assert!(answer.success, "{}", answer.message);
    }
    let mut request = of_type(ModuleType::Nlb, "child", 1, "v2");
    let instance = request.instance.as_mut().unwrap();
    instance.metadata.insert("data_address".into(), "10.0.0.1".into());
    instance.address = child.address.to_string();
    parent.add(request).await;
    (parent, child)
}

#[tokio::test]
async fn a_promotion_is_undone_in_the_deployment_of_an_nlb_that_it_changed() {
    for deployment in ["", "NLB", "all"] {
        let (mut parent, mut child) = with_child().await;
        parent.add_fake_as(of_type(ModuleType::Nlb, "other", 2, "v2"), Fake::REFUSES).await;
        let answer = parent.promote_in(deployment, at_once("")).await;
        let details = answer.error.expect("one refuses").details;
        assert!(details.keys().eq(["other"]), "{deployment:?}: {details:?}");
        assert_eq!(child.shares_in("ALB").await, (80, 100), "{deployment:?}");
        let status = child.front.get_status(GetStatusRequest::default()).await.unwrap().into_inner();
        assert_eq!(status.details.get("promotion"), None);
    }
}

#[tokio::test]
async fn an_nlb_that_does_not_know_the_deployment_goes_by_the_version() {
    let (mut parent, mut child) = with_child().await;
    let answer = parent.promote_in("NLB", at_once("")).await;
    assert!(answer.success, "{}", answer.message);
    assert_eq!(child.shares_in("ALB").await, (0, 100));
    let unknown = text(child.promote_in("NLB", at_once("")).await.error);
    assert!(
        unknown.contains("there is no deployment \"NLB\""),
        "a caller of its own gave the name: {unknown}"
    );
}
