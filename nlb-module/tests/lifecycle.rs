//! From registration to the last connection, against an NLB that comes, goes, forgets and refuses.

mod fake_nlb;

use std::net::SocketAddr;
use std::time::Duration;

use fake_nlb::{FakeNlb, own_host};
use nlb_module::proto::module_service_client::ModuleServiceClient;
use nlb_module::proto::*;
use nlb_module::{Connection, Error, Instance, Serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request};

const SOON: Duration = Duration::from_secs(10);

/// Sends back what it gets.
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
struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), Error>>,
}

fn run(nlb: &str, describe: impl FnOnce(Instance) -> Instance) -> Running {
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
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("the module listens")
    }
}

fn route(id: &str, port: i32) -> Route {
    Route {
        route_id: id.into(),
        protocol: Protocol::Tcp.into(),
        destination_pattern: "192.0.2.1".into(),
        destination_port: port,
        ..Route::default()
    }
}

async fn exchange(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).await.expect("the connection is open");
    let mut answer = vec![0; text.len()];
    timeout(SOON, stream.read_exact(&mut answer)).await.expect("an answer in time").expect("an answer");
    assert_eq!(answer, text);
}

async fn control(nlb: &FakeNlb) -> ModuleServiceClient<Channel> {
    nlb.until("a heartbeat", |seen| !seen.heartbeats.is_empty()).await;
    let address =
        nlb.see(|seen| seen.registrations[0].instance.as_ref().expect("an instance").address.clone());
    ModuleServiceClient::connect(format!("http://{address}")).await.expect("ModuleService listens")
}

#[tokio::test]
async fn registers_serves_and_reports() {
    let nlb = FakeNlb::start().await;
    let running = run(&nlb.url(), |instance| instance.weight(40).metadata("forward_mode", "nat"));
    nlb.until("a registration", |seen| !seen.registrations.is_empty()).await;
    let registration = nlb.see(|seen| seen.registrations[0].clone());
    let instance = registration.instance.expect("an instance");
    assert_eq!((instance.instance_id.as_str(), instance.version.as_str()), ("mirror-1", "v1"));
    assert_eq!((instance.traffic_weight, instance.module_type()), (40, ModuleType::Alb));
    assert_eq!(instance.metadata["forward_mode"], "nat");
    assert_eq!(registration.initial_routes, [route("web", 80)]);

    let mut stream = running.connect().await;
    exchange(&mut stream, b"twelve bytes").await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    socket.connect(running.address).await.expect("an address");
    socket.send(b"datagram").await.expect("sent");
    let mut answer = [0; 64];
    let length =
        timeout(SOON, socket.recv(&mut answer)).await.expect("an answer in time").expect("an answer");
    assert_eq!(&answer[..length], b"datagram");

    nlb.until("figures in a heartbeat", |seen| {
        let beat = seen.heartbeats.last().cloned().unwrap_or_default();
        let stats = beat.current_stats.unwrap_or_default();
        beat.registration_id == "registration-1"
            && beat.status == i32::from(HealthStatus::Healthy)
            && (stats.active_connections, stats.total_connections) == (1, 1)
            && (stats.successful_requests, stats.failed_requests) == (1, 0)
            && (stats.bytes_received, stats.bytes_sent) == (20, 20)
    })
    .await;
}

#[tokio::test]
async fn asks_for_a_health_check_and_passes_it() {
    let nlb = FakeNlb::start().await;
    let check = HealthCheckConfig {
        interval_seconds: 5,
        metadata: [("check".to_owned(), "module".to_owned())].into(),
        ..HealthCheckConfig::default()
    };
    let asked = check.clone();
    let _running = run(&nlb.url(), |instance| instance.health_check(check));
    nlb.until("a registration", |seen| !seen.registrations.is_empty()).await;
    assert_eq!(nlb.see(|seen| seen.registrations[0].health_config.clone()), Some(asked));
    let answer = control(&nlb).await.health_check(HealthCheckRequest::default()).await.expect("an answer");
    assert_eq!(answer.into_inner().status(), HealthStatus::Healthy);
}

#[tokio::test]
async fn registers_again_when_the_nlb_has_forgotten() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance);
    nlb.until("a heartbeat", |seen| !seen.heartbeats.is_empty()).await;
    nlb.see(|seen| seen.known.clear());
    nlb.until("a second registration", |seen| seen.registrations.len() == 2).await;
    let again = nlb.see(|seen| seen.registrations[1].instance.clone().expect("an instance"));
    assert_eq!(again.metadata["registration_id"], "registration-1", "the proof of being the same module");
    nlb.until("a heartbeat of it", |seen| {
        seen.heartbeats.last().is_some_and(|beat| beat.registration_id == "registration-2")
    })
    .await;
}

