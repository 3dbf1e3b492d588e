//! The command line: the real binary against a server.

use std::process::Output;

use serde_json::Value;
use tokio::process::Command;

use super::fake_module::Fake;
use super::fleet::{registration, registration_at, without_control};
use super::nlb::Nlb;

impl Nlb {
    async fn command(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nlb"));
        command.args(line.split_whitespace()).env("NLB_SERVER", self.address.to_string());
        command.output().await.expect("the command starts")
    }

    async fn prints(&self, line: &str) -> String {
        let output = self.command(line).await;
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    async fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.prints(&format!("{line} --output json")).await).expect("JSON")
    }

    async fn complains(&self, line: &str) -> String {
        let output = self.command(line).await;
        assert_eq!(output.status.code(), Some(1), "{line}");
        String::from_utf8(output.stderr).unwrap()
    }
}

#[tokio::test]
async fn modules_and_routes_are_listed_for_people_and_for_programs() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration_at("alb-1", 1, "v1")).await;
    nlb.add(registration_at("alb-2", 2, "v2")).await;
    let table = nlb.prints("modules").await;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["INSTANCE", "TYPE", "VERSION", "HEALTH", "WEIGHT", "FLOWS", "ADDRESS"]);
    assert_eq!(lines[1], ["alb-1", "ALB", "v1", "HEALTHY", "100", "0", "10.0.0.1:50051"]);
    assert_eq!(lines.len(), 3);
    let modules = nlb.json("modules --module-version v2").await;
    assert_eq!(modules.as_array().map(Vec::len), Some(1));
    assert_eq!((&modules[0]["instance_id"], &modules[0]["weight"]), (&"alb-2".into(), &100.into()));
    let routes = nlb.json("routes --instance alb-1").await;
    assert_eq!((&routes[0]["route_id"], &routes[0]["destination_port"]), (&"web".into(), &80.into()));
    assert!(nlb.prints("routes --destination 198.51.100.1").await.starts_with("ROUTE"));
}

#[tokio::test]
async fn enums_are_named_with_or_without_their_prefix() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration_at("alb-1", 1, "v1")).await;
    nlb.add(registration_at("alb-2", 2, "v2")).await;
    for (kind, found) in [("ALB", 2), ("alb", 2), ("MODULE_TYPE_ALB", 2), ("module_type_rtmp", 0)] {
        let modules = nlb.json(&format!("modules --type {kind}")).await;
        assert_eq!(modules.as_array().map(Vec::len), Some(found), "{kind}");
    }
    let healthy = nlb.json("modules --health health_status_healthy").await;
    assert_eq!(healthy.as_array().map(Vec::len), Some(2));
    nlb.prints(
        "route add more --protocol protocol_tcp --destination 192.0.2.1 --port 81 --for-type Module_Type_Alb",
    )
    .await;
    assert_eq!(nlb.json("routes --protocol Protocol_Tcp").await.as_array().map(Vec::len), Some(4));
    let no_group = nlb.complains("scale --type MODULE_TYPE_RTMP --up").await;
    assert!(no_group.contains("start one first"), "{no_group}");
}

#[tokio::test]
async fn weights_are_set_by_instance_and_by_version() {
    let mut nlb = Nlb::start().await;
    nlb.add(without_control(registration_at("alb-1", 1, "v1"))).await;
    nlb.add(without_control(registration_at("alb-2", 2, "v2"))).await;
    nlb.prints("weight alb-1 7").await;
    assert_eq!(nlb.listed("alb-1").await.unwrap().traffic_weight, 7);
    let weighed = nlb.json("weight v2 25 --version").await;
    assert_eq!(weighed["versions"][1]["weight"], 25);
    assert!(nlb.complains("weight ghost 7").await.contains("\"ghost\" is not registered"));
    assert!(nlb.complains("weight alb-1 -1").await.contains("give 0 to 10000"));
}

#[tokio::test]
async fn a_drain_is_waited_for_and_undone() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    nlb.count_flows("alb-1", &[2]);
    let drained = nlb.json("drain alb-1 --timeout 1s").await;
    assert_eq!((&drained["closed"], &drained["left"]), (&0.into(), &2.into()));
    assert!(nlb.prints("modules").await.contains("STOPPING"));
    nlb.prints("drain alb-1 --undo").await;
    assert!(nlb.prints("modules").await.contains("HEALTHY"));
}

#[tokio::test]
async fn a_module_that_serves_is_removed_only_by_force() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    assert!(nlb.complains("remove alb-1").await.contains("force"));
    assert!(nlb.prints("remove alb-1 --force").await.starts_with("alb-1 is removed"));
    assert!(nlb.complains("remove alb-1").await.contains("is not registered"));
}

