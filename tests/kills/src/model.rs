//! What should be so: who is in which group, and which messages must stay shut for whom.

use std::collections::{BTreeMap, BTreeSet};

use fleetkey_wire::KeyEpoch;

use crate::device::Device;

/// The group that every device is in.
pub const EVERYBODY: &str = "pumps";
/// The group that every other device is in, of another cipher suite.
pub const SOME: &str = "valves";
/// Both.
pub const GROUPS: [&str; 2] = [EVERYBODY, SOME];

/// A message that a member sealed when all was well.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// For which group.
    pub group: &'static str,
    /// Under which key epoch.
    pub key_epoch: KeyEpoch,
    /// The message, in hexadecimal.
    pub message: String,
    /// What it says.
    pub plaintext: String,
}

/// Messages that a device must not open: those of a group from one place in the record up to another.
#[derive(Debug, Clone)]
struct Shut {
    group: &'static str,
    from: usize,
    until: Option<usize>,
}

/// What should be so.
#[derive(Debug, Default)]
pub struct Model {
    members: BTreeMap<&'static str, BTreeSet<String>>,
    sealed: Vec<Sealed>,
    shut: BTreeMap<String, Vec<Shut>>,
    /// Devices that were revoked, with everything they had; their agents do not run.
    pub revoked: Vec<Device>,
}

impl Model {
    /// The devices of a group.
    pub fn members(&self, group: &str) -> impl Iterator<Item = &String> {
        self.members.get(group).into_iter().flatten()
    }

    /// Whether a device should be in a group.
    pub fn is_member(&self, group: &str, device: &str) -> bool {
        self.members.get(group).is_some_and(|members| members.contains(device))
    }

    /// A device is about to be put into a group: what was sealed so far stays shut for it, or since it was put out.
    pub fn admit(&mut self, group: &'static str, device: &str) {
        let now = self.sealed.len();
        let shut = self.shut.entry(device.to_owned()).or_default();
        match shut.iter_mut().rfind(|shut| shut.group == group) {
            Some(shut) => shut.until = shut.until.or(Some(now)),
            None => shut.push(Shut { group, from: 0, until: Some(now) }),
        }
        self.members.entry(group).or_default().insert(device.to_owned());
    }

    /// A device is out of a group: what is sealed from now on stays shut for it.
    pub fn put_out(&mut self, group: &'static str, device: &str) {
        if self.members.get_mut(group).is_some_and(|members| members.remove(device)) {
            let from = self.sealed.len();
            let shut = self.shut.entry(device.to_owned()).or_default();
            shut.push(Shut { group, from, until: None });
        }
    }

    /// Keeps a message.
    pub fn keep(&mut self, sealed: Sealed) {
        self.sealed.push(sealed);
    }

    /// The newest messages that must stay shut for a device, up to `limit` for each time that it was out.
    pub fn shut_for<'a>(&'a self, device: &str, limit: usize) -> impl Iterator<Item = &'a Sealed> {
        self.shut.get(device).into_iter().flatten().flat_map(move |shut| {
            let until = shut.until.unwrap_or(self.sealed.len()).min(self.sealed.len());
            let range = &self.sealed[shut.from.min(until)..until];
            range.iter().rev().filter(|sealed| sealed.group == shut.group).take(limit)
        })
    }
}
