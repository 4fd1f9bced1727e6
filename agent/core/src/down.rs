//! What the coordinator says to this device alone.

use fleetkey_mls::{CellContext, MemberCell, make_key_package, welcome_key_package_ref};
use fleetkey_wire::limits::{MAX_CELLS_PER_DEVICE, MAX_KEY_PACKAGES};
use fleetkey_wire::link::{BadLinkFrame, LinkRefused, OpenedDown};
use fleetkey_wire::{
    CellId, DismissReason, DownBody, EVERY_GROUP, GroupId, KeyEpoch, Millis, Named, Suite, UpBody, Welcome,
};
use rand_core::CryptoRngCore;

use crate::agent::{Agent, Group};
use crate::cells::Epoch;
use crate::certificate::CoordinatorCertificate;
use crate::effects::{Effects, Event, Output, RemovedBecause};
use crate::group::GroupKeys;
use crate::refused::Refused;
use crate::stored::{EntryKey, encode};

impl Agent {
    pub(crate) fn receive_down_frame(
        &mut self,
        payload: &[u8],
        now: Millis,
        rng: &mut dyn CryptoRngCore,
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        let topic = self.down_topic();
        let connection = self.connection.as_mut().ok_or(Refused::NotConnected { topic })?;
        let body = match connection.link.open(payload) {
            Ok(OpenedDown::Fresh(body)) => body,
            Ok(OpenedDown::Poke) => {
                connection.ask_for_hello(self.paces.unproven.next(now));
                return Ok(());
            }
            Err(BadLinkFrame::Refused(refused)) => {
                match refused {
                    LinkRefused::PeerRestarted => {
                        connection.begin_anew(self.paces.proven.next(now), rng);
                    }
                    LinkRefused::StaleNonce => connection.ask_for_hello(self.paces.unproven.next(now)),
                    LinkRefused::WrongMac | LinkRefused::Replayed { .. } | LinkRefused::NotFresh { .. } => {}
                }
                return Err(refused.into());
            }
            Err(BadLinkFrame::Frame(bad)) => return Err(bad.into()),
        };
        self.obey(body, now, rng, effects)
    }

    /// Does what a fresh frame asks for.
    fn obey(
        &mut self,
        body: DownBody,
        now: Millis,
        rng: &mut dyn CryptoRngCore,
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        match body {
            DownBody::HelloAgain => {
                let at = self.paces.proven.next(now);
                if let Some(connection) = &mut self.connection {
                    connection.begin_anew(at, rng);
                }
                Ok(())
            }
            DownBody::RequestHello => {
                let at = self.paces.proven.next(now);
                if let Some(connection) = &mut self.connection {
                    connection.ask_for_hello(at);
                }
                Ok(())
            }
            DownBody::Answer { hello, hello_interval_seconds, max_silence_seconds } => {
                self.hear_answer(hello, hello_interval_seconds, max_silence_seconds, now, rng, effects)
            }
            DownBody::CellFrame { cell, frame } => self.receive_cell_frame(cell, &frame, now, effects),
            DownBody::Welcome(welcome) => self.join(&welcome, now, effects),
            DownBody::RequestKeyPackages { suite, count } => self.make_key_packages(suite, count, effects),
            DownBody::RequestUpdate { cell } => self.propose_update(cell, effects),
            DownBody::Dismiss { cell, reason, .. } => self.dismiss(cell, reason, effects),
            DownBody::Certificate { chain } => self.renew_certificate(&chain, effects),
            DownBody::RequestEvidence { group } => self.show_newest(group, effects),
        }
    }

    fn hear_answer(
        &mut self,
        hello: u64,
        hello_interval_seconds: u32,
        max_silence_seconds: u32,
        now: Millis,
        rng: &mut dyn CryptoRngCore,
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        let unasked = Refused::UnaskedAnswer { hello };
        let connection = self.connection.as_mut().ok_or(unasked.clone())?;
        let said = connection.said_when(hello).ok_or(unasked)?;
        if self.silence.end(said, hello_interval_seconds, max_silence_seconds) {
            effects.event(Event::Heard);
        }
        connection.answered(hello, now, self.silence.hello_interval_ms(), rng);
        self.mark_silence(now, effects);
        Ok(())
    }

    /// Joins a cell, with every secret that comes along. The group's former cell, if there is one, goes.
    fn join(&mut self, welcome: &Welcome, now: Millis, effects: &mut Effects) -> Result<(), Refused> {
        let Welcome { group, cell, .. } = *welcome;
        let reference = welcome_key_package_ref(&welcome.welcome)?;
        let private = self.key_packages.get(reference).ok_or(Refused::UnknownKeyPackage { cell })?;
        if let Some(own) =
            self.cells.get(&cell).map(|member| member.context().group).filter(|own| *own != group)
        {
            return Err(Refused::CellOfOtherGroup { cell, got: group, own });
        }
        if !self.groups.contains_key(&group) && self.cells.len() >= MAX_CELLS_PER_DEVICE {
            return Err(Refused::TooManyCells { cells: self.cells.len() });
        }
        let context = CellContext { fleet: self.fleet, group, cell };
        let keys = [self.coordinator.public_key()];
        let psks = self.psks_of(group, &welcome.group_name);
        let joined = MemberCell::join(&context, private, &welcome.welcome, &keys, &psks);
        let (member, psk) = joined.map_err(|error| self.mind_lack(group, error.into(), effects))?;
        if member.suite() != welcome.suite {
            let (expected, got) = (welcome.suite, Some(member.suite()));
            return Err(fleetkey_mls::Refused::WrongSuite { expected, got }.into());
        }
        if member.epoch() != welcome.cell_epoch {
            return Err(Refused::WelcomeEpoch { cell, said: welcome.cell_epoch, got: member.epoch() });
        }
        let (keys, activated) = self.keys_after_joining(&member, welcome, now, effects)?;

        self.settle_psk(group, &welcome.group_name, psk, effects);
        self.key_packages.use_up(reference, &mut effects.writes);
        effects.writes.put(EntryKey::Cell(cell).to_string(), member.snapshot());
        effects.writes.put(EntryKey::Group(group).to_string(), encode(&keys.to_stored()));
        let newest = keys.newest().map(|newest| newest.statement().key_epoch);
        if let Some(old) = self.groups.get(&group).map(|group| group.keys.cell).filter(|old| *old != cell) {
            self.forget_cell(old, effects);
        }
        self.cells.insert(cell, member);
        let entry = self.groups.entry(group).or_insert_with(|| Group::new(keys.clone()));
        entry.keys = keys;
        entry.sealer = None;
        entry.leaving = None;
        if let Some(newest) = newest {
            entry.confirmations.news(newest, now);
        }
        let topic = self.cell_topic(cell);
        if self.connection.as_mut().is_some_and(|connection| connection.want(topic)) {
            effects.outputs.push(Output::Subscribe { topic });
        }
        effects.event(Event::Joined { group, name: welcome.group_name.clone(), cell });
        if let Some(key_epoch) = activated {
            effects.event(Event::KeyActivated { group, key_epoch });
        }
        Ok(())
    }

