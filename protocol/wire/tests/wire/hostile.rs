//! Bytes that nobody honest sends: each is refused by name, and none costs more than reading it.

use ciborium::Value;
use ed25519_dalek::Signer;
use fleetkey_wire::limits::*;
use fleetkey_wire::link::{BadLinkFrame, CoordinatorLink, DeviceLink, StartSecret};
use fleetkey_wire::payload::{self, BadSealed, MAX_SEALED_BYTES, Sealer};
use fleetkey_wire::wrap::{self, WrapContext};
use fleetkey_wire::{
    BadFrame, BadStatement, BadWrap, CellEpoch, CellFrame, CellId, Confirmation, DeviceId, DownBody, FleetId,
    GroupId, GroupSecret, Kek, KeyEpoch, SignedStatement, Suite, UpBody,
};

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
            assert_eq!(decode(&bytes), Err(BadFrame::NotCbor { what }), "{opening:02x}");
        }
    }
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

/// A member makes the message by hand that says to be signed, with `plaintext` in place of a signed one.
fn open_signed_plaintext(plaintext: &[u8]) -> Result<payload::Opened, BadSealed> {
    let sealed = sealed_by_hand(plaintext);
    payload::open(Suite::ChaCha20Poly1305, &secret(), &sealed, b"", |_| Some(device_key().verifying_key()))
}

/// A signed message put together from `docs/PROTOCOL.md`, but with any plaintext.
fn sealed_by_hand(plaintext: &[u8]) -> Vec<u8> {
    use chacha20poly1305::aead::{Aead, KeyInit, Payload};

    let salt = [7; 16];
    let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
    let mut kid = GROUP.as_bytes().to_vec();
    kid.extend(KEY_EPOCH.0.to_be_bytes());
    let mut protected = Vec::new();
    let header = Value::Map(vec![
        (1.into(), 24.into()),
        (3.into(), 18.into()),
        (4.into(), Value::Bytes(kid)),
        (6.into(), bytes(&[0])),
        ((-70_001).into(), bytes(DEVICE.as_bytes())),
        ((-70_002).into(), bytes(&salt)),
    ]);
    ciborium::into_writer(&header, &mut protected).unwrap();
    let info =
        cbor(vec![Value::Text("fleetkey sealed".into()), bytes(DEVICE.as_bytes()), bytes(&salt), 32.into()]);
    let mut key = [0; 32];
    hkdf::Hkdf::<sha2::Sha256>::from_prk(secret().as_bytes()).unwrap().expand(&info, &mut key).unwrap();
    let external = cbor(vec![Value::Text("fleetkey sealed".into()), bytes(b"")]);
    let aad = cbor(vec![Value::Text("Encrypt0".into()), bytes(&protected), bytes(&external)]);
    let ciphertext = chacha20poly1305::ChaCha20Poly1305::new(&key.into())
        .encrypt(&[0; 12].into(), Payload { msg: plaintext, aad: &aad })
        .unwrap();
    cbor(vec![Value::Bytes(protected), Value::Map(Vec::new()), Value::Bytes(ciphertext)])
}

