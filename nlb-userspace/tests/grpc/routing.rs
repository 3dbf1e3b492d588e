//! Changing routes, listing them, and asking for their effect.

use std::sync::Arc;

use nlb::model::traffic::{Counts, Traffic};
use nlb_proto::*;

use super::fleet::{registration, registration_at, route, without_control};
use super::metrics::backend;
use super::nlb::Nlb;

fn update(routes: Vec<Route>) -> UpdateRoutingRequest {
    UpdateRoutingRequest { routes, ..Default::default() }
}

fn targeted(route_id: &str, key: &str, value: &str) -> Route {
    Route { metadata: [(key.into(), value.into())].into(), ..route(route_id) }
}

impl Nlb {
    /// The routing table as `route>instance` words.
    async fn table(&mut self, request: GetRoutingTableRequest) -> String {
        let answer = self.modules.get_routing_table(request).await.unwrap().into_inner();
        let word = |entry: &RoutingEntry| {
            format!("{}>{}", entry.route.as_ref().unwrap().route_id, entry.target_instance_id)
        };
        answer.entries.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    async fn routed(&mut self, route: Route, context: &[(&str, &str)]) -> RouteRequestResponse {
        let context = context.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let request = RouteRequestRequest { route: Some(route), context, dry_run: true };
        self.modules.route_request(request).await.unwrap().into_inner()
    }
}

#[tokio::test]
async fn a_module_changes_its_own_routes() {
    let mut nlb = Nlb::start().await;
    let id = nlb.add(registration("alb-1")).await;
    let mut request = update(vec![Route { destination_port: 443, ..route("tls") }]);
    request.source_instance_id = "alb-1".into();
    request.registration_id = id;
    let answer = nlb.modules.update_routing(request.clone()).await.unwrap().into_inner();
    assert!(answer.success, "{}", answer.message);
    assert_eq!(answer.routes_updated, 1);
    assert_eq!(nlb.table(Default::default()).await, "tls>alb-1 web>alb-1");
    let routed = nlb.routed(Route { destination_port: 443, ..route("?") }, &[]).await;
    assert_eq!(routed.target_address, "10.0.0.1:443", "the maps hold it");

    let again = nlb.modules.update_routing(request.clone()).await.unwrap().into_inner();
    assert_eq!(again.routes_updated, 1, "it counts, although nothing changed");

    request.replace_all = true;
    let replaced = nlb.modules.update_routing(request).await.unwrap().into_inner();
    assert_eq!(replaced.routes_updated, 1, "removed routes do not count");
    assert_eq!(nlb.table(Default::default()).await, "tls>alb-1");
}

#[tokio::test]
async fn an_operators_route_without_a_module_says_so() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    for (route, what) in [
        (
            targeted("a", "target_instances", "NOBODY"),
            "applied; without traffic until that changes: a: NOBODY is not registered",
        ),
        (targeted("b", "target_instances", "alb-1,ghost"), "b: ghost is not registered"),
        (targeted("c", "target_module_type", "RTMP"), "c: no instance of its type is registered"),
    ] {
        let answer = nlb.modules.update_routing(update(vec![route])).await.unwrap().into_inner();
        assert!(answer.success && answer.message.contains(what), "{}", answer.message);
    }
    let served = update(vec![targeted("d", "target_instances", "alb-1")]);
    let answer = nlb.modules.update_routing(served).await.unwrap().into_inner();
    assert_eq!(answer.message, "applied");
}

