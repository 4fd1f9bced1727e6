//! The private halves of the key packages that the coordinator has in stock.

use std::collections::BTreeMap;

use fleetkey_mls::{KeyPackageRef, PrivateKeyPackage};

use crate::store::Writes;
use crate::stored::{Bytes, EntryKey, StoredError, StoredKeyPackage, decode, encode};

/// Private halves that are kept; the oldest goes first.
const MAX_STOCK: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct KeyPackages {
    /// In the order they were made.
    stock: BTreeMap<u64, PrivateKeyPackage>,
}

impl KeyPackages {
    pub(crate) fn restore(&mut self, reference: KeyPackageRef, bytes: &[u8]) -> Result<(), StoredError> {
        let key = EntryKey::KeyPackage(reference);
        let stored: StoredKeyPackage = decode(&key, bytes)?;
        let private = PrivateKeyPackage::from_bytes(&stored.private.0).map_err(|error| key.mls(error))?;
        if private.reference() != reference {
            return Err(key.damaged("it is another key package"));
        }
        self.stock.insert(stored.number, private);
        Ok(())
    }

    /// Takes one into stock, and the oldest out when there are too many.
    pub(crate) fn add(&mut self, private: PrivateKeyPackage, writes: &mut Writes) {
        while self.stock.len() >= MAX_STOCK
            && let Some((_, oldest)) = self.stock.pop_first()
        {
            writes.delete(EntryKey::KeyPackage(oldest.reference()).to_string());
        }
        let number = self.stock.last_key_value().map_or(0, |(number, _)| number + 1);
        let stored = StoredKeyPackage { number, private: Bytes(private.to_bytes()) };
        writes.put(EntryKey::KeyPackage(private.reference()).to_string(), encode(&stored));
        self.stock.insert(number, private);
    }

    pub(crate) fn get(&self, reference: KeyPackageRef) -> Option<&PrivateKeyPackage> {
        self.stock.values().find(|private| private.reference() == reference)
    }

    /// Takes one that a Welcome has used out of stock.
    pub(crate) fn use_up(&mut self, reference: KeyPackageRef, writes: &mut Writes) {
        self.stock.retain(|_, private| private.reference() != reference);
        writes.delete(EntryKey::KeyPackage(reference).to_string());
    }

    pub(crate) fn len(&self) -> usize {
        self.stock.len()
    }
}
