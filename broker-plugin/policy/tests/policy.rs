//! The policy as a table, and what its updates do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use fleetkey_policy::{
    CellAccess, Denied, Effects, OutOfStep, Party, PayloadLimits, PolicyHandle, PolicyState, PolicyUpdate,
    Qos,
};
use fleetkey_wire::topic::BadTopic;
use fleetkey_wire::{CellId, DeviceId, Filter, FleetId, Topic};
use proptest::prelude::*;

const FLEET: FleetId = FleetId::from_bytes([1; 16]);
const OTHER_FLEET: FleetId = FleetId::from_bytes([2; 16]);
const A: DeviceId = DeviceId::from_bytes([0xa; 16]);
const B: DeviceId = DeviceId::from_bytes([0xb; 16]);
const REVOKED: DeviceId = DeviceId::from_bytes([0xe; 16]);
const CELL: CellId = CellId::from_bytes([0xc; 16]);
const CELL_2: CellId = CellId::from_bytes([0xd; 16]);

fn cells(list: &[(CellId, &[DeviceId])]) -> BTreeMap<CellId, BTreeSet<DeviceId>> {
    list.iter().map(|(cell, members)| (*cell, members.iter().copied().collect())).collect()
}

fn snapshot(sequence: u64, list: &[(CellId, &[DeviceId])]) -> PolicyUpdate {
    PolicyUpdate::Snapshot { sequence, revoked: BTreeSet::new(), cells: cells(list) }
}

fn policy() -> PolicyState {
    let mut state = PolicyState::new(FLEET, CellAccess::Members);
    state.apply(snapshot(0, &[(CELL, &[A])])).unwrap();
    state
}

fn policy_with_one_revoked() -> PolicyState {
    let mut state = policy();
    state.apply(PolicyUpdate::Revoked { sequence: 1, device: REVOKED }).unwrap();
    state
}

fn cell(fleet: FleetId, cell: CellId) -> Topic {
    Topic::Cell { fleet, cell }
}

fn down(device: DeviceId) -> Topic {
    Topic::Down { fleet: FLEET, device }
}

fn up(device: DeviceId) -> Topic {
    Topic::Up { fleet: FLEET, device }
}

#[test]
fn each_party_publishes_only_where_the_table_says() {
    let state = policy_with_one_revoked();
    let device = Party::Device(A);
    let table = [
        (Party::Coordinator, cell(FLEET, CELL), Ok(())),
        (Party::Coordinator, cell(FLEET, CELL_2), Ok(())),
        (Party::Coordinator, down(A), Ok(())),
        (Party::Coordinator, up(A), Err(Denied::DevicePublishes)),
        (Party::Coordinator, cell(OTHER_FLEET, CELL), Err(Denied::OtherFleet { fleet: OTHER_FLEET })),
        (device, up(A), Ok(())),
        (device, up(B), Err(Denied::OtherDevice { device: B })),
        (device, down(A), Err(Denied::CoordinatorPublishes)),
        (device, down(B), Err(Denied::CoordinatorPublishes)),
        (device, cell(FLEET, CELL), Err(Denied::CoordinatorPublishes)),
        (device, Topic::Up { fleet: OTHER_FLEET, device: A }, Err(Denied::OtherFleet { fleet: OTHER_FLEET })),
        (Party::Operator, cell(FLEET, CELL), Err(Denied::RoleWithoutTopics)),
        (Party::Broker, up(A), Ok(())),
        (Party::Broker, up(REVOKED), Err(Denied::Revoked { device: REVOKED })),
        (Party::Broker, down(A), Err(Denied::CoordinatorPublishes)),
        (Party::Broker, cell(FLEET, CELL), Err(Denied::CoordinatorPublishes)),
        (
            Party::Broker,
            Topic::Up { fleet: OTHER_FLEET, device: A },
            Err(Denied::OtherFleet { fleet: OTHER_FLEET }),
        ),
    ];
    for (party, topic, expected) in table {
        let got = state.decide_publish(&party, &topic.to_string(), 10, Qos::AtMostOnce, false);
        assert_eq!(got, expected.map(|()| topic), "{party:?} to {topic}");
    }
}

