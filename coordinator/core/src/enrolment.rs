//! The ways in: who may become a device, under which identity, and in which groups it begins.
//!
//! Everything here is one decision, stored in one transaction: the use of a claim, the device, its labels and the
//! groups that these select. A device that asks again, because the answer was lost, gets the same identity and uses
//! nothing up. Leaves certificates to whoever has the CA, rules to the shell, and requests' bytes to EST.

mod claims;
mod refused;

use std::collections::BTreeMap;

use fleetkey_wire::{DeviceId, Now};
use rand_core::CryptoRngCore;

use crate::actor::Actor;
use crate::coordinator::Coordinator;
use crate::error::CommandError;
use crate::labels::Labels;
use crate::records::{ClaimId, ClaimRecord, DeviceRecord, Origin, RequestRecord, Standing};

pub use claims::{ClaimSecret, ClaimTerms, ShownClaim};
pub use refused::EnrolRefused;

/// Devices that may wait for an operator's word at the same time.
pub const MAX_REQUESTS: usize = 10_000;
/// Claims that may be there at the same time.
pub const MAX_CLAIMS: usize = 10_000;

/// What somebody shows who wants to become a device.
#[derive(Debug, Clone)]
pub struct Application {
    /// The key that it has proved to hold.
    pub public_key: [u8; 32],
    /// What it would like to be called.
    pub name: Option<String>,
    /// What speaks for it.
    pub proof: Proof,
    /// What the shell's rules say.
    pub verdict: Verdict,
    /// What the shell's rules label it with.
    pub labels: Labels,
}

/// What speaks for an applicant.
#[derive(Debug, Clone)]
pub enum Proof {
    /// A claim.
    Claim(ShownClaim),
    /// A certificate of a manufacturer's, which was verified and mapped to this id.
    Manufacturer {
        /// The manufacturer's rule.
        manufacturer: String,
        /// The id that the rule makes of the certificate, always the same for the same device.
        device: DeviceId,
    },
}

/// What rules say of an applicant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verdict {
    /// It may come in.
    #[default]
    Approve,
    /// An operator decides.
    Ask,
    /// It may not.
    Deny,
}

/// What became of an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enrolment {
    /// It is a device: it may have a certificate.
    Enrolled {
        /// Its id.
        device: DeviceId,
        /// Whether it was one before.
        is_known: bool,
    },
    /// An operator has not decided yet.
    Waits {
        /// The id that it will have.
        device: DeviceId,
    },
}

/// What the coordinator knows of the ways in.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    pub(crate) claims: BTreeMap<ClaimId, ClaimRecord>,
    pub(crate) requests: BTreeMap<DeviceId, RequestRecord>,
    /// Whose key is whose: devices', and those that wait.
    pub(crate) keys: BTreeMap<[u8; 32], DeviceId>,
}

