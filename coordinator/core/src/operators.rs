//! Operators: who they are, and where each of them may act.
//!
//! A scope is looked up and checked in the decision itself, so that nothing moves between the look and the act. What a
//! role may do is a matter of whoever takes the request in.

use std::collections::BTreeSet;
use std::sync::Arc;

use fleetkey_wire::{DeviceId, GroupId, Now};
use rand_core::CryptoRngCore;
use subtle::ConstantTimeEq;

use crate::actor::Actor;
use crate::coordinator::Coordinator;
use crate::error::{CommandError, OutOfScope};
use crate::labels::Labels;
use crate::records::{OperatorName, OperatorRecord, OperatorRole, Scope};
use crate::secret::ShownSecret;

/// Operators that may be there at once. Whoever was ended, or has expired, is not.
pub const MAX_OPERATORS: usize = 1_000;

/// Names that are remembered, so that none is given to somebody else: those that were ended included.
pub const MAX_OPERATOR_NAMES: usize = 100_000;

/// The operators whose tokens opened something when this was taken: whoever takes requests in judges tokens by it, and asks
/// the coordinator nothing.
#[derive(Debug, Clone, Default)]
pub struct ActiveOperators(Arc<[OperatorRecord]>);

impl ActiveOperators {
    /// Whose token this is. All of them are looked at, each in constant time.
    pub fn holder_of(&self, token: &ShownSecret, unix_seconds: u64) -> Option<&OperatorRecord> {
        let digest = token.digest();
        let found = self.0.iter().fold(None, |found, record| {
            let is_it: bool = record.token_digest.ct_eq(&digest).into();
            if is_it { Some(record) } else { found }
        });
        found.filter(|record| record.is_active(unix_seconds))
    }

    /// Whether this operator's token opens anything.
    pub fn has(&self, name: &OperatorName, unix_seconds: u64) -> bool {
        self.0.iter().any(|record| record.name == *name && record.is_active(unix_seconds))
    }
}

/// What somebody is made an operator with.
#[derive(Debug, Clone)]
pub struct OperatorTerms {
    /// The name.
    pub name: OperatorName,
    /// What they may do.
    pub role: OperatorRole,
    /// Where.
    pub scope: Scope,
    /// The last second of the token.
    pub expires_unix_seconds: Option<u64>,
}

impl Coordinator {
    /// Decides something on somebody's account, within their scope: an operator who was ended meanwhile does nothing.
    ///
    /// # Errors
    /// [`CommandError::NotAnOperator`], and whatever `act` says.
    pub fn acting_for<T>(
        &mut self,
        actor: Actor,
        now: Now,
        act: impl FnOnce(&mut Self) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let scope = match &actor {
            Actor::Coordinator | Actor::Root | Actor::Device(_) | Actor::Applicant(_) => Scope::Fleet,
            Actor::Operator(name) => {
                let record = self.operators.get(name).filter(|record| record.is_active(now.unix_seconds));
                record.ok_or_else(|| CommandError::NotAnOperator(name.clone()))?.scope.clone()
            }
        };
        let before = std::mem::replace(&mut self.context.scope, scope);
        let done = self.acting(actor, act);
        self.context.scope = before;
        done
    }

