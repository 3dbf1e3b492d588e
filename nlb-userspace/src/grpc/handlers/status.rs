//! The status of the NLB itself.

use std::collections::BTreeMap;
use std::time::SystemTime;

use nlb_proto::{
    CheckHealthRequest, CheckHealthResponse, GetNlbStatusRequest, GetNlbStatusResponse, HealthStatus,
};

use super::control::Control;
use crate::grpc::convert::enums;
use crate::grpc::convert::numbers::{signed_32, signed_64};
use crate::model::Health;

impl Control {
    pub fn check_health(&self, request: CheckHealthRequest) -> CheckHealthResponse {
        let (mut status, mut message) = self.condition();
        let mut checks = self.data_path();
        if request.deep_check {
            let traffic = self.traffic.borrow();
            checks.insert("packets_seen".to_owned(), traffic.packets_seen.to_string());
            checks.insert("packets_of_unrecorded_flows".to_owned(), traffic.unrecorded.to_string());
            checks.insert("destinations_not_asked_about".to_owned(), traffic.unasked.to_string());
            for ((verdict, reason), packets) in &traffic.exits {
                checks.insert(format!("packets.{verdict}.{reason}"), packets.to_string());
            }
        }
        let mut module_health = BTreeMap::new();
        if request.check_modules {
            let snapshot = self.registry.snapshot();
            let health = snapshot.modules.iter().map(|(id, record)| (id.clone(), record.health()));
            let health: BTreeMap<String, Health> = health.collect();
            let well = health.values().filter(|health| **health == Health::Healthy).count();
            let serving = health.values().filter(|health| health.takes_new_flows()).count();
            checks.insert("modules".to_owned(), format!("{well} of {} are healthy", health.len()));
            if status == HealthStatus::Healthy && well < health.len() {
                status = if serving == 0 { HealthStatus::Unhealthy } else { HealthStatus::Degraded };
                message = format!("{} of {} modules are not healthy", health.len() - well, health.len());
            }
            module_health = health.into_iter().map(|(id, h)| (id, enums::health_to_wire(h).into())).collect();
        }
        CheckHealthResponse {
            status: status.into(),
            message,
            module_health: module_health.into_iter().collect(),
            checks: checks.into_iter().collect(),
            checked_at: Some(SystemTime::now().into()),
        }
    }

    pub fn nlb_status(&self, request: GetNlbStatusRequest) -> GetNlbStatusResponse {
        let snapshot = self.registry.snapshot();
        let total = self.counted();
        let mut modules_by_type = BTreeMap::<String, i32>::new();
        for record in snapshot.modules.values() {
            let name = enums::module_type_name(record.registration.module.module_type);
            *modules_by_type.entry(name.to_owned()).or_default() += 1;
        }
        let mut details = self.data_path();
        details.extend(self.details.iter().cloned());
        GetNlbStatusResponse {
            status: self.condition().0.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: Some(self.started_at.into()),
            total_requests: signed_64(total.new_flows),
            active_connections: signed_64(total.active_flows),
            registered_modules: signed_32(snapshot.modules.len()),
            modules_by_type: modules_by_type.into_iter().collect(),
            modules: if request.include_modules { self.instances() } else { Vec::new() },
            details: details.into_iter().collect(),
        }
    }

    /// Degraded while the maps do not hold the desired state, where the earlier one is still served, and
    /// while the disk does not hold what operators set.
    fn condition(&self) -> (HealthStatus, String) {
        let not_applied = self.applied.borrow().error.clone();
        let not_stored = self.stored.borrow().error.clone();
        match (not_applied, not_stored) {
            (None, None) => (HealthStatus::Healthy, "the data path holds the desired state".to_owned()),
            (Some(reason), _) => {
                (HealthStatus::Degraded, format!("the data path holds an earlier state: {reason}"))
            }
            (None, Some(reason)) => (
                HealthStatus::Degraded,
                format!("operators' settings are not on disk, and a restart loses them: {reason}"),
            ),
        }
    }

    fn data_path(&self) -> BTreeMap<String, String> {
        let applied = self.applied.borrow();
        let mut seen = BTreeMap::from([
            ("desired_revision".to_owned(), self.registry.desired().borrow().revision.to_string()),
            ("applied_revision".to_owned(), applied.revision.to_string()),
        ]);
        let unserved = &applied.image.unserved;
        seen.extend(
            (!unserved.is_empty()).then(|| ("routes_without_traffic".to_owned(), unserved.join(", "))),
        );
        seen.extend(applied.error.clone().map(|reason| ("apply_error".to_owned(), reason)));
        seen.extend(self.stored.borrow().error.clone().map(|reason| ("store_error".to_owned(), reason)));
        let snapshot = self.registry.snapshot();
        let under_way = snapshot.promotion.as_ref();
        let promotion = under_way.map(|p| format!("{} has {} % of new flows", p.version(), p.percent()));
        let promotion = promotion.or_else(|| snapshot.last_promotion.clone());
        seen.extend(promotion.map(|text| ("promotion".to_owned(), text)));
        seen
    }
}
