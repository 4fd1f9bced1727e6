//! The store in memory passes the suite that every store must, and the stored formats stay what they are.

use std::cell::RefCell;
use std::rc::Rc;

use fleetkey_coordinator_core::audit::{AuditHash, AuditHead};
use fleetkey_coordinator_core::records::{
    AuditRecord, CellRecord, CertificateRecord, ClaimRecord, CommitRecord, Deed, GroupRecord, IssuedRecord,
    KeyPackageRecord, KeyRecord, MetaRecord, OldAuditRecord, OperatorRecord, OperatorRole, Origin,
    OutboxRecord, Outgoing, PskRecord, Record, RequestRecord, Restored, Scope, Superseded, WelcomeRecord,
};
use fleetkey_coordinator_core::{
    DeviceRecord, MemberRecord, MemoryStore, Place, Policy, Rotation, Row, Standing, Store, StoreError,
    Table, Write, conformance,
};
use fleetkey_wire::{CellEpoch, CellId, DeviceId, GroupId, KeyEpoch, PskId, Suite};

/// Several openings of one store.
#[derive(Clone, Default)]
struct Shared(Rc<RefCell<MemoryStore>>);

impl Store for Shared {
    fn rows(&mut self, table: Table) -> Result<Vec<Row>, StoreError> {
        self.0.borrow_mut().rows(table)
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        self.0.borrow_mut().commit(writes)
    }
}

#[test]
fn the_store_in_memory_passes_the_suite() {
    let store = Shared::default();
    conformance::run(|| store.clone());
}

const GROUP: GroupId = GroupId::from_bytes([0x11; 16]);
const DEVICE: DeviceId = DeviceId::from_bytes([0x22; 16]);
const CELL: CellId = CellId::from_bytes([0x33; 16]);