#[tokio::test]
async fn status_shows_how_it_is() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    let status = nlb.json("status --packets").await;
    assert_eq!((&status["health"], &status["modules_by_type"]["ALB"]), (&"HEALTHY".into(), &1.into()));
    assert_eq!(status["details"]["packets_seen"], "0");
    assert!(nlb.prints("status").await.contains("1 ALB"));
}

#[tokio::test]
async fn metrics_are_listed_by_name_and_by_module() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    let seen = nlb.json("metrics nlb_packets_seen_total").await;
    assert_eq!((&seen[0]["value"], seen.as_array().map(Vec::len)), (&0.0.into(), Some(1)));
    assert!(nlb.prints("metrics nlb_modules").await.contains("health=healthy,module_type=alb"));
    while !nlb.prints("metrics --instance alb-1").await.contains("nlb_instance_bytes_total") {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(nlb.complains("metrics nlb_moduls").await.contains("nlb_modules"));
}

#[tokio::test]
async fn load_is_shown_and_rebalanced() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration_at("alb-1", 1, "v1")).await;
    nlb.add(registration_at("alb-2", 2, "v1")).await;
    nlb.count_flows("alb-1", &[4]);
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let load = nlb.json("load").await;
    assert_eq!((&load["balance_score"], &load["instances"][0]["active_flows"]), (&0.0.into(), &4.into()));
    assert!(nlb.prints("load --hour").await.contains("balance score"));
    assert!(nlb.prints("rebalance").await.contains("alb-2: 50 % of new flows before, 100 % now"));
    let back = nlb.json("rebalance --strategy weight --force").await;
    assert_eq!((&back["before"]["alb-1"], &back["after"]["alb-1"]), (&0.into(), &50.into()));
    assert!(nlb.complains("rebalance --strategy luck").await.contains("least_connections"));
}

#[tokio::test]
async fn versions_are_promoted_and_rolled_back() {
    let mut nlb = Nlb::start().await;
    nlb.add(without_control(registration_at("alb-1", 1, "v1"))).await;
    nlb.add(without_control(registration_at("alb-2", 2, "v2"))).await;
    nlb.prints("weight v2 0 --version").await;
    assert!(nlb.prints("promote v2 --rate 20").await.contains("v2 has 20 % of new flows, and 20 % more"));
    let back = nlb.json("rollback").await;
    assert_eq!((&back["previous"], &back["current"]), (&"v1".into(), &"v1".into()));
    let promoted = nlb.json("promote v2").await;
    assert_eq!(promoted["version"], "v2");
    assert!(promoted["message"].as_str().unwrap().contains("v2 has all new flows"));
    assert!(nlb.prints("rollback v1").await.contains("(from v2 to v1)"));
    assert!(nlb.complains("promote v2 --rate 101").await.contains("101 is not 1 to 100 percent"));
    assert!(nlb.complains("promote v9").await.contains("no registered instance has version \"v9\""));
    assert!(nlb.complains("rollback v2").await.contains("did not have the greatest share"));
}

#[tokio::test]
async fn commands_about_versions_name_a_deployment() {
    let mut nlb = Nlb::start().await;
    for (id, host, shop, version) in [
        ("orders-1", 1, "orders", "v1"),
        ("orders-2", 2, "orders", "v2"),
        ("search-1", 3, "search", "v1"),
        ("search-2", 4, "search", "v2"),
    ] {
        let mut request = without_control(registration_at(id, host, version));
        request.instance.as_mut().unwrap().metadata.insert("deployment".into(), shop.into());
        nlb.add(request).await;
    }
    let table = nlb.prints("modules").await;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..4], ["INSTANCE", "TYPE", "DEPLOYMENT", "VERSION"]);
    assert_eq!(lines[1][..4], ["orders-1", "ALB", "orders", "v1"]);
    assert_eq!(nlb.json("modules").await[3]["deployment"], "search");

    assert!(nlb.complains("promote v2").await.contains("version \"v2\": orders, search; name one"));
    nlb.prints("weight v2 0 --version --deployment all").await;
    let promoted = nlb.prints("promote v2 --rate 20 --deployment orders").await;
    assert!(promoted.contains("v2 has 20 % of new flows"), "{promoted}");
    nlb.prints("promote v2 --rate 30 --deployment search").await;
    let status = nlb.json("status").await;
    assert_eq!(
        status["details"]["promotion"],
        "orders: v2 has 20 % of new flows; search: v2 has 30 % of new flows"
    );
    nlb.prints("rollback --deployment orders").await;
    let status = nlb.json("status").await;
    assert_eq!(status["details"]["promotion"], "search: v2 has 30 % of new flows");
    let unknown = nlb.complains("rollback --deployment shop").await;
    assert!(unknown.contains("there is no deployment \"shop\"; there are: orders, search"), "{unknown}");
    assert!(nlb.prints("rollback --deployment all").await.starts_with("in orders, search: "));
}

