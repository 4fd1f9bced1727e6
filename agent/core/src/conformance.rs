//! The suite that every [`Store`] passes. Its functions panic where an implementation falls short, so they are
//! for tests.

use zeroize::Zeroizing;

use crate::store::{Entries, Store, Writes};

/// Checks an implementation: `fresh` makes an empty store, `reopen` opens what a store has stored once more, as after
/// a restart of the process.
///
/// # Panics
/// With the name of the rule that does not hold.
pub fn check<S: Store>(mut fresh: impl FnMut() -> S, mut reopen: impl FnMut(&S) -> S) {
    is_empty_at_first(fresh());
    keeps_what_was_put(fresh(), &mut reopen);
    replaces_and_deletes(fresh(), &mut reopen);
    carries_writes_out_in_order(fresh(), &mut reopen);
    keeps_any_bytes(fresh(), &mut reopen);
    takes_nothing_for_a_transaction(fresh());
    keeps_many(fresh(), &mut reopen);
}

fn value(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(bytes.to_vec())
}

fn entries(pairs: &[(&str, &[u8])]) -> Entries {
    pairs.iter().map(|(key, bytes)| ((*key).to_owned(), value(bytes))).collect()
}

fn commit(store: &mut impl Store, build: impl FnOnce(&mut Writes)) {
    let mut writes = Writes::default();
    build(&mut writes);
    store.commit(&writes).expect("a transaction of a few writes is stored");
}

fn assert_holds<S: Store>(rule: &str, store: &mut S, reopen: &mut impl FnMut(&S) -> S, expected: &Entries) {
    assert_eq!(store.load_all().expect("what was stored loads"), *expected, "{rule}");
    let reopened = reopen(store).load_all().expect("what was stored loads after reopening");
    assert_eq!(reopened, *expected, "{rule}, reopened");
}

fn is_empty_at_first(mut store: impl Store) {
    assert!(store.load_all().expect("an empty store loads").is_empty(), "a fresh store is empty");
}

fn keeps_what_was_put<S: Store>(mut store: S, reopen: &mut impl FnMut(&S) -> S) {
    commit(&mut store, |writes| {
        writes.put("group/a", value(b"one"));
        writes.put("cell/a", value(b"two"));
    });
    let expected = entries(&[("group/a", b"one"), ("cell/a", b"two")]);
    assert_holds("a store keeps what was put", &mut store, reopen, &expected);
}

fn replaces_and_deletes<S: Store>(mut store: S, reopen: &mut impl FnMut(&S) -> S) {
    commit(&mut store, |writes| {
        writes.put("a", value(b"first, and longer than what follows"));
        writes.put("b", value(b"b"));
        writes.put("c", value(b"c"));
    });
    commit(&mut store, |writes| {
        writes.put("a", value(b"second"));
        writes.delete("b");
        writes.delete("never there");
    });
    let expected = entries(&[("a", b"second"), ("c", b"c")]);
    assert_holds("a store replaces and deletes", &mut store, reopen, &expected);
}

fn carries_writes_out_in_order<S: Store>(mut store: S, reopen: &mut impl FnMut(&S) -> S) {
    commit(&mut store, |writes| {
        writes.put("a", value(b"1"));
        writes.delete("a");
        writes.put("b", value(b"1"));
        writes.put("b", value(b"2"));
        writes.delete("c");
        writes.put("c", value(b"1"));
    });
    let expected = entries(&[("b", b"2"), ("c", b"1")]);
    assert_holds("the writes of a transaction are carried out in order", &mut store, reopen, &expected);
}

fn keeps_any_bytes<S: Store>(mut store: S, reopen: &mut impl FnMut(&S) -> S) {
    let all: Vec<u8> = (0..=u8::MAX).collect();
    let large: Vec<u8> = all.iter().copied().cycle().take(1 << 20).collect();
    commit(&mut store, |writes| {
        writes.put("empty", value(b""));
        writes.put("all", value(&all));
        writes.put("large", value(&large));
    });
    let expected = entries(&[("empty", b""), ("all", &all), ("large", &large)]);
    assert_holds("a store keeps any bytes, up to a mebibyte at least", &mut store, reopen, &expected);
}

fn takes_nothing_for_a_transaction(mut store: impl Store) {
    commit(&mut store, |_| {});
    assert!(store.load_all().expect("an empty store loads").is_empty(), "no writes store nothing");
}

fn keeps_many<S: Store>(mut store: S, reopen: &mut impl FnMut(&S) -> S) {
    let keys: Vec<String> = (0..500).map(|n| format!("cell/{n:08}")).collect();
    commit(&mut store, |writes| keys.iter().for_each(|key| writes.put(key.as_str(), value(key.as_bytes()))));
    let expected = keys.iter().map(|key| (key.clone(), value(key.as_bytes()))).collect();
    assert_holds("a store keeps hundreds of entries", &mut store, reopen, &expected);
}
