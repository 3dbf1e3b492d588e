//! Takes a sample every second, and adds it to the history.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::catalogue::Row;
use super::totals::Totals;
use super::{History, Metrics, Reported, Sample, Subject, View, catalogue};
use crate::model::clock::Now;
use crate::model::traffic::{Counts, Traffic};
use crate::model::{Backend, Health, ModuleType};
use crate::reconcile::Applied;
use crate::registry::{Registry, State};

/// The sources of the values.
pub struct Sources {
    pub registry: Arc<Registry>,
    pub applied: watch::Receiver<Arc<Applied>>,
    pub traffic: watch::Receiver<Arc<Traffic>>,
    pub started_at: SystemTime,
}

pub struct Recorder {
    sources: Sources,
    totals: Totals,
    began: Instant,
    views: watch::Sender<View>,
    reported: Arc<Reported>,
}

impl Recorder {
    /// Takes the first sample at once. `budget` is the size of the history in bytes.
    pub fn new(sources: Sources, budget: usize) -> (Recorder, Metrics) {
        let (now, mut totals, mut history) = (Now::read(), Totals::default(), History::new(budget));
        let latest = Arc::new(sources.sample(now, 0, &mut totals, &history));
        history.push(&latest);
        let view = View { latest, at: now.at, history: Arc::new(history), activity: Arc::default() };
        let (views, read_views) = watch::channel(view);
        let reported = Arc::new(Reported::default());
        let metrics =
            Metrics { views: read_views, reported: reported.clone(), closed: watch::Sender::new(false) };
        (Recorder { sources, totals, began: now.at, views, reported }, metrics)
    }

    /// Records every second. Runs until it is dropped.
    pub async fn run(mut self) -> Infallible {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
        // The first tick is immediate, and its sample exists already.
        seconds.tick().await;
        loop {
            seconds.tick().await;
            // With many modules this takes some ten milliseconds, during which other tasks have to run.
            let recorded = tokio::task::spawn_blocking(move || {
                self.record(Now::read());
                self
            });
            self = recorded.await.expect("recording does not panic");
        }
    }

    fn record(&mut self, now: Now) {
        // The nearest whole second: ticks are a little late.
        let second = (now.at.saturating_duration_since(self.began) + Duration::from_millis(500)).as_secs();
        let history = self.views.borrow().history.clone();
        let sample = Arc::new(self.sources.sample(now, second, &mut self.totals, &history));
        drop(history);
        let traffic = self.sources.traffic.borrow().clone();
        self.views.send_modify(|view| {
            // Copied only if a reader still holds the view before, and then only the newest chunk.
            Arc::make_mut(&mut view.history).push(&sample);
            Arc::make_mut(&mut view.activity).look(&traffic, now.wall);
            view.latest = sample;
            view.at = now.at;
        });
        let registered = self.sources.registry.snapshot();
        self.reported.retain(|instance_id| registered.modules.contains_key(instance_id));
    }
}

impl Sources {
    fn sample(&self, now: Now, second: u64, totals: &mut Totals, history: &History) -> Sample {
        let state = self.registry.snapshot();
        let applied = self.applied.borrow().clone();
        let traffic = self.traffic.borrow().clone();
        let versions = state.modules.iter().map(|(id, record)| {
            let module = &record.registration.module;
            (id.as_str(), (module.deployment.clone(), module.version.clone()))
        });
        let versions = versions.collect();
        totals.add(&traffic, &versions);

        let started = self.started_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let nlb = Row::from_slice(&[
            traffic.packets_seen,
            traffic.unrecorded,
            traffic.full,
            traffic.unasked,
            state.learned_routes.len() as u64,
            self.registry.desired().borrow().revision,
            applied.revision,
            applied.failures,
            started.as_secs(),
            history.seconds() as u64,
            history.bytes() as u64,
        ]);
        // Rows are nearly in order, so sorting tens of thousands of them is cheap.
        let mut rows: Vec<(Subject, Row)> =
            vec![(Subject::Nlb, nlb), (Subject::All, catalogue::counts(&totals.all))];
        rows.extend(traffic.exits.iter().map(|((verdict, reason), packets)| {
            (Subject::Exit { verdict, reason }, Row::from_slice(&[*packets]))
        }));
        rows.extend(traffic.lost_redirects.iter().map(|((interface, error), packets)| {
            let subject = Subject::LostRedirects { interface: interface.clone(), error: error.clone() };
            (subject, Row::from_slice(&[*packets]))
        }));
        rows.extend(traffic.service_flows.iter().map(|((vip, port, l4), flows)| {
            (Subject::Service { vip: *vip, port: *port, l4: *l4 }, Row::from_slice(&[*flows]))
        }));
        rows.extend(census(&state));
        rows.extend(totals.instances.iter().map(|(instance_id, counts)| {
            (Subject::Instance { instance_id: instance_id.clone() }, catalogue::counts(counts))
        }));
        rows.extend(state.modules.iter().map(|(instance_id, record)| {
            (Subject::Health { instance_id: instance_id.clone() }, catalogue::health(record.signals()))
        }));
        rows.extend(state.modules.iter().filter_map(|(instance_id, record)| {
            let row = catalogue::reported(record.report.as_ref()?);
            Some((Subject::Report { instance_id: instance_id.clone() }, row))
        }));
        let backends = backends(&traffic);
        rows.extend(backends.into_iter().map(|(subject, counts)| (subject, catalogue::counts(&counts))));
        rows.extend(traffic.limits.iter().map(|(limit_id, counts)| {
            let row = Row::from_slice(&[counts.passed, counts.refused]);
            (Subject::RateLimit { limit_id: limit_id.clone() }, row)
        }));
        rows.extend(totals.versions.iter().map(|((deployment, version), counts)| {
            let subject = Subject::Version { deployment: deployment.clone(), version: version.clone() };
            (subject, catalogue::counts(counts))
        }));
        Sample { at: now.wall, second, rows: rows.into_iter().collect() }
    }
}

