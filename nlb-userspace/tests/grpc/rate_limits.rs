//! Rate limits over gRPC: limits that the data path enforces stay in the NLB, and all others are passed on to
//! modules.

use nlb_proto::*;
use tonic::Code;

use super::fake_module::Fake;
use super::fleet::registration;
use super::nlb::Nlb;

fn limit(id: &str, target: &str) -> RateLimit {
    RateLimit {
        limit_id: id.into(),
        target: target.into(),
        requests_per_second: 100,
        enabled: true,
        ..RateLimit::default()
    }
}

fn set(instance_id: &str, limit: RateLimit) -> SetRateLimitRequest {
    SetRateLimitRequest { instance_id: instance_id.into(), limit: Some(limit) }
}

async fn ids(nlb: &mut Nlb, target: &str) -> Vec<String> {
    let request = GetRateLimitsRequest { target: target.into(), ..Default::default() };
    let answer = nlb.front.get_rate_limits(request).await.unwrap().into_inner();
    assert_eq!(answer.total_limits as usize, answer.limits.len());
    answer.limits.into_iter().map(|limit| limit.limit_id).collect()
}

#[tokio::test]
async fn limits_are_set_listed_replaced_and_removed() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    for (id, target) in [("b", "*"), ("a", "route:web"), ("c", "ip:10.0.0.0/8")] {
        let answer = nlb.front.set_rate_limit(set("", limit(id, target))).await.unwrap().into_inner();
        assert!(answer.success && answer.message.contains("in force"), "{answer:?}");
    }
    assert_eq!(ids(&mut nlb, "").await, ["a", "b", "c"]);
    assert_eq!(ids(&mut nlb, "route:web").await, ["a"]);
    let off = RateLimit { enabled: false, ..limit("a", "route:web") };
    let answer = nlb.front.set_rate_limit(set("", off)).await.unwrap().into_inner();
    assert!(answer.success && answer.message.contains("not in force"), "{answer:?}");
    assert_eq!(nlb.maps.rows().limits.len(), 2, "a disabled limit is not in the maps");
    let gone = RemoveRateLimitRequest { limit_id: "b".into(), ..Default::default() };
    assert!(nlb.front.remove_rate_limit(gone.clone()).await.unwrap().into_inner().success);
    let again = nlb.front.remove_rate_limit(gone).await.unwrap().into_inner();
    assert_eq!(again.error.expect("the limit was removed").code(), StatusCode::NotFound);
}

#[tokio::test]
async fn a_target_of_another_kind_is_the_modules() {
    let mut nlb = Nlb::start().await;
    let module = nlb.add_fake("alb-1", 1, "v1", Fake::CONFIRMS).await;
    let status = nlb.front.set_rate_limit(set("", limit("users", "user:7"))).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("name the instance"), "{status:?}");

    let answer = nlb.front.set_rate_limit(set("alb-1", limit("users", "user:7"))).await.unwrap().into_inner();
    assert!(answer.success, "{answer:?}");
    let passed_on: SetRateLimitRequest = module.last("SetRateLimit").expect("the module was called");
    assert_eq!(passed_on.limit.unwrap().target, "user:7");
    assert_eq!(ids(&mut nlb, "").await, Vec::<String>::new(), "the NLB stores nothing of it");

    let request = RemoveRateLimitRequest { instance_id: "alb-1".into(), limit_id: "users".into() };
    assert!(nlb.front.remove_rate_limit(request).await.unwrap().into_inner().success);
    assert!(module.last::<RemoveRateLimitRequest>("RemoveRateLimit").is_some());
    let request = GetRateLimitsRequest { instance_id: "alb-1".into(), ..Default::default() };
    nlb.front.get_rate_limits(request).await.unwrap_or_else(|status| panic!("{status:?}"));
    assert!(module.last::<GetRateLimitsRequest>("GetRateLimits").is_some());
}

#[tokio::test]
async fn an_instance_id_means_that_instance_whatever_the_target() {
    let mut nlb = Nlb::start().await;
    let module = nlb.add_fake("alb-1", 1, "v1", Fake::CONFIRMS).await;
    let own = nlb.front.set_rate_limit(set("", limit("all", "*"))).await.unwrap().into_inner();
    assert!(own.success && !module.calls().contains(&"SetRateLimit".to_owned()), "{own:?}");
    for target in ["*", "route:web", "ip:10.0.0.0/8", "service:192.0.2.1:80/tcp"] {
        let answer = nlb.front.set_rate_limit(set("alb-1", limit("all", target))).await.unwrap().into_inner();
        assert!(answer.success, "{answer:?}");
        let passed_on: SetRateLimitRequest = module.last("SetRateLimit").expect("the module was called");
        assert_eq!(passed_on.limit.unwrap().target, target);
    }
    let request = RemoveRateLimitRequest { instance_id: "alb-1".into(), limit_id: "all".into() };
    assert!(nlb.front.remove_rate_limit(request).await.unwrap().into_inner().success);
    assert!(module.last::<RemoveRateLimitRequest>("RemoveRateLimit").is_some());
    assert_eq!(ids(&mut nlb, "").await, ["all"], "the NLB's own limit of that id stays");
    let unknown = nlb.front.set_rate_limit(set("ghost", limit("web", "*"))).await.unwrap().into_inner();
    assert_eq!(unknown.error.expect("refused").code(), StatusCode::NotFound);
}

#[tokio::test]
async fn a_module_that_refuses_or_cannot_be_reached_is_named() {
    let mut nlb = Nlb::start().await;
    nlb.add_fake("alb-1", 1, "v1", Fake::REFUSES).await;
    nlb.add_fake("alb-2", 2, "v1", Fake::Unreachable).await;
    for id in ["alb-1", "alb-2"] {
        let answer = nlb.front.set_rate_limit(set(id, limit("users", "user:7"))).await.unwrap().into_inner();
        let error = answer.error.expect("not done");
        assert!(!answer.success && error.details.contains_key(id), "{error:?}");
    }
}
