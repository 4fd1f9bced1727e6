//! What every decision shares: who the coordinator is, what it has promised to do so far, and what it counts.

use std::collections::BTreeMap;

use fleetkey_identity::IdentityKey;
use fleetkey_mls::LeafSigner;
use fleetkey_wire::link::StartSecret;
use fleetkey_wire::{
    CellFrame, CellId, DeviceId, FleetId, Generation, KeyId, Now, SignedStatement, Statement, Topic,
};

use crate::actor::Actor;
use crate::effects::{Access, Effects, Event, Publish};
use crate::error::Poisoned;
use crate::records::{AuditRecord, Deed, MetaRecord, OutboxRecord, Outgoing, Record, Scope, Superseded};
use crate::strangers::Strangers;

/// Who a coordinator is, and how it behaves where no group's policy says so.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The fleet.
    pub fleet: FleetId,
    /// The coordinator's identity key, shared by all coordinators of the fleet.
    pub identity: IdentityKey,
    /// Its certificate chain, DER, leaf first, without the root.
    pub chain: Vec<Vec<u8>>,
    /// The certificate's generation.
    pub generation: Generation,
    /// The certificate's key id.
    pub key_id: KeyId,
    /// Intervals.
    pub timing: Timing,
}

/// Intervals that hold for the whole fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How often a device says hello without being asked.
    pub hello_interval_seconds: u32,
    /// After how long without a fresh answer a device stops sealing.
    pub max_silence_seconds: u32,
    /// How long after a statement stragglers that are online are sent it again, at first; doubles each time.
    pub resend_milliseconds: u64,
    /// The longest that this doubling goes.
    pub resend_max_milliseconds: u64,
    /// How long a rekey for joins waits for confirmations before the next may follow.
    pub in_flight_milliseconds: u64,
    /// How long Update proposals are collected before a commit covers them.
    pub update_window_milliseconds: u64,
    /// After how long a device that needed a fresh join may have another; doubles each time.
    pub fresh_join_backoff_seconds: u64,
    /// Fresh joins within a day that one device may have before it is quarantined.
    pub fresh_joins_per_day: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            hello_interval_seconds: 30 * 60,
            max_silence_seconds: 24 * 3600,
            resend_milliseconds: 3_000,
            resend_max_milliseconds: 5 * 60_000,
            in_flight_milliseconds: 10_000,
            update_window_milliseconds: 10_000,
            fresh_join_backoff_seconds: 10,
            fresh_joins_per_day: 10,
        }
    }
}

/// The shared part of the coordinator.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) setup: Setup,
    pub(crate) leaf_signer: LeafSigner,
    pub(crate) start: StartSecret,
    pub(crate) meta: MetaRecord,
    pub(crate) signatures: u64,
    pub(crate) refusals: BTreeMap<&'static str, u64>,
    pub(crate) strangers: Strangers,
    /// Whose doing is what is decided now.
    pub(crate) actor: Actor,
    /// Where whoever acts may act.
    pub(crate) scope: Scope,
    next_outbox: u64,
    /// Whether something was entered into the audit log that the stored head does not tell of yet.
    has_audited: bool,
    effects: Effects,
    poisoned: Option<Poisoned>,
}

impl Context {
    pub(crate) fn new(setup: Setup, start: StartSecret, meta: MetaRecord, next_outbox: u64) -> Self {
        let leaf_signer = LeafSigner::new(&setup.identity.seed());
        Self {
            setup,
            leaf_signer,
            start,
            meta,
            signatures: 0,
            refusals: BTreeMap::new(),
            strangers: Strangers::default(),
            actor: Actor::Coordinator,
            scope: Scope::Fleet,
            next_outbox,
            has_audited: false,
            effects: Effects::default(),
            poisoned: None,
        }
    }

    /// Whether a device has shown that this coordinator is not the only one, or not the newest.
    pub(crate) const fn is_superseded(&self) -> bool {
        self.meta.superseded.is_some()
    }

    /// From here on nothing is issued, until an operator restores the database.
    pub(crate) fn supersede(&mut self, by: Superseded) {
        self.meta.superseded = Some(by);
        self.effects.writes.push(self.meta.put());
    }

    pub(crate) fn fleet(&self) -> FleetId {
        self.setup.fleet
    }

    /// The one place where the coordinator signs outside MLS.
    pub(crate) fn sign(&mut self, statement: Statement) -> SignedStatement {
        self.signatures += 1;
        statement.sign(self.setup.fleet, self.setup.key_id, self.setup.identity.signing_key())
    }

    pub(crate) fn put(&mut self, record: &impl Record) {
        self.effects.writes.push(record.put());
    }

    pub(crate) fn delete(&mut self, record: &impl Record) {
        self.effects.writes.push(record.delete());
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.effects.events.push(event);
    }

    pub(crate) fn access(&mut self, access: Access) {
        self.effects.access.push(access);
    }

    pub(crate) fn count(&mut self, name: &'static str) {
        *self.refusals.entry(name).or_default() += 1;
    }

    /// Enters what the actor did into the audit log, in the transaction of what it tells.
    pub(crate) fn audit(&mut self, now: Now, action: &str, subject: impl ToString, detail: impl ToString) {
        let deed = Deed {
            unix_seconds: now.unix_seconds,
            who: self.actor.to_string(),
            action: action.to_owned(),
            subject: subject.to_string(),
            detail: detail.to_string(),
        };
        let entry = AuditRecord::following(self.meta.audit, deed);
        self.meta.audit = entry.head();
        self.has_audited = true;
        self.put(&entry);
    }

    /// A frame for a cell's topic, through the outbox: it goes out even if the process dies first.
    pub(crate) fn publish_cell(&mut self, cell: CellId, frame: &CellFrame) {
        let frame = frame.encode();
        let outbox = self.outbox(Outgoing::Cell { cell, frame: frame.clone() });
        self.resume_cell(cell, frame, outbox);
    }

    /// The same again, for a frame that is in the outbox already.
    pub(crate) fn resume_cell(&mut self, cell: CellId, frame: Vec<u8>, outbox: u64) {
        let topic = Topic::Cell { fleet: self.fleet(), cell };
        self.effects.publishes.push(Publish { topic, payload: frame, outbox: Some(outbox) });
    }

    /// A sealed frame for a device's `down` topic.
    pub(crate) fn publish_down(&mut self, device: DeviceId, payload: Vec<u8>, outbox: Option<u64>) {
        let topic = Topic::Down { fleet: self.fleet(), device };
        self.effects.publishes.push(Publish { topic, payload, outbox });
    }

    /// Takes a row of the outbox for something that must survive a crash.
    pub(crate) fn outbox(&mut self, outgoing: Outgoing) -> u64 {
        let number = self.next_outbox;
        self.next_outbox += 1;
        self.put(&OutboxRecord { number, outgoing });
        number
    }

    /// From here on nothing of this coordinator counts until it is loaded again.
    pub(crate) fn poison(&mut self, why: impl ToString) {
        self.poisoned.get_or_insert_with(|| Poisoned(why.to_string()));
    }

    pub(crate) fn take_effects(&mut self) -> Result<Effects, Poisoned> {
        if let Some(poisoned) = &self.poisoned {
            return Err(poisoned.clone());
        }
        if std::mem::take(&mut self.has_audited) {
            self.effects.writes.push(self.meta.put());
        }
        Ok(std::mem::take(&mut self.effects))
    }
}
