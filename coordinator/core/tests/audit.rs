//! The audit log: what was done to it is found, and named; nothing is lost between two starts, and who did what is told.

#![expect(clippy::unwrap_used, reason = "a test's failure is its report")]

mod support;

use std::collections::BTreeSet;

use fleetkey_coordinator_core::audit::{self, AuditHash, AuditHead, Fault, Verified, Verifier};
use fleetkey_coordinator_core::backup::Backup;
use fleetkey_coordinator_core::records::{AuditRecord, Deed, MetaRecord, OldAuditRecord, Record};
use fleetkey_coordinator_core::restore::Restoring;
use fleetkey_coordinator_core::{Actor, Coordinator, MemoryStore, Policy, Row, Store as _, Table};
use fleetkey_wire::DeviceId;
use rand_core::OsRng;
use support::{Desk, by_claim, key};

fn deed(n: u64) -> Deed {
    Deed {
        unix_seconds: 1_800_000_000 + n / 3,
        who: "ops1".into(),
        action: "revoke".into(),
        subject: format!("device-{n}"),
        detail: "stolen".into(),
    }
}

/// A log of this many entries.
fn log(entries: u64) -> Vec<AuditRecord> {
    let mut log: Vec<AuditRecord> = Vec::new();
    for n in 1..=entries {
        let head = log.last().map(AuditRecord::head).unwrap_or_default();
        log.push(AuditRecord::following(head, deed(n)));
    }
    log
}

fn verify(log: &[AuditRecord], expected: Option<AuditHead>) -> Result<Verified, Fault> {
    let mut verifier = Verifier::from_the_start().expecting(expected);
    log.iter().for_each(|entry| verifier.take(entry));
    verifier.finish(None)
}

fn of_store(store: &mut MemoryStore) -> Vec<AuditRecord> {
    store.rows(Table::Audit).unwrap().iter().map(|row| AuditRecord::read(row).unwrap()).collect()
}

fn head_of(store: &mut MemoryStore) -> AuditHead {
    MetaRecord::read(&store.rows(Table::Meta).unwrap()[0]).unwrap().audit
}

#[test]
fn a_log_that_nobody_touched_is_verified() {
    let log = log(9);
    let verified = Verified { entries: 9, first: 1, head: log[8].head() };
    assert_eq!(verify(&log, None), Ok(verified));
    for entry in &log {
        assert_eq!(verify(&log, Some(entry.head())), Ok(verified), "every head of it was noted once");
    }
    assert_eq!(verify(&log, Some(AuditHead::default())), Ok(verified));
    let none = Verified { entries: 0, first: 0, head: AuditHead::default() };
    assert_eq!(verify(&[], None), Ok(none));
}

#[test]
fn whatever_of_an_entry_is_changed_is_found_at_that_entry() {
    let changes: [fn(&mut AuditRecord); 7] = [
        |entry| entry.unix_seconds += 1,
        |entry| entry.who = "ops2".into(),
        |entry| entry.action = "release".into(),
        |entry| entry.subject.push('0'),
        |entry| entry.detail.clear(),
        |entry| entry.previous.0[31] ^= 1,
        |entry| entry.hash.0[0] ^= 0x80,
    ];
    for sequence in [1, 4, 9] {
        for (n, change) in changes.iter().enumerate() {
            let mut log = log(9);
            change(&mut log[sequence - 1]);
            let fault = verify(&log, None).unwrap_err();
            assert_eq!(fault, Fault::Changed { sequence: sequence as u64 }, "change {n}");
        }
    }
}

#[test]
fn every_byte_of_an_entry_counts() {
    let good = log(3);
    let row = good[1].put();
    let value = row.value.unwrap();
    for at in 0..value.len() {
        let mut changed = value.to_vec();
        changed[at] ^= 1;
        let row = Row { table: Table::Audit, key: row.key.clone(), value: changed.into() };
        // Either it is no entry any more, or it is another one.
        let Ok(entry) = AuditRecord::read(&row) else { continue };
        assert_ne!(entry, good[1], "byte {at}");
        let log = [good[0].clone(), entry, good[2].clone()];
        assert!(verify(&log, None).is_err(), "byte {at}");
    }
}

#[test]
fn an_entry_written_anew_with_its_own_hash_is_found_by_the_next() {
    let mut log = log(9);
    log[3] = AuditRecord::following(log[2].head(), Deed { who: "ops2".into(), ..deed(4) });
    assert_eq!(verify(&log, None), Err(Fault::Changed { sequence: 4 }));
    let mut log = self::log(9);
    log[0] = AuditRecord::following(AuditHead { sequence: 0, hash: AuditHash([1; 32]) }, deed(1));
    assert_eq!(verify(&log, None), Err(Fault::Changed { sequence: 1 }));
}

