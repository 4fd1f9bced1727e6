//! CBOR bombs at every place where CBOR comes in: nesting without end, lengths that nobody can hold, lists that do not
//! stop. In the frame, in its body under a good MAC, in what the body carries, and in place of every single item.

use ciborium::Value;
use fleetkey_agent_core::Input;
use fleetkey_coordinator_core::backup::Backup;
use fleetkey_tests::Hand;
use fleetkey_wire::{
    CellEpoch, CellFrame, CellId, DismissReason, DownBody, Generation, GroupId, Hello, HelloCell, KeyEpoch,
    Named, ShortAuthenticator, ShortDigest, StatementAndWrap, Suite, Topic, UpBody, Welcome,
};

use crate::scene::{Scene, hello};

const DEPTH: usize = 20_000;

/// What to plant, by name.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let huge = |head: u8, rest: &[u8]| [&[head][..], &[0xff; 8], rest].concat();
    vec![
        ("arrays in arrays", vec![0x81; DEPTH]),
        ("arrays without end in arrays without end", vec![0x9f; DEPTH]),
        ("maps in maps", vec![0xa1; DEPTH]),
        ("maps under keys", [0xa1, 0x00].repeat(DEPTH / 2)),
        ("tags on tags", vec![0xc1; DEPTH]),
        ("arrays in tags in maps", [0x81, 0xc1, 0xa1, 0x00].repeat(DEPTH / 4)),
        ("bytes of 2^64", huge(0x5b, &[0; 64])),
        ("bytes of 4 GiB", [&[0x5a, 0xff, 0xff, 0xff, 0xff][..], &[0; 64]].concat()),
        ("text of 2^64", huge(0x7b, b"abc")),
        ("text of 2^63", [&[0x7b, 0x7f][..], &[0xff; 7], b"abc"].concat()),
        ("an array of 2^64", huge(0x9b, &[0; 64])),
        ("an array of 4 Gi", [&[0x9a, 0xff, 0xff, 0xff, 0xff][..], &[0; 64]].concat()),
        ("a map of 2^64", huge(0xbb, &[0; 64])),
        ("a big number of 2^64 bytes", [&[0xc2][..], &huge(0x5b, &[1; 8])].concat()),
        ("bytes without end", [&[0x5f][..], &[0x41, 0x00].repeat(DEPTH / 2)].concat()),
        ("text without end", [&[0x7f][..], &[0x61, 0x61].repeat(DEPTH / 2)].concat()),
        ("an array without end", [&[0x9f][..], &[0x00; DEPTH]].concat()),
        ("a map without end", [&[0xbf][..], &[0x00; DEPTH]].concat()),
        ("bytes in bytes without end", [&[0x5f][..], &[0x5f; DEPTH]].concat()),
        ("a list of twenty thousand", [&[0x99, 0x4e, 0x20][..], &[0x00; DEPTH]].concat()),
        ("an end and nothing else", vec![0xff; 64]),
    ]
}

fn encoded(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).expect("writing to memory does not fail");
    bytes
}

/// The encoding of `value` with the bomb in place of each item in turn, whole or as bytes.
fn planted(value: &Value, bomb: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![bomb.to_vec(), encoded(&Value::Bytes(bomb.to_vec()))];
    if let Value::Array(items) = value {
        let parts: Vec<Vec<u8>> = items.iter().map(encoded).collect();
        // The head of the array: what is before its first item.
        let head = encoded(value).len() - parts.iter().map(Vec::len).sum::<usize>();
        let head = encoded(value)[..head].to_vec();
        for (at, item) in items.iter().enumerate() {
            for other in planted(item, bomb) {
                let mut whole = head.clone();
                for (n, part) in parts.iter().enumerate() {
                    whole.extend(if n == at { &other } else { part });
                }
                all.push(whole);
            }
        }
    }
    all
}

fn read(bytes: &[u8]) -> Value {
    ciborium::from_reader(bytes).expect("it is genuine")
}

/// In `genuine`, an encoded array, every bomb in every place.
fn in_every_place(genuine: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let value = read(genuine);
    bombs()
        .into_iter()
        .flat_map(|(name, bomb)| planted(&value, &bomb).into_iter().map(move |it| (name, it)))
        .collect()
}

