//! Bytes that nobody honest sends: each is refused by name, and none costs more than reading it.

use ciborium::Value;
use ed25519_dalek::Signer;
use fleetkey_wire::limits::*;
use fleetkey_wire::link::{BadLinkFrame, CoordinatorLink, DeviceLink, StartSecret};
use fleetkey_wire::payload::{self, BadSealed, MAX_SEALED_BYTES};
use fleetkey_wire::wrap;
use fleetkey_wire::{
    BadFrame, BadStatement, BadWrap, CellEpoch, CellFrame, DownBody, KeyEpoch, SignedStatement, Suite, UpBody,
};

use crate::binding::open_signed_plaintext;
use crate::support::*;

type Decode = fn(&[u8]) -> Result<(), BadFrame>;

/// Every decoder of bytes from outside, with the bound it keeps.
fn decoders() -> Vec<(&'static str, usize, Decode)> {
    fn link(bad: BadLinkFrame) -> BadFrame {
        match bad {
            BadLinkFrame::Frame(bad) => bad,
            BadLinkFrame::Refused(refused) => panic!("{refused}"),
        }
    }
    vec![
        ("cell frame", MAX_CELL_FRAME_BYTES, |bytes| CellFrame::decode(bytes).map(drop)),
        ("up frame", MAX_UP_FRAME_BYTES, |bytes| {
            let start = StartSecret::random(&mut rng());
            CoordinatorLink::default().open(&start, DEVICE, &link_key(), bytes).map(drop).map_err(link)
        }),
        ("down frame", MAX_DOWN_FRAME_BYTES, |bytes| {
            DeviceLink::connect(link_key(), &mut rng()).open(bytes).map(drop).map_err(link)
        }),
        ("up body", MAX_UP_FRAME_BYTES, |bytes| UpBody::decode(bytes).map(drop)),
        ("down body", MAX_DOWN_FRAME_BYTES, |bytes| DownBody::decode(bytes).map(drop)),
        ("statement", MAX_STATEMENT_BYTES, |bytes| match SignedStatement::verify(bytes, FLEET, |_| None) {
            Ok(_) => Ok(()),
            Err(BadStatement::Frame(bad)) => Err(bad),
            Err(other) => panic!("{other}"),
        }),
        ("wrap", MAX_WRAP_BYTES, |bytes| {
            let context = wrap_context(Suite::Aes128Gcm);
            match wrap::open(&context, &kek(), &signed_statement(), bytes) {
                Ok(_) => Ok(()),
                Err(BadWrap::Frame(bad)) => Err(bad),
                Err(other) => panic!("{other}"),
            }
        }),
        ("sealed message", MAX_SEALED_BYTES, |bytes| match payload::peek(bytes) {
            Ok(_) => Ok(()),
            Err(BadSealed::Frame(bad)) => Err(bad),
            Err(other) => panic!("{other}"),
        }),
    ]
}

/// Whether a format has the version byte in front.
fn is_enveloped(what: &str) -> bool {
    what.ends_with("frame")
}

#[test]
fn whatever_is_over_its_bound_is_refused_undecoded() {
    for (what, max, decode) in decoders() {
        for filler in [0x00, 0x01, 0x80, 0x9f, 0xff] {
            let bytes = max + 1;
            assert_eq!(decode(&vec![filler; bytes]), Err(BadFrame::TooLarge { what, bytes, max }));
        }
    }
}

#[test]
fn nothing_at_all_is_refused() {
    for (what, _, decode) in decoders() {
        let expected = if is_enveloped(what) { BadFrame::Empty { what } } else { BadFrame::NotCbor { what } };
        assert_eq!(decode(&[]), Err(expected));
    }
}

#[test]
fn deep_nesting_is_refused_not_recursed_into() {
    for (what, max, decode) in decoders() {
        for opening in [0x81, 0x9f, 0xa1, 0xc1] {
            let mut bytes = vec![opening; max];
            if is_enveloped(what) {
                bytes[0] = 1;
            }
            let refused = decode(&bytes).unwrap_err();
            let is_named = matches!(
                refused,
                BadFrame::NotCbor { .. } | BadFrame::Shape { .. } | BadFrame::CoseHeader { .. }
            );
            assert!(is_named, "{what}, {opening:02x}: {refused}");
        }
    }
}

