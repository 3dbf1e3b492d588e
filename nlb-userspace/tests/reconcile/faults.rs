//! The reconciler against maps that refuse changes.

use std::sync::Arc;
use std::time::Duration;

use nlb::compile::{MapImage, Rows, compile};
use nlb::datapath::maps::fake::FakeMaps;
use nlb::model::Desired;
use nlb::model::next_hop::Hops;
use nlb::reconcile::plan::plan;
use nlb::reconcile::{self, Applied};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{TestCaseError, TestRunner};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::generated::{LIMITS, World, flows, servers, world};
use super::invariants::{Outcome, broken, looked_up, name, named, outcome};

/// A running reconciler.
struct Loop {
    desired: watch::Sender<Arc<Desired>>,
    hops: watch::Sender<Arc<Hops>>,
    applied: watch::Receiver<Arc<Applied>>,
    maps: FakeMaps,
    task: JoinHandle<()>,
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Loop {
    fn start() -> Loop {
        let maps = FakeMaps::default();
        let desired = watch::Sender::new(Arc::default());
        let hops = watch::Sender::new(Arc::default());
        let (publish, applied) = watch::channel(Arc::default());
        let run = reconcile::run(
            desired.subscribe(),
            hops.subscribe(),
            publish,
            MapImage::empty(LIMITS),
            Box::new(maps.clone()),
        );
        Loop { desired, hops, applied, maps, task: tokio::spawn(run) }
    }

    /// Publishes this state under a new revision, and lets the reconciler run once.
    async fn want(&self, world: &World) {
        let revision = self.desired.borrow().revision + 1;
        self.hops.send_replace(Arc::new(world.hops.clone()));
        self.desired.send_replace(Arc::new(Desired { revision, ..world.desired.clone() }));
        self.turn().await;
    }

    async fn turn(&self) {
        sleep(Duration::from_millis(1)).await;
    }

    fn applied(&self) -> Arc<Applied> {
        self.applied.borrow().clone()
    }
}

/// Time is simulated, so that pauses between attempts cost nothing.
fn simulate<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(test)
}

/// A draw of the generator whose plan has every kind of change.
fn pair_with_a_long_plan() -> (World, World, usize) {
    let mut runner = TestRunner::deterministic();
    let nothing = World { desired: Desired::default(), hops: Hops::new() };
    let mut draw = || world().new_tree(&mut runner).expect("a state").current();
    for _ in 0..100 {
        let (before, after) = (draw(), draw());
        let length = length_of_plan(&before, &after);
        if length >= 15 && length_of_plan(&nothing, &before) >= 15 {
            return (before, after, length);
        }
    }
    panic!("no pair of 100 makes a plan of 15 changes")
}

fn length_of_plan(before: &World, after: &World) -> usize {
    let before = compile(&before.desired, &before.hops, &MapImage::empty(LIMITS)).expect("the state fits");
    let after = compile(&after.desired, &after.hops, &before).expect("the state fits");
    plan(&before.rows, &after.rows).len()
}

#[test]
fn a_fault_at_any_step_leaves_maps_that_work_and_is_made_good() {
    let (before, after, length) = pair_with_a_long_plan();
    for position in 0..length {
        simulate(async {
            let reconciler = Loop::start();
            reconciler.want(&before).await;
            let whole = reconciler.applied();
            assert_eq!((whole.revision, &whole.error), (1, &None));
            let done_before = reconciler.maps.applied().len();

            reconciler.maps.fail_after(position, 2);
            reconciler.want(&after).await;
            let failed = reconciler.applied();
            assert_eq!(failed.revision, 2);
            let error = failed.error.as_ref().expect("the fault is reported");
            assert!(error.contains("injected failure"), "{error}");
            assert_eq!(failed.image, whole.image, "the image is the last one that was applied completely");
            assert_eq!(reconciler.maps.applied().len() - done_before, position);
            assert_eq!(broken(&reconciler.maps.rows()), Vec::<String>::new(), "at step {position}");

            // The first retry comes after 100 ms and fails, the second after another 200 ms.
            sleep(Duration::from_millis(105)).await;
            assert!(reconciler.applied().error.is_some(), "two failures were ordered");
            sleep(Duration::from_millis(200)).await;
            let mended = reconciler.applied();
            assert_eq!((mended.revision, &mended.error), (2, &None));
            assert_eq!(looked_up(reconciler.maps.rows()), mended.image.rows);
            assert_eq!(reconciler.maps.applied().len() - done_before, length, "no change is made twice");
        });
    }
}