#[test]
fn cbor_bombs_on_their_way_up() {
    let mut scene = Scene::at_rest(51);
    let (device, group) = (scene.devices[0], scene.group);
    let mut hand = Hand::of(&mut scene.world, device);
    hand.connect(&mut scene.world);
    let shown = HelloCell {
        cell: CellId::from_bytes([3; 16]),
        cell_epoch: CellEpoch(3),
        authenticator: ShortAuthenticator([1; 8]),
        statement: ShortDigest([2; 8]),
        key_epoch: KeyEpoch(1),
        send: KeyEpoch(1),
        oldest: KeyEpoch(1),
    };
    let evidence = scene.world.published.iter().rev().find_map(|(topic, frame)| {
        matches!(topic, Topic::Cell { .. }).then(|| CellFrame::decode(frame).ok()?.rekey)?
    });
    let evidence = evidence.expect("a statement was made").statement;
    let bodies = [
        UpBody::Hello(Hello { generation: Generation(1), cells: vec![shown] }),
        UpBody::Leave { group },
        UpBody::Confirm { group, key_epoch: KeyEpoch(1), statement: ShortDigest([7; 8]), proof: [7; 32] },
        UpBody::Update { cell: CellId::from_bytes([3; 16]), cell_epoch: CellEpoch(1), proposal: vec![1] },
        UpBody::KeyPackages { suite: Suite::Aes128Gcm, packages: vec![vec![1, 2, 3]] },
        UpBody::Evidence { statement: evidence.clone() },
    ];
    let mut frames = Vec::new();
    for body in &bodies {
        frames.extend(
            in_every_place(&body.encode()).into_iter().map(|(name, body)| (name, hand.frame_of(&body))),
        );
    }
    // The statement that a body carries, and the frame around the body.
    for (name, statement) in in_every_place(&evidence) {
        frames.push((name, hand.frame_of(&UpBody::Evidence { statement }.encode())));
    }
    let genuine = hand.frame(&hello());
    for (name, items) in in_every_place(&genuine[1..]) {
        frames.push((name, [&[1], &items[..]].concat()));
    }
    assert!(frames.len() > 1_000);

    let before = scene.stored();
    for (name, frame) in frames {
        let said = scene.world.coordinator.handle_up(device, &frame, scene.world.now, &mut scene.world.rng);
        let Err(refused) = said else { panic!("{name} was taken: {frame:02x?}") };
        assert!(!refused.name().is_empty());
        let effects = scene.world.coordinator.take_effects().expect("no decision failed half-way");
        assert!(effects.writes.is_empty(), "{name} stores something");
    }
    assert!(scene.stored() == before);
    // None of them has taken a counter: the frame that they were made of is heard still.
    hand.send(&mut scene.world, &genuine).expect("a hello is heard");
}

