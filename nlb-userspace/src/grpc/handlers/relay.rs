//! Calls that are passed on to a module, whose answer is returned. Calls about configuration that name no
//! instance are about the configuration of the NLB.

use nlb_proto::{
    ConfigUpdate, GetConfigRequest, GetConfigResponse, GetInstancesRequest, GetInstancesResponse,
    GetNlbConfigRequest, GetNlbConfigResponse, HealthStatus, ModuleType, ScaleRequest, ScaleResponse,
    UpdateConfigRequest, UpdateConfigResponse, UpdateNlbConfigRequest,
};

use super::config::checksum;
use super::control::Control;
use crate::grpc::client::fan_out::{all_done, message, peer};
use crate::grpc::client::peers::{Call, Outcome};
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::numbers::signed_32;
use crate::grpc::convert::scaling_config;
use crate::grpc::convert::validate::{self, FieldViolation};

impl Control {
    /// Asks a module to scale. The answer has the module's numbers of present and desired instances.
    pub async fn scale_module(
        self,
        request: ScaleRequest,
        passed_on: bool,
    ) -> Result<ScaleResponse, CallError> {
        let id = named(&request.instance_id)?;
        let config = request.config.map(scaling_config::parse).transpose();
        config.map_err(|violation| violation.within("config"))?;
        self.relay(&id, request, passed_on).await
    }

    /// The number of instances of this one's type.
    pub fn peers_of(&self, instance_id: &str) -> i32 {
        let snapshot = self.registry.snapshot();
        let Ok(record) = snapshot.record(instance_id) else { return 0 };
        let module_type = record.registration.module.module_type;
        let alike = snapshot.modules.values().filter(|r| r.registration.module.module_type == module_type);
        signed_32(alike.count())
    }

    pub fn instances_of_type(&self, request: GetInstancesRequest) -> Result<GetInstancesResponse, CallError> {
        let module_type = validate::known::<ModuleType>("module_type", request.module_type)?;
        let status = validate::known::<HealthStatus>("status_filter", request.status_filter)?;
        let instances = self.instances_like(module_type, status);
        let total_instances = signed_32(instances.len());
        Ok(GetInstancesResponse { instances, total_instances })
    }

    pub async fn config_of(
        &self,
        request: GetConfigRequest,
        passed_on: bool,
    ) -> Result<GetConfigResponse, CallError> {
        if request.instance_id.is_empty() {
            let own = GetNlbConfigRequest { config_type: request.config_type };
            let GetNlbConfigResponse { configs, last_updated } = self.nlb_config(own).await?;
            return Ok(GetConfigResponse { configs, last_updated });
        }
        let id = validate::id("instance_id", &request.instance_id)?;
        validate::text("config_type", &request.config_type, validate::TEXT_LENGTH)?;
        self.relay(&id, request, passed_on).await
    }

    pub async fn update_config_of(
        self,
        request: UpdateConfigRequest,
        passed_on: bool,
    ) -> Result<UpdateConfigResponse, CallError> {
        if request.instance_id.is_empty() {
            // This call has no field that accepts a setting which waits for a restart: such an update is
            // refused.
            let (config, validate_only) = (request.config, request.validate_only);
            let own = UpdateNlbConfigRequest { config, validate_only, restart_required: false };
            let answer = self.update_nlb_config(own).await?;
            let elsewhere =
                answer.requires_restart.then(|| "NLBService.UpdateNLBConfig has that field".to_owned());
            return Ok(UpdateConfigResponse {
                success: answer.success,
                message: message(answer.message, [elsewhere]),
                validation_passed: answer.validation_passed,
                validation_errors: answer.validation_errors,
                error: answer.error,
            });
        }
        let id = validate::id("instance_id", &request.instance_id)?;
        let config = request.config.as_ref().ok_or_else(|| FieldViolation::new("config", "is missing"))?;
        check_config(config).map_err(|violation| violation.within("config"))?;
        self.relay(&id, request, passed_on).await
    }

    pub(super) async fn relay<C: Call>(
        &self,
        id: &str,
        call: C,
        passed_on: bool,
    ) -> Result<C::Answer, CallError> {
        let module = peer(self.registry.snapshot().record(id)?);
        let outcome: Outcome<C::Answer> = self.peers.pass_on_to(module, call, passed_on).await;
        let answers = all_done(vec![(id.to_owned(), outcome)])?;
        Ok(answers.into_iter().map(|(_, answer)| answer).next().expect("one call that was done"))
    }
}

/// Modules with gRPC's default limits accept messages of 4 MiB.
const MOST_CONFIG_BYTES: usize = 3 << 20;

fn named(instance_id: &str) -> Result<String, FieldViolation> {
    if instance_id.is_empty() {
        return Err(FieldViolation::new("instance_id", "is empty; name an instance of the type to scale"));
    }
    validate::id("instance_id", instance_id)
}

fn check_config(config: &ConfigUpdate) -> Result<(), FieldViolation> {
    validate::text("config_id", &config.config_id, validate::TEXT_LENGTH)?;
    validate::text("config_type", &config.config_type, validate::TEXT_LENGTH)?;
    validate::text("checksum", &config.checksum, validate::TEXT_LENGTH)?;
    validate::time("updated_at", config.updated_at)?;
    if config.config_data.len() > MOST_CONFIG_BYTES {
        return Err(FieldViolation::new("config_data", format!("is longer than {MOST_CONFIG_BYTES} bytes")));
    }
    validate::text_map("metadata", config.metadata.clone())?;
    checksum(config)
}
