//! MLS messages from outside: bounded, decoded, and held against the cell before anything is decrypted; and
//! openmls's refusals under our names.

use fleetkey_wire::{CellEpoch, CellId, Suite};
use openmls::framing::errors::MessageDecryptionError;
use openmls::group::{
    GroupId, ProcessMessageError, ProposalValidationError, StageCommitError, ValidationError,
};
use openmls::prelude::{
    ContentType, MlsMessageBodyIn, MlsMessageIn, PrivateMessageIn, Proposal, ProtocolMessage,
};
use openmls_traits::OpenMlsProvider as _;
use tls_codec::Deserialize as _;

use crate::error::{LocalError, MlsError, Refused};
use crate::provider::Provider;
use crate::slots::SlotError;

/// No commit is longer, in bytes: a removal at 1,024 members, twice the largest cell and more, takes 86 KB.
pub const MAX_COMMIT_BYTES: usize = 128 * 1024;
/// No Welcome is longer, in bytes.
pub const MAX_WELCOME_BYTES: usize = 256 * 1024;
/// No Update proposal is longer, in bytes; ours take about 400, and their encryption key.
pub const MAX_UPDATE_BYTES: usize = 2 * 1024;
/// No commit covers more Update proposals.
pub const MAX_COVERED_UPDATES: usize = 256;

/// No key package is longer, in bytes; ours take about 250, and two keys.
pub const fn max_key_package_bytes(suite: Suite) -> usize {
    960 + 2 * suite.kem_public_key_bytes()
}

/// What a private message claims to carry.
#[derive(Clone, Copy)]
pub(crate) enum Content {
    Commit,
    Update,
}

impl Content {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Commit => "a commit",
            Self::Update => "an update proposal",
        }
    }

    const fn max_bytes(self) -> usize {
        match self {
            Self::Commit => MAX_COMMIT_BYTES,
            Self::Update => MAX_UPDATE_BYTES,
        }
    }

    const fn content_type(self) -> ContentType {
        match self {
            Self::Commit => ContentType::Commit,
            Self::Update => ContentType::Proposal,
        }
    }
}

/// The body of the MLSMessage in `bytes`, which are no more than `max`, and nothing besides.
pub(crate) fn body(what: &'static str, bytes: &[u8], max: usize) -> Result<MlsMessageBodyIn, Refused> {
    if bytes.len() > max {
        return Err(Refused::TooLarge { what, bytes: bytes.len(), max });
    }
    let message = MlsMessageIn::tls_deserialize_exact(bytes).map_err(|_| Refused::Malformed { what })?;
    Ok(message.extract())
}

/// The name of a body's kind, for refusals.
pub(crate) const fn kind(body: &MlsMessageBodyIn) -> &'static str {
    match body {
        MlsMessageBodyIn::PublicMessage(_) => "a public message",
        MlsMessageBodyIn::PrivateMessage(_) => "a private message",
        MlsMessageBodyIn::Welcome(_) => "a Welcome",
        MlsMessageBodyIn::GroupInfo(_) => "a group info",
        MlsMessageBodyIn::KeyPackage(_) => "a key package",
    }
}

/// A private message that, by its header, carries `content` for `cell` at `current`.
pub(crate) fn private_message(
    content: Content,
    bytes: &[u8],
    cell: CellId,
    current: CellEpoch,
) -> Result<ProtocolMessage, Refused> {
    let message: PrivateMessageIn = match body(content.name(), bytes, content.max_bytes())? {
        MlsMessageBodyIn::PrivateMessage(message) => message,
        other @ (MlsMessageBodyIn::PublicMessage(_)
        | MlsMessageBodyIn::Welcome(_)
        | MlsMessageBodyIn::GroupInfo(_)
        | MlsMessageBodyIn::KeyPackage(_)) => {
            return Err(Refused::WrongKind { expected: content.name(), got: kind(&other) });
        }
    };
    let message = ProtocolMessage::from(message);
    check_group_id(message.group_id(), cell)?;
    let got = CellEpoch(message.epoch().as_u64());
    if got != current {
        return Err(Refused::WrongEpoch { got, current });
    }
    if message.content_type() != content.content_type() {
        let got = match message.content_type() {
            ContentType::Application => "an application message",
            ContentType::Proposal => "a proposal",
            ContentType::Commit => "a commit",
        };
        return Err(Refused::WrongKind { expected: content.name(), got });
    }
    Ok(message)
}