#[test]
fn a_length_that_is_not_told_in_front_is_refused() {
    // The envelope of a cell frame, an array without a length, and the byte string of a statement in two pieces.
    let array = [1, 0x9f, 0x01, 0xff];
    assert_eq!(CellFrame::decode(&array).unwrap_err(), BadFrame::Shape { field: "cell frame" });
    let statement = [1, 0x85, 0x01, 0x80, 0xf6, 0x5f, 0x41, 0x00, 0x41, 0x00, 0xff, 0x40];
    assert_eq!(CellFrame::decode(&statement).unwrap_err(), BadFrame::Shape { field: "statement" });
}

#[test]
fn nesting_within_byte_strings_is_refused_not_recursed_into() {
    // A protected header may hold a countersignature, whose protected header may hold a countersignature …
    let nested = |levels: usize| {
        (0..levels).fold(Vec::new(), |inner, _| {
            let countersignature =
                Value::Array(vec![Value::Bytes(inner), Value::Map(Vec::new()), Value::Bytes(Vec::new())]);
            let mut header = Vec::new();
            ciborium::into_writer(&Value::Map(vec![(7.into(), countersignature)]), &mut header).unwrap();
            header
        })
    };
    for levels in [1, 2, 9, 20_000] {
        let message =
            cbor(vec![Value::Bytes(nested(levels)), Value::Map(Vec::new()), Value::Bytes(vec![0; 16])]);
        assert_eq!(
            payload::peek(&message),
            Err(BadFrame::CoseHeader { what: "sealed message" }.into()),
            "{levels} levels"
        );
    }
    let sealed_inside = cbor(vec![
        Value::Bytes(nested(20_000)),
        Value::Map(Vec::new()),
        Value::Bytes(vec![1]),
        Value::Bytes(vec![0; 64]),
    ]);
    let opened = open_signed_plaintext(&sealed_inside);
    assert_eq!(opened, Err(BadFrame::CoseHeader { what: "signed message" }.into()));
}

#[test]
fn an_unknown_version_is_refused_by_name() {
    let frames: [(&str, Vec<u8>); 3] = [
        ("cell frame", CellFrame { cell_epoch: CELL_EPOCH, commit: None, rekey: Some(rekey()) }.encode()),
        ("up frame", link_frame(&link_key(), "up", &[1; 8], &[], 1, &[0x80])),
        ("down frame", link_frame(&link_key(), "down", &[], &[1; 8], 1, &[0x80])),
    ];
    for (name, mut frame) in frames {
        let (what, _, decode) = decoders().into_iter().find(|(what, ..)| *what == name).unwrap();
        for version in [0, 2, 3, 0x85, 0xff] {
            frame[0] = version;
            assert_eq!(decode(&frame), Err(BadFrame::UnknownVersion { what, got: version.into(), known: 1 }));
        }
    }
}

#[test]
fn a_statement_of_an_unknown_version_or_reason_is_refused_by_name() {
    let signed = |version: u64, reason: u64| {
        let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
        let payload = cbor(vec![
            version.into(),
            bytes(GROUP.as_bytes()),
            KEY_EPOCH.0.into(),
            bytes(&commitment().0),
            reason.into(),
            KEY_EPOCH.0.into(),
            KEY_EPOCH.0.into(),
            30.into(),
            1_800_000_000u64.into(),
        ]);
        let mut protected = vec![0xa2, 0x01, 0x27, 0x04, 0x48];
        protected.extend(SIGNER.0);
        let external = cbor(vec![Value::Text("fleetkey statement".into()), bytes(FLEET.as_bytes())]);
        let to_sign = cbor(vec![
            Value::Text("Signature1".into()),
            bytes(&protected),
            bytes(&external),
            bytes(&payload),
        ]);
        let signature = coordinator_key().sign(&to_sign).to_bytes();
        cbor(vec![bytes(&protected), Value::Map(Vec::new()), bytes(&payload), bytes(&signature)])
    };
    let verify =
        |bytes: &[u8]| SignedStatement::verify(bytes, FLEET, |_| Some(coordinator_key().verifying_key()));
    assert_eq!(verify(&signed(1, 3)), Ok(signed_statement()), "the hand-made statement is the real one");
    assert_eq!(
        verify(&signed(2, 3)),
        Err(BadFrame::UnknownVersion { what: "statement", got: 2, known: 1 }.into())
    );
    assert_eq!(
        verify(&signed(1, 8)),
        Err(BadFrame::UnknownKind { what: "statement reason", kind: 8 }.into())
    );
}

