//! The coordinator's policy stream, as brokers follow it: JSON, line by line.

use std::collections::{BTreeMap, BTreeSet};

use fleetkey_policy::{CellAccess, PolicyHandle, PolicyState, PolicyUpdate};
use fleetkey_policy_follow::{LastHeard, apply_stream};
use fleetkey_wire::DeviceId;

use crate::parties::{CELL, DEVICE, FLEET, OTHER, OTHER_CELL};

const REVOKED: DeviceId = DeviceId::from_bytes([0xdd; 16]);

/// A stream ends with an error, whatever it says, and whoever was revoked before it stays revoked.
pub fn run(data: &[u8]) {
    let policy = PolicyHandle::new(PolicyState::new(FLEET, CellAccess::Members));
    let revoked = BTreeSet::from([REVOKED]);
    let known =
        PolicyUpdate::Snapshot { sequence: 3, revoked, cells: BTreeMap::from([(CELL, [DEVICE].into())]) };
    policy.apply(known).expect("a snapshot is always in step");
    let Err(ended) = apply_stream(data, "http://127.0.0.1:7600/v1/policy", &policy, &LastHeard::default());
    assert!(!ended.to_string().is_empty());
    let state = policy.read();
    assert!(state.is_revoked(REVOKED), "a revocation is forgotten");
    if state.is_revoked(DEVICE) {
        let party = fleetkey_policy::Party::Device(DEVICE);
        assert!(state.decide_connect(&party, &DEVICE.to_string()).is_err());
    }
}

/// A stream with every kind of update, one that begins in the middle, and one that skips.
pub fn seeds() -> Vec<Vec<u8>> {
    let snapshot = PolicyUpdate::Snapshot {
        sequence: 7,
        revoked: BTreeSet::from([OTHER]),
        cells: BTreeMap::from([(CELL, [DEVICE, OTHER].into()), (OTHER_CELL, BTreeSet::new())]),
    };
    let later = [
        PolicyUpdate::CellMembers { sequence: 8, cell: OTHER_CELL, members: [DEVICE].into() },
        PolicyUpdate::Revoked { sequence: 9, device: DEVICE },
        PolicyUpdate::CellGone { sequence: 10, cell: CELL },
    ];
    let lines = |updates: &[&PolicyUpdate]| -> Vec<u8> {
        let line = |update: &&PolicyUpdate| {
            serde_json::to_string(update).expect("an update can be written") + "\n\n"
        };
        updates.iter().map(line).collect::<String>().into_bytes()
    };
    vec![
        lines(&[&snapshot, &later[0], &later[1], &later[2]]),
        lines(&[&later[0]]),
        lines(&[&snapshot, &later[2]]),
        b"\n\n".to_vec(),
        b"[[[[{\"a\":".to_vec(),
    ]
}