#[tokio::test]
async fn limits_are_set_listed_and_removed() {
    let nlb = Nlb::start().await;
    nlb.prints("limit set all * --per-second 100 --burst 20").await;
    nlb.prints("limit set net ip:10.0.0.0/8 --per-minute 600 --unit packets --off").await;
    let table = nlb.prints("limits").await;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines[0],
        ["LIMIT", "TARGET", "UNIT", "/S", "/MIN", "/H", "BURST", "STATE", "PASSED", "REFUSED"]
    );
    assert_eq!(lines[1], ["all", "*", "requests", "100", "-", "-", "20", "on", "0", "0"]);
    assert_eq!(lines[2], ["net", "ip:10.0.0.0/8", "packets", "-", "600", "-", "-", "off", "0", "0"]);
    let one = nlb.json("limits --target *").await;
    assert_eq!((one.as_array().map(Vec::len), &one[0]["per_second"]), (Some(1), &100.into()));
    assert!(nlb.prints("limit remove all").await.contains("all is removed"));
    assert!(nlb.complains("limit remove all").await.contains("no rate limit has the id \"all\""));
    assert!(nlb.complains("limit set a user:7 --per-second 1").await.contains("name the instance"));
    assert!(nlb.complains("limit set a *").await.contains("give at least one of them"));
    assert!(nlb.complains("limit set a * --per-second -1").await.contains("-1 is negative"));
}

#[tokio::test]
async fn operators_routes_are_added_and_removed() {
    let mut nlb = Nlb::start().await;
    nlb.add(without_control(registration_at("alb-1", 1, "v1"))).await;
    nlb.add(without_control(registration_at("alb-2", 2, "v1"))).await;
    let add = "route add secure --protocol https --destination 192.0.2.1";
    nlb.prints(&format!("{add} --source 198.51.100.0/24 --priority -3 --listen-port 8443 --for alb-1,alb-2"))
        .await;
    let routes = nlb.json("routes --protocol HTTPS").await;
    let instances: Vec<&Value> = routes.as_array().unwrap().iter().map(|row| &row["instance_id"]).collect();
    assert_eq!(instances, ["alb-1", "alb-2"]);
    assert_eq!((&routes[0]["destination_port"], &routes[0]["priority"]), (&443.into(), &(-3).into()));
    assert_eq!(routes[0]["source"], "198.51.100.0/24");
    let route = nlb.registry.snapshot().operator_routes["secure"].clone();
    assert_eq!(route.listen_port, Some(8443));
    nlb.prints(&format!("{add} --for-type alb --port 8443")).await;
    let route = nlb.registry.snapshot().operator_routes["secure"].clone();
    assert_eq!((route.port, route.source), (Some(8443), None), "the whole route is replaced");
    assert!(nlb.prints("route remove secure").await.contains("deleted"));
    assert!(nlb.complains("route remove secure").await.contains("there is no route \"secure\""));
    nlb.prints("route remove web --instance alb-1").await;
    assert_eq!(nlb.json("routes --instance alb-1").await, Value::Array(Vec::new()));
    let named = nlb.complains(&format!("{add} --source example.org")).await;
    assert!(named.contains("source_pattern") && named.contains("\"example.org\""), "{named}");
    let unknown = nlb.command("route add a --protocol gopher").await;
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("none of TCP, UDP, HTTP"));
}

#[tokio::test]
async fn groups_are_scaled_within_what_is_set() {
    let mut nlb = Nlb::start().await;
    let module = nlb.add_fake("alb-1", 1, "v1", Fake::CONFIRMS).await;
    let set = nlb.json("scale --type alb --max 3 --cpu 60 --manual").await;
    assert_eq!((&set["current"], &set["wanted"]), (&1.into(), &1.into()));
    assert!(set["message"].as_str().unwrap().contains("for manual calls only"));
    assert!(module.calls().is_empty());
    assert!(nlb.prints("scale alb-1 --up").await.contains("alb-1 scales to 2 instances"));
    assert_eq!(module.calls().len(), 1);
    assert!(nlb.complains("scale alb-1 --to 4").await.contains("above max_instances, which is 3"));
    assert!(nlb.complains("scale alb-1").await.contains("scaling_action"));
    assert!(nlb.complains("scale ghost --up").await.contains("\"ghost\" is not registered"));
    let nobody = nlb.command("scale --up").await;
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("INSTANCE_ID"));
}

#[tokio::test]
async fn an_nlb_that_does_not_answer_is_named() {
    let nlb = Nlb::start().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let complaint = nlb.complains(&format!("status --server {free}")).await;
    assert!(complaint.contains(&free.to_string()) && complaint.contains("nlb serve"), "{complaint}");
}
