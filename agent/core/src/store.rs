//! What a device remembers across a restart: a small key/value store with transactions.
//!
//! Leaves encryption at rest to the implementation: values are secret, keys are not. Every implementation passes
//! [`crate::conformance`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zeroize::Zeroizing;

/// Everything stored, by key.
pub type Entries = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// One change to what is stored.
#[derive(Clone, PartialEq, Eq)]
pub enum Write {
    /// Store `value` under `key`, in place of what was there.
    Put {
        /// The key: printable ASCII, not secret.
        key: String,
        /// The value: secret.
        value: Zeroizing<Vec<u8>>,
    },
    /// Forget what is stored under `key`, if anything is.
    Delete {
        /// The key.
        key: String,
    },
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put { key, value } => write!(f, "Put({key}, {} bytes)", value.len()),
            Self::Delete { key } => write!(f, "Delete({key})"),
        }
    }
}

/// Changes that are stored together, in order, or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Writes(Vec<Write>);

impl Writes {
    /// Stores a value.
    pub fn put(&mut self, key: impl Into<String>, value: Zeroizing<Vec<u8>>) {
        self.0.push(Write::Put { key: key.into(), value });
    }

    /// Forgets a value.
    pub fn delete(&mut self, key: impl Into<String>) {
        self.0.push(Write::Delete { key: key.into() });
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The changes, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Write> {
        self.0.iter()
    }

    /// Carries the changes out on entries in memory.
    pub fn apply_to(&self, entries: &mut Entries) {
        for write in self.iter() {
            match write {
                Write::Put { key, value } => match entries.get_mut(key) {
                    Some(entry) => entry.clone_from(value),
                    None => _ = entries.insert(key.clone(), value.clone()),
                },
                Write::Delete { key } => _ = entries.remove(key),
            }
        }
    }
}

impl<'a> IntoIterator for &'a Writes {
    type Item = &'a Write;
    type IntoIter = std::slice::Iter<'a, Write>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The store did not do what it was asked. Nothing is known to be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{doing}: {reason}")]
pub struct StoreError {
    /// What was being done.
    pub doing: &'static str,
    /// Why it failed.
    pub reason: String,
}

/// Where a device remembers.
pub trait Store {
    /// Everything stored.
    ///
    /// # Errors
    /// When it cannot be read, or not be decrypted, in whole.
    fn load_all(&mut self) -> Result<Entries, StoreError>;

    /// Stores the changes, all or none, and returns once they survive a crash.
    ///
    /// # Errors
    /// When they may not have been stored.
    fn commit(&mut self, writes: &Writes) -> Result<(), StoreError>;
}

impl<S: Store + ?Sized> Store for Box<S> {
    fn load_all(&mut self) -> Result<Entries, StoreError> {
        (**self).load_all()
    }

    fn commit(&mut self, writes: &Writes) -> Result<(), StoreError> {
        (**self).commit(writes)
    }
}

/// A store that lives as long as the process. Clones share what is stored, as two openings of one file would.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Mutex<Entries>>);

impl MemoryStore {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn load_all(&mut self) -> Result<Entries, StoreError> {
        Ok(self.entries().clone())
    }

    fn commit(&mut self, writes: &Writes) -> Result<(), StoreError> {
        writes.apply_to(&mut self.entries());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_store_conforms() {
        crate::conformance::check(MemoryStore::default, |store| store.clone());
    }

    #[test]
    fn values_are_never_printed() {
        let mut writes = Writes::default();
        writes.put("cell/x", Zeroizing::new(vec![0xab, 0xcd]));
        assert_eq!(format!("{writes:?}"), "Writes([Put(cell/x, 2 bytes)])");
    }
}
