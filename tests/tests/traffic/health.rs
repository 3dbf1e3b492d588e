//! Health checks, modules that hang, and modules that reset their connections.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nlb_proto::GetModuleInfoRequest;
use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_testkit::lab::{Host, Lab};
use nlb_testkit::process::MAX_WAIT;
use nlb_testkit::programs::grpc;

use crate::clients::{Connection, L4, assert_shares, flows, on};
use crate::fleet::{Fleet, Mode, vips};
use crate::life::{hold, spread};

/// Leases that outlast the test, so that only health checks detect a failure.
const LONG_LEASE: [&str; 2] = ["--missed-heartbeats", "120"];

impl Fleet {
    fn wait_for_health(&self, instance_id: &str, health: &str) -> Result<()> {
        let what = format!("{instance_id} is {health}");
        self.wait_until(&what, |modules| {
            modules.get(instance_id).is_some_and(|module| module["health"] == health)
        })
    }

    /// The health of a module by one source, with its reason.
    fn health_signal(&self, source: &str, instance_id: &str) -> Result<String> {
        let server = format!("http://{}", grpc(&self.lab));
        let request = GetModuleInfoRequest { instance_id: instance_id.into() };
        let answer = on(&self.lab.nlb, || async move {
            Ok(NlbServiceClient::connect(server).await?.get_module_info(request).await?.into_inner())
        })?;
        answer.details.get(&format!("health.{source}")).cloned().context("no health signal")
    }
}

/// An HTTP server on a module's host that answers with a status that the test sets.
struct Page {
    status: Arc<AtomicU16>,
    /// Answers with that status so far.
    answers: Arc<AtomicU32>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Page {
    const PORT: u16 = 8081;

    fn serve(host: &Host, status: u16) -> Result<Page> {
        let listener = host.netns.run(|| TcpListener::bind(("::", Page::PORT)))??;
        listener.set_nonblocking(true)?;
        let status = Arc::new(AtomicU16::new(status));
        let (answers, ends) = (Arc::<AtomicU32>::default(), Arc::<AtomicBool>::default());
        let (current, counts, ended) = (status.clone(), answers.clone(), ends.clone());
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                let answer =
                    format!("HTTP/1.1 {} X\r\nContent-Length: 0\r\n\r\n", current.load(Ordering::SeqCst));
                let served = stream
                    .set_nonblocking(false)
                    .and_then(|()| stream.set_read_timeout(Some(Duration::from_secs(1))))
                    .and_then(|()| stream.read(&mut [0; 1024]))
                    .and_then(|_| stream.write_all(answer.as_bytes()));
                counts.fetch_add(u32::from(served.is_ok()), Ordering::SeqCst);
            }
        });
        Ok(Page { status, answers, ends, thread: Some(thread) })
    }

    fn set_status(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
        self.answers.store(0, Ordering::SeqCst);
    }

    fn answers(&self) -> u32 {
        self.answers.load(Ordering::SeqCst)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // An error means that the thread has panicked, and the test has failed for lack of answers.
            let _ = thread.join();
        }
    }
}

#[test]
fn http_check_moves_new_flows_and_keeps_open_connections() -> Result<()> {
    let mut fleet = Fleet::start(Lab::one_arm(1, 2)?, Mode::Nat, &[100], &[])?;
    let page = Page::serve(&fleet.lab.modules[1], 503)?;
    let port = Page::PORT.to_string();
    let check = ["--check", "http", "--check-port", &port, "--check-interval", "1"];
    fleet.add("m1", 1, Mode::Nat, 100, &check)?;
    fleet.wait_for_health("m1", "STARTING")?;
    on(&fleet.lab.clients[0], || async {
        let first = hold(20).await?;
        ensure!(
            spread(&first).keys().eq(["m0"]),
            "a module without a passed check has flows: {:?}",
            spread(&first)
        );
        page.set_status(200);
        fleet.wait_for(2)?;
        let mut held = hold(20).await?;
        ensure!(spread(&held).len() == 2, "{:?}", spread(&held));

        page.set_status(503);
        fleet.wait_for_health("m1", "UNHEALTHY")?;
        ensure!(page.answers() >= 3, "it is unhealthy after {} failures", page.answers());
        let signal = fleet.health_signal("check", "m1")?;
        ensure!(signal.contains("HTTP status 503"), "{signal}");
        for (name, connection) in &mut held {
            ensure!(connection.request().await? == *name, "a failed check moved a held connection");
        }
        let fresh = hold(20).await?;
        ensure!(spread(&fresh).keys().eq(["m0"]), "an unhealthy module has new flows: {:?}", spread(&fresh));

        page.set_status(200);
        fleet.wait_for(2)?;
        ensure!(page.answers() >= 2, "it is healthy after {} successes", page.answers());
        for (name, connection) in &mut held {
            ensure!(connection.request().await? == *name, "a recovery moved a held connection");
        }
        Ok(())
    })?;
    for vip in vips() {
        let counts = flows(&fleet.lab.clients[0], L4::Tcp, vip, 20_000, 200)?;
        assert_shares(&counts, &[("m0", 100), ("m1", 100)]);
    }
    Ok(())
}

