//! A device's key store after a power cut.

use std::path::Path;

use anyhow::{Context, Result};
use fleetkey_agent::SqliteStore;
use fleetkey_agent_core::{Store as _, Writes};
use fleetkey_kills::torn::{self, Change, Owner, State};
use fleetkey_vault::MasterKey;
use zeroize::Zeroizing;

struct Device {
    master: MasterKey,
}

impl Owner for Device {
    type Store = SqliteStore;

    fn tables(&self) -> usize {
        // Names with a prefix each.
        4
    }

    fn open(&self, path: &Path) -> Result<SqliteStore> {
        Ok(SqliteStore::open(path, &self.master)?)
    }

    fn commit(&self, store: &mut SqliteStore, changes: &[Change]) -> Result<()> {
        let mut writes = Writes::default();
        for Change { table, name, value } in changes {
            let key = format!("{table}/{name}");
            match value {
                Some(value) => writes.put(key, Zeroizing::new(value.clone())),
                None => writes.delete(key),
            }
        }
        Ok(store.commit(&writes)?)
    }

    fn read(&self, store: &mut SqliteStore) -> Result<State> {
        let entry = |(key, value): (String, Zeroizing<Vec<u8>>)| {
            let (table, name) = key.split_once('/').context("a table and a name")?;
            Ok(((table.parse()?, name.to_owned()), value.to_vec()))
        };
        store.load_all()?.into_iter().map(entry).collect()
    }
}

#[test]
fn a_power_cut_costs_the_transactions_that_were_not_whole_and_no_other() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let device = Device { master: MasterKey::from_bytes(&std::array::from_fn(|n| n as u8)) };
    torn::check(&device, directory.path(), 1)
}
