//! One probe of a health check: it connects, sends a request, and closes its socket, also when it is
//! cancelled.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use nlb_proto::{HealthCheckRequest, HealthStatus};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::peers::{Outcome, Peer, Peers, describe};
use crate::model::next_hop::Hops;
use crate::policy::health::{Probe, Target};

/// Probes modules on the route that packets to them take, from our address on that route. The kernel by
/// itself might choose a VIP as the source, and a module that holds the VIP would answer itself. Only the
/// ModuleService probe uses a connection that is kept: the other probes connect as clients do.
#[derive(Clone)]
pub struct Prober {
    peers: Peers,
    hops: watch::Receiver<Arc<Hops>>,
}

/// Both ends of a connection.
#[derive(Clone, Copy)]
struct Endpoints {
    from: IpAddr,
    to: SocketAddr,
}

impl Prober {
    pub fn new(peers: Peers, hops: watch::Receiver<Arc<Hops>>) -> Self {
        Prober { peers, hops }
    }

    /// An error is the reason why the module does not pass.
    pub async fn probe(self, target: Target) -> Result<(), String> {
        if let Probe::Module { deep } = target.probe {
            return self.ask(target, deep).await;
        }
        for to in &target.data {
            self.try_at(*to, &target).await.map_err(|why| format!("{to}: {why}"))?;
        }
        Ok(())
    }

    async fn try_at(&self, to: SocketAddr, target: &Target) -> Result<(), String> {
        let way = Endpoints { from: self.source_towards(to.ip(), target.timeout / 2).await?, to };
        match &target.probe {
            Probe::Http { path, expected_status } => get(way, path, *expected_status).await,
            Probe::Grpc { service } => serves(way, service).await,
            Probe::Connect | Probe::Module { .. } => connect(way).await.map(drop),
        }
    }

    /// Waits for the next hop, which may still be unresolved for a module that has just registered.
    async fn source_towards(&self, address: IpAddr, max_wait: Duration) -> Result<IpAddr, String> {
        let mut hops = self.hops.clone();
        let found = match timeout(max_wait, hops.wait_for(|hops| hops.contains_key(&address))).await {
            Ok(Ok(hops)) => hops.get(&address).map(|hop| hop.source),
            Ok(Err(_)) | Err(_) => None,
        };
        found.ok_or_else(|| "its next hop is unknown: no route, or no answer from the neighbour".to_owned())
    }

    async fn ask(&self, target: Target, deep_check: bool) -> Result<(), String> {
        let peer = Peer { instance_id: target.instance_id.clone(), address: target.control };
        let call = HealthCheckRequest { instance_id: target.instance_id, deep_check };
        match self.peers.ask(&peer, call, target.timeout).await {
            Outcome::Done(answer) => match answer.status() {
                HealthStatus::Healthy | HealthStatus::Degraded => Ok(()),
                status => Err(format!("it answers {} {}", status.as_str_name(), answer.message)),
            },
            outcome => Err(outcome.to_string()),
        }
    }
}

async fn connect(way: Endpoints) -> Result<TcpStream, String> {
    let connecting = async {
        let socket = if way.to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // Otherwise each connection would hold a port of its own, whatever its destination, for a minute
        // after its end.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(SocketAddr::new(way.from, 0))?;
        socket.connect(way.to).await
    };
    connecting.await.map_err(|error: std::io::Error| error.to_string())
}

/// Probes by HTTP. Redirections are answers like others; they are not followed.
async fn get(way: Endpoints, path: &str, expected: Option<u16>) -> Result<(), String> {
    let stream = connect(way).await?;
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| error.to_string())?;
    let request = Request::get(path)
        .header(HOST, way.to.to_string())
        .header(USER_AGENT, "nlb")
        .header(CONNECTION, "close")
        .body(String::new());
    let request = request.map_err(|error| error.to_string())?;
    let answered = sender.send_request(request);
    tokio::pin!(answered, connection);
    // The connection is polled here and not in a task, so that it ends with this future.
    let answered = tokio::select! {
        biased;
        answered = &mut answered => answered,
        ended = &mut connection => match ended {
            Ok(()) => answered.await,
            Err(error) => Err(error),
        },
    };
    let status = answered.map_err(|error| error.to_string())?.status();
    match expected {
        None if status.is_success() || status.is_redirection() => Ok(()),
        Some(expected) if status.as_u16() == expected => Ok(()),
        _ => Err(format!("HTTP status {}", status.as_u16())),
    }
}

