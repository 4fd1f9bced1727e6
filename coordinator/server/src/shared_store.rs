//! A store that the deciding thread writes to, and that others may read between two of its transactions.
//!
//! What is read in one go is what the last transaction left: nothing is decided meanwhile, so readers are short, or
//! copy what they want to look at. Also notes the last transaction, for people.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use fleetkey_coordinator_core::records::{AuditRecord, Record as _};
use fleetkey_coordinator_core::{Row, Store, StoreError, Table, Write};
use serde::Serialize;

use crate::clock;

/// The last transaction that was stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastStep {
    /// Transactions since the start.
    pub transactions: u64,
    /// When it was stored; none was yet without it.
    pub unix_seconds: Option<u64>,
    /// What was commanded, where something was: the last entry that it made in the audit log.
    pub command: Option<String>,
    /// The tables it wrote to.
    pub tables: Vec<&'static str>,
    /// The rows that it wrote.
    pub rows: usize,
}

struct Inner {
    store: Box<dyn Store + Send>,
    last: LastStep,
}

/// A store, for the one who writes to it. When it is dropped the store is closed.
pub struct SharedStore(Arc<Mutex<Inner>>);

/// The way to read a [`SharedStore`], for as long as it is there.
#[derive(Clone)]
pub struct StoreReader(Weak<Mutex<Inner>>);

/// The coordinator is stopping, and its store is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator is stopping")]
pub struct Closed;

impl SharedStore {
    /// Shares a store.
    pub fn new(store: impl Store + Send + 'static) -> Self {
        let last =
            LastStep { transactions: 0, unix_seconds: None, command: None, tables: Vec::new(), rows: 0 };
        Self(Arc::new(Mutex::new(Inner { store: Box::new(store), last })))
    }

    /// The way to read it.
    pub fn reader(&self) -> StoreReader {
        StoreReader(Arc::downgrade(&self.0))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic of a reader has changed nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for SharedStore {
    fn rows(&mut self, table: Table) -> Result<Vec<Row>, StoreError> {
        self.lock().store.rows(table)
    }

    fn rows_after(&mut self, table: Table, after: &[u8], max: usize) -> Result<Vec<Row>, StoreError> {
        self.lock().store.rows_after(table, after, max)
    }

    fn count(&mut self, table: Table) -> Result<usize, StoreError> {
        self.lock().store.count(table)
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let mut inner = self.lock();
        inner.store.commit(writes)?;
        inner.last = LastStep {
            transactions: inner.last.transactions + 1,
            unix_seconds: Some(clock::unix_seconds()),
            command: writes.iter().rev().find_map(action),
            tables: tables(writes),
            rows: writes.len(),
        };
        Ok(())
    }
}

impl StoreReader {
    /// Reads between two transactions. Not to be called from a runtime's thread: it waits for the store.
    ///
    /// # Errors
    /// [`Closed`].
    pub fn read<T>(&self, read: impl FnOnce(&mut dyn Store) -> T) -> Result<T, Closed> {
        let shared = SharedStore(self.0.upgrade().ok_or(Closed)?);
        let mut inner = shared.lock();
        Ok(read(&mut *inner.store))
    }

    /// The last transaction that was stored.
    ///
    /// # Errors
    /// [`Closed`].
    pub fn last_step(&self) -> Result<LastStep, Closed> {
        let shared = SharedStore(self.0.upgrade().ok_or(Closed)?);
        let last = shared.lock().last.clone();
        Ok(last)
    }
}

fn action(write: &Write) -> Option<String> {
    let value = write.value.as_ref().filter(|_| write.table == Table::Audit)?;
    let row = Row { table: write.table, key: write.key.clone(), value: value.clone() };
    let action = AuditRecord::read(&row).ok()?.action;
    // These tell more of a command that has an entry of its own.
    (!matches!(action.as_str(), "key" | "certificate")).then_some(action)
}

fn tables(writes: &[Write]) -> Vec<&'static str> {
    let mut tables: Vec<Table> = writes.iter().map(|write| write.table).collect();
    tables.sort_unstable();
    tables.dedup();
    tables.into_iter().map(Table::name).collect()
}

impl fmt::Debug for SharedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedStore").finish_non_exhaustive()
    }
}

impl fmt::Debug for StoreReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreReader").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use fleetkey_coordinator_core::MemoryStore;
    use fleetkey_coordinator_core::audit::AuditHead;
    use fleetkey_coordinator_core::records::{Deed, MetaRecord};

    use super::*;

    #[test]
    fn readers_see_what_was_stored_last_until_the_store_is_closed() {
        let mut store = SharedStore::new(MemoryStore::default());
        let reader = store.reader();
        assert_eq!(reader.last_step().unwrap().unix_seconds, None);
        let deed = Deed {
            unix_seconds: 1,
            who: "ops1".into(),
            action: "revoke".into(),
            subject: String::new(),
            detail: String::new(),
        };
        let entry = AuditRecord::following(AuditHead::default(), deed);
        store.commit(&[MetaRecord::new(7).put(), entry.put()]).unwrap();
        let last = reader.last_step().unwrap();
        assert_eq!((last.transactions, last.rows, last.command.as_deref()), (1, 2, Some("revoke")));
        assert_eq!(last.tables, ["meta", "audit"]);
        assert_eq!(reader.read(|store| store.count(Table::Audit)).unwrap().unwrap(), 1);
        drop(store);
        assert_eq!(reader.last_step(), Err(Closed));
    }
}
