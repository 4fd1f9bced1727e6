//! What an examination can find: by name, how grave it is, what it means, and what to do.

use std::fmt;

use fleetkey_wire::error::Named;
use serde::Serialize;

/// How grave a finding is, gravest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// A rule that must always hold does not.
    Broken,
    /// Nothing is broken, and an operator is needed.
    Attention,
    /// Worth knowing.
    Notice,
}

impl Severity {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Broken => "broken",
            Self::Attention => "attention",
            Self::Notice => "notice",
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A row cannot be read, or its key is not its record's.
    UnreadableRow,
    /// The row that holds for the whole database is missing.
    MetaMissing,
    /// A row belongs to something that is not there.
    OrphanedRow,
    /// Two devices, or two groups, bear one name.
    NameTwice,
    /// A group has no key, and nothing says that it is about to have one.
    GroupWithoutKey,
    /// A live key's statement is not this coordinator's, or speaks of another key.
    BadStatement,
    /// A secret is not the one that its statement commits to.
    WrongCommitment,
    /// A group's record and its live keys do not agree.
    KeysDisagree,
    /// A key epoch lies in an incarnation that this database never issued in.
    ForeignIncarnation,
    /// A live key epoch is not among those that were issued.
    NotIssued,
    /// A key epoch was issued with another commitment than the live one has.
    TwoCommitments,
    /// A cell's MLS group cannot be loaded, or is not what the cell says.
    BrokenCell,
    /// A member's record names a cell that it has no leaf in.
    MemberWithoutLeaf,
    /// A leaf belongs to no member of the group, or to one of another cell.
    LeafWithoutMember,
    /// A leaf stands under another key than its device's.
    WrongLeafKey,
    /// A revoked device is in a cell, in a group, or has key packages.
    RevokedPresent,
    /// A cell holds more devices than its group's policy allows.
    OverCapacity,
    /// The commits that are kept do not lead up to the cell's epoch without a gap.
    CommitGap,
    /// A Welcome is for no member of its cell, or leads to an epoch that is still to come.
    StrayWelcome,
    /// A member is said to hold a key epoch that was never issued.
    ConfirmedUnissued,
    /// A frame in the outbox cannot be read, or is ahead of its cell.
    BadOutbox,
    /// Another coordinator issues beside this one, or this one was rolled back.
    Superseded,
    /// A device is put aside, as it may have been cloned.
    Quarantined,
    /// Something is said to have happened later than now.
    FutureStamp,
    /// A group asks for a pre-shared key whose secret is not here.
    PskNotInstalled,
    /// An entry of the audit log is missing, or is not what was entered.
    AuditBroken,
    /// This database was made from a backup.
    Restored,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 27] = [
        Self::UnreadableRow,
        Self::MetaMissing,
        Self::OrphanedRow,
        Self::NameTwice,
        Self::GroupWithoutKey,
        Self::BadStatement,
        Self::WrongCommitment,
        Self::KeysDisagree,
        Self::ForeignIncarnation,
        Self::NotIssued,
        Self::TwoCommitments,
        Self::BrokenCell,
        Self::MemberWithoutLeaf,
        Self::LeafWithoutMember,
        Self::WrongLeafKey,
        Self::RevokedPresent,
        Self::OverCapacity,
        Self::CommitGap,
        Self::StrayWelcome,
        Self::ConfirmedUnissued,
        Self::BadOutbox,
        Self::Superseded,
        Self::Quarantined,
        Self::FutureStamp,
        Self::PskNotInstalled,
        Self::AuditBroken,
        Self::Restored,
    ];

    /// How grave it is.
    pub const fn severity(self) -> Severity {
        match self {
            // The fleet's keys do not hang on the log.
            Self::Superseded
            | Self::Quarantined
            | Self::FutureStamp
            | Self::PskNotInstalled
            | Self::AuditBroken => Severity::Attention,
            Self::Restored => Severity::Notice,
            Self::UnreadableRow
            | Self::MetaMissing
            | Self::OrphanedRow
            | Self::NameTwice
            | Self::GroupWithoutKey
            | Self::BadStatement
            | Self::WrongCommitment
            | Self::KeysDisagree
            | Self::ForeignIncarnation
            | Self::NotIssued
            | Self::TwoCommitments
            | Self::BrokenCell
            | Self::MemberWithoutLeaf
            | Self::LeafWithoutMember
            | Self::WrongLeafKey
            | Self::RevokedPresent
            | Self::OverCapacity
            | Self::CommitGap
            | Self::StrayWelcome
            | Self::ConfirmedUnissued
            | Self::BadOutbox => Severity::Broken,
        }
    }

    /// What it means.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::UnreadableRow | Self::MetaMissing => {
                "the database is damaged: the coordinator does not start on it"
            }
            Self::OrphanedRow | Self::NameTwice => "the registry contradicts itself",
            Self::GroupWithoutKey => "the group's devices cannot be given a key",
            Self::BadStatement | Self::WrongCommitment => "devices will refuse this key",
            Self::KeysDisagree => "devices would be told to use a key that is not there",
            Self::ForeignIncarnation => "the database was put together from two",
            Self::NotIssued => "a copy's statements on this key epoch would not be known for what they are",
            Self::TwoCommitments => "one key epoch names two secrets",
            Self::BrokenCell => "the cell cannot move on, and its members cannot be rekeyed",
            Self::MemberWithoutLeaf => "the device is counted as a member and cannot follow its cell",
            Self::LeafWithoutMember => "a device follows the cell, and is given its keys, that should not",
            Self::WrongLeafKey => "somebody may be in the cell under another's name",
            Self::RevokedPresent => "a revoked device may be given a key",
            Self::OverCapacity => "frames of this cell may grow too large for the broker",
            Self::CommitGap => "a device that missed a message of this cell has to join afresh",
            Self::StrayWelcome => "a Welcome would be sent that leads nowhere",
            Self::ConfirmedUnissued => "a confirmation is reported that nobody can have made",
            Self::BadOutbox => "after a restart a frame goes out that devices cannot follow",
            Self::Superseded => "it issues nothing: another copy of it runs, or it was rolled back",
            Self::Quarantined => {
                "it asked to join afresh too often, as a clone beside its original does; it is not served"
            }
            Self::FutureStamp => "the clock was set back, or ran ahead: deadlines are counted from now on",
            Self::PskNotInstalled => "no device can be added to the group, and none can come back",
            Self::AuditBroken => "somebody changed the database behind the coordinator's back",
            Self::Restored => "members come in anew, and devices enrolled after the backup are not known",
        }
    }

    /// What to do.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::UnreadableRow | Self::MetaMissing => {
                "stop the coordinator and run `fleetkey restore FILE --replace --old-database DATABASE`"
            }
            Self::Superseded => {
                "end the other copy first; then stop this one and run `fleetkey restore --in-place`"
            }
            Self::Quarantined => {
                "look at the device; then `fleetkey device release NAME`, or `fleetkey revoke NAME`"
            }
            Self::FutureStamp => "check the host's clock; nothing to mend here",
            Self::PskNotInstalled => {
                "install the key that the devices hold: `fleetkey group psk GROUP FILE`; a new one, if it is lost"
            }
            Self::AuditBroken => {
                "keep a copy of the database, and find out who could write to it; exports show what the log said"
            }
            Self::Restored => "nothing; `fleetkey status` shows who is not back",
            Self::LeafWithoutMember | Self::WrongLeafKey | Self::RevokedPresent | Self::TwoCommitments => {
                "stop the coordinator and run `fleetkey restore --in-place`: it makes every cell and every key anew"
            }
            Self::OrphanedRow
            | Self::NameTwice
            | Self::GroupWithoutKey
            | Self::BadStatement
            | Self::WrongCommitment
            | Self::KeysDisagree
            | Self::ForeignIncarnation
            | Self::NotIssued
            | Self::BrokenCell
            | Self::MemberWithoutLeaf
            | Self::OverCapacity
            | Self::CommitGap
            | Self::StrayWelcome
            | Self::ConfirmedUnissued
            | Self::BadOutbox => {
                "keep a copy of the database and report it; `fleetkey restore --in-place` makes cells and keys anew"
            }
        }
    }
}

