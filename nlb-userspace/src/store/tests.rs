//! What is written is read unchanged, and a file that cannot be used is left unchanged.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::model::{
    Deployment, Destination, L4, LimitTarget, LimitUnit, ModuleType, Protocol, RateLimit, Route, Targets,
    Texts,
};
use crate::policy::promotion::Stage;
use crate::policy::scaling::GroupKey;
use crate::policy::scaling::policy::{Policy, TargetLoad};
use crate::registry::{GroupPolicy, InstanceOverrides, PersistedRollout, Split};

/// Removed at the end of the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Directory(std::env::temp_dir().join(format!("nlb-store-{}-{number}", std::process::id())))
    }

    fn holding(content: &[u8]) -> Self {
        let directory = Directory::new();
        fs::create_dir_all(&directory.0).unwrap();
        fs::write(directory.file(), content).unwrap();
        directory
    }

    fn file(&self) -> PathBuf {
        self.0.join(FILE)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // The directory does not exist if nothing was written.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn name() -> impl Strategy<Value = String> {
    "[ -~äß☂]{0,12}"
}

fn names() -> impl Strategy<Value = Texts> {
    btree_map(name(), name(), 0..3).prop_map(|map| map.into_iter().collect())
}

fn time() -> impl Strategy<Value = SystemTime> {
    (0..1u64 << 40, 0..1_000_000_000u32).prop_map(|(s, n)| SystemTime::UNIX_EPOCH + Duration::new(s, n))
}

fn net() -> impl Strategy<Value = ipnet::IpNet> {
    prop_oneof![Just("192.0.2.0/25"), Just("2001:db8::/33"), Just("198.51.100.7/32"), Just("::/0")]
        .prop_map(|net| net.parse().unwrap())
}

fn address() -> impl Strategy<Value = std::net::IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(Into::into), any::<[u8; 16]>().prop_map(Into::into)]
}

fn module_type() -> impl Strategy<Value = ModuleType> {
    use ModuleType::*;
    prop::sample::select(vec![Alb, Dblb, Ailb, Rtmp, Nlb])
}

fn protocol() -> impl Strategy<Value = Protocol> {
    use Protocol::*;
    prop::sample::select(vec![
        Tcp, Udp, Http, Https, Http2, Http3, Grpc, WebSocket, Mysql, Postgres, Mongodb, Redis, Rtmp, Rtmps,
        Hls, Dash,
    ])
}

fn route() -> impl Strategy<Value = Arc<Route>> {
    let destination = prop_oneof![
        Just(Destination::EveryVip),
        address().prop_map(Destination::Address),
        net().prop_map(Destination::Prefix)
    ];
    let targets = prop_oneof![
        Just(Targets::Implied),
        module_type().prop_map(Targets::Type),
        btree_set(name(), 0..3).prop_map(|ids| Targets::Instances(ids.into()))
    ];
    let ports = (option::of(any::<u16>()), option::of(any::<u16>()));
    let matched = (protocol(), option::of(net()), destination, ports, any::<i32>());
    (matched, targets, names(), name(), names()).prop_map(
        |(
            (protocol, source, destination, (port, listen_port), priority),
            targets,
            headers,
            path_pattern,
            metadata,
        )| {
            Arc::new(Route {
                protocol,
                source,
                destination,
                port,
                priority,
                listen_port,
                targets,
                headers,
                path_pattern,
                metadata,
            })
        },
    )
}

fn rate_limit() -> impl Strategy<Value = Arc<RateLimit>> {
    let l4 = prop::sample::select(vec![L4::Tcp, L4::Udp]);
    let target = prop_oneof![
        Just(LimitTarget::All),
        net().prop_map(LimitTarget::Source),
        name().prop_map(LimitTarget::Route),
        (address(), any::<u16>(), l4).prop_map(|(vip, port, l4)| LimitTarget::Service(vip, port, l4)),
    ];
    let unit = prop::sample::select(vec![LimitUnit::NewFlows, LimitUnit::Packets, LimitUnit::Bytes]);
    (target, unit, any::<[u64; 4]>(), any::<bool>(), names()).prop_map(
        |(target, unit, [per_second, per_minute, per_hour, burst], enabled, metadata)| {
            Arc::new(RateLimit { target, unit, per_second, per_minute, per_hour, burst, enabled, metadata })
        },
    )
}

