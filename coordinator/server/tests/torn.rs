//! The coordinator's database after a power cut.

use std::path::Path;

use anyhow::Result;
use fleetkey_coordinator::SqliteStore;
use fleetkey_coordinator_core::{Store as _, Table, Write};
use fleetkey_kills::torn::{self, Change, Owner, State};
use fleetkey_vault::MasterKey;
use zeroize::Zeroizing;

struct Coordinator {
    master: MasterKey,
}

impl Owner for Coordinator {
    type Store = SqliteStore;

    fn tables(&self) -> usize {
        Table::ALL.len()
    }

    fn open(&self, path: &Path) -> Result<SqliteStore> {
        if path.exists() {
            Ok(SqliteStore::open(path, &self.master)?)
        } else {
            Ok(SqliteStore::create(path, &self.master, &[])?)
        }
    }

    fn commit(&self, store: &mut SqliteStore, changes: &[Change]) -> Result<()> {
        let write = |change: &Change| Write {
            table: Table::ALL[change.table],
            key: change.name.clone().into_bytes(),
            value: change.value.clone().map(Zeroizing::new),
        };
        Ok(store.commit(&changes.iter().map(write).collect::<Vec<_>>())?)
    }

    fn read(&self, store: &mut SqliteStore) -> Result<State> {
        let mut state = State::new();
        for (number, table) in Table::ALL.into_iter().enumerate() {
            for row in store.rows(table)? {
                state.insert((number, String::from_utf8(row.key)?), row.value.to_vec());
            }
        }
        Ok(state)
    }
}

#[test]
fn a_power_cut_costs_the_transactions_that_were_not_whole_and_no_other() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let coordinator = Coordinator { master: MasterKey::from_bytes(&std::array::from_fn(|n| n as u8)) };
    torn::check(&coordinator, directory.path(), 1)
}
