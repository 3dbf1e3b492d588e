//! The answers of an instance about weights and versions. The NLB decides how new flows are shared, so it is
//! called first unless it passes the call on.

use nlb_proto::*;
use tonic::Status;

use crate::answers::{Answer, outcome};
use crate::control::Origin;
use crate::nlb::Failure;
use crate::state::State;

const LARGEST_WEIGHT: i32 = 10_000;

impl State {
    /// A call with a version and without an instance is about the version's share among the others, which the
    /// NLB stores: this instance's own weight within the version stays unchanged.
    pub async fn set_traffic_weight(
        &self,
        request: SetTrafficWeightRequest,
        origin: Origin,
    ) -> Answer<SetTrafficWeightResponse> {
        self.check_version(&request.version)?;
        let weight = match request.weight {
            weight @ 0..=LARGEST_WEIGHT => weight as u32,
            weight => {
                return Err(Status::invalid_argument(format!(
                    "weight {weight} is not within 0 to {LARGEST_WEIGHT}"
                )));
            }
        };
        let of_version = request.instance_id.is_empty() && !request.version.is_empty();
        let changed = if of_version { Ok(0) } else { self.change_weight(weight, origin).await };
        let (success, message, error) = outcome(&changed);
        Ok(SetTrafficWeightResponse { success, message, current_config: None, error })
    }

    async fn change_weight(&self, weight: u32, origin: Origin) -> Result<i32, Failure> {
        let before = self.weight();
        if weight == before {
            return Ok(0);
        }
        self.set_weight(weight);
        if origin == Origin::Direct
            && let Err(refusal) = self.nlb.set_weight(self, weight).await
        {
            self.set_weight(before);
            return Err(refusal);
        }
        Ok(1)
    }

    /// A promotion that the NLB passes on needs an action only if the instance prepares for its share.
    pub async fn promote_version(
        &self,
        request: PromoteVersionRequest,
        origin: Origin,
    ) -> Answer<PromoteVersionResponse> {
        self.check_version(&request.version)?;
        let promoted = match origin {
            Origin::Nlb => Ok(0),
            Origin::Direct => {
                let (instance_id, version) = (self.instance_id().to_owned(), self.version().to_owned());
                self.nlb.promote(PromoteVersionRequest { instance_id, version, ..request }).await.map(|()| 1)
            }
        };
        let (success, message, error) = outcome(&promoted);
        let promoted_version = if success { self.version().to_owned() } else { String::new() };
        Ok(PromoteVersionResponse { success, message, promoted_version, error })
    }

    /// Like [`State::promote_version`].
    pub async fn rollback(&self, request: RollbackRequest, origin: Origin) -> Answer<RollbackResponse> {
        let rolled_back = match origin {
            Origin::Nlb => {
                let current_version = request.target_version;
                Ok(RollbackResponse { success: true, current_version, ..RollbackResponse::default() })
            }
            Origin::Direct => {
                let instance_id = self.instance_id().to_owned();
                self.nlb.roll_back(RollbackRequest { instance_id, ..request }).await
            }
        };
        rolled_back.or_else(|failure| {
            let (success, message, error) = outcome(&Err(failure));
            Ok(RollbackResponse { success, message, error, ..RollbackResponse::default() })
        })
    }

    pub fn get_active_version(&self, _: GetActiveVersionRequest) -> Answer<GetActiveVersionResponse> {
        Ok(GetActiveVersionResponse {
            active_version: self.version().to_owned(),
            config: None,
            version_weights: [(self.version().to_owned(), self.weight() as i32)].into(),
        })
    }

    fn check_version(&self, version: &str) -> Answer<()> {
        if version.is_empty() || version == self.version() {
            return Ok(());
        }
        let why = format!("this instance is of version `{}`, not `{version}`", self.version());
        Err(Status::invalid_argument(why))
    }
}