#[test]
fn each_party_subscribes_only_where_the_table_says() {
    let state = policy_with_one_revoked();
    let device = Party::Device(A);
    let all_up = Filter::AllUp { fleet: FLEET };
    let table = [
        (Party::Coordinator, all_up, Ok(())),
        (
            Party::Coordinator,
            Filter::AllUp { fleet: OTHER_FLEET },
            Err(Denied::OtherFleet { fleet: OTHER_FLEET }),
        ),
        (Party::Coordinator, Filter::Exact(cell(FLEET, CELL)), Err(Denied::DeviceSubscribes)),
        (Party::Coordinator, Filter::Exact(down(A)), Err(Denied::DeviceSubscribes)),
        (device, Filter::Exact(cell(FLEET, CELL)), Ok(())),
        (device, Filter::Exact(cell(FLEET, CELL_2)), Err(Denied::NotMember { cell: CELL_2 })),
        (device, Filter::Exact(cell(OTHER_FLEET, CELL)), Err(Denied::OtherFleet { fleet: OTHER_FLEET })),
        (device, Filter::Exact(down(A)), Ok(())),
        (device, Filter::Exact(down(B)), Err(Denied::OtherDevice { device: B })),
        (device, Filter::Exact(up(A)), Err(Denied::CoordinatorSubscribes)),
        (device, all_up, Err(Denied::CoordinatorSubscribes)),
        (Party::Operator, all_up, Err(Denied::RoleWithoutTopics)),
        (Party::Broker, Filter::Exact(down(A)), Ok(())),
        (Party::Broker, Filter::Exact(down(REVOKED)), Err(Denied::Revoked { device: REVOKED })),
        (Party::Broker, Filter::Exact(cell(FLEET, CELL)), Ok(())),
        (Party::Broker, Filter::Exact(cell(FLEET, CELL_2)), Ok(())),
        (
            Party::Broker,
            Filter::Exact(cell(OTHER_FLEET, CELL)),
            Err(Denied::OtherFleet { fleet: OTHER_FLEET }),
        ),
        (Party::Broker, Filter::Exact(up(A)), Err(Denied::CoordinatorSubscribes)),
        (Party::Broker, all_up, Err(Denied::CoordinatorSubscribes)),
    ];
    for (party, filter, expected) in table {
        let got = state.decide_subscribe(&party, &filter.to_string());
        assert_eq!(got, expected.map(|()| filter), "{party:?} to {filter}");
    }
}

#[test]
fn a_device_connects_only_under_its_own_id() {
    let state = policy();
    let device = Party::Device(A);
    assert_eq!(state.decide_connect(&device, &A.to_string()), Ok(()));
    for id in [B.to_string(), "a".into(), A.to_string().to_uppercase()] {
        assert_eq!(state.decide_connect(&device, &id), Err(Denied::ClientIdNotDevice { device: A }), "{id}");
    }
    assert_eq!(state.decide_connect(&Party::Coordinator, "coordinator"), Ok(()));
    assert_eq!(state.decide_connect(&Party::Coordinator, &A.to_string()), Err(Denied::BadClientId));
    for id in ["", "a b", "é", &"x".repeat(65)] {
        assert_eq!(state.decide_connect(&Party::Coordinator, id), Err(Denied::BadClientId), "{id:?}");
        assert_eq!(state.decide_connect(&device, id), Err(Denied::BadClientId), "{id:?}");
    }
    assert_eq!(state.decide_connect(&Party::Operator, "x"), Err(Denied::RoleWithoutTopics));
}

