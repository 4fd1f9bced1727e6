//! Why an input did not count, by name.

use fleetkey_identity::BadCertificate;
use fleetkey_mls::{LocalError, MlsError, Refused as MlsRefused};
use fleetkey_wire::link::{BadLinkFrame, LinkRefused};
use fleetkey_wire::{
    BadFrame, BadStatement, BadWrap, CellEpoch, CellId, FleetId, Generation, GroupId, KeyEpoch, Named, PskId,
    Topic,
};

/// An input that changed nothing. The fault lies with whoever sent it, except where a variant says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] BadFrame),
    /// A link frame that is not authentic, or not of this connection.
    #[error(transparent)]
    Link(#[from] LinkRefused),
    /// A statement that must not be believed.
    #[error(transparent)]
    Statement(#[from] BadStatement),
    /// A wrap that did not yield its secret.
    #[error(transparent)]
    Wrap(#[from] BadWrap),
    /// A commit or Welcome that the cell does not accept.
    #[error(transparent)]
    Mls(#[from] MlsRefused),
    /// A coordinator certificate that no pinned root vouches for.
    #[error("coordinator certificate: {0}")]
    Certificate(#[from] BadCertificate),
    /// A certificate of the fleet, but of another role than the coordinator's.
    #[error("the certificate is of {role}, not of the coordinator")]
    NotTheCoordinatorsCertificate {
        /// The role it names.
        role: String,
    },
    /// A coordinator certificate older than one that was seen.
    #[error("coordinator certificate of generation {}, {} was seen already", got.0, seen.0)]
    LowerGeneration {
        /// Its generation.
        got: Generation,
        /// The highest seen.
        seen: Generation,
    },
    /// A coordinator certificate for another key: all coordinators of a fleet share one.
    #[error("coordinator certificate of generation {} is for another key", got.0)]
    CoordinatorKeyChanged {
        /// Its generation.
        got: Generation,
    },
    /// On a topic of another fleet.
    #[error("message on a topic of fleet {got}, this device is of fleet {own}")]
    OtherFleet {
        /// The fleet of the topic.
        got: FleetId,
        /// The device's.
        own: FleetId,
    },
    /// On a topic that is no device's to read, or another device's.
    #[error("message on topic {topic}, which is not for this device")]
    UnexpectedTopic {
        /// The topic.
        topic: Topic,
    },
    /// Before a connection, or after its end. The shell's fault.
    #[error("message on topic {topic} outside a connection")]
    NotConnected {
        /// The topic.
        topic: Topic,
    },
    /// For a cell that the device is not in.
    #[error("the device is not in cell {cell}")]
    UnknownCell {
        /// The cell.
        cell: CellId,
    },
    /// For a group that the device is not in.
    #[error("the device is not in group {group}")]
    UnknownGroup {
        /// The group.
        group: GroupId,
    },
    /// For an epoch that the cell has left behind: late, replayed, or heard twice.
    #[error("frame for epoch {got} of cell {cell}, which is at {current}")]
    StaleCellEpoch {
        /// The cell.
        cell: CellId,
        /// The epoch of the frame.
        got: CellEpoch,
        /// The cell's.
        current: CellEpoch,
    },
    /// For an epoch that the cell has yet to reach: something was missed.
    #[error("frame for epoch {got} of cell {cell}, which is only at {current}")]
    AheadCellEpoch {
        /// The cell.
        cell: CellId,
        /// The epoch of the frame.
        got: CellEpoch,
        /// The cell's.
        current: CellEpoch,
    },
    /// A Welcome that leads to another epoch than it says.
    #[error("welcome to cell {cell} says epoch {said}, and leads to {got}")]
    WelcomeEpoch {
        /// The cell.
        cell: CellId,
        /// The epoch that its frame says.
        said: CellEpoch,
        /// The epoch that it leads to.
        got: CellEpoch,
    },
    /// A Welcome for a key package that the device never made, or has used.
    #[error("welcome to cell {cell} is for a key package that is not in stock")]
    UnknownKeyPackage {
        /// The cell.
        cell: CellId,
    },
    /// A Welcome to a cell through which the device is in another group.
    #[error("welcome to cell {cell} for group {got}, the cell is of group {own}")]
    CellOfOtherGroup {
        /// The cell.
        cell: CellId,
        /// The group the Welcome names.
        got: GroupId,
        /// The group the cell is of.
        own: GroupId,
    },
    /// A Welcome to one cell too many.
    #[error("the device is in {cells} cells, and cannot be in more")]
    TooManyCells {
        /// How many it is in.
        cells: usize,
    },
    /// A genuine statement of another group.
    #[error("statement of group {got} for a cell of group {own}")]
    OtherGroup {
        /// The group of the statement.
        got: GroupId,
        /// The group of the cell.
        own: GroupId,
    },
    /// A genuine statement on a key epoch that is accepted no more.
    #[error("statement on key epoch {got} of group {group}, the oldest accepted is {oldest}")]
    StaleKeyEpoch {
        /// The group.
        group: GroupId,
        /// The key epoch of the statement.
        got: KeyEpoch,
        /// The oldest accepted.
        oldest: KeyEpoch,
    },
    /// A genuine statement that commits a key epoch to another secret than the one held: an alarm.
    #[error("statement commits key epoch {key_epoch} of group {group} to another secret than the one held")]
    ConflictingCommitment {
        /// The group.
        group: GroupId,
        /// The key epoch.
        key_epoch: KeyEpoch,
    },
    /// More live key epochs of one group than are kept.
    #[error("group {group} has {held} live key epochs, and no more are kept")]
    TooManyKeyEpochs {
        /// The group.
        group: GroupId,
        /// How many are held.
        held: usize,
    },
    /// An answer to a hello that is not outstanding on this connection.
    #[error("answer to hello {hello}, which is not outstanding")]
    UnaskedAnswer {
        /// The counter it names.
        hello: u64,
    },
    /// A pre-shared key for what can be no group. The operator's fault.
    #[error("a group is named by its UUID, or by a name of 1 to 64 bytes without control characters")]
    BadPskGroup,
    /// A pre-shared key that is held for another group: each belongs to one. The operator's fault.
    #[error("pre-shared key {psk} is held for group {group}: make another one for this group")]
    PskOfAnotherGroup {
        /// The key.
        psk: PskId,
        /// The group it is held for.
        group: String,
    },
    /// A pre-shared key that is not held. The operator's fault.
    #[error("there is no pre-shared key {psk} here")]
    UnknownPsk {
        /// The key.
        psk: PskId,
    },
    /// What the operator has asked for was not stored. The disk's fault.
    #[error("it was not stored, and has not happened: the agent's log says why")]
    NotStored,
    /// One pre-shared key too many. The operator's fault.
    #[error("the device holds {held} pre-shared keys, and cannot hold more: remove those that no group uses")]
    TooManyPsks {
        /// How many it holds.
        held: usize,
    },
    /// The device's own fault: its stored state or its MLS engine.
    #[error(transparent)]
    Local(#[from] LocalError),
}

impl From<BadLinkFrame> for Refused {
    fn from(bad: BadLinkFrame) -> Self {
        match bad {
            BadLinkFrame::Frame(bad) => Self::Frame(bad),
            BadLinkFrame::Refused(refused) => Self::Link(refused),
        }
    }
}

impl From<MlsError> for Refused {
    fn from(error: MlsError) -> Self {
        match error {
            MlsError::Refused(refused) => Self::Mls(refused),
            MlsError::Local(error) => Self::Local(error),
        }
    }
}

impl Named for Refused {
    fn name(&self) -> &'static str {
        match self {
            Self::Frame(bad) => bad.name(),
            Self::Link(refused) => refused.name(),
            Self::Statement(bad) => bad.name(),
            Self::Wrap(bad) => bad.name(),
            Self::Mls(refused) => refused.name(),
            Self::Certificate(_) => "bad_certificate",
            Self::NotTheCoordinatorsCertificate { .. } => "not_the_coordinators_certificate",
            Self::LowerGeneration { .. } => "lower_generation",
            Self::CoordinatorKeyChanged { .. } => "coordinator_key_changed",
            Self::OtherFleet { .. } => "other_fleet",
            Self::UnexpectedTopic { .. } => "unexpected_topic",
            Self::NotConnected { .. } => "not_connected",
            Self::UnknownCell { .. } => "unknown_cell",
            Self::UnknownGroup { .. } => "unknown_group",
            Self::StaleCellEpoch { .. } => "stale_cell_epoch",
            Self::AheadCellEpoch { .. } => "ahead_cell_epoch",
            Self::WelcomeEpoch { .. } => "welcome_epoch",
            Self::UnknownKeyPackage { .. } => "unknown_key_package",
            Self::CellOfOtherGroup { .. } => "cell_of_other_group",
            Self::TooManyCells { .. } => "too_many_cells",
            Self::OtherGroup { .. } => "other_group",
            Self::StaleKeyEpoch { .. } => "stale_key_epoch",
            Self::ConflictingCommitment { .. } => "conflicting_commitment",
            Self::TooManyKeyEpochs { .. } => "too_many_key_epochs",
            Self::UnaskedAnswer { .. } => "unasked_answer",
            Self::BadPskGroup => "bad_psk_group",
            Self::PskOfAnotherGroup { .. } => "psk_of_another_group",
            Self::UnknownPsk { .. } => "unknown_psk",
            Self::NotStored => "not_stored",
            Self::TooManyPsks { .. } => "too_many_psks",
            Self::Local(_) => "local_fault",
        }
    }
}