#[test]
fn a_member_cannot_sign_for_another() {
    // Signed by a member's own key, in another's name; signed with a header more than the format has; with a
    // signature taken from another message; not signed at all.
    let signature_aad = |counter: u32| {
        cbor(vec![
            Value::Text("fleetkey signed".into()),
            Value::Bytes(GROUP.as_bytes().to_vec()),
            KEY_EPOCH.0.into(),
            Value::Bytes(DEVICE.as_bytes().to_vec()),
            Value::Bytes(vec![7; 16]),
            counter.into(),
            Value::Bytes(Vec::new()),
        ])
    };
    let sign1 =
        |key: &ed25519_dalek::SigningKey, header: Vec<u8>, unprotected: Vec<(Value, Value)>, counter| {
            let to_sign = cbor(vec![
                Value::Text("Signature1".into()),
                Value::Bytes(header.clone()),
                Value::Bytes(signature_aad(counter)),
                Value::Bytes(b"open valve 3".to_vec()),
            ]);
            cbor(vec![
                Value::Bytes(header),
                Value::Map(unprotected),
                Value::Bytes(b"open valve 3".to_vec()),
                Value::Bytes(key.sign(&to_sign).to_bytes().to_vec()),
            ])
        };
    let eddsa = vec![0xa1, 0x01, 0x27];
    let good = open_signed_plaintext(&sign1(&device_key(), eddsa.clone(), Vec::new(), 0)).unwrap();
    assert!(good.header.signed);
    assert_eq!(good.plaintext, b"open valve 3");

    let kid = vec![(Value::from(4), Value::Bytes(vec![1]))];
    let wrong = BadSealed::Signature { sender: DEVICE };
    let header: BadSealed = BadFrame::CoseHeader { what: "signed message" }.into();
    for (why, plaintext, expected) in [
        ("another key", sign1(&coordinator_key(), eddsa.clone(), Vec::new(), 0), &wrong),
        ("another message's signature", sign1(&device_key(), eddsa.clone(), Vec::new(), 1), &wrong),
        ("an unprotected header", sign1(&device_key(), eddsa, kid, 0), &header),
        ("a header more", sign1(&device_key(), vec![0xa2, 1, 0x27, 4, 0x41, 1], Vec::new(), 0), &header),
    ] {
        assert_eq!(open_signed_plaintext(&plaintext).as_ref(), Err(expected), "{why}");
    }
    let unsigned = open_signed_plaintext(b"open valve 3");
    assert!(matches!(unsigned, Err(BadSealed::Frame(_))), "{unsigned:?}");
}

