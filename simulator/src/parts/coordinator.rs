//! The part that is a coordinator by itself: what starting on a fleet's database takes, and what it holds in memory then.

use std::io;
use std::time::Instant;

use anyhow::Context as _;
use fleetkey_coordinator::SqliteStore;
use fleetkey_coordinator_core::{Setup, Timing, Writer};
use fleetkey_identity::IdentityKey;
use fleetkey_vault::MasterKey;
use fleetkey_wire::{Generation, KeyId, Millis, Now};
use rand_core::OsRng;

use super::orders::{CoordinatorBegin, CoordinatorStarted, hear, say};
use super::usage::Usage;

/// Starts, says what that took, and ends.
///
/// # Errors
/// When it is told nonsense, or the database cannot be used.
pub fn run() -> anyhow::Result<()> {
    let Some(begin) = hear::<CoordinatorBegin>(&mut io::stdin().lock())? else { return Ok(()) };
    let leaf = begin.chain.first().context("the coordinator's chain is empty")?;
    let setup = Setup {
        fleet: begin.fleet,
        identity: IdentityKey::from_seed(&begin.seed),
        generation: Generation(begin.generation),
        key_id: KeyId::of_certificate(leaf),
        chain: begin.chain.clone(),
        timing: Timing::default(),
    };
    let master = MasterKey::from_bytes(&begin.master_key);
    let before = Usage::of_this_process();
    let started_at = Instant::now();
    let store = SqliteStore::open(&begin.database, &master)?;
    let now = Now { mono: Millis(0), unix_seconds: fleetkey_coordinator::unix_seconds() };
    let (writer, concluded) = Writer::open(setup, store, now, &mut OsRng, &mut |_, _| {})?;
    let elapsed = started_at.elapsed();
    concluded.context("its first transaction failed")?;
    let after = Usage::of_this_process();
    let started = CoordinatorStarted {
        elapsed_microseconds: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
        cpu_microseconds: after.cpu_microseconds.saturating_sub(before.cpu_microseconds),
        empty_bytes: before.resident_bytes,
        resident_bytes: after.resident_bytes,
        peak_resident_bytes: after.peak_resident_bytes,
    };
    say(&mut io::stdout().lock(), &started)?;
    drop(writer);
    Ok(())
}
