//! Who is let in, by what, and into which groups; and what the revocation list says.

#![expect(clippy::unwrap_used, reason = "a test's failure is its report")]

mod support;

use fleetkey_coordinator_core::backup::Backup;
use fleetkey_coordinator_core::certificates::{MAX_CERTIFICATES, NewCertificate};
use fleetkey_coordinator_core::enrolment::{
    Application, ClaimTerms, EnrolRefused, Enrolment, Proof, ShownClaim, Verdict,
};
use fleetkey_coordinator_core::records::{ClaimId, Origin};
use fleetkey_coordinator_core::restore::Restoring;
use fleetkey_coordinator_core::{CommandError, Labels, MemoryStore, Standing, Store as _};
use fleetkey_identity::KeyId;
use fleetkey_wire::DeviceId;
use rand_core::OsRng;
use support::*;

fn by_maker(device: DeviceId, public_key: [u8; 32]) -> Application {
    Application {
        public_key,
        name: Some("pump-7".into()),
        proof: Proof::Manufacturer { manufacturer: "acme".into(), device },
        verdict: Verdict::Approve,
        labels: Labels::default(),
    }
}

fn enrolled(outcome: Result<Enrolment, EnrolRefused>) -> DeviceId {
    match outcome.unwrap() {
        Enrolment::Enrolled { device, .. } => device,
        Enrolment::Waits { device } => panic!("{device} waits"),
    }
}

#[test]
fn a_claim_lets_in_as_many_as_it_says_and_no_more() {
    let mut desk = Desk::new();
    let claim = desk.claim(2, false, "");
    let first = enrolled(desk.apply(&by_claim(&claim, key())));
    let second = enrolled(desk.apply(&by_claim(&claim, key())));
    assert_ne!(first, second);
    assert_eq!(desk.apply(&by_claim(&claim, key())), Err(EnrolRefused::ClaimUsedUp { claim: claim.id }));
    assert_eq!(desk.coordinator.devices().count(), 2);
    assert_eq!(desk.coordinator.device(first).unwrap().origin, Origin::Claim(claim.id));
}

#[test]
fn whoever_asks_again_gets_the_same_identity_and_uses_nothing_up() {
    let mut desk = Desk::new();
    let claim = desk.claim(1, false, "");
    let application = by_claim(&claim, key());
    let device = enrolled(desk.apply(&application));
    desk.later(2 * DAY);
    let again = desk.apply(&application);
    assert_eq!(again, Ok(Enrolment::Enrolled { device, is_known: true }));
    assert_eq!(desk.coordinator.claims().next().unwrap().used, 1);
}

#[test]
fn a_claim_with_another_secret_is_as_good_as_none() {
    let mut desk = Desk::new();
    let (claim, other) = (desk.claim(1, false, ""), desk.claim(1, false, ""));
    let mixed = ShownClaim { id: claim.id, secret: other.secret.clone() };
    let stranger = ShownClaim { id: ClaimId::random(&mut OsRng), secret: other.secret };
    for wrong in [mixed, stranger] {
        assert_eq!(desk.apply(&by_claim(&wrong, key())), Err(EnrolRefused::UnknownClaim));
    }
    assert_eq!(desk.coordinator.devices().count(), 0);
    assert!(desk.coordinator.claims().all(|claim| claim.used == 0));
}

#[test]
fn a_claims_secret_is_not_stored() {
    let mut desk = Desk::new();
    let claim = desk.claim(1, false, "");
    let secret = claim.secret.reveal();
    let secret: Vec<u8> =
        (0..64).step_by(2).map(|at| u8::from_str_radix(&secret[at..at + 2], 16).unwrap()).collect();
    for table in fleetkey_coordinator_core::Table::ALL {
        for row in desk.store.rows(table).unwrap() {
            assert!(!row.value.windows(32).any(|bytes| bytes == secret), "in {}", table.name());
        }
    }
    assert!(!format!("{claim:?} {:?}", desk.coordinator.claims().next()).contains(&*claim.secret.reveal()));
    assert_eq!(claim.reveal().parse(), Ok(claim));
}

