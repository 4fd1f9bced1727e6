//! What can go wrong, sorted by whose fault it is, and named after what it was.

use fleetkey_wire::error::Named;
use fleetkey_wire::{CellEpoch, CellId, DeviceId, PskId, Suite};

/// Why an operation on a cell did not happen. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MlsError {
    /// The bytes of another party are not acceptable.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Our own fault: the caller's, the disk's, or this build's.
    #[error(transparent)]
    Local(#[from] LocalError),
}

impl Named for MlsError {
    fn name(&self) -> &'static str {
        match self {
            Self::Refused(why) => why.name(),
            Self::Local(error) => error.name(),
        }
    }
}

/// What is wrong with bytes from another party.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Over the bound for its kind.
    #[error("{what} has {bytes} bytes, at most {max} are allowed")]
    TooLarge {
        /// What was expected.
        what: &'static str,
        /// How many bytes came.
        bytes: usize,
        /// How many are allowed.
        max: usize,
    },
    /// More Update proposals than a commit may cover.
    #[error("a commit comes with {got} updates, at most {max} are allowed")]
    TooManyUpdates {
        /// How many came.
        got: usize,
        /// How many are allowed.
        max: usize,
    },
    /// Not the MLS structure it should be (RFC 9420 §6).
    #[error("{what} is not a well-formed MLS message")]
    Malformed {
        /// What was expected.
        what: &'static str,
    },
    /// A well-formed message of another kind.
    #[error("expected {expected}, got {got}")]
    WrongKind {
        /// What was expected.
        expected: &'static str,
        /// What came.
        got: &'static str,
    },
    /// A message of another MLS group.
    #[error("the message is for {}, not for cell {expected}", got.map_or("no cell".to_owned(), |c| format!("cell {c}")))]
    WrongCell {
        /// The cell it was given to.
        expected: CellId,
        /// The cell it names, if its group id is a cell's.
        got: Option<CellId>,
    },
    /// A message of another epoch: of an earlier one when replayed or late, of a later one when others were missed.
    #[error("the message is for cell epoch {got}, the cell is at {current}")]
    WrongEpoch {
        /// The epoch it names.
        got: CellEpoch,
        /// The cell's epoch.
        current: CellEpoch,
    },
    /// Another cipher suite than the group's.
    #[error("the suite is {}, the group's is {expected}", got.map_or("unknown".to_owned(), |s| s.to_string()))]
    WrongSuite {
        /// The suite of the group.
        expected: Suite,
        /// The suite that came, if it is one of ours.
        got: Option<Suite>,
    },
    /// It does not decrypt under the keys of this epoch: forged, damaged, or sent twice.
    #[error("the message does not decrypt: {reason}")]
    Undecryptable {
        /// openmls's words.
        reason: String,
    },
    /// A signature that does not verify.
    #[error("the signature of {what} is not valid")]
    BadSignature {
        /// What was signed.
        what: &'static str,
    },
    /// The sender's leaf is blank or outside the tree.
    #[error("the sender is no member of the cell")]
    UnknownSender,
    /// A message of our own came back, and is not the one that is outstanding.
    #[error("the message is one of our own")]
    OwnMessage,
    /// A commit, or a Welcome, by a leaf that is no coordinator's.
    #[error("{what} comes from leaf {leaf}, which is not the coordinator's")]
    NotTheCoordinator {
        /// What was sent.
        what: &'static str,
        /// The sender's leaf.
        leaf: u32,
    },
    /// A proposal of a type that has no place in a cell.
    #[error("a proposal of type {proposal} has no place in a cell")]
    ForbiddenProposal {
        /// Its type (RFC 9420 §17.4).
        proposal: &'static str,
    },
    /// The commit covers a proposal that did not come with it.
    #[error("the commit covers a proposal that did not come with it")]
    MissingProposal,
    /// An Update proposal came with a commit that does not cover it, or came twice.
    #[error("{got} updates came with a commit that covers {covered} of them")]
    UncoveredUpdate {
        /// How many came.
        got: usize,
        /// How many the commit covers.
        covered: usize,
    },
    /// The commit needs an update path and has none (RFC 9420 §12.4).
    #[error("the commit needs an update path and has none")]
    MissingPath,
    /// Both sides disagree on the epoch that the commit leads to.
    #[error("the confirmation tag is wrong")]
    WrongConfirmationTag,
    /// Pre-shared keys of a kind, or in a number, that no cell has.
    #[error("the cell asks for pre-shared keys other than one external one with a name of ours")]
    PreSharedKey,
    /// The cell's keys depend on a pre-shared key that is not held for its group.
    #[error("the group asks for pre-shared key {psk}, which this device does not hold for it")]
    PskMissing {
        /// The key asked for.
        psk: PskId,
    },
    /// It lets somebody in, and the cell's keys would not depend on the pre-shared key that is held for its group.
    #[error("{what} does not use the pre-shared key that this device holds for the group")]
    PskNotUsed {
        /// What was sent.
        what: &'static str,
    },
    /// It names a pre-shared key that is held, and does not open with it.
    #[error("the Welcome names pre-shared key {psk}, and was made with another secret, or damaged")]
    PskWrong {
        /// The key that it names.
        psk: PskId,
    },
    /// The group context carries an extension; a cell has none.
    #[error("the group context carries extensions, and a cell has none")]
    GroupContextExtensions,
    /// A Welcome for several devices, or for none.
    #[error("the Welcome is for {entries} devices, not for one")]
    NotSplit {
        /// How many it is for.
        entries: usize,
    },
    /// A Welcome made for another key package.
    #[error("the Welcome was made for another key package")]
    OtherKeyPackage,
    /// A Welcome without the ratchet tree.
    #[error("the Welcome carries no ratchet tree")]
    MissingTree,
    /// The Welcome's tree holds another leaf for us than the one of our key package.
    #[error("our leaf in the tree is not the one of our key package")]
    WrongOwnLeaf,
    /// A leaf whose credential is not the enrolled id.
    #[error("the leaf's credential is not {expected}")]
    WrongIdentity {
        /// Whose it must be.
        expected: String,
    },
    /// A leaf whose signature key is not the enrolled one.
    #[error("the leaf's signature key is not the one {device} enrolled with")]
    WrongSignatureKey {
        /// The device.
        device: DeviceId,
    },
    /// An Update that changes its sender's identity or signature key.
    #[error("the update of leaf {leaf} changes its identity or signature key")]
    IdentityChanged {
        /// The leaf.
        leaf: u32,
    },
    /// A proposal that another member than the device it came from has sent.
    #[error("the update of {device} was sent by leaf {leaf}")]
    WrongSender {
        /// The device it came from.
        device: DeviceId,
        /// Who has sent it.
        leaf: u32,
    },
    /// A public key that nothing can be encrypted to, such as the all-zero one.
    #[error("the {key} key is no usable public key")]
    UnusableKey {
        /// Which one.
        key: &'static str,
    },
    /// A key that another leaf, or another key package of the batch, already has.
    #[error("the {key} key is already in use")]
    KeyInUse {
        /// Which one.
        key: &'static str,
    },
    /// Extensions in a key package or leaf; last resort among them.
    #[error("{what} carries extensions, and may not")]
    Extensions {
        /// What carries them.
        what: &'static str,
    },
    /// A lifetime that ends would stop the cell at members with a clock.
    #[error("the key package's lifetime is bounded")]
    BoundedLifetime,
    /// A leaf that cannot do what the cell needs.
    #[error("the leaf does not claim the capabilities a cell needs")]
    Capabilities,
    /// The device is in the cell, and was not to be removed.
    #[error("{device} is already a member")]
    AlreadyMember {
        /// The device.
        device: DeviceId,
    },
    /// The device is not in the cell.
    #[error("{device} is not a member")]
    NotAMember {
        /// The device.
        device: DeviceId,
    },
    /// The device leaves in the same commit.
    #[error("{device} leaves in the same commit")]
    Leaving {
        /// The device.
        device: DeviceId,
    },
    /// The batch already holds one of this device.
    #[error("the batch already holds one of {device}")]
    Repeated {
        /// The device.
        device: DeviceId,
    },
    /// Any other rule of RFC 9420 that openmls found broken.
    #[error("{what} is not valid: {reason}")]
    Invalid {
        /// What was checked.
        what: &'static str,
        /// openmls's words.
        reason: String,
    },
}

