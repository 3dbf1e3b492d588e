//! In paused time, which advances when all tasks wait.

use std::sync::Mutex;

use super::expiry::IDLE;
use super::queue::{MAX_IN_FLIGHT, PACE, WAITING};
use nlb_common::upcall;

use super::*;
use crate::model::destination::L4Destination;
use crate::model::settings::Settings;
use crate::model::upcall::QUEUE;
use crate::model::{L4, Routes};
use crate::registry::fixtures::{Fleet, route_to, settings};
use crate::registry::{Commit, Owner};

const VIP: &str = "192.0.2.1";

/// No ports.
const NONE: [u16; 0] = [];

fn question(port: u16) -> Question {
    let destination = L4Destination { vip: VIP.parse().unwrap(), port, l4: L4::Tcp };
    let client = "198.51.100.7:40000".parse().unwrap();
    Question { destination, client, key: u64::from(port) << 16, asked_at: 1_000_000 }
}

fn learning() -> Settings {
    Settings { learn_routes: true, max_routes: 1000, ..settings() }
}

/// The task, with a kernel and modules that the test plays.
struct Stage {
    registry: Arc<Registry>,
    questions: mpsc::Sender<Question>,
    closed: mpsc::Receiver<NegativeEntry>,
    traffic: watch::Sender<Arc<Traffic>>,
    /// The ports that modules were asked about, and when.
    asked: Arc<Mutex<Vec<(u16, Instant)>>>,
    /// The answer of all modules from now on, and how long it takes.
    ability: watch::Sender<(Option<Ability>, Duration)>,
    started: Instant,
    _task: JoinSet<()>,
}

const ABLE: Option<Ability> = Some(Ability { can_handle: true, priority: 3 });
const UNABLE: Option<Ability> = Some(Ability { can_handle: false, priority: 0 });

impl Stage {
    /// With the module "alb-1", which serves port 80.
    fn new(settings: Settings) -> Stage {
        let registry = Arc::new(Registry::new(settings));
        registry.add("alb-1");
        let (questions, questions_read) = mpsc::channel(QUEUE);
        let (answers, closed) = mpsc::channel(QUEUE);
        let (traffic, traffic_read) = watch::channel(Arc::default());
        let asked = Arc::<Mutex<Vec<(u16, Instant)>>>::default();
        let (module_ability, read_ability) = watch::channel((ABLE, Duration::ZERO));
        let noted = asked.clone();
        let ask = move |question: &Question| {
            noted.lock().unwrap().push((question.destination.port, Instant::now()));
            let (ability, delay) = *read_ability.borrow();
            async move {
                time::sleep(delay).await;
                ability.map(|ability| ("alb-1".to_owned(), ability)).into_iter().collect()
            }
        };
        let channel = UpcallChannel { questions: questions_read, answers };
        let task = watch(registry.clone(), traffic_read, channel, ask);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { match task.await {} });
        let started = Instant::now();
        Stage { registry, questions, closed, traffic, asked, ability: module_ability, started, _task: tasks }
    }

    async fn raise(&self, ports: impl IntoIterator<Item = u16>) {
        for port in ports {
            self.questions.send(question(port)).await.unwrap();
        }
    }

    /// Lets all tasks run until they wait.
    async fn settle(&self) {
        time::sleep(Duration::from_millis(1)).await;
    }

    fn asked(&self) -> Vec<u16> {
        self.asked.lock().unwrap().iter().map(|(port, _)| *port).collect()
    }

    fn learned(&self) -> Vec<u16> {
        let snapshot = self.registry.snapshot();
        snapshot.learned.values().map(|learned| learned.destination.port).collect()
    }

    fn closed(&mut self) -> Vec<NegativeEntry> {
        std::iter::from_fn(|| self.closed.try_recv().ok()).collect()
    }

    /// Records the answer of `alb-1` to a later question about port 81.
    fn set_answer(&self, ability: Option<Ability>) {
        let question = crate::model::can_handle::Question {
            instance_id: "alb-1".into(),
            route: question(81).destination.key(),
        };
        self.registry.set_abilities([(question, ability.unwrap())].into());
    }

    fn has_flows(&self, flows: u64) {
        let service = (VIP.parse().unwrap(), 81, L4::Tcp);
        let traffic = Traffic { service_flows: [(service, flows)].into(), ..Traffic::default() };
        self.traffic.send_replace(Arc::new(traffic));
    }
}