    /// Makes somebody an operator. The token is given out once: what is kept is its digest.
    ///
    /// # Errors
    /// When the name was used before, the scope makes no sense, or there are too many.
    pub fn create_operator(
        &mut self,
        terms: OperatorTerms,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<ShownSecret, CommandError> {
        self.check_fleet()?;
        let OperatorTerms { name, role, scope, expires_unix_seconds } = terms;
        if self.operators.contains_key(&name) {
            return Err(CommandError::NameTaken(name.to_string()));
        }
        if self.operators.len() >= MAX_OPERATOR_NAMES {
            return Err(CommandError::TooManyOperatorNames);
        }
        let active = self.operators.values().filter(|record| record.is_active(now.unix_seconds)).count();
        if active >= MAX_OPERATORS {
            return Err(CommandError::TooManyOperators);
        }
        if let Scope::Groups(groups) = &scope {
            if role == OperatorRole::Admin {
                return Err(CommandError::BadOperator(
                    "an admin is one of the whole fleet: leave the groups out",
                ));
            }
            if groups.is_empty() {
                return Err(CommandError::BadOperator("a scope of no groups: name some, or leave it out"));
            }
            if let Some(unknown) = groups.iter().find(|group| !self.groups.contains_key(group)) {
                return Err(CommandError::UnknownGroup(*unknown));
            }
        }
        if expires_unix_seconds.is_some_and(|last| last <= now.unix_seconds) {
            return Err(CommandError::BadOperator("the token would have expired already"));
        }
        let token = ShownSecret::random(rng);
        let record = OperatorRecord {
            name: name.clone(),
            role,
            scope,
            token_digest: token.digest(),
            created_unix_seconds: now.unix_seconds,
            expires_unix_seconds,
            ended_unix_seconds: None,
        };
        self.context.put(&record);
        self.context.audit(now, "create_operator", &name, terms_of(&record));
        self.operators.insert(name, record);
        Ok(token)
    }

    /// Ends an operator: the token opens nothing from now on. The name stays theirs.
    ///
    /// # Errors
    /// [`CommandError::UnknownOperator`], also when they were ended before.
    pub fn end_operator(&mut self, name: &OperatorName, now: Now) -> Result<(), CommandError> {
        self.check_fleet()?;
        let record = self.operators.get_mut(name).filter(|record| record.ended_unix_seconds.is_none());
        let record = record.ok_or_else(|| CommandError::UnknownOperator(name.to_string()))?;
        record.ended_unix_seconds = Some(now.unix_seconds);
        self.context.put(record);
        self.context.audit(now, "end_operator", name, "");
        Ok(())
    }

    /// Every operator there ever was, in the order of their names.
    pub fn operators(&self) -> impl Iterator<Item = &OperatorRecord> {
        self.operators.values()
    }

    /// Those whose tokens open something now.
    pub fn active_operators(&self, unix_seconds: u64) -> ActiveOperators {
        let is_active = |record: &&OperatorRecord| record.is_active(unix_seconds);
        ActiveOperators(self.operators.values().filter(is_active).cloned().collect())
    }

    /// Whether whoever asks may see this group.
    pub fn sees_group(&self, group: GroupId) -> bool {
        self.context.scope.holds(group)
    }

    /// Whether whoever asks may see this device: as a member of a group of theirs.
    pub fn sees_device(&self, device: DeviceId) -> bool {
        self.check_seen(device).is_ok()
    }

    /// Whether whoever asks may put this device into a group of theirs.
    pub fn may_add_device(&self, device: DeviceId) -> bool {
        self.check_addable(device).is_ok()
    }

    /// Whether whoever asks may see what leads into the groups that these labels select.
    pub fn sees_labels(&self, labels: &Labels) -> bool {
        self.check_labels(labels).is_ok()
    }

    /// What concerns the whole fleet is for those whose scope it is.
    ///
    /// # Errors
    /// [`OutOfScope::Fleet`].
    pub fn check_fleet(&self) -> Result<(), CommandError> {
        match self.context.scope {
            Scope::Fleet => Ok(()),
            Scope::Groups(_) => Err(OutOfScope::Fleet.into()),
        }
    }

    /// What concerns a group is for those whose scope holds it.
    ///
    /// # Errors
    /// [`OutOfScope::Group`].
    pub fn check_group(&self, group: GroupId) -> Result<(), CommandError> {
        if self.sees_group(group) { Ok(()) } else { Err(OutOfScope::Group(group).into()) }
    }

    /// A device is seen through any of its groups.
    ///
    /// # Errors
    /// [`OutOfScope::Device`].
    pub fn check_seen(&self, device: DeviceId) -> Result<(), CommandError> {
        let is_seen = self.context.scope == Scope::Fleet
            || self.groups_of_device(device).any(|group| self.sees_group(group));
        if is_seen { Ok(()) } else { Err(OutOfScope::Device { device }.into()) }
    }

    /// What is done to a device as a whole is done in all of its groups: all of them have to be in the scope.
    pub(crate) fn check_device(&self, device: DeviceId) -> Result<(), CommandError> {
        self.check_seen(device)?;
        match self.groups_of_device(device).find(|group| !self.sees_group(*group)) {
            Some(group) => Err(OutOfScope::DeviceElsewhere { device, group }.into()),
            None => Ok(()),
        }
    }

    /// Whoever is put into a group is a device of the scope, or nobody's yet.
    pub(crate) fn check_addable(&self, device: DeviceId) -> Result<(), CommandError> {
        if self.groups_of_device(device).next().is_none() { Ok(()) } else { self.check_seen(device) }
    }

    /// Labels lead somewhere, and nowhere but into groups of the scope.
    pub(crate) fn check_labels(&self, labels: &Labels) -> Result<(), CommandError> {
        if self.context.scope == Scope::Fleet {
            return Ok(());
        }
        let selected: BTreeSet<GroupId> = self.selected_by(labels).collect();
        match selected.iter().find(|group| !self.sees_group(**group)) {
            Some(elsewhere) => Err(OutOfScope::LabelsElsewhere { group: *elsewhere }.into()),
            None if selected.is_empty() => Err(OutOfScope::Labels.into()),
            None => Ok(()),
        }
    }

    /// New labels of a device lead it into no group outside of the scope.
    pub(crate) fn check_relabelling(&self, device: DeviceId, labels: &Labels) -> Result<(), CommandError> {
        self.check_device(device)?;
        match self.selected_by(labels).find(|group| !self.sees_group(*group)) {
            Some(group) => Err(OutOfScope::LabelsElsewhere { group }.into()),
            None => Ok(()),
        }
    }

    fn selected_by<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = GroupId> + 'a {
        let selects = move |selector: &Option<Labels>| selector.as_ref().is_some_and(|s| s.select(labels));
        self.groups.values().filter(move |group| selects(&group.record.selector)).map(|group| group.id())
    }

    fn groups_of_device(&self, device: DeviceId) -> impl Iterator<Item = GroupId> + '_ {
        self.devices.get(&device).into_iter().flat_map(|device| device.groups.iter().copied())
    }
}

/// Role, scope and end, for the audit log.
fn terms_of(record: &OperatorRecord) -> String {
    let scope = match &record.scope {
        Scope::Fleet => "the fleet".to_owned(),
        Scope::Groups(groups) => {
            let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
            groups.join(" ")
        }
    };
    let until = record.expires_unix_seconds.map(|last| format!(" until {last}")).unwrap_or_default();
    format!("{} of {scope}{until}", record.role)
}