#[test]
fn entries_that_are_taken_out_are_named() {
    for (gone, first, last) in [(0..1, 1, 1), (3..4, 4, 4), (3..6, 4, 6)] {
        let mut log = log(9);
        log.drain(gone);
        assert_eq!(verify(&log, None), Err(Fault::Missing { first, last }));
    }
}

#[test]
fn an_entry_that_is_put_in_or_doubled_is_named() {
    let mut doubled = log(9);
    doubled.insert(4, doubled[3].clone());
    assert_eq!(verify(&doubled, None), Err(Fault::Doubled { sequence: 4 }));
    let mut later = log(9);
    later.push(later[3].clone());
    assert_eq!(verify(&later, None), Err(Fault::Doubled { sequence: 4 }));
    let mut planted = log(9);
    planted.insert(4, AuditRecord::following(planted[3].head(), deed(77)));
    assert_eq!(verify(&planted, None), Err(Fault::Doubled { sequence: 5 }), "one of the two is false");
    let mut careless = log(9);
    careless.insert(4, AuditRecord { sequence: 5, ..AuditRecord::following(AuditHead::default(), deed(77)) });
    assert_eq!(verify(&careless, None), Err(Fault::Changed { sequence: 5 }));
}

#[test]
fn entries_that_are_swapped_are_named() {
    let mut swapped = log(9);
    swapped.swap(3, 4);
    let fault = verify(&swapped, None).unwrap_err();
    assert_eq!(fault, Fault::OutOfOrder { sequence: 5, before: 4 });
    assert_eq!(fault.to_string(), "entry 5 is out of order: it stands before entry 4");
    let mut far = log(9);
    far.swap(1, 7);
    assert!(
        matches!(verify(&far, None), Err(Fault::OutOfOrder { before: 3, .. })),
        "{:?}",
        verify(&far, None)
    );
}

#[test]
fn a_cut_end_shows_only_against_a_head_that_was_noted() {
    let log = log(9);
    let noted = log[8].head();
    let cut = &log[..7];
    assert!(verify(cut, None).is_ok(), "the chain alone cannot tell");
    assert_eq!(verify(cut, Some(noted)), Err(Fault::Truncated { expected: noted, head: log[6].head() }));
    let mut anew = cut.to_vec();
    for n in [90, 91] {
        anew.push(AuditRecord::following(anew.last().unwrap().head(), deed(n)));
    }
    assert!(verify(&anew, None).is_ok());
    assert_eq!(verify(&anew, Some(noted)), Err(Fault::Rewritten { expected: noted, got: anew[8].hash }));
}

#[test]
fn a_part_of_a_log_is_followed_from_where_it_begins() {
    let log = log(9);
    let part = |expected: Option<AuditHead>| {
        let mut verifier = Verifier::from_anywhere().expecting(expected);
        log[4..].iter().for_each(|entry| verifier.take(entry));
        verifier.finish(None)
    };
    let verified = Ok(Verified { entries: 5, first: 5, head: log[8].head() });
    assert_eq!(part(None), verified);
    assert_eq!(part(Some(log[6].head())), verified);
    assert_eq!(part(Some(log[3].head())), verified, "what it follows is in its first entry");
    let expected = log[1].head();
    assert_eq!(part(Some(expected)), Err(Fault::BeginsAfter { expected, first: 5 }));
    let mut verifier = Verifier::from_anywhere();
    [4, 5, 2].iter().for_each(|at| verifier.take(&log[*at]));
    assert!(matches!(verifier.finish(None), Err(Fault::OutOfOrder { before: 3, .. })));
}

#[test]
fn entries_of_two_starts_in_one_second_are_all_kept() {
    let mut desk = Desk::new();
    for start in 0..3 {
        for n in 0..4 {
            desk.create_group(&format!("group-{start}-{n}"));
            desk.commit();
        }
        desk.reload();
    }
    let log = of_store(&mut desk.store);
    let subjects: BTreeSet<&str> = log.iter().map(|entry| entry.subject.as_str()).collect();
    assert_eq!((log.len(), subjects.len()), (12, 12));
    let verified = verify(&log, None).unwrap();
    assert_eq!((verified.entries, verified.head), (12, head_of(&mut desk.store)));
}

#[test]
fn what_a_crash_undoes_leaves_no_gap() {
    let mut desk = Desk::new();
    desk.create_group("kept");
    desk.commit();
    desk.create_group("lost");
    // It was decided, and never stored.
    desk.reload();
    desk.create_group("kept too");
    desk.commit();
    let log = of_store(&mut desk.store);
    let details: Vec<&str> = log.iter().map(|entry| entry.detail.as_str()).collect();
    assert_eq!(details, ["kept", "kept too"]);
    assert_eq!(verify(&log, None).unwrap().head, head_of(&mut desk.store));
}

