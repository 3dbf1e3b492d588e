//! Scaling by load, with a module that starts and ends real processes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{GetModuleInfoRequest, TriggerScalingRequest};
use nlb_testkit::lab::Lab;
use nlb_testkit::netns::output;
use nlb_testkit::process::MAX_WAIT;
use nlb_testkit::programs::grpc;

use crate::clients::{Connection, on};
use crate::fleet::{Fleet, Mode, vips};
use crate::life::{assert_answered, hold, spread};

const COOLDOWN: Duration = Duration::from_secs(6);

/// A fleet with m0, which starts m0-1, m0-2 ...: one instance for ten connections, and at most three.
fn scaling_fleet(more: &[&str]) -> Result<Fleet> {
    let cooldown = format!("scaling.cooldown_seconds={}", COOLDOWN.as_secs());
    let policy = ["scaling.target_connections=10", "scaling.max_instances=3", &cooldown];
    let policy = policy.iter().chain(more).flat_map(|entry| ["--metadata", entry]);
    let args: Vec<&str> = ["--scaler", "--heartbeat", "1"].into_iter().chain(policy).collect();
    Fleet::start(Lab::one_arm(1, 1)?, Mode::Nat, &[100], &args)
}

impl Fleet {
    fn scaling(&self) -> Result<HashMap<String, String>> {
        let server = format!("http://{}", grpc(&self.lab));
        let request = GetModuleInfoRequest { instance_id: "m0".to_owned() };
        on(&self.lab.nlb, || async move {
            let mut nlb = NlbServiceClient::connect(server).await?;
            Ok(nlb.get_module_info(request).await?.into_inner().details)
        })
    }

    fn orders(&self) -> Result<u32> {
        Ok(self.scaling()?.get("scaling.orders").context("no scaling")?.parse()?)
    }

    /// The number of scaling calls by the module's log.
    fn calls(&self) -> usize {
        self.modules[0].output().matches("scaled").count()
    }

    fn has_module(&self, name: &str) -> Result<bool> {
        Ok(self.modules()?.contains_key(name))
    }

    /// Processes of the module's program on its host.
    fn processes(&self) -> Result<usize> {
        let listed = output(std::process::Command::new("ip").args([
            "netns",
            "pids",
            self.lab.modules[0].netns.name(),
        ]))?;
        Ok(listed.lines().count())
    }
}

/// Opens connections until this module answers one.
async fn first_answer_of(name: &str, within: Duration) -> Result<Connection> {
    let deadline = Instant::now() + within;
    loop {
        for vip in vips() {
            let mut connection = Connection::open(vip).await?;
            if connection.request().await? == name {
                return Ok(connection);
            }
        }
        ensure!(Instant::now() < deadline, "{name} got no flow within {within:?}");
    }
}

#[test]
fn load_starts_instances_and_less_load_drains_them() -> Result<()> {
    let fleet = scaling_fleet(&[])?;
    on(&fleet.lab.clients[0], || async {
        let before_load = Instant::now();
        let mut held = hold(20).await?;
        fleet.wait_until("m0-1 is registered", |modules| {
            modules.get("m0-1").is_some_and(|module| module["health"] == "HEALTHY")
        })?;
        let new = first_answer_of("m0-1", MAX_WAIT).await?;
        ensure!((fleet.orders()?, fleet.calls()) == (1, 1), "{:?}", fleet.scaling()?);

        // The load needs a third instance, but the cooldown lasts.
        held.extend(hold(20).await?);
        ensure!(spread(&held).len() == 2, "{:?}", spread(&held));
        loop {
            let calls = (fleet.orders()?, fleet.calls());
            // The cooldown began after the load, so it lasts at least until then.
            if before_load.elapsed() > COOLDOWN {
                break;
            }
            ensure!(calls == (1, 1), "a scaling call in the cooldown");
            assert_answered(&mut held).await?;
        }
        fleet.wait_until("m0-2 is registered", |modules| modules.contains_key("m0-2"))?;
        ensure!((fleet.orders()?, fleet.calls()) == (2, 2), "{:?}", fleet.scaling()?);
        assert_answered(&mut held).await?;

        // One connection stays with each of the two.
        let mut last = vec![("m0-1".to_owned(), new)];
        let of_first = held.iter().position(|(name, _)| name == "m0").context("m0 has connections")?;
        last.push(held.swap_remove(of_first));
        drop(held);
        fleet.wait_until("m0-1 drains", |modules| {
            modules.get("m0-1").is_some_and(|module| module["health"] == "STOPPING")
        })?;
        for _ in 0..5 {
            assert_answered(&mut last).await?;
            // A second instance would be started for more.
            let fresh = hold(6).await?;
            ensure!(
                spread(&fresh).keys().eq(["m0"]),
                "a draining module has new flows: {:?}",
                spread(&fresh)
            );
        }
        drop(last);
        fleet.wait_until("only m0 is left", |modules| modules.keys().eq(["m0"]))?;
        ensure!((fleet.orders()?, fleet.calls()) == (3, 3), "{:?}", fleet.scaling()?);
        let deadline = Instant::now() + MAX_WAIT;
        while fleet.processes()? > 1 {
            ensure!(Instant::now() < deadline, "{} processes are left", fleet.processes()?);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(
            fleet.modules[0].output().matches("instance ended").count() == 2,
            "not both instances have ended"
        );
        Ok(())
    })
}

#[test]
fn an_operator_scales_and_the_instances_end_with_their_scaler() -> Result<()> {
    let mut fleet = scaling_fleet(&["scaling.auto_scaling_enabled=false"])?;
    let request = TriggerScalingRequest {
        instance_id: "m0".to_owned(),
        scaling_action: "set".to_owned(),
        target_instances: 3,
        ..TriggerScalingRequest::default()
    };
    let server = format!("http://{}", grpc(&fleet.lab));
    let answer = on(&fleet.lab.nlb, || async move {
        Ok(NlbServiceClient::connect(server).await?.trigger_scaling(request).await?.into_inner())
    })?;
    ensure!(answer.success && answer.current_instances == 1, "{answer:?}");
    fleet.wait_for(3)?;
    ensure!(fleet.has_module("m0-2")?);
    let mut scaler = fleet.modules.remove(0);
    scaler.signal(nix::sys::signal::Signal::SIGTERM)?;
    scaler.wait(MAX_WAIT)?;
    fleet.wait_until("no module is left", |modules| modules.is_empty())?;
    Ok(())
}
