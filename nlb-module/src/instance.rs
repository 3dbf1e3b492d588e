//! Describes an instance, and runs it from its registration to its last connection.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nlb_proto::module_service_server::ModuleServiceServer;
use nlb_proto::{HealthCheckConfig, ModuleInstance, ModuleType, Route};
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tracing::{info, warn};

use crate::control::{Control, Defaults};
use crate::nlb::Nlb;
use crate::registration::Registration;
use crate::rpc::Rpc;
use crate::serve::Serve;
use crate::state::{Phase, State, Stop};
use crate::{tcp, udp};

/// How long open connections may take to finish when the instance stops.
const DRAIN: Duration = Duration::from_secs(30);

/// Why an instance cannot run on this host. A refusal by the NLB is no such error: the module logs the
/// reason, and registers again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("`{address}` is not the address of an NLB; write it like http://10.0.0.1:50051")]
    Address { address: String, source: tonic::transport::Error },
    #[error("cannot find the address by which the NLB reaches this module; set it with `address`")]
    OwnAddress(#[source] io::Error),
    #[error("cannot watch for SIGTERM")]
    Signals(#[source] io::Error),
}

/// An instance: described by its methods, and run by [`Instance::run`].
pub struct Instance {
    identity: ModuleInstance,
    weight: u32,
    routes: Vec<Route>,
    health_check: Option<HealthCheckConfig>,
    nlb: String,
    tcp: Vec<SocketAddr>,
    udp: Vec<SocketAddr>,
    control_listen: SocketAddr,
    control: Arc<dyn Control>,
    heartbeat: Option<Duration>,
    drain: Duration,
    ends_with_stdin: bool,
}

impl Instance {
    /// The id has to be unique in the fleet.
    pub fn new(instance_id: impl Into<String>, module_type: ModuleType) -> Instance {
        let identity = ModuleInstance {
            instance_id: instance_id.into(),
            module_type: module_type.into(),
            ..ModuleInstance::default()
        };
        Instance {
            identity,
            weight: 100,
            routes: Vec::new(),
            health_check: None,
            nlb: "http://127.0.0.1:50051".to_owned(),
            tcp: Vec::new(),
            udp: Vec::new(),
            control_listen: SocketAddr::from(([0, 0, 0, 0], 0)),
            control: Arc::new(Defaults),
            heartbeat: None,
            drain: DRAIN,
            ends_with_stdin: false,
        }
    }

    /// The URL of the NLB's gRPC server. Unless set: <http://127.0.0.1:50051>.
    pub fn nlb(mut self, url: impl Into<String>) -> Instance {
        self.nlb = url.into();
        self
    }

    /// Instances of one version form one side of a blue/green split.
    pub fn version(mut self, version: impl Into<String>) -> Instance {
        self.identity.version = version.into();
        self
    }

    /// The share of new flows among instances of the same version; 100 unless set, 0 takes none.
    pub fn weight(mut self, weight: u32) -> Instance {
        self.weight = weight;
        self
    }

    /// The most flows that the NLB gives this instance at a time: connections, and UDP conversations until
    /// they are idle. 0, the default, is unlimited. An instance that is full is not sick: its new flows go to
    /// others.
    pub fn max_connections(mut self, flows: u32) -> Instance {
        self.identity.max_connections = i32::try_from(flows).unwrap_or(i32::MAX);
        self
    }

    /// Adds traffic that this instance serves.
    pub fn route(mut self, route: Route) -> Instance {
        self.routes.push(route);
        self
    }

    /// Has the NLB check the health of this instance: it gets no new flows before the first check has
    /// succeeded, nor while checks fail. Fields that are 0 or empty take the NLB's defaults. With metadata
    /// `check=module` the NLB calls [`Control::health_check`].
    pub fn health_check(mut self, check: HealthCheckConfig) -> Instance {
        self.health_check = Some(check);
        self
    }

    /// Adds metadata: `data_address`, `listen_port`, `forward_mode` and other keys of the contract.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Instance {
        self.identity.metadata.insert(key.into(), value.into());
        self
    }

    /// Keeps QUIC connections at this instance when their clients' addresses change: the connection ids that
    /// this instance chooses have this configuration (0 to 6) in the three high bits of their first octet,
    /// followed by this server id of 1 to 8 octets and four or more octets of its choice. Instances with the
    /// same configuration have different server ids of the same length.
    pub fn quic_server(self, config: u8, id: &[u8]) -> Instance {
        let hexadecimal: String = id.iter().map(|octet| format!("{octet:02x}")).collect();
        self.metadata("quic_server_id", hexadecimal).metadata("quic_config_id", config.to_string())
    }

    /// Serves TCP at this address. `[::]` includes IPv4.
    pub fn listen_tcp(mut self, address: SocketAddr) -> Instance {
        self.tcp.push(address);
        self
    }

    /// Serves UDP at this address. `[::]` includes IPv4.
    pub fn listen_udp(mut self, address: SocketAddr) -> Instance {
        self.udp.push(address);
        self
    }

    /// The address that `ModuleService` listens on; unless set, a free port of every IPv4 address.
    pub fn control_listen(mut self, address: SocketAddr) -> Instance {
        self.control_listen = address;
        self
    }

    /// The `host:port` by which the NLB reaches `ModuleService`; unless set, the address from which this host
    /// reaches the NLB.
    pub fn address(mut self, host_and_port: impl Into<String>) -> Instance {
        self.identity.address = host_and_port.into();
        self
    }

    /// Replaces default answers to the NLB's calls.
    pub fn control(mut self, control: impl Control) -> Instance {
        self.control = Arc::new(control);
        self
    }

    /// The heartbeat interval; unless set, the one that the NLB asks for, and 10 seconds at first.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Instance {
        self.heartbeat = Some(interval);
        self
    }

    /// How long open connections may take to finish when the instance stops; 30 seconds unless set.
    pub fn drain_timeout(mut self, timeout: Duration) -> Instance {
        self.drain = timeout;
        self
    }

    /// Makes [`Instance::run`] treat the end of standard input like SIGTERM: the process at the other end has
    /// ended.
    pub fn ends_with_stdin(mut self) -> Instance {
        self.ends_with_stdin = true;
        self
    }

    /// Runs until SIGTERM or SIGINT (or the `Shutdown` call) and drains; a second signal ends it at once.
    ///
    /// No answer of the NLB ends it. While the NLB refuses the registration, as for an unknown VIP or an id
    /// that is taken, the instance gets no traffic, and registers again for as long as it runs. The reason is
    /// logged by [`tracing`]: it is visible only in a program with a subscriber, such as the one of
    /// `tracing_subscriber::fmt().init()`.
    pub async fn run(self, serve: impl Serve) -> Result<(), Error> {
        let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
        let mut signalled = async move || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let ends_with_stdin = self.ends_with_stdin;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let ran = self.run_until(serve, async {
            // A dropped sender is a stop as well.
            let _ = stopped.await;
        });
        let signals = async {
            tokio::select! {
                () = signalled() => {}
                () = stdin_ended(), if ends_with_stdin => {}
            }
            let _ = stop.send(());
            signalled().await;
            warn!("stopped by a second signal; open connections are closed");
        };
        tokio::select! {
            result = ran => result,
            () = signals => Ok(()),
        }
    }

    /// Runs until the future completes (or the `Shutdown` call), and drains.
    pub async fn run_until(mut self, serve: impl Serve, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let endpoint = Endpoint::from_shared(self.nlb.clone())
            .map_err(|source| Error::Address { address: self.nlb.clone(), source })?;
        let control_socket = bind_tcp(self.control_listen).await?;
        if self.identity.address.is_empty() {
            self.identity.address =
                advertised(&endpoint, &control_socket).await.map_err(Error::OwnAddress)?.to_string();
        }
        self.identity.started_at = Some(SystemTime::now().into());
        let state = Arc::new(State::new(
            self.identity,
            self.weight,
            self.routes,
            self.health_check,
            Nlb::at(endpoint),
        ));

        let serve = Arc::new(serve);
        let mut listeners = JoinSet::new();
        for address in self.tcp {
            listeners.spawn(tcp::listen(bind_tcp(address).await?, Arc::clone(&serve), Arc::clone(&state)));
        }
        for address in self.udp {
            let socket = udp::bind(address).await.map_err(|source| Error::Listen { address, source })?;
            listeners.spawn(udp::listen(socket, Arc::clone(&serve), Arc::clone(&state)));
        }
        let rpc = Rpc { control: Arc::clone(&self.control), state: Arc::clone(&state) };
        let control = tokio::spawn(serve_control(control_socket, rpc));

        let registration = Registration { state: &state, control: &*self.control, interval: self.heartbeat };
        let stopped = async {
            tokio::select! {
                () = stop => state.stop(Stop::Drain(self.drain)),
                () = state.draining() => {}
            }
        };
        tokio::join!(registration.keep(), stopped);
        match state.stop_asked() {
            Some(Stop::Drain(within)) => drain(&registration, &mut listeners, within).await,
            Some(Stop::AtOnce) | None => registration.leave(None).await,
        }
        state.enter(Phase::Closed);
        listeners.shutdown().await;
        control.abort();
        Ok(())
    }
}