impl Coordinator {
    /// Somebody wants to become a device.
    ///
    /// # Errors
    /// [`EnrolRefused`]: nothing has changed but a counter.
    pub fn enrol(
        &mut self,
        application: &Application,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<Enrolment, EnrolRefused> {
        let decided = self.acting(Actor::Coordinator, |this| this.decide_enrolment(application, now, rng));
        if let Err(refused) = &decided {
            use fleetkey_wire::error::Named as _;
            self.context.count(refused.name());
        }
        decided
    }

    fn decide_enrolment(
        &mut self,
        application: &Application,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<Enrolment, EnrolRefused> {
        if self.context.is_superseded() {
            return Err(EnrolRefused::Superseded);
        }
        let origin = self.origin_of(&application.proof)?;
        self.context.actor = Actor::Applicant(origin.clone());
        if let Some(known) = self.desk.keys.get(&application.public_key) {
            return self.asked_before(*known, &application.proof, &origin);
        }
        let wants_approval = self.open_claim(&application.proof, now)?;
        let device = match &application.proof {
            Proof::Claim(_) => DeviceId::random(rng.as_rngcore()),
            Proof::Manufacturer { device, .. } => *device,
        };
        match self.device(device).map(|known| &known.standing) {
            Some(Standing::Revoked { .. }) => return Err(EnrolRefused::Revoked { device }),
            Some(Standing::Enrolled | Standing::Quarantined { .. }) => {
                return Err(EnrolRefused::OtherKey { device });
            }
            None if self.desk.requests.contains_key(&device) => {
                return Err(EnrolRefused::OtherKey { device });
            }
            None => {}
        }
        let has_to_wait = match application.verdict {
            Verdict::Deny => return Err(EnrolRefused::DeniedByRule),
            Verdict::Ask => true,
            Verdict::Approve => wants_approval,
        };
        let request = RequestRecord {
            device,
            name: self.free_name(application.name.as_deref(), device),
            public_key: application.public_key,
            labels: self.claim_labels(&origin).with(&application.labels),
            origin,
            unix_seconds: now.unix_seconds,
            is_denied: false,
        };
        self.check_key(device, &request.public_key).map_err(|why| EnrolRefused::BadKey { why })?;
        if has_to_wait && self.desk.requests.len() >= MAX_REQUESTS {
            return Err(EnrolRefused::TooManyWait);
        }
        self.use_claim(&request.origin);
        if has_to_wait {
            self.context.put(&request);
            self.context.audit(now, "request", device, &request.name);
            self.desk.keys.insert(request.public_key, device);
            self.desk.requests.insert(device, request);
            return Ok(Enrolment::Waits { device });
        }
        self.admit(request, now, rng);
        Ok(Enrolment::Enrolled { device, is_known: false })
    }

    /// Whoever holds this key has asked before: it gets the same answer, if it shows the same proof.
    fn asked_before(
        &self,
        known: DeviceId,
        proof: &Proof,
        origin: &Origin,
    ) -> Result<Enrolment, EnrolRefused> {
        let of_device = self.devices.get(&known).map(|device| &device.record.origin);
        let of_request = self.desk.requests.get(&known).map(|request| &request.origin);
        let is_same = of_device.or(of_request) == Some(origin)
            && match proof {
                Proof::Claim(_) => true,
                Proof::Manufacturer { device, .. } => *device == known,
            };
        if let Some(device) = self.devices.get(&known)
            && device.is_revoked()
        {
            return Err(EnrolRefused::Revoked { device: known });
        }
        if !is_same {
            return Err(EnrolRefused::KeyInUse);
        }
        match self.desk.requests.get(&known) {
            Some(request) if request.is_denied => Err(EnrolRefused::DeniedByOperator { device: known }),
            Some(_) => Ok(Enrolment::Waits { device: known }),
            None => Ok(Enrolment::Enrolled { device: known, is_known: true }),
        }
    }

    /// An operator says yes. The device gets its certificate when it asks again.
    ///
    /// # Errors
    /// [`CommandError::NoRequest`].
    pub fn approve(
        &mut self,
        device: DeviceId,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<(), CommandError> {
        self.check_issuing()?;
        self.check_request(device)?;
        let mut request = self.drop_request(device).ok_or(CommandError::NoRequest(device))?;
        request.name = self.free_name(Some(&request.name), device);
        self.context.audit(now, "approve", device, &request.name);
        self.admit(request, now, rng);
        Ok(())
    }

    /// An operator says no. The key stays refused until the request is forgotten.
    ///
    /// # Errors
    /// [`CommandError::NoRequest`].
    pub fn deny(&mut self, device: DeviceId, now: Now) -> Result<(), CommandError> {
        self.check_request(device)?;
        let request = self.desk.requests.get_mut(&device).ok_or(CommandError::NoRequest(device))?;
        request.is_denied = true;
        self.context.put(request);
        self.context.audit(now, "deny", device, "");
        Ok(())
    }

    /// Forgets a request, denied or not: whoever made it may ask anew.
    ///
    /// # Errors
    /// [`CommandError::NoRequest`].
    pub fn forget_request(&mut self, device: DeviceId, now: Now) -> Result<(), CommandError> {
        self.check_request(device)?;
        let request = self.drop_request(device).ok_or(CommandError::NoRequest(device))?;
        // It let nobody in.
        self.give_claim_back(&request.origin);
        self.context.audit(now, "forget_request", device, &request.name);
        Ok(())
    }

    /// Whether whoever acts may say something to this request: it leads where they may act.
    fn check_request(&self, device: DeviceId) -> Result<(), CommandError> {
        let request = self.desk.requests.get(&device).ok_or(CommandError::NoRequest(device))?;
        self.check_labels(&request.labels)
    }

    pub(crate) fn drop_request(&mut self, device: DeviceId) -> Option<RequestRecord> {
        let request = self.desk.requests.remove(&device)?;
        self.desk.keys.remove(&request.public_key);
        self.context.delete(&request);
        Some(request)
    }

    /// Those that wait for an operator's word, or were denied.
    pub fn requests(&self) -> impl Iterator<Item = &RequestRecord> {
        self.desk.requests.values()
    }

    /// The request of this id or name. A name that several have names none of them.
    pub fn find_request(&self, name_or_id: &str) -> Option<DeviceId> {
        let by_id = name_or_id.parse().ok().filter(|id| self.desk.requests.contains_key(id));
        let by_name = || {
            let mut named = self.desk.requests.values().filter(|request| request.name == name_or_id);
            named.next().filter(|_| named.next().is_none())
        };
        by_id.or_else(|| by_name().map(|request| request.device))
    }

    /// Makes a device of a request, and wants it in every group that its labels select.
    fn admit(&mut self, request: RequestRecord, now: Now, rng: &mut dyn CryptoRngCore) {
        let RequestRecord { device, name, public_key, origin, labels, .. } = request;
        let detail = name.clone();
        self.register(
            DeviceRecord {
                id: device,
                name,
                public_key,
                standing: Standing::Enrolled,
                enrolled_unix_seconds: now.unix_seconds,
                fresh_joins: 0,
                last_fresh_join_unix_seconds: 0,
                labels,
                origin,
            },
            &detail,
            now,
        );
        self.want_where_selected(device, &Labels::default(), now, rng);
    }

    /// Wants a device in the groups whose selectors select it, and did not while it was labelled as `before`: it was
    /// taken out of those on purpose, if it is not in them.
    pub(crate) fn want_where_selected(
        &mut self,
        device: DeviceId,
        before: &Labels,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) {
        let Some(known) = self.devices.get(&device) else { return };
        let selects = |selector: &Option<Labels>| {
            let newly = |selector: &Labels| selector.select(&known.record.labels) && !selector.select(before);
            selector.as_ref().is_some_and(newly)
        };
        let groups: Vec<_> = self
            .groups
            .values()
            .filter(|group| selects(&group.record.selector))
            .map(|group| group.id())
            .filter(|group| !known.groups.contains(group))
            .take(fleetkey_wire::limits::MAX_CELLS_PER_DEVICE.saturating_sub(known.groups.len()))
            .collect();
        for group in groups {
            let added = self.add_members(group, &[device], now, rng);
            debug_assert!(added.is_ok(), "device and group are there, and there is room");
        }
    }

    /// The name that it would like, or one that nobody has.
    fn free_name(&self, wish: Option<&str>, device: DeviceId) -> String {
        let is_free = |name: &String| {
            !self.names.contains_key(name)
                && self.desk.requests.values().all(|other| other.device == device || other.name != *name)
        };
        let id = device.to_string();
        let short = id.split('-').next().unwrap_or(&id);
        // What an applicant calls itself stands in an operator's terminal: nothing there may look like something else.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let wish = wish.filter(|wish| wish.bytes().all(is_plain));
        let wish = wish.filter(|wish| crate::coordinator::check_name(wish).is_ok()).map(str::to_owned);
        let further = (2..).map(|number| format!("device-{id}.{number}"));
        let names =
            wish.into_iter().chain([format!("device-{short}"), format!("device-{id}")]).chain(further);
        names.into_iter().find(is_free).unwrap_or_default()
    }
}