#[tokio::test]
async fn the_operators_routes_choose_their_modules() {
    let mut nlb = Nlb::start().await;
    for (name, host, module_type) in [("alb-1", 1, ModuleType::Alb), ("db-1", 2, ModuleType::Dblb)] {
        let mut request = registration_at(name, host, "v1");
        request.initial_routes.clear();
        if let Some(instance) = &mut request.instance {
            instance.set_module_type(module_type);
        }
        nlb.add(request).await;
    }
    let routes = vec![
        route("everyone"),
        Route { protocol: Protocol::Mysql.into(), destination_port: 0, ..route("implied") },
        targeted("typed", "target_module_type", "alb"),
        targeted("named", "target_instances", "db-1, ghost"),
        targeted("nobody", "target_instances", "ghost"),
    ];
    let answer = nlb.modules.update_routing(update(routes)).await.unwrap().into_inner();
    assert_eq!((answer.success, answer.routes_updated), (true, 5), "{}", answer.message);
    let table = nlb.table(Default::default()).await;
    assert_eq!(table, "everyone>alb-1 everyone>db-1 implied>db-1 named>db-1 nobody> typed>alb-1");
    let routed = nlb.routed(Route { destination_port: 3306, ..route("?") }, &[]).await;
    assert_eq!(routed.target_instance_id, "db-1");

    let replaced = UpdateRoutingRequest { replace_all: true, ..update(vec![]) };
    assert_eq!(nlb.modules.update_routing(replaced).await.unwrap().into_inner().routes_updated, 0);
    assert_eq!(nlb.table(Default::default()).await, "");
}

#[tokio::test]
async fn validate_only_changes_nothing_at_all() {
    let mut nlb = Nlb::start().await;
    let (before, revision) = (nlb.maps.dump(), nlb.registry.desired().borrow().revision);
    let request = UpdateRoutingRequest { validate_only: true, ..update(vec![route("web")]) };
    let answer = nlb.modules.update_routing(request).await.unwrap().into_inner();
    assert_eq!((answer.success, answer.routes_updated), (true, 1));
    assert_eq!(nlb.table(Default::default()).await, "");
    assert_eq!((nlb.maps.dump(), nlb.registry.desired().borrow().revision), (before, revision));
}

#[tokio::test]
async fn the_table_is_filtered_and_paged() {
    let mut nlb = Nlb::start().await;
    let routes = vec![
        route("four"),
        Route { destination_pattern: "2001:db8::1".into(), priority: 7, ..route("six") },
        Route { destination_pattern: "*".into(), protocol: Protocol::Udp.into(), ..route("star") },
    ];
    nlb.modules.update_routing(update(routes)).await.unwrap();
    let within =
        |filter: &str| GetRoutingTableRequest { destination_filter: filter.into(), ..Default::default() };
    assert_eq!(nlb.table(within("192.0.2.0/24")).await, "four> star>");
    assert_eq!(nlb.table(within("2001:db8::1")).await, "six> star>");
    assert_eq!(nlb.table(within("198.51.100.1")).await, "");
    let udp = GetRoutingTableRequest { protocol_filter: Protocol::Udp.into(), ..Default::default() };
    assert_eq!(nlb.table(udp).await, "star>");
    let filter = Filter { field: "priority".into(), operator: "gt".into(), value: "0".into() };
    let query = Some(Query { filters: vec![filter], ..Default::default() });
    assert_eq!(nlb.table(GetRoutingTableRequest { query, ..Default::default() }).await, "six>");
    let pagination = Some(Pagination { page: 2, page_size: 2, ..Default::default() });
    let query = Some(Query { pagination, ..Default::default() });
    assert_eq!(nlb.table(GetRoutingTableRequest { query, ..Default::default() }).await, "star>");
}

#[tokio::test]
async fn a_request_is_routed_as_a_packet_would_be() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration_at("a", 1, "v1")).await;
    nlb.add(registration_at("b", 2, "v1")).await;
    let mut chosen = std::collections::BTreeSet::new();
    for port in 1..=64 {
        let port = (40_000 + port).to_string();
        let context = [("source_address", "198.51.100.7"), ("source_port", port.as_str())];
        let first = nlb.routed(route("?"), &context).await;
        assert!(first.routed, "{}", first.message);
        assert_eq!(first, nlb.routed(route("?"), &context).await, "one flow, one answer");
        chosen.insert((first.target_instance_id, first.target_address));
    }
    let both = [("a".to_owned(), "10.0.0.1:80".to_owned()), ("b".to_owned(), "10.0.0.2:80".to_owned())];
    assert_eq!(chosen, both.into());

    let nowhere = nlb.routed(Route { destination_port: 81, ..route("?") }, &[]).await;
    assert!(!nowhere.routed && nowhere.message.contains("port 81"), "{}", nowhere.message);
    assert_eq!(nowhere.error.unwrap().code(), StatusCode::NotFound);
}

