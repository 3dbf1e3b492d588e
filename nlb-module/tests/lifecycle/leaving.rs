//! Draining, from the first signal to the last connection.

use std::time::Duration;

use nlb_module::proto::*;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::fake_nlb::FakeNlb;
use super::mirror::{Running, SOON, control, exchange, run};

#[tokio::test]
async fn drains_without_losing_a_connection() {
    let nlb = FakeNlb::start().await;
    nlb.see(|seen| seen.drain = Duration::from_millis(300));
    let running = run(&nlb.url(), |instance| instance);
    nlb.until("a heartbeat", |seen| !seen.heartbeats.is_empty()).await;
    let mut held = running.connect().await;
    exchange(&mut held, b"before").await;
    let Running { address, stop, mut ended } = running;
    stop.send(()).expect("it runs");
    nlb.until("an unregistration", |seen| !seen.unregistrations.is_empty()).await;
    let request = nlb.see(|seen| seen.unregistrations[0].clone());
    assert!(request.graceful);
    assert_eq!((request.registration_id.as_str(), request.drain_timeout_seconds), ("registration-1", 30));

    // A connection that the NLB had sent before the drain still arrives.
    let mut late = TcpStream::connect(address).await.expect("listens until the NLB has drained");
    exchange(&mut late, b"late").await;
    drop(late);
    nlb.until("a heartbeat with STOPPING", |seen| {
        seen.heartbeats.last().is_some_and(|beat| beat.status == i32::from(HealthStatus::Stopping))
    })
    .await;
    timeout(SOON, async { while TcpStream::connect(address).await.is_ok() {} })
        .await
        .expect("the listener closes after the NLB's answer");
    exchange(&mut held, b"still there").await;
    assert!(!ended.is_finished());
    drop(held);
    timeout(SOON, &mut ended)
        .await
        .expect("it ends with its last connection")
        .expect("no panic")
        .expect("drained");
}

#[tokio::test]
async fn does_not_drain_longer_than_it_may() {
    let nlb = FakeNlb::start().await;
    let running = run(&nlb.url(), |instance| instance.drain_timeout(Duration::from_millis(200)));
    nlb.until("a heartbeat", |seen| !seen.heartbeats.is_empty()).await;
    let mut held = running.connect().await;
    exchange(&mut held, b"before").await;
    running.stop.send(()).expect("it runs");
    timeout(SOON, running.ended).await.expect("it ends").expect("no panic").expect("no error");
    assert_eq!(held.read(&mut [0; 8]).await.unwrap_or_default(), 0, "the connection is cut off");
}

#[tokio::test]
async fn shuts_down_when_called_to() {
    let nlb = FakeNlb::start().await;
    let running = run(&nlb.url(), |instance| instance);
    let mut module = control(&nlb).await;
    let request = ShutdownRequest { graceful: false, ..ShutdownRequest::default() };
    assert!(module.shutdown(request).await.expect("an answer").into_inner().success);
    timeout(SOON, running.ended).await.expect("it ends").expect("no panic").expect("no error");
    assert!(!nlb.see(|seen| seen.unregistrations[0].graceful));
}