#[test]
fn a_claim_that_is_over_lets_nobody_in() {
    let mut desk = Desk::new();
    let (expired, ended) = (desk.claim(5, false, ""), desk.claim(5, false, ""));
    desk.coordinator.end_claim(ended.id, desk.now).unwrap();
    desk.commit();
    assert_eq!(desk.apply(&by_claim(&ended, key())), Err(EnrolRefused::UnknownClaim));
    desk.later(DAY + 1);
    let refused = desk.apply(&by_claim(&expired, key()));
    assert_eq!(refused, Err(EnrolRefused::ClaimExpired { claim: expired.id }));
    assert_eq!(desk.coordinator.devices().count(), 0);
}

#[test]
fn claims_that_make_no_sense_are_not_made() {
    let mut desk = Desk::new();
    let terms = |uses, expires_unix_seconds, note: &str| ClaimTerms {
        note: note.into(),
        uses,
        expires_unix_seconds,
        labels: Labels::default(),
        needs_approval: false,
    };
    for bad in [terms(0, START + 1, ""), terms(1, START, ""), terms(1, START + 1, "a\nb")] {
        let refused = desk.coordinator.create_claim(bad, desk.now, &mut OsRng).unwrap_err();
        assert!(matches!(refused, CommandError::BadClaim(_)), "{refused}");
    }
}

#[test]
fn a_device_that_waits_comes_in_when_an_operator_says_so() {
    let mut desk = Desk::new();
    let group = desk.group("hamburg", "site=hamburg");
    let claim = desk.claim(1, true, "site=hamburg");
    let application = by_claim(&claim, key());
    let Ok(Enrolment::Waits { device }) = desk.apply(&application) else { panic!("it must wait") };
    assert_eq!(desk.apply(&application), Ok(Enrolment::Waits { device }), "asking again changes nothing");
    assert!(desk.coordinator.device(device).is_none());
    assert_eq!(desk.apply(&by_claim(&claim, key())), Err(EnrolRefused::ClaimUsedUp { claim: claim.id }));
    desk.coordinator.approve(device, desk.now, &mut OsRng).unwrap();
    desk.commit();
    desk.reload();
    assert_eq!(enrolled(desk.apply(&application)), device);
    assert_eq!(desk.members(group), [device]);
    assert_eq!(desk.coordinator.requests().count(), 0);
}

#[test]
fn a_device_that_was_denied_stays_out_until_its_request_is_forgotten() {
    let mut desk = Desk::new();
    let maker = DeviceId::random(&mut OsRng);
    let application = Application { verdict: Verdict::Ask, ..by_maker(maker, key()) };
    assert_eq!(desk.apply(&application), Ok(Enrolment::Waits { device: maker }));
    desk.coordinator.deny(maker, desk.now).unwrap();
    desk.commit();
    desk.reload();
    assert_eq!(desk.apply(&application), Err(EnrolRefused::DeniedByOperator { device: maker }));
    desk.coordinator.forget_request(maker, desk.now).unwrap();
    desk.commit();
    assert_eq!(desk.apply(&application), Ok(Enrolment::Waits { device: maker }));
}

#[test]
fn a_rule_that_says_no_uses_no_claim_up() {
    let mut desk = Desk::new();
    let claim = desk.claim(1, false, "");
    let application = Application { verdict: Verdict::Deny, ..by_claim(&claim, key()) };
    assert_eq!(desk.apply(&application), Err(EnrolRefused::DeniedByRule));
    enrolled(desk.apply(&by_claim(&claim, key())));
}

#[test]
fn labels_place_a_device_into_the_groups_that_select_it() {
    let mut desk = Desk::new();
    let hamburg = desk.group("hamburg", "site=hamburg");
    let meters = desk.group("meters", "site=hamburg,type=meter");
    let bremen = desk.group("bremen", "site=bremen");
    let claim = desk.claim(2, false, "site=hamburg");
    let labels: Labels = "type=meter,site=bremen".parse().unwrap();
    let device = enrolled(desk.apply(&Application { labels, ..by_claim(&claim, key()) }));
    let other = enrolled(desk.apply(&by_claim(&claim, key())));
    let mut both = vec![device, other];
    both.sort_unstable();
    assert_eq!(desk.members(hamburg), both, "what the claim says goes before what a rule says");
    assert_eq!(desk.members(meters), [device]);
    assert!(desk.members(bremen).is_empty());
    assert_eq!(desk.status(hamburg).members + desk.status(hamburg).wanted, 2);

    desk.coordinator.label_device(other, "site=bremen".parse().unwrap(), desk.now, &mut OsRng).unwrap();
    desk.commit();
    assert_eq!(desk.members(bremen), [other]);
    assert_eq!(desk.members(hamburg), both, "nobody leaves a group by a label");
}

