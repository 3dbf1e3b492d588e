//! The answers of modules to CanHandle, as the data path applies them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::info;

use super::{Registry, State};
use crate::model::Ability;
use crate::model::can_handle::Question;

impl Registry {
    /// Records answers. Answers of modules and about routes that no longer exist are ignored.
    pub fn set_abilities(&self, answers: BTreeMap<Question, Ability>) {
        let mut state = self.lock();
        let news: Vec<(Question, Ability)> =
            answers.into_iter().filter(|(question, ability)| state.is_news(question, ability)).collect();
        if news.is_empty() {
            return;
        }
        let mut changed = State::clone(&state);
        for (Question { instance_id, route }, ability) in news {
            let Ok(record) = changed.record_mut(&instance_id) else { continue };
            let Ability { can_handle, priority } = ability;
            info!(
                instance = instance_id,
                route = route.id,
                can_handle,
                priority,
                "the module's CanHandle answer changed"
            );
            let module = &mut record.registration.module;
            let routes = &module.routes;
            // Answers about routes that no longer exist are removed with them.
            module.abilities.retain(|key, _| key.operators || routes.contains_key(&key.id));
            module.abilities.insert(route, ability);
        }
        // A module that can handle a learned route is one more backend, which has to fit the maps. Other
        // answers need no room.
        let last = self.published();
        let next = match changed.learned_routes.is_empty() {
            true => last.next(Arc::new(changed)),
            false => last.fitting(changed.clone()).unwrap_or_else(|_| last.next(Arc::new(changed))),
        };
        *state = next.state.clone();
        self.send(last, next);
    }
}

impl State {
    fn is_news(&self, question: &Question, ability: &Ability) -> bool {
        let (instance_id, route) = (&question.instance_id, &question.route);
        let Some(record) = self.modules.get(instance_id) else { return false };
        let module = &record.registration.module;
        if self.is_learned(route) {
            // For a learned route, a module without an answer cannot handle it.
            return module.abilities.get(route).map_or(ability.can_handle, |before| before != ability);
        }
        let is_there = !route.operators || self.operator_routes.contains_key(&route.id);
        is_there && module.ability(route) != *ability
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RouteKey;
    use crate::registry::fixtures::{Fleet, registry};

    fn answer(can_handle: bool, priority: i32) -> BTreeMap<Question, Ability> {
        let route = RouteKey { id: "web".into(), operators: false };
        [(Question { instance_id: "alb-1".into(), route }, Ability { can_handle, priority })].into()
    }

    #[test]
    fn answers_that_are_news_make_a_revision() {
        let registry = registry();
        registry.set_abilities(answer(false, 0));
        assert_eq!(registry.desired().borrow().revision, 0, "no module is registered");
        registry.add("alb-1");
        let of_web = || {
            let desired = registry.desired().borrow().clone();
            (
                desired.revision,
                desired.modules["alb-1"].ability(&answer(true, 0).pop_first().unwrap().0.route),
            )
        };
        assert_eq!(
            of_web(),
            (1, Ability { can_handle: true, priority: 0 }),
            "a module without an answer can handle its routes"
        );
        registry.set_abilities(answer(true, 0));
        assert_eq!(of_web().0, 1);
        registry.set_abilities(answer(true, 7));
        registry.set_abilities(answer(true, 7));
        assert_eq!(of_web(), (2, Ability { can_handle: true, priority: 7 }));
        registry.add("alb-1");
        assert_eq!(
            of_web(),
            (2, Ability { can_handle: true, priority: 7 }),
            "answers outlive a registration"
        );
    }
}