#[test]
fn health_checks_detect_hanging_modules_before_the_lease_expires() -> Result<()> {
    let mut fleet =
        Fleet::start_with(Lab::one_arm(1, 3)?, Mode::Nat, &[100], &["--heartbeat", "1"], &LONG_LEASE)?;
    for (n, kind) in [(1, "http"), (2, "module")] {
        let check = ["--heartbeat", "1", "--check", kind, "--check-interval", "1"];
        fleet.add(&format!("m{n}"), n, Mode::Nat, 100, &check)?;
    }
    fleet.wait_for(3)?;
    for module in &fleet.modules[1..] {
        module.signal(Signal::SIGSTOP)?;
    }
    for name in ["m1", "m2"] {
        fleet.wait_for_health(name, "UNHEALTHY")?;
        let (check, lease) = (fleet.health_signal("check", name)?, fleet.health_signal("lease", name)?);
        ensure!(check.contains("no answer within"), "{name}: {check}");
        ensure!(lease == "HEALTHY", "{name}: {lease}");
    }
    assert_shares(&flows(&fleet.lab.clients[0], L4::Tcp, vips()[0], 20_000, 50)?, &[("m0", 100)]);
    for module in &fleet.modules[1..] {
        module.signal(Signal::SIGCONT)?;
    }
    fleet.wait_for(3)
}

#[test]
fn dsr_modules_are_checked_at_their_data_address() -> Result<()> {
    for mode in [Mode::DsrL2, Mode::DsrIpip, Mode::Gue] {
        let check = ["--heartbeat", "1", "--check", "tcp", "--check-interval", "1"];
        let fleet = Fleet::start_with(Lab::one_arm(1, 2)?, mode, &[100, 100], &check, &LONG_LEASE)?;
        fleet.modules[1].signal(Signal::SIGKILL)?;
        fleet.wait_for_health("m1", "UNHEALTHY")?;
        let signal = fleet.health_signal("check", "m1")?;
        let data = SocketAddr::new(fleet.lab.modules[1].v4.into(), 80);
        ensure!(signal.contains(&format!("{data}: Connection refused")), "{mode:?}: {signal}");
        assert_shares(&flows(&fleet.lab.clients[0], L4::Tcp, vips()[0], 20_000, 50)?, &[("m0", 100)]);
    }
    Ok(())
}

#[test]
fn module_that_resets_connections_is_ejected_and_tried_again() -> Result<()> {
    let serve = ["--reset-back-off", "10s"];
    let mut fleet = Fleet::start_with(Lab::one_arm(1, 2)?, Mode::Nat, &[100], &["--heartbeat", "1"], &serve)?;
    fleet.add("m1", 1, Mode::Nat, 100, &["--heartbeat", "1", "--broken"])?;
    fleet.wait_for(2)?;
    on(&fleet.lab.clients[0], || async {
        let mut first = eject(&fleet).await?;
        ensure!(first >= 10, "ejected for {first} s");
        let mut fresh = loop {
            let fresh = hold(40).await;
            if fleet.modules()?["m1"]["health"] == "UNHEALTHY" {
                break fresh?;
            }
            // The ejection ended before all connections were open. The next one is longer.
            first = eject(&fleet).await?;
        };
        ensure!(spread(&fresh).keys().eq(["m0"]), "{:?}", spread(&fresh));

        fleet.wait_for_health("m1", "DEGRADED")?;
        let signal = fleet.health_signal("resets", "m1")?;
        ensure!(signal.contains("half-open"), "{signal}");
        let second = eject(&fleet).await?;
        ensure!(second == 2 * first, "ejected for {first} s, then for {second} s");
        for (name, connection) in &mut fresh {
            ensure!(connection.request().await? == *name, "a connection with {name} was disturbed");
        }
        // Without new flows there is no evidence that the module has recovered.
        fleet.wait_for(2)?;
        let signal = fleet.health_signal("resets", "m1")?;
        ensure!(signal == "HEALTHY: too few new flows to judge by", "{signal}");
        Ok(())
    })
}

/// Connects until m1 is ejected, and returns for how many seconds.
async fn eject(fleet: &Fleet) -> Result<u64> {
    let deadline = Instant::now() + MAX_WAIT;
    let mut broken = 0;
    loop {
        let signal = fleet.health_signal("resets", "m1")?;
        if let Some((_, rest)) = signal.split_once("ejected for ") {
            ensure!(signal.starts_with("UNHEALTHY") && broken > 0, "{signal}, {broken} resets");
            fleet.wait_until("the ejection is applied", |_| true)?;
            let (seconds, _) = rest.split_once('s').context("a number of seconds")?;
            return Ok(seconds.parse()?);
        }
        ensure!(Instant::now() < deadline, "{signal} after {broken} resets");
        for n in 0..20 {
            let mut connection = Connection::open(vips()[n % 2]).await?;
            broken += u32::from(connection.request().await.is_err());
        }
    }
}
