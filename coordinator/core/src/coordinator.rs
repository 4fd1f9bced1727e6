//! The coordinator: everything it knows, and one method for each thing that can happen to it.
//!
//! Every method decides in memory at once and leaves what must follow in [`Effects`]. The shell takes them,
//! commits their writes in one transaction, and only then acts. When that fails, or when
//! [`Coordinator::take_effects`] says so, it drops the coordinator and loads it again.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::VerifyingKey;
use fleetkey_wire::error::Named;
use fleetkey_wire::keys::BadPeerKey;
use fleetkey_wire::link::{BadLinkFrame, LinkRefused, StartSecret};
use fleetkey_wire::{
    CellId, DeviceId, DismissReason, DownBody, EVERY_GROUP, GroupId, Hello, HelloCell, KeyEpoch, Millis, Now,
    Pairwise, Psk, Reason, SignedStatement, Suite, UpBody,
};
use rand_core::CryptoRngCore;

use crate::actor::Actor;
use crate::context::{Context, Setup};
use crate::device::Device;
use crate::effects::{Access, Effects, Event};
use crate::enrolment::Desk;
use crate::error::{CommandError, LoadError, Poisoned, UpRefused};
use crate::group::catch_up::Shown;
use crate::group::confirm::Claim;
use crate::group::{Devices, Group, PendingWelcome};
use crate::labels::Labels;
use crate::policy::Policy;
use crate::records::{
    CellRecord, CertificateRecord, ClaimRecord, CommitRecord, DeviceRecord, GroupRecord, IssuedRecord,
    KeyPackageRecord, KeyRecord, MemberRecord, MetaRecord, OperatorName, OperatorRecord, Origin,
    OutboxRecord, Outgoing, Place, PskRecord, Record, RequestRecord, Standing, Superseded, WelcomeRecord,
};
use crate::store::{Store, Write};
use crate::traces;

/// The operator's reason for a revocation, in bytes.
const MAX_REASON_BYTES: usize = 1_024;

/// What the deadline of a revocation may be: up to 30 days.
const DEADLINE_SECONDS: std::ops::RangeInclusive<u64> = 1..=2_592_000;

/// The coordinator of a fleet.
#[derive(Debug)]
pub struct Coordinator {
    pub(crate) context: Context,
    pub(crate) devices: Devices,
    pub(crate) groups: BTreeMap<GroupId, Group>,
    pub(crate) names: BTreeMap<String, DeviceId>,
    pub(crate) desk: Desk,
    pub(crate) operators: BTreeMap<OperatorName, OperatorRecord>,
    group_names: BTreeMap<String, GroupId>,
}

impl Coordinator {
    /// What a new store begins with. The incarnation is a matter of the calendar, so that whatever is created
    /// later lies beyond whatever was created before.
    pub fn initial_rows(unix_seconds: u64) -> Vec<Write> {
        let incarnation = u32::try_from(unix_seconds / 60).unwrap_or(u32::MAX);
        vec![MetaRecord::new(incarnation).put()]
    }

