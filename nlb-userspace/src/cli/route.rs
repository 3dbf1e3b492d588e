//! `nlb route`: operators' routes, and the removal of modules' routes.

use clap::Subcommand;
use nlb_proto::module_service_client::ModuleServiceClient;
use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{DeleteRouteRequest, Named as _, Protocol, Route, UpdateRoutingRequest};
use tonic::transport::Channel;

use super::connection::{accepted, rpc_error};
use super::output::Output;
use super::table;

#[derive(Subcommand)]
pub(super) enum Change {
    /// Add an operator's route, or replace the one with that id
    Add(Box<Add>),
    /// Remove an operator's route, or a module's
    Remove {
        /// The route's id
        route_id: String,
        /// The module that has the route, if it is not an operator's
        #[arg(long, value_name = "ID")]
        instance: Option<String>,
    },
}

#[derive(clap::Args)]
pub struct Add {
    /// The route's id
    route_id: String,
    /// TCP, UDP, HTTP, HTTPS ...
    #[arg(long, value_parser = protocol)]
    protocol: Protocol,
    /// A VIP, or a CIDR of VIPs [every VIP]
    #[arg(long, value_name = "ADDRESS|CIDR")]
    destination: Option<String>,
    /// The port that clients connect to [the protocol's; for plain TCP and UDP every port]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only for clients from this address or CIDR [any]
    #[arg(long, value_name = "ADDRESS|CIDR")]
    source: Option<String>,
    /// The priority: among matching routes, the highest is used
    #[arg(long, value_name = "NUMBER", default_value_t, allow_negative_numbers = true)]
    priority: i32,
    /// The modules' port, if it differs
    #[arg(long, value_name = "PORT")]
    listen_port: Option<u16>,
    /// Move UDP flows to another module when new flows of their hash go there
    #[arg(long)]
    udp_rebalance: bool,
    /// Serve with these modules [those of the type that the protocol implies; repeat, or separate by commas]
    #[arg(long = "for", value_name = "ID", value_delimiter = ',', conflicts_with = "for_type")]
    for_instances: Vec<String>,
    /// Serve with all modules of this type: ALB, DBLB, AILB, RTMP or NLB
    #[arg(long, value_name = "TYPE")]
    for_type: Option<String>,
}

pub(super) async fn change(channel: Channel, change: Change, output: Output) -> anyhow::Result<String> {
    let message = match change {
        Change::Add(route) => {
            let request = UpdateRoutingRequest { routes: vec![(*route).into()], ..Default::default() };
            let mut client = NlbServiceClient::new(channel);
            let response = client.update_routing(request).await.map_err(rpc_error)?.into_inner();
            accepted(response.success, response.message, response.error)?
        }
        Change::Remove { route_id, instance } => {
            let request = DeleteRouteRequest { instance_id: instance.unwrap_or_default(), route_id };
            let mut client = ModuleServiceClient::new(channel);
            let response = client.delete_route(request).await.map_err(rpc_error)?.into_inner();
            accepted(response.success, response.message, response.error)?
        }
    };
    table::message(message, output)
}

impl From<Add> for Route {
    fn from(add: Add) -> Self {
        let instances = Some(add.for_instances.join(",")).filter(|instances| !instances.is_empty());
        let entries = [
            ("listen_port", add.listen_port.map(|port| port.to_string())),
            ("udp_rebalance", add.udp_rebalance.then(|| "true".to_owned())),
            ("target_instances", instances),
            ("target_module_type", add.for_type),
        ];
        let entries = entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        Route {
            route_id: add.route_id,
            protocol: add.protocol.into(),
            source_pattern: add.source.unwrap_or_default(),
            destination_pattern: add.destination.unwrap_or_default(),
            destination_port: add.port.unwrap_or_default().into(),
            priority: add.priority,
            metadata: entries.collect(),
            ..Route::default()
        }
    }
}

fn protocol(name: &str) -> Result<Protocol, String> {
    let known = || (1..).map_while(|number| Protocol::try_from(number).ok());
    Protocol::by_name(name).filter(|found| *found != Protocol::Unspecified).ok_or_else(|| {
        let names: Vec<&str> = known().map(Protocol::short_name).collect();
        format!("it is none of {}", names.join(", "))
    })
}