#[test]
fn a_new_selector_brings_in_those_that_are_there() {
    let mut desk = Desk::new();
    let claim = desk.claim(1, false, "site=hamburg");
    let device = enrolled(desk.apply(&by_claim(&claim, key())));
    let group = desk.group("hamburg", "site=hamburg");
    assert_eq!(desk.members(group), [device]);
}

#[test]
fn a_revoked_device_comes_back_by_no_way() {
    let mut desk = Desk::new();
    let claim = desk.claim(9, false, "");
    let (claim_key, maker_key) = (key(), key());
    let by_hand = enrolled(desk.apply(&by_claim(&claim, claim_key)));
    let maker = DeviceId::random(&mut OsRng);
    enrolled(desk.apply(&by_maker(maker, maker_key)));
    desk.revoke(by_hand);
    desk.revoke(maker);
    let fresh = desk.claim(9, false, "");
    for (application, device) in [
        (by_claim(&claim, claim_key), by_hand),
        (by_claim(&fresh, claim_key), by_hand),
        (by_maker(maker, maker_key), maker),
        (by_maker(maker, key()), maker),
    ] {
        assert_eq!(desk.apply(&application), Err(EnrolRefused::Revoked { device }));
    }
    let refused = desk.coordinator.enroll_device(by_hand, "again", key(), desk.now);
    assert_eq!(refused, Err(CommandError::AlreadyEnrolled(by_hand)));
    let id = DeviceId::random(&mut OsRng);
    let refused = desk.coordinator.enroll_device(id, "again", claim_key, desk.now);
    assert_eq!(refused, Err(CommandError::KeyInUse { device: id, other: by_hand }));
    assert!(matches!(desk.coordinator.device(maker).unwrap().standing, Standing::Revoked { .. }));
}

#[test]
fn a_key_or_an_identity_of_another_is_refused() {
    let mut desk = Desk::new();
    let (claim, other) = (desk.claim(9, false, ""), desk.claim(9, false, ""));
    let known = key();
    enrolled(desk.apply(&by_claim(&claim, known)));
    let maker = DeviceId::random(&mut OsRng);
    enrolled(desk.apply(&by_maker(maker, key())));
    for (application, refused) in [
        (by_claim(&other, known), EnrolRefused::KeyInUse),
        (by_maker(DeviceId::random(&mut OsRng), known), EnrolRefused::KeyInUse),
        (by_maker(maker, key()), EnrolRefused::OtherKey { device: maker }),
    ] {
        assert_eq!(desk.apply(&application), Err(refused));
    }
    assert!(matches!(desk.apply(&by_claim(&claim, [0; 32])), Err(EnrolRefused::BadKey { .. })));
}

#[test]
fn a_name_that_is_taken_or_none_gives_way() {
    let mut desk = Desk::new();
    let claim = desk.claim(9, false, "");
    let named = |name: &str| Application { name: Some(name.into()), ..by_claim(&claim, key()) };
    let first = enrolled(desk.apply(&named("pump")));
    assert_eq!(desk.coordinator.device(first).unwrap().name, "pump");
    for wish in ["pump", "a\nb", "", "pump 7", "p\u{202e}ump"] {
        let device = enrolled(desk.apply(&named(wish)));
        let name = desk.coordinator.device(device).unwrap().name.clone();
        assert!(name.starts_with("device-"), "{name}");
    }
}

fn certificate(device: DeviceId, public_key: [u8; 32], number: u8, not_after: u64) -> NewCertificate {
    NewCertificate {
        device,
        public_key,
        serial: vec![number; 16],
        issuer: KeyId([1; 8]),
        not_after_unix_seconds: not_after,
    }
}

