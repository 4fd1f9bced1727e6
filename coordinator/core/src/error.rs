//! Why an input or a command was not followed, by name.

use fleetkey_identity::BadCertificate;
use fleetkey_wire::error::Named;
use fleetkey_wire::keys::BadPeerKey;
use fleetkey_wire::link::BadLinkFrame;
use fleetkey_wire::{BadStatement, CellEpoch, CellId, DeviceId, GroupId, KeyEpoch, PskId, Suite};

use crate::policy::BadPolicy;
use crate::records::{ClaimId, OperatorName};
use crate::store::StoreError;

/// A device's message that was refused. Nothing has changed but a counter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpRefused {
    /// No device of that id is enrolled.
    #[error("device {device} is not enrolled")]
    UnknownDevice {
        /// The id in the topic.
        device: DeviceId,
    },
    /// The device's identity has ended.
    #[error("device {device} is revoked")]
    Revoked {
        /// The device.
        device: DeviceId,
    },
    /// The device is put aside until an operator releases it.
    #[error("device {device} is quarantined")]
    Quarantined {
        /// The device.
        device: DeviceId,
    },
    /// The frame is none, or must not count.
    #[error("device {device}: {why}")]
    Link {
        /// The device.
        device: DeviceId,
        /// What is wrong with it.
        why: BadLinkFrame,
    },
    /// It came in a first hello's place, or under no nonce of ours.
    #[error("a {body} of device {device} does not answer a fresh nonce")]
    NotFresh {
        /// The device.
        device: DeviceId,
        /// What it was.
        body: &'static str,
    },
    /// This coordinator has stopped issuing; what would need a new key is to be said again later.
    #[error("device {device} asks for what this coordinator, a copy or rolled back, does not do")]
    Superseded {
        /// The device.
        device: DeviceId,
    },
    /// It says hello again and again.
    #[error("device {device} says hello too often")]
    TooManyHellos {
        /// The device.
        device: DeviceId,
    },
    /// It speaks of a group that the device is not in.
    #[error("device {device} is not in group {group}")]
    NotAMember {
        /// The device.
        device: DeviceId,
        /// The group.
        group: GroupId,
    },
    /// It speaks of a cell that the device is not in.
    #[error("device {device} is not in cell {cell}")]
    NotInCell {
        /// The device.
        device: DeviceId,
        /// The cell.
        cell: CellId,
    },
    /// A confirmation of a key epoch that is not live (any longer).
    #[error("device {device} confirms key epoch {key_epoch} of group {group}, which is not live")]
    KeyEpochNotLive {
        /// The device.
        device: DeviceId,
        /// The group.
        group: GroupId,
        /// The key epoch it named.
        key_epoch: KeyEpoch,
    },
    /// A confirmation whose proof is wrong: the device does not hold the secret, or somebody forged it.
    #[error("device {device} has a wrong proof for key epoch {key_epoch} of group {group}")]
    WrongProof {
        /// The device.
        device: DeviceId,
        /// The group.
        group: GroupId,
        /// The key epoch it named.
        key_epoch: KeyEpoch,
    },
    /// Key packages nobody asked for.
    #[error("device {device} sent {packages} key packages for {suite}, which were not asked for")]
    NotAskedFor {
        /// The device.
        device: DeviceId,
        /// How many.
        packages: usize,
        /// Their suite.
        suite: Suite,
    },
    /// An Update proposal that cannot be covered.
    #[error("device {device}'s update of cell {cell} is refused: {why}")]
    Update {
        /// The device.
        device: DeviceId,
        /// The cell.
        cell: CellId,
        /// Why.
        why: &'static str,
    },
    /// An Update proposal for another epoch than the cell's.
    #[error("device {device}'s update is for epoch {got} of cell {cell}, which is at {current}")]
    UpdateEpoch {
        /// The device.
        device: DeviceId,
        /// The cell.
        cell: CellId,
        /// The epoch it was made for.
        got: CellEpoch,
        /// The cell's epoch.
        current: CellEpoch,
    },
    /// What was shown as evidence is no statement of this coordinator.
    #[error("device {device} shows a statement that does not verify: {why}")]
    Evidence {
        /// The device.
        device: DeviceId,
        /// What is wrong with it.
        why: BadStatement,
    },
}