    /// Loads everything, and takes up what the last process had decided and not been known to send.
    pub fn load(
        setup: Setup,
        store: &mut dyn Store,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<Self, LoadError> {
        let meta = read::<MetaRecord>(store)?.pop().ok_or(LoadError::NotInitialised)?;
        let outbox = read::<OutboxRecord>(store)?;
        let next_outbox = outbox.last().map_or(0, |last| last.number + 1);
        let context = Context::new(setup, StartSecret::random(rng), meta, next_outbox);
        let mut coordinator = Self {
            context,
            devices: BTreeMap::new(),
            groups: BTreeMap::new(),
            names: BTreeMap::new(),
            desk: Desk::default(),
            operators: BTreeMap::new(),
            group_names: BTreeMap::new(),
        };
        coordinator.load_devices(store)?;
        for record in read::<OperatorRecord>(store)? {
            coordinator.operators.insert(record.name.clone(), record);
        }
        coordinator.load_groups(store)?;
        coordinator.begin_anew_after_restore(now, rng)?;
        for group in coordinator.groups.values_mut() {
            group.resume(now);
            let waiting: Vec<DeviceId> =
                group.members.values().filter(|m| m.cell().is_none()).map(|m| m.record.device).collect();
            for device in waiting {
                group.make_ready(&mut coordinator.context, &mut coordinator.devices, device, now);
            }
        }
        coordinator.resume_outbox(outbox);
        Ok(coordinator)
    }

    fn load_devices(&mut self, store: &mut dyn Store) -> Result<(), LoadError> {
        for record in read::<DeviceRecord>(store)? {
            self.names.insert(record.name.clone(), record.id);
            self.desk.keys.insert(record.public_key, record.id);
            self.devices.insert(record.id, Device::new(record));
        }
        for record in read::<CertificateRecord>(store)? {
            if let Some(device) = self.devices.get_mut(&record.device) {
                device.certificates.push(record);
            }
        }
        for record in read::<ClaimRecord>(store)? {
            self.desk.claims.insert(record.id, record);
        }
        for record in read::<RequestRecord>(store)? {
            self.desk.keys.insert(record.public_key, record.device);
            self.desk.requests.insert(record.device, record);
        }
        for record in read::<KeyPackageRecord>(store)? {
            if let Some(device) = self.devices.get_mut(&record.device) {
                device.restock(record);
            }
        }
        Ok(())
    }

    fn load_groups(&mut self, store: &mut dyn Store) -> Result<(), LoadError> {
        let stray = |what: &str, id: &dyn std::fmt::Display| {
            LoadError::Inconsistent(format!("{what} belongs to {id}, which is not there"))
        };
        for record in read::<GroupRecord>(store)? {
            self.group_names.insert(record.name.clone(), record.id);
            self.groups.insert(record.id, Group::new(record));
        }
        for record in read::<KeyRecord>(store)? {
            let group = self.groups.get_mut(&record.group).ok_or_else(|| stray("a key", &record.group))?;
            group.load_key(&record)?;
        }
        for record in read::<PskRecord>(store)? {
            let group = self.groups.get_mut(&record.group).ok_or_else(|| stray("a psk", &record.group))?;
            group.load_psk(&record)?;
        }
        for record in read::<IssuedRecord>(store)? {
            let group = self.groups.get_mut(&record.group).ok_or_else(|| stray("a key", &record.group))?;
            group.issued.load(record);
        }
        for group in self.groups.values_mut() {
            group.remember_live_keys(&mut self.context);
        }
        let mut group_of = BTreeMap::new();
        for record in read::<CellRecord>(store)? {
            let group = self.groups.get_mut(&record.group).ok_or_else(|| stray("a cell", &record.group))?;
            group_of.insert(record.id, record.group);
            group.load_cell(&record)?;
        }
        for record in read::<MemberRecord>(store)? {
            let group = self.groups.get_mut(&record.group).ok_or_else(|| stray("a member", &record.group))?;
            let device =
                self.devices.get_mut(&record.device).ok_or_else(|| stray("a member", &record.device))?;
            device.groups.insert(record.group);
            if let Place::In { cell } = record.place
                && !group.cells.get(&cell).is_some_and(|cell| cell.managed.contains(record.device))
            {
                return Err(stray("a member", &cell));
            }
            group.members.insert(record.device, crate::group::Member { record });
        }
        for record in read::<CommitRecord>(store)? {
            if let Some(cell) = cell_mut(&mut self.groups, &group_of, record.cell) {
                cell.commits.insert(record.epoch, record);
            }
        }
        for record in read::<WelcomeRecord>(store)? {
            if let Some(cell) = cell_mut(&mut self.groups, &group_of, record.cell) {
                cell.welcomes.insert(record.device, PendingWelcome { record, resent: 0 });
            }
        }
        Ok(())
    }

    /// A backup holds no group secrets: the first start after a restore issues a new one for each group, in an
    /// incarnation that nobody has issued in.
    fn begin_anew_after_restore(&mut self, now: Now, rng: &mut dyn CryptoRngCore) -> Result<(), LoadError> {
        for group in self.groups.values_mut().filter(|group| group.keys.is_empty()) {
            let lacks_key = || LoadError::Inconsistent(format!("group {} has no key", group.record.id));
            if self.context.meta.restored.is_none() || !group.cells.is_empty() {
                return Err(lacks_key());
            }
            let issued = group.issue(&mut self.context, Reason::Create, now, rng);
            issued.map_err(|_| LoadError::Inconsistent("the key epochs are used up".into()))?;
        }
        Ok(())
    }

    fn resume_outbox(&mut self, outbox: Vec<OutboxRecord>) {
        for row in outbox {
            match row.outgoing {
                Outgoing::Cell { cell, frame } => self.context.resume_cell(cell, frame, row.number),
                Outgoing::Device { device } => match self.devices.get_mut(&device) {
                    Some(device) => device.resume(&mut self.context, row.number),
                    None => self.context.delete(&row),
                },
            }
        }
    }

    /// What the shell must do now, in the order of its fields; or the coordinator must be dropped and loaded again.
    pub fn take_effects(&mut self) -> Result<Effects, Poisoned> {
        self.context.take_effects()
    }

    /// Decides something on somebody's account: the audit log names them.
    pub fn acting<T>(&mut self, actor: Actor, act: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.context.actor, actor);
        let done = act(self);
        self.context.actor = before;
        done
    }