#[test]
fn an_entry_names_who_acted() {
    let mut desk = Desk::new();
    let now = desk.now;
    let group = desk.coordinator.acting(Actor::Root, |coordinator| {
        coordinator.create_group("meters", Policy::default(), now, &mut OsRng).unwrap()
    });
    desk.coordinator.rekey(group, now, &mut OsRng).unwrap();
    let shown = desk.claim(1, true, "");
    desk.coordinator.enrol(&by_claim(&shown, key()), now, &mut OsRng).unwrap();
    desk.commit();
    let who: Vec<(String, String)> =
        of_store(&mut desk.store).into_iter().map(|entry| (entry.action, entry.who)).collect();
    let claim = desk.coordinator.claims().next().unwrap().id;
    let expected = [
        ("create_group", "root".to_owned()),
        ("rekey", "coordinator".to_owned()),
        ("create_claim", "coordinator".to_owned()),
        ("request", format!("claim:{claim}")),
    ];
    assert_eq!(who, expected.map(|(action, who)| (action.to_owned(), who)));
}

fn old(n: u64) -> OldAuditRecord {
    let Deed { unix_seconds, action, subject, detail, .. } = deed(n);
    OldAuditRecord { unix_seconds, number: n, action, subject, detail }
}

#[test]
fn a_log_of_before_is_chained_in_its_order_and_goes_on() {
    let mut store = MemoryStore::default();
    store.commit(&Coordinator::initial_rows(1_800_000_000)).unwrap();
    store.commit(&[old(2).put(), old(1).put(), old(7).put()]).unwrap();
    let unreadable = Row { value: vec![9].into(), ..store.rows(Table::Audit).unwrap()[0].clone() };
    let mut audit = store.rows(Table::Audit).unwrap();
    audit[0] = unreadable;
    let writes = audit::migrated(&store.rows(Table::Meta).unwrap(), &audit).unwrap();
    store.commit(&writes).unwrap();

    let log = of_store(&mut store);
    let told: Vec<(&str, &str)> =
        log.iter().map(|entry| (entry.action.as_str(), entry.subject.as_str())).collect();
    assert_eq!(told[0], ("chain", "audit"));
    assert_eq!(told[1].0, "unreadable", "it is told, and not passed over");
    assert_eq!(told[2..], [("revoke", "device-2"), ("revoke", "device-7")]);
    assert_eq!(verify(&log, Some(head_of(&mut store))).unwrap().entries, 4);

    let mut empty = MemoryStore::default();
    empty.commit(&Coordinator::initial_rows(1)).unwrap();
    assert_eq!(audit::migrated(&empty.rows(Table::Meta).unwrap(), &[]).unwrap(), []);
}

#[test]
fn a_restore_goes_on_with_the_chain_of_a_log_that_survived() {
    let mut desk = Desk::new();
    desk.create_group("meters");
    desk.commit();
    let backup = Backup::of_store(&mut desk.store, desk.now.unix_seconds).unwrap();
    desk.later(60);
    let device = desk.enrol_by_hand("pump");
    desk.coordinator.revoke(&[device], "stolen", desk.now, &mut OsRng).unwrap();
    desk.commit();
    let survived = of_store(&mut desk.store);

    let restored = |audit: Vec<AuditRecord>| {
        let known = Restoring { unix_seconds: desk.now.unix_seconds, audit, ..Restoring::default() };
        let mut store = MemoryStore::default();
        store.commit(&backup.restored_rows(&known).writes).unwrap();
        store
    };
    let mut store = restored(survived.clone());
    let log = of_store(&mut store);
    assert_eq!(log[..survived.len()], survived, "with their hashes");
    assert_eq!(log.last().unwrap().action, "restore");
    let noted = survived.last().unwrap().head();
    assert_eq!(verify(&log, Some(noted)).unwrap().head, head_of(&mut store));

    // A part that does not follow: what it tells is done, and entered anew.
    let mut store = restored(survived[survived.len() - 1..].to_vec());
    let log = of_store(&mut store);
    let actions: Vec<&str> = log.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["create_group", "take_over", "revoke", "restore"]);
    assert_eq!(verify(&log, None).unwrap().head, head_of(&mut store));
}

#[test]
fn a_restore_leaves_the_gap_where_it_was() {
    let mut desk = Desk::new();
    for name in ["a", "b", "c"] {
        desk.create_group(name);
    }
    desk.commit();
    let mut log = of_store(&mut desk.store);
    let backup = Backup::of_store(&mut desk.store, desk.now.unix_seconds).unwrap();
    log.pop();
    let cut = Backup { audit: log, ..backup };
    let known = Restoring { unix_seconds: desk.now.unix_seconds, ..Restoring::default() };
    let mut store = MemoryStore::default();
    store.commit(&cut.restored_rows(&known).writes).unwrap();
    assert_eq!(verify(&of_store(&mut store), None), Err(Fault::Missing { first: 3, last: 3 }));
}

#[test]
fn devices_are_named_as_such() {
    let id = DeviceId::from_bytes([1; 16]);
    assert_eq!(Actor::Device(id).to_string(), format!("device:{id}"));
}