/// The MLS group id of `cell`.
pub(crate) fn group_id(cell: CellId) -> GroupId {
    GroupId::from_slice(cell.as_bytes())
}

/// Whether `got` is the MLS group id of `expected`.
pub(crate) fn check_group_id(got: &GroupId, expected: CellId) -> Result<(), Refused> {
    if got.as_slice() == expected.as_bytes() {
        return Ok(());
    }
    let got = <[u8; 16]>::try_from(got.as_slice()).ok().map(CellId::from_bytes);
    Err(Refused::WrongCell { expected, got })
}

/// Whether the MLS cipher suite numbered `code` is `expected`.
pub(crate) fn check_suite(code: u16, expected: Suite) -> Result<(), Refused> {
    let got = Suite::from_code(code);
    if got == Some(expected) { Ok(()) } else { Err(Refused::WrongSuite { expected, got }) }
}

/// A proposal's type, for refusals.
pub(crate) const fn proposal_name(proposal: &Proposal) -> &'static str {
    match proposal {
        Proposal::Add(_) => "add",
        Proposal::Update(_) => "update",
        Proposal::Remove(_) => "remove",
        Proposal::PreSharedKey(_) => "psk",
        Proposal::ReInit(_) => "reinit",
        Proposal::ExternalInit(_) => "external_init",
        Proposal::GroupContextExtensions(_) => "group_context_extensions",
        Proposal::SelfRemove => "self_remove",
        Proposal::Custom(_) => "custom",
    }
}

/// Why openmls did not accept a message that carries `content`.
pub(crate) fn refusal(content: Content, error: ProcessMessageError<SlotError>) -> MlsError {
    let what = content.name();
    let invalid = |reason: String| Refused::Invalid { what, reason }.into();
    match error {
        ProcessMessageError::StorageError(error) => damaged(&error).into(),
        ProcessMessageError::ValidationError(error) => invalid_message(what, error).into(),
        ProcessMessageError::InvalidCommit(error) => invalid_commit(what, error).into(),
        ProcessMessageError::LibraryError(error) => invalid(error.to_string()),
        ProcessMessageError::GroupStateError(error) => invalid(error.to_string()),
        other @ (ProcessMessageError::IncompatibleWireFormat
        | ProcessMessageError::UnauthorizedExternalApplicationMessage
        | ProcessMessageError::UnauthorizedExternalCommitMessage
        | ProcessMessageError::UnsupportedProposalType) => invalid(other.to_string()),
    }
}

/// Which pre-shared key openmls did not find.
pub(crate) fn lacking(provider: &Provider<'_>) -> Refused {
    provider.storage().lacked_psk().map_or(Refused::PreSharedKey, |psk| Refused::PskMissing { psk })
}

/// The cell's stored state does not decode.
pub(crate) fn damaged(error: &SlotError) -> LocalError {
    LocalError::Damaged { what: "a cell's state", reason: error.to_string() }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "openmls's other refusals share one name, and keep their words"
)]
fn invalid_message(what: &'static str, error: ValidationError) -> Refused {
    match error {
        ValidationError::UnableToDecrypt(
            MessageDecryptionError::AeadError | MessageDecryptionError::SecretTreeError(_),
        ) => Refused::Undecryptable { reason: error.to_string() },
        ValidationError::InvalidSignature => Refused::BadSignature { what },
        ValidationError::InvalidLeafNodeSignature => Refused::BadSignature { what: "a leaf" },
        ValidationError::UnknownMember => Refused::UnknownSender,
        other => Refused::Invalid { what, reason: other.to_string() },
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "openmls's other refusals share one name, and keep their words"
)]
fn invalid_commit(what: &'static str, error: StageCommitError) -> Refused {
    match error {
        StageCommitError::MissingProposal => Refused::MissingProposal,
        StageCommitError::ConfirmationTagMismatch => Refused::WrongConfirmationTag,
        StageCommitError::RequiredPathNotFound => Refused::MissingPath,
        StageCommitError::PskError(_) => Refused::PreSharedKey,
        StageCommitError::ProposalValidationError(ProposalValidationError::Psk(_)) => Refused::PreSharedKey,
        other => Refused::Invalid { what, reason: other.to_string() },
    }
}