/// Each record as a row: its key, and its value in hex.
fn rows() -> Vec<(&'static str, Write)> {
    let key_epoch = KeyEpoch::new(7, 9);
    let device = |standing| DeviceRecord {
        id: DEVICE,
        name: "meter".into(),
        public_key: [0x44; 32],
        standing,
        enrolled_unix_seconds: 1,
        fresh_joins: 2,
        last_fresh_join_unix_seconds: 3,
        labels: Default::default(),
        origin: Default::default(),
    };
    let member = |place| MemberRecord {
        group: GROUP,
        device: DEVICE,
        place,
        admitted: key_epoch,
        confirmed: key_epoch,
        acknowledged: [0x55; 8],
        confirmed_unix_seconds: 4,
    };
    vec![
        ("meta", MetaRecord::new(7).put()),
        (
            "meta restored and superseded",
            MetaRecord {
                incarnation: 7,
                restored: Some(Restored { backup_unix_seconds: 1, unix_seconds: 2, former_incarnation: 6 }),
                superseded: Some(Superseded { unix_seconds: 3, device: DEVICE, group: GROUP, key_epoch }),
                crl_number: 0,
                audit: AuditHead::default(),
            }
            .put(),
        ),
        (
            "meta with an audit log",
            MetaRecord {
                audit: AuditHead { sequence: 2, hash: AuditHash([0xbb; 32]) },
                ..MetaRecord::new(7)
            }
            .put(),
        ),
        ("meta with a revocation list", MetaRecord { crl_number: 5, ..MetaRecord::new(7) }.put()),
        (
            "device labelled",
            DeviceRecord {
                labels: "site=hamburg,type=meter".parse().expect("they are labels"),
                origin: Origin::Claim("0123456789abcdef".parse().expect("it is an id")),
                ..device(Standing::Enrolled)
            }
            .put(),
        ),
        (
            "certificate",
            CertificateRecord {
                device: DEVICE,
                serial: vec![0x88; 16],
                issuer: [0x99; 8],
                not_after_unix_seconds: 9,
            }
            .put(),
        ),
        (
            "claim",
            ClaimRecord {
                id: "0123456789abcdef".parse().expect("it is an id"),
                note: "first hall".into(),
                secret_digest: [0xaa; 32],
                created_unix_seconds: 1,
                expires_unix_seconds: 2,
                uses: 3,
                used: 1,
                labels: "site=hamburg".parse().expect("they are labels"),
                needs_approval: true,
            }
            .put(),
        ),
        (
            "operator",
            OperatorRecord {
                name: "ops1".parse().expect("it is a name"),
                role: OperatorRole::Admin,
                scope: Scope::Fleet,
                token_digest: [0xaa; 32],
                created_unix_seconds: 1,
                expires_unix_seconds: None,
                ended_unix_seconds: None,
            }
            .put(),
        ),
        (
            "operator of a group",
            OperatorRecord {
                name: "ops2".parse().expect("it is a name"),
                role: OperatorRole::Viewer,
                scope: Scope::Groups([GROUP].into()),
                token_digest: [0xaa; 32],
                created_unix_seconds: 1,
                expires_unix_seconds: Some(2),
                ended_unix_seconds: Some(3),
            }
            .put(),
        ),
        (
            "request",
            RequestRecord {
                device: DEVICE,
                name: "meter".into(),
                public_key: [0x44; 32],
                origin: Origin::Manufacturer { manufacturer: "acme".into() },
                labels: Default::default(),
                unix_seconds: 1,
                is_denied: false,
            }
            .put(),
        ),
        ("device enrolled", device(Standing::Enrolled).put()),
        ("device quarantined", device(Standing::Quarantined { unix_seconds: 5 }).put()),
        ("device revoked", device(Standing::Revoked { unix_seconds: 5, reason: "stolen".into() }).put()),
        (
            "group",
            GroupRecord {
                id: GROUP,
                name: "meters".into(),
                policy: Policy::default(),
                created_unix_seconds: 1,
                last_issued: key_epoch,
                send: key_epoch,
                oldest: key_epoch,
                rotation: Some(Rotation::Distributing { since_unix_seconds: 2 }),
                last_rekey_unix_seconds: 3,
                selector: None,
                deadlines: Vec::new(),
                psk: None,
            }
            .put(),
        ),
        (
            "group with a pre-shared key",
            GroupRecord {
                id: GROUP,
                name: "meters".into(),
                policy: Policy::default(),
                created_unix_seconds: 1,
                last_issued: key_epoch,
                send: key_epoch,
                oldest: key_epoch,
                rotation: None,
                last_rekey_unix_seconds: 3,
                selector: None,
                deadlines: Vec::new(),
                psk: Some(PskId::from_bytes([0x99; 16])),
            }
            .put(),
        ),
        ("psk", PskRecord { group: GROUP, secret: [0xaa; 32] }.put()),
        ("group key", KeyRecord { group: GROUP, key_epoch, secret: [0x66; 32], statement: vec![1, 2] }.put()),
        ("member wanted", member(Place::Wanted).put()),
        ("member in a cell", member(Place::In { cell: CELL }).put()),
        (
            "cell",
            CellRecord { id: CELL, group: GROUP, last_path_unix_seconds: 1, snapshot: vec![3, 4] }.put(),
        ),
        (
            "commit",
            CommitRecord { cell: CELL, epoch: CellEpoch(6), authenticator: [0x77; 8], frame: vec![5] }.put(),
        ),
        (
            "welcome",
            WelcomeRecord { cell: CELL, device: DEVICE, epoch: CellEpoch(7), welcome: vec![6] }.put(),
        ),
        (
            "key package",
            KeyPackageRecord {
                device: DEVICE,
                number: 8,
                suite: Suite::ChaCha20Poly1305,
                key_package: vec![7],
            }
            .put(),
        ),
        (
            "outbox cell",
            OutboxRecord { number: 9, outgoing: Outgoing::Cell { cell: CELL, frame: vec![8] } }.put(),
        ),
        ("outbox device", OutboxRecord { number: 9, outgoing: Outgoing::Device { device: DEVICE } }.put()),
        (
            "audit",
            AuditRecord::following(
                AuditHead { sequence: 2, hash: AuditHash([0xbb; 32]) },
                Deed {
                    unix_seconds: 1,
                    who: "ops1".into(),
                    action: "revoke".into(),
                    subject: "meter".into(),
                    detail: "stolen".into(),
                },
            )
            .put(),
        ),
        (
            "audit before it was chained",
            OldAuditRecord {
                unix_seconds: 1,
                number: 2,
                action: "revoke".into(),
                subject: "meter".into(),
                detail: "stolen".into(),
            }
            .put(),
        ),
        (
            "issued",
            IssuedRecord { group: GROUP, key_epoch, commitment: [0x88; 32], statements: vec![0x99; 16] }
                .put(),
        ),
    ]
}

#[test]
fn stored_formats_stay_what_they_are() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let shown: Vec<String> = rows()
        .iter()
        .map(|(name, write)| {
            let value = write.value.as_ref().map(|value| hex(value)).unwrap_or_default();
            format!("{name}: {} {} = {value}", write.table.name(), hex(&write.key))
        })
        .collect();
    insta::assert_snapshot!("stored_formats", shown.join("\n"));
}

#[test]
fn a_row_of_another_version_or_cut_short_is_refused_by_its_name() {
    let write = MetaRecord::new(7).put();
    let value = write.value.expect("a put has a value");
    let row = |value: &[u8]| Row { table: Table::Meta, key: write.key.clone(), value: value.to_vec().into() };
    assert_eq!(MetaRecord::read(&row(&value)).expect("reads back"), MetaRecord::new(7));
    let mut later = value.to_vec();
    later[0] = 2;
    for bad in [&later[..], &value[..value.len() - 1], &[]] {
        let error = MetaRecord::read(&row(bad)).expect_err("is refused").to_string();
        assert!(error.contains("of meta"), "{error}");
    }
}
