//! Draining: waiting until the flows of a module without new flows have closed.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::model::traffic::Traffic;
use crate::registry::Registry;

/// The result of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drained {
    /// Flows that closed in time.
    pub closed: u64,
    /// Flows that were open at the end.
    pub left: u64,
    /// The protocols of the flows that a draining module keeps.
    pub kept: &'static str,
}

/// UDP flows leave a draining module at once, unless connection ids name it.
const TCP: &str = "TCP";
const ALL: &str = "TCP and QUIC";

impl Drained {
    /// No drain took place.
    pub(crate) fn nothing() -> Self {
        Drained { closed: 0, left: 0, kept: TCP }
    }
}

/// Waits until the registration of this epoch has no flows left of those that it keeps, or has ended, or the
/// deadline has passed. Starts once the maps hold the drain.
pub(crate) async fn wait(
    registry: &Registry,
    instance_id: &str,
    epoch: u64,
    mut traffic: watch::Receiver<Arc<Traffic>>,
    deadline: Instant,
) -> Drained {
    let still_drains = || {
        let snapshot = registry.snapshot();
        snapshot.record(instance_id).is_ok_and(|record| record.epoch == epoch && record.drain.is_some())
    };
    traffic.mark_unchanged();
    let is_named =
        registry.snapshot().record(instance_id).is_ok_and(|record| record.registration.module.quic.is_some());
    let kept = if is_named { ALL } else { TCP };
    let flows = |traffic: &watch::Receiver<Arc<Traffic>>| {
        let counts = traffic.borrow().instance(instance_id);
        if is_named { counts.active_flows } else { counts.active_tcp_flows }
    };
    let (mut most, mut left) = (flows(&traffic), flows(&traffic));
    // The reading in progress may have missed a flow that began just before the drain: only the second
    // reading is certainly a later one.
    let mut readings = 0;
    while still_drains() && !(left == 0 && readings >= 2) {
        match timeout_at(deadline, traffic.changed()).await {
            Ok(Ok(())) => {
                traffic.mark_unchanged();
                readings += 1;
                left = flows(&traffic);
                most = most.max(left);
            }
            // The counting has ended; whether flows are left is unknown until the deadline.
            Ok(Err(_)) => tokio::time::sleep_until(deadline).await,
            Err(_) => break,
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    Drained { closed: most - left, left, kept }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::clock::Now;
    use crate::model::traffic::Counts;
    use crate::model::{Backend, ForwardMode, RouteKey, Server, Snat};
    use crate::registry::Registration;
    use crate::registry::fixtures::{Fleet, registration, registry};

    fn with_flows(tcp: u64) -> Arc<Traffic> {
        let backend = Backend {
            instance_id: "alb-1".into(),
            route: Some(RouteKey { id: "web".into(), operators: false }),
            addr: "10.0.0.1".parse().unwrap(),
            port: 80,
            mode: ForwardMode::Nat,
            snat: Snat::Always,
        };
        let counts = Counts { active_flows: tcp + 5, active_tcp_flows: tcp, ..Counts::default() };
        Arc::new(Traffic { backends: [(backend.into(), counts)].into(), ..Traffic::default() })
    }

    /// Publishes these numbers of TCP flows, one each second, while alb-1 drains with this deadline.
    async fn drain_while(readings: &'static [u64], deadline: u64) -> (Drained, Duration) {
        drain_of(registration("alb-1"), readings, deadline).await
    }

    async fn drain_of(
        registration: Registration,
        readings: &'static [u64],
        deadline: u64,
    ) -> (Drained, Duration) {
        let registry = registry();
        let registered = registry.admit(registration, Now::read()).expect("the registry accepts it");
        let id = registered.registration_id.reveal().to_owned();
        let draining = registry.begin_leaving("alb-1", &id).unwrap();
        let (sender, traffic) = watch::channel(with_flows(readings[0]));
        tokio::spawn(async move {
            for tcp in readings {
                tokio::time::sleep(Duration::from_secs(1)).await;
                sender.send_replace(with_flows(*tcp));
            }
            std::future::pending::<()>().await;
        });
        let start = Instant::now();
        let deadline = start + Duration::from_secs(deadline);
        let drained = wait(&registry, "alb-1", draining.epoch, traffic, deadline).await;
        (drained, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn ends_when_the_last_flow_has_closed() {
        let (drained, took) = drain_while(&[3, 2, 2, 0, 0], 30).await;
        assert_eq!(drained, Drained { closed: 3, left: 0, kept: TCP });
        assert_eq!(took.as_secs(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn ends_at_the_deadline_with_what_is_left() {
        let (drained, took) = drain_while(&[5, 4, 2], 10).await;
        assert_eq!(drained, Drained { closed: 3, left: 2, kept: TCP });
        assert_eq!(took.as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_module_needs_one_reading_that_began_after_the_drain() {
        let (drained, took) = drain_while(&[0, 0, 0], 30).await;
        assert_eq!(drained, Drained { closed: 0, left: 0, kept: TCP });
        assert_eq!(took.as_secs(), 2);
    }

    /// There are always 5 UDP flows.
    #[tokio::test(start_paused = true)]
    async fn waits_for_udp_flows_where_connection_ids_keep_them() {
        let mut named = registration("alb-1");
        named.module.quic = Server::new(0, &[1]);
        let (drained, took) = drain_of(named, &[3, 0, 0, 0], 10).await;
        assert_eq!(drained, Drained { closed: 3, left: 5, kept: ALL });
        assert_eq!(took.as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn ends_when_the_registration_is_superseded() {
        let registry = Arc::new(registry());
        let id = registry.add("alb-1");
        let draining = registry.begin_leaving("alb-1", &id).unwrap();
        let (sender, traffic) = watch::channel(with_flows(3));
        let newcomer = registry.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            newcomer.add("alb-1");
            loop {
                sender.send_replace(with_flows(3));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let start = Instant::now();
        wait(&registry, "alb-1", draining.epoch, traffic, start + Duration::from_secs(30)).await;
        assert!(start.elapsed() < Duration::from_secs(3));
    }
}