#[tokio::test(start_paused = true)]
async fn modules_that_can_handle_it_get_a_route_and_are_asked_once() {
    let mut stage = Stage::new(learning());
    stage.ability.send_replace((ABLE, Duration::from_secs(1)));
    stage.raise([81, 81, 81]).await;
    stage.settle().await;
    assert_eq!((stage.asked(), stage.learned()), (vec![81], NONE.to_vec()));
    // The upcall has expired in the kernel.
    stage.raise([81]).await;
    time::sleep(Duration::from_secs(2)).await;
    assert_eq!((stage.asked(), stage.learned()), (vec![81], vec![81]));
    stage.raise([81]).await;
    stage.settle().await;
    assert_eq!(stage.asked(), [81], "the route covers the destination");
    assert_eq!(stage.closed(), []);
    let snapshot = stage.registry.snapshot();
    let answers: Vec<_> = snapshot.answers_on_learned("learned:192.0.2.1:81/tcp").collect();
    assert_eq!(answers, [("alb-1", ABLE.unwrap())]);
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_no_module_can_handle_gets_a_negative_entry() {
    let mut stage = Stage::new(learning());
    for ability in [UNABLE, None] {
        stage.ability.send_replace((ability, Duration::ZERO));
        stage.raise([81]).await;
        time::sleep(PACE).await;
        let until = question(81).asked_at + upcall::NEGATIVE_TTL;
        assert_eq!(stage.closed(), [NegativeEntry { key: question(81).key, until }], "{ability:?}");
        assert_eq!(stage.learned(), NONE);
    }
    assert_eq!(stage.asked(), [81, 81], "a new upcall asks modules again");
}

#[tokio::test(start_paused = true)]
async fn modules_are_not_asked_about_destinations_that_cannot_get_a_route() {
    let mut stage = Stage::new(learning());
    // The module's own route.
    stage.raise([80]).await;
    let mut elsewhere = question(81);
    elsewhere.destination.vip = "192.0.2.9".parse().unwrap();
    stage.questions.send(elsewhere.clone()).await.unwrap();
    time::sleep(10 * PACE).await;
    assert_eq!(stage.closed(), [elsewhere.refused()], "a destination with a route gets no negative entry");

    stage.registry.configure(settings(), Commit::Apply).unwrap();
    stage.raise([81]).await;
    time::sleep(10 * PACE).await;
    assert_eq!(stage.closed(), [question(81).refused()]);
    assert_eq!(stage.asked(), NONE);
}

#[tokio::test(start_paused = true)]
async fn a_scan_of_ports_reaches_modules_at_a_bounded_pace() {
    let mut stage = Stage::new(learning());
    stage.ability.send_replace((UNABLE, Duration::ZERO));
    stage.raise(1000..1500).await;
    time::sleep(Duration::from_secs(10)).await;
    let asked = stage.asked.lock().unwrap().clone();
    // One question may be taken from the queue while it fills.
    assert!((WAITING..=WAITING + 1).contains(&asked.len()), "{}", asked.len());
    assert!(asked.windows(2).all(|pair| pair[1].1 - pair[0].1 >= PACE), "{asked:?}");
    let last = asked.last().unwrap().1 - stage.started;
    assert!(
        last < Duration::from_nanos(upcall::PENDING_TTL),
        "the last after {last:?}, when its upcall has expired"
    );
    let (throttled, refused): (Vec<NegativeEntry>, _) =
        stage.closed().into_iter().partition(|closed| closed.until == question(0).throttled().until);
    assert_eq!((throttled.len(), refused.len()), (500 - asked.len(), asked.len()));

    stage.raise([2000]).await;
    stage.settle().await;
    assert_eq!(stage.asked().last(), Some(&2000), "later upcalls are answered");
}

#[tokio::test(start_paused = true)]
async fn slow_modules_are_asked_a_bounded_number_of_questions_at_a_time() {
    let stage = Stage::new(learning());
    stage.ability.send_replace((ABLE, Duration::from_secs(10)));
    stage.raise(1000..1020).await;
    time::sleep(Duration::from_secs(9)).await;
    assert_eq!(stage.asked().len(), MAX_IN_FLIGHT);
    time::sleep(Duration::from_secs(11)).await;
    assert_eq!(stage.asked().len(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_route_goes_when_no_module_can_handle_it_and_its_flows_have_ended() {
    let stage = Stage::new(learning());
    let learn = async || {
        stage.raise([81]).await;
        time::sleep(PACE).await;
        assert_eq!(stage.learned(), [81]);
    };
    learn().await;
    stage.set_answer(UNABLE);
    stage.settle().await;
    assert_eq!(stage.learned(), NONE, "a route without flows goes at once");

    learn().await;
    stage.has_flows(1);
    time::sleep(2 * EVALUATION_INTERVAL).await;
    stage.set_answer(UNABLE);
    time::sleep(2 * EVALUATION_INTERVAL).await;
    assert_eq!(stage.learned(), [81], "its flow is open");
    stage.has_flows(0);
    time::sleep(2 * EVALUATION_INTERVAL).await;
    assert_eq!(stage.learned(), NONE);

    learn().await;
    stage.has_flows(1);
    time::sleep(2 * EVALUATION_INTERVAL).await;
    stage.set_answer(UNABLE);
    time::sleep(settings().drain_timeout - EVALUATION_INTERVAL).await;
    assert_eq!(stage.learned(), [81]);
    stage.set_answer(ABLE);
    time::sleep(settings().drain_timeout).await;
    assert_eq!(stage.learned(), [81], "the module can handle it again");
    stage.set_answer(UNABLE);
    time::sleep(settings().drain_timeout + 2 * EVALUATION_INTERVAL).await;
    assert_eq!(stage.learned(), NONE, "open flows have the drain timeout to end");
}

#[tokio::test(start_paused = true)]
async fn a_route_goes_with_its_modules() {
    let stage = Stage::new(learning());
    stage.raise([81]).await;
    time::sleep(PACE).await;
    assert_eq!(stage.learned(), [81]);
    let epoch = stage.registry.snapshot().modules["alb-1"].epoch;
    stage.registry.remove("alb-1", epoch).unwrap();
    stage.settle().await;
    assert_eq!(stage.learned(), NONE);
}

#[tokio::test(start_paused = true)]
async fn an_idle_route_goes() {
    let stage = Stage::new(learning());
    stage.raise([81]).await;
    time::sleep(IDLE / 2).await;
    stage.has_flows(1);
    time::sleep(IDLE).await;
    stage.has_flows(0);
    time::sleep(IDLE - 2 * EVALUATION_INTERVAL).await;
    assert_eq!(stage.learned(), [81]);
    time::sleep(4 * EVALUATION_INTERVAL).await;
    assert_eq!(stage.learned(), NONE);
}

#[tokio::test(start_paused = true)]
async fn a_configured_route_takes_its_place() {
    let stage = Stage::new(learning());
    stage.raise([81]).await;
    time::sleep(PACE).await;
    let operators = Routes::unit("ops".to_owned(), route_to(VIP, 81).into());
    let registry = &stage.registry;
    registry.update_routes(Owner::Operator, operators, false, Commit::Apply, Now::read()).unwrap();
    stage.settle().await;
    assert_eq!(stage.learned(), NONE);
    let settings = Settings { learn_routes: false, ..learning() };
    registry.delete_route(Owner::Operator, "ops", Commit::Apply).unwrap();
    stage.raise([81]).await;
    time::sleep(PACE).await;
    assert_eq!(stage.learned(), [81], "the learned route is back");
    registry.configure(settings, Commit::Apply).unwrap();
    stage.settle().await;
    assert_eq!(stage.learned(), NONE, "route learning is switched off");
}
