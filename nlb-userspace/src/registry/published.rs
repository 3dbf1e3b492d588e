//! The desired state that was last published to the data path, and the one that a new state would publish.
//!
//! States share what they have in common, so the cost grows with what changed, not with the size of the
//! state.

use std::sync::Arc;

use nlb_common::abi::LIMIT_CHAIN;

use crate::compile::{self, Footprint};
use crate::model::Desired;

use super::{RegistryError, State};

/// A state, and the desired state of the data path that follows from it.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub state: Arc<State>,
    pub desired: Arc<Desired>,
    footprint: Footprint,
}

impl Published {
    /// The published form of a state without registrations and settings of operators.
    pub(super) fn first(state: Arc<State>) -> Self {
        let desired = state.desired_after(&state, &Desired::default());
        Published { state, desired: Arc::new(desired), footprint: Footprint::default() }
    }

    /// The published form of a later state: with a new revision, if its desired state differs.
    pub(super) fn next(&self, state: Arc<State>) -> Published {
        let mut desired = state.desired_after(&self.state, &self.desired);
        if desired == *self.desired {
            return Published { state, ..self.clone() };
        }
        desired.revision += 1;
        let mut footprint = self.footprint.clone();
        footprint.follow(&self.desired, &desired);
        Published { state, desired: Arc::new(desired), footprint }
    }

    /// The published form of a later state that is allowed and fits, if need be without learned routes.
    pub(super) fn fitting(&self, candidate: State) -> Result<Published, RegistryError> {
        let next = self.next(Arc::new(candidate));
        let Err(error) = next.check(self) else { return Ok(next) };
        let without = self.next(Arc::new(next.state.without_learned().ok_or(error)?));
        without.check(self).map(|()| without)
    }

    /// Whether the state keeps to the operator's limits and fits the maps, provided that the state before
    /// does.
    pub(super) fn check(&self, before: &Published) -> Result<(), RegistryError> {
        let (desired, settings) = (&self.desired, &self.state.settings);
        if desired.modules.len() > settings.max_modules {
            return Err(RegistryError::TooManyModules(settings.max_modules));
        }
        let operators = desired.operator_routes.len() + desired.learned_routes.len();
        let wanted = self.footprint.module_routes() + operators;
        if wanted > settings.max_routes {
            return Err(RegistryError::TooManyRoutes { wanted, limit: settings.max_routes });
        }
        if !desired.rate_limits.ptr_eq(&before.desired.rate_limits) {
            let met = compile::longest_chain(desired);
            if met > LIMIT_CHAIN {
                return Err(RegistryError::TooManyLimitsMet { met, limit: LIMIT_CHAIN });
            }
        }
        if self.footprint.fits(desired, &settings.limits) {
            return Ok(());
        }
        compile::fits(desired, &settings.limits).map_err(RegistryError::TooMany)
    }
}
