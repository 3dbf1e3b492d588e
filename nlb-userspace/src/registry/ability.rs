//! What modules say they can handle, as the data path is to obey it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::info;

use super::Registry;
use crate::ability::Question;
use crate::model::Ability;

impl Registry {
    /// Takes over answers. Modules that have gone meanwhile do not matter.
    pub fn set_abilities(&self, answers: BTreeMap<Question, Ability>) {
        let mut state = self.lock();
        let news: Vec<(Question, Ability)> = answers
            .into_iter()
            .filter(|(question, ability)| {
                let record = state.modules.get(&question.instance_id);
                record.is_some_and(|record| record.registration.module.ability(&question.route) != *ability)
            })
            .collect();
        if news.is_empty() {
            return;
        }
        let changed = Arc::make_mut(&mut state);
        for (Question { instance_id, route }, ability) in news {
            let Ok(record) = changed.record_mut(&instance_id) else { continue };
            let Ability { can_handle, priority } = ability;
            info!(
                instance = instance_id,
                route = route.id,
                can_handle,
                priority,
                "module says what it can handle"
            );
            let module = &mut record.registration.module;
            let routes = &module.routes;
            // Answers about routes that are gone go with them.
            module.abilities.retain(|key, _| key.operators || routes.contains_key(&key.id));
            module.abilities.insert(route, ability);
        }
        self.publish(&state);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Fleet, registry};
    use super::*;
    use crate::model::RouteKey;

    fn answer(can_handle: bool, priority: i32) -> BTreeMap<Question, Ability> {
        let route = RouteKey { id: "web".into(), operators: false };
        [(Question { instance_id: "alb-1".into(), route }, Ability { can_handle, priority })].into()
    }

    #[test]
    fn answers_that_are_news_make_a_revision() {
        let registry = registry();
        registry.set_abilities(answer(false, 0));
        assert_eq!(registry.desired().borrow().revision, 0, "nobody is there");
        registry.add("alb-1");
        let of_web = || {
            let desired = registry.desired().borrow().clone();
            (
                desired.revision,
                desired.modules["alb-1"].ability(&answer(true, 0).pop_first().unwrap().0.route),
            )
        };
        assert_eq!(of_web(), (1, Ability { can_handle: true, priority: 0 }), "who was not asked yet is able");
        registry.set_abilities(answer(true, 0));
        assert_eq!(of_web().0, 1);
        registry.set_abilities(answer(true, 7));
        registry.set_abilities(answer(true, 7));
        assert_eq!(of_web(), (2, Ability { can_handle: true, priority: 7 }));
        registry.add("alb-1");
        assert_eq!(of_web(), (2, Ability { can_handle: true, priority: 7 }), "kept over a registration");
    }
}