#[test]
fn another_state_after_a_fault_is_reached() {
    let (before, after, length) = pair_with_a_long_plan();
    for position in 0..length {
        simulate(async {
            let reconciler = Loop::start();
            reconciler.want(&before).await;
            let first = reconciler.maps.rows();
            reconciler.maps.fail_after(position, 1);
            reconciler.want(&after).await;
            assert!(reconciler.applied().error.is_some());
            reconciler.want(&before).await;
            let back = reconciler.applied();
            assert_eq!((back.revision, &back.error), (3, &None));
            let rows = reconciler.maps.rows();
            assert_eq!(looked_up(rows.clone()), back.image.rows);
            assert_eq!(broken(&rows), Vec::<String>::new());
            for flow in flows() {
                assert_eq!(outcome(&rows, &flow), outcome(&first, &flow), "{flow:?} at step {position}");
                for server in servers() {
                    let (now, then) = (named(&rows, &flow, &server), named(&first, &flow, &server));
                    assert_eq!(now, then, "{server:?} on {flow:?} at step {position}");
                }
            }
        });
    }
}

#[test]
fn pauses_between_tries_grow_and_a_success_makes_them_short_again() {
    let (before, after, _) = pair_with_a_long_plan();
    simulate(async {
        let reconciler = Loop::start();
        reconciler.maps.fail_after(0, 1000);
        reconciler.want(&before).await;
        let start = tokio::time::Instant::now();
        let mut applied = reconciler.applied.clone();
        applied.mark_unchanged();
        let mut tries = Vec::new();
        while tries.len() < 10 {
            let changed = timeout(Duration::from_secs(60), applied.changed()).await;
            changed.expect("another try").expect("the reconciler runs");
            tries.push(start.elapsed().as_millis() / 100);
        }
        assert_eq!(tries[..6], [0, 2, 6, 14, 30, 62], "0.1 s, doubled each time");
        assert_eq!(tries[9] - tries[8], 100, "at most 10 s");

        reconciler.maps.fail_after(0, 0);
        sleep(Duration::from_secs(11)).await;
        assert_eq!(reconciler.applied().error, None);
        reconciler.maps.fail_after(0, 1);
        reconciler.want(&after).await;
        assert!(reconciler.applied().error.is_some());
        sleep(Duration::from_millis(105)).await;
        assert_eq!(reconciler.applied().error, None);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// States come faster than the maps apply them, with faults between: the maps work at any moment, and end
    /// up right.
    #[test]
    fn any_history_of_states_and_faults_works_at_every_moment(
        history in vec((world(), prop::option::of((0..20_usize, 1..4_usize))), 1..5),
    ) {
        simulate(async {
            let reconciler = Loop::start();
            for (world, fault) in &history {
                if let Some((successes, failures)) = fault {
                    reconciler.maps.fail_after(*successes, *failures);
                }
                reconciler.want(world).await;
            }
            reconciler.maps.fail_after(0, 0);
            sleep(Duration::from_secs(20)).await;

            let applied = reconciler.applied();
            prop_assert_eq!((applied.revision, &applied.error), (history.len() as u64, &None));
            prop_assert_eq!(looked_up(reconciler.maps.rows()), applied.image.rows.clone());
            let wholes: Vec<Rows> = history
                .iter()
                .map(|(world, _)| compile(&world.desired, &world.hops, &MapImage::empty(LIMITS)))
                .map(|image| image.expect("the state fits").rows)
                .collect();
            let mut rows = Rows::default();
            for change in reconciler.maps.applied() {
                change.apply_to(&mut rows);
                prop_assert_eq!(broken(&rows), Vec::<String>::new(), "after {}", name(&change));
                for flow in flows() {
                    let now = outcome(&rows, &flow);
                    let wanted = wholes.iter().any(|whole| outcome(whole, &flow) == now);
                    prop_assert!(wanted || now == Outcome::Passed, "{:?} of {:?} after {}", now, flow, name(&change));
                    for server in servers() {
                        let now = named(&rows, &flow, &server);
                        let wanted = wholes.iter().any(|whole| named(whole, &flow, &server) == now);
                        prop_assert!(wanted || now.is_none(), "{:?} of {:?} after {}", now, server, name(&change));
                    }
                }
            }
            let last = wholes.last().expect("at least one");
            for flow in flows() {
                prop_assert_eq!(outcome(&rows, &flow), outcome(last, &flow), "{:?}", flow);
                for server in servers() {
                    prop_assert_eq!(named(&rows, &flow, &server), named(last, &flow, &server), "{:?}", flow);
                }
            }
            Ok::<(), TestCaseError>(())
        })?;
    }
}