#[test]
fn relays_and_others_are_told_apart_by_their_client_ids() {
    let state = policy();
    assert_eq!(state.decide_connect(&Party::Broker, "relay-1"), Ok(()));
    for id in ["coordinator", &A.to_string()] {
        assert_eq!(state.decide_connect(&Party::Broker, id), Err(Denied::ClientIdNotRelay), "{id}");
    }
    assert_eq!(state.decide_connect(&Party::Coordinator, "relay-1"), Err(Denied::BadClientId));
    let not_relay = Err(Denied::ClientIdNotDevice { device: A });
    assert_eq!(state.decide_connect(&Party::Device(A), "relay-1"), not_relay);
}

#[test]
fn before_the_first_word_no_relay_is_let_in() {
    let state = PolicyState::new(FLEET, CellAccess::Members);
    assert_eq!(state.decide_connect(&Party::Broker, "relay-1"), Err(Denied::PolicyUnknown));
    let cell = cell(FLEET, CELL).to_string();
    assert_eq!(state.decide_subscribe(&Party::Broker, &cell), Err(Denied::PolicyUnknown));
    let state = PolicyState::new(FLEET, CellAccess::AnyDevice);
    assert_eq!(state.decide_connect(&Party::Broker, "relay-1"), Ok(()));
}

#[test]
fn payloads_are_bounded_by_topic() {
    let limits = PayloadLimits { cell_bytes: 30, down_bytes: 20, up_bytes: 10 };
    let state = policy().with_payload_limits(limits);
    for (party, topic, limit) in [
        (Party::Coordinator, cell(FLEET, CELL), 30),
        (Party::Coordinator, down(A), 20),
        (Party::Device(A), up(A), 10),
    ] {
        let raw = topic.to_string();
        assert_eq!(state.decide_publish(&party, &raw, limit, Qos::AtLeastOnce, false), Ok(topic));
        assert_eq!(
            state.decide_publish(&party, &raw, limit + 1, Qos::AtLeastOnce, false),
            Err(Denied::PayloadTooLarge { bytes: limit + 1, limit })
        );
    }
}

#[test]
fn qos_2_and_retain_are_refused() {
    let state = policy();
    let raw = up(A).to_string();
    assert_eq!(state.decide_publish(&Party::Device(A), &raw, 1, Qos::ExactlyOnce, false), Err(Denied::Qos2));
    assert_eq!(state.decide_publish(&Party::Device(A), &raw, 1, Qos::AtMostOnce, true), Err(Denied::Retain));
}

#[test]
fn before_the_first_snapshot_no_device_is_let_in_but_the_coordinator_is() {
    let state = PolicyState::new(FLEET, CellAccess::Members);
    assert_eq!(state.decide_connect(&Party::Device(A), &A.to_string()), Err(Denied::PolicyUnknown));
    assert_eq!(state.decide_subscribe(&Party::Device(A), &down(A).to_string()), Err(Denied::PolicyUnknown));
    assert_eq!(state.decide_connect(&Party::Coordinator, "coordinator"), Ok(()));
    let open = PolicyState::new(FLEET, CellAccess::AnyDevice);
    assert_eq!(open.decide_connect(&Party::Device(A), &A.to_string()), Ok(()));
}

#[test]
fn any_device_means_any_that_is_not_revoked() {
    let mut state = PolicyState::new(FLEET, CellAccess::AnyDevice);
    state.apply(snapshot(0, &[(CELL, &[A])])).unwrap();
    let raw = cell(FLEET, CELL_2).to_string();
    assert!(state.decide_subscribe(&Party::Device(B), &raw).is_ok());
    state.apply(PolicyUpdate::Revoked { sequence: 1, device: B }).unwrap();
    assert_eq!(state.decide_subscribe(&Party::Device(B), &raw), Err(Denied::Revoked { device: B }));
    let effects =
        state.apply(PolicyUpdate::CellMembers { sequence: 2, cell: CELL, members: BTreeSet::new() }).unwrap();
    assert!(effects.is_empty(), "membership does not matter in this mode");
}