impl Named for UpRefused {
    fn name(&self) -> &'static str {
        match self {
            Self::UnknownDevice { .. } => "unknown_device",
            Self::Revoked { .. } => "revoked_device",
            Self::Quarantined { .. } => "quarantined_device",
            Self::Link { why, .. } => why.name(),
            Self::NotFresh { .. } => "not_fresh",
            Self::Superseded { .. } => "superseded",
            Self::TooManyHellos { .. } => "too_many_hellos",
            Self::NotAMember { .. } => "not_a_member",
            Self::NotInCell { .. } => "not_in_cell",
            Self::KeyEpochNotLive { .. } => "key_epoch_not_live",
            Self::WrongProof { .. } => "wrong_proof",
            Self::NotAskedFor { .. } => "not_asked_for",
            Self::Update { .. } => "bad_update",
            Self::UpdateEpoch { .. } => "update_epoch",
            Self::Evidence { why, .. } => why.name(),
        }
    }
}

/// A command that was not followed. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No such device.
    #[error("device {0} is not enrolled")]
    UnknownDevice(DeviceId),
    /// No such group.
    #[error("there is no group {0}")]
    UnknownGroup(GroupId),
    /// The id is taken.
    #[error("device {0} is enrolled already")]
    AlreadyEnrolled(DeviceId),
    /// The name is taken.
    #[error("the name {0:?} is taken: choose another")]
    NameTaken(String),
    /// The name cannot be used.
    #[error("the name {0:?} cannot be used: 1 to 64 bytes, no control characters, and not a UUID")]
    BadName(String),
    /// The reason is longer than a reason need be.
    #[error("the reason is {bytes} bytes long, at most {max} are kept")]
    ReasonTooLong {
        /// Its length.
        bytes: usize,
        /// What it may be.
        max: usize,
    },
    /// A deadline that is over at once, or is none.
    #[error("a deadline of {seconds} s cannot be kept: say 1 s to 30 days")]
    BadDeadline {
        /// What was asked for.
        seconds: u64,
    },
    /// The device's key is no Ed25519 key to agree a secret with.
    #[error("device {device}: {why}")]
    BadKey {
        /// The device.
        device: DeviceId,
        /// What is wrong with its key.
        why: BadPeerKey,
    },
    /// The device's identity has ended: it cannot be used again.
    #[error("device {0} is revoked, for ever: provision it anew under a new identity")]
    Revoked(DeviceId),
    /// The device is not in the group.
    #[error("device {device} is not in group {group}")]
    NotAMember {
        /// The device.
        device: DeviceId,
        /// The group.
        group: GroupId,
    },
    /// The device is in as many groups as a device may be.
    #[error("device {0} is in {max} groups already, which is the limit", max = fleetkey_wire::limits::MAX_CELLS_PER_DEVICE)]
    TooManyGroups(DeviceId),
    /// The device is not quarantined.
    #[error("device {0} is not quarantined")]
    NotQuarantined(DeviceId),
    /// The policy cannot be followed.
    #[error(transparent)]
    BadPolicy(#[from] BadPolicy),
    /// A rotation is under way already.
    #[error("a rotation of group {0} is under way already")]
    RotationUnderWay(GroupId),
    /// A group has a pre-shared key from its creation on, or never: its cells would otherwise hold what came in without.
    #[error("group {0} was created without a pre-shared key: create another with one, and move the devices")]
    NoPskGroup(GroupId),
    /// The pre-shared key is another group's: each belongs to one.
    #[error("pre-shared key {psk} is the one of group {group}: make another one")]
    PskInUse {
        /// The key.
        psk: PskId,
        /// The group.
        group: GroupId,
    },
    /// The device has another key than the one named.
    #[error("device {0} is enrolled with another key")]
    OtherKey(DeviceId),
    /// The key belongs to another device.
    #[error("the key of device {device} is device {other}'s already")]
    KeyInUse {
        /// The device that was to have it.
        device: DeviceId,
        /// The one that has it.
        other: DeviceId,
    },
    /// The device holds as many certificates as are remembered of one.
    #[error("device {0} holds {max} certificates that have not expired, which is the limit", max = crate::certificates::MAX_CERTIFICATES)]
    TooManyCertificates(DeviceId),
    /// Nobody waits under this id.
    #[error("no request of device {0} waits for an operator's word")]
    NoRequest(DeviceId),
    /// No such claim.
    #[error("there is no claim {0}")]
    UnknownClaim(ClaimId),
    /// A claim that makes no sense.
    #[error("a claim like this is not made: {0}")]
    BadClaim(&'static str),
    /// No such operator, or one that was ended.
    #[error("there is no operator {0:?}")]
    UnknownOperator(String),
    /// An operator that makes no sense.
    #[error("an operator like this is not made: {0}")]
    BadOperator(&'static str),
    /// As many operators as may be.
    #[error("there are {max} operators, which is the limit: end some", max = crate::operators::MAX_OPERATORS)]
    TooManyOperators,
    /// As many names of operators as are remembered.
    #[error("{max} names of operators have been used, which is the limit: none is ever given to somebody else", max = crate::operators::MAX_OPERATOR_NAMES)]
    TooManyOperatorNames,
    /// Whoever commanded it was ended meanwhile.
    #[error("{0} is no operator any more")]
    NotAnOperator(OperatorName),
    /// Whoever commanded it may not act there.
    #[error(transparent)]
    OutOfScope(#[from] OutOfScope),
    /// As many claims as may be.
    #[error("there are {max} claims, which is the limit: end some", max = crate::enrolment::MAX_CLAIMS)]
    TooManyClaims,
    /// This coordinator has stopped issuing: see [`crate::Event::Superseded`].
    #[error(
        "this coordinator is a copy, or was rolled back, and issues nothing: end the other copy, stop this one, and run `fleetkey restore --in-place`"
    )]
    Superseded,
    /// The decision could not be completed; memory is discarded and loaded again.
    #[error("internal failure, nothing was changed: {0}")]
    Internal(String),
}

impl Named for CommandError {
    fn name(&self) -> &'static str {
        match self {
            Self::UnknownDevice(_) => "unknown_device",
            Self::UnknownGroup(_) => "unknown_group",
            Self::AlreadyEnrolled(_) => "already_enrolled",
            Self::NameTaken(_) => "name_taken",
            Self::BadName(_) => "bad_name",
            Self::ReasonTooLong { .. } => "reason_too_long",
            Self::BadDeadline { .. } => "bad_deadline",
            Self::BadKey { .. } => "bad_key",
            Self::Revoked(_) => "revoked",
            Self::NotAMember { .. } => "not_a_member",
            Self::TooManyGroups(_) => "too_many_groups",
            Self::NotQuarantined(_) => "not_quarantined",
            Self::BadPolicy(_) => "bad_policy",
            Self::RotationUnderWay(_) => "rotation_under_way",
            Self::NoPskGroup(_) => "no_psk_group",
            Self::PskInUse { .. } => "psk_in_use",
            Self::OtherKey(_) => "other_key",
            Self::KeyInUse { .. } => "key_in_use",
            Self::TooManyCertificates(_) => "too_many_certificates",
            Self::NoRequest(_) => "no_request",
            Self::UnknownClaim(_) => "unknown_claim",
            Self::BadClaim(_) => "bad_claim",
            Self::TooManyClaims => "too_many_claims",
            Self::UnknownOperator(_) => "unknown_operator",
            Self::BadOperator(_) => "bad_operator",
            Self::TooManyOperators => "too_many_operators",
            Self::TooManyOperatorNames => "too_many_operator_names",
            Self::NotAnOperator(_) => "unauthorized",
            Self::OutOfScope(_) => "out_of_scope",
            Self::Superseded => "superseded",
            Self::Internal(_) => "internal",
        }
    }
}