#[tokio::test]
async fn survives_an_nlb_that_restarts() {
    let first = FakeNlb::start().await;
    let address = first.address;
    let running = run(&first.url(), |instance| instance);
    first.until("a heartbeat", |seen| !seen.heartbeats.is_empty()).await;
    drop(first);
    let mut stream = running.connect().await;
    exchange(&mut stream, b"without any NLB").await;
    let second = FakeNlb::start_at(address).await;
    second.until("a registration at the new NLB", |seen| !seen.registrations.is_empty()).await;
    exchange(&mut stream, b"as if nothing had happened").await;
}

#[tokio::test]
async fn waits_for_an_nlb_that_is_not_there_yet() {
    let address = SocketAddr::from((own_host(), 50051));
    let running = run(&format!("http://{address}"), |instance| instance);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!running.ended.is_finished());
    let nlb = FakeNlb::start_at(address).await;
    nlb.until("a registration", |seen| !seen.registrations.is_empty()).await;
}

#[tokio::test]
async fn ends_when_the_nlb_refuses_it_for_good() {
    let nlb = FakeNlb::start().await;
    nlb.see(|seen| seen.refuses = Some((StatusCode::InvalidArgument, "no such VIP")));
    let running = run(&nlb.url(), |instance| instance);
    let ended = timeout(SOON, running.ended).await.expect("it ends").expect("no panic");
    assert!(matches!(&ended, Err(Error::Refused(why)) if why.contains("no such VIP")), "{ended:?}");
}

#[tokio::test]
async fn tries_again_while_its_id_is_taken() {
    let nlb = FakeNlb::start().await;
    nlb.see(|seen| seen.refuses = Some((StatusCode::AlreadyExists, "taken")));
    let running = run(&nlb.url(), |instance| instance);
    nlb.until("a second try", |seen| seen.registrations.len() > 1).await;
    assert!(!running.ended.is_finished());
    nlb.see(|seen| seen.refuses = None);
    nlb.until("a heartbeat", |seen| !seen.heartbeats.is_empty()).await;
}

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

    // What the NLB had sent on its way before it knew still arrives.
    let mut late = TcpStream::connect(address).await.expect("listens until the NLB has drained");
    exchange(&mut late, b"late").await;
    drop(late);
    nlb.until("a heartbeat that says so", |seen| {
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

#[tokio::test]
async fn answers_for_itself_and_nobody_else() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance);
    let mut module = control(&nlb).await;
    let status = module.get_status(GetStatusRequest::default()).await.expect("an answer").into_inner();
    assert_eq!(status.instance.expect("an instance").instance_id, "mirror-1");
    assert_eq!(status.status, i32::from(HealthStatus::Healthy));
    let other = GetStatusRequest { instance_id: "other".into() };
    assert_eq!(module.get_status(other).await.expect_err("not this one").code(), Code::NotFound);

    let asked = CanHandleRequest { route: Some(route("any", 80)), ..CanHandleRequest::default() };
    assert!(module.can_handle(asked).await.expect("an answer").into_inner().can_handle);
    let asked = CanHandleRequest { route: Some(route("any", 81)), ..CanHandleRequest::default() };
    assert!(!module.can_handle(asked.clone()).await.expect("an answer").into_inner().can_handle);
    let context = [("owner".to_owned(), "operator".to_owned())].into();
    let asked = CanHandleRequest { context, ..asked };
    assert!(module.can_handle(asked).await.expect("an answer").into_inner().can_handle);

    // Without routes of its own it serves what somebody else has configured.
    let replace_all = UpdateRoutesRequest { replace_all: true, ..UpdateRoutesRequest::default() };
    assert!(module.update_routes(passed_on(replace_all)).await.expect("an answer").into_inner().success);
    for (owner, able) in [("module", true), ("learned", false)] {
        let context = [("owner".to_owned(), owner.to_owned())].into();
        let asked = CanHandleRequest { route: Some(route("any", 81)), context };
        let answer = module.can_handle(asked).await.expect("an answer").into_inner();
        assert_eq!(answer.can_handle, able, "{owner}");
    }

    let refused = module.scale(ScaleRequest::default()).await.expect_err("one process does not scale");
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("one process"), "{}", refused.message());
}

