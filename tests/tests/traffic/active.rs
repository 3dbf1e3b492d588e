//! Idle flows are not reported as active, with idle times that a test can wait for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{GetModuleInfoRequest, GetNlbStatusRequest, GetRoutingTableRequest};
use nlb_testkit::lab::Lab;
use nlb_testkit::process::MAX_WAIT;
use nlb_testkit::programs::grpc;
use tokio::net::UdpSocket;

use crate::clients::{Connection, on, request_udp};
use crate::fleet::{Fleet, Mode, vips};

/// The number of flows of each kind in each family.
const EACH: usize = 10;

/// The active flows of the NLB's one module, if all reports agree. They may change between two requests.
async fn reported(fleet: &Fleet) -> Result<Option<usize>> {
    let server = format!("http://{}", grpc(&fleet.lab));
    let request_reports = || async {
        let mut nlb = NlbServiceClient::connect(server).await?;
        let request = GetModuleInfoRequest { instance_id: "m0".to_owned() };
        let info = nlb.get_module_info(request).await?.into_inner();
        let status = nlb.get_nlb_status(GetNlbStatusRequest::default()).await?.into_inner();
        let routes = nlb.get_routing_table(GetRoutingTableRequest::default()).await?.into_inner();
        let by_instance = info.instance.context("it is registered")?.current_connections;
        let by_route: i32 = routes.entries.iter().map(|entry| entry.current_connections).sum();
        Ok((by_instance, by_route, status.active_connections))
    };
    let (by_instance, by_route, of_all) = on(&fleet.lab.nlb, request_reports)?;
    let agreed = by_instance == by_route && i64::from(by_route) == of_all;
    Ok(if agreed { usize::try_from(by_instance).ok() } else { None })
}

/// Flows that the test uses, so that they are not idle.
#[derive(Default)]
struct InUse {
    datagrams: Vec<UdpSocket>,
    connections: Vec<Connection>,
}

impl InUse {
    async fn request(&mut self) -> Result<()> {
        for socket in &self.datagrams {
            request_udp(socket).await?;
        }
        for connection in &mut self.connections {
            connection.request().await?;
        }
        Ok(())
    }

    /// Uses the flows until this many are reported.
    async fn wait_for(&mut self, fleet: &Fleet, flows: usize, what: &str) -> Result<()> {
        let deadline = Instant::now() + MAX_WAIT;
        loop {
            self.request().await?;
            let found = reported(fleet).await?;
            if found == Some(flows) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{what}: {found:?} flows are reported, not {flows}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

const IDLE_UDP: Duration = Duration::from_secs(3);
const IDLE_ESTABLISHED: Duration = Duration::from_secs(6);

#[test]
fn idle_flows_are_not_reported_as_connections() -> Result<()> {
    for mode in [Mode::Nat, Mode::DsrIpip] {
        let [udp, established] = [IDLE_UDP, IDLE_ESTABLISHED].map(|idle| format!("{}s", idle.as_secs()));
        let idle = ["--idle-udp", &udp, "--idle-established", &established, "--idle-closing", "2s"];
        let fleet = Fleet::start_with(Lab::one_arm(1, 1)?, mode, &[100], &[], &idle)?;
        on(&fleet.lab.clients[0], || async {
            let mut flows = InUse::default();
            for vip in vips() {
                for _ in 0..EACH {
                    let local = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let socket = UdpSocket::bind(local).await?;
                    socket.connect(vip).await?;
                    flows.datagrams.push(socket);
                    flows.connections.push(Connection::open(vip).await?);
                }
            }
            flows.wait_for(&fleet, 4 * EACH, "all have begun").await?;
            // The rounds take longer than a datagram's idle time.
            let begun = Instant::now();
            let mut was_in_use = true;
            while begun.elapsed() < IDLE_UDP + Duration::from_secs(1) {
                let round = Instant::now();
                tokio::time::sleep(Duration::from_millis(400)).await;
                flows.request().await?;
                let found = reported(&fleet).await?;
                // A report may be a second old. It is not checked if the flows were idle since the last
                // round.
                let in_use = round.elapsed() < IDLE_UDP / 2;
                ensure!(
                    found.is_none_or(|found| found == 4 * EACH) || !(in_use && was_in_use),
                    "{found:?} of the flows in use are reported"
                );
                was_in_use = in_use;
            }
            flows.datagrams.clear();
            flows.wait_for(&fleet, 2 * EACH, "the datagrams have ceased").await?;
            flows.connections.truncate(EACH);
            flows.wait_for(&fleet, EACH, "half of the connections are closed").await?;
            let mut idle = std::mem::take(&mut flows.connections);
            flows.wait_for(&fleet, 0, "the others are idle").await?;
            flows.connections.append(&mut idle);
            flows.wait_for(&fleet, EACH, "they go on").await
        })?;
    }
    Ok(())
}
