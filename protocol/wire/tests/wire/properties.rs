//! What holds for all inputs: what is written reads back, what is altered never verifies, nothing panics.

use fleetkey_wire::limits::*;
use fleetkey_wire::link::{CoordinatorLink, DeviceLink, OpenedDown, StartSecret};
use fleetkey_wire::payload::{self, Sealer};
use fleetkey_wire::{
    CellEpoch, CellFrame, CellId, CommitMessages, Commitment, DeviceId, DismissReason, DownBody, Filter,
    FleetId, Generation, GroupId, Hello, HelloCell, KeyEpoch, PskId, Reason, ShortAuthenticator, ShortDigest,
    SignedStatement, Statement, StatementAndWrap, Suite, Topic, UpBody, Welcome, wrap,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::support::*;

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=max)
}

fn suite() -> impl Strategy<Value = Suite> {
    select(Suite::ALL.to_vec())
}

prop_compose! {
    fn group()(id: [u8; 16]) -> GroupId { GroupId::from_bytes(id) }
}

prop_compose! {
    fn cell()(id: [u8; 16]) -> CellId { CellId::from_bytes(id) }
}

prop_compose! {
    fn hello_cell()(
        cell in cell(),
        epochs: [u64; 4],
        authenticator: [u8; 8],
        statement: [u8; 8],
    ) -> HelloCell {
        let [cell_epoch, key_epoch, send, oldest] = epochs;
        HelloCell {
            cell,
            cell_epoch: CellEpoch(cell_epoch),
            authenticator: ShortAuthenticator(authenticator),
            statement: ShortDigest(statement),
            key_epoch: KeyEpoch(key_epoch),
            send: KeyEpoch(send),
            oldest: KeyEpoch(oldest),
        }
    }
}

fn up_body() -> impl Strategy<Value = UpBody> {
    prop_oneof![
        (any::<u32>(), vec(hello_cell(), 0..=MAX_CELLS_PER_DEVICE)).prop_map(|(generation, cells)| {
            UpBody::Hello(Hello { generation: Generation(generation), cells })
        }),
        (suite(), vec(bytes(400), 0..=MAX_KEY_PACKAGES))
            .prop_map(|(suite, packages)| UpBody::KeyPackages { suite, packages }),
        (group(), any::<u64>(), any::<[u8; 8]>(), any::<[u8; 32]>()).prop_map(
            |(group, key_epoch, statement, proof)| UpBody::Confirm {
                group,
                key_epoch: KeyEpoch(key_epoch),
                statement: ShortDigest(statement),
                proof
            }
        ),
        (cell(), any::<u64>(), bytes(MAX_UPDATE_BYTES)).prop_map(|(cell, epoch, proposal)| UpBody::Update {
            cell,
            cell_epoch: CellEpoch(epoch),
            proposal
        }),
        group().prop_map(|group| UpBody::Leave { group }),
        bytes(MAX_STATEMENT_BYTES).prop_map(|statement| UpBody::Evidence { statement }),
        vec(any::<[u8; 16]>().prop_map(PskId::from_bytes), 0..=MAX_PSKS_PER_DEVICE)
            .prop_map(|held| UpBody::Psks { held }),
    ]
}

fn statement_and_wrap() -> impl Strategy<Value = StatementAndWrap> {
    (bytes(MAX_STATEMENT_BYTES), bytes(MAX_WRAP_BYTES))
        .prop_map(|(statement, wrap)| StatementAndWrap { statement, wrap })
}

prop_compose! {
    fn welcome()(
        group in group(),
        group_name in "[ -~äöü]{0,32}",
        cell in cell(),
        suite in suite(),
        cell_epoch: u64,
        welcome in bytes(2_000),
        statements in vec(statement_and_wrap(), 0..=MAX_WELCOME_STATEMENTS),
    ) -> Welcome {
        Welcome { group, group_name, cell, suite, cell_epoch: CellEpoch(cell_epoch), welcome, statements }
    }
}

