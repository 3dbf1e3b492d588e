//! `nlb routes`: the routes, and the modules that serve them.

use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{GetRoutingTableRequest, Named as _, Pagination, Query, RoutingEntry};
use serde::Serialize;
use tonic::transport::Channel;

use super::connection::rpc_error;
use super::modules::equals;
use super::output::Output;
use super::table::{self, Row};

#[derive(clap::Args)]
pub(super) struct Filters {
    /// Only routes whose destination overlaps this address or CIDR
    #[arg(long, value_name = "ADDRESS|CIDR")]
    destination: Option<String>,
    /// Only this protocol, such as TCP or HTTP
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<String>,
    /// Only routes of this module
    #[arg(long, value_name = "ID")]
    instance: Option<String>,
}

#[derive(Serialize)]
pub(super) struct RouteRow {
    route_id: String,
    protocol: &'static str,
    source: String,
    destination: String,
    /// 0 means every port.
    destination_port: i32,
    priority: i32,
    /// Empty if no module serves the route.
    instance_id: String,
}

pub(super) async fn list(channel: Channel, filters: Filters, output: Output) -> anyhow::Result<String> {
    let conditions = [("protocol", filters.protocol), ("target_instance_id", filters.instance)];
    let conditions = conditions.into_iter().filter_map(|(field, value)| Some(equals(field, value?)));
    let mut query = Query { filters: conditions.collect(), ..Default::default() };
    let mut client = NlbServiceClient::new(channel);
    let mut rows = Vec::new();
    for page in 1.. {
        query.pagination = Some(Pagination { page, page_size: 1000, ..Default::default() });
        let request = GetRoutingTableRequest {
            destination_filter: filters.destination.clone().unwrap_or_default(),
            query: Some(query.clone()),
            ..Default::default()
        };
        let response = client.get_routing_table(request).await.map_err(rpc_error)?.into_inner();
        rows.extend(response.entries.into_iter().map(RouteRow::from));
        if page >= response.pagination.unwrap_or_default().total_pages {
            break;
        }
    }
    table::print(&rows, output)
}

impl From<RoutingEntry> for RouteRow {
    fn from(entry: RoutingEntry) -> Self {
        let route = entry.route.unwrap_or_default();
        RouteRow {
            protocol: route.protocol().short_name(),
            route_id: route.route_id,
            source: route.source_pattern,
            destination: route.destination_pattern,
            destination_port: route.destination_port,
            priority: route.priority,
            instance_id: entry.target_instance_id,
        }
    }
}

impl Row for RouteRow {
    const HEADINGS: &[&str] = &["ROUTE", "PROTOCOL", "SOURCE", "DESTINATION", "PORT", "PRIORITY", "INSTANCE"];

    fn cells(&self) -> Vec<String> {
        let port =
            if self.destination_port == 0 { "*".to_owned() } else { self.destination_port.to_string() };
        let instance = if self.instance_id.is_empty() { "-".to_owned() } else { self.instance_id.clone() };
        vec![
            self.route_id.clone(),
            self.protocol.to_owned(),
            self.source.clone(),
            self.destination.clone(),
            port,
            self.priority.to_string(),
            instance,
        ]
    }
}
