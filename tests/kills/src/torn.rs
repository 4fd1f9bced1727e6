//! Power cuts on a store in SQLite: copies of its files, torn the way a cut can leave them, opened again.
//!
//! A write-ahead log that was not written to its end must give up the transactions that are not in it whole, and no
//! other. A checkpoint that was not written to its end must cost nothing. What a store is, is its owner's to say: see
//! [`Owner`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::dice::Dice;

/// Transactions: enough for the log to be written back into the database, and begun anew.
const TRANSACTIONS: usize = 120;
/// Names that values are stored under, in every table.
const NAMES: usize = 12;
/// The longest value: several make a transaction that fills many pages.
const MAX_VALUE_BYTES: usize = 6_000;
/// How many torn copies are opened.
const TORN_LOGS: usize = 200;
const TORN_CHECKPOINTS: usize = 20;
/// A disk writes this or nothing.
const SECTOR: usize = 512;

const LOG_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// Values by table and name.
pub type State = BTreeMap<(usize, String), Vec<u8>>;

/// One change: a new value, or none any more.
#[derive(Debug, Clone)]
pub struct Change {
    /// The table, counted from zero.
    pub table: usize,
    /// The name.
    pub name: String,
    /// The value.
    pub value: Option<Vec<u8>>,
}

/// Whose store it is.
pub trait Owner {
    /// The store.
    type Store;

    /// How many tables it has.
    fn tables(&self) -> usize;

    /// Opens what is at `path`, which may be nothing yet.
    ///
    /// # Errors
    /// When it cannot be opened.
    fn open(&self, path: &Path) -> Result<Self::Store>;

    /// Carries out one transaction.
    ///
    /// # Errors
    /// When it is not.
    fn commit(&self, store: &mut Self::Store, changes: &[Change]) -> Result<()>;

    /// Everything that is stored by [`Self::commit`].
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, store: &mut Self::Store) -> Result<State>;
}

/// The files as they were after a transaction.
struct Moment {
    /// How many transactions are in them.
    transactions: usize,
    /// How many were in the database when the log was begun.
    begun_after: usize,
    /// Which transaction each commit in the log is; one that changed nothing is not there.
    commits: Vec<usize>,
    database: Vec<u8>,
    log: Vec<u8>,
}

/// Runs transactions on a new store in `directory`, and opens torn copies of it.
///
/// # Errors
/// The first copy that does not open, or does not hold what it should; with what was done to it.
pub fn check(owner: &impl Owner, directory: &Path, seed: u64) -> Result<()> {
    let mut dice = Dice::new(seed);
    let path = directory.join("store.db");
    // What makes a new store is another matter: closed once, it is all in the database.
    drop(owner.open(&path)?);
    let (states, moments) = run(owner, &path, &mut dice)?;

    let mut torn_logs = 0;
    let mut checkpoints = Vec::new();
    let mut begun_on: &[u8] = &[];
    let mut whole = Vec::new();
    for (at, moment) in moments.iter().enumerate() {
        if commit_ends(&moment.log)?.len() == 1 {
            begun_on = &moment.database;
        }
        if moment.database == begun_on {
            whole.push(moment);
        } else {
            // The log was just written back; it was flushed before, so nothing can be amiss with it.
            checkpoints.push((moment, &moments[at - 1].database));
        }
    }
    ensure!(!checkpoints.is_empty(), "no checkpoint in {TRANSACTIONS} transactions: make them larger");
    let copy = Copy { owner, path: directory.join("copy.db"), states: &states };
    while torn_logs < TORN_LOGS {
        let moment = dice.pick(&whole).context("a moment")?;
        let (log, what) = tear(&moment.log, &mut dice);
        copy.holds(&moment.database, &log, kept(moment, &log)?, dice.one_in(4))
            .with_context(|| format!("seed {seed}, after {} transactions, {what}", moment.transactions))?;
        torn_logs += 1;
    }
    for _ in 0..TORN_CHECKPOINTS {
        let (moment, before) = dice.pick(&checkpoints).context("a checkpoint")?;
        let database = half_written(before, &moment.database, &mut dice);
        copy.holds(&database, &moment.log, moment.transactions, dice.one_in(4)).with_context(|| {
            format!("seed {seed}, a checkpoint after {} transactions", moment.transactions)
        })?;
    }
    Ok(())
}

fn run(owner: &impl Owner, path: &Path, dice: &mut Dice) -> Result<(Vec<State>, Vec<Moment>)> {
    let mut store = owner.open(path)?;
    let mut states = vec![State::new()];
    let mut moments: Vec<Moment> = Vec::new();
    for transactions in 1..=TRANSACTIONS {
        let changes = changes(owner.tables(), dice);
        owner.commit(&mut store, &changes)?;
        let mut state = states.last().cloned().unwrap_or_default();
        for Change { table, name, value } in changes {
            match value {
                Some(value) => state.insert((table, name), value),
                None => state.remove(&(table, name)),
            };
        }
        states.push(state);
        let (database, log) = (fs::read(path)?, fs::read(log_of(path)).unwrap_or_default());
        if log.is_empty() {
            // Nothing was changed yet.
            continue;
        }
        let ends = commit_ends(&log)?.len();
        let (begun_after, mut commits) = match moments.last() {
            Some(last) if last.log[..LOG_HEADER] == log[..LOG_HEADER] => {
                (last.begun_after, last.commits.clone())
            }
            Some(_) | None => (transactions - 1, Vec::new()),
        };
        if ends > commits.len() {
            commits.push(transactions);
        }
        ensure!(ends == commits.len(), "{ends} commits in the log, {} transactions", commits.len());
        moments.push(Moment { transactions, begun_after, commits, database, log });
    }
    Ok((states, moments))
}