#[test]
fn a_revoked_device_may_do_nothing_and_its_session_is_to_be_closed() {
    let mut state = policy();
    let effects = state.apply(PolicyUpdate::Revoked { sequence: 1, device: A }).unwrap();
    assert_eq!(effects.close, BTreeSet::from([A]));
    let revoked = Denied::Revoked { device: A };
    let party = Party::Device(A);
    assert_eq!(state.decide_connect(&party, &A.to_string()), Err(revoked.clone()));
    assert_eq!(
        state.decide_publish(&party, &up(A).to_string(), 1, Qos::AtMostOnce, false),
        Err(revoked.clone())
    );
    assert_eq!(state.decide_subscribe(&party, &cell(FLEET, CELL).to_string()), Err(revoked.clone()));
    assert_eq!(state.decide_subscribe(&party, &down(A).to_string()), Err(revoked));
}

#[test]
fn a_revocation_outlives_a_snapshot_that_forgot_it() {
    let mut state = policy();
    state.apply(PolicyUpdate::Revoked { sequence: 1, device: A }).unwrap();
    state.apply(snapshot(0, &[(CELL, &[A, B])])).unwrap();
    assert!(state.is_revoked(A));
}

#[test]
fn who_leaves_a_cell_loses_the_subscription() {
    let mut state = policy();
    let both = BTreeSet::from([A, B]);
    let joined = state.apply(PolicyUpdate::CellMembers { sequence: 1, cell: CELL, members: both }).unwrap();
    assert!(joined.is_empty());
    let one = BTreeSet::from([B]);
    let left = state.apply(PolicyUpdate::CellMembers { sequence: 2, cell: CELL, members: one }).unwrap();
    assert_eq!(left, Effects { close: BTreeSet::new(), drop: BTreeSet::from([(CELL, A)]) });
    let gone = state.apply(PolicyUpdate::CellGone { sequence: 3, cell: CELL }).unwrap();
    assert_eq!(gone.drop, BTreeSet::from([(CELL, B)]));
    assert_eq!(state.cell_count(), 0);
}

#[test]
fn lost_updates_are_noticed_and_repeated_ones_ignored() {
    let mut state = PolicyState::new(FLEET, CellAccess::Members);
    let members = |sequence| PolicyUpdate::CellMembers { sequence, cell: CELL, members: BTreeSet::from([A]) };
    assert_eq!(state.apply(members(1)), Err(OutOfStep::NoSnapshot { got: 1 }));
    state.apply(snapshot(7, &[])).unwrap();
    assert_eq!(state.apply(members(9)), Err(OutOfStep::Gap { expected: 8, got: 9 }));
    assert!(!state.is_member(CELL, A), "a refused update changes nothing");
    state.apply(members(8)).unwrap();
    let stale = PolicyUpdate::CellGone { sequence: 8, cell: CELL };
    assert!(state.apply(stale).unwrap().is_empty());
    assert!(state.is_member(CELL, A));
}