#[tokio::test]
async fn changes_routes_and_weight_only_as_the_nlb_does() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance);
    let mut module = control(&nlb).await;
    let add = UpdateRoutesRequest { routes: vec![route("more", 81)], ..UpdateRoutesRequest::default() };
    let added = module.update_routes(add).await.expect("an answer").into_inner();
    assert!(added.success, "{added:?}");
    let told = nlb.see(|seen| seen.routings[0].clone());
    assert_eq!(told.routes, [route("more", 81), route("web", 80)]);
    assert!(told.replace_all);
    assert_eq!(
        (told.source_instance_id.as_str(), told.registration_id.as_str()),
        ("mirror-1", "registration-1")
    );

    nlb.see(|seen| seen.refuses = Some((StatusCode::InvalidArgument, "no")));
    let delete = DeleteRouteRequest { route_id: "web".into(), ..DeleteRouteRequest::default() };
    let refused = module.delete_route(delete).await.expect("an answer").into_inner();
    assert_eq!((refused.success, refused.error.expect("why").message.as_str()), (false, "no"));
    let weight = SetTrafficWeightRequest { weight: 0, ..SetTrafficWeightRequest::default() };
    assert!(!module.set_traffic_weight(weight.clone()).await.expect("an answer").into_inner().success);
    let routes = module.get_routes(GetRoutesRequest::default()).await.expect("an answer").into_inner();
    assert_eq!(routes.routes, [route("more", 81), route("web", 80)]);
    assert_eq!(active_weight(&mut module).await, 100);

    nlb.see(|seen| seen.refuses = None);
    assert!(module.set_traffic_weight(weight.clone()).await.expect("an answer").into_inner().success);
    assert_eq!(active_weight(&mut module).await, 0);
    let told = nlb.see(|seen| seen.weights.len());
    assert!(module.set_traffic_weight(weight).await.expect("an answer").into_inner().success);
    assert_eq!(nlb.see(|seen| seen.weights.len()), told, "it knows that already");
}

#[tokio::test]
async fn does_not_call_back_about_what_the_nlb_passes_on() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance);
    let mut module = control(&nlb).await;
    let weight = SetTrafficWeightRequest { instance_id: "mirror-1".into(), weight: 7, ..Default::default() };
    assert!(module.set_traffic_weight(passed_on(weight)).await.expect("an answer").into_inner().success);
    assert_eq!(active_weight(&mut module).await, 7);

    let add = UpdateRoutesRequest { routes: vec![route("more", 81)], ..Default::default() };
    let added = module.update_routes(passed_on(add)).await.expect("an answer").into_inner();
    assert_eq!((added.success, added.routes_updated), (true, 1), "{added:?}");
    let delete = DeleteRouteRequest { route_id: "web".into(), ..Default::default() };
    assert!(module.delete_route(passed_on(delete)).await.expect("an answer").into_inner().success);
    let routes = module.get_routes(GetRoutesRequest::default()).await.expect("an answer").into_inner();
    assert_eq!(routes.routes, [route("more", 81)]);

    assert_eq!(nlb.see(|seen| (seen.weights.len(), seen.routings.len())), (0, 0), "calls back");
}

#[tokio::test]
async fn the_weight_of_its_version_is_not_its_own() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance.weight(40));
    let mut module = control(&nlb).await;
    let of_version = SetTrafficWeightRequest { version: "v1".into(), weight: 5, ..Default::default() };
    for call in [passed_on(of_version.clone()), Request::new(of_version)] {
        let answer = module.set_traffic_weight(call).await.expect("an answer").into_inner();
        assert!(answer.success, "{answer:?}");
        assert_eq!(active_weight(&mut module).await, 40);
    }
    let of_another = SetTrafficWeightRequest { version: "v2".into(), weight: 5, ..Default::default() };
    assert_eq!(
        module.set_traffic_weight(of_another).await.expect_err("refused").code(),
        Code::InvalidArgument
    );

    let of_instance =
        SetTrafficWeightRequest { instance_id: "mirror-1".into(), version: "v1".into(), weight: 5 };
    assert!(module.set_traffic_weight(of_instance).await.expect("an answer").into_inner().success);
    assert_eq!(active_weight(&mut module).await, 5);
    assert_eq!(nlb.see(|seen| seen.weights.len()), 1, "only what is about the instance");
}