fn weights() -> impl Strategy<Value = BTreeMap<String, u32>> {
    btree_map(name(), 0..=10_000u32, 0..4)
}

fn stage() -> impl Strategy<Value = Stage> {
    (name(), 0..=100u32, 1..=100u32, time(), weights()).prop_map(
        |(version, percent, per_step, started_at, others)| Stage {
            version,
            percent,
            per_step,
            started_at,
            others,
        },
    )
}

fn group_policy() -> impl Strategy<Value = GroupPolicy> {
    let targets = (option::of(1..=100u32), option::of(1..=100u32), option::of(1..u32::MAX));
    (module_type(), name(), any::<bool>(), 1..9u32, 0..9u32, targets, 0..86_400u64).prop_map(
        |(
            module_type,
            version,
            automatic,
            min,
            more,
            (cpu_percent, memory_percent, connections),
            cooldown,
        )| {
            let targets = TargetLoad { cpu_percent, memory_percent, connections };
            let cooldown = Duration::from_secs(cooldown);
            let policy = Policy { automatic, min, max: min + more, targets, cooldown, ..Policy::default() };
            GroupPolicy { group: GroupKey { module_type, version }, policy }
        },
    )
}

fn rollout() -> impl Strategy<Value = PersistedRollout> {
    let split = (weights(), option::of(time())).prop_map(|(weights, since)| Split { weights, since });
    (
        weights(),
        option::of(time()),
        vec(split, 0..4),
        option::of(stage()),
        (option::of(name()), any::<bool>()),
    )
        .prop_map(
            |(version_weights, split_since, former_splits, promotion, (last_promotion, requested))| {
                PersistedRollout {
                    version_weights,
                    split_since,
                    former_splits,
                    promotion,
                    last_promotion,
                    requested,
                }
            },
        )
}

fn persisted() -> impl Strategy<Value = PersistedState> {
    let overrides = (option::of(0..=10_000u32), any::<bool>())
        .prop_map(|(weight, maintenance)| InstanceOverrides { weight, maintenance });
    let routes = (btree_map(name(), route(), 0..4), btree_map(name(), time(), 0..4));
    let limits = btree_map(name(), rate_limit(), 0..4);
    let rollouts = (btree_map(name().prop_map(Deployment::named), rollout(), 0..3), rollout());
    let modules = (btree_map(name(), overrides, 0..4), vec(group_policy(), 0..3));
    (routes, limits, rollouts, modules).prop_map(|(routes, limits, rollouts, (overrides, scaling))| {
        PersistedState {
            operator_routes: routes.0.into_iter().collect(),
            operator_routes_since: routes.1.into_iter().collect(),
            rate_limits: limits.into_iter().collect(),
            rollouts: rollouts.0,
            fleet_rollout: rollouts.1,
            overrides: overrides.into_iter().collect(),
            scaling,
        }
    })
}

/// A small state that is not empty.
fn some() -> Arc<PersistedState> {
    let overrides = InstanceOverrides { weight: Some(7), maintenance: true };
    Arc::new(PersistedState {
        overrides: [("alb-1".to_owned(), overrides)].into_iter().collect(),
        rollouts: [(Deployment::named("ALB"), PersistedRollout::default())].into(),
        ..PersistedState::default()
    })
}

/// A file as an earlier release wrote it.
fn format_1() -> serde_json::Value {
    let times = serde_json::to_value(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)).unwrap();
    serde_json::json!({
        "version": 1,
        "state": {
            "operator_routes": {},
            "operator_routes_since": {},
            "rate_limits": {},
            "version_weights": { "v1": 70, "v2": 30 },
            "split_since": times,
            "former_splits": [{ "weights": {}, "since": null }],
            "promotion": {
                "version": "v2", "percent": 30, "per_step": 10, "started_at": times, "others": { "v1": 100 }
            },
            "last_promotion": null,
            "steering": { "alb-1": { "weight": 7, "maintenance": false } },
            "scaling": []
        }
    })
}

