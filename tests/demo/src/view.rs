//! The state of the modules, which the demo requests from the NLB over gRPC once a second.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{
    CheckHealthRequest, CheckHealthResponse, GetModuleInfoRequest, HealthStatus, ListModulesRequest,
    ModuleInstance,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};

/// The number of seconds that shares and rates cover.
const WINDOW: usize = 5;
const TIMEOUT: Duration = Duration::from_millis(800);
/// The kernel verifies the programs for some seconds, and for much longer on a busy machine.
const START: Duration = Duration::from_secs(120);

pub struct View {
    client: NlbServiceClient<Channel>,
    modules: BTreeMap<String, Module>,
    /// The error of the last update, if it failed.
    pub error: Option<String>,
}

#[derive(Default)]
struct Module {
    instance: ModuleInstance,
    registered: bool,
    active_flows: u64,
    counts: VecDeque<Counts>,
}

#[derive(Clone, Copy)]
struct Counts {
    at: Instant,
    new_flows: u64,
    packets: u64,
}

/// A line of the table.
pub struct Row {
    pub name: String,
    pub version: String,
    pub weight: i32,
    pub health: String,
    /// The share of all new flows, in percent.
    pub share: f64,
    pub active_flows: u64,
    pub packets_per_second: f64,
}

impl View {
    pub fn of(address: SocketAddr) -> Result<View> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.timeout(TIMEOUT);
        let client = NlbServiceClient::new(endpoint.connect_lazy());
        Ok(View { client, modules: BTreeMap::new(), error: None })
    }

    /// Waits until `count` modules are healthy and the data path holds the desired state.
    pub async fn wait_for_modules(&mut self, count: usize) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let health = self.health().await;
            if let Ok(health) = &health {
                let checks = &health.checks;
                let healthy = |status: &&i32| **status == i32::from(HealthStatus::Healthy);
                let ready = health.module_health.values().filter(healthy).count();
                if ready == count && checks.get("applied_revision") == checks.get("desired_revision") {
                    return Ok(());
                }
            }
            if Instant::now() > deadline {
                bail!("{count} modules did not start within {START:?}; the NLB's last answer: {health:?}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The data path's drop reasons that are not 0, with their counts.
    pub async fn drops(&mut self) -> Result<Vec<String>> {
        let checks = self.health().await?.checks;
        let drops = checks.iter().filter_map(|(name, count)| {
            let reason = name.strip_prefix("packets.drop.")?;
            (count != "0").then(|| format!("{reason} {count}"))
        });
        Ok(drops.collect())
    }

    async fn health(&mut self) -> Result<CheckHealthResponse> {
        let request = CheckHealthRequest { deep_check: true, check_modules: true };
        Ok(self.client.check_health(request).await?.into_inner())
    }

    /// Updates the view. After a failure the former state stays.
    pub async fn refresh(&mut self) {
        let updated = timeout(TIMEOUT, self.update()).await.context("the NLB does not answer");
        self.error = updated.flatten().err().map(|error| format!("{error:#}"));
    }

    async fn update(&mut self) -> Result<()> {
        let listed = self.client.list_modules(ListModulesRequest::default()).await?.into_inner().modules;
        for module in self.modules.values_mut() {
            module.registered = false;
        }
        for instance in listed {
            let request = GetModuleInfoRequest { instance_id: instance.instance_id.clone() };
            let details = self.client.get_module_info(request).await?.into_inner().details;
            let number = |name: &str| -> Result<u64> {
                let text =
                    details.get(name).with_context(|| format!("GetModuleInfo has no detail `{name}`"))?;
                text.parse().with_context(|| format!("detail `{name}`"))
            };
            let counts = Counts {
                at: Instant::now(),
                new_flows: number("new_flows")?,
                packets: number("packets")? + number("reply_packets")?,
            };
            let module = self.modules.entry(instance.instance_id.clone()).or_default();
            module.active_flows = number("active_flows")?;
            module.instance = instance;
            module.registered = true;
            module.counts.push_back(counts);
            if module.counts.len() > WINDOW + 1 {
                module.counts.pop_front();
            }
        }
        Ok(())
    }

    pub fn rows(&self) -> Vec<Row> {
        let all: u64 = self.modules.values().map(Module::recent_flows).sum();
        let rows = self.modules.values().map(|module| Row {
            name: module.instance.instance_id.clone(),
            version: module.instance.version.clone(),
            weight: module.instance.traffic_weight,
            health: module.health(),
            share: 100.0 * module.recent_flows() as f64 / all.max(1) as f64,
            active_flows: if module.registered { module.active_flows } else { 0 },
            packets_per_second: module.packets_per_second(),
        });
        rows.collect()
    }
}

impl Module {
    fn health(&self) -> String {
        if !self.registered {
            return "unregistered".to_owned();
        }
        let name = self.instance.health_status().as_str_name();
        name.trim_start_matches("HEALTH_STATUS_").to_lowercase()
    }

    fn recent_flows(&self) -> u64 {
        self.span().map_or(0, |(first, last)| last.new_flows.saturating_sub(first.new_flows))
    }

    fn packets_per_second(&self) -> f64 {
        self.span().map_or(0.0, |(first, last)| {
            let seconds = (last.at - first.at).as_secs_f64();
            if seconds > 0.0 { last.packets.saturating_sub(first.packets) as f64 / seconds } else { 0.0 }
        })
    }

    fn span(&self) -> Option<(Counts, Counts)> {
        self.registered.then_some((*self.counts.front()?, *self.counts.back()?))
    }
}