impl Named for Refused {
    fn name(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::TooManyUpdates { .. } => "too_many_updates",
            Self::Malformed { .. } => "malformed",
            Self::WrongKind { .. } => "wrong_kind",
            Self::WrongCell { .. } => "wrong_cell",
            Self::WrongEpoch { .. } => "wrong_epoch",
            Self::WrongSuite { .. } => "wrong_suite",
            Self::Undecryptable { .. } => "undecryptable",
            Self::BadSignature { .. } => "bad_signature",
            Self::UnknownSender => "unknown_sender",
            Self::OwnMessage => "own_message",
            Self::NotTheCoordinator { .. } => "not_the_coordinator",
            Self::ForbiddenProposal { .. } => "forbidden_proposal",
            Self::MissingProposal => "missing_proposal",
            Self::UncoveredUpdate { .. } => "uncovered_update",
            Self::MissingPath => "missing_path",
            Self::WrongConfirmationTag => "wrong_confirmation_tag",
            Self::PreSharedKey => "pre_shared_key",
            Self::PskMissing { .. } => "psk_missing",
            Self::PskNotUsed { .. } => "psk_not_used",
            Self::PskWrong { .. } => "psk_wrong",
            Self::GroupContextExtensions => "group_context_extensions",
            Self::NotSplit { .. } => "not_split",
            Self::OtherKeyPackage => "other_key_package",
            Self::MissingTree => "missing_tree",
            Self::WrongOwnLeaf => "wrong_own_leaf",
            Self::WrongIdentity { .. } => "wrong_identity",
            Self::WrongSignatureKey { .. } => "wrong_signature_key",
            Self::IdentityChanged { .. } => "identity_changed",
            Self::WrongSender { .. } => "wrong_sender",
            Self::UnusableKey { .. } => "unusable_key",
            Self::KeyInUse { .. } => "key_in_use",
            Self::Extensions { .. } => "extensions",
            Self::BoundedLifetime => "bounded_lifetime",
            Self::Capabilities => "capabilities",
            Self::AlreadyMember { .. } => "already_member",
            Self::NotAMember { .. } => "not_a_member",
            Self::Leaving { .. } => "leaving",
            Self::Repeated { .. } => "repeated",
            Self::Invalid { .. } => "invalid",
        }
    }
}

/// What went wrong on our own side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    /// Stored bytes of a version that this build does not know.
    #[error("{what} has version {got}, this build knows only version {known}")]
    UnknownVersion {
        /// What was to be restored.
        what: &'static str,
        /// Its version.
        got: u8,
        /// The version this build writes and reads.
        known: u8,
    },
    /// Stored bytes that are cut off, altered, or of another kind.
    #[error("{what} is damaged: {reason}")]
    Damaged {
        /// What was to be restored.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The signing key is not the one of our leaf.
    #[error("the signing key is not the one of our leaf")]
    WrongSigner,
    /// The cell could not do what it must always be able to do.
    #[error("{doing} failed: {reason}")]
    Engine {
        /// What was being done.
        doing: &'static str,
        /// openmls's words.
        reason: String,
    },
}

impl Named for LocalError {
    fn name(&self) -> &'static str {
        match self {
            Self::UnknownVersion { .. } => "unknown_version",
            Self::Damaged { .. } => "damaged",
            Self::WrongSigner => "wrong_signer",
            Self::Engine { .. } => "engine",
        }
    }
}