/// Unregisters with a drain: the NLB sends no new flows, and answers when the flows that it has recorded have
/// ended. The listeners close only then, so that packets in flight still reach them.
async fn drain(registration: &Registration<'_>, listeners: &mut JoinSet<()>, within: Duration) {
    let state = registration.state;
    info!(open = state.open_connections(), ?within, "draining");
    let finished = timeout(within, async {
        registration.leave(Some(within)).await;
        state.enter(Phase::Closed);
        while listeners.join_next().await.is_some() {}
    });
    if finished.await.is_err() {
        warn!(open = state.open_connections(), "not drained in time; open connections are closed");
    }
}

/// Completes at the end of standard input. A separate thread reads: a thread of the runtime that is blocked
/// in `read` would delay the end of the process.
async fn stdin_ended() {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // An input that cannot be read has ended, too.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        let _ = ended.send(());
    });
    let _ = end.await;
}

async fn serve_control(listener: TcpListener, rpc: Rpc) {
    let service = ModuleServiceServer::new(rpc);
    // An answer must not wait for the acknowledgement of the one before.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = Server::builder().add_service(service).serve_with_incoming(incoming);
    if let Err(error) = served.await {
        warn!(%error, "ModuleService ended");
    }
}

async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

/// The socket's own address or, if it listens on all addresses, the source address of packets to the NLB.
async fn advertised(nlb: &Endpoint, control: &TcpListener) -> io::Result<SocketAddr> {
    let mut address = control.local_addr()?;
    if address.ip().is_unspecified() {
        let uri = nlb.uri();
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let target = tokio::net::lookup_host((host, uri.port_u16().unwrap_or(80)))
            .await?
            .find(|target| target.is_ipv4() || address.is_ipv6())
            .ok_or(io::ErrorKind::AddrNotAvailable)?;
        // Connecting a UDP socket sends nothing; it only selects the route.
        let probe = UdpSocket::bind(if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).await?;
        probe.connect(target).await?;
        address.set_ip(probe.local_addr()?.ip());
    }
    Ok(address)
}
