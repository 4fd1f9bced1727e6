//! The coordinator without a process: its writer on a store in memory, time that passes when it is told to, and what it
//! says handed over.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fleetkey_coordinator_core::records::{KeyRecord, Record as _};
use fleetkey_coordinator_core::writer::{AccessNews, Concluded};
use fleetkey_coordinator_core::{
    Access, Coordinator, MemoryStore, Policy, Row, Setup, Store, StoreError, Table, Timing, Write, Writer,
};
use fleetkey_identity::{FleetCa, FleetRoots, IdentityKey, Role, Validity};
use fleetkey_wire::{DeviceId, FleetId, Generation, GroupId, GroupSecret, KeyId, Millis, Now, Topic};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use super::device::{KEY_BYTES, KEY_LABEL};
use crate::scheme::{Stopped, failed};

const START_UNIX_SECONDS: u64 = 1_800_000_000;

/// The coordinator's store, without the Welcomes that were not seen to arrive: devices that do not live never say so,
/// and each Welcome is 12 KB.
#[derive(Debug, Clone, Default)]
pub(super) struct Rows(Arc<Mutex<MemoryStore>>);

impl Rows {
    fn memory(&self) -> MutexGuard<'_, MemoryStore> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Rows {
    fn rows(&mut self, table: Table) -> Result<Vec<Row>, StoreError> {
        self.memory().rows(table)
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let is_kept = |write: &Write| write.table != Table::Welcome;
        if writes.iter().all(is_kept) {
            return self.memory().commit(writes);
        }
        let kept: Vec<Write> = writes.iter().filter(|write| is_kept(write)).cloned().collect();
        self.memory().commit(&kept)
    }
}

/// What a decision led to.
pub(super) struct Decided {
    pub(super) access: Vec<Access>,
    pub(super) messages: Vec<(Topic, Vec<u8>)>,
}

/// The coordinator.
pub(super) struct Host {
    writer: Writer<Rows>,
    rows: Rows,
    setup: Setup,
    roots: FleetRoots,
    now: Now,
    rng: ChaCha20Rng,
}

impl Host {
    pub(super) fn new(timing: Timing) -> Result<Self, Stopped> {
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
        let mut rows = Rows::default();
        rows.commit(&Coordinator::initial_rows(now.unix_seconds)).map_err(failed(doing))?;
        let writer = open(&setup, rows.clone(), now, &mut rng)?.0;
        Ok(Self { writer, rows, setup, roots, now, rng })
    }

    /// Starts again from what is stored. Who may hear what.
    pub(super) fn restart(self, timing: Timing) -> Result<(Self, Vec<Access>), Stopped> {
        let Self { writer, rows, setup, roots, now, mut rng } = self;
        drop(writer);
        let setup = Setup { timing, ..setup };
        let (writer, access) = open(&setup, rows.clone(), now, &mut rng)?;
        Ok((Self { writer, rows, setup, roots, now, rng }, access))
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

    pub(super) fn enroll(&mut self, device: DeviceId, public_key: [u8; 32]) -> Result<(), Stopped> {
        let now = self.now;
        let (coordinator, _) = deciding(&mut self.writer, &mut self.rng)?;
        coordinator
            .enroll_device(device, &format!("device-{device}"), public_key, now)
            .map_err(failed("enrolling"))
    }

    pub(super) fn add(&mut self, group: GroupId, devices: &[DeviceId]) -> Result<(), Stopped> {
        let now = self.now;
        let (coordinator, rng) = deciding(&mut self.writer, &mut self.rng)?;
        coordinator.add_members(group, devices, now, rng).map_err(failed("adding devices")).map(drop)
    }

    /// Devices say something.
    pub(super) fn hear(&mut self, ups: &[(DeviceId, Vec<u8>)]) -> Result<Decided, Stopped> {
        let now = self.now;
        let (coordinator, rng) = deciding(&mut self.writer, &mut self.rng)?;
        for (device, payload) in ups {
            coordinator.handle_up(*device, payload, now, rng).map_err(failed("hearing a device"))?;
        }
        self.decided()
    }

    /// Time passes, and whatever is due is decided.
    pub(super) fn wait(&mut self, milliseconds: u64) -> Result<Decided, Stopped> {
        self.pass(milliseconds);
        let now = self.now;
        let (coordinator, rng) = deciding(&mut self.writer, &mut self.rng)?;
        coordinator.handle_timeout(now, rng);
        self.decided()
    }

    /// Time passes.
    pub(super) const fn pass(&mut self, milliseconds: u64) {
        let mono = self.now.mono.plus(milliseconds);
        self.now = Now { mono, unix_seconds: START_UNIX_SECONDS + mono.0 / 1_000 };
    }

    /// What is measured: decided, stored, and ready to be sent.
    pub(super) fn revoke(&mut self, device: DeviceId) -> Result<Decided, Stopped> {
        let now = self.now;
        let (coordinator, rng) = deciding(&mut self.writer, &mut self.rng)?;
        coordinator.revoke(&[device], "stolen", now, rng).map_err(failed("revoking"))?;
        self.decided()
    }

    fn decided(&mut self) -> Result<Decided, Stopped> {
        let concluded = self.conclude()?;
        let access = match concluded.access {
            AccessNews::Changes(access) | AccessNews::Everything(access) => access,
        };
        Ok(Decided { access, messages: self.take_messages() })
    }

    fn conclude(&mut self) -> Result<Concluded, Stopped> {
        self.writer.conclude(self.now, &mut |_, _| {}).map_err(failed("storing"))
    }

    /// Takes what is to be sent, as a connection would.
    pub(super) fn take_messages(&mut self) -> Vec<(Topic, Vec<u8>)> {
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
        let rows = self.rows.memory().rows(Table::GroupKey).map_err(failed(doing))?;
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