/// Counts by the labels of backends. An instance's own route and an operator's route may have the same id.
fn backends(traffic: &Traffic) -> Vec<(Subject, Counts)> {
    let subject = |backend: &Backend| Subject::Backend {
        instance_id: backend.instance_id.clone(),
        route_id: backend.route.as_ref().map_or_else(String::new, |route| route.id.clone()),
        addr: SocketAddr::new(backend.addr, backend.port),
    };
    let mut all: Vec<(Subject, Counts)> =
        traffic.backends.iter().map(|(backend, counts)| (subject(backend), *counts)).collect();
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    all.dedup_by(|(next, counts), (last, sum)| {
        let same = next == last;
        if same {
            *sum = [*sum, *counts].into_iter().sum();
        }
        same
    });
    all
}

/// Modules by type and health. Zeros are included: an alert on "no healthy module" needs a series.
fn census(state: &State) -> BTreeMap<Subject, Row> {
    use Health::*;
    use ModuleType::*;
    let types = [Alb, Dblb, Ailb, Rtmp, ModuleType::Nlb];
    let kinds = types.iter().flat_map(|module_type| {
        [Healthy, Degraded, Starting, Unhealthy, Stopping].map(|health| (*module_type, health))
    });
    let mut census: BTreeMap<(ModuleType, Health), u64> = kinds.map(|kind| (kind, 0)).collect();
    for record in state.modules.values() {
        *census.entry((record.registration.module.module_type, record.health())).or_default() += 1;
    }
    let row = |((module_type, health), count)| {
        (Subject::Modules { module_type, health }, Row::from_slice(&[count]))
    };
    census.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ForwardMode, RouteKey, Snat};
    use crate::registry::fixtures::{Fleet, registry};

    fn recorder() -> (Recorder, Metrics, Arc<Registry>) {
        let registry = Arc::new(registry());
        let sources = Sources {
            registry: registry.clone(),
            applied: watch::channel(Arc::default()).1,
            traffic: watch::channel(Arc::default()).1,
            started_at: SystemTime::UNIX_EPOCH + Duration::from_secs(77),
        };
        let (recorder, metrics) = Recorder::new(sources, 1 << 20);
        (recorder, metrics, registry)
    }

    fn value(metrics: &Metrics, subject: &Subject, name: &str) -> u64 {
        let view = metrics.view();
        let column =
            subject.family().iter().position(|metric| metric.name == name).expect("in the catalogue");
        view.latest.rows[subject][column]
    }

    #[tokio::test(start_paused = true)]
    async fn a_sample_is_taken_at_once_and_every_second() {
        let (recorder, metrics, registry) = recorder();
        let healthy = Subject::Modules { module_type: ModuleType::Alb, health: Health::Healthy };
        assert_eq!(value(&metrics, &healthy, "nlb_modules"), 0);
        assert_eq!(value(&metrics, &Subject::Nlb, "nlb_start_time_seconds"), 77);
        let recording = tokio::spawn(recorder.run());
        registry.add("alb-1");
        let mut views = metrics.views();
        for second in 1..=5 {
            views.changed().await.unwrap();
            assert_eq!(views.borrow_and_update().latest.second, second);
        }
        assert_eq!(value(&metrics, &healthy, "nlb_modules"), 1);
        assert_eq!(value(&metrics, &Subject::Nlb, "nlb_desired_revision_number"), 1);
        assert_eq!(value(&metrics, &Subject::Nlb, "nlb_history_seconds"), 5, "the samples before");
        assert_eq!(metrics.view().history.seconds(), 6);
        let version = Subject::Version { deployment: ModuleType::Alb.into(), version: "v1".into() };
        assert!(metrics.view().latest.rows.contains_key(&version));
        recording.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn every_row_is_as_long_as_its_family() {
        let (_, metrics, _) = recorder();
        for (subject, row) in &metrics.view().latest.rows {
            assert_eq!(row.len(), subject.family().len(), "{subject:?}");
        }
    }

    #[test]
    fn routes_of_one_name_count_together() {
        let backend = |operators, port| {
            let route = Some(RouteKey { id: "web".into(), operators });
            let (addr, mode) = ("10.0.0.1".parse().unwrap(), ForwardMode::Nat);
            Arc::new(Backend { instance_id: "a".into(), route, addr, port, mode, snat: Snat::Always })
        };
        let counts = |packets| Counts { packets, ..Counts::default() };
        let counted = [(backend(false, 80), 1), (backend(false, 81), 2), (backend(true, 80), 4)];
        let traffic = Traffic {
            backends: counted.into_iter().map(|(backend, packets)| (backend, counts(packets))).collect(),
            ..Traffic::default()
        };
        let sums: Vec<u64> = backends(&traffic).iter().map(|(_, sum)| sum.packets).collect();
        assert_eq!(sums, [5, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn reports_go_with_their_module() {
        let (mut recorder, metrics, registry) = recorder();
        let id = registry.add("alb-1");
        let point = crate::telemetry::metrics::reported::Point {
            name: "requests_total".into(),
            labels: Default::default(),
            value: 1.0,
            at: SystemTime::now(),
        };
        metrics.reported.add("alb-1", vec![point], SystemTime::now());
        recorder.record(Now::read());
        assert!(metrics.reported.of("alb-1").is_some());
        registry.unregister("alb-1", &id).unwrap();
        recorder.record(Now::read());
        assert!(metrics.reported.of("alb-1").is_none());
    }
}