#[test]
fn a_signed_message_of_an_unknown_sender_is_refused_by_name() {
    let mut sealer = Sealer::new(Suite::Aes128Gcm, GROUP, KEY_EPOCH, &secret(), DEVICE, &mut rng());
    let sealed = sealer.seal(b"x", b"", Some(&device_key())).unwrap();
    assert_eq!(
        payload::open(Suite::Aes128Gcm, &secret(), &sealed, b"", |_| None),
        Err(BadSealed::UnknownSender { sender: DEVICE })
    );
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
    for kind in [6, 23, u64::MAX] {
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
fn a_wrap_opens_only_where_it_belongs() {
    for suite in Suite::ALL {
        let context = wrap_context(suite);
        let statement = signed_statement();
        let wrapped = a_wrap(suite);
        assert_eq!(wrap::open(&context, &kek(), &statement, &wrapped), Ok(secret()));
        assert_eq!(wrapped, a_wrap(suite), "made again, it is the same bytes");

        let elsewhere = [
            WrapContext { fleet: FleetId::from_bytes([9; 16]), ..context },
            WrapContext { cell: CellId::from_bytes([9; 16]), ..context },
            WrapContext { cell_epoch: CellEpoch(CELL_EPOCH.0 + 1), ..context },
        ];
        for context in elsewhere {
            let refused = wrap::open(&context, &kek(), &statement, &wrapped);
            assert!(matches!(refused, Err(BadWrap::DoesNotOpen { .. })), "{refused:?}");
        }
        let other_kek = Kek::from_bytes([9; 32]);
        assert!(matches!(
            wrap::open(&context, &other_kek, &statement, &wrapped),
            Err(BadWrap::DoesNotOpen { .. })
        ));
        let mut other_statement = fleetkey_wire::Statement { overlap_seconds: 31, ..*statement.statement() };
        let resigned = other_statement.sign(FLEET, SIGNER, &coordinator_key());
        assert!(matches!(
            wrap::open(&context, &kek(), &resigned, &wrapped),
            Err(BadWrap::DoesNotOpen { .. })
        ));
        other_statement.group = GroupId::from_bytes([9; 16]);
        let regrouped = other_statement.sign(FLEET, SIGNER, &coordinator_key());
        assert!(matches!(
            wrap::open(&context, &kek(), &regrouped, &wrapped),
            Err(BadWrap::DoesNotOpen { .. })
        ));
    }
    let [aes, chacha] = Suite::ALL.map(a_wrap);
    let refused = wrap::open(&wrap_context(Suite::Aes128Gcm), &kek(), &signed_statement(), &chacha);
    assert_eq!(refused, Err(BadFrame::CoseHeader { what: "wrap" }.into()));
    let refused = wrap::open(&wrap_context(Suite::ChaCha20Poly1305), &kek(), &signed_statement(), &aes);
    assert_eq!(refused, Err(BadFrame::CoseHeader { what: "wrap" }.into()));
}

#[test]
fn a_member_cannot_feed_its_neighbours_another_secret() {
    // It holds the KEK and the genuine statement, so it can make a wrap that opens.
    let planted = GroupSecret::from_bytes([0xbb; 32]);
    let context = wrap_context(Suite::Aes128Gcm);
    let wrapped = wrap::wrap(&context, &kek(), &signed_statement(), &planted);
    assert_eq!(
        wrap::open(&context, &kek(), &signed_statement(), &wrapped),
        Err(BadWrap::Commitment { cell: CELL, key_epoch: KEY_EPOCH })
    );
}

#[test]
fn a_confirmation_proves_device_secret_and_key_epoch_at_once() {
    let confirmation = Confirmation {
        fleet: FLEET,
        group: GROUP,
        key_epoch: KEY_EPOCH,
        commitment: commitment(),
        device: DEVICE,
    };
    let proof = confirmation.prove(&pairwise(), &secret());
    assert!(confirmation.holds(&pairwise(), &secret(), &proof));

    let others = [
        Confirmation { fleet: FleetId::from_bytes([9; 16]), ..confirmation },
        Confirmation { group: GroupId::from_bytes([9; 16]), ..confirmation },
        Confirmation { key_epoch: KeyEpoch(KEY_EPOCH.0 + 1), ..confirmation },
        Confirmation { commitment: fleetkey_wire::Commitment([9; 32]), ..confirmation },
        Confirmation { device: DeviceId::from_bytes([9; 16]), ..confirmation },
    ];
    for other in others {
        assert!(!other.holds(&pairwise(), &secret(), &proof), "{other:?}");
    }
    // A neighbour holds the secret, the broker neither; only the device holds its pairwise key.
    let neighbour = fleetkey_wire::Pairwise::from_bytes([9; 32]);
    assert!(!confirmation.holds(&neighbour, &secret(), &proof));
    assert!(!confirmation.holds(&pairwise(), &GroupSecret::from_bytes([9; 32]), &proof));
    for bit in 0..proof.len() * 8 {
        let mut altered = proof;
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(!confirmation.holds(&pairwise(), &secret(), &altered), "bit {bit}");
    }
}

#[test]
fn a_sealed_message_opens_only_where_it_belongs() {
    for suite in Suite::ALL {
        let mut sealer = Sealer::new(suite, GROUP, KEY_EPOCH, &secret(), DEVICE, &mut rng());
        let sealed = sealer.seal(b"open valve 3", b"valves", None).unwrap();
        let open = |suite, secret: &GroupSecret, context: &[u8]| {
            payload::open(suite, secret, &sealed, context, |_| None)
        };
        assert_eq!(open(suite, &secret(), b"valves").unwrap().plaintext, b"open valve 3");
        assert!(matches!(open(suite, &secret(), b"pumps"), Err(BadSealed::DoesNotOpen { .. })));
        let other = GroupSecret::from_bytes([9; 32]);
        assert!(matches!(open(suite, &other, b"valves"), Err(BadSealed::DoesNotOpen { .. })));
        for other in Suite::ALL.into_iter().filter(|other| *other != suite) {
            assert_eq!(
                open(other, &secret(), b"valves"),
                Err(BadFrame::CoseHeader { what: "sealed message" }.into())
            );
        }
    }
}

#[test]
fn a_sealer_made_anew_never_meets_the_key_of_the_one_before() {
    let mut rng = rng();
    let mut seal = || {
        let mut sealer = Sealer::new(Suite::Aes128Gcm, GROUP, KEY_EPOCH, &secret(), DEVICE, &mut rng);
        sealer.seal(b"open valve 3", b"", None).unwrap()
    };
    let (first, second) = (seal(), seal());
    let (first, second) = (payload::peek(&first).unwrap(), payload::peek(&second).unwrap());
    assert_eq!((first.counter, second.counter), (0, 0));
    assert_ne!(first.salt, second.salt);
}

#[test]
fn no_application_label_yields_a_sealing_key() {
    let salt = [7; 16];
    let context = cbor(vec![Value::Bytes(DEVICE.as_bytes().to_vec()), Value::Bytes(salt.to_vec())]);
    let length = fleetkey_wire::keys::AppKeyLength::new(32).unwrap();
    let asked_for = secret().app_key("fleetkey sealed", &context, length);
    let info = cbor(vec![
        Value::Text("fleetkey sealed".into()),
        Value::Bytes(DEVICE.as_bytes().to_vec()),
        Value::Bytes(salt.to_vec()),
        32.into(),
    ]);
    let mut sealing = [0; 32];
    hkdf::Hkdf::<sha2::Sha256>::from_prk(secret().as_bytes()).unwrap().expand(&info, &mut sealing).unwrap();
    assert_ne!(asked_for.as_slice(), sealing);
}

#[test]
fn a_key_of_small_order_shares_nothing() {
    use fleetkey_wire::keys::BadPeerKey;
    let agree = |peer: &[u8; 32]| fleetkey_wire::Pairwise::agree(FLEET, DEVICE, &device_key(), peer);
    let mut neutral = [0; 32];
    neutral[0] = 1;
    assert_eq!(agree(&neutral), Err(BadPeerKey::SmallOrder));
    // The point of order 2 (y = -1) and one of order 4 (y = 0).
    let mut order_2 = [0xff; 32];
    order_2[0] = 0xec;
    order_2[31] = 0x7f;
    assert_eq!(agree(&order_2), Err(BadPeerKey::SmallOrder));
    assert_eq!(agree(&[0; 32]), Err(BadPeerKey::SmallOrder));
    let not_a_point = (2..=255u8)
        .map(|first| {
            let mut y = [0; 32];
            y[0] = first;
            y
        })
        .find(|y| ed25519_dalek::VerifyingKey::from_bytes(y).is_err())
        .unwrap();
    assert_eq!(agree(&not_a_point), Err(BadPeerKey::NotAPoint));
}

#[test]
fn both_sides_agree_on_what_they_share_and_on_nothing_else() {
    use fleetkey_wire::Pairwise;
    let coordinators =
        Pairwise::agree(FLEET, DEVICE, &coordinator_key(), device_key().verifying_key().as_bytes()).unwrap();
    assert_eq!(coordinators, pairwise());
    let elsewhere = Pairwise::agree(
        FleetId::from_bytes([9; 16]),
        DEVICE,
        &coordinator_key(),
        device_key().verifying_key().as_bytes(),
    );
    assert_ne!(elsewhere.unwrap(), pairwise());
}

#[test]
fn secrets_are_not_printed() {
    let text = format!("{:?} {:?} {:?} {:?}", secret(), kek(), pairwise(), link_key());
    assert_eq!(text, "GroupSecret(redacted) Kek(redacted) Pairwise(redacted) LinkKey(redacted)");
    let sealer = Sealer::new(Suite::Aes128Gcm, GROUP, KEY_EPOCH, &secret(), DEVICE, &mut rng());
    assert!(format!("{sealer:?}").contains("key: (redacted)"));
}

#[test]
fn a_cell_epoch_from_outside_cannot_overflow() {
    assert_eq!(CellEpoch(u64::MAX).next(), CellEpoch(u64::MAX));
    assert_eq!(KeyEpoch(u64::MAX).next_in(u32::MAX), None);
}