#[tokio::test]
async fn without_a_client_answers_follow_the_weights() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration_at("a", 1, "v1")).await;
    nlb.add(without_control(registration_at("b", 2, "v1"))).await;
    let mut chosen = std::collections::BTreeSet::new();
    let near = Route { source_pattern: "198.51.100.0/24".into(), ..route("?") };
    for _ in 0..64 {
        chosen.insert(nlb.routed(route("?"), &[]).await.target_instance_id);
        let from = nlb.routed(near.clone(), &[]).await.message;
        assert!(from.contains("from 198.51.100."), "{from}");
    }
    assert_eq!(chosen, ["a".to_owned(), "b".to_owned()].into());

    for id in ["a", "b"] {
        let commit = nlb::registry::Commit::Apply;
        nlb.registry.set_instance_weight(id, "", 0, commit).unwrap();
    }
    nlb.applied().await;
    let nobody = nlb.routed(route("?"), &[]).await;
    assert!(!nobody.routed && nobody.message.contains("no backend"), "{}", nobody.message);
    assert_eq!(nobody.error.unwrap().code(), StatusCode::Unavailable);
}

#[tokio::test]
async fn any_vip_is_the_first_with_a_backend() {
    let mut nlb = Nlb::start().await;
    let mut six = registration("alb-1");
    six.instance = six.instance.map(|instance| ModuleInstance { address: "alb-001".into(), ..instance });
    six.initial_routes = vec![Route { destination_pattern: "2001:db8::1".into(), ..route("six") }];
    nlb.add(six).await;
    for anywhere in ["", "*"] {
        let asked = Route { destination_pattern: anywhere.into(), ..route("?") };
        let routed = nlb.routed(asked.clone(), &[]).await;
        assert_eq!(routed.target_address, "[fd00::1]:80", "{}", routed.message);
        let from_four = nlb.routed(asked, &[("source_address", "198.51.100.7")]).await;
        assert!(!from_four.routed, "{}", from_four.message);
    }
    nlb.add(registration_at("four", 2, "v1")).await;
    let asked = Route { destination_pattern: "*".into(), ..route("?") };
    assert_eq!(nlb.routed(asked, &[]).await.target_instance_id, "four", "the first VIP");
}

#[tokio::test]
async fn the_table_tells_how_much_each_route_is_used() {
    let mut nlb = Nlb::start().await;
    let mut request = registration("alb-1");
    request.initial_routes.push(Route { destination_port: 443, ..route("tls") });
    nlb.add(request).await;
    // All of the instance's flows are on the route "web".
    nlb.count_flows("alb-1", &[4]);
    nlb.wait_for("nlb_instance_new_flows_total{instance_id=alb-1}", 9.0).await;
    let query = |query| GetRoutingTableRequest { query: Some(query), ..Default::default() };
    let by_use = query(Query { sort_by: "last_used".into(), sort_desc: true, ..Default::default() });
    let entries = nlb.modules.get_routing_table(by_use).await.unwrap().into_inner().entries;
    let [web, tls] = &entries[..] else { panic!("two routes: {entries:?}") };
    assert_eq!((web.route.as_ref().unwrap().route_id.as_str(), web.current_connections), ("web", 4));
    assert!(web.last_used.is_some_and(|used| used.seconds >= web.created_at.unwrap().seconds - 1));
    assert_eq!((tls.route.as_ref().unwrap().route_id.as_str(), tls.current_connections), ("tls", 0));
    assert_eq!(tls.last_used, None, "not used yet");

    let since =
        Filter { field: "last_used".into(), operator: "gt".into(), value: "2026-01-01T00:00:00Z".into() };
    let used = query(Query { filters: vec![since], ..Default::default() });
    assert_eq!(nlb.table(used).await, "web>alb-1");
}