#[test]
fn a_body_of_an_unknown_kind_is_refused_by_name() {
    for kind in [7, 23, u64::MAX] {
        let body = cbor(vec![kind.into()]);
        assert_eq!(UpBody::decode(&body), Err(BadFrame::UnknownKind { what: "up body", kind }));
    }
    for kind in [10, 23, u64::MAX] {
        let body = cbor(vec![kind.into()]);
        assert_eq!(DownBody::decode(&body), Err(BadFrame::UnknownKind { what: "down body", kind }));
    }
    let suite = cbor(vec![4.into(), 2.into(), 1.into()]);
    assert_eq!(DownBody::decode(&suite), Err(BadFrame::UnknownKind { what: "suite", kind: 2 }));
    let id = || Value::Bytes(vec![0; 16]);
    let reason = cbor(vec![6.into(), id(), id(), 2.into()]);
    assert_eq!(DownBody::decode(&reason), Err(BadFrame::UnknownKind { what: "dismiss reason", kind: 2 }));
}

#[test]
fn lists_are_bounded() {
    let empty = |count: usize| Value::Array(vec![Value::Bytes(Vec::new()); count]);
    let too_many = |field, max| Err(BadFrame::TooMany { field, items: max + 1, max });

    let hello = cbor(vec![0.into(), 1.into(), empty(MAX_CELLS_PER_DEVICE + 1)]);
    assert_eq!(UpBody::decode(&hello).map(drop), too_many("hello cells", MAX_CELLS_PER_DEVICE));
    let packages = cbor(vec![1.into(), 1.into(), empty(MAX_KEY_PACKAGES + 1)]);
    assert_eq!(UpBody::decode(&packages).map(drop), too_many("key packages", MAX_KEY_PACKAGES));
    let psks = cbor(vec![6.into(), empty(MAX_PSKS_PER_DEVICE + 1)]);
    assert_eq!(UpBody::decode(&psks).map(drop), too_many("pre-shared keys", MAX_PSKS_PER_DEVICE));
    let short = cbor(vec![6.into(), Value::Array(vec![Value::Bytes(vec![0; 15])])]);
    assert_eq!(UpBody::decode(&short), Err(BadFrame::Shape { field: "pre-shared keys" }));
    let chain = cbor(vec![7.into(), empty(MAX_CHAIN + 1)]);
    assert_eq!(DownBody::decode(&chain).map(drop), too_many("certificate chain", MAX_CHAIN));
    let mut covered = vec![1];
    covered.extend(cbor(vec![
        0.into(),
        empty(MAX_COVERED_UPDATES + 1),
        Value::Bytes(vec![1]),
        Value::Null,
        Value::Null,
    ]));
    assert_eq!(CellFrame::decode(&covered).map(drop), too_many("covered updates", MAX_COVERED_UPDATES));
}

#[test]
fn a_cell_frame_is_whole_or_none() {
    let some = || Value::Bytes(vec![1]);
    let none = || Value::Null;
    let covered = || Value::Array(vec![some()]);
    let decode = |items: Vec<Value>| {
        let mut frame = vec![1];
        frame.extend(cbor(items));
        CellFrame::decode(&frame).map(drop)
    };
    let refused = |field| Err(BadFrame::Shape { field });

    assert_eq!(decode(vec![0.into(), covered(), some(), some(), some()]), Ok(()));
    let nothing = Value::Array(Vec::new());
    assert_eq!(decode(vec![0.into(), nothing.clone(), none(), none(), none()]), refused("cell frame"));
    assert_eq!(decode(vec![0.into(), covered(), none(), some(), some()]), refused("covered updates"));
    assert_eq!(decode(vec![0.into(), nothing.clone(), some(), some(), none()]), refused("wrap"));
    assert_eq!(decode(vec![0.into(), nothing.clone(), some(), none(), some()]), refused("statement"));
    assert_eq!(decode(vec![0.into(), nothing.clone(), some(), none()]), refused("wrap"));
    assert_eq!(decode(vec![0.into(), nothing, some(), none(), none(), none()]), refused("cell frame"));
}

#[test]
fn a_cell_epoch_from_outside_cannot_overflow() {
    assert_eq!(CellEpoch(u64::MAX).next(), CellEpoch(u64::MAX));
    assert_eq!(KeyEpoch(u64::MAX).next_in(u32::MAX), None);
}
