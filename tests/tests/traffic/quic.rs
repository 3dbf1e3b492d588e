//! Real QUIC: clients that change their address during a connection, and servers with QUIC-LB connection ids.
//!
//! Sockets stay in the namespace that they were opened in, so servers and clients run on the test's threads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nlb_testkit::lab::{Host, Lab};
use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, ServerConfig,
    TokioRuntime,
};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::fleet::{Fleet, Mode, vips};

const SERVERS: usize = 3;
const PORT: u16 = 443;
/// The name in the servers' certificate.
const NAME: &str = "quic.test";
/// The number of connections to each VIP.
const CONNECTIONS: u16 = 12;
/// Fixed ports make the result reproducible.
const FIRST_PORT: u16 = 21_000;
/// The addresses that clients move to.
const SECOND: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 77, 0, 88), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x88));
/// How long a client waits for an answer.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Unencrypted connection ids: a first octet of configuration 1, the server id, and a nonce.
struct NamedIds {
    server: [u8; 2],
    nonce: u64,
}

impl ConnectionIdGenerator for NamedIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.nonce = self.nonce.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let [own, nonce @ ..] = self.nonce.to_be_bytes();
        ConnectionId::new(&[&[1 << 5 | own & 0x1f][..], &self.server, &nonce].concat())
    }

    fn cid_len(&self) -> usize {
        10
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The daemon, and QUIC servers that answer with their names.
struct Quic {
    runtime: Runtime,
    trusted: ClientConfig,
    fleet: Fleet,
}

impl Quic {
    /// Starts the daemon and the servers. `registered` sets whether modules register their server ids, which
    /// their connection ids have in any case.
    fn start(lab: Lab, mode: Mode, registered: bool) -> Result<Quic> {
        let identity = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let certificate: CertificateDer = identity.cert.der().clone();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone())?;
        let trusted = ClientConfig::with_root_certificates(Arc::new(roots))?;
        let mut fleet = Fleet::for_foreign_modules(lab)?;
        let runtime = Runtime::new()?;
        for n in 0..SERVERS {
            let key = PrivatePkcs8KeyDer::from(identity.signing_key.serialize_der());
            let config = ServerConfig::with_single_cert(vec![certificate.clone()], key.into())?;
            let id = [0xc0, n as u8];
            let mut endpoint = EndpointConfig::default();
            endpoint.cid_generator(move || Box::new(NamedIds { server: id, nonce: u64::from(id[1]) }));
            let socket = bind(&fleet.lab.modules[n], (Ipv6Addr::UNSPECIFIED, PORT).into())?;
            let _inside = runtime.enter();
            let endpoint = Endpoint::new(endpoint, Some(config), socket, Arc::new(TokioRuntime))?;
            runtime.spawn(serve(endpoint, name(n)));
            let hex = format!("c0{n:02x}");
            let metadata = [("quic_server_id", hex.as_str()), ("quic_config_id", "1")];
            fleet.add_foreign(&name(n), n, mode, (PORT, PORT), if registered { &metadata } else { &[] })?;
        }
        fleet.wait_for(SERVERS)?;
        let client = &fleet.lab.clients[0];
        client.netns.add_address("eth0", SECOND.0.into(), 24)?;
        client.netns.add_address("eth0", SECOND.1.into(), 64)?;
        Ok(Quic { runtime, trusted, fleet })
    }

    /// Opens connections to a VIP, each from a socket of its own.
    fn connect(&self, vip: IpAddr, first_port: u16) -> Result<Vec<Client>> {
        let here = &self.fleet.lab.clients[0];
        let own = if vip.is_ipv4() { here.v4.into() } else { here.v6.into() };
        let ports = first_port..first_port + CONNECTIONS;
        let sockets = ports.map(|port| bind(here, SocketAddr::new(own, port)));
        let sockets = sockets.collect::<Result<Vec<_>>>()?;
        self.each(sockets.into_iter().map(|socket| open(socket, self.trusted.clone(), vip)))?
            .into_iter()
            .collect()
    }

    /// Moves every client to another port and, if `far`, to another address. Returns the server that answers
    /// each client, or an error.
    fn move_on(&self, clients: &[Client], far: bool, first_port: u16) -> Result<Vec<Result<String>>> {
        let here = &self.fleet.lab.clients[0];
        for (client, port) in clients.iter().zip(first_port..) {
            let to: IpAddr = match (client.connection.remote_address().is_ipv4(), far) {
                (true, false) => here.v4.into(),
                (true, true) => SECOND.0.into(),
                (false, false) => here.v6.into(),
                (false, true) => SECOND.1.into(),
            };
            let socket = bind(here, SocketAddr::new(to, port))?;
            let _inside = self.runtime.enter();
            client.endpoint.rebind(socket)?;
        }
        self.each(clients.iter().map(|client| {
            let connection = client.connection.clone();
            async move { request(&connection).await }
        }))
    }

    /// Runs all futures at the same time, and returns their results in order.
    fn each<T: Send + 'static>(
        &self,
        work: impl Iterator<Item = impl Future<Output = Result<T>> + Send + 'static>,
    ) -> Result<Vec<Result<T>>> {
        self.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for (n, work) in work.enumerate() {
                tasks.spawn(async move { (n, work.await) });
            }
            let mut outcomes = Vec::new();
            while let Some(outcome) = tasks.join_next().await {
                outcomes.push(outcome?);
            }
            outcomes.sort_by_key(|(n, _)| *n);
            Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
        })
    }
}

