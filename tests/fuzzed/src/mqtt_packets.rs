//! MQTT as the embedded broker's acceptor takes it, and what the policy says to the names in it.

use std::collections::{BTreeMap, BTreeSet};

use fleetkey_broker::read_packets;
use fleetkey_policy::{CellAccess, Party, PolicyState, PolicyUpdate, Qos};
use fleetkey_wire::{Filter, Topic};

use crate::parties::{CELL, DEVICE, FLEET, OTHER_CELL};

/// As the broker has it where nothing is set.
const MAX_PACKET_BYTES: usize = 65 * 1024;

/// What is read lies within the bytes, and no name in it lets a device out of its own topics.
pub fn run(data: &[u8]) {
    let policy = policy();
    let read = read_packets(data, MAX_PACKET_BYTES, |name| judge(&policy, name));
    if let Ok(bytes) = read {
        assert!(bytes <= data.len());
    }
}

fn policy() -> PolicyState {
    let mut policy = PolicyState::new(FLEET, CellAccess::Members);
    let cells = BTreeMap::from([(CELL, BTreeSet::from([DEVICE])), (OTHER_CELL, BTreeSet::new())]);
    policy
        .apply(PolicyUpdate::Snapshot { sequence: 0, revoked: BTreeSet::new(), cells })
        .expect("a snapshot is always in step");
    policy
}

fn judge(policy: &PolicyState, name: &str) {
    let device = Party::Device(DEVICE);
    if let Ok(topic) = Topic::parse(name) {
        assert_eq!(topic.to_string(), name, "a topic has one spelling");
    }
    if policy.decide_connect(&device, name).is_ok() {
        assert_eq!(name, DEVICE.to_string(), "a device connects under another's name");
    }
    if let Ok(topic) = policy.decide_publish(&device, name, 100, Qos::AtLeastOnce, false) {
        assert_eq!(topic, Topic::Up { fleet: FLEET, device: DEVICE });
    }
    if let Ok(filter) = policy.decide_subscribe(&device, name) {
        let own = [Topic::Down { fleet: FLEET, device: DEVICE }, Topic::Cell { fleet: FLEET, cell: CELL }];
        assert!(own.iter().any(|topic| filter == Filter::Exact(*topic)), "{name:?}");
        assert!(!name.contains(['+', '#', '$']), "a wildcard passes");
    }
}

/// A connection of each version, and what is said on it.
pub fn seeds() -> Vec<Vec<u8>> {
    let own = [
        Topic::Up { fleet: FLEET, device: DEVICE },
        Topic::Down { fleet: FLEET, device: DEVICE },
        Topic::Cell { fleet: FLEET, cell: CELL },
    ]
    .map(|topic| topic.to_string());
    let mut all = Vec::new();
    for level in [4u8, 5] {
        let properties: &[u8] = if level == 5 { &[0] } else { &[] };
        let connect = packet(
            0x10,
            &[&string("MQTT"), &[level, 2, 0, 60][..], properties, &string(&DEVICE.to_string())],
        );
        let publish = |name: &str| packet(0x32, &[&string(name), &[0, 1], properties, b"payload"]);
        let subscribe = |name: &str| packet(0x82, &[&[0, 2], properties, &string(name), &[1]]);
        let unsubscribe = packet(0xa2, &[&[0, 3], properties, &string(&own[2])]);
        let rest = [unsubscribe, vec![0x40, 2, 0, 1], vec![0xc0, 0], vec![0xe0, 0]].concat();
        all.push([&connect[..], &publish(&own[0]), &subscribe(&own[1]), &subscribe(&own[2]), &rest].concat());
        for trick in ["#", "$share/g/fk/+/dev/+/up", "fk//dev/+/up", "\u{feff}fk", "fk/\u{0}"] {
            all.push([&connect[..], &subscribe(trick), &publish(trick)].concat());
        }
    }
    let flags = [5, 0x2e, 0, 60, 5, 0x11, 0, 0, 0, 9];
    all.push(packet(0x10, &[&string("MQTT"), &flags, &string("x"), &[0], &string("t"), &string("w")]));
    all
}

fn string(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("a seed's names are short");
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}

fn packet(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let (low, high) = ((body.len() & 0x7f) as u8, (body.len() >> 7) as u8);
    let length: &[u8] = if high == 0 { &[low] } else { &[low | 0x80, high] };
    [&[first], length, &body].concat()
}
