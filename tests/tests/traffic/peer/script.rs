//! The traffic, which is the same for both balancers, and the records of the client and the backends.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use nlb_testkit::lab::Host;
use tokio::net::UdpSocket;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use super::backend::{BULK, Backend, Visit};
use super::balancer::{BACKENDS, Site, UNSERVED_PORT};
use super::client::{
    Connection, MAX_WAIT, describe, downloads, exchange, is_reset, resets, socket, two_requests, uploads,
};
use crate::clients::on;
use crate::fleet::vips;

/// The number of new flows after each change.
const FRESH: usize = 12;

/// A port of the VIPs without a service.
const CLOSED_PORT: u16 = 82;

const SHORT: usize = 10;
/// The length of a datagram that is sent in fragments.
const LONG: usize = 3000;

/// The result of each step.
pub type Transcript = Vec<(String, String)>;

pub fn play(site: &Site) -> Result<Transcript> {
    let (seen, visits) = unbounded_channel();
    let _backends = BACKENDS
        .into_iter()
        .enumerate()
        .map(|(n, name)| Backend::start(&site.lab.modules[n], name, site.listen(n), &seen))
        .collect::<Result<Vec<_>>>()?;
    site.add(0)?;
    let client = &site.lab.clients[0];
    on(client, || async {
        let mut script = Script { client, visits, last_port: 20_000, transcript: Transcript::new() };
        for vip in vips() {
            script.with_one_backend(vip).await?;
        }
        script.with_changes(site).await?;
        Ok(script.transcript)
    })
}

struct Script<'a> {
    client: &'a Host,
    visits: UnboundedReceiver<Visit>,
    last_port: u16,
    transcript: Transcript,
}

/// Flows to a VIP that stay open while backends change.
struct Held {
    vip: SocketAddr,
    connection: Option<Connection>,
    socket: UdpSocket,
}

impl Script<'_> {
    async fn with_one_backend(&mut self, vip: SocketAddr) -> Result<()> {
        // The first long datagram may reduce the client's path MTU for the second.
        let long = [("a long datagram", LONG), ("a second long datagram", LONG)];
        for (what, len) in [("a datagram", SHORT)].into_iter().chain(long) {
            let from = self.next_port(vip);
            let outcome = exchange(&socket(from, vip).await?, len).await;
            match outcome {
                Ok(_) => self.record_visit(from, what, outcome).await?,
                Err(_) => self.record(vip, what, describe(outcome)),
            }
        }

        let from = self.next_port(vip);
        self.record_visit(from, "two questions", two_requests(from, vip).await).await?;
        let from = self.next_port(vip);
        self.record_visit(from, "an upload that is small", uploads(from, vip, SHORT).await).await?;
        let from = self.next_port(vip);
        self.record_visit(from, "an upload that is large", uploads(from, vip, BULK).await).await?;
        let from = self.next_port(vip);
        self.record_visit(from, "a large download, and an upload after its end", downloads(from, vip).await)
            .await?;
        let from = self.next_port(vip);
        self.record_visit(from, "a connection that the backend resets", is_reset(from, vip).await).await?;
        let from = self.next_port(vip);
        self.record_visit(from, "a connection that the client resets", resets(from, vip).await).await?;

        for (what, port) in [
            ("to a port that no backend listens on", UNSERVED_PORT),
            ("to a port without a service", CLOSED_PORT),
        ] {
            let (to, from) = (SocketAddr::new(vip.ip(), port), self.next_port(vip));
            self.record(vip, &format!("a connection {what}"), describe(two_requests(from, to).await));
            let datagram = exchange(&socket(from, to).await?, SHORT).await;
            self.record(vip, &format!("a datagram {what}"), describe(datagram));
        }
        Ok(())
    }

    async fn with_changes(&mut self, site: &Site) -> Result<()> {
        let mut held = Vec::new();
        for vip in vips() {
            let connection = Connection::open(self.next_port(vip), vip).await?;
            let socket = socket(self.next_port(vip), vip).await?;
            held.push(Held { vip, connection: Some(connection), socket });
        }
        self.record_flows("one backend", &mut held).await?;
        site.add(1)?;
        self.record_flows("another is added", &mut held).await?;
        site.weigh(0, 0)?;
        self.record_flows("the first gets weight 0", &mut held).await?;
        site.remove(0)?;
        self.record_flows("the first is removed", &mut held).await?;
        site.weigh(1, 0)?;
        self.record_flows("the other gets weight 0", &mut held).await?;
        site.remove(1)?;
        self.record_flows("the other is removed", &mut held).await
    }

    /// Records how held flows continue, and which backends get new ones.
    async fn record_flows(&mut self, when: &str, held: &mut [Held]) -> Result<()> {
        for Held { vip, connection, socket: held_socket } in held {
            if let Some(open) = connection {
                let answer = open.request("who").await;
                if answer.is_err() {
                    *connection = None;
                }
                self.record(*vip, &format!("{when}: a held connection"), describe(answer));
            }
            self.record(
                *vip,
                &format!("{when}: a held UDP flow"),
                describe(exchange(held_socket, SHORT).await),
            );

            let (mut tcp, mut udp) = (BTreeSet::new(), BTreeSet::new());
            for _ in 0..FRESH {
                let from = self.next_port(*vip);
                tcp.insert(describe(two_requests(from, *vip).await));
                udp.insert(describe(exchange(&socket(from, *vip).await?, SHORT).await));
            }
            for (what, outcomes) in [("new connections", tcp), ("new UDP flows", udp)] {
                let outcomes: Vec<_> = outcomes.into_iter().collect();
                self.record(*vip, &format!("{when}: {what}"), outcomes.join(" / "));
            }
        }
        Ok(())
    }

    /// Records the result at the client, and what its backend saw.
    async fn record_visit(
        &mut self,
        client: SocketAddr,
        what: &str,
        outcome: io::Result<String>,
    ) -> Result<()> {
        let line = describe(outcome);
        let visit = timeout(MAX_WAIT, self.visits.recv()).await.ok().flatten();
        let Visit { backend, peer, events } =
            visit.with_context(|| format!("{what}: {line}, and no backend saw the end of it"))?;
        let peer = if peer == client { "the client".to_owned() } else { peer.to_string() };
        self.record(client, what, format!("{line}; {backend} saw of {peer}: {events}"));
        Ok(())
    }

    fn record(&mut self, address: SocketAddr, what: &str, line: String) {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        self.transcript.push((format!("{family}, {what}"), line));
    }

    /// A port that no earlier flow had, so that both balancers get the same flows.
    fn next_port(&mut self, vip: SocketAddr) -> SocketAddr {
        self.last_port += 1;
        let own = if vip.is_ipv4() { IpAddr::from(self.client.v4) } else { self.client.v6.into() };
        SocketAddr::new(own, self.last_port)
    }
}
