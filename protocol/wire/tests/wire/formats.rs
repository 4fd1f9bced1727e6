//! Every format from fixed inputs, byte for byte. A snapshot that changes needs a new version of its format.

use std::fmt::Write as _;

use ciborium::Value;
use fleetkey_wire::link::{CoordinatorLink, DeviceLink, StartSecret};
use fleetkey_wire::payload::Sealer;
use fleetkey_wire::{
    CellEpoch, CellFrame, CommitMessages, Confirmation, DismissReason, DownBody, Filter, Generation, Hello,
    HelloCell, PskId, ShortAuthenticator, Suite, Topic, UpBody, Welcome,
};

use crate::support::*;

/// Holds `text` against the snapshot `name`.
fn assert_format(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// A payload: its size, the diagnostic notation (RFC 8949 §8) of what is behind the version byte, and all in hex.
fn frame(bytes: &[u8]) -> String {
    let (version, array) = bytes.split_first().unwrap();
    describe(bytes, &format!("version {version}: "), array)
}

fn cbor(bytes: &[u8]) -> String {
    describe(bytes, "", bytes)
}

fn describe(bytes: &[u8], prefix: &str, encoded: &[u8]) -> String {
    let value: Value = ciborium::from_reader(encoded).unwrap();
    format!("{} bytes\n\n{prefix}{}\n\n{}", bytes.len(), diagnostic(&value), hexdump(bytes))
}

fn hexdump(bytes: &[u8]) -> String {
    bytes.chunks(32).fold(String::new(), |mut out, line| {
        writeln!(out, "{}", hex::encode(line)).unwrap();
        out
    })
}

fn diagnostic(value: &Value) -> String {
    let list = |items: &[Value]| items.iter().map(diagnostic).collect::<Vec<_>>().join(", ");
    if let Some(bytes) = value.as_bytes() {
        format!("h'{}'", hex::encode(bytes))
    } else if let Some(items) = value.as_array() {
        format!("[{}]", list(items))
    } else if let Some(entries) = value.as_map() {
        let entries =
            entries.iter().map(|(key, value)| format!("{}: {}", diagnostic(key), diagnostic(value)));
        format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
    } else if let Some(text) = value.as_text() {
        format!("{text:?}")
    } else if let Some(number) = value.as_integer() {
        i128::from(number).to_string()
    } else if value.is_null() {
        "null".to_owned()
    } else {
        panic!("no format of ours has a {value:?}")
    }
}

fn commit() -> CommitMessages {
    CommitMessages { covered_updates: vec![vec![0xa1; 5], vec![0xa2; 6]], commit: vec![0xc0; 12] }
}

fn hello() -> Hello {
    let cell = HelloCell {
        cell: CELL,
        cell_epoch: CELL_EPOCH,
        authenticator: ShortAuthenticator([0x77; 8]),
        statement: DIGEST,
        key_epoch: KEY_EPOCH,
        send: KEY_EPOCH,
        oldest: KEY_EPOCH,
    };
    Hello { generation: Generation(3), cells: vec![cell] }
}

fn confirm() -> UpBody {
    let confirmation = Confirmation {
        fleet: FLEET,
        group: GROUP,
        key_epoch: KEY_EPOCH,
        commitment: commitment(),
        device: DEVICE,
    };
    let proof = confirmation.prove(&pairwise(), &secret());
    UpBody::Confirm {
        group: GROUP,
        key_epoch: KEY_EPOCH,
        statement: signed_statement().digest().short(),
        proof,
    }
}

fn up_bodies() -> Vec<UpBody> {
    vec![
        UpBody::Hello(hello()),
        UpBody::KeyPackages { suite: Suite::Aes128Gcm, packages: vec![vec![0xb1; 5], vec![0xb2; 6]] },
        confirm(),
        UpBody::Update { cell: CELL, cell_epoch: CELL_EPOCH, proposal: vec![0xa1; 5] },
        UpBody::Leave { group: GROUP },
        UpBody::Evidence { statement: signed_statement().as_bytes().to_vec() },
        UpBody::Psks { held: vec![PskId::from_bytes([0xc1; 16]), PskId::from_bytes([0xc2; 16])] },
    ]
}

fn down_bodies() -> Vec<DownBody> {
    vec![
        DownBody::HelloAgain,
        DownBody::Answer { hello: 1, hello_interval_seconds: 1_800, max_silence_seconds: 86_400 },
        DownBody::CellFrame { cell: CELL, frame: vec![0x01, 0x80] },
        DownBody::Welcome(Welcome {
            group: GROUP,
            group_name: "pumps, hall 2".to_owned(),
            cell: CELL,
            suite: Suite::ChaCha20Poly1305,
            cell_epoch: CELL_EPOCH,
            welcome: vec![0xe0; 12],
            statements: vec![rekey()],
        }),
        DownBody::RequestKeyPackages { suite: Suite::Aes128Gcm, count: 4 },
        DownBody::RequestUpdate { cell: CELL },
        DownBody::Dismiss { group: GROUP, cell: CELL, reason: DismissReason::Evicted },
        DownBody::Dismiss { group: GROUP, cell: CELL, reason: DismissReason::NotAMember },
        DownBody::Certificate { chain: vec![vec![0x30; 4], vec![0x30; 5]] },
        DownBody::RequestEvidence { group: GROUP },
        DownBody::RequestHello,
    ]
}

#[test]
fn topics_and_filters() {
    let topics = [
        Topic::Cell { fleet: FLEET, cell: CELL }.to_string(),
        Topic::Down { fleet: FLEET, device: DEVICE }.to_string(),
        Topic::Up { fleet: FLEET, device: DEVICE }.to_string(),
        Filter::AllUp { fleet: FLEET }.to_string(),
    ];
    assert_format("topics", &topics.join("\n"));
}

#[test]
fn cell_frames() {
    let commit_alone = CellFrame { cell_epoch: CELL_EPOCH, commit: Some(commit()), rekey: None };
    let rekey_alone = CellFrame { cell_epoch: CELL_EPOCH, commit: None, rekey: Some(rekey()) };
    let both = CellFrame { cell_epoch: CellEpoch(0), commit: Some(commit()), rekey: Some(rekey()) };
    for (name, cell_frame) in [
        ("cell_frame_commit", &commit_alone),
        ("cell_frame_rekey", &rekey_alone),
        ("cell_frame_commit_and_rekey", &both),
    ] {
        let bytes = cell_frame.encode();
        assert_eq!(CellFrame::decode(&bytes).as_ref(), Ok(cell_frame));
        assert_format(name, &frame(&bytes));
    }
}

#[test]
fn up_frame_bodies() {
    let text: Vec<_> = up_bodies()
        .iter()
        .map(|body| {
            assert_eq!(UpBody::decode(&body.encode()).as_ref(), Ok(body));
            format!("## {}\n{}", body.name(), cbor(&body.encode()))
        })
        .collect();
    assert_format("up_bodies", &text.join("\n"));
}

#[test]
fn down_frame_bodies() {
    let text: Vec<_> = down_bodies()
        .iter()
        .map(|body| {
            assert_eq!(DownBody::decode(&body.encode()).as_ref(), Ok(body));
            format!("## {}\n{}", body.name(), cbor(&body.encode()))
        })
        .collect();
    assert_format("down_bodies", &text.join("\n"));
}

#[test]
fn link_frames() {
    let mut rng = rng();
    let start = StartSecret::random(&mut rng);
    let key = link_key();
    let mut device = DeviceLink::connect(key.clone(), &mut rng);
    let mut coordinator = CoordinatorLink::default();

    let poke = coordinator.seal(&start, DEVICE, &key, &DownBody::HelloAgain);
    let (first_hello, counter) = device.seal(&UpBody::Hello(hello()));
    coordinator.open(&start, DEVICE, &key, &first_hello).unwrap();
    let answer =
        DownBody::Answer { hello: counter, hello_interval_seconds: 1_800, max_silence_seconds: 86_400 };
    let answer = coordinator.seal(&start, DEVICE, &key, &answer);
    device.open(&answer).unwrap();
    let (confirmation, _) = device.seal(&confirm());
    coordinator.open(&start, DEVICE, &key, &confirmation).unwrap();

    for (name, bytes) in [
        ("link_poke", &poke),
        ("link_first_hello", &first_hello),
        ("link_answer", &answer),
        ("link_confirmation", &confirmation),
    ] {
        assert_format(name, &frame(bytes));
    }
}

#[test]
fn statements() {
    let signed = signed_statement();
    let outer: Value = ciborium::from_reader(signed.as_bytes()).unwrap();
    let items = outer.as_array().unwrap();
    let protected = items[0].as_bytes().unwrap();
    let payload = items[2].as_bytes().unwrap();
    let text = format!(
        "{}\nprotected\n{}\npayload\n{}\ndigest\n{}",
        cbor(signed.as_bytes()),
        cbor(protected),
        cbor(payload),
        hex::encode(signed.digest().0),
    );
    assert_format("statement", &text);
}

#[test]
fn wraps() {
    for suite in Suite::ALL {
        assert_format(&format!("wrap_{suite}"), &cbor(&a_wrap(suite)));
    }
}

#[test]
fn confirmation_macs() {
    let UpBody::Confirm { proof, .. } = confirm() else { panic!("that is what confirm makes") };
    assert_format("confirmation_mac", &hex::encode(proof));
}

#[test]
fn sealed_payloads() {
    for suite in Suite::ALL {
        let mut sealer = Sealer::new(suite, GROUP, KEY_EPOCH, &secret(), DEVICE, &mut rng());
        let unsigned = sealer.seal(b"open valve 3", b"valves", None).unwrap();
        assert_format(&format!("sealed_unsigned_{suite}"), &sealed(&unsigned));
        let signed = sealer.seal(b"open valve 3", b"valves", Some(&device_key())).unwrap();
        assert_format(&format!("sealed_signed_{suite}"), &sealed(&signed));
    }
}

fn sealed(bytes: &[u8]) -> String {
    let outer: Value = ciborium::from_reader(bytes).unwrap();
    let protected = outer.as_array().unwrap()[0].as_bytes().unwrap();
    format!("{}\nprotected\n{}", cbor(bytes), cbor(protected))
}