impl Named for Kind {
    fn name(&self) -> &'static str {
        match self {
            Self::UnreadableRow => "unreadable_row",
            Self::MetaMissing => "meta_missing",
            Self::OrphanedRow => "orphaned_row",
            Self::NameTwice => "name_twice",
            Self::GroupWithoutKey => "group_without_key",
            Self::BadStatement => "bad_statement",
            Self::WrongCommitment => "wrong_commitment",
            Self::KeysDisagree => "keys_disagree",
            Self::ForeignIncarnation => "foreign_incarnation",
            Self::NotIssued => "not_issued",
            Self::TwoCommitments => "two_commitments",
            Self::BrokenCell => "broken_cell",
            Self::MemberWithoutLeaf => "member_without_leaf",
            Self::LeafWithoutMember => "leaf_without_member",
            Self::WrongLeafKey => "wrong_leaf_key",
            Self::RevokedPresent => "revoked_present",
            Self::OverCapacity => "over_capacity",
            Self::CommitGap => "commit_gap",
            Self::StrayWelcome => "stray_welcome",
            Self::ConfirmedUnissued => "confirmed_unissued",
            Self::BadOutbox => "bad_outbox",
            Self::Superseded => "superseded",
            Self::Quarantined => "quarantined",
            Self::FutureStamp => "future_stamp",
            Self::PskNotInstalled => "psk_not_installed",
            Self::AuditBroken => "audit_broken",
            Self::Restored => "restored",
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// What of, with its ids.
    pub subject: String,
    /// The particulars.
    pub detail: String,
}

impl Finding {
    /// How grave it is.
    pub const fn severity(&self) -> Severity {
        self.kind.severity()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.kind.name(), self.subject, self.detail)
    }
}
