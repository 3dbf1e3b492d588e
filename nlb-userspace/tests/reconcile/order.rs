//! Make before break, for any pair of desired states: after every change of the plan the maps work, and a new
//! flow goes where it would have gone before or where it will go after.

use nlb::compile::{MapImage, compile};
use nlb::reconcile::plan::plan;
use proptest::prelude::*;

use super::generated::{LIMITS, flows, servers, world};
use super::invariants::{broken, looked_up, misnumbered, name, named, outcome};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_step_of_a_plan_works(before in world(), after in world()) {
        let empty = MapImage::empty(LIMITS);
        let before = compile(&before.desired, &before.hops, &empty).expect("the state fits");
        let after = compile(&after.desired, &after.hops, &before).expect("the state fits");
        prop_assert_eq!(broken(&before.rows), Vec::<String>::new());

        let mut rows = before.rows.clone();
        for change in plan(&before.rows, &after.rows) {
            change.apply_to(&mut rows);
            prop_assert_eq!(broken(&rows), Vec::<String>::new(), "after {}", name(&change));
            prop_assert_eq!(misnumbered(&rows), Vec::<u16>::new(), "after {}", name(&change));
            for flow in flows() {
                let now = outcome(&rows, &flow);
                let (old, new) = (outcome(&before.rows, &flow), outcome(&after.rows, &flow));
                prop_assert!(
                    now == old || now == new,
                    "after {}, {flow:?} meets {now:?}; before it was {old:?}, it will be {new:?}",
                    name(&change)
                );
                for server in servers() {
                    let now = named(&rows, &flow, &server);
                    let (old, new) =
                        (named(&before.rows, &flow, &server), named(&after.rows, &flow, &server));
                    prop_assert!(
                        now == old || now == new,
                        "after {}, {server:?} on {flow:?} is {now:?}; before it was {old:?}, it will be {new:?}",
                        name(&change)
                    );
                }
            }
        }
        prop_assert!(plan(&rows, &after.rows).is_empty(), "no change is left");
        prop_assert_eq!(looked_up(rows), after.rows, "the plan leads to the wanted rows");
    }

    #[test]
    fn equal_input_gives_an_equal_image(world in world()) {
        let empty = MapImage::empty(LIMITS);
        let image = || compile(&world.desired, &world.hops, &empty).expect("the state fits");
        let first = image();
        prop_assert_eq!(&first, &image());
        let again = compile(&world.desired, &world.hops, &first).expect("the state fits");
        prop_assert_eq!(first.rows, again.rows, "numbers stay");
    }
}
