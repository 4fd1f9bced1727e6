//! A twin of a live fleet: the shape as the coordinator tells it, and what it predicts.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use fleetkey_scenario::NetworkProfile;
use fleetkey_scenario::twin::{Cells, LiveFleet, Prediction, predict};

fn live() -> LiveFleet {
    let policy = serde_json::to_value(fleetkey_coordinator_core::Policy::default()).unwrap();
    let group = |name: &str, members: usize, offline: usize| {
        serde_json::json!({
            "id": "0", "name": name, "policy": policy, "members": members, "key_epoch": "1/1",
            "behind": { "never_heard": 0, "offline": offline, "unconfirmed": 0 },
            "cells": [],
        })
    };
    serde_json::from_value(serde_json::json!({ "groups": [group("all", 200, 5), group("some", 40, 0)] }))
        .unwrap()
}

fn predicted(which: Cells) -> Prediction {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(predict(&live(), 20, which, NetworkProfile::default(), 3)).unwrap()
}

#[test]
fn whoever_is_out_of_reach_is_a_straggler_and_everybody_else_has_a_new_key() {
    let spread = predicted(Cells::Spread);
    assert_eq!(spread.revoked, 20);
    assert!((200..=220).contains(&spread.remaining), "{spread:?}");
    assert!((5..=10).contains(&spread.stragglers), "{spread:?}");
    assert!(spread.max_milliseconds < 1_000.0, "{spread:?}");
}

#[test]
fn devices_that_share_their_cells_cost_the_others_less() {
    let (spread, same) = (predicted(Cells::Spread), predicted(Cells::SameCells));
    assert!(same.bytes < spread.bytes, "{same:?} {spread:?}");
}
