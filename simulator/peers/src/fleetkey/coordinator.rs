//! The coordinator without a process: its writer on a store, time that passes when it is told to, and what it says handed
//! over. Whatever it does is done on one thread, and counted.
//!
//! Leaves the store to whoever brings it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fleetkey_coordinator_core::records::{KeyRecord, MemberRecord, Place, Record as _};
use fleetkey_coordinator_core::writer::{AccessNews, Concluded};
use fleetkey_coordinator_core::{
    Access, Coordinator, Policy, Row, Setup, Store, StoreError, Table, Timing, Write, Writer,
};
use fleetkey_identity::{FleetCa, FleetRoots, IdentityKey, Role, Validity};
use fleetkey_report::{cpu_of_this_thread, timed};
use fleetkey_wire::{CellId, DeviceId, FleetId, Generation, GroupId, GroupSecret, KeyId, Millis, Now, Topic};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use super::device::{KEY_BYTES, KEY_LABEL};
use crate::scheme::{Stopped, failed};

const START_UNIX_SECONDS: u64 = 1_800_000_000;

/// The coordinator's store, without the Welcomes that were not seen to arrive: devices that do not live never say so,
/// and each Welcome is 12 KB.
#[derive(Clone)]
pub(super) struct Rows(Arc<Mutex<Box<dyn Store + Send>>>);

impl Rows {
    pub(super) fn of(store: Box<dyn Store + Send>) -> Self {
        Self(Arc::new(Mutex::new(store)))
    }

    fn store(&self) -> MutexGuard<'_, Box<dyn Store + Send>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rows")
    }
}

impl Store for Rows {
    fn rows(&mut self, table: Table) -> Result<Vec<Row>, StoreError> {
        self.store().rows(table)
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let is_kept = |write: &Write| write.table != Table::Welcome;
        if writes.iter().all(is_kept) {
            return self.store().commit(writes);
        }
        let kept: Vec<Write> = writes.iter().filter(|write| is_kept(write)).cloned().collect();
        self.store().commit(&kept)
    }
}

/// What a decision led to.
#[derive(Default)]
pub(super) struct Decided {
    pub(super) access: Vec<Access>,
    pub(super) messages: Vec<(Topic, Vec<u8>)>,
    pub(super) steps: Steps,
}

/// What a decision has cost: processor time, but for the last.
#[derive(Debug, Clone, Copy, Default)]
pub struct Steps {
    /// Deciding: signatures, MLS, wraps, encoding.
    pub decide: Duration,
    /// Storing, in one transaction.
    pub store: Duration,
    /// Taking each message, and noting that it was taken.
    pub hand_over: Duration,
    /// From the command to the last message, as time passes: with the wait for the disk.
    pub elapsed: Duration,
}

impl Steps {
    /// All of the processor time.
    pub fn cpu(&self) -> Duration {
        self.decide + self.store + self.hand_over
    }
}

/// The coordinator.
pub(super) struct Host {
    writer: Writer<Rows>,
    rows: Rows,
    setup: Setup,
    roots: FleetRoots,
    now: Now,
    rng: ChaCha20Rng,
    /// Processor time since it was made.
    cpu: Duration,
}

impl Host {
    pub(super) fn new(timing: Timing, store: Box<dyn Store + Send>) -> Result<Self, Stopped> {
        let doing = "starting the coordinator";
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let now = Now { mono: Millis(1_000), unix_seconds: START_UNIX_SECONDS };
        let fleet = FleetId::random(&mut rng);
        let validity = Validity::without_end(START_UNIX_SECONDS as i64 - 60);
        let ca = FleetCa::create(fleet, &mut rng, validity).map_err(failed(doing))?;
        let identity = IdentityKey::generate(&mut rng);
        let role = Role::Coordinator { generation: Generation(1) };
        let leaf = ca.issue(&role, &identity.public_key(), &[], validity).map_err(failed(doing))?;
        let roots = FleetRoots::new(&[ca.certificate_der().to_vec()]).map_err(failed(doing))?;
        let key_id = KeyId::of_certificate(&leaf);
        let setup = Setup { fleet, identity, chain: vec![leaf], generation: Generation(1), key_id, timing };
        let mut rows = Rows::of(store);
        rows.commit(&Coordinator::initial_rows(now.unix_seconds)).map_err(failed(doing))?;
        let writer = open(&setup, rows.clone(), now, &mut rng)?.0;
        Ok(Self { writer, rows, setup, roots, now, rng, cpu: Duration::ZERO })
    }