#[test]
fn the_revocation_list_names_what_revoked_devices_hold() {
    let mut desk = Desk::new();
    let claim = desk.claim(9, false, "");
    let (lost_key, kept_key) = (key(), key());
    let lost = enrolled(desk.apply(&by_claim(&claim, lost_key)));
    let kept = enrolled(desk.apply(&by_claim(&claim, kept_key)));
    for new in [
        certificate(lost, lost_key, 1, START + DAY),
        certificate(lost, lost_key, 2, START + 9 * DAY),
        NewCertificate { issuer: KeyId([2; 8]), ..certificate(lost, lost_key, 3, START + 9 * DAY) },
        certificate(kept, kept_key, 4, START + 9 * DAY),
    ] {
        desk.coordinator.record_certificate(new, desk.now).unwrap();
    }
    desk.commit();
    let before = desk.coordinator.next_revocation_list(KeyId([1; 8]), desk.now).unwrap();
    assert!(before.revoked.is_empty());
    desk.revoke(lost);
    desk.reload();
    let mut list = desk.coordinator.next_revocation_list(KeyId([1; 8]), desk.now).unwrap();
    assert_eq!(list.revoked, [(vec![1; 16], START), (vec![2; 16], START)]);
    assert!(list.number > before.number);
    desk.commit();
    // A clock that was set back makes no older list.
    desk.now.unix_seconds -= DAY;
    desk.reload();
    let again = desk.coordinator.next_revocation_list(KeyId([1; 8]), desk.now).unwrap();
    assert!(again.number > list.number);
    desk.now.unix_seconds += 3 * DAY;
    list = desk.coordinator.next_revocation_list(KeyId([1; 8]), desk.now).unwrap();
    assert_eq!(list.revoked, [(vec![2; 16], START)], "what has expired need not be on it");
}

#[test]
fn no_certificate_for_who_is_revoked_or_another() {
    let mut desk = Desk::new();
    let claim = desk.claim(9, false, "");
    let public_key = key();
    let device = enrolled(desk.apply(&by_claim(&claim, public_key)));
    let stranger = DeviceId::random(&mut OsRng);
    let refused = desk.coordinator.record_certificate(certificate(stranger, key(), 1, START), desk.now);
    assert_eq!(refused, Err(CommandError::UnknownDevice(stranger)));
    let refused = desk.coordinator.record_certificate(certificate(device, key(), 1, START), desk.now);
    assert_eq!(refused, Err(CommandError::OtherKey(device)));
    desk.revoke(device);
    let refused = desk.coordinator.record_certificate(certificate(device, public_key, 1, START), desk.now);
    assert_eq!(refused, Err(CommandError::Revoked(device)));
}

#[test]
fn certificates_of_one_device_are_bounded_and_expired_ones_make_room() {
    let mut desk = Desk::new();
    let claim = desk.claim(1, false, "");
    let public_key = key();
    let device = enrolled(desk.apply(&by_claim(&claim, public_key)));
    for number in 0..MAX_CERTIFICATES {
        let new = certificate(device, public_key, number as u8, START + DAY);
        desk.coordinator.record_certificate(new, desk.now).unwrap();
    }
    let one_more = certificate(device, public_key, 200, START + 9 * DAY);
    let refused = desk.coordinator.record_certificate(one_more.clone(), desk.now);
    assert_eq!(refused, Err(CommandError::TooManyCertificates(device)));
    desk.later(2 * DAY);
    desk.coordinator.record_certificate(one_more, desk.now).unwrap();
    desk.commit();
    desk.reload();
    assert_eq!(desk.coordinator.certificates(device).count(), 1);
}

#[test]
fn a_restore_keeps_out_who_was_enrolled_and_revoked_since_the_backup() {
    let mut desk = Desk::new();
    let claim = desk.claim(9, false, "");
    let backup = Backup::of_store(&mut desk.store, desk.now.unix_seconds).unwrap();
    desk.later(60);
    let public_key = key();
    let lost = enrolled(desk.apply(&by_claim(&claim, public_key)));
    desk.later(1);
    desk.coordinator.record_certificate(certificate(lost, public_key, 1, START + DAY), desk.now).unwrap();
    desk.commit();
    desk.later(1);
    desk.revoke(lost);
    let audit = Backup::of_store(&mut desk.store, desk.now.unix_seconds).unwrap().audit;
    desk.later(60);
    let known = Restoring { unix_seconds: desk.now.unix_seconds, audit, ..Restoring::default() };
    desk.store = MemoryStore::default();
    desk.store.commit(&backup.restored_rows(&known).writes).unwrap();
    desk.reload();
    assert_eq!(desk.coordinator.claims().count(), 0, "a claim that was used since would open again");
    let fresh = desk.claim(1, false, "");
    let again = desk.apply(&by_claim(&fresh, public_key));
    assert_eq!(again, Err(EnrolRefused::Revoked { device: lost }));
    let list = desk.coordinator.next_revocation_list(KeyId([1; 8]), desk.now).unwrap();
    assert_eq!(list.revoked, [(vec![1; 16], START + 62)]);
}