fn name(n: usize) -> String {
    format!("quic-{n}")
}

fn bind(host: &Host, address: SocketAddr) -> Result<UdpSocket> {
    host.netns.run(|| UdpSocket::bind(address))?.with_context(|| format!("binding to {address}"))
}

/// Answers every stream with the server's name.
async fn serve(endpoint: Endpoint, name: String) {
    while let Some(incoming) = endpoint.accept().await {
        let name = name.clone();
        tokio::spawn(async move {
            let connection = incoming.await?;
            loop {
                let (mut answer, mut question) = connection.accept_bi().await?;
                question.read_to_end(64).await?;
                answer.write_all(name.as_bytes()).await?;
                answer.finish()?;
            }
            #[expect(unreachable_code, reason = "sets the type of errors")]
            anyhow::Ok(())
        });
    }
}

struct Client {
    endpoint: Endpoint,
    connection: Connection,
    /// The server that answered first.
    server: String,
}

async fn open(socket: UdpSocket, trusted: ClientConfig, vip: IpAddr) -> Result<Client> {
    let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?;
    let connecting = endpoint.connect_with(trusted, SocketAddr::new(vip, PORT), NAME)?;
    let connection = timeout(MAX_WAIT, connecting).await.context("no handshake in time")??;
    let server = request(&connection).await?;
    Ok(Client { endpoint, connection, server })
}

async fn request(connection: &Connection) -> Result<String> {
    let exchange = async {
        let (mut question, mut answer) = connection.open_bi().await?;
        question.write_all(b"who?").await?;
        question.finish()?;
        Ok(String::from_utf8(answer.read_to_end(64).await?)?)
    };
    timeout(MAX_WAIT, exchange).await.context("no answer in time")?
}

/// Checks that clients keep their server when they move to another port, and then to another address.
fn clients_move_and_stay(lab: Lab, mode: Mode) -> Result<()> {
    let quic = Quic::start(lab, mode, true)?;
    for vip in vips().map(|vip| vip.ip()) {
        let clients = quic.connect(vip, FIRST_PORT)?;
        let servers = (0..SERVERS).filter(|n| clients.iter().any(|client| client.server == name(*n)));
        ensure!(servers.count() == SERVERS, "{mode:?} {vip}: not all servers got connections");
        for (far, first_port) in [(false, 22_000), (true, 23_000)] {
            for (client, answer) in clients.iter().zip(quic.move_on(&clients, far, first_port)?) {
                let answer = answer.with_context(|| format!("{mode:?} {vip}: {} was lost", client.server))?;
                ensure!(answer == client.server, "{mode:?} {vip}: {answer} instead of {}", client.server);
            }
        }
    }
    Ok(())
}

#[test]
fn clients_move_and_keep_their_connections_with_nat() -> Result<()> {
    clients_move_and_stay(Lab::one_arm(1, SERVERS)?, Mode::Nat)
}

#[test]
fn clients_move_and_keep_their_connections_with_direct_server_return() -> Result<()> {
    clients_move_and_stay(Lab::one_arm(1, SERVERS)?, Mode::DsrL2)
}

#[test]
fn clients_move_and_keep_their_connections_to_containers_of_the_host() -> Result<()> {
    clients_move_and_stay(Lab::same_host(1, SERVERS)?, Mode::Nat)
}

/// The tests above would fail without server ids.
#[test]
fn connections_of_moving_clients_are_lost_without_server_ids() -> Result<()> {
    let quic = Quic::start(Lab::one_arm(1, SERVERS)?, Mode::Nat, false)?;
    for vip in vips().map(|vip| vip.ip()) {
        let clients = quic.connect(vip, FIRST_PORT)?;
        let answers = quic.move_on(&clients, false, 22_000)?;
        for (client, answer) in clients.iter().zip(&answers) {
            if let Ok(answer) = answer {
                ensure!(
                    *answer == client.server,
                    "{vip}: {answer} answered on a connection of {}",
                    client.server
                );
            }
        }
        let lost = answers.iter().filter(|answer| answer.is_err()).count();
        ensure!(lost >= usize::from(CONNECTIONS / 3), "{vip}: only {lost} of {CONNECTIONS} were lost");
    }
    Ok(())
}

#[test]
fn a_draining_server_keeps_connections_that_move() -> Result<()> {
    let quic = Quic::start(Lab::one_arm(1, SERVERS)?, Mode::Nat, true)?;
    let [vip, _] = vips().map(|vip| vip.ip());
    let clients = quic.connect(vip, FIRST_PORT)?;
    let drained = name(0);
    ensure!(clients.iter().any(|client| client.server == drained), "{drained} has no connection to keep");
    quic.fleet.nlb(&["drain", &drained, "--timeout", "1s"])?;
    for (client, answer) in clients.iter().zip(quic.move_on(&clients, true, 22_000)?) {
        let answer = answer.with_context(|| format!("{} was lost", client.server))?;
        ensure!(answer == client.server, "{answer} instead of {}", client.server);
    }
    match quic.connect(vip, 24_000)?.iter().find(|client| client.server == drained) {
        Some(_) => bail!("{drained} got a new connection while it drained"),
        None => Ok(()),
    }
}