    /// Starts again from what is stored. Who may hear what.
    pub(super) fn restart(self, timing: Timing) -> Result<(Self, Vec<Access>), Stopped> {
        let Self { writer, rows, setup, roots, now, mut rng, cpu } = self;
        drop(writer);
        let setup = Setup { timing, ..setup };
        let (loaded, opened) = timed(|| open(&setup, rows.clone(), now, &mut rng));
        let (writer, access) = opened?;
        Ok((Self { writer, rows, setup, roots, now, rng, cpu: cpu + loaded }, access))
    }

    /// Its processor time so far.
    pub(super) const fn cpu(&self) -> Duration {
        self.cpu
    }

    /// Ends it. Who it was.
    pub(super) fn into_setup(self) -> Setup {
        self.setup
    }

    pub(super) const fn now(&self) -> Now {
        self.now
    }

    pub(super) const fn fleet(&self) -> FleetId {
        self.setup.fleet
    }

    pub(super) const fn roots(&self) -> &FleetRoots {
        &self.roots
    }

    pub(super) fn chain(&self) -> &[Vec<u8>] {
        &self.setup.chain
    }

    pub(super) fn create_group(&mut self) -> Result<GroupId, Stopped> {
        let now = self.now;
        let (coordinator, rng) = deciding(&mut self.writer, &mut self.rng)?;
        let group = coordinator.create_group("everybody", Policy::default(), now, rng);
        let group = group.map_err(failed("creating the group"))?;
        self.conclude()?;
        Ok(group)
    }

    /// Enrols devices by their ids and keys.
    pub(super) fn enroll(&mut self, devices: &[(DeviceId, [u8; 32])]) -> Result<(), Stopped> {
        let enrolled = self.decide(|coordinator, now, _| {
            devices.iter().try_for_each(|(device, public_key)| {
                coordinator
                    .enroll_device(*device, &format!("device-{device}"), *public_key, now)
                    .map_err(failed("enrolling"))
            })
        });
        enrolled.map(drop)
    }

    /// Wants devices in a group.
    pub(super) fn add(&mut self, group: GroupId, devices: &[DeviceId]) -> Result<Decided, Stopped> {
        self.decide(|coordinator, now, rng| {
            coordinator.add_members(group, devices, now, rng).map_err(failed("adding devices")).map(drop)
        })
    }

    /// Who is in which cell of a group.
    pub(super) fn places(&mut self, group: GroupId) -> Result<Vec<(DeviceId, CellId)>, Stopped> {
        let (coordinator, _) = deciding(&mut self.writer, &mut self.rng)?;
        let place = |member: &MemberRecord| match member.place {
            Place::In { cell } => Some((member.device, cell)),
            Place::Wanted => None,
        };
        Ok(coordinator.members(group).filter_map(place).collect())
    }

    /// Devices say something.
    pub(super) fn hear(&mut self, ups: &[(DeviceId, Vec<u8>)]) -> Result<Decided, Stopped> {
        self.decide(|coordinator, now, rng| {
            ups.iter().try_for_each(|(device, payload)| {
                coordinator.handle_up(*device, payload, now, rng).map_err(failed("hearing a device"))
            })
        })
    }

    /// Time passes, and whatever is due is decided, in as many transactions as that takes.
    pub(super) fn wait(&mut self, milliseconds: u64) -> Result<Decided, Stopped> {
        self.pass(milliseconds);
        let mut all = Decided::default();
        loop {
            let mut next = None;
            let decided = self.decide(|coordinator, now, rng| {
                coordinator.handle_timeout(now, rng);
                next = coordinator.poll_timeout();
                Ok(())
            })?;
            all.access.extend(decided.access);
            all.messages.extend(decided.messages);
            if next.is_none_or(|next| next > self.now.mono) {
                return Ok(Decided { steps: decided.steps, ..all });
            }
        }
    }