/// What is outside of an operator's scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutOfScope {
    /// It concerns the whole fleet.
    #[error("this concerns the whole fleet, and your scope is some of its groups")]
    Fleet,
    /// A group.
    #[error("group {0} is not in your scope")]
    Group(GroupId),
    /// A device that is in no group of the scope.
    #[error("device {device} is in no group of your scope")]
    Device {
        /// The device.
        device: DeviceId,
    },
    /// A device that is in another group as well.
    #[error("device {device} is in a group outside of your scope as well")]
    DeviceElsewhere {
        /// The device.
        device: DeviceId,
        /// The other group: not told, as whoever asks may not see it.
        group: GroupId,
    },
    /// Labels that lead into no group.
    #[error("these labels lead into no group of your scope")]
    Labels,
    /// Labels that lead into another group.
    #[error("these labels lead into a group outside of your scope")]
    LabelsElsewhere {
        /// The other group.
        group: GroupId,
    },
}

/// The coordinator could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store was never initialised.
    #[error("the store is empty: run `fleetkey init` first")]
    NotInitialised,
    /// A record that contradicts others.
    #[error("the store contradicts itself: {0}")]
    Inconsistent(String),
    /// The coordinator's own certificate.
    #[error("the coordinator's certificate: {0}")]
    Certificate(#[from] BadCertificate),
}

/// A decision failed half-way: this coordinator must be dropped, and loaded again from its store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a decision failed half-way and must be forgotten: {0}")]
pub struct Poisoned(pub String);