fn refused(content: &[u8]) -> String {
    let directory = Directory::holding(content);
    let error = format!("{:#}", read(&directory.0).expect_err("the file cannot be used"));
    assert!(error.contains(&directory.file().display().to_string()), "{error}");
    assert!(error.contains("--ignore-state") && error.contains("move it away"), "{error}");
    assert_eq!(fs::read(directory.file()).unwrap(), content, "the file is unchanged");
    error
}

proptest! {
    #[test]
    fn written_state_is_read_back(persisted in persisted()) {
        let directory = Directory::new();
        let persisted = Arc::new(persisted);
        write(&directory.0, &persisted).unwrap();
        prop_assert_eq!(read(&directory.0).unwrap(), PersistedState::clone(&persisted));
    }
}

#[test]
fn no_file_is_an_empty_state() {
    assert_eq!(read(&Directory::new().0).unwrap(), PersistedState::default());
}

#[test]
fn every_truncation_is_refused() {
    let directory = Directory::new();
    write(&directory.0, &some()).unwrap();
    let whole = fs::read(directory.file()).unwrap();
    for length in 0..whole.len() {
        assert!(refused(&whole[..length]).contains("damaged"));
    }
}

#[test]
fn unusable_state_is_refused_with_the_reason() {
    let sound = serde_json::to_value(Written { version: VERSION, state: &some() }).unwrap();
    let spoilt = |path: &str, value: serde_json::Value| {
        let mut spoilt = sound.clone();
        let (parent, key) = path.rsplit_once('/').unwrap();
        let parent = if parent.is_empty() { &mut spoilt } else { spoilt.pointer_mut(parent).unwrap() };
        parent[key] = value;
        spoilt.to_string()
    };
    let started = serde_json::to_value(SystemTime::UNIX_EPOCH).unwrap();
    let stage = |percent, per_step| {
        serde_json::json!({
            "version": "v2", "percent": percent, "per_step": per_step, "started_at": started, "others": {}
        })
    };
    for (content, reason) in [
        ("not JSON".to_owned(), "damaged"),
        ("{}".to_owned(), "missing field `version`"),
        (spoilt("/version", 3.into()), "newer version of the NLB wrote it (format 3; this one reads 2)"),
        // A later format may look completely different.
        ("{\"version\": 4, \"everything\": []}".to_owned(), "newer version"),
        (spoilt("/version", 0.into()), "damaged"),
        (spoilt("/state/colour", "red".into()), "unknown field `colour`"),
        (spoilt("/state/steering/alb-1/weight", 10_001.into()), "\"alb-1\" has the weight 10001"),
        (spoilt("/state/fleet_rollout/version_weights", serde_json::json!({ "v1": -1 })), "damaged"),
        (
            spoilt("/state/rollouts/ALB/version_weights", serde_json::json!({ "v1": 10_001 })),
            "\"v1\" has the weight",
        ),
        (spoilt("/state/fleet_rollout/promotion", stage(101, 5)), "promotion of \"v2\""),
        (spoilt("/state/rollouts/ALB/promotion", stage(5, 0)), "promotion of \"v2\""),
    ] {
        let error = refused(content.as_bytes());
        assert!(error.contains(reason), "{content}: {error}");
    }
}

#[test]
fn the_split_of_format_1_is_that_of_the_fleet() {
    let directory = Directory::holding(format_1().to_string().as_bytes());
    let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    let stage = Stage {
        version: "v2".into(),
        percent: 30,
        per_step: 10,
        started_at: since,
        others: [("v1".to_owned(), 100)].into(),
    };
    let read_back = read(&directory.0).unwrap();
    assert_eq!(
        read_back.fleet_rollout,
        PersistedRollout {
            version_weights: [("v1".to_owned(), 70), ("v2".to_owned(), 30)].into(),
            split_since: Some(since),
            former_splits: vec![Split::default()],
            promotion: Some(stage),
            last_promotion: None,
            requested: false,
        }
    );
    assert_eq!((read_back.rollouts.len(), read_back.overrides["alb-1"].weight), (0, Some(7)));
}

