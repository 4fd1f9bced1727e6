//! The stored format of a backup's contents stays what it is.

use fleetkey_coordinator_core::backup::{Backup, Membership};
use fleetkey_coordinator_core::records::{AuditRecord, CertificateRecord, GroupRecord, IssuedRecord};
use fleetkey_coordinator_core::{DeviceRecord, Policy, Standing, Superseded};
use fleetkey_wire::{DeviceId, GroupId, KeyEpoch, PskId};

const GROUP: GroupId = GroupId::from_bytes([0x11; 16]);
const DEVICE: DeviceId = DeviceId::from_bytes([0x22; 16]);

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
        audit: vec![AuditRecord {
            unix_seconds: 1,
            number: 2,
            action: "revoke".into(),
            subject: "meter".into(),
            detail: "stolen".into(),
        }],
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

#[test]
fn a_backup_of_the_second_layout_is_read() {
    // The third differs from it only where a group asks for a pre-shared key: who knows the second alone must not
    // restore that group without.
    let mut bytes = backup().encode();
    bytes[0] = 2;
    assert_eq!(Backup::decode(&bytes), Ok(backup()));
    let mut guarded = backup();
    guarded.groups[0].psk = Some(PskId::from_bytes([0x99; 16]));
    let bytes = guarded.encode();
    assert_eq!((bytes[0], Backup::decode(&bytes)), (3, Ok(guarded)));
}

#[test]
fn a_backup_of_the_first_layout_is_read() {
    // As it was written: without certificates.
    let bytes = include_str!("vectors/backup-1.hex").trim();
    let bytes: Vec<u8> = (0..bytes.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&bytes[at..at + 2], 16).expect("the vector is hex"))
        .collect();
    let expected = Backup { certificates: Vec::new(), crl_number: 0, ..backup() };
    assert_eq!(Backup::decode(&bytes), Ok(expected));
}