    /// Time passes.
    pub(super) const fn pass(&mut self, milliseconds: u64) {
        let mono = self.now.mono.plus(milliseconds);
        self.now = Now { mono, unix_seconds: START_UNIX_SECONDS + mono.0 / 1_000 };
    }

    /// What is measured: decided, stored, and handed over.
    pub(super) fn revoke(&mut self, device: DeviceId) -> Result<Decided, Stopped> {
        self.decide(|coordinator, now, rng| {
            coordinator.revoke(&[device], "stolen", now, rng).map_err(failed("revoking"))
        })
    }

    /// The same without anybody who goes: no cell commits.
    pub(super) fn rekey(&mut self, group: GroupId) -> Result<Decided, Stopped> {
        self.decide(|coordinator, now, rng| {
            coordinator.rekey(group, now, rng).map_err(failed("rekeying")).map(drop)
        })
    }

    /// Decides, stores, and takes what is to be sent, as a connection would.
    fn decide(
        &mut self,
        act: impl FnOnce(&mut Coordinator, Now, &mut ChaCha20Rng) -> Result<(), Stopped> + Send,
    ) -> Result<Decided, Stopped> {
        let (cpu, decided) = timed(|| {
            let (began, began_at) = (cpu_of_this_thread(), Instant::now());
            let (coordinator, rng) = deciding(&mut self.writer, &mut self.rng)?;
            act(coordinator, self.now, rng)?;
            let decided = cpu_of_this_thread();
            let concluded = self.conclude()?;
            let stored = cpu_of_this_thread();
            let messages = self.take_messages();
            let steps = Steps {
                decide: decided.saturating_sub(began),
                store: stored.saturating_sub(decided),
                hand_over: cpu_of_this_thread().saturating_sub(stored),
                elapsed: began_at.elapsed(),
            };
            let access = match concluded.access {
                AccessNews::Changes(access) | AccessNews::Everything(access) => access,
            };
            Ok(Decided { access, messages, steps })
        });
        self.cpu += cpu;
        decided
    }

    fn conclude(&mut self) -> Result<Concluded, Stopped> {
        self.writer.conclude(self.now, &mut |_, _| {}).map_err(failed("storing"))
    }

    fn take_messages(&mut self) -> Vec<(Topic, Vec<u8>)> {
        let mut messages = Vec::new();
        while let Some(message) = self.writer.next_message() {
            if let Some(ticket) = message.ticket {
                self.writer.settle(ticket, self.now);
            }
            messages.push((message.topic, message.payload));
        }
        messages
    }

    /// What an application would make of the group's newest secret.
    pub(super) fn key(&self, group: GroupId) -> Result<Vec<u8>, Stopped> {
        let doing = "reading the group's key";
        let rows = self.rows.store().rows(Table::GroupKey).map_err(failed(doing))?;
        let records = rows.iter().filter_map(|row| KeyRecord::read(row).ok());
        let newest = records.filter(|record| record.group == group).max_by_key(|record| record.key_epoch);
        let newest = newest.ok_or_else(|| failed(doing)("there is none"))?;
        Ok(GroupSecret::from_bytes(newest.secret).app_key(KEY_LABEL, &[], KEY_BYTES).to_vec())
    }
}

/// The coordinator, and randomness for it.
fn deciding<'a>(
    writer: &'a mut Writer<Rows>,
    rng: &'a mut ChaCha20Rng,
) -> Result<(&'a mut Coordinator, &'a mut ChaCha20Rng), Stopped> {
    let coordinator = writer.coordinator().ok_or_else(|| failed("deciding")("its store has failed"))?;
    Ok((coordinator, rng))
}

fn open(
    setup: &Setup,
    rows: Rows,
    now: Now,
    rng: &mut ChaCha20Rng,
) -> Result<(Writer<Rows>, Vec<Access>), Stopped> {
    let doing = "starting the coordinator";
    let (mut writer, concluded) =
        Writer::open(setup.clone(), rows, now, rng, &mut |_, _| {}).map_err(failed(doing))?;
    writer.set_connected(true);
    let concluded = concluded.ok_or_else(|| failed(doing)("its store has failed"))?;
    let access = match concluded.access {
        AccessNews::Changes(access) | AccessNews::Everything(access) => access,
    };
    Ok((writer, access))
}
