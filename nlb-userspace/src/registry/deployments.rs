//! Deployments of registered instances: which ones a call about versions is for, and whose rollout is
//! changed.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::rollouts::{Author, Holder, MAX_ROLLOUTS, Rollout};
use super::{Record, Registration, RegistryError, State};
use crate::model::{Deployment, Module};
use crate::policy::promotion::Promotion;

/// The deployments of one call.
pub type Deployments = BTreeSet<Deployment>;

/// The name by which a call is for every deployment that it can be for; no deployment has it.
pub const ALL: &str = "all";

/// The deployments of a call as its caller names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// The one that the call's instance or version belongs to.
    #[default]
    Implied,
    One(Deployment),
    All,
}

impl State {
    /// The deployments that have instances.
    pub fn deployments(&self) -> Deployments {
        let all = self.modules.values().map(|record| &record.registration.module.deployment);
        // There are few, of many instances.
        all.collect::<BTreeSet<_>>().into_iter().cloned().collect()
    }

    /// The deployment of an instance, which a caller need not name and must not contradict.
    pub fn deployment_of(&self, instance_id: &str, scope: &Scope) -> Result<Deployment, RegistryError> {
        let actual = self.record(instance_id)?.registration.module.deployment.clone();
        let asked = match scope {
            Scope::Implied => return Ok(actual),
            Scope::One(asked) if *asked == actual => return Ok(actual),
            Scope::One(asked) => asked.name(),
            Scope::All => ALL,
        };
        let (instance_id, asked) = (instance_id.to_owned(), asked.to_owned());
        Err(RegistryError::OtherDeployment { instance_id, asked, actual })
    }

    /// Checks that the other instances of a newcomer's deployment are of its type.
    pub(super) fn check_deployment(&self, newcomer: &Registration) -> Result<(), RegistryError> {
        let others = self.members(Holder::One(&newcomer.module.deployment));
        let mut others = others.map(|(instance_id, record)| (instance_id, &record.registration.module));
        let differs = |(instance_id, module): &(&str, &Module)| {
            *instance_id != newcomer.instance_id && module.module_type != newcomer.module.module_type
        };
        let Some((instance_id, module)) = others.find(differs) else { return Ok(()) };
        Err(RegistryError::OtherType {
            deployment: module.deployment.clone(),
            instance_id: instance_id.to_owned(),
            module_type: module.module_type,
        })
    }

    /// The deployments of a call for a version, which each of them has.
    pub fn deployments_with(&self, scope: &Scope, version: &str) -> Result<Deployments, RegistryError> {
        let modules = self.modules.values().map(|record| &record.registration.module);
        let having = modules.filter(|module| module.version == version);
        let having = having.map(|module| module.deployment.clone()).collect();
        let chosen = self.choose(scope, having, || format!("version {version:?}"))?;
        match (chosen.is_empty(), scope) {
            (false, _) => Ok(chosen),
            (true, Scope::One(asked)) => self.check_version(asked, version).map(|()| chosen),
            (true, _) => Err(RegistryError::UnknownVersion(version.to_owned())),
        }
    }

    /// The deployments of a rollback to this version or, if that is empty, to the split before.
    pub fn deployments_to_roll_back(
        &self,
        scope: &Scope,
        target: &str,
    ) -> Result<Deployments, RegistryError> {
        if !target.is_empty() {
            return self.deployments_with(scope, target);
        }
        let mut changed = match scope {
            Scope::One(_) => self.known_deployments(),
            Scope::Implied | Scope::All => self.deployments(),
        };
        changed.retain(|deployment| !self.rollouts.of(deployment).former_splits.is_empty());
        let chosen = self.choose(scope, changed, || "a former split".to_owned())?;
        if chosen.is_empty() { Err(RegistryError::NoFormerSplit) } else { Ok(chosen) }
    }

    /// The deployment that a question is about; `None` if no instance is registered.
    pub fn deployment_asked_about(&self, scope: &Scope) -> Result<Option<Deployment>, RegistryError> {
        match scope {
            Scope::One(asked) => {
                self.choose(scope, self.known_deployments(), String::new).map(|_| Some(asked.clone()))
            }
            Scope::Implied | Scope::All => {
                let mut registered = self.deployments();
                match registered.len() {
                    0 | 1 => Ok(registered.pop_first()),
                    _ => Err(RegistryError::OneSplitAtATime(registered)),
                }
            }
        }
    }

    /// The deployments that the scope selects among those that the call can be for; `what` they have.
    fn choose(
        &self,
        scope: &Scope,
        possible: Deployments,
        what: impl FnOnce() -> String,
    ) -> Result<Deployments, RegistryError> {
        match scope {
            Scope::Implied if possible.len() > 1 => {
                Err(RegistryError::ManyDeployments { what: what(), deployments: possible })
            }
            Scope::Implied | Scope::All => Ok(possible),
            Scope::One(asked) => {
                let known = self.known_deployments();
                match known.contains(asked) {
                    true => Ok(possible.into_iter().filter(|deployment| deployment == asked).collect()),
                    false => Err(RegistryError::UnknownDeployment { asked: asked.clone(), known }),
                }
            }
        }
    }

