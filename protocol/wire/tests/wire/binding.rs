//! What each secret proves and opens, and what it does not: a wrap, a confirmation, a sealed message is good for
//! one purpose in one place.

use ciborium::Value;
use ed25519_dalek::Signer;
use fleetkey_wire::payload::{self, BadSealed, Sealer};
use fleetkey_wire::wrap::{self, WrapContext};
use fleetkey_wire::{
    BadFrame, BadWrap, CellEpoch, CellId, Confirmation, DeviceId, FleetId, GroupId, GroupSecret, Kek,
    KeyEpoch, Suite,
};

use crate::support::*;

/// A member makes the message by hand that says to be signed, with `plaintext` in place of a signed one.
pub(crate) fn open_signed_plaintext(plaintext: &[u8]) -> Result<payload::Opened, BadSealed> {
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
    let [aes, chacha, xwing] = Suite::ALL.map(a_wrap);
    assert_eq!(chacha, xwing, "the KEM is the cell's; the AEAD is one");
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
        for other in Suite::ALL.into_iter().filter(|other| {
            // The KEM is the cell's; a message knows the AEAD alone.
            other.aead_key_bytes() != suite.aead_key_bytes()
        }) {
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
