//! Which routes are learned, and what takes precedence over them.

use super::*;
use crate::model::L4;
use crate::model::Routes;
use crate::model::can_handle::Question;
use crate::model::settings::Settings;
use crate::model::settings::TableSizes;
use crate::registry::fixtures::{Fleet, registration, route, settings};
use crate::registry::{Commit, Owner};

fn destination(port: u16) -> L4Destination {
    L4Destination { vip: "192.0.2.1".parse().unwrap(), port, l4: L4::Tcp }
}

fn able() -> BTreeMap<String, Ability> {
    [("alb-1".to_owned(), Ability { can_handle: true, priority: 5 })].into()
}

fn learn(registry: &Registry, port: u16) -> Result<u64, NotLearned> {
    registry.learn(destination(port), &able(), Now::read())
}

fn learning() -> Registry {
    let registry = Registry::new(Settings { learn_routes: true, ..settings() });
    registry.add("alb-1");
    registry
}

fn ids(registry: &Registry) -> Vec<String> {
    registry.desired().borrow().learned_routes.keys().cloned().collect()
}

#[test]
fn learned_route_ids_may_collide_with_given_ones() {
    assert_eq!(destination(81).route_id(), "learned:192.0.2.1:81/tcp");
    let six = L4Destination { vip: "2001:db8::1".parse().unwrap(), port: 53, l4: L4::Udp };
    assert_eq!(six.route_id(), "learned:[2001:db8::1]:53/udp");
}

#[test]
fn configured_destinations_are_not_learned() {
    let registry = learning();
    assert_eq!(learn(&registry, 80), Err(NotLearned::Covered));
    assert_eq!(learn(&registry, 81), Ok(2));
    assert_eq!(learn(&registry, 81), Err(NotLearned::Covered));
    let udp = L4Destination { l4: L4::Udp, ..destination(80) };
    registry.learn(udp, &able(), Now::read()).unwrap();
    let elsewhere = L4Destination { vip: "192.0.2.2".parse().unwrap(), ..destination(80) };
    assert_eq!(registry.learn(elsewhere, &able(), Now::read()), Err(NotLearned::NoVip));
    assert_eq!(ids(&registry), ["learned:192.0.2.1:80/udp", "learned:192.0.2.1:81/tcp"]);
    let unable = [("alb-1".to_owned(), Ability { can_handle: false, priority: 0 })].into();
    assert_eq!(registry.learn(destination(82), &unable, Now::read()), Err(NotLearned::NoneCanHandle));
    let gone = [("alb-2".to_owned(), Ability::default())].into();
    assert_eq!(registry.learn(destination(82), &gone, Now::read()), Err(NotLearned::NoneCanHandle));
    registry.configure(settings(), Commit::Apply).unwrap();
    assert_eq!(learn(&registry, 82), Err(NotLearned::Off));
}

#[test]
fn a_wildcard_and_an_operators_route_of_the_same_id_supersede() {
    let registry = learning();
    learn(&registry, 81).unwrap();
    learn(&registry, 82).unwrap();
    assert_eq!(registry.snapshot().superseded(), [].into());
    let operators = Routes::unit(destination(81).route_id(), route(9999).into());
    registry.update_routes(Owner::Operator, operators, false, Commit::Apply, Now::read()).unwrap();
    assert_eq!(registry.snapshot().superseded(), [destination(81).route_id()].into());
    let mut every_port = registration("alb-2");
    every_port.module.routes = Routes::unit("all".to_owned(), Route { port: None, ..route(1) }.into());
    registry.admit(every_port, Now::read()).unwrap();
    assert_eq!(registry.snapshot().superseded().len(), 2);
}

#[test]
fn there_is_room_for_so_many_and_none_at_the_cost_of_the_configured() {
    let plenty = TableSizes { services: 1000, pools: 1000, backends: 1000, ..settings().limits };
    let registry = learning();
    let roomy = Settings { learn_routes: true, max_routes: 1000, limits: plenty, ..settings() };
    registry.configure(roomy.clone(), Commit::Apply).unwrap();
    assert!((0..MAX_LEARNED_ROUTES).all(|n| learn(&registry, 1000 + n as u16).is_ok()));
    assert_eq!(learn(&registry, 999), Err(NotLearned::Full));

    registry.configure(Settings { max_routes: 3, ..roomy }, Commit::Apply).unwrap();
    assert_eq!(ids(&registry), [""; 0], "configured routes take precedence");
    learn(&registry, 81).unwrap();
    learn(&registry, 82).unwrap();
    assert!(matches!(learn(&registry, 83), Err(NotLearned::NoRoom(RegistryError::TooManyRoutes { .. }))));
    assert_eq!(ids(&registry).len(), 2);
    registry.add("alb-2");
    assert_eq!(ids(&registry), [""; 0]);
    registry.add("alb-3");
    assert!(
        registry.admit(registration("alb-4"), Now::read()).is_err(),
        "no learned route can be removed for it"
    );
}

#[test]
fn only_modules_that_can_handle_it_serve_and_only_while_there_is_room() {
    let limits = TableSizes { backends: 4, ..settings().limits };
    let registry = Registry::new(Settings { learn_routes: true, limits, ..settings() });
    let mut others = ["alb-2", "alb-3"].map(registration);
    for (other, host) in others.iter_mut().zip([2, 3]) {
        other.module.routes.clear();
        other.module.data.v4 = Some([10, 0, 0, host].into());
    }
    registry.add("alb-1");
    others.into_iter().for_each(|other| drop(registry.admit(other, Now::read()).unwrap()));
    learn(&registry, 81).unwrap();
    learn(&registry, 82).unwrap();
    let say = |instance_id: &str, port, can_handle| {
        let route = destination(port).key();
        let question = Question { instance_id: instance_id.into(), route };
        registry.set_abilities([(question, Ability { can_handle, priority: 0 })].into());
    };
    let answers = || {
        let snapshot = registry.snapshot();
        let answers = snapshot.answers_on_learned("learned:192.0.2.1:81/tcp");
        answers.map(|(id, ability)| (id.to_owned(), ability.can_handle)).collect::<Vec<_>>()
    };
    say("alb-2", 81, false);
    assert_eq!(answers(), [("alb-1".to_owned(), true)], "an instance that cannot handle it is no backend");
    say("alb-2", 81, true);
    say("alb-1", 81, false);
    assert_eq!(answers(), [("alb-1".to_owned(), false), ("alb-2".to_owned(), true)]);
    assert_eq!(ids(&registry).len(), 2);
    say("alb-3", 81, true);
    assert_eq!(ids(&registry), [""; 0], "one backend too many");
}

#[test]
fn answers_are_removed_with_the_route() {
    let registry = learning();
    let answers = |registry: &Registry| {
        registry.desired().borrow().modules["alb-1"].abilities.contains_key(&destination(81).key())
    };
    learn(&registry, 81).unwrap();
    assert!(answers(&registry));
    registry.forget_learned(&[destination(81).route_id()].into());
    assert!(!answers(&registry) && ids(&registry).is_empty());
    // An answer that was in flight when the route was removed.
    let question = Question { instance_id: "alb-1".into(), route: destination(81).key() };
    registry.set_abilities([(question, Ability { can_handle: true, priority: 9 })].into());
    assert!(!answers(&registry));
}
