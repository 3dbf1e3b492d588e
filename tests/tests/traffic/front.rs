//! The NLB's ModuleService with real modules: it reports their state, changes their routes and ends them.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{
    CanHandleRequest, DeleteRouteRequest, GetRoutesRequest, GetRoutingTableRequest, GetStatsRequest,
    GetStatusRequest, HealthStatus, Protocol, ReloadRequest, Route, RoutingEntry, ShutdownRequest,
    UpdateRoutesRequest,
};
use nlb_testkit::lab::{Lab, VIP4};
use nlb_testkit::process::MAX_WAIT;
use nlb_testkit::programs::{ECHO_PORT, grpc};

use crate::clients::{Connection, L4, flows, on};
use crate::fleet::{Fleet, Mode};

impl Fleet {
    /// Waits until the entry of the route "extra" matches, and returns the routing table.
    fn table_when(
        &self,
        like_this: impl Fn(&RoutingEntry) -> bool + Send + Sync,
    ) -> Result<Vec<RoutingEntry>> {
        let server = format!("http://{}", grpc(&self.lab));
        on(&self.lab.nlb, || async move {
            let mut nlb = NlbServiceClient::connect(server).await?;
            let is_extra =
                |entry: &&RoutingEntry| entry.route.as_ref().is_some_and(|route| route.route_id == "extra");
            let since = Instant::now();
            while since.elapsed() < MAX_WAIT {
                let request = GetRoutingTableRequest::default();
                let table = nlb.get_routing_table(request).await?.into_inner().entries;
                if table.iter().find(is_extra).is_some_and(&like_this) {
                    return Ok(table);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            bail!("no such entry in the routing table")
        })
    }
}

#[test]
fn routes_added_through_the_front_carry_traffic() -> Result<()> {
    let fleet = Fleet::start(Lab::one_arm(1, 2)?, Mode::Nat, &[100, 100], &["--heartbeat", "1"])?;
    let client = &fleet.lab.clients[0];
    let route = Route {
        route_id: "extra".into(),
        protocol: Protocol::Tcp.into(),
        destination_pattern: VIP4.to_string(),
        destination_port: 8090,
        metadata: [("listen_port".to_owned(), ECHO_PORT.to_string())].into(),
        ..Route::default()
    };
    let update =
        UpdateRoutesRequest { instance_id: "m0".into(), routes: vec![route.clone()], replace_all: false };
    let answer =
        fleet.front(|mut front| async move { Ok(front.update_routes(update).await?.into_inner()) })?;
    ensure!(answer.success && !answer.message.contains("not reached"), "{}", answer.message);
    let extra = (VIP4, 8090).into();
    ensure!(flows(client, L4::Tcp, extra, 20_000, 20)?.keys().eq(["m0"]));

    let table = fleet.table_when(|extra| extra.last_used.is_some())?;
    for entry in &table {
        let is_extra = entry.route.as_ref().is_some_and(|route| route.route_id == "extra");
        ensure!(entry.last_used.is_some() == is_extra, "only the new route was used: {entry:?}");
    }
    let request = CanHandleRequest { route: Some(route), ..Default::default() };
    let able = fleet.front(|mut front| async move { Ok(front.can_handle(request).await?.into_inner()) })?;
    ensure!(able.can_handle && able.reason.starts_with("m0: "), "{able:?}");
    ensure!(able.metadata["m1"].starts_with("cannot"), "{able:?}");

    let delete = DeleteRouteRequest { instance_id: "m0".into(), route_id: "extra".into() };
    let answer =
        fleet.front(|mut front| async move { Ok(front.delete_route(delete).await?.into_inner()) })?;
    ensure!(answer.success, "{}", answer.message);
    on(client, || async {
        ensure!(Connection::open(extra).await.is_err(), "a deleted route still carries traffic");
        Ok(())
    })?;
    let request = GetRoutesRequest { instance_id: "m0".into(), ..Default::default() };
    let routes = fleet.front(|mut front| async move { Ok(front.get_routes(request).await?.into_inner()) })?;
    ensure!(!routes.routes.iter().any(|route| route.route_id == "extra"));
    Ok(())
}

#[test]
fn module_reports_status_reloads_and_shuts_down() -> Result<()> {
    let mut fleet = Fleet::start(Lab::one_arm(1, 2)?, Mode::Nat, &[100, 100], &["--heartbeat", "1"])?;
    let (first, second) = (20_000, 30_000);
    flows(&fleet.lab.clients[0], L4::Tcp, (VIP4, 80).into(), first, 100)?;
    let status = GetStatusRequest { instance_id: "m0".into() };
    let status = fleet.front(|mut front| async move { Ok(front.get_status(status).await?.into_inner()) })?;
    ensure!(status.status() == HealthStatus::Healthy && status.details["module"] == "HEALTHY", "{status:?}");
    let stats = GetStatsRequest { instance_id: "m0".into(), reset_counters: true };
    let stats = fleet.front(|mut front| async move { Ok(front.get_stats(stats).await?.into_inner()) })?;
    let stats = stats.stats.unwrap_or_default();
    ensure!(stats.total_connections > 0 && stats.custom_stats["source"] == "module", "{stats:?}");
    let reload = ReloadRequest::default();
    let answer = fleet.front(|mut front| async move { Ok(front.reload(reload).await?.into_inner()) })?;
    ensure!(answer.success && answer.message == "2 instances reloaded", "{answer:?}");

    let shutdown = ShutdownRequest { instance_id: "m0".into(), graceful: true, timeout_seconds: 60 };
    let answer = fleet.front(|mut front| async move { Ok(front.shutdown(shutdown).await?.into_inner()) })?;
    ensure!(answer.success, "{}", answer.message);
    let ended = fleet.modules.remove(0).wait(MAX_WAIT)?;
    ensure!(ended.success(), "{ended}");
    fleet.wait_for(1)?;
    ensure!(flows(&fleet.lab.clients[0], L4::Tcp, (VIP4, 80).into(), second, 50)?.keys().eq(["m1"]));
    Ok(())
}
