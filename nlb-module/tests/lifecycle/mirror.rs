//! A module that sends back what it receives, run as its author would run it.

use std::net::SocketAddr;
use std::time::Duration;

use nlb_module::proto::module_service_client::ModuleServiceClient;
use nlb_module::proto::*;
use nlb_module::{Connection, Error, Instance, Serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::Request;
use tonic::transport::Channel;

use super::fake_nlb::{FakeNlb, own_host};

pub const SOON: Duration = Duration::from_secs(10);

/// Sends back what it receives.
struct Mirror;

impl Serve for Mirror {
    async fn connection(&self, mut connection: Connection) -> std::io::Result<()> {
        let mut buffer = [0; 64];
        loop {
            let length = connection.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            connection.write_all(&buffer[..length]).await?;
        }
    }

    async fn datagram(&self, payload: &[u8], _: SocketAddr) -> std::io::Result<Option<Vec<u8>>> {
        Ok(Some(payload.to_vec()))
    }
}

/// A running instance: its data address, and a way to stop it.
pub struct Running {
    pub address: SocketAddr,
    pub stop: oneshot::Sender<()>,
    pub ended: JoinHandle<Result<(), Error>>,
}

pub fn run(nlb: &str, describe: impl FnOnce(Instance) -> Instance) -> Running {
    let address = SocketAddr::from((own_host(), 8080));
    let instance = Instance::new("mirror-1", ModuleType::Alb)
        .nlb(nlb)
        .version("v1")
        .route(route("web", 80))
        .listen_tcp(address)
        .listen_udp(address)
        .heartbeat_interval(Duration::from_millis(50));
    let (stop, stopped) = oneshot::channel();
    let ended = tokio::spawn(describe(instance).run_until(Mirror, async {
        stopped.await.expect("the test asks to stop");
    }));
    Running { address, stop, ended }
}

impl Running {
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("the module listens")
    }
}

pub fn route(id: &str, port: i32) -> Route {
    Route {
        route_id: id.into(),
        protocol: Protocol::Tcp.into(),
        destination_pattern: "192.0.2.1".into(),
        destination_port: port,
        ..Route::default()
    }
}

pub async fn exchange(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).await.expect("the connection is open");
    let mut answer = vec![0; text.len()];
    timeout(SOON, stream.read_exact(&mut answer)).await.expect("an answer in time").expect("an answer");
    assert_eq!(answer, text);
}

pub async fn control(nlb: &FakeNlb) -> ModuleServiceClient<Channel> {
    nlb.until("a heartbeat", |seen| !seen.heartbeats.is_empty()).await;
    let address =
        nlb.see(|seen| seen.registrations[0].instance.as_ref().expect("an instance").address.clone());
    ModuleServiceClient::connect(format!("http://{address}")).await.expect("ModuleService listens")
}

/// A call as the NLB passes it on.
pub fn passed_on<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("nlb-passed-on", "1".parse().expect("ASCII"));
    request
}

/// The weight of version v1 by the module's answer.
pub async fn active_weight(module: &mut ModuleServiceClient<Channel>) -> i32 {
    let version = module.get_active_version(GetActiveVersionRequest::default()).await.expect("an answer");
    version.into_inner().version_weights["v1"]
}
