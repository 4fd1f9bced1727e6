//! One group: its key, its members, its cells.
//!
//! The parts of the job lie in files of their own: [`commit`] makes the one transaction in which cells and the
//! group's key move; [`admit`] and [`remove`] plan it for joins and removals, and [`flight`] says whom joins wait for;
//! [`rotate`], [`renew`] and [`resend`] act on time, as does [`deadline`]; [`confirm`] and [`catch_up`] act on what devices say; [`psk`] keeps out who lacks
//! the pre-shared key. Leaves devices and their links to
//! [`crate::device`], and commands that touch several groups to [`crate::coordinator`].

pub(crate) mod admit;
pub(crate) mod catch_up;
pub(crate) mod commit;
pub(crate) mod confirm;
pub(crate) mod deadline;
mod flight;
mod issued;
pub(crate) mod psk;
pub(crate) mod remove;
pub(crate) mod renew;
pub(crate) mod resend;
pub(crate) mod rotate;

use std::collections::{BTreeMap, BTreeSet};

use fleetkey_mls::{CellContext, ManagedCell};
use fleetkey_wire::wrap::{WrapContext, wrap};
use fleetkey_wire::{
    CellEpoch, CellFrame, CellId, DeviceId, GroupId, GroupSecret, KeyEpoch, Millis, Now, Psk, ShortDigest,
    SignedStatement, StatementAndWrap,
};

use crate::context::Context;
use crate::device::Device;
use crate::policy::Policy;
use crate::records::{
    CellRecord, CommitRecord, GroupRecord, KeyRecord, MemberRecord, Place, Rotation, WelcomeRecord,
};
use crate::store::StoreError;

/// All devices, by id.
pub(crate) type Devices = BTreeMap<DeviceId, Device>;

/// Commits of a cell that are kept for members that missed them.
const KEPT_COMMITS: usize = 16;
/// How often deadlines of the calendar are looked at.
const MIN_TICK_SECONDS: u64 = 1;
const MAX_TICK_SECONDS: u64 = 30;

/// A live group secret with the newest statement on it.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) secret: GroupSecret,
    pub(crate) statement: SignedStatement,
}

/// One device in the group.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) record: MemberRecord,
}

impl Member {
    pub(crate) const fn cell(&self) -> Option<CellId> {
        match self.record.place {
            Place::Wanted => None,
            Place::In { cell } => Some(cell),
        }
    }
}

/// One cell, with what devices may still need of its past.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) managed: ManagedCell,
    pub(crate) last_path_unix_seconds: u64,
    pub(crate) commits: BTreeMap<CellEpoch, CommitRecord>,
    pub(crate) welcomes: BTreeMap<DeviceId, PendingWelcome>,
    /// Members that were sent commits again, from which epoch on and how often, since this start.
    pub(crate) replayed: BTreeMap<DeviceId, (CellEpoch, u8)>,
    pub(crate) renewal: Option<renew::Renewal>,
}

/// A Welcome that has not been seen to arrive.
#[derive(Debug)]
pub(crate) struct PendingWelcome {
    pub(crate) record: WelcomeRecord,
    /// How often it was sent again since this start.
    pub(crate) resent: u8,
}

impl Cell {
    pub(crate) fn id(&self) -> CellId {
        self.managed.context().cell
    }

    /// When it is to have its next commit with a path.
    fn renewal_due(&self, policy: &Policy) -> u64 {
        // Between 80 and 95 % of the age allowed, so that cells made together do not all renew at once.
        let share = 80 + u64::from(self.id().as_bytes()[0]) % 16;
        self.last_path_unix_seconds.saturating_add(policy.cell_max_age_seconds.saturating_mul(share) / 100)
    }

    /// Writes the cell down as it is now.
    pub(crate) fn put(&self, context: &mut Context) {
        context.put(&CellRecord {
            id: self.id(),
            group: self.managed.context().group,
            last_path_unix_seconds: self.last_path_unix_seconds,
            snapshot: self.managed.snapshot().to_vec(),
        });
    }

    /// Keeps a commit for those who miss it, and lets the oldest go.
    fn keep(&mut self, context: &mut Context, commit: CommitRecord) {
        context.put(&commit);
        self.commits.insert(commit.epoch, commit);
        while self.commits.len() > KEPT_COMMITS {
            if let Some((_, oldest)) = self.commits.pop_first() {
                context.delete(&oldest);
            }
        }
    }

    /// The Welcome of `device` has served its purpose.
    pub(crate) fn forget_welcome(&mut self, context: &mut Context, device: DeviceId) {
        if let Some(welcome) = self.welcomes.remove(&device) {
            context.delete(&welcome.record);
        }
    }
}

