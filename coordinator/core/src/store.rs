//! Where the coordinator's state lives: rows that change in transactions.
//!
//! A store knows nothing of what the rows mean. Every implementation passes the one suite in
//! [`crate::conformance`].

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use crate::records::Table;

/// One change of one row.
#[derive(Clone, PartialEq, Eq)]
pub struct Write {
    /// The table.
    pub table: Table,
    /// The row's key.
    pub key: Vec<u8>,
    /// Its new value, or `None` to delete it.
    pub value: Option<Zeroizing<Vec<u8>>>,
}

impl std::fmt::Debug for Write {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.value.as_ref().map(|value| value.len());
        write!(f, "Write({:?}, {:02x?}, {bytes:?} bytes)", self.table, self.key)
    }
}

/// One row as it was read.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    /// The table.
    pub table: Table,
    /// The row's key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Row({:?}, {:02x?}, {} bytes)", self.table, self.key, self.value.len())
    }
}

/// A store that could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store itself failed: disk full, locked, gone. Nothing of the transaction holds.
    #[error("store: {doing}: {why}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// What the database said.
        why: String,
    },
    /// A row cannot be read: damaged, written by a later version, or sealed under another master key.
    #[error("store: row {key} of {table} cannot be read: {why}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The row's key, in hex.
        key: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Rows that change in transactions.
pub trait Store {
    /// Every row of a table, in the order of their keys (byte by byte).
    fn rows(&mut self, table: Table) -> Result<Vec<Row>, StoreError>;

    /// The first `max` rows of a table whose keys come after `after`, in the order of their keys.
    fn rows_after(&mut self, table: Table, after: &[u8], max: usize) -> Result<Vec<Row>, StoreError> {
        let rows = self.rows(table)?.into_iter();
        Ok(rows.filter(|row| row.key.as_slice() > after).take(max).collect())
    }

    /// How many rows a table has.
    fn count(&mut self, table: Table) -> Result<usize, StoreError> {
        Ok(self.rows(table)?.len())
    }

    /// Makes all of `writes`, in order, durable in one transaction, or none of them.
    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError>;
}

impl<S: Store + ?Sized> Store for Box<S> {
    fn rows(&mut self, table: Table) -> Result<Vec<Row>, StoreError> {
        (**self).rows(table)
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        (**self).commit(writes)
    }
}

/// A store in memory, for tests and simulations.
#[derive(Debug, Default, Clone)]
pub struct MemoryStore {
    rows: BTreeMap<(Table, Vec<u8>), Zeroizing<Vec<u8>>>,
}

impl MemoryStore {
    /// All that another store holds, to be looked at without keeping anybody from it.
    ///
    /// # Errors
    /// When a row cannot be read.
    pub fn copy_of(store: &mut dyn Store) -> Result<Self, StoreError> {
        let mut rows = BTreeMap::new();
        for table in Table::ALL {
            rows.extend(store.rows(table)?.into_iter().map(|row| ((table, row.key), row.value)));
        }
        Ok(Self { rows })
    }
}

impl Store for MemoryStore {
    fn rows(&mut self, table: Table) -> Result<Vec<Row>, StoreError> {
        Ok(self
            .rows
            .range((table, Vec::new())..)
            .take_while(|((of, _), _)| *of == table)
            .map(|((_, key), value)| Row { table, key: key.clone(), value: value.clone() })
            .collect())
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        for write in writes {
            let at = (write.table, write.key.clone());
            match &write.value {
                Some(value) => self.rows.insert(at, value.clone()),
                None => self.rows.remove(&at),
            };
        }
        Ok(())
    }
}