    /// The group's keys with every statement of a Welcome applied. One on a key epoch that is accepted no more is
    /// passed over: the device may have gone further in its former cell.
    fn keys_after_joining(
        &mut self,
        member: &MemberCell,
        welcome: &Welcome,
        now: Millis,
        effects: &mut Effects,
    ) -> Result<(GroupKeys, Option<KeyEpoch>), Refused> {
        let Welcome { group, cell, suite, .. } = *welcome;
        let mut keys = self
            .groups
            .get(&group)
            .map_or_else(|| GroupKeys::new(group, String::new(), cell, suite), |group| group.keys.clone());
        keys.name.clone_from(&welcome.group_name);
        keys.cell = cell;
        keys.suite = suite;
        let epoch = Epoch::of(member);
        let mut activated = None;
        for rekey in &welcome.statements {
            match self.open_rekey(&epoch, rekey, Some(&keys), effects) {
                Ok((signed, secret)) => {
                    activated = keys.apply(&signed, secret, now).activated.or(activated);
                }
                Err(stale @ Refused::StaleKeyEpoch { .. }) => {
                    *self.refusals.entry(stale.name()).or_default() += 1;
                }
                Err(refused) => return Err(refused),
            }
        }
        Ok((keys, activated))
    }

    fn make_key_packages(&mut self, suite: Suite, count: u8, effects: &mut Effects) -> Result<(), Refused> {
        let count = usize::from(count).min(MAX_KEY_PACKAGES);
        let made = (0..count)
            .map(|_| make_key_package(self.device, suite, &self.signer))
            .collect::<Result<Vec<_>, _>>()?;
        let mut packages = Vec::with_capacity(count);
        for (public, private) in made {
            self.key_packages.add(private, &mut effects.writes);
            packages.push(public);
        }
        if !packages.is_empty() {
            self.say(&UpBody::KeyPackages { suite, packages }, effects);
        }
        Ok(())
    }

    fn propose_update(&mut self, cell: CellId, effects: &mut Effects) -> Result<(), Refused> {
        let member = self.cells.get(&cell).ok_or(Refused::UnknownCell { cell })?;
        let mut after = member.clone();
        let proposal = after.propose_update(&self.signer)?;
        if !member.has_outstanding_update() {
            effects.writes.put(EntryKey::Cell(cell).to_string(), after.snapshot());
        }
        let cell_epoch = after.epoch();
        self.cells.insert(cell, after);
        self.say(&UpBody::Update { cell, cell_epoch, proposal }, effects);
        Ok(())
    }

    /// The cell decides: the coordinator may not know its group any longer.
    fn dismiss(&mut self, cell: CellId, reason: DismissReason, effects: &mut Effects) -> Result<(), Refused> {
        let member = self.cells.get(&cell).ok_or(Refused::UnknownCell { cell })?;
        let group = member.context().group;
        self.forget_group(group, RemovedBecause::Dismissed(reason), effects);
        Ok(())
    }

    fn renew_certificate(&mut self, chain: &[Vec<u8>], effects: &mut Effects) -> Result<(), Refused> {
        let shown = CoordinatorCertificate::verify(chain, &self.roots)?;
        let Some(newer) = self.coordinator.replaced_by(shown)? else { return Ok(()) };
        effects.writes.put(EntryKey::Certificate.to_string(), encode(&newer.to_stored()));
        effects.event(Event::CertificateUpdated { generation: newer.generation });
        self.coordinator = newer;
        Ok(())
    }

    /// Shows the newest statement of a group, or of each.
    fn show_newest(&mut self, group: GroupId, effects: &mut Effects) -> Result<(), Refused> {
        if group == EVERY_GROUP {
            let newest = self.groups.values().filter_map(|of| of.keys.newest());
            let statements: Vec<Vec<u8>> = newest.map(|newest| newest.as_bytes().to_vec()).collect();
            for statement in statements {
                self.say(&UpBody::Evidence { statement }, effects);
            }
            return Ok(());
        }
        let of = self.groups.get(&group).ok_or(Refused::UnknownGroup { group })?;
        let newest = of.keys.newest().ok_or(Refused::UnknownGroup { group })?;
        let statement = newest.as_bytes().to_vec();
        self.say(&UpBody::Evidence { statement }, effects);
        Ok(())
    }
}
