//! How a group is run.

use fleetkey_wire::Suite;
use fleetkey_wire::limits::MIN_CELL_CAPACITY;
use serde::{Deserialize, Serialize};

/// What a join does to the group's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnJoin {
    /// Joiners come in with a new key: nothing sealed before opens to them.
    #[default]
    Rekey,
    /// Joiners get the current key; the next rotation separates them.
    Next,
}

/// How a group is run. Every field has a default; that of the capacity depends on the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Policy {
    /// Devices in a cell, 8 to what the suite allows ([`Suite::max_cell_capacity`]).
    pub cell_capacity: u16,
    /// The cipher suite.
    pub suite: Suite,
    /// How long joins wait for each other, to share one rekey.
    pub rekey_window_milliseconds: u32,
    /// How long the former key is still accepted after a rekey, 0 allowed.
    pub overlap_seconds: u32,
    /// How long a key is used before the next scheduled rotation; 0 switches rotations off.
    pub rotation_interval_seconds: u64,
    /// How long a rotation waits for confirmations before it activates, or retires, all the same.
    pub rotation_deadline_seconds: u64,
    /// The share of members whose confirmation moves a rotation on.
    pub rotation_threshold_percent: u8,
    /// Every cell gets a commit with a path at least this often.
    pub cell_max_age_seconds: u64,
    /// What a join does to the key.
    pub on_join: OnJoin,
}

/// A policy as it is written down: a capacity that is left out is the suite's.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    cell_capacity: Option<u16>,
    suite: Suite,
    rekey_window_milliseconds: u32,
    overlap_seconds: u32,
    rotation_interval_seconds: u64,
    rotation_deadline_seconds: u64,
    rotation_threshold_percent: u8,
    cell_max_age_seconds: u64,
    on_join: OnJoin,
}

impl Default for Written {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            cell_capacity: None,
            suite: policy.suite,
            rekey_window_milliseconds: policy.rekey_window_milliseconds,
            overlap_seconds: policy.overlap_seconds,
            rotation_interval_seconds: policy.rotation_interval_seconds,
            rotation_deadline_seconds: policy.rotation_deadline_seconds,
            rotation_threshold_percent: policy.rotation_threshold_percent,
            cell_max_age_seconds: policy.cell_max_age_seconds,
            on_join: policy.on_join,
        }
    }
}

impl From<Written> for Policy {
    fn from(written: Written) -> Self {
        Self {
            cell_capacity: written.cell_capacity.unwrap_or(written.suite.default_cell_capacity()),
            suite: written.suite,
            rekey_window_milliseconds: written.rekey_window_milliseconds,
            overlap_seconds: written.overlap_seconds,
            rotation_interval_seconds: written.rotation_interval_seconds,
            rotation_deadline_seconds: written.rotation_deadline_seconds,
            rotation_threshold_percent: written.rotation_threshold_percent,
            cell_max_age_seconds: written.cell_max_age_seconds,
            on_join: written.on_join,
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::of(Suite::default())
    }
}

/// A policy that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy: {field} is {got}, it must be {must_be}")]
pub struct BadPolicy {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub got: u64,
    /// What it may be.
    pub must_be: String,
}

impl Policy {
    /// The defaults of a group with this suite.
    pub fn of(suite: Suite) -> Self {
        Self {
            cell_capacity: suite.default_cell_capacity(),
            suite,
            rekey_window_milliseconds: 1_000,
            overlap_seconds: 30,
            rotation_interval_seconds: 24 * 3600,
            rotation_deadline_seconds: 3600,
            rotation_threshold_percent: 99,
            cell_max_age_seconds: 7 * 24 * 3600,
            on_join: OnJoin::default(),
        }
    }

    /// Whether it can be followed.
    pub fn check(&self) -> Result<(), BadPolicy> {
        let bad = |field, got: u64, must_be: &str| Err(BadPolicy { field, got, must_be: must_be.to_owned() });
        let max = self.suite.max_cell_capacity();
        if !(MIN_CELL_CAPACITY..=max).contains(&self.cell_capacity) {
            let must_be = format!("{MIN_CELL_CAPACITY} to {max} with the suite {}", self.suite);
            return bad("cell_capacity", self.cell_capacity.into(), &must_be);
        }
        if self.rekey_window_milliseconds > 60_000 {
            return bad("rekey_window_milliseconds", self.rekey_window_milliseconds.into(), "at most 60000");
        }
        if !(1..=100).contains(&self.rotation_threshold_percent) {
            return bad("rotation_threshold_percent", self.rotation_threshold_percent.into(), "1 to 100");
        }
        if self.cell_max_age_seconds < 60 {
            return bad("cell_max_age_seconds", self.cell_max_age_seconds, "at least 60");
        }
        if self.rotation_interval_seconds != 0 && self.rotation_interval_seconds < 10 {
            return bad("rotation_interval_seconds", self.rotation_interval_seconds, "0, or at least 10");
        }
        Ok(())
    }
}