/// One group.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) record: GroupRecord,
    /// The live secrets: the one to seal with, the former one while a rotation overlaps, the next while it is
    /// handed out. The last is the one that the newest statement is on.
    pub(crate) keys: BTreeMap<KeyEpoch, Key>,
    pub(crate) members: BTreeMap<DeviceId, Member>,
    pub(crate) cells: BTreeMap<CellId, Cell>,
    /// Where the record names one: absent after a restore, until an operator installs it again.
    psk: Option<Psk>,
    /// Members in a cell, and how many of them have applied the newest statement.
    placed: usize,
    acknowledged: usize,
    /// Wanted devices with a key package in stock.
    ready: BTreeSet<DeviceId>,
    /// Those of them that the newest key was issued for, and that have no place yet.
    batch: BTreeSet<DeviceId>,
    /// Members that lost their state, with a key package in stock.
    afresh: BTreeSet<DeviceId>,
    /// Wanted devices, and members that lost their state, without a key package in stock.
    lacking: BTreeSet<DeviceId>,
    ask_again: Option<admit::AskAgain>,
    window_until: Option<Millis>,
    in_flight: Option<flight::Flight>,
    resend: Option<resend::Resend>,
    /// Every key epoch that was issued, as far back as is kept.
    pub(crate) issued: issued::Issued,
    /// When deadlines that are kept in seconds of the calendar are looked at next.
    tick_at: Millis,
}

impl Group {
    pub(crate) fn new(record: GroupRecord) -> Self {
        Self {
            record,
            keys: BTreeMap::new(),
            members: BTreeMap::new(),
            cells: BTreeMap::new(),
            psk: None,
            placed: 0,
            acknowledged: 0,
            ready: BTreeSet::new(),
            batch: BTreeSet::new(),
            afresh: BTreeSet::new(),
            lacking: BTreeSet::new(),
            ask_again: None,
            window_until: None,
            in_flight: None,
            resend: None,
            issued: issued::Issued::default(),
            tick_at: Millis::default(),
        }
    }

    pub(crate) fn id(&self) -> GroupId {
        self.record.id
    }

    /// Takes in a stored key.
    pub(crate) fn load_key(&mut self, record: &KeyRecord) -> Result<(), StoreError> {
        let statement =
            SignedStatement::from_trusted(&record.statement).map_err(|error| StoreError::Corrupt {
                table: crate::records::Table::GroupKey.name(),
                key: record.key_epoch.to_string(),
                why: error.to_string(),
            })?;
        let secret = GroupSecret::from_bytes(record.secret);
        self.keys.insert(record.key_epoch, Key { secret, statement });
        Ok(())
    }

    /// Every live key is among those that were issued, also in a database from before they were written down.
    pub(crate) fn remember_live_keys(&mut self, context: &mut Context) {
        for key in self.keys.values() {
            self.issued.remember(context, key.statement.statement());
        }
    }

    /// Takes in a stored cell.
    pub(crate) fn load_cell(&mut self, record: &CellRecord) -> Result<(), StoreError> {
        let managed = ManagedCell::restore(&record.snapshot).map_err(|error| StoreError::Corrupt {
            table: crate::records::Table::Cell.name(),
            key: record.id.to_string(),
            why: error.to_string(),
        })?;
        let cell = Cell {
            managed,
            last_path_unix_seconds: record.last_path_unix_seconds,
            commits: BTreeMap::new(),
            welcomes: BTreeMap::new(),
            replayed: BTreeMap::new(),
            renewal: None,
        };
        self.cells.insert(record.id, cell);
        Ok(())
    }

    /// Counts what was loaded, and takes up what the last process left undone.
    pub(crate) fn resume(&mut self, now: Now) {
        self.tick_at = now.mono;
        let newest = self.newest_digest();
        self.placed = self.members.values().filter(|member| member.cell().is_some()).count();
        self.acknowledged = self.members.values().filter(|member| member.has_acknowledged(newest)).count();
        if self.behind() > 0 {
            self.resend = Some(resend::Resend::first(now, 0));
        }
    }

    /// The key that the newest statement is on.
    pub(crate) fn newest(&self) -> &Key {
        self.keys.last_key_value().map(|(_, key)| key).expect("a group has a key from its creation on")
    }

    pub(crate) fn newest_digest(&self) -> ShortDigest {
        self.newest().statement.digest().short()
    }

    /// Members in a cell.
    pub(crate) const fn placed(&self) -> usize {
        self.placed
    }

    /// Members that have applied the newest statement.
    pub(crate) const fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    /// Stragglers: members that have not.
    pub(crate) const fn behind(&self) -> usize {
        self.placed - self.acknowledged
    }

    pub(crate) fn wanted(&self) -> usize {
        self.members.len() - self.placed
    }

