//! Who is let in over EST: questions of devices, brought before the coordinator and answered by the CA.
//!
//! Leaves HTTP and TLS to `fleetkey-est`, and the decision to the coordinator's core.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use fleetkey_coordinator_core::enrolment::{
    Application, EnrolRefused, Enrolment, Proof, ShownClaim, Verdict,
};
use fleetkey_coordinator_core::{Actor, CommandError};
use fleetkey_est::{About, Answer, Applicant, Refusal, Registrar, Way};
use fleetkey_identity::{Identity, KeyId, Role, SigningRequest};
use fleetkey_wire::DeviceId;
use fleetkey_wire::error::Named as _;

use crate::authority::{Authority, AuthorityError};
use crate::engine::CommandFailed;
use crate::handle::ServiceHandle;
use crate::revocations::RevocationLists;
use crate::rules::Rules;

/// When a device is to ask again that came at a bad moment.
const BUSY: Duration = Duration::from_secs(5);

/// Decides over EST.
pub(crate) struct EstRegistrar {
    pub(crate) service: ServiceHandle,
    pub(crate) authority: Arc<Authority>,
    pub(crate) lists: RevocationLists,
    pub(crate) rules: Rules,
    /// When a device that waits for an operator is to ask again.
    pub(crate) ask_again: Duration,
}

impl Registrar for EstRegistrar {
    fn ca_certificates(&self) -> Vec<Vec<u8>> {
        self.authority.ca_certificates()
    }

    fn revocation_list(&self) -> Option<Bytes> {
        self.lists.newest()
    }

    fn revocation_list_of(&self, ca: &str) -> Option<Bytes> {
        let mut id = [0; 8];
        hex::decode_to_slice(ca, &mut id).ok()?;
        self.lists.newest_of(KeyId(id))
    }

    fn about(&self) -> About {
        self.authority.about()
    }

    async fn enrol(&self, applicant: Applicant) -> Result<Answer, Refusal> {
        let Applicant { request: SigningRequest { public_key, common_name }, way } = applicant;
        let (verdict, labels) = self.rules.of(&way);
        let (name, proof) = match way {
            Way::Claim { user, password } => {
                let shown = ShownClaim::of_parts(&user, &password)
                    .map_err(|why| Refusal::Unauthorized { name: "not_a_claim", why: why.to_string() })?;
                (common_name, Proof::Claim(shown))
            }
            Way::Manufacturer(mapped) => {
                let name = format!("{}-{}", mapped.manufacturer, mapped.name);
                let proof = Proof::Manufacturer { manufacturer: mapped.manufacturer, device: mapped.device };
                (Some(name), proof)
            }
        };
        let application = Application { public_key, name, proof, verdict, labels };
        let decided = self
            .service
            .decide(move |coordinator, now, rng| Ok(coordinator.enrol(&application, now, rng)))
            .await
            .map_err(failed)?;
        match decided {
            Ok(Enrolment::Enrolled { device, .. }) => self.issue(device, &public_key).await,
            Ok(Enrolment::Waits { .. }) => Ok(Answer::Waits(self.ask_again)),
            Err(refused) => Err(refusal(&refused)),
        }
    }

    async fn reenrol(&self, identity: Identity, request: SigningRequest) -> Result<Answer, Refusal> {
        let Role::Device(device) = identity.role else {
            let why = "only devices renew their certificates here".to_owned();
            return Err(Refusal::Forbidden { name: "not_a_device", why });
        };
        if request.public_key != identity.public_key {
            let why = "a device keeps its key for as long as it is that device: ask for a certificate on the same key, \
                       or enrol a new device"
                .to_owned();
            return Err(Refusal::Forbidden { name: "another_key", why });
        }
        self.issue(device, &request.public_key).await
    }
}

impl EstRegistrar {
    async fn issue(&self, device: DeviceId, public_key: &[u8; 32]) -> Result<Answer, Refusal> {
        let service = self.service.acting_as(Actor::Device(device));
        match self.authority.issue(&service, device, public_key).await {
            Ok(chain) => Ok(Answer::Issued(chain)),
            Err(AuthorityError::Command(command)) => Err(failed(command)),
            Err(AuthorityError::Issue(error)) => {
                tracing::error!(%device, %error, "no certificate could be issued");
                Err(unavailable("ca", "the CA cannot issue now".to_owned()))
            }
        }
    }
}

fn unavailable(name: &'static str, why: String) -> Refusal {
    Refusal::Unavailable { name, why, retry_after: BUSY }
}

fn failed(failed: CommandFailed) -> Refusal {
    let (name, why) = (failed.name(), failed.to_string());
    match failed {
        CommandFailed::Refused(CommandError::Internal(_))
        | CommandFailed::NotStored { .. }
        | CommandFailed::Unavailable => unavailable(name, why),
        CommandFailed::Refused(_) => Refusal::Forbidden { name, why },
    }
}

fn refusal(refused: &EnrolRefused) -> Refusal {
    let (name, why) = (refused.name(), refused.to_string());
    match refused {
        EnrolRefused::UnknownClaim => Refusal::Unauthorized { name, why },
        EnrolRefused::BadKey { .. } => Refusal::BadRequest { name, why },
        EnrolRefused::TooManyWait | EnrolRefused::Superseded => unavailable(name, why),
        EnrolRefused::ClaimExpired { .. }
        | EnrolRefused::ClaimUsedUp { .. }
        | EnrolRefused::Revoked { .. }
        | EnrolRefused::OtherKey { .. }
        | EnrolRefused::KeyInUse
        | EnrolRefused::DeniedByRule
        | EnrolRefused::DeniedByOperator { .. } => Refusal::Forbidden { name, why },
    }
}

/// Claims open more than a rule says; a rule can only be stricter.
impl From<crate::config::Approval> for Verdict {
    fn from(approval: crate::config::Approval) -> Self {
        match approval {
            crate::config::Approval::Automatic => Self::Approve,
            crate::config::Approval::Operator => Self::Ask,
            crate::config::Approval::Never => Self::Deny,
        }
    }
}