    pub fn knows_deployment(&self, deployment: &Deployment) -> bool {
        self.known_deployments().contains(deployment)
    }

    /// The deployments that have instances, or a rollout from when they had some.
    fn known_deployments(&self) -> Deployments {
        let mut known = self.deployments();
        known.extend(self.rollouts.own.keys().cloned());
        known
    }

    /// The instances whose new flows a rollout divides.
    pub(super) fn members<'a>(&'a self, holder: Holder) -> impl Iterator<Item = (&'a str, &'a Record)> {
        let belongs = move |deployment: &Deployment| match holder {
            Holder::One(one) => one == deployment,
            Holder::Others => !self.rollouts.own.contains_key(deployment),
        };
        let all = self.modules.iter().map(|(instance_id, record)| (instance_id.as_str(), record.as_ref()));
        all.filter(move |(_, record)| belongs(&record.registration.module.deployment))
    }

    /// The rollout, to be changed; a deployment gets one of its own.
    pub(super) fn rollout_mut(&mut self, holder: Holder, author: Author) -> &mut Rollout {
        let Holder::One(deployment) = holder else { return &mut self.rollouts.fleet };
        if !self.rollouts.own.contains_key(deployment) {
            if self.rollouts.own.len() >= MAX_ROLLOUTS {
                self.forget_absent_rollout(author);
            }
            let promotion = self.promotion_of(deployment).cloned();
            let copy = Rollout { promotion, requested: true, ..self.rollouts.fleet.clone() };
            self.rollouts.own.insert(deployment.clone(), copy);
            self.leave_promotion_to_others();
        }
        let rollout = self.rollouts.own.entry(deployment.clone()).or_default();
        rollout.requested &= author == Author::Module;
        rollout
    }

    /// The promotion that a deployment is subject to: its own, or the common one if it has its version.
    pub fn promotion_of(&self, deployment: &Deployment) -> Option<&Promotion> {
        let promotion = self.rollouts.of(deployment).promotion.as_ref()?;
        let is_own = self.rollouts.own.contains_key(deployment);
        // After a start, instances have yet to register again.
        let has_version =
            || self.awaited.is_some() || self.instances_of(deployment, promotion.version()).next().is_some();
        (is_own || has_version()).then_some(promotion)
    }

    /// Ends the common promotion if the last deployment that has its version goes on by itself: the others
    /// would be rolled back for want of an instance.
    pub(super) fn leave_promotion_to_others(&mut self) {
        let Some(promotion) = &self.rollouts.fleet.promotion else { return };
        let version = promotion.version().to_owned();
        let mut having = self.modules.values().map(|record| &record.registration.module);
        let is_elsewhere = having.any(|module| module.version == version);
        let others_have = self.members_of(Holder::Others, &version).next().is_some();
        if self.awaited.is_some() || others_have || !is_elsewhere {
            return;
        }
        self.rollouts.fleet.promotion = None;
        let why = "no deployment without a split of its own has an instance of it";
        self.rollouts.fleet.last_promotion = Some(format!("{version} was stopped: {why}"));
    }

    /// Forgets a rollout that is as if none had been set.
    pub(super) fn forget_empty_rollout(&mut self, deployment: &Deployment) {
        if self.rollouts.of(deployment).is_empty() && self.rollouts.fleet.is_empty() {
            self.rollouts.own.remove(deployment);
        }
    }

    /// Forgets the oldest split among those of deployments without an instance: one that modules asked for
    /// or, for an operator's new one, also one that an operator set.
    fn forget_absent_rollout(&mut self, newcomer: Author) {
        let mut kept = self.deployments();
        // After a start, instances have yet to register again.
        kept.extend(self.awaited.iter().flat_map(|awaited| &awaited.deployments).cloned());
        let absent = self.rollouts.own.iter().filter(|(deployment, _)| !kept.contains(deployment));
        let absent = absent.filter(|(_, rollout)| rollout.requested || newcomer == Author::Operator);
        let oldest = absent.min_by_key(|(_, rollout)| (!rollout.requested, rollout.split_since));
        if let Some(oldest) = oldest.map(|(deployment, _)| deployment.clone()) {
            self.rollouts.own.remove(&oldest);
        }
    }
}

/// What a change does in each deployment; an error names the deployment, if there are several.
pub(super) fn in_each<T>(
    deployments: &Deployments,
    mut change: impl FnMut(&Deployment) -> Result<T, RegistryError>,
) -> Result<BTreeMap<Deployment, T>, RegistryError> {
    let made = deployments.iter().map(|deployment| match change(deployment) {
        Ok(made) => Ok((deployment.clone(), made)),
        Err(error) if deployments.len() == 1 => Err(error),
        Err(error) => {
            Err(RegistryError::InDeployment { deployment: deployment.clone(), error: Box::new(error) })
        }
    });
    made.collect()
}

/// The deployments' names, for logs.
pub(super) fn names(deployments: &Deployments) -> String {
    deployments.iter().map(Deployment::name).collect::<Vec<_>>().join(", ")
}
