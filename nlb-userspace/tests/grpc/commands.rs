//! The command line as its users see it: the real binary against a server.

use std::process::Output;

use serde_json::Value;
use tokio::process::Command;

use super::fleet::{deaf, registration, registration_at};
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
async fn weights_are_set_by_instance_and_by_version() {
    let mut nlb = Nlb::start().await;
    nlb.add(deaf(registration_at("alb-1", 1, "v1"))).await;
    nlb.add(deaf(registration_at("alb-2", 2, "v2"))).await;
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
async fn an_nlb_that_does_not_answer_is_named() {
    let nlb = Nlb::start().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let complaint = nlb.complains(&format!("status --server {free}")).await;
    assert!(complaint.contains(&free.to_string()) && complaint.contains("nlb serve"), "{complaint}");
}
