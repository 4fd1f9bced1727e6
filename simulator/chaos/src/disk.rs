//! Disks that survive their process and fail when they are told to.
//!
//! A transaction holds whole or not at all, as both stores promise (their own tests cut and garble real files); what is
//! simulated is everything around that: a process that dies before its transaction, in the middle of it, or after it
//! and before it knows, and a disk that is full.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use fleetkey_agent_core::{Entries, StoreError as AgentStoreError, Writes};
use fleetkey_coordinator_core::{MemoryStore, Row, Store, StoreError, Table, Write};

/// Where a process dies, the next time that it stores something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CrashPoint {
    /// Before the transaction.
    Before,
    /// While it is written: nothing of it holds.
    Torn,
    /// After it, before the process knows.
    After,
    /// After it, and after so many of the messages that follow from it.
    Between(u32),
}

/// What both kinds of disk have in common.
#[derive(Debug, Default)]
pub(crate) struct Health {
    pub(crate) is_full: Cell<bool>,
    crash: Cell<Option<CrashPoint>>,
    is_dead: Cell<bool>,
    commits: Cell<u64>,
}

enum Verdict {
    Store,
    StoreAndDie,
    Refuse(&'static str),
}

impl Health {
    /// The process dies at `point` of its next transaction.
    pub(crate) fn arm(&self, point: CrashPoint) {
        self.crash.set(Some(point));
    }

    /// It does not die, after all.
    pub(crate) fn disarm(&self) {
        self.crash.set(None);
    }

    /// Whether the process that uses the disk has died.
    pub(crate) fn is_dead(&self) -> bool {
        self.is_dead.get()
    }

    /// How many messages leave after the transaction that was just stored, should the process die among them.
    pub(crate) fn dies_after_messages(&self) -> Option<u32> {
        match self.crash.get() {
            Some(CrashPoint::Between(messages)) => {
                self.crash.set(None);
                Some(messages)
            }
            Some(CrashPoint::Before | CrashPoint::Torn | CrashPoint::After) | None => None,
        }
    }

    /// A new process opens the disk.
    pub(crate) fn revive(&self) {
        self.is_dead.set(false);
        self.crash.set(None);
    }

    /// Transactions so far.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.get()
    }

    fn judge(&self) -> Verdict {
        if self.is_dead.get() {
            return Verdict::Refuse("the process is dead");
        }
        if self.is_full.get() {
            return Verdict::Refuse("no space left on device");
        }
        match self.crash.get() {
            Some(CrashPoint::Before | CrashPoint::Torn) => {
                self.is_dead.set(true);
                Verdict::Refuse("killed")
            }
            Some(CrashPoint::After) => Verdict::StoreAndDie,
            Some(CrashPoint::Between(_)) | None => Verdict::Store,
        }
    }

    fn stored(&self) {
        self.commits.set(self.commits.get() + 1);
    }
}

/// The coordinator's disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct CoordinatorDisk(Rc<CoordinatorPlatter>);

#[derive(Debug, Default)]
struct CoordinatorPlatter {
    health: Health,
    rows: RefCell<MemoryStore>,
    /// The tables that the last transaction changed, but for rows that were deleted from the outbox.
    touched: RefCell<Vec<Table>>,
    /// Cells that were put where there was none, since somebody asked.
    new_cells: RefCell<Vec<Vec<u8>>>,
}

impl CoordinatorDisk {
    pub(crate) fn holding(rows: MemoryStore) -> Self {
        Self(Rc::new(CoordinatorPlatter { rows: RefCell::new(rows), ..CoordinatorPlatter::default() }))
    }

    pub(crate) fn health(&self) -> &Health {
        &self.0.health
    }

    /// What is stored, as another disk would hold it after copying.
    pub(crate) fn image(&self) -> MemoryStore {
        self.0.rows.borrow().clone()
    }

    /// The cells that are new since this was asked last.
    pub(crate) fn take_new_cells(&self) -> Vec<Vec<u8>> {
        self.0.new_cells.take()
    }

    /// What the last transaction changed.
    pub(crate) fn touched(&self) -> Vec<Table> {
        self.0.touched.borrow().clone()
    }
}

impl CoordinatorDisk {
    fn note_new_cells(&self, writes: &[Write]) -> Result<(), StoreError> {
        let mut put = writes
            .iter()
            .filter(|write| write.table == Table::Cell && write.value.is_some())
            .map(|write| write.key.clone())
            .peekable();
        if put.peek().is_none() {
            return Ok(());
        }
        let known: BTreeSet<Vec<u8>> =
            self.0.rows.borrow_mut().rows(Table::Cell)?.into_iter().map(|row| row.key).collect();
        let new: BTreeSet<Vec<u8>> = put.filter(|key| !known.contains(key)).collect();
        self.0.new_cells.borrow_mut().extend(new);
        Ok(())
    }
}

impl Store for CoordinatorDisk {
    fn rows(&mut self, table: Table) -> Result<Vec<Row>, StoreError> {
        self.0.rows.borrow_mut().rows(table)
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let refuse = |why: &str| Err(StoreError::Failed { doing: "commit a transaction", why: why.into() });
        let verdict = self.0.health.judge();
        if let Verdict::Refuse(why) = verdict {
            return refuse(why);
        }
        self.note_new_cells(writes)?;
        self.0.rows.borrow_mut().commit(writes)?;
        self.0.health.stored();
        let is_settling = |write: &Write| write.table == Table::Outbox && write.value.is_none();
        *self.0.touched.borrow_mut() =
            writes.iter().filter(|write| !is_settling(write)).map(|write| write.table).collect();
        if matches!(verdict, Verdict::StoreAndDie) {
            self.0.health.is_dead.set(true);
            return refuse("killed");
        }
        Ok(())
    }
}

/// A device's disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeviceDisk(Rc<DevicePlatter>);

#[derive(Debug, Default)]
struct DevicePlatter {
    health: Health,
    entries: RefCell<Entries>,
    touched: RefCell<Vec<String>>,
}

impl DeviceDisk {
    pub(crate) fn holding(entries: Entries) -> Self {
        Self(Rc::new(DevicePlatter { entries: RefCell::new(entries), ..DevicePlatter::default() }))
    }

    pub(crate) fn health(&self) -> &Health {
        &self.0.health
    }

    pub(crate) fn image(&self) -> Entries {
        self.0.entries.borrow().clone()
    }

    /// The keys that the last transaction changed.
    pub(crate) fn touched(&self) -> Vec<String> {
        self.0.touched.borrow().clone()
    }
}

impl fleetkey_agent_core::Store for DeviceDisk {
    fn load_all(&mut self) -> Result<Entries, AgentStoreError> {
        Ok(self.image())
    }

    fn commit(&mut self, writes: &Writes) -> Result<(), AgentStoreError> {
        let refuse =
            |why: &str| Err(AgentStoreError { doing: "commit a transaction", reason: why.to_owned() });
        let verdict = self.0.health.judge();
        if let Verdict::Refuse(why) = verdict {
            return refuse(why);
        }
        writes.apply_to(&mut self.0.entries.borrow_mut());
        self.0.health.stored();
        *self.0.touched.borrow_mut() = writes
            .iter()
            .map(|write| match write {
                fleetkey_agent_core::Write::Put { key, .. } | fleetkey_agent_core::Write::Delete { key } => {
                    key.clone()
                }
            })
            .collect();
        if matches!(verdict, Verdict::StoreAndDie) {
            self.0.health.is_dead.set(true);
            return refuse("killed");
        }
        Ok(())
    }
}