    /// The secrets that a member may be given: the one to seal with, and what comes after it. Never an older
    /// one, so nobody is given a secret from before its time.
    pub(crate) fn live_keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.range(self.record.send..).map(|(_, key)| key)
    }

    /// A statement with its wrap for the epoch that `cell` is at.
    pub(crate) fn wrap_for(&self, context: &Context, cell: &ManagedCell, key: &Key) -> StatementAndWrap {
        let at = WrapContext {
            fleet: context.fleet(),
            cell: cell.context().cell,
            cell_epoch: cell.epoch(),
            suite: self.record.policy.suite,
        };
        StatementAndWrap {
            statement: key.statement.as_bytes().to_vec(),
            wrap: wrap(&at, &cell.kek(), &key.statement, &key.secret),
        }
    }

    /// A frame with a statement for members that are at the cell's epoch already.
    pub(crate) fn statement_frame(&self, context: &Context, cell: &ManagedCell, key: &Key) -> CellFrame {
        CellFrame { cell_epoch: cell.epoch(), commit: None, rekey: Some(self.wrap_for(context, cell, key)) }
    }

    pub(crate) fn cell_context(&self, context: &Context, cell: CellId) -> CellContext {
        CellContext { fleet: context.fleet(), group: self.id(), cell }
    }

    /// Whether a genuine statement is another coordinator's: a copy's, or of a time that this one was rolled back
    /// from. What is older than is kept, and what was issued before a restore, counts as its own.
    pub(crate) fn is_anothers(&self, key_epoch: KeyEpoch, digest: ShortDigest, incarnation: u32) -> bool {
        if key_epoch > self.record.last_issued {
            return true;
        }
        key_epoch.incarnation() == incarnation && self.issued.contradicts(key_epoch, digest)
    }

    /// The next moment at which [`Self::handle_timeout`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Millis {
        let window = self.window_until.map(|until| match &self.in_flight {
            Some(flight) if self.afresh.is_empty() && self.batch.is_empty() => flight.due(until),
            Some(_) | None => until,
        });
        let resend = self.resend.as_ref().map(|resend| resend.at);
        let renewals =
            self.cells.values().filter_map(|cell| cell.renewal.as_ref()).map(|renewal| renewal.until);
        window
            .into_iter()
            .chain(resend)
            .chain(self.ask_again.as_ref().map(|ask| ask.at))
            .chain(renewals)
            .fold(self.tick_at, Millis::min)
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        now: Now,
        rng: &mut dyn rand_core::CryptoRngCore,
    ) {
        if self.in_flight.as_ref().is_some_and(|flight| flight.until <= now.mono) {
            self.in_flight = None;
        }
        self.ask_again_on_time(context, devices, now);
        self.admit(context, devices, now, rng);
        self.mend_clock(context, now);
        self.close_deadlines(context, now);
        self.rotate_on_time(context, now, rng);
        self.renew_on_time(context, devices, now, rng);
        self.resend_on_time(context, devices, now);
        if self.tick_at <= now.mono {
            self.tick_at = now.mono.plus(self.seconds_to_next(now) * 1_000);
        }
    }

    /// Deadlines of the calendar have changed.
    fn tick_soon(&mut self, now: Now) {
        self.tick_at = self.tick_at.min(now.mono.plus(MIN_TICK_SECONDS * 1_000));
    }

    /// Until a deadline of the calendar is due; never long, as a clock may be set.
    fn seconds_to_next(&self, now: Now) -> u64 {
        let renewal = self.cells.values().filter(|cell| cell.renewal.is_none());
        let renewal = renewal.map(|cell| cell.renewal_due(&self.record.policy));
        let due = renewal.chain(self.rotation_due()).chain(self.deadline_due()).min().unwrap_or(u64::MAX);
        due.saturating_sub(now.unix_seconds).clamp(MIN_TICK_SECONDS, MAX_TICK_SECONDS)
    }

    /// Nothing has happened in the future: where the clock was set back, what it has stamped counts from now on.
    fn mend_clock(&mut self, context: &mut Context, now: Now) {
        let mut is_mended = false;
        let mut mend = |since: &mut u64| {
            is_mended |= *since > now.unix_seconds;
            *since = (*since).min(now.unix_seconds);
        };
        mend(&mut self.record.last_rekey_unix_seconds);
        match &mut self.record.rotation {
            Some(
                Rotation::Distributing { since_unix_seconds } | Rotation::Activated { since_unix_seconds },
            ) => mend(since_unix_seconds),
            None => {}
        }
        is_mended |= self.mend_deadlines(now);
        if is_mended {
            context.put(&self.record);
        }
        for cell in self.cells.values_mut().filter(|cell| cell.last_path_unix_seconds > now.unix_seconds) {
            cell.last_path_unix_seconds = now.unix_seconds;
            cell.put(context);
        }
    }
}

impl Member {
    pub(crate) fn has_acknowledged(&self, newest: ShortDigest) -> bool {
        self.cell().is_some() && self.record.acknowledged == newest.0
    }
}
