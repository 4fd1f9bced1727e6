//! What can be wrong with bytes from outside, by name.
//!
//! Each refusal has a stable name ([`Named::name`]) that counters and logs use.

use crate::ids::{CellEpoch, CellId, FleetId, GroupId, KeyEpoch};

/// A refusal with a stable name, for counters.
pub trait Named {
    /// The name: lower case, words joined by `_`.
    fn name(&self) -> &'static str;
}

/// Bytes that are no frame of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// Nothing at all.
    #[error("{what} is empty")]
    Empty {
        /// What was expected.
        what: &'static str,
    },
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
    /// More items than the bound for its kind.
    #[error("{field} has {items} items, at most {max} are allowed")]
    TooMany {
        /// The field.
        field: &'static str,
        /// How many items came.
        items: usize,
        /// How many are allowed.
        max: usize,
    },
    /// A format version that this build does not know.
    #[error("{what} has version {got}, this build knows only version {known}")]
    UnknownVersion {
        /// What was expected.
        what: &'static str,
        /// The version that came.
        got: u64,
        /// The version this build writes and reads.
        known: u64,
    },
    /// A kind of message that this build does not know.
    #[error("{what} is of unknown kind {kind}")]
    UnknownKind {
        /// What was expected.
        what: &'static str,
        /// The kind that came.
        kind: u64,
    },
    /// Not well-formed CBOR, or nested too deep.
    #[error("{what} is not well-formed CBOR")]
    NotCbor {
        /// What was expected.
        what: &'static str,
    },
    /// Well-formed, with more behind it.
    #[error("{what} has {bytes} bytes behind its end")]
    TrailingBytes {
        /// What was expected.
        what: &'static str,
        /// How many bytes too many.
        bytes: usize,
    },
    /// A field of the wrong type or length, missing, or one too many.
    #[error("{field} has the wrong shape")]
    Shape {
        /// The field.
        field: &'static str,
    },
    /// A COSE message with another algorithm or header than the format allows.
    #[error("{what} has an algorithm or header that the format does not allow")]
    CoseHeader {
        /// What was expected.
        what: &'static str,
    },
}

impl Named for BadFrame {
    fn name(&self) -> &'static str {
        match self {
            Self::Empty { .. } => "empty",
            Self::TooLarge { .. } => "too_large",
            Self::TooMany { .. } => "too_many",
            Self::UnknownVersion { .. } => "unknown_version",
            Self::UnknownKind { .. } => "unknown_kind",
            Self::NotCbor { .. } => "not_cbor",
            Self::TrailingBytes { .. } => "trailing_bytes",
            Self::Shape { .. } => "wrong_shape",
            Self::CoseHeader { .. } => "cose_header",
        }
    }
}

/// A statement that must not be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadStatement {
    /// The bytes are none.
    #[error("statement: {0}")]
    Frame(#[from] BadFrame),
    /// Signed under a key id that is not the coordinator's.
    #[error("statement is signed under key id {got}, not by a coordinator of this fleet")]
    UnknownSigner {
        /// The key id it names.
        got: crate::statement::KeyId,
    },
    /// The signature does not verify: forged, altered, or of another fleet.
    #[error("statement has a wrong signature for fleet {fleet}")]
    Signature {
        /// The fleet it was checked for.
        fleet: FleetId,
    },
    /// `send` or `oldest` contradict its key epoch.
    #[error("statement of {group} contradicts itself: key epoch {key_epoch}, send {send}, oldest {oldest}")]
    Contradiction {
        /// The group.
        group: GroupId,
        /// The key epoch it is on.
        key_epoch: KeyEpoch,
        /// The key epoch to seal with.
        send: KeyEpoch,
        /// The oldest to accept.
        oldest: KeyEpoch,
    },
}

impl Named for BadStatement {
    fn name(&self) -> &'static str {
        match self {
            Self::Frame(bad) => bad.name(),
            Self::UnknownSigner { .. } => "unknown_signer",
            Self::Signature { .. } => "wrong_signature",
            Self::Contradiction { .. } => "contradiction",
        }
    }
}

/// A wrap that did not yield its group secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadWrap {
    /// The bytes are none.
    #[error("wrap: {0}")]
    Frame(#[from] BadFrame),
    /// It does not open under this cell epoch and statement.
    #[error("wrap does not open for cell {cell} at epoch {cell_epoch}")]
    DoesNotOpen {
        /// The cell.
        cell: CellId,
        /// The cell epoch whose KEK was tried.
        cell_epoch: CellEpoch,
    },
    /// It opens to a secret that is not the one the statement commits to.
    #[error(
        "wrap for cell {cell} holds another secret than the statement of key epoch {key_epoch} commits to"
    )]
    Commitment {
        /// The cell.
        cell: CellId,
        /// The key epoch of the statement.
        key_epoch: KeyEpoch,
    },
}

impl Named for BadWrap {
    fn name(&self) -> &'static str {
        match self {
            Self::Frame(bad) => bad.name(),
            Self::DoesNotOpen { .. } => "wrap_does_not_open",
            Self::Commitment { .. } => "wrong_commitment",
        }
    }
}
