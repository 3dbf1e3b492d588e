//! Idle flows are told as such, with idle times that a test can wait for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{GetModuleInfoRequest, GetNlbStatusRequest, GetRoutingTableRequest};
use nlb_testkit::lab::Lab;
use nlb_testkit::programs::grpc;
use tokio::net::UdpSocket;

use crate::clients::{Connection, ask_udp, on};
use crate::fleet::{Fleet, Mode, vips};

const PATIENCE: Duration = Duration::from_secs(20);

/// Flows of each kind in each family.
const EACH: usize = 10;

/// What the NLB says of its one module's flows, if it says the same in all places. Questions asked one after
/// the other may see a change in between.
async fn told(fleet: &Fleet) -> Result<Option<usize>> {
    let server = format!("http://{}", grpc(&fleet.lab));
    let ask = || async {
        let mut nlb = NlbServiceClient::connect(server).await?;
        let request = GetModuleInfoRequest { instance_id: "m0".to_owned() };
        let info = nlb.get_module_info(request).await?.into_inner();
        let status = nlb.get_nlb_status(GetNlbStatusRequest::default()).await?.into_inner();
        let routes = nlb.get_routing_table(GetRoutingTableRequest::default()).await?.into_inner();
        let by_instance = info.instance.context("it is registered")?.current_connections;
        let by_route: i32 = routes.entries.iter().map(|entry| entry.current_connections).sum();
        Ok((by_instance, by_route, status.active_connections))
    };
    let (by_instance, by_route, of_all) = on(&fleet.lab.nlb, ask)?;
    let agreed = by_instance == by_route && i64::from(by_route) == of_all;
    Ok(if agreed { usize::try_from(by_instance).ok() } else { None })
}

async fn wait_for(fleet: &Fleet, flows: usize, what: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = told(fleet).await?;
        if found == Some(flows) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{what}: {found:?} flows are told, not {flows}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn idle_flows_are_not_told_as_connections() -> Result<()> {
    for mode in [Mode::Nat, Mode::DsrIpip] {
        let idle = ["--idle-udp", "3s", "--idle-established", "6s", "--idle-closing", "2s"];
        let fleet = Fleet::start_with(Lab::one_arm(1, 1)?, mode, &[100], &[], &idle)?;
        on(&fleet.lab.clients[0], || async {
            let (mut datagrams, mut connections) = (Vec::new(), Vec::new());
            for vip in vips() {
                for _ in 0..EACH {
                    let local = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let socket = UdpSocket::bind(local).await?;
                    socket.connect(vip).await?;
                    ask_udp(&socket).await?;
                    datagrams.push(socket);
                    let mut connection = Connection::open(vip).await?;
                    connection.ask().await?;
                    connections.push(connection);
                }
            }
            wait_for(&fleet, 4 * EACH, "all have begun").await?;
            // Longer than a datagram's idle time.
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(400)).await;
                for socket in &datagrams {
                    ask_udp(socket).await?;
                }
                for connection in &mut connections {
                    connection.ask().await?;
                }
                ensure!(told(&fleet).await? == Some(4 * EACH), "a flow that is in use was forgotten");
            }
            for _ in 0..6 {
                tokio::time::sleep(Duration::from_millis(500)).await;
                for connection in &mut connections {
                    connection.ask().await?;
                }
            }
            wait_for(&fleet, 2 * EACH, "the datagrams have ceased").await?;
            connections.truncate(EACH);
            for connection in &mut connections {
                connection.ask().await?;
            }
            wait_for(&fleet, EACH, "half of the connections are closed").await?;
            wait_for(&fleet, 0, "the others are idle").await?;
            for connection in &mut connections {
                connection.ask().await?;
            }
            wait_for(&fleet, EACH, "they go on").await
        })?;
    }
    Ok(())
}
