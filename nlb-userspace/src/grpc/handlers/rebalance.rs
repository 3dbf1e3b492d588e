//! RebalanceLoad: changes the shares of new flows so that the load evens out. Existing flows stay where they
//! are.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nlb_proto::{RebalanceLoadRequest, RebalanceLoadResponse};

use super::control::Control;
use crate::compile::{MapImage, maglev};
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::validate::{self, FieldViolation};
use crate::policy::balance::{self, Strategy};

/// A balance score that needs no rebalancing.
const BALANCED_FROM: f64 = 0.95;
const MAX_TARGETS: usize = 10_000;

impl Control {
    pub async fn rebalance_load(
        &self,
        request: RebalanceLoadRequest,
    ) -> Result<RebalanceLoadResponse, CallError> {
        let strategy = strategy(&request.strategy)?;
        let targets = targets(&request.target_instances)?;
        let state = self.registry.snapshot();
        for instance_id in &targets {
            state.record(instance_id)?;
        }
        let wanted = |id: &str| targets.is_empty() || targets.contains(id);
        let loads = self.loads(&state, |record| wanted(&record.registration.instance_id));
        let balance = balance::balance(&loads);
        let asked = |id: &str| state.record(id).map_or(0, |record| record.asked_weight);
        let weights = strategy.weights(&loads, asked);
        let before = shares(&self.applied.borrow().image);
        let left_alone = if weights.is_empty() {
            Some("none of the instances takes new flows; nothing was changed".to_owned())
        } else if !request.force && balance >= BALANCED_FROM {
            Some(format!(
                "the balance score is {balance:.2}, which is even enough; nothing was changed (force changes it)"
            ))
        } else {
            None
        };
        if let Some(message) = left_alone {
            return Ok(RebalanceLoadResponse {
                success: true,
                message,
                previous_distribution: before.clone(),
                new_distribution: before,
                error: None,
            });
        }
        let revision = self.registry.rebalance(&weights)?;
        self.applied(revision).await?;
        let others = loads.len() - weights.len();
        let others = if others == 0 {
            String::new()
        } else {
            format!("; {others} take no new flows and were left alone")
        };
        Ok(RebalanceLoadResponse {
            success: true,
            message: format!(
                "the balance score was {balance:.2}; new flows follow {} new weights, and flows that have begun stay \
                 where they are{others}",
                weights.len()
            ),
            previous_distribution: before,
            new_distribution: shares(&self.applied.borrow().image),
            error: None,
        })
    }
}

fn strategy(name: &str) -> Result<Strategy, FieldViolation> {
    if name.is_empty() {
        return Ok(Strategy::default());
    }
    let usual = match name.replace('-', "_").as_str() {
        "round_robin" => "equal".to_owned(),
        "weighted" => "weight".to_owned(),
        "least_conn" => "least_connections".to_owned(),
        name => name.to_owned(),
    };
    let found = Strategy::ALL.into_iter().find(|(known, _)| *known == usual);
    found.map(|(_, strategy)| strategy).ok_or_else(|| {
        let known: Vec<&str> = Strategy::ALL.into_iter().map(|(name, _)| name).collect();
        let shown: String = name.chars().take(64).collect();
        FieldViolation::new("strategy", format!("{shown:?} is none of {}", known.join(", ")))
    })
}

fn targets(ids: &[String]) -> Result<BTreeSet<String>, FieldViolation> {
    if ids.len() > MAX_TARGETS {
        return Err(FieldViolation::new(
            "target_instances",
            format!("are more than {MAX_TARGETS}; leave them out for all"),
        ));
    }
    let parse = |(index, id): (usize, &String)| validate::id(&format!("target_instances[{index}]"), id);
    ids.iter().enumerate().map(parse).collect()
}

/// Shares of new flows in whole percent, from the tables in the kernel.
fn shares(image: &MapImage) -> HashMap<String, i32> {
    let slots: BTreeMap<&str, u64> = image.slots();
    let percent = maglev::divide(100, &slots.values().copied().collect::<Vec<_>>());
    slots.into_keys().map(str::to_owned).zip(percent.into_iter().map(|share| share as i32)).collect()
}
