//! The NLB's own settings over gRPC: one ConfigUpdate of type `nlb`, whose data is JSON.

use std::time::SystemTime;

use nlb_proto as proto;
use sha2::{Digest, Sha256};

use super::control::Control;
use crate::config::{Proposal, Rejected};
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::validate::{self, FieldViolation};
use crate::registry::Commit;

/// The only type of configuration.
const TYPE: &str = "nlb";

/// All settings together are far smaller.
const MAX_BYTES: usize = 64 << 10;

/// Metadata keys: the number of updates, and the settings that wait for a restart.
const VERSION: &str = "version";
const WAITING: &str = "waiting_for_restart";

impl Control {
    pub async fn update_nlb_config(
        &self,
        request: proto::UpdateNlbConfigRequest,
    ) -> Result<proto::UpdateNlbConfigResponse, CallError> {
        let update = request.config.ok_or_else(|| FieldViolation::new("config", "is missing"))?;
        check(&update).map_err(|violation| violation.within("config"))?;
        let mut versions = self.configuration.lock().await;
        let current = config_id(versions.version());
        // An id that the NLB did not give is not an expected version.
        if is_config_id(&update.config_id) && update.config_id != current {
            return Err(CallError::Outdated { given: update.config_id, current });
        }
        let proposal = match versions.propose(&update.config_data, SystemTime::now()) {
            Ok(proposal) => proposal,
            Err(Rejected(problem)) => return Ok(rejected(problem)),
        };
        let requires_restart = !proposal.waiting.is_empty();
        // The registry's refusals are found before anything is written to disk.
        let settings = proposal.config.registry.clone();
        if let Err(refusal) = self.registry.configure(settings.clone(), Commit::DryRun) {
            return Ok(rejected(refusal.to_string()));
        }
        if requires_restart && !request.restart_required && !request.validate_only {
            let waiting = proposal.waiting.join(", ");
            let problem = format!("{waiting} would wait for a restart; set restart_required to accept that");
            return Ok(proto::UpdateNlbConfigResponse { requires_restart, ..rejected(problem) });
        }
        let mut message = outcome_text(&proposal, request.validate_only);
        if settings.forward_mode != self.registry.settings().forward_mode {
            let state = self.registry.snapshot();
            let others = state
                .modules
                .values()
                .filter(|record| record.registration.module.mode != settings.forward_mode);
            message += &format!(
                "; forward_mode is for modules that register from now on without one; registered modules that keep another: {}",
                others.count()
            );
        }
        if !request.validate_only {
            versions.adopt(proposal).map_err(|error| CallError::NotKept(format!("{error:#}")))?;
            let revision = self.registry.configure(settings, Commit::Apply)?;
            self.applied(revision).await?;
        }
        Ok(proto::UpdateNlbConfigResponse {
            success: true,
            message,
            validation_passed: true,
            validation_errors: Vec::new(),
            requires_restart,
            error: None,
        })
    }

    pub async fn nlb_config(
        &self,
        request: proto::GetNlbConfigRequest,
    ) -> Result<proto::GetNlbConfigResponse, CallError> {
        check_type(&request.config_type)?;
        let versions = self.configuration.lock().await;
        let not_kept = |error: anyhow::Error| CallError::NotKept(format!("{error:#}"));
        let settings = versions.settings().map_err(not_kept)?;
        let waiting = versions.waiting().map_err(not_kept)?;
        let config_data = serde_json::Value::Object(settings).to_string().into_bytes();
        let updated_at = Some(versions.updated_at().unwrap_or(self.started_at).into());
        let metadata =
            [(VERSION.to_owned(), versions.version().to_string()), (WAITING.to_owned(), waiting.join(","))];
        let config = proto::ConfigUpdate {
            config_id: config_id(versions.version()),
            config_type: TYPE.to_owned(),
            checksum: sha256(&config_data),
            config_data,
            updated_at,
            metadata: metadata.into(),
        };
        Ok(proto::GetNlbConfigResponse { configs: vec![config], last_updated: updated_at })
    }
}

fn check(update: &proto::ConfigUpdate) -> Result<(), FieldViolation> {
    check_type(&update.config_type)?;
    validate::text("config_id", &update.config_id, validate::TEXT_LENGTH)?;
    validate::time("updated_at", update.updated_at)?;
    validate::text_map("metadata", update.metadata.clone())?;
    if update.config_data.len() > MAX_BYTES {
        return Err(FieldViolation::new("config_data", format!("is longer than {MAX_BYTES} bytes")));
    }
    if update.checksum.is_empty() {
        return Err(FieldViolation::new(
            "checksum",
            "is empty; give the SHA-256 of config_data in hexadecimal",
        ));
    }
    checksum(update)
}

/// Whether a checksum, if given, is that of the data.
pub(crate) fn checksum(update: &proto::ConfigUpdate) -> Result<(), FieldViolation> {
    let sum = sha256(&update.config_data);
    let given = update.checksum.strip_prefix("sha256:").unwrap_or(&update.checksum);
    if update.checksum.is_empty() || given.eq_ignore_ascii_case(&sum) {
        return Ok(());
    }
    let problem = format!("is not the SHA-256 of config_data as it arrived, which is {sum}");
    Err(FieldViolation::new("checksum", problem))
}

fn check_type(given: &str) -> Result<(), FieldViolation> {
    if given.is_empty() || given == TYPE {
        return Ok(());
    }
    Err(FieldViolation::new("config_type", format!("{given:?} is unknown; the NLB has {TYPE:?}")))
}

fn config_id(version: u64) -> String {
    format!("{TYPE}-{version}")
}

/// Whether the id may come from the NLB.
fn is_config_id(id: &str) -> bool {
    let version = id.strip_prefix(TYPE).and_then(|rest| rest.strip_prefix('-'));
    version.is_some_and(|version| !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit()))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn rejected(problem: String) -> proto::UpdateNlbConfigResponse {
    proto::UpdateNlbConfigResponse {
        success: false,
        message: format!("nothing was changed: {problem}"),
        validation_passed: false,
        error: Some(CallError::from(FieldViolation::new("config.config_data", problem.clone())).to_proto()),
        validation_errors: vec![problem],
        requires_restart: false,
    }
}

fn outcome_text(proposal: &Proposal, validate_only: bool) -> String {
    let mut message = if validate_only { "valid; nothing was changed" } else { "in force" }.to_owned();
    if !proposal.waiting.is_empty() {
        message += &format!("; {} with the next start", proposal.waiting.join(", "));
    }
    if !proposal.overridden.is_empty() {
        let overridden = proposal.overridden.join(", ");
        message += &format!(
            "; {overridden} is given by flag or variable too, which takes precedence at the next start"
        );
    }
    message
}