    /// A payload came on a device's `up` topic.
    pub fn handle_up(
        &mut self,
        device: DeviceId,
        payload: &[u8],
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<(), UpRefused> {
        let handled = self
            .open_up(device, payload, now)
            .and_then(|(body, hello, is_fresh)| self.handle_body(device, body, hello, is_fresh, now, rng));
        if let Err(refused) = &handled {
            self.context.count(refused.name());
        }
        handled
    }

    fn open_up(&mut self, id: DeviceId, payload: &[u8], now: Now) -> Result<(UpBody, u64, bool), UpRefused> {
        let Some(device) = self.devices.get_mut(&id) else {
            self.context.strangers.heard(id, now);
            return Err(UpRefused::UnknownDevice { device: id });
        };
        match device.record.standing {
            Standing::Enrolled => {}
            Standing::Quarantined { .. } => {
                // Nothing of it counts; but its link goes on, or it would not hear of its release on this connection.
                let _ = device.open(&self.context, payload, now);
                return Err(UpRefused::Quarantined { device: id });
            }
            Standing::Revoked { .. } => return Err(UpRefused::Revoked { device: id }),
        }
        match device.open(&self.context, payload, now) {
            Ok(opened) => Ok((opened.body, opened.counter, opened.fresh)),
            Err(why) => {
                if matches!(why, BadLinkFrame::Refused(LinkRefused::StaleNonce)) {
                    device.nudge(&mut self.context, &DownBody::HelloAgain, now);
                }
                Err(UpRefused::Link { device: id, why })
            }
        }
    }

    fn handle_body(
        &mut self,
        device: DeviceId,
        body: UpBody,
        counter: u64,
        is_fresh: bool,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<(), UpRefused> {
        match body {
            UpBody::Hello(hello) => self.handle_hello(device, &hello, counter, is_fresh, now)?,
            UpBody::KeyPackages { suite, packages } => {
                self.handle_key_packages(device, suite, packages, now)?
            }
            UpBody::Confirm { group, key_epoch, statement, proof } => {
                let claim = Claim { group, key_epoch, statement, proof };
                self.handle_confirm(device, &claim, now, rng)?;
            }
            UpBody::Update { cell, cell_epoch, proposal } => {
                let group = self.groups.values_mut().find(|group| group.cells.contains_key(&cell));
                let group = group.ok_or(UpRefused::NotInCell { device, cell })?;
                group.take_update(device, cell, cell_epoch, proposal)?;
                group.handle_timeout(&mut self.context, &mut self.devices, now, rng);
            }
            UpBody::Leave { .. } if self.context.is_superseded() => {
                return Err(UpRefused::Superseded { device });
            }
            UpBody::Leave { group } => {
                let not_a_member = UpRefused::NotAMember { device, group };
                let group = self.groups.get_mut(&group).ok_or_else(|| not_a_member.clone())?;
                if !group.members.contains_key(&device) {
                    return Err(not_a_member);
                }
                let by = std::mem::replace(&mut self.context.actor, Actor::Device(device));
                self.context.audit(now, "leave", device, group.id());
                self.context.actor = by;
                let gone = [device];
                // A failure has poisoned the context: there is nothing to add here.
                let _ = group.remove(&mut self.context, &mut self.devices, &gone, Reason::Evict, now, rng);
            }
            UpBody::Evidence { statement } => self.handle_evidence(device, &statement, now)?,
            UpBody::Psks { held } => self.handle_psks(device, held, now)?,
        }
        Ok(())
    }

    fn handle_hello(
        &mut self,
        id: DeviceId,
        hello: &Hello,
        counter: u64,
        is_fresh: bool,
        now: Now,
    ) -> Result<(), UpRefused> {
        let device = self.devices.get_mut(&id).ok_or(UpRefused::UnknownDevice { device: id })?;
        if !device.may_hello(now) {
            return Err(UpRefused::TooManyHellos { device: id });
        }
        let timing = self.context.setup.timing;
        device.say(
            &mut self.context,
            &DownBody::Answer {
                hello: counter,
                hello_interval_seconds: timing.hello_interval_seconds,
                max_silence_seconds: timing.max_silence_seconds,
            },
        );
        if hello.generation < self.context.setup.generation {
            let chain = self.context.setup.chain.clone();
            device.say(&mut self.context, &DownBody::Certificate { chain });
        }
        let groups: Vec<GroupId> = device.groups.iter().copied().collect();
        let places: BTreeMap<GroupId, Option<CellId>> = groups
            .iter()
            .filter_map(|id_of| Some((*id_of, self.groups.get(id_of)?.members.get(&id)?.cell())))
            .collect();
        let strange: Vec<&HelloCell> = hello
            .cells
            .iter()
            .filter(|shown| !places.values().any(|cell| *cell == Some(shown.cell)))
            .collect();
        let is_wanted = places.values().any(Option::is_none);
        if self.meet_strange_cells(id, &strange, is_wanted) {
            return Ok(());
        }
        for (group, cell) in places {
            let Some(group) = self.groups.get_mut(&group) else { continue };
            let shown = Shown { cell: hello.cells.iter().find(|shown| Some(shown.cell) == cell), is_fresh };
            group.catch_up(&mut self.context, &mut self.devices, id, &shown, now);
        }
        let Some(device) = self.devices.get_mut(&id) else { return Ok(()) };
        if groups.is_empty() {
            device.refill(&mut self.context, Suite::default(), now);
        }
        Ok(())
    }

    /// Cells that a device is in, and not by this coordinator's doing now: it was put out of them, or let in by another.
    /// Whether that other one is later, and the device not this coordinator's to bring anywhere.
    fn meet_strange_cells(&mut self, id: DeviceId, strange: &[&HelloCell], is_wanted: bool) -> bool {
        let incarnation = self.context.meta.incarnation;
        let Some(device) = self.devices.get_mut(&id).filter(|_| !strange.is_empty()) else { return false };
        // Whatever it is told, first it shows by whose word it is there.
        device.say(&mut self.context, &DownBody::RequestEvidence { group: EVERY_GROUP });
        let is_later = strange.iter().any(|shown| shown.key_epoch.incarnation() > incarnation);
        if is_later || self.context.is_superseded() {
            return is_later;
        }
        for shown in strange {
            // One that is to come in may be in its group through a cell of before a restore: it goes on with that key
            // until its Welcome takes the cell's place.
            if is_wanted && shown.key_epoch.incarnation() < incarnation {
                continue;
            }
            let group = GroupId::from_bytes([0; 16]);
            let reason = DismissReason::NotAMember;
            device.say(&mut self.context, &DownBody::Dismiss { group, cell: shown.cell, reason });
        }
        false
    }

    fn handle_key_packages(
        &mut self,
        id: DeviceId,
        suite: Suite,
        packages: Vec<Vec<u8>>,
        now: Now,
    ) -> Result<(), UpRefused> {
        let Some(device) = self.devices.get_mut(&id) else {
            return Err(UpRefused::UnknownDevice { device: id });
        };
        if !device.take_asked(suite) {
            return Err(UpRefused::NotAskedFor { device: id, packages: packages.len(), suite });
        }
        device.stock(&mut self.context, suite, packages);
        for group in device.groups.clone() {
            let Some(group) = self.groups.get_mut(&group) else { continue };
            if group.record.policy.suite == suite {
                group.make_ready(&mut self.context, &mut self.devices, id, now);
            }
        }
        Ok(())
    }

    fn handle_confirm(
        &mut self,
        device: DeviceId,
        claim: &Claim,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<(), UpRefused> {
        let not_a_member = UpRefused::NotAMember { device, group: claim.group };
        let group = self.groups.get_mut(&claim.group).ok_or(not_a_member)?;
        group.confirm(&mut self.context, &mut self.devices, device, claim, now)?;
        group.rotate_on_time(&mut self.context, now, rng);
        Ok(())
    }

    fn handle_evidence(&mut self, device: DeviceId, statement: &[u8], now: Now) -> Result<(), UpRefused> {
        let own = self.context.setup.identity.public_key();
        let statement = SignedStatement::verify(statement, self.context.fleet(), |_| {
            // All coordinators of a fleet share one identity key, under whatever certificate.
            VerifyingKey::from_bytes(&own).ok()
        })
        .map_err(|why| UpRefused::Evidence { device, why })?;
        let said = *statement.statement();
        let incarnation = self.context.meta.incarnation;
        let is_ours = match self.groups.get(&said.group) {
            Some(group) => !group.is_anothers(said.key_epoch, statement.digest().short(), incarnation),
            // A group that was made after the backup, before the restore: it is no more, and was ours.
            None => said.key_epoch.incarnation() < incarnation,
        };
        if is_ours || self.context.is_superseded() {
            return Ok(());
        }
        self.context.supersede(Superseded {
            unix_seconds: now.unix_seconds,
            device,
            group: said.group,
            key_epoch: said.key_epoch,
        });
        let detail = format!("{device} shows key epoch {} of {}", said.key_epoch, said.group);
        self.context.audit(now, "superseded", said.group, &detail);
        tracing::error!(%device, group = %said.group, key_epoch = %said.key_epoch, "superseded: this coordinator is a copy or was rolled back, and issues nothing");
        self.context.event(Event::Superseded { device, group: said.group, key_epoch: said.key_epoch });
        Ok(())
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        self.groups.values().map(Group::poll_timeout).min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now, rng: &mut dyn CryptoRngCore) {
        for group in self.groups.values_mut() {
            group.handle_timeout(&mut self.context, &mut self.devices, now, rng);
        }
    }

    /// Whether whoever asks may bring devices into the fleet by hand, and the coordinator takes any in. Asked before anything
    /// is stored.
    ///
    /// # Errors
    /// [`CommandError::Superseded`], or that the scope is less than the fleet.
    pub fn check_may_enroll(&self) -> Result<(), CommandError> {
        self.check_fleet()?;
        self.check_issuing()
    }

    /// Enrols a device under an id and a key that are its own for ever.
    pub fn enroll_device(
        &mut self,
        id: DeviceId,
        name: &str,
        public_key: [u8; 32],
        now: Now,
    ) -> Result<(), CommandError> {
        self.check_fleet()?;
        check_name(name)?;
        if self.devices.contains_key(&id) {
            return Err(CommandError::AlreadyEnrolled(id));
        }
        if self.names.contains_key(name) {
            return Err(CommandError::NameTaken(name.to_owned()));
        }
        if let Some(other) = self.desk.keys.get(&public_key) {
            return Err(CommandError::KeyInUse { device: id, other: *other });
        }
        self.check_key(id, &public_key).map_err(|why| CommandError::BadKey { device: id, why })?;
        if self.desk.requests.contains_key(&id) {
            // Whoever asked under this id is not who the operator enrols.
            self.drop_request(id);
        }
        let record = DeviceRecord {
            id,
            name: name.to_owned(),
            public_key,
            standing: Standing::Enrolled,
            enrolled_unix_seconds: now.unix_seconds,
            fresh_joins: 0,
            last_fresh_join_unix_seconds: 0,
            labels: Labels::default(),
            origin: Origin::Operator,
        };
        self.register(record, name, now);
        Ok(())
    }

    /// Whether a secret can be agreed with this key.
    pub(crate) fn check_key(&self, id: DeviceId, public_key: &[u8; 32]) -> Result<(), BadPeerKey> {
        let own = self.context.setup.identity.signing_key();
        Pairwise::agree(self.context.fleet(), id, own, public_key).map(drop)
    }

    pub(crate) fn register(&mut self, record: DeviceRecord, detail: &str, now: Now) {
        let id = record.id;
        self.context.put(&record);
        self.context.audit(now, "enroll", id, detail);
        self.context.audit(now, traces::KEY, id, traces::of_key(&record.public_key));
        self.context.strangers.forget(id);
        self.names.insert(record.name.clone(), id);
        self.desk.keys.insert(record.public_key, id);
        self.devices.insert(id, Device::new(record));
    }

    /// Labels a device anew, and wants it in the groups that this selects. It leaves none.
    ///
    /// # Errors
    /// When it is not enrolled, or revoked.
    pub fn label_device(
        &mut self,
        id: DeviceId,
        labels: Labels,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<(), CommandError> {
        self.check_relabelling(id, &labels)?;
        let device = self.devices.get_mut(&id).ok_or(CommandError::UnknownDevice(id))?;
        if device.is_revoked() {
            return Err(CommandError::Revoked(id));
        }
        self.context.audit(now, "label", id, &labels);
        let before = std::mem::replace(&mut device.record.labels, labels);
        self.context.put(&device.record);
        self.want_where_selected(id, &before, now, rng);
        Ok(())
    }

    /// Says which devices belong in a group by their labels: those that are enrolled now come in, and those that are
    /// enrolled later. Without a selector nobody comes in by itself. How many of them are new to it.
    ///
    /// # Errors
    /// [`CommandError::UnknownGroup`], [`OutOfScope::Fleet`](crate::OutOfScope::Fleet).
    pub fn select_members(
        &mut self,
        group: GroupId,
        selector: Option<Labels>,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<usize, CommandError> {
        // A selector says whom claims and labels let in, now and later: it reaches as far as the whole fleet.
        self.check_fleet()?;
        let record = &self.groups.get(&group).ok_or(CommandError::UnknownGroup(group))?.record;
        let before = record.selector.clone().unwrap_or_default();
        let selector = selector.filter(|selector| !selector.is_empty());
        let shown = selector.clone().unwrap_or_default();
        let newly = |device: &&Device| {
            let labels = &device.record.labels;
            let has_room = device.groups.len() < fleetkey_wire::limits::MAX_CELLS_PER_DEVICE;
            // Whoever was selected before is in, or was taken out on purpose.
            !device.is_revoked() && has_room && shown.select(labels) && !before.select(labels)
        };
        let selected: Vec<DeviceId> = self.devices.values().filter(newly).map(Device::id).collect();
        if let Some(group) = self.groups.get_mut(&group) {
            group.record.selector = selector;
            self.context.put(&group.record);
        }
        self.context.audit(now, "select", group, &shown);
        self.add_members(group, &selected, now, rng)
    }

    /// Creates a group, with its first key.
    ///
    /// # Errors
    /// When the name or the policy cannot be used, or nothing is issued here.
    pub fn create_group(
        &mut self,
        name: &str,
        policy: Policy,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<GroupId, CommandError> {
        self.create(name, policy, None, now, rng)
    }

    /// Creates a group whose cells' keys depend on an external pre-shared key, from the first cell on.
    ///
    /// # Errors
    /// The same, and when the key is another group's.
    pub fn create_guarded_group(
        &mut self,
        name: &str,
        policy: Policy,
        psk: Psk,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<GroupId, CommandError> {
        self.create(name, policy, Some(psk), now, rng)
    }

    fn create(
        &mut self,
        name: &str,
        policy: Policy,
        psk: Option<Psk>,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<GroupId, CommandError> {
        self.check_fleet()?;
        self.check_issuing()?;
        check_name(name)?;
        policy.check()?;
        if self.group_names.contains_key(name) {
            return Err(CommandError::NameTaken(name.to_owned()));
        }
        if let Some(psk) = &psk {
            self.check_psk(psk, None)?;
        }
        let id = GroupId::random(rng.as_rngcore());
        let mut group = Group::new(GroupRecord {
            id,
            name: name.to_owned(),
            policy,
            created_unix_seconds: now.unix_seconds,
            last_issued: KeyEpoch::new(self.context.meta.incarnation, 0),
            send: KeyEpoch::default(),
            oldest: KeyEpoch::default(),
            rotation: None,
            last_rekey_unix_seconds: now.unix_seconds,
            selector: None,
            deadlines: Vec::new(),
            psk: None,
        });
        let issued = group.issue(&mut self.context, Reason::Create, now, rng);
        self.check_done(issued)?;
        self.context.audit(now, "create_group", id, name);
        if let Some(psk) = psk {
            self.context.audit(now, "psk", id, psk.id());
            group.set_psk(&mut self.context, psk);
        }
        self.group_names.insert(name.to_owned(), id);
        self.groups.insert(id, group);
        Ok(id)
    }

    /// Wants devices in a group; they come in as soon as they can. How many of them are new to it.
    pub fn add_members(
        &mut self,
        group: GroupId,
        devices: &[DeviceId],
        now: Now,
        _rng: &mut dyn CryptoRngCore,
    ) -> Result<usize, CommandError> {
        self.check_group(group)?;
        devices.iter().try_for_each(|device| self.check_addable(*device))?;
        let group = self.groups.get_mut(&group).ok_or(CommandError::UnknownGroup(group))?;
        for id in devices {
            let device = self.devices.get(id).ok_or(CommandError::UnknownDevice(*id))?;
            if device.is_revoked() {
                return Err(CommandError::Revoked(*id));
            }
            let is_new = !device.groups.contains(&group.id());
            if is_new && device.groups.len() >= fleetkey_wire::limits::MAX_CELLS_PER_DEVICE {
                return Err(CommandError::TooManyGroups(*id));
            }
        }
        let mut wanted = 0;
        for id in devices {
            if group.want(&mut self.context, &mut self.devices, *id, now) {
                self.context.audit(now, "add", id, group.id());
                wanted += 1;
            }
        }
        Ok(wanted)
    }

    /// Takes devices out of a group; they stay enrolled.
    pub fn evict(
        &mut self,
        group: GroupId,
        devices: &[DeviceId],
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<(), CommandError> {
        self.check_issuing()?;
        self.check_group(group)?;
        let group = self.groups.get_mut(&group).ok_or(CommandError::UnknownGroup(group))?;
        for device in devices {
            if !self.devices.contains_key(device) {
                return Err(CommandError::UnknownDevice(*device));
            }
            if !group.members.contains_key(device) {
                return Err(CommandError::NotAMember { device: *device, group: group.id() });
            }
        }
        for device in devices {
            self.context.audit(now, "evict", device, group.id());
        }
        let removed = group.remove(&mut self.context, &mut self.devices, devices, Reason::Evict, now, rng);
        self.check_done(removed)
    }

    /// Ends devices' identities, for ever: out of every group, off the broker. All of it, or nothing.
    pub fn revoke(
        &mut self,
        devices: &[DeviceId],
        reason: &str,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<(), CommandError> {
        self.revoke_within(devices, reason, None, now, rng)
    }

    /// The same, with a deadline: within so many seconds whoever remains in their groups is to hold the new keys. The
    /// audit log and the groups' status say whether they did.
    pub fn revoke_within(
        &mut self,
        devices: &[DeviceId],
        reason: &str,
        deadline_seconds: Option<u64>,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<(), CommandError> {
        self.check_issuing()?;
        if reason.len() > MAX_REASON_BYTES {
            return Err(CommandError::ReasonTooLong { bytes: reason.len(), max: MAX_REASON_BYTES });
        }
        if let Some(seconds) = deadline_seconds.filter(|seconds| !DEADLINE_SECONDS.contains(seconds)) {
            return Err(CommandError::BadDeadline { seconds });
        }
        if let Some(unknown) = devices.iter().find(|id| !self.devices.contains_key(id)) {
            return Err(CommandError::UnknownDevice(*unknown));
        }
        devices.iter().try_for_each(|device| self.check_device(*device))?;
        let mut touched = BTreeSet::new();
        for id in devices {
            let Some(device) = self.devices.get_mut(id).filter(|device| !device.is_revoked()) else {
                continue;
            };
            touched.extend(device.groups.iter().copied());
            device.record.standing =
                Standing::Revoked { unix_seconds: now.unix_seconds, reason: reason.to_owned() };
            for suite in Suite::ALL {
                device.discard_stock(&mut self.context, suite);
            }
            self.context.put(&device.record);
            self.context.access(Access::Revoked { device: *id });
            self.context.audit(now, "revoke", id, reason);
        }
        for group in touched {
            let Some(group) = self.groups.get_mut(&group) else { continue };
            let before = group.record.last_issued;
            let removed =
                group.remove(&mut self.context, &mut self.devices, devices, Reason::Revoke, now, rng);
            if let Some(seconds) = deadline_seconds.filter(|_| group.record.last_issued > before) {
                group.set_deadline(&mut self.context, seconds, now);
            }
            self.check_done(removed)?;
        }
        Ok(())
    }

    /// Moves a group to a new key now.
    pub fn rekey(
        &mut self,
        group: GroupId,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<KeyEpoch, CommandError> {
        self.check_issuing()?;
        self.check_group(group)?;
        let group = self.groups.get_mut(&group).ok_or(CommandError::UnknownGroup(group))?;
        self.context.audit(now, "rekey", group.id(), "");
        let done = group.rekey_now(&mut self.context, &mut self.devices, now, rng);
        let key_epoch = group.record.send;
        self.check_done(done).map(|()| key_epoch)
    }

    /// Begins a rotation of a group now. The key epoch it leads to.
    pub fn rotate(
        &mut self,
        group: GroupId,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<KeyEpoch, CommandError> {
        self.check_issuing()?;
        self.check_group(group)?;
        let group = self.groups.get_mut(&group).ok_or(CommandError::UnknownGroup(group))?;
        if group.record.rotation.is_some() {
            return Err(CommandError::RotationUnderWay(group.id()));
        }
        self.context.audit(now, "rotate", group.id(), "");
        let done = group.distribute(&mut self.context, now, rng);
        let key_epoch = group.record.last_issued;
        group.rotate_on_time(&mut self.context, now, rng);
        self.check_done(done.map(drop)).map(|()| key_epoch)
    }

    /// Lets a quarantined device back in.
    pub fn release(&mut self, id: DeviceId, now: Now) -> Result<(), CommandError> {
        self.check_device(id)?;
        let device = self.devices.get_mut(&id).ok_or(CommandError::UnknownDevice(id))?;
        if !matches!(device.record.standing, Standing::Quarantined { .. }) {
            return Err(CommandError::NotQuarantined(id));
        }
        device.record.standing = Standing::Enrolled;
        device.record.fresh_joins = 0;
        self.context.put(&device.record);
        self.context.audit(now, "release", id, "");
        // Also when there is no connection to the broker right now, or the process dies first.
        device.say_durably(&mut self.context, &DownBody::RequestHello);
        Ok(())
    }

    /// The device of this id or name.
    pub fn find_device(&self, name_or_id: &str) -> Option<DeviceId> {
        let by_id = name_or_id.parse().ok().filter(|id| self.devices.contains_key(id));
        by_id.or_else(|| self.names.get(name_or_id).copied())
    }

    /// The group of this id or name.
    pub fn find_group(&self, name_or_id: &str) -> Option<GroupId> {
        let by_id = name_or_id.parse().ok().filter(|id| self.groups.contains_key(id));
        by_id.or_else(|| self.group_names.get(name_or_id).copied())
    }

    pub(crate) fn check_issuing(&self) -> Result<(), CommandError> {
        if self.context.is_superseded() { Err(CommandError::Superseded) } else { Ok(()) }
    }

    fn check_done(&mut self, done: Result<(), crate::group::commit::Failed>) -> Result<(), CommandError> {
        done.map_err(|_| {
            let why = self.context.take_effects().err().map_or_else(String::new, |poisoned| poisoned.0);
            CommandError::Internal(why)
        })
    }
}

fn read<R: Record>(store: &mut dyn Store) -> Result<Vec<R>, LoadError> {
    let rows = store.rows(R::TABLE)?;
    rows.iter().map(|row| R::read(row).map_err(LoadError::from)).collect()
}

fn cell_mut<'a>(
    groups: &'a mut BTreeMap<GroupId, Group>,
    group_of: &BTreeMap<fleetkey_wire::CellId, GroupId>,
    cell: fleetkey_wire::CellId,
) -> Option<&'a mut crate::group::Cell> {
    groups.get_mut(group_of.get(&cell)?)?.cells.get_mut(&cell)
}

pub(crate) fn check_name(name: &str) -> Result<(), CommandError> {
    let is_uuid = name.parse::<DeviceId>().is_ok();
    let fits = (1..=fleetkey_wire::limits::MAX_GROUP_NAME_BYTES).contains(&name.len());
    if fits && !is_uuid && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(CommandError::BadName(name.chars().take(64).collect()))
}