fn changes(tables: usize, dice: &mut Dice) -> Vec<Change> {
    let count = 1 + dice.below(12);
    let one = |_| {
        let (table, name) = (dice.below(tables), format!("name-{}", dice.below(NAMES)));
        let is_gone = dice.one_in(5);
        let (byte, length) = (dice.below(256), dice.below(MAX_VALUE_BYTES));
        let value = (!is_gone).then(|| vec![u8::try_from(byte).unwrap_or(0); length]);
        Change { table, name, value }
    };
    (0..count).map(one).collect()
}

struct Copy<'a, O> {
    owner: &'a O,
    path: PathBuf,
    states: &'a [State],
}

impl<O: Owner> Copy<'_, O> {
    /// Opens these files, which must hold exactly the first `transactions`, and take more of them where it `goes_on`.
    fn holds(&self, database: &[u8], log: &[u8], transactions: usize, goes_on: bool) -> Result<()> {
        fs::write(&self.path, database)?;
        fs::write(log_of(&self.path), log)?;
        let mut store = self.owner.open(&self.path).context("it does not open")?;
        let state = self.owner.read(&mut store).context("it does not read")?;
        // A transaction that changed nothing leaves no trace.
        if state != self.states[transactions] {
            let other = self.states.iter().position(|of| *of == state);
            let held = other.map_or("a mixture".to_owned(), |other| format!("transactions up to {other}"));
            anyhow::bail!("it holds {held}, not those up to {transactions}");
        }
        if !goes_on {
            drop(store);
            return self.clear();
        }
        let change = Change { table: 0, name: "after".to_owned(), value: Some(vec![7]) };
        self.owner.commit(&mut store, &[change]).context("it takes nothing more")?;
        drop(store);
        let mut store = self.owner.open(&self.path).context("it does not open again")?;
        let mut expected = state;
        expected.insert((0, "after".to_owned()), vec![7]);
        ensure!(self.owner.read(&mut store)? == expected, "it does not go on from what it held");
        drop(store);
        self.clear()
    }

    fn clear(&self) -> Result<()> {
        for path in [self.path.clone(), log_of(&self.path)] {
            if path.exists() {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn log_of(path: &Path) -> PathBuf {
    let mut path = OsString::from(path);
    path.push("-wal");
    path.into()
}

/// What a power cut may leave of a log, and what was done.
fn tear(log: &[u8], dice: &mut Dice) -> (Vec<u8>, String) {
    let mut torn = log.to_vec();
    // Half of the time at or beside a boundary of frames: that is where off-by-one errors live.
    let page = page_bytes(log);
    let frame = LOG_HEADER + dice.below(1 + log.len() / (FRAME_HEADER + page)) * (FRAME_HEADER + page);
    let beside = frame.saturating_add(dice.below(FRAME_HEADER * 2)).saturating_sub(FRAME_HEADER / 2);
    let at = if dice.one_in(2) { beside } else { dice.below(log.len()) }.min(log.len().saturating_sub(1));
    let end = match dice.below(4) {
        0 => {
            torn.truncate(at);
            return (torn, format!("cut at {at}"));
        }
        1 => at + 1,
        2 => at + SECTOR,
        _ => log.len(),
    }
    .min(log.len());
    let is_zeroed = dice.one_in(2);
    for byte in &mut torn[at..end] {
        let garbage = u8::try_from(1 + dice.below(255)).unwrap_or(1);
        *byte = if is_zeroed { 0 } else { *byte ^ garbage };
    }
    (torn, format!("{} from {at} to {end}", if is_zeroed { "zeroed" } else { "garbled" }))
}

/// How many transactions the files hold when the log is as torn as this: those before the log was begun, and those
/// whose frames all lie before the damage.
fn kept(moment: &Moment, torn: &[u8]) -> Result<usize> {
    let same = moment.log.iter().zip(torn).take_while(|(a, b)| a == b).count();
    let whole = commit_ends(&moment.log)?.iter().filter(|end| **end <= same).count();
    Ok(whole.checked_sub(1).map_or(moment.begun_after, |last| moment.commits[last]))
}

/// Where each transaction of the log's newest run ends (https://sqlite.org/fileformat2.html#the_write_ahead_log).
fn commit_ends(log: &[u8]) -> Result<Vec<usize>> {
    let salts = log.get(16..24).context("a log has a header")?;
    let frame_bytes = FRAME_HEADER + page_bytes(log);
    let mut ends = Vec::new();
    for (n, frame) in log[LOG_HEADER..].chunks_exact(frame_bytes).enumerate() {
        if &frame[8..16] != salts {
            break;
        }
        if frame[4..8] != [0; 4] {
            ends.push(LOG_HEADER + (n + 1) * frame_bytes);
        }
    }
    Ok(ends)
}

fn page_bytes(log: &[u8]) -> usize {
    let bytes = log.get(8..12).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes);
    // A log that is too short for a header has no pages either.
    if bytes == 0 { 4096 } else { bytes as usize }
}

/// A database that is being written back into: each sector is from before or from after.
fn half_written(before: &[u8], after: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut database = after.to_vec();
    if dice.one_in(2) {
        database.truncate(before.len().max(SECTOR));
    }
    for (old, new) in before.chunks(SECTOR).zip(database.chunks_mut(SECTOR)) {
        if old.len() == new.len() && dice.one_in(2) {
            new.copy_from_slice(old);
        }
    }
    database
}