#[test]
fn cbor_bombs_on_their_way_down() {
    let mut scene = Scene::at_rest(52);
    let (device, group) = (scene.devices[0], scene.group);
    let fleet = scene.world.fleet;
    let down = Topic::Down { fleet, device };
    let topics = scene.world.peer(device).agent.topics();
    let cell_topic = *topics.iter().find(|topic| matches!(topic, Topic::Cell { .. })).expect("it is in one");
    let Topic::Cell { cell, .. } = cell_topic else { panic!("a cell's topic") };
    let published = scene.world.published.clone();
    let genuine = published.iter().rev().find(|(topic, _)| *topic == cell_topic).expect("one").1.clone();
    let rekey = CellFrame::decode(&genuine).expect("genuine").rekey.expect("a statement");
    let welcome = Welcome {
        group,
        group_name: "meters".to_owned(),
        cell,
        suite: Suite::Aes128Gcm,
        cell_epoch: CellEpoch(1),
        welcome: vec![1, 2, 3],
        statements: vec![rekey.clone()],
    };
    let bodies = [
        DownBody::Answer { hello: 1 << 40, hello_interval_seconds: 5, max_silence_seconds: 5 },
        DownBody::CellFrame { cell, frame: genuine.clone() },
        DownBody::Welcome(welcome),
        DownBody::RequestUpdate { cell: CellId::from_bytes([3; 16]) },
        DownBody::Dismiss { group, cell, reason: DismissReason::Evicted },
        DownBody::Certificate { chain: vec![vec![0x30, 0]] },
        DownBody::RequestEvidence { group: GroupId::from_bytes([3; 16]) },
    ];
    let mut payloads = Vec::new();
    let mut skip = 0;
    for body in &bodies {
        for (name, body) in in_every_place(&body.encode()) {
            skip += 1;
            payloads.push((name, down, scene.world.down_frame(device, skip, &body)));
        }
    }
    // The frame of a cell, and what it carries, on both of its ways.
    let mut cell_frames: Vec<(&str, Vec<u8>)> = in_every_place(&genuine[1..])
        .into_iter()
        .map(|(name, items)| (name, [&[1], &items[..]].concat()))
        .collect();
    let now = scene.world.now;
    let cell_epoch = scene.world.peer(device).agent.status(now).groups[0].cell_epoch;
    let framed = |statement: Vec<u8>, wrap: Vec<u8>| {
        CellFrame { cell_epoch, commit: None, rekey: Some(StatementAndWrap { statement, wrap }) }.encode()
    };
    for (name, statement) in in_every_place(&rekey.statement) {
        cell_frames.push((name, framed(statement, rekey.wrap.clone())));
    }
    for (name, wrap) in in_every_place(&rekey.wrap) {
        cell_frames.push((name, framed(rekey.statement.clone(), wrap)));
    }
    for (name, frame) in cell_frames {
        skip += 1;
        let body = DownBody::CellFrame { cell, frame: frame.clone() }.encode();
        payloads.push((name, down, scene.world.down_frame(device, skip, &body)));
        payloads.push((name, cell_topic, frame));
    }
    // The link frame.
    let link = scene.world.down_frame(device, skip + 1, &DownBody::RequestHello.encode());
    for (name, items) in in_every_place(&link[1..]) {
        payloads.push((name, down, [&[1], &items[..]].concat()));
    }
    assert!(payloads.len() > 2_000);

    let before = scene.stored();
    for (name, topic, payload) in payloads {
        let peer = scene.world.peers.get_mut(&device).expect("enrolled");
        let input = Input::Message { topic, payload: &payload };
        let effects = peer.agent.handle(input, now, &mut scene.world.rng);
        let Some(refused) = effects.refused else { panic!("{name} was taken on {topic}: {payload:02x?}") };
        assert!(!refused.name().is_empty());
        assert!(effects.writes.is_empty(), "{name} stores something");
    }
    assert!(scene.stored() == before);
    // The link still works, and so does the device.
    let last = scene.world.down_frame(device, skip + 2, &DownBody::RequestHello.encode());
    let peer = scene.world.peers.get_mut(&device).expect("enrolled");
    let heard = peer.agent.handle(Input::Message { topic: down, payload: &last }, now, &mut scene.world.rng);
    assert_eq!(heard.refused, None);
    scene.world.run_for(60_000);
    scene.world.assert_current(group);
}

#[test]
fn cbor_bombs_in_sealed_payloads_and_backups() {
    let mut scene = Scene::at_rest(53);
    let (sender, reader, group) = (scene.devices[0], scene.devices[1], scene.group);
    let now = scene.world.now;
    let peer = scene.world.peers.get_mut(&sender).expect("enrolled");
    let sealed =
        peer.agent.seal(group, b"open valve 3", b"", true, now, &mut scene.world.rng).expect("sealed");
    let chain = vec![
        scene
            .world
            .ca
            .issue(
                &fleetkey_identity::Role::Device(sender),
                &scene.world.peers[&sender].config.identity.public_key(),
                &[],
                fleetkey_identity::Validity::without_end(0),
            )
            .expect("issued"),
    ];
    scene.world.peer(reader).agent.know_sender(&chain).expect("a member's certificate");
    let before = scene.stored();
    for (name, bomb) in in_every_place(&sealed) {
        let opened = scene.world.peer(reader).agent.open(&bomb, b"", now);
        assert!(opened.is_err(), "{name} opened: {bomb:02x?}");
    }
    assert!(scene.stored() == before);
    assert!(scene.world.peer(reader).agent.open(&sealed, b"", now).is_ok());

    // A backup is sealed: this is what somebody with the master key could put into it.
    let good = Backup::of_store(&mut scene.world.store, now.unix_seconds).expect("it is whole").encode();
    assert!(Backup::decode(&good).is_ok());
    for (name, bomb) in bombs() {
        for version in [1, 2] {
            let contents = [&[version], &bomb[..]].concat();
            assert!(Backup::decode(&contents).is_err(), "{name}");
            let in_field = [&[version], &[0xa1, 0x67][..], b"devices", &bomb].concat();
            assert!(Backup::decode(&in_field).is_err(), "{name}, as devices");
        }
    }
}
