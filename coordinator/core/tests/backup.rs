//! The stored format of a backup's contents stays what it is.

use fleetkey_coordinator_core::audit::{self, AuditHead};
use fleetkey_coordinator_core::backup::{Backup, Membership};
use fleetkey_coordinator_core::records::{
    AuditRecord, CertificateRecord, Deed, GroupRecord, IssuedRecord, OldAuditRecord,
};
use fleetkey_coordinator_core::{DeviceRecord, Policy, Standing, Superseded};
use fleetkey_wire::{DeviceId, GroupId, KeyEpoch, PskId};

const GROUP: GroupId = GroupId::from_bytes([0x11; 16]);
const DEVICE: DeviceId = DeviceId::from_bytes([0x22; 16]);

fn entry() -> AuditRecord {
    let deed = Deed {
        unix_seconds: 1,
        who: "ops1".into(),
        action: "revoke".into(),
        subject: "meter".into(),
        detail: "stolen".into(),
    };
    AuditRecord::following(AuditHead::default(), deed)
}

fn backup() -> Backup {
    let key_epoch = KeyEpoch::new(7, 9);
    Backup {
        taken_unix_seconds: 1,
        incarnation: 7,
        superseded: Some(Superseded { unix_seconds: 3, device: DEVICE, group: GROUP, key_epoch }),
        devices: vec![DeviceRecord {
            id: DEVICE,
            name: "meter".into(),
            public_key: [0x44; 32],
            standing: Standing::Revoked { unix_seconds: 5, reason: "stolen".into() },
            enrolled_unix_seconds: 1,
            fresh_joins: 2,
            last_fresh_join_unix_seconds: 3,
            labels: Default::default(),
            origin: Default::default(),
        }],
        groups: vec![GroupRecord {
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
            psk: None,
        }],
        memberships: vec![Membership { group: GROUP, device: DEVICE }],
        audit: vec![entry()],
        audit_head: entry().head(),
        issued: vec![IssuedRecord {
            group: GROUP,
            key_epoch,
            commitment: [0x88; 32],
            statements: vec![0x99; 16],
        }],
        certificates: vec![CertificateRecord {
            device: DEVICE,
            serial: vec![0xaa; 16],
            issuer: [0xbb; 8],
            not_after_unix_seconds: 9,
        }],
        crl_number: 3,
    }
}

#[test]
fn the_contents_of_a_backup_stay_what_they_are() {
    let encoded: String = backup().encode().iter().map(|byte| format!("{byte:02x}")).collect();
    insta::assert_snapshot!("backup_contents", encoded);
}

fn vector(hex: &str) -> Vec<u8> {
    hex::decode(hex.trim()).expect("the vector is hex")
}

#[test]
fn a_group_that_asks_for_a_pre_shared_key_is_in_the_backup_without_the_key() {
    let mut guarded = backup();
    guarded.groups[0].psk = Some(PskId::from_bytes([0x99; 16]));
    let bytes = guarded.encode();
    assert_eq!((bytes[0], Backup::decode(&bytes)), (3, Ok(guarded)));
}

#[test]
fn backups_of_earlier_layouts_are_read_and_their_logs_chained() {
    let old = OldAuditRecord {
        unix_seconds: 1,
        number: 2,
        action: "revoke".into(),
        subject: "meter".into(),
        detail: "stolen".into(),
    };
    let chained = audit::chained([old]);
    assert_eq!(
        (chained.len(), chained[0].action.as_str(), chained[1].who.as_str()),
        (2, "chain", "unrecorded")
    );
    let second = Backup { audit_head: chained[1].head(), audit: chained, ..backup() };
    assert_eq!(Backup::decode(&vector(include_str!("vectors/backup-2.hex"))), Ok(second.clone()));
    // The first lacks certificates besides.
    let first = Backup { certificates: Vec::new(), crl_number: 0, ..second };
    assert_eq!(Backup::decode(&vector(include_str!("vectors/backup-1.hex"))), Ok(first));
}