#[tokio::test]
async fn versions_are_promoted_and_rolled_back_by_the_nlb() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance);
    let mut module = control(&nlb).await;
    let promote = PromoteVersionRequest { promotion_rate: 10, ..Default::default() };
    let back = RollbackRequest { target_version: "v0".into(), ..Default::default() };
    let answer = module.promote_version(passed_on(promote.clone())).await.expect("an answer").into_inner();
    assert_eq!((answer.success, answer.promoted_version.as_str()), (true, "v1"));
    let answer = module.rollback(passed_on(back.clone())).await.expect("an answer").into_inner();
    assert_eq!((answer.success, answer.current_version.as_str()), (true, "v0"));
    assert_eq!(nlb.see(|seen| (seen.promotions.len(), seen.rollbacks.len())), (0, 0), "calls back");

    assert!(module.promote_version(promote).await.expect("an answer").into_inner().success);
    let told = nlb.see(|seen| seen.promotions[0].clone());
    assert_eq!(
        (told.instance_id.as_str(), told.version.as_str(), told.promotion_rate),
        ("mirror-1", "v1", 10)
    );
    let answer = module.rollback(back.clone()).await.expect("an answer").into_inner();
    assert_eq!((answer.success, answer.current_version.as_str()), (true, "v0"));
    assert_eq!(nlb.see(|seen| seen.rollbacks[0].target_version.clone()), "v0");

    let other = PromoteVersionRequest { version: "v2".into(), immediate: true, ..Default::default() };
    let refused = module.promote_version(other).await.expect_err("another version");
    assert_eq!(refused.code(), Code::InvalidArgument);
    nlb.see(|seen| seen.refuses = Some((StatusCode::NotFound, "no former split")));
    let answer = module.rollback(back).await.expect("an answer").into_inner();
    assert_eq!((answer.success, answer.error.expect("why").code()), (false, StatusCode::NotFound));
}

#[tokio::test]
async fn has_no_configuration_and_says_so() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance);
    let mut module = control(&nlb).await;
    assert!(module.reload(ReloadRequest::default()).await.expect("an answer").into_inner().success);
    let negative = ReloadRequest { timeout_seconds: -1, ..Default::default() };
    assert_eq!(module.reload(negative).await.expect_err("refused").code(), Code::InvalidArgument);
    let configs = module.get_config(GetConfigRequest::default()).await.expect("an answer").into_inner();
    assert!(configs.configs.is_empty());
    let config = Some(ConfigUpdate { config_type: "cache".into(), ..Default::default() });
    let update = UpdateConfigRequest { config, ..Default::default() };
    let answer = module.update_config(update).await.expect("an answer").into_inner();
    assert_eq!((answer.success, answer.error.expect("why").code()), (false, StatusCode::NotFound));
    let missing = module.update_config(UpdateConfigRequest::default()).await.expect_err("refused");
    assert_eq!(missing.code(), Code::InvalidArgument);
}

/// A call as the NLB makes it.
fn passed_on<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("nlb-passed-on", "1".parse().expect("ASCII"));
    request
}

async fn active_weight(module: &mut ModuleServiceClient<Channel>) -> i32 {
    let version = module.get_active_version(GetActiveVersionRequest::default()).await.expect("an answer");
    version.into_inner().version_weights["v1"]
}

#[tokio::test]
async fn takes_no_flow_before_its_weight_of_zero_is_known() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance.weight(0));
    nlb.until("a heartbeat", |seen| !seen.heartbeats.is_empty()).await;
    nlb.see(|seen| {
        let registered = seen.registrations[0].instance.as_ref().expect("an instance");
        assert_eq!(registered.health_status(), HealthStatus::Starting);
        assert_eq!((seen.weights[0].instance_id.as_str(), seen.weights[0].weight), ("mirror-1", 0));
        assert_eq!(seen.heartbeats[0].status(), HealthStatus::Healthy);
    });
}

#[tokio::test]
async fn streams_the_metrics_that_are_asked_for() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance);
    let mut module = control(&nlb).await;
    let request = StreamMetricsRequest {
        metric_names: vec!["module_memory_usage_mebibytes".into()],
        ..StreamMetricsRequest::default()
    };
    let mut stream = module.stream_metrics(request).await.expect("a stream").into_inner();
    for _ in 0..2 {
        let sample =
            timeout(SOON, stream.message()).await.expect("in time").expect("no error").expect("a sample");
        let metrics = sample.metrics.expect("metrics").metrics;
        assert_eq!(metrics.len(), 1);
        assert!(metrics[0].value > 0.0);
    }
    let negative = StreamMetricsRequest { interval_seconds: -1, ..StreamMetricsRequest::default() };
    assert_eq!(module.stream_metrics(negative).await.expect_err("refused").code(), Code::InvalidArgument);
}