#[tokio::test]
async fn the_clients_address_decides_where_routes_name_sources() {
    let mut nlb = Nlb::start().await;
    let mut near = registration_at("near", 1, "v1");
    near.initial_routes[0].source_pattern = "198.51.100.0/24".into();
    near.initial_routes[0].priority = 5;
    nlb.add(near).await;
    nlb.add(registration_at("far", 2, "v1")).await;
    let from = |address| [("source_address", address)];
    let routed = nlb.routed(route("?"), &from("198.51.100.7")).await;
    assert_eq!((routed.target_instance_id.as_str(), routed.priority), ("near", 5));
    let routed = nlb.routed(route("?"), &from("203.0.113.7")).await;
    assert_eq!((routed.target_instance_id.as_str(), routed.priority), ("far", 0));
    let by_pattern = Route { source_pattern: "198.51.100.9".into(), ..route("?") };
    assert_eq!(nlb.routed(by_pattern, &[]).await.target_instance_id, "near");
}

#[tokio::test]
async fn listen_ports_come_from_the_route_then_from_the_instance() {
    let mut nlb = Nlb::start().await;
    let mut request = registration("alb-1");
    if let Some(instance) = &mut request.instance {
        instance.metadata.insert("listen_port".into(), "8080".into());
    }
    request.initial_routes.push(Route { destination_port: 443, ..targeted("tls", "listen_port", "8443") });
    nlb.add(request).await;
    assert_eq!(nlb.routed(route("?"), &[]).await.target_address, "10.0.0.1:8080");
    let tls = Route { destination_port: 443, ..route("?") };
    assert_eq!(nlb.routed(tls, &[]).await.target_address, "10.0.0.1:8443");
}

#[tokio::test]
async fn a_route_is_validated_against_who_could_serve_it() {
    let mut nlb = Nlb::start().await;
    let validate = |route: Route| ValidateRouteRequest { route: Some(route) };
    let answer = nlb.modules.validate_route(validate(route("web"))).await.unwrap().into_inner();
    assert!(answer.valid && !answer.has_handler);
    nlb.add(without_control(registration("alb-1"))).await;
    let answer = nlb.modules.validate_route(validate(route("web"))).await.unwrap().into_inner();
    assert!(answer.valid && answer.has_handler);
    assert_eq!(answer.capable_instances, ["alb-1"]);
    let six = Route { destination_pattern: "2001:db8::1".into(), ..route("six") };
    let answer = nlb.modules.validate_route(validate(six)).await.unwrap().into_inner();
    assert!(answer.valid && !answer.has_handler, "alb-1 has no IPv6 address");
    let domain = Route { destination_pattern: "example.com".into(), ..route("web") };
    let answer = nlb.modules.validate_route(validate(domain)).await.unwrap().into_inner();
    assert!(!answer.valid);
    assert!(answer.validation_errors[0].starts_with("route.destination_pattern"), "{answer:?}");
}

#[tokio::test]
async fn a_flow_goes_past_full_instances() {
    let mut nlb = Nlb::start().await;
    for (host, (instance_id, priority)) in (1..).zip([("a", 9), ("b", 9), ("c", 1)]) {
        let mut request = without_control(registration_at(instance_id, host, "v1"));
        request.instance.as_mut().unwrap().max_connections = 5;
        request.initial_routes[0].priority = priority;
        nlb.add(request).await;
    }
    let flows = |of: &[(&str, u64)]| {
        let backends = of.iter().map(|(id, active_flows)| {
            (backend(id, 80), Counts { active_flows: *active_flows, ..Default::default() })
        });
        Arc::new(Traffic { backends: backends.collect(), ..Default::default() })
    };
    for (counted, expected) in [
        (&[("a", 5), ("b", 4)][..], "b"),
        (&[("a", 4), ("b", 5)], "a"),
        (&[("a", 5), ("b", 5), ("c", 4)], "c"),
    ] {
        nlb.traffic.send_replace(flows(counted));
        for port in ["1", "2", "3", "4"] {
            let routed = nlb.routed(route("?"), &[("source_port", port)]).await;
            assert_eq!(routed.target_instance_id, expected, "port {port}");
        }
    }
    nlb.traffic.send_replace(flows(&[("a", 5), ("b", 5), ("c", 6)]));
    let refused = nlb.routed(route("?"), &[]).await;
    let error = refused.error.expect("a refusal");
    assert!(!refused.routed && error.code() == StatusCode::Unavailable, "{}", error.message);
    assert!(error.message.starts_with("all instances are at their max_connections"), "{}", error.message);
}