#[test]
fn updates_have_one_form_in_json() {
    let a = A.to_string();
    let c = CELL.to_string();
    let forms = [
        (
            PolicyUpdate::Snapshot {
                sequence: 1,
                revoked: BTreeSet::from([A]),
                cells: cells(&[(CELL, &[A])]),
            },
            format!(r#"{{"snapshot":{{"sequence":1,"revoked":["{a}"],"cells":{{"{c}":["{a}"]}}}}}}"#),
        ),
        (
            PolicyUpdate::CellMembers { sequence: 2, cell: CELL, members: BTreeSet::from([A]) },
            format!(r#"{{"cell_members":{{"sequence":2,"cell":"{c}","members":["{a}"]}}}}"#),
        ),
        (
            PolicyUpdate::CellGone { sequence: 3, cell: CELL },
            format!(r#"{{"cell_gone":{{"sequence":3,"cell":"{c}"}}}}"#),
        ),
        (
            PolicyUpdate::Revoked { sequence: 4, device: A },
            format!(r#"{{"revoked":{{"sequence":4,"device":"{a}"}}}}"#),
        ),
    ];
    for (update, json) in forms {
        assert_eq!(serde_json::to_string(&update).unwrap(), json);
        assert_eq!(serde_json::from_str::<PolicyUpdate>(&json).unwrap(), update);
    }
    assert!(serde_json::from_str::<PolicyUpdate>(r#"{"amnesty":{"sequence":5}}"#).is_err());
}

#[test]
fn watchers_hear_of_effects_until_they_stop_watching() {
    let handle = PolicyHandle::new(policy());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let watch = handle.watch({
        let heard = heard.clone();
        move |effects| heard.lock().unwrap().push(effects.clone())
    });
    handle
        .apply(PolicyUpdate::CellMembers { sequence: 1, cell: CELL, members: BTreeSet::from([A, B]) })
        .unwrap();
    assert!(heard.lock().unwrap().is_empty(), "nothing to do, nothing to hear");
    handle.apply(PolicyUpdate::Revoked { sequence: 2, device: B }).unwrap();
    assert_eq!(heard.lock().unwrap()[0].close, BTreeSet::from([B]));
    drop(watch);
    handle.apply(PolicyUpdate::CellGone { sequence: 3, cell: CELL }).unwrap();
    assert_eq!(heard.lock().unwrap().len(), 1);
    assert!(handle.read().is_revoked(B));
}

#[test]
fn what_is_none_of_our_topics_is_refused_by_name() {
    let state = policy();
    for (raw, why) in [
        ("é/x", BadTopic::NotAscii),
        ("$share/g/x", BadTopic::Wildcard),
        ("fk/#", BadTopic::Wildcard),
        ("+/+", BadTopic::Wildcard),
        ("", BadTopic::UnknownForm),
        ("hello", BadTopic::UnknownForm),
    ] {
        for party in [Party::Coordinator, Party::Device(A)] {
            assert_eq!(
                state.decide_publish(&party, raw, 1, Qos::AtMostOnce, false),
                Err(Denied::BadTopic(why)),
                "{raw:?}"
            );
            assert_eq!(state.decide_subscribe(&party, raw), Err(Denied::BadTopic(why)), "{raw:?}");
        }
    }
}

proptest! {
    #[test]
    fn a_device_reaches_only_its_own_whatever_it_writes(raw in "[ -~]{0,96}|fk/[0-9a-f+#/-]{0,90}") {
        let state = policy();
        let party = Party::Device(A);
        if let Ok(topic) = state.decide_publish(&party, &raw, 1, Qos::AtMostOnce, false) {
            prop_assert_eq!(topic, up(A));
        }
        if let Ok(filter) = state.decide_subscribe(&party, &raw) {
            prop_assert!(filter == Filter::Exact(down(A)) || filter == Filter::Exact(cell(FLEET, CELL)));
        }
    }

    #[test]
    fn replaying_updates_ends_where_a_snapshot_would(
        steps in proptest::collection::vec((0u8..4, proptest::collection::btree_set(0u8..6, 0..4)), 0..20),
    ) {
        let mut replayed = PolicyState::new(FLEET, CellAccess::Members);
        replayed.apply(snapshot(0, &[])).unwrap();
        let mut model: BTreeMap<CellId, BTreeSet<DeviceId>> = BTreeMap::new();
        let mut sequence = 0;
        for (which, members) in steps {
            sequence += 1;
            let cell = CellId::from_bytes([which; 16]);
            let members: BTreeSet<_> = members.into_iter().map(|n| DeviceId::from_bytes([n; 16])).collect();
            if members.is_empty() {
                model.remove(&cell);
                replayed.apply(PolicyUpdate::CellGone { sequence, cell }).unwrap();
            } else {
                model.insert(cell, members.clone());
                replayed.apply(PolicyUpdate::CellMembers { sequence, cell, members }).unwrap();
            }
        }
        // A snapshot of the same state takes nothing away from anyone.
        let same = PolicyUpdate::Snapshot { sequence, revoked: BTreeSet::new(), cells: model };
        prop_assert!(replayed.apply(same).unwrap().is_empty());
    }
}