fn down_body() -> impl Strategy<Value = DownBody> {
    prop_oneof![
        Just(DownBody::HelloAgain),
        (any::<u64>(), any::<u32>(), any::<u32>()).prop_map(
            |(hello, hello_interval_seconds, max_silence_seconds)| DownBody::Answer {
                hello,
                hello_interval_seconds,
                max_silence_seconds
            }
        ),
        (cell(), bytes(2_000)).prop_map(|(cell, frame)| DownBody::CellFrame { cell, frame }),
        welcome().prop_map(DownBody::Welcome),
        (suite(), any::<u8>()).prop_map(|(suite, count)| DownBody::RequestKeyPackages { suite, count }),
        cell().prop_map(|cell| DownBody::RequestUpdate { cell }),
        (group(), cell(), select(vec![DismissReason::Evicted, DismissReason::NotAMember]))
            .prop_map(|(group, cell, reason)| DownBody::Dismiss { group, cell, reason }),
        vec(bytes(600), 0..=MAX_CHAIN).prop_map(|chain| DownBody::Certificate { chain }),
        group().prop_map(|group| DownBody::RequestEvidence { group }),
        Just(DownBody::RequestHello),
    ]
}

fn cell_frame() -> impl Strategy<Value = CellFrame> {
    let commit = (vec(bytes(400), 0..=MAX_COVERED_UPDATES), bytes(6_000))
        .prop_map(|(covered_updates, commit)| CommitMessages { covered_updates, commit });
    (any::<u64>(), proptest::option::of(commit), proptest::option::of(statement_and_wrap()))
        .prop_filter("it carries something", |(_, commit, rekey)| commit.is_some() || rekey.is_some())
        .prop_map(|(epoch, commit, rekey)| CellFrame { cell_epoch: CellEpoch(epoch), commit, rekey })
}

prop_compose! {
    fn any_statement()(
        group in group(),
        mut epochs: [u64; 3],
        commitment: [u8; 32],
        reason in select(vec![
            Reason::Create, Reason::Join, Reason::Evict, Reason::Revoke,
            Reason::Manual, Reason::Distribute, Reason::Activate, Reason::Retire,
        ]),
        overlap_seconds: u32,
        issued_unix_seconds: u64,
    ) -> Statement {
        epochs.sort_unstable();
        let [oldest, send, key_epoch] = epochs.map(KeyEpoch);
        let commitment = Commitment(commitment);
        Statement { group, key_epoch, commitment, reason, send, oldest, overlap_seconds, issued_unix_seconds }
    }
}

/// Both ends of a link that has proved itself.
fn proven_link() -> (StartSecret, DeviceLink, CoordinatorLink) {
    let mut rng = rng();
    let start = StartSecret::random(&mut rng);
    let mut device = DeviceLink::connect(link_key(), &mut rng);
    let mut coordinator = CoordinatorLink::default();
    let hello = UpBody::Hello(Hello { generation: Generation(1), cells: Vec::new() });
    let (greeting, _) = device.seal(&hello);
    coordinator.open(&start, DEVICE, &link_key(), &greeting).unwrap();
    let again = coordinator.seal(&start, DEVICE, &link_key(), &DownBody::HelloAgain);
    device.open(&again).unwrap();
    let (proof, _) = device.seal(&hello);
    assert!(coordinator.open(&start, DEVICE, &link_key(), &proof).unwrap().fresh);
    (start, device, coordinator)
}

/// Shows `bytes` to everything that reads bytes from outside.
fn read_everywhere(bytes: &[u8]) {
    let (start, mut device, mut coordinator) = proven_link();
    let _ = CellFrame::decode(bytes);
    let _ = UpBody::decode(bytes);
    let _ = DownBody::decode(bytes);
    let _ = device.open(bytes);
    let _ = coordinator.open(&start, DEVICE, &link_key(), bytes);
    let _ = SignedStatement::verify(bytes, FLEET, |_| Some(coordinator_key().verifying_key()));
    let _ = SignedStatement::from_trusted(bytes);
    let _ = payload::peek(bytes);
    for suite in Suite::ALL {
        let _ = wrap::open(&wrap_context(suite), &kek(), &signed_statement(), bytes);
        let _ = payload::open(suite, &secret(), bytes, b"", |_| Some(device_key().verifying_key()));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Topic::parse(text);
        let _ = Filter::parse(text);
    }
}

