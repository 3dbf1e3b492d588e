//! `nlb modules`: the registered modules.

use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{Filter, ListModulesRequest, ModuleInstance, Named as _, Pagination, Query};
use serde::Serialize;
use tonic::transport::Channel;

use super::connection::rpc_error;
use super::output::Output;
use super::table::{self, Row};

#[derive(clap::Args)]
pub(super) struct Filters {
    /// Only this type: ALB, DBLB, AILB, RTMP or NLB
    #[arg(long = "type", value_name = "TYPE")]
    module_type: Option<String>,
    /// Only this health: HEALTHY, DEGRADED, UNHEALTHY, STARTING or STOPPING
    #[arg(long, value_name = "HEALTH")]
    health: Option<String>,
    /// Only this version
    #[arg(long = "module-version", value_name = "VERSION")]
    version: Option<String>,
}

#[derive(Serialize)]
pub(super) struct ModuleRow {
    instance_id: String,
    module_type: &'static str,
    deployment: String,
    version: String,
    health: &'static str,
    weight: i32,
    active_flows: i32,
    /// 0 means unlimited.
    max_connections: i32,
    address: String,
}

pub(super) async fn list(channel: Channel, filters: Filters, output: Output) -> anyhow::Result<String> {
    let filters = [
        ("module_type", filters.module_type),
        ("health_status", filters.health),
        ("version", filters.version),
    ];
    let filters = filters.into_iter().filter_map(|(field, value)| Some(equals(field, value?)));
    let mut query = Query { filters: filters.collect(), ..Default::default() };
    let mut client = NlbServiceClient::new(channel);
    let mut rows = Vec::new();
    for page in 1.. {
        query.pagination = Some(Pagination { page, page_size: 1000, ..Default::default() });
        let request = ListModulesRequest { query: Some(query.clone()), ..Default::default() };
        let response = client.list_modules(request).await.map_err(rpc_error)?.into_inner();
        rows.extend(response.modules.into_iter().map(ModuleRow::from));
        if page >= response.pagination.unwrap_or_default().total_pages {
            break;
        }
    }
    // Mostly the type says it.
    if rows.iter().all(|row| row.deployment == row.module_type) {
        return table::print(&rows, output);
    }
    table::print(&rows.into_iter().map(Deployed).collect::<Vec<_>>(), output)
}

pub(super) fn equals(field: &str, value: String) -> Filter {
    Filter { field: field.to_owned(), operator: "eq".to_owned(), value }
}

impl From<ModuleInstance> for ModuleRow {
    fn from(instance: ModuleInstance) -> Self {
        let named = instance.metadata.get("deployment").filter(|name| !name.is_empty());
        let deployment = named.map_or(instance.module_type().short_name(), String::as_str).to_owned();
        ModuleRow {
            deployment,
            module_type: instance.module_type().short_name(),
            health: instance.health_status().short_name(),
            weight: instance.traffic_weight,
            active_flows: instance.current_connections,
            max_connections: instance.max_connections,
            instance_id: instance.instance_id,
            version: instance.version,
            address: instance.address,
        }
    }
}

impl Row for ModuleRow {
    const HEADINGS: &[&str] = &["INSTANCE", "TYPE", "VERSION", "HEALTH", "WEIGHT", "FLOWS", "ADDRESS"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.instance_id.clone(),
            self.module_type.to_owned(),
            self.version.clone(),
            self.health.to_owned(),
            self.weight.to_string(),
            match self.max_connections {
                0 => self.active_flows.to_string(),
                max => format!("{} of {max}", self.active_flows),
            },
            self.address.clone(),
        ]
    }
}

/// The row with its deployment, where not all have that of their type.
#[derive(Serialize)]
struct Deployed(ModuleRow);

impl Row for Deployed {
    const HEADINGS: &[&str] =
        &["INSTANCE", "TYPE", "DEPLOYMENT", "VERSION", "HEALTH", "WEIGHT", "FLOWS", "ADDRESS"];

    fn cells(&self) -> Vec<String> {
        let mut cells = self.0.cells();
        cells.insert(2, self.0.deployment.clone());
        cells
    }
}
