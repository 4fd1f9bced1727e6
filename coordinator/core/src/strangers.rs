//! Devices that are not enrolled here and speak all the same: after a restore, those enrolled after the backup.
//!
//! Nothing they say can be authenticated, so they cost a count and no answer; an operator sees who they are.

use std::collections::BTreeMap;

use fleetkey_wire::{DeviceId, Now};

/// Strangers that are remembered by their ids. Beyond that they are only counted.
pub(crate) const MAX_STRANGERS: usize = 256;

/// Who was heard without being enrolled, since this start.
#[derive(Debug, Default)]
pub(crate) struct Strangers(BTreeMap<DeviceId, u64>);

impl Strangers {
    pub(crate) fn heard(&mut self, device: DeviceId, now: Now) {
        if self.0.len() < MAX_STRANGERS || self.0.contains_key(&device) {
            self.0.insert(device, now.unix_seconds);
        }
    }

    /// It is enrolled now.
    pub(crate) fn forget(&mut self, device: DeviceId) {
        self.0.remove(&device);
    }

    /// Each stranger, and when it was last heard.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (DeviceId, u64)> {
        self.0.iter().map(|(device, heard)| (*device, *heard))
    }
}