/// One bit of `bytes` turned over.
fn flipped(bytes: &[u8], at: prop::sample::Index) -> Vec<u8> {
    let bit = at.index(bytes.len() * 8);
    let mut altered = bytes.to_vec();
    altered[bit / 8] ^= 1 << (bit % 8);
    altered
}

proptest! {
    #[test]
    fn up_bodies_read_back_as_written(body in up_body()) {
        prop_assert_eq!(UpBody::decode(&body.encode()), Ok(body));
    }

    #[test]
    fn down_bodies_read_back_as_written(body in down_body()) {
        prop_assert_eq!(DownBody::decode(&body.encode()), Ok(body));
    }

    #[test]
    fn cell_frames_read_back_as_written(frame in cell_frame()) {
        prop_assert_eq!(CellFrame::decode(&frame.encode()), Ok(frame));
    }

    #[test]
    fn statements_read_back_as_signed(statement in any_statement(), fleet: [u8; 16]) {
        let fleet = FleetId::from_bytes(fleet);
        let signed = statement.sign(fleet, SIGNER, &coordinator_key());
        prop_assert!(signed.as_bytes().len() <= MAX_STATEMENT_BYTES);
        let read =
            SignedStatement::verify(signed.as_bytes(), fleet, |_| Some(coordinator_key().verifying_key()));
        prop_assert_eq!(read.as_ref(), Ok(&signed));
        prop_assert_eq!(SignedStatement::from_trusted(signed.as_bytes()), Ok(signed));
        prop_assert_eq!(*read.unwrap().statement(), statement);
    }

    #[test]
    fn topics_read_back_as_written(fleet: [u8; 16], other: [u8; 16]) {
        let fleet = FleetId::from_bytes(fleet);
        for topic in [
            Topic::Cell { fleet, cell: CellId::from_bytes(other) },
            Topic::Down { fleet, device: DeviceId::from_bytes(other) },
            Topic::Up { fleet, device: DeviceId::from_bytes(other) },
        ] {
            prop_assert_eq!(Topic::parse(&topic.to_string()), Ok(topic));
            prop_assert_eq!(Filter::parse(&topic.to_string()), Ok(Filter::Exact(topic)));
        }
    }

    #[test]
    fn bodies_arrive_over_a_link_as_sent(up in up_body(), down in down_body()) {
        let (start, mut device, mut coordinator) = proven_link();
        let (frame, counter) = device.seal(&up);
        let opened = coordinator.open(&start, DEVICE, &link_key(), &frame).unwrap();
        prop_assert_eq!((opened.body, opened.counter, opened.fresh), (up, counter, true));
        let frame = coordinator.seal(&start, DEVICE, &link_key(), &down);
        prop_assert_eq!(device.open(&frame), Ok(OpenedDown::Fresh(down)));
    }

    #[test]
    fn sealed_messages_open_as_sealed(
        plaintext in bytes(600),
        context in bytes(40),
        suite in suite(),
        before in 0usize..300,
        is_signed: bool,
    ) {
        let key = device_key();
        let signer = is_signed.then_some(&key);
        let mut sealer = Sealer::new(suite, GROUP, KEY_EPOCH, &secret(), DEVICE, &mut rng());
        for _ in 0..before {
            sealer.seal(b"", b"", None).unwrap();
        }
        let sealed = sealer.seal(&plaintext, &context, signer).unwrap();
        let opened =
            payload::open(suite, &secret(), &sealed, &context, |_| Some(key.verifying_key())).unwrap();
        prop_assert_eq!(opened.plaintext, plaintext);
        prop_assert_eq!(opened.header, payload::peek(&sealed).unwrap());
        prop_assert_eq!(opened.header.counter as usize, before);
        prop_assert_eq!(opened.header.signed, is_signed);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in bytes(2_000)) {
        read_everywhere(&bytes);
        let mut enveloped = vec![1];
        enveloped.extend(bytes);
        read_everywhere(&enveloped);
    }

    #[test]
    fn near_misses_never_panic(
        up in up_body(),
        down in down_body(),
        frame in cell_frame(),
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let (_, mut device, _) = proven_link();
        let mut sealer = Sealer::new(Suite::Aes128Gcm, GROUP, KEY_EPOCH, &secret(), DEVICE, &mut rng());
        for mut bytes in [
            up.encode(),
            down.encode(),
            frame.encode(),
            device.seal(&up).0,
            signed_statement().as_bytes().to_vec(),
            a_wrap(Suite::Aes128Gcm),
            sealer.seal(b"open valve 3", b"", Some(&device_key())).unwrap(),
        ] {
            for (at, byte) in &edits {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            read_everywhere(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            read_everywhere(&bytes);
        }
    }

    #[test]
    fn truncated_bytes_are_refused(up in up_body(), down in down_body(), frame in cell_frame()) {
        for (whole, step) in [(up.encode(), 7), (down.encode(), 7)] {
            for length in (0..whole.len()).step_by(step) {
                prop_assert!(UpBody::decode(&whole[..length]).is_err());
                prop_assert!(DownBody::decode(&whole[..length]).is_err());
            }
        }
        let frame = frame.encode();
        for length in (0..frame.len()).step_by(61) {
            prop_assert!(CellFrame::decode(&frame[..length]).is_err());
        }
    }

    #[test]
    fn bytes_behind_the_end_are_refused(up in up_body(), down in down_body(), frame in cell_frame(), more in vec(any::<u8>(), 1..9)) {
        let longer = |mut bytes: Vec<u8>| {
            bytes.extend(&more);
            bytes
        };
        prop_assert!(UpBody::decode(&longer(up.encode())).is_err());
        prop_assert!(DownBody::decode(&longer(down.encode())).is_err());
        prop_assert!(CellFrame::decode(&longer(frame.encode())).is_err());
    }

    #[test]
    fn a_flipped_bit_in_a_link_frame_never_verifies(up in up_body(), down in down_body(), at: prop::sample::Index) {
        let (start, mut device, mut coordinator) = proven_link();
        let (frame, _) = device.seal(&up);
        prop_assert!(coordinator.open(&start, DEVICE, &link_key(), &flipped(&frame, at)).is_err());
        prop_assert!(coordinator.open(&start, DEVICE, &link_key(), &frame).is_ok());
        let frame = coordinator.seal(&start, DEVICE, &link_key(), &down);
        prop_assert!(device.open(&flipped(&frame, at)).is_err());
        prop_assert!(device.open(&frame).is_ok());
    }

    #[test]
    fn a_flipped_bit_in_a_wrap_never_opens(suite in suite(), at: prop::sample::Index) {
        let wrapped = flipped(&a_wrap(suite), at);
        prop_assert!(wrap::open(&wrap_context(suite), &kek(), &signed_statement(), &wrapped).is_err());
    }

    #[test]
    fn a_flipped_bit_in_a_statement_never_verifies(statement in any_statement(), at: prop::sample::Index) {
        let signed = statement.sign(FLEET, SIGNER, &coordinator_key());
        let altered = flipped(signed.as_bytes(), at);
        let read = SignedStatement::verify(&altered, FLEET, |_| Some(coordinator_key().verifying_key()));
        prop_assert!(read.is_err());
    }

    #[test]
    fn a_flipped_bit_in_a_sealed_message_never_opens(
        suite in suite(),
        plaintext in bytes(100),
        is_signed: bool,
        at: prop::sample::Index,
    ) {
        let key = device_key();
        let mut sealer = Sealer::new(suite, GROUP, KEY_EPOCH, &secret(), DEVICE, &mut rng());
        let sealed = sealer.seal(&plaintext, b"", is_signed.then_some(&key)).unwrap();
        let altered = flipped(&sealed, at);
        let opened = payload::open(suite, &secret(), &altered, b"", |_| Some(key.verifying_key()));
        prop_assert!(opened.is_err());
    }
}
