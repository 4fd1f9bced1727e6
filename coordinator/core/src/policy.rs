//! How a group is run.

use fleetkey_wire::Suite;
use fleetkey_wire::limits::{MAX_CELL_CAPACITY, MIN_CELL_CAPACITY};
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

/// How a group is run. Every field has a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Devices in a cell, 8 to 256.
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

impl Default for Policy {
    fn default() -> Self {
        Self {
            cell_capacity: 64,
            suite: Suite::default(),
            rekey_window_milliseconds: 1_000,
            overlap_seconds: 30,
            rotation_interval_seconds: 24 * 3600,
            rotation_deadline_seconds: 3600,
            rotation_threshold_percent: 99,
            cell_max_age_seconds: 7 * 24 * 3600,
            on_join: OnJoin::default(),
        }
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
    pub must_be: &'static str,
}

impl Policy {
    /// Whether it can be followed.
    pub fn check(&self) -> Result<(), BadPolicy> {
        let bad = |field, got: u64, must_be| Err(BadPolicy { field, got, must_be });
        if !(MIN_CELL_CAPACITY..=MAX_CELL_CAPACITY).contains(&self.cell_capacity) {
            return bad("cell_capacity", self.cell_capacity.into(), "8 to 256");
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
