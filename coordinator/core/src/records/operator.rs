//! What is stored of operators: who may do what, where, and until when.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use fleetkey_identity::Role;
use fleetkey_wire::GroupId;
use serde::{Deserialize, Serialize};

use super::{Record, Table};

/// Names that the audit log has for others than operators.
const RESERVED: [&str; 4] = ["coordinator", "root", "applicant", "unrecorded"];

/// An operator's name: what the audit log tells. As in an operator's certificate, so that nobody's name looks like a
/// device's, or like another's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct OperatorName(String);

/// A text that cannot be an operator's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be an operator's name: 1 to 64 of a-z 0-9 . _ -, and none of root, coordinator, applicant, unrecorded"
)]
pub struct BadOperatorName(String);

impl FromStr for OperatorName {
    type Err = BadOperatorName;

    fn from_str(text: &str) -> Result<Self, BadOperatorName> {
        let is_lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        if Role::is_operator_name(text) && is_lower && !RESERVED.contains(&text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadOperatorName(text.chars().take(64).collect()))
        }
    }
}

impl TryFrom<String> for OperatorName {
    type Error = BadOperatorName;

    fn try_from(text: String) -> Result<Self, BadOperatorName> {
        text.parse()
    }
}

impl From<OperatorName> for String {
    fn from(name: OperatorName) -> Self {
        name.0
    }
}

impl fmt::Display for OperatorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an operator may do. Each may what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperatorRole {
    /// Look.
    Viewer,
    /// Run devices and groups.
    Operator,
    /// Everything: operators, backups, adoption.
    Admin,
}

impl OperatorRole {
    /// Every role, the least first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for OperatorRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where an operator may do it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// In the whole fleet.
    #[default]
    Fleet,
    /// In these groups, and on devices as members of them.
    Groups(BTreeSet<GroupId>),
}

impl Scope {
    /// Whether it holds this group.
    pub fn holds(&self, group: GroupId) -> bool {
        match self {
            Self::Fleet => true,
            Self::Groups(groups) => groups.contains(&group),
        }
    }
}

/// One operator. A name is never given to another one, so that the audit log always means the same by it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorRecord {
    /// The name.
    pub name: OperatorName,
    /// What they may do.
    pub role: OperatorRole,
    /// Where.
    pub scope: Scope,
    /// The SHA-256 of the token, which has 32 random bytes and is kept by nobody but its holder.
    #[serde(with = "serde_bytes")]
    pub token_digest: [u8; 32],
    /// When they were made one.
    pub created_unix_seconds: u64,
    /// The last second of the token; none when it has no end.
    pub expires_unix_seconds: Option<u64>,
    /// When they were ended.
    pub ended_unix_seconds: Option<u64>,
}

impl OperatorRecord {
    /// Whether the token opens anything.
    pub fn is_active(&self, unix_seconds: u64) -> bool {
        self.ended_unix_seconds.is_none() && self.expires_unix_seconds.is_none_or(|last| unix_seconds <= last)
    }
}

impl fmt::Debug for OperatorRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OperatorRecord({}, {}, {:?}, redacted)", self.name, self.role, self.scope)
    }
}

impl Record for OperatorRecord {
    const TABLE: Table = Table::Operator;
    fn key(&self) -> Vec<u8> {
        self.name.0.as_bytes().to_vec()
    }
}
