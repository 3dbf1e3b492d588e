//! The former format of the file, which had one split of new flows for the whole fleet.

use anyhow::{Context, ensure};
use serde_json::{Map, Value};

use crate::registry::PersistedState;

/// What a state of format 1 had beside its other fields, and now has in its rollouts.
const ROLLOUT: [&str; 5] = ["version_weights", "split_since", "former_splits", "promotion", "last_promotion"];

/// Reads a file of format 1. Its split becomes that of every deployment, until a deployment's is changed.
pub(super) fn parse(bytes: &[u8]) -> anyhow::Result<PersistedState> {
    let mut file: Map<String, Value> = serde_json::from_slice(bytes)?;
    let mut state = file.remove("state").context("missing field `state`")?;
    let fields = state.as_object_mut().context("`state` is no object")?;
    let rollout = ROLLOUT.iter().filter_map(|name| fields.remove_entry(*name));
    let rollout: Map<String, Value> = rollout.collect();
    let is_new = fields.insert("fleet_rollout".to_owned(), Value::Object(rollout)).is_none();
    let is_new = fields.insert("rollouts".to_owned(), Value::Object(Map::new())).is_none() && is_new;
    ensure!(is_new, "fields of format 2 in a file of format 1");
    Ok(serde_json::from_value(state)?)
}
