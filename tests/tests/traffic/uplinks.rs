//! Several uplinks: replies leave by the kernel's routes, whichever interface the requests came in by.
//!
//! The lab's gateway is a router on both segments of the NLB. It is also the client, with addresses that both
//! segments lead to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use nlb_testkit::lab::{DefaultRoute, Host, Lab};

use crate::clients::{Connection, on};
use crate::fleet::{Fleet, Mode, vips};

const FAR4: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
const FAR6: Ipv6Addr = Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 1);
const FRONT: &str = "eth0";
const BACK: &str = "eth1";
const REQUESTS: u64 = 200;

struct Far {
    fleet: Fleet,
}

impl Far {
    /// Starts a fleet with routes to the far network by the front, and with a higher metric by the back.
    fn new() -> Result<Far> {
        let fleet = Fleet::start(Lab::two_arm(0, 2, DefaultRoute::Gateway)?, Mode::Nat, &[100, 100], &[])?;
        let far = Far { fleet };
        far.host()?.netns.add_address("lo", FAR4.into(), 32)?;
        far.host()?.netns.add_address("lo", FAR6.into(), 128)?;
        for vip in vips() {
            far.lead(vip.ip(), FRONT, 10)?;
            far.lead(vip.ip(), BACK, 20)?;
        }
        Ok(far)
    }

    fn host(&self) -> Result<&Host> {
        self.fleet.lab.gateway.as_ref().context("a lab with a gateway")
    }

    /// Adds a route from the NLB to the far address of this VIP's family.
    fn lead(&self, vip: IpAddr, interface: &str, metric: u32) -> Result<()> {
        let metric = metric.to_string();
        self.route(vip, &["add"], interface, &["metric", &metric])
    }

    fn route(&self, vip: IpAddr, verb: &[&str], interface: &str, rest: &[&str]) -> Result<()> {
        let (to, via) = match (vip, interface) {
            (IpAddr::V4(_), FRONT) => ("10.78.0.0/24", "10.77.0.254"),
            (IpAddr::V4(_), _) => ("10.78.0.0/24", "10.77.1.254"),
            (IpAddr::V6(_), FRONT) => ("fd78::/64", "fd77::fe"),
            (IpAddr::V6(_), _) => ("fd78::/64", "fd77:0:0:1::fe"),
        };
        let route = [&["route"], verb, &[to, "via", via, "dev", interface], rest].concat();
        self.fleet.lab.nlb.netns.ip(&route).map(drop)
    }

    /// Sends requests, and checks the interface by which the answers arrive.
    async fn answers_come_by(&self, interface: &str, connection: &mut Connection) -> Result<()> {
        let other = if interface == FRONT { BACK } else { FRONT };
        let before = (self.arrived(interface)?, self.arrived(other)?);
        for n in 0..REQUESTS {
            connection
                .request()
                .await
                .with_context(|| format!("request {n} of those answered by {interface}"))?;
        }
        let (here, there) = (self.arrived(interface)? - before.0, self.arrived(other)? - before.1);
        ensure!(here >= REQUESTS, "{here} packets arrived by {interface}, {there} by {other}");
        // Calls between modules and the daemon cross the gateway, too.
        ensure!(there < REQUESTS / 2, "{there} packets arrived by {other}, {here} by {interface}");
        Ok(())
    }

    /// The number of packets that the far host received by an interface.
    fn arrived(&self, interface: &str) -> Result<u64> {
        let shown = self.host()?.netns.ip(&["-s", "-j", "link", "show", interface])?;
        let links: serde_json::Value = serde_json::from_str(&shown)?;
        links[0]["stats64"]["rx"]["packets"].as_u64().context("the link has no count")
    }
}

fn far_of(vip: SocketAddr) -> SocketAddr {
    SocketAddr::new(if vip.is_ipv4() { FAR4.into() } else { FAR6.into() }, 0)
}

#[test]
fn connections_continue_when_the_reply_route_moves_to_the_other_uplink() -> Result<()> {
    let far = Far::new()?;
    on(far.host()?, || async {
        for vip in vips() {
            let mut connection = Connection::open_from(Some(far_of(vip)), vip).await?;
            far.answers_come_by(FRONT, &mut connection).await?;
            // Requests still arrive by the front.
            far.route(vip.ip(), &["delete"], FRONT, &["metric", "10"])?;
            far.answers_come_by(BACK, &mut connection).await?;
            far.lead(vip.ip(), FRONT, 10)?;
            far.answers_come_by(FRONT, &mut connection).await?;
        }
        Ok(())
    })
}

#[test]
fn connections_continue_when_requests_arrive_by_the_other_uplink() -> Result<()> {
    let far = Far::new()?;
    let host = far.host()?;
    on(host, || async {
        for (vip, via) in vips().into_iter().zip(["10.77.1.1", "fd77:0:0:1::1"]) {
            let mut connection = Connection::open_from(Some(far_of(vip)), vip).await?;
            far.answers_come_by(FRONT, &mut connection).await?;
            host.netns.ip(&["route", "add", &vip.ip().to_string(), "via", via, "dev", BACK])?;
            far.answers_come_by(FRONT, &mut connection).await?;
            far.route(vip.ip(), &["delete"], FRONT, &["metric", "10"])?;
            far.answers_come_by(BACK, &mut connection).await?;
        }
        Ok(())
    })
}

#[test]
fn replies_follow_policy_rules_about_their_source() -> Result<()> {
    let far = Far::new()?;
    let nlb = &far.fleet.lab.nlb.netns;
    on(far.host()?, || async {
        for vip in vips() {
            let mut connection = Connection::open_from(Some(far_of(vip)), vip).await?;
            far.answers_come_by(FRONT, &mut connection).await?;
            let family = if vip.is_ipv4() { "-4" } else { "-6" };
            far.route(vip.ip(), &["add"], BACK, &["table", "100"])?;
            nlb.ip(&[family, "rule", "add", "from", &vip.ip().to_string(), "lookup", "100"])?;
            far.answers_come_by(BACK, &mut connection).await?;
        }
        Ok(())
    })
}
