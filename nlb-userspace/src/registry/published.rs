//! What was last told to the data path, and what the next state would tell it.
//!
//! States share what they have in common, so this costs what has changed, not what there is.

use std::sync::Arc;

use nlb_common::abi::LIMIT_CHAIN;

use crate::compile::{self, Footprint};
use crate::model::Desired;

use super::{RegistryError, State};

/// A state, and what it means for the data path.
#[derive(Clone, Debug)]
pub struct Published {
    pub state: Arc<State>,
    pub desired: Arc<Desired>,
    footprint: Footprint,
}

impl Published {
    /// Of a state in which nobody has registered or asked for anything.
    pub fn first(state: Arc<State>) -> Self {
        let desired = state.desired_after(&state, &Desired::default());
        Published { state, desired: Arc::new(desired), footprint: Footprint::default() }
    }

    /// What would be published of a later state: under a new revision if that is news to the data path.
    pub fn next(&self, state: Arc<State>) -> Published {
        let mut desired = state.desired_after(&self.state, &self.desired);
        if desired == *self.desired {
            return Published { state, ..self.clone() };
        }
        desired.revision += 1;
        let mut footprint = self.footprint.clone();
        footprint.follow(&self.desired, &desired);
        Published { state, desired: Arc::new(desired), footprint }
    }

    /// A later state that is allowed and fits, without what was learned if need be.
    pub fn fitting(&self, candidate: State) -> Result<Published, RegistryError> {
        let next = self.next(Arc::new(candidate));
        let Err(error) = next.check(self) else { return Ok(next) };
        let without = self.next(Arc::new(next.state.without_learned().ok_or(error)?));
        without.check(self).map(|()| without)
    }

    /// Whether it keeps to the operator's limits, and has room in the maps, if what came before has.
    pub fn check(&self, before: &Published) -> Result<(), RegistryError> {
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
