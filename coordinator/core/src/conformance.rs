//! The one suite that every [`Store`] passes. Call [`run`] from a test of the implementation.

use zeroize::Zeroizing;

use crate::records::Table;
use crate::store::{Store, StoreError, Write};

/// Checks a store. `open` opens the same, at first empty, store again and again, as a restarted process would.
///
/// # Panics
///
/// Where the store does not do what a [`Store`] must.
pub fn run<S: Store>(mut open: impl FnMut() -> S) {
    keeps_what_was_committed(&mut open);
    orders_rows_by_key(&mut open);
    later_writes_of_a_transaction_win(&mut open);
    tables_are_apart(&mut open);
    takes_every_value(&mut open);
    gives_rows_in_pages(&mut open);
}

fn put(table: Table, key: &[u8], value: &[u8]) -> Write {
    Write { table, key: key.to_vec(), value: Some(Zeroizing::new(value.to_vec())) }
}

fn delete(table: Table, key: &[u8]) -> Write {
    Write { table, key: key.to_vec(), value: None }
}

fn contents<S: Store>(store: &mut S, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
    let rows: Result<_, StoreError> = store.rows(table);
    rows.expect("rows can be read").into_iter().map(|row| (row.key, row.value.to_vec())).collect()
}

fn clear<S: Store>(store: &mut S) {
    for table in Table::ALL {
        let writes: Vec<_> = contents(store, table).into_iter().map(|(key, _)| delete(table, &key)).collect();
        store.commit(&writes).expect("rows can be deleted");
    }
}

fn keeps_what_was_committed<S: Store>(open: &mut impl FnMut() -> S) {
    for table in Table::ALL {
        let mut store = open();
        clear(&mut store);
        store.commit(&[put(table, b"k", b"one")]).expect("a row can be put");
        store.commit(&[put(table, b"k", b"two"), put(table, b"l", b"three")]).expect("rows can be put");
        drop(store);
        let mut store = open();
        let expected = vec![(b"k".to_vec(), b"two".to_vec()), (b"l".to_vec(), b"three".to_vec())];
        assert_eq!(contents(&mut store, table), expected, "{table:?} after reopening");
        store.commit(&[delete(table, b"k"), delete(table, b"absent")]).expect("rows can be deleted");
        drop(store);
        assert_eq!(contents(&mut open(), table).len(), 1, "{table:?} after deleting");
    }
}

fn orders_rows_by_key<S: Store>(open: &mut impl FnMut() -> S) {
    let mut store = open();
    clear(&mut store);
    let keys: [&[u8]; 5] = [&[0xff], &[0x00, 0x01], &[0x00], &[0x7f, 0xff], &[0x80]];
    store.commit(&keys.map(|key| put(Table::Device, key, key))).expect("rows can be put");
    let read: Vec<_> = contents(&mut store, Table::Device).into_iter().map(|(key, _)| key).collect();
    let expected: [&[u8]; 5] = [&[0x00], &[0x00, 0x01], &[0x7f, 0xff], &[0x80], &[0xff]];
    assert_eq!(read, expected);
}

fn later_writes_of_a_transaction_win<S: Store>(open: &mut impl FnMut() -> S) {
    let mut store = open();
    clear(&mut store);
    let table = Table::Group;
    let writes =
        [put(table, b"a", b"1"), put(table, b"a", b"2"), put(table, b"b", b"1"), delete(table, b"b")];
    store.commit(&writes).expect("rows can be put");
    assert_eq!(contents(&mut store, table), vec![(b"a".to_vec(), b"2".to_vec())]);
}

fn tables_are_apart<S: Store>(open: &mut impl FnMut() -> S) {
    let mut store = open();
    clear(&mut store);
    store
        .commit(&Table::ALL.map(|table| put(table, b"k", table.name().as_bytes())))
        .expect("rows can be put");
    for table in Table::ALL {
        assert_eq!(contents(&mut store, table), vec![(b"k".to_vec(), table.name().as_bytes().to_vec())]);
    }
}

fn takes_every_value<S: Store>(open: &mut impl FnMut() -> S) {
    let mut store = open();
    clear(&mut store);
    let large = vec![0xa5; 1 << 20];
    let writes = [put(Table::Cell, b"empty", b""), put(Table::Cell, b"large", &large)];
    store.commit(&writes).expect("rows can be put");
    assert_eq!(
        contents(&mut store, Table::Cell),
        vec![(b"empty".to_vec(), Vec::new()), (b"large".to_vec(), large)]
    );
}

fn gives_rows_in_pages<S: Store>(open: &mut impl FnMut() -> S) {
    let mut store = open();
    clear(&mut store);
    let keys: [&[u8]; 4] = [&[0x01], &[0x01, 0x00], &[0x02], &[0xff]];
    store.commit(&keys.map(|key| put(Table::Audit, key, key))).expect("rows can be put");
    let mut page = |after: &[u8], max| -> Vec<Vec<u8>> {
        let rows = store.rows_after(Table::Audit, after, max).expect("rows can be read");
        rows.into_iter().map(|row| row.key).collect()
    };
    assert_eq!(page(&[], 2), [vec![0x01], vec![0x01, 0x00]]);
    assert_eq!(page(&[0x01, 0x00], 2), [vec![0x02], vec![0xff]]);
    assert_eq!(page(&[0x01], 1), [vec![0x01, 0x00]]);
    assert_eq!(page(&[0xff], 9), Vec::<Vec<u8>>::new());
    assert_eq!(store.count(Table::Audit).expect("rows can be counted"), 4);
    assert_eq!(store.count(Table::Outbox).expect("rows can be counted"), 0);
}