#[test]
fn a_file_of_format_1_that_cannot_be_used_is_refused() {
    for (path, value, reason) in [
        ("version_weights", serde_json::json!({ "v1": 10_001 }), "\"v1\" has the weight 10001"),
        ("version_weights", serde_json::json!([]), "damaged"),
        ("colour", "red".into(), "unknown field `colour`"),
        ("rollouts", serde_json::json!({}), "damaged"),
        ("promotion", serde_json::json!({ "version": "v2" }), "missing field `percent`"),
    ] {
        let mut file = format_1();
        file["state"][path] = value;
        let error = refused(file.to_string().as_bytes());
        assert!(error.contains(reason), "{path}: {error}");
    }
    let mut file = format_1();
    file["state"].as_object_mut().unwrap().remove("former_splits");
    assert!(refused(file.to_string().as_bytes()).contains("missing field `former_splits`"));
    assert!(refused(b"{\"version\": 1}").contains("missing field `state`"));
}

#[test]
fn a_policy_that_cannot_be_applied_is_refused() {
    for policy in [
        Policy { min: 0, ..Policy::default() },
        Policy { min: 5, max: 4, ..Policy::default() },
        Policy { scale_up: Some(10), scale_down: Some(10), ..Policy::default() },
        Policy { targets: TargetLoad { connections: Some(0), ..Default::default() }, ..Policy::default() },
    ] {
        let group = GroupKey { module_type: ModuleType::Alb, version: "v1".into() };
        let persisted =
            PersistedState { scaling: vec![GroupPolicy { group, policy }], ..PersistedState::default() };
        refused(&serde_json::to_vec(&Written { version: VERSION, state: &persisted }).unwrap());
    }
}

#[test]
fn files_moved_aside_do_not_replace_each_other() {
    let directory = Directory::holding(b"first");
    let first = move_aside(&directory.0).unwrap().expect("there was a file");
    assert_eq!(move_aside(&directory.0).unwrap(), None);
    fs::write(directory.file(), b"second").unwrap();
    let second = move_aside(&directory.0).unwrap().expect("there was a file");
    assert_eq!((fs::read(first).unwrap(), fs::read(second).unwrap()), (b"first".into(), b"second".into()));
    assert_eq!(read(&directory.0).unwrap(), PersistedState::default());
}

#[test]
fn a_directory_has_one_daemon_at_a_time() {
    let directory = Directory::new();
    let claimed = claim(&directory.0).unwrap();
    assert!(claimed.is_some());
    let refused = claim(&directory.0).unwrap_err().to_string();
    assert!(refused.contains("--state-dir") && refused.contains(&directory.0.display().to_string()));
    drop(claimed);
    assert!(claim(&directory.0).unwrap().is_some());
    // As on a read-only disk: settings cannot be persisted, and traffic can be served.
    let file = Directory::holding(b"");
    assert!(claim(&file.file()).unwrap().is_none());
}

/// The task, and its two ends.
fn keeping(directory: &Directory) -> (watch::Sender<PersistedRevision>, watch::Receiver<PersistStatus>) {
    let (changes, persisted) = watch::channel(PersistedRevision::default());
    let (publish, stored) = watch::channel(PersistStatus::default());
    let task = keep(directory.0.clone(), persisted, publish);
    tokio::spawn(async move { match task.await {} });
    (changes, stored)
}

#[tokio::test]
async fn changes_that_come_together_are_written_together() {
    let directory = Directory::new();
    let (changes, mut stored) = keeping(&directory);
    for number in 1..100 {
        changes.send_replace(PersistedRevision { number, state: some() });
    }
    changes.send_replace(PersistedRevision { number: 100, state: Arc::default() });
    let mut writes = 0;
    while stored.borrow_and_update().number < 100 {
        stored.changed().await.unwrap();
        writes += 1;
    }
    // The task has not run before the first wait.
    assert_eq!((writes, read(&directory.0).unwrap()), (1, PersistedState::default()));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_is_reported_and_retried() {
    let directory = Directory::new();
    fs::write(&directory.0, "a file where the directory should be").unwrap();
    let (changes, mut stored) = keeping(&directory);
    changes.send_replace(PersistedRevision { number: 1, state: some() });
    let failed = stored.wait_for(|stored| stored.number == 1).await.unwrap().clone();
    assert!(failed.error.expect("the file cannot be written").contains("--state-dir"));
    fs::remove_file(&directory.0).unwrap();
    stored.wait_for(|stored| stored.error.is_none()).await.unwrap();
    assert_eq!(read(&directory.0).unwrap(), PersistedState::clone(&some()));
}