/// Probes by grpc.health.v1.
async fn serves(way: Endpoints, service: &str) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("http://{}", way.to)).map_err(|error| error.to_string())?;
    let channel = endpoint
        .local_address(Some(way.from))
        .connect()
        .await
        .map_err(|error| describe(&Status::from_error(error.into())))?;
    let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel).check(request).await.map_err(|status| match status.code() {
        Code::NotFound => format!("the server does not know the service {service:?}"),
        Code::Unimplemented => "the server does not implement grpc.health.v1".to_owned(),
        _ => describe(&status),
    })?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        status => Err(format!("it answers {}", status.as_str_name())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;
    use tokio_stream::wrappers::TcpListenerStream;

    use super::*;
    use crate::model::next_hop::Hop;

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// A prober whose address towards loopback is 127.0.0.2.
    fn prober() -> Prober {
        let hop = Hop {
            hop: Default::default(),
            source: "127.0.0.2".parse().unwrap(),
            mtu: 1500,
            link_prefix: 8,
            local: false,
        };
        let hops: Hops = [("127.0.0.1".parse().unwrap(), hop)].into();
        Prober::new(Peers::default(), watch::channel(Arc::new(hops)).1)
    }

    async fn probe(data: &[SocketAddr], probe: Probe) -> Result<(), String> {
        let target = Target {
            instance_id: "a".into(),
            probe,
            timeout: Duration::from_secs(2),
            control: "127.0.0.1:9".parse().unwrap(),
            data: data.to_vec(),
        };
        timeout(Duration::from_secs(5), prober().probe(target)).await.expect("an answer")
    }

    /// A server that sends `answer` to one request, and returns the request.
    async fn http(answer: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let (listener, address) = listener().await;
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            // Until the prober closes the connection.
            while stream.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        (address, served)
    }

    fn page(expected_status: Option<u16>) -> Probe {
        Probe::Http { path: "/healthz?full=1".into(), expected_status }
    }

    #[tokio::test]
    async fn a_connection_is_enough_for_tcp_at_every_address() {
        let ((_open, open), (closed_listener, closed)) = (listener().await, listener().await);
        drop(closed_listener);
        assert_eq!(probe(&[open], Probe::Connect).await, Ok(()));
        let why = probe(&[open, closed], Probe::Connect).await.unwrap_err();
        assert!(why.starts_with(&closed.to_string()) && why.contains("refused"), "{why}");
    }

    #[tokio::test]
    async fn every_probe_comes_from_our_address_on_the_way() {
        for kind in [Probe::Connect, page(None), Probe::Grpc { service: String::new() }] {
            let (listener, address) = listener().await;
            let addresses = [address];
            let (outcome, accepted) = tokio::join!(probe(&addresses, kind), async {
                let (_, from) = listener.accept().await.unwrap();
                drop(listener);
                from
            });
            assert_eq!(accepted.ip(), "127.0.0.2".parse::<IpAddr>().unwrap(), "{outcome:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_unreachable_module_gets_no_probe() {
        let nowhere = "192.0.2.7:80".parse().unwrap();
        let why = probe(&[nowhere], Probe::Connect).await.unwrap_err();
        assert!(why.starts_with("192.0.2.7:80: its next hop is unknown"), "{why}");
    }

    #[tokio::test]
    async fn http_goes_by_the_status_and_hangs_up() {
        for (answer, expected, passes) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", None, true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nbeginning", None, true),
            ("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", None, true),
            ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", None, false),
            ("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", None, false),
            ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", Some(404), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Some(204), false),
            ("220 mail.example.com ESMTP\r\n", None, false),
        ] {
            let (address, served) = http(answer).await;
            let outcome = probe(&[address], page(expected)).await;
            assert_eq!(outcome.is_ok(), passes, "{answer:?}: {outcome:?}");
            let asked = timeout(Duration::from_secs(5), served)
                .await
                .expect("the prober closes the connection")
                .unwrap();
            assert!(asked.starts_with("GET /healthz?full=1 HTTP/1.1\r\n"), "{asked}");
            assert!(asked.contains(&format!("host: {address}\r\n")), "{asked}");
        }
    }

    #[tokio::test]
    async fn a_server_that_hangs_up_does_not_pass() {
        let (listener, address) = listener().await;
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        assert!(probe(&[address], page(None)).await.is_err());
        let grpc = Probe::Grpc { service: String::new() };
        assert!(probe(&[address], grpc).await.is_err());
    }

    #[tokio::test]
    async fn a_probe_that_is_cut_off_leaves_no_socket() {
        for kind in [page(None), Probe::Grpc { service: String::new() }] {
            let (listener, address) = listener().await;
            let hung = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
            });
            let cut = timeout(Duration::from_millis(200), probe(&[address], kind.clone())).await;
            assert!(cut.is_err(), "the server does not answer");
            timeout(Duration::from_secs(5), hung).await.expect("the connection has ended").unwrap();
        }
    }

    #[tokio::test]
    async fn grpc_health_goes_by_the_service() {
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter.set_service_status("up", tonic_health::ServingStatus::Serving).await;
        reporter.set_service_status("down", tonic_health::ServingStatus::NotServing).await;
        let (listener, address) = listener().await;
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let ask = async |service: &str| probe(&[address], Probe::Grpc { service: service.into() }).await;
        assert_eq!(ask("").await, Ok(()));
        assert_eq!(ask("up").await, Ok(()));
        assert!(ask("down").await.unwrap_err().contains("NOT_SERVING"));
        assert!(ask("other").await.unwrap_err().contains("does not know"));
    }
}
