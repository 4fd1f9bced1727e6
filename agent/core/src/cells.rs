//! Cell frames: a commit, a statement with its wrap, or both; applied whole or not at all.
//!
//! They come on the cell's topic, or once more on `down`: the same rules hold, because what makes a cell frame genuine
//! is inside it.

use fleetkey_mls::{CellContext, MemberCell, Processed};
use fleetkey_wire::frame::StatementAndWrap;
use fleetkey_wire::wrap::{self, WrapContext};
use fleetkey_wire::{CellFrame, CellId, GroupId, GroupSecret, Kek, Millis, SignedStatement};

use crate::agent::{Agent, Group};
use crate::effects::{Effects, Event, Output, RemovedBecause};
use crate::group::{Applied, GroupKeys};
use crate::refused::Refused;
use crate::stored::{EntryKey, encode};

/// What opens the wraps of one cell epoch.
pub(crate) struct Epoch {
    group: GroupId,
    context: WrapContext,
    kek: Kek,
}

impl Epoch {
    pub(crate) fn of(member: &MemberCell) -> Self {
        let CellContext { fleet, group, cell } = *member.context();
        let context = WrapContext { fleet, cell, cell_epoch: member.epoch(), suite: member.suite() };
        Self { group, context, kek: member.kek() }
    }
}

impl Agent {
    pub(crate) fn receive_cell_frame(
        &mut self,
        cell: CellId,
        payload: &[u8],
        now: Millis,
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        let member = self.cells.get(&cell).ok_or(Refused::UnknownCell { cell })?;
        let frame = CellFrame::decode(payload)?;
        let (got, current) = (frame.cell_epoch, member.epoch());
        if got < current {
            return Err(Refused::StaleCellEpoch { cell, got, current });
        }
        if got > current {
            self.fell_behind(now);
            return Err(Refused::AheadCellEpoch { cell, got, current });
        }
        let group = member.context().group;
        let mut epoch = Epoch::of(member);
        let mut after = None;
        let mut psk = None;
        if let Some(commit) = &frame.commit {
            let mut member = member.clone();
            let keys = [self.coordinator.public_key()];
            let psks = self.psks_of(group, "");
            let processed = member.process(&commit.covered_updates, &commit.commit, &keys, &psks);
            match processed.map_err(|error| self.mind_lack(group, error.into(), effects))? {
                Processed::Advanced { psk: used, .. } => psk = used,
                Processed::Removed => {
                    self.forget_group(group, RemovedBecause::Commit, effects);
                    return Ok(());
                }
            }
            epoch = Epoch::of(&member);
            after = Some(member);
        }
        let rekey = match &frame.rekey {
            Some(rekey) => Some(self.open_rekey(&epoch, rekey, None, effects)?),
            None => None,
        };
        self.settle_psk(group, "", psk, effects);
        if let Some(after) = after {
            effects.writes.put(EntryKey::Cell(cell).to_string(), after.snapshot());
            self.cells.insert(cell, after);
        }
        if let Some((signed, secret)) = rekey
            && let Some(group) = self.groups.get_mut(&group)
        {
            group.take_in(&signed, secret, now, effects);
        }
        self.paces.ahead.reset();
        Ok(())
    }

    /// A cell frame is ahead: a hello is due, at once the first time, then less and less often until a frame fits.
    fn fell_behind(&mut self, now: Millis) {
        let Some(connection) = &mut self.connection else { return };
        connection.ask_for_hello(self.paces.ahead.next(now));
    }

    /// Checks a statement and opens its wrap under a cell's epoch, for a group whose keys are `keys`, or the ones held
    /// when that is `None`. A statement that contradicts what is held is kept as evidence.
    pub(crate) fn open_rekey(
        &mut self,
        epoch: &Epoch,
        rekey: &StatementAndWrap,
        keys: Option<&GroupKeys>,
        effects: &mut Effects,
    ) -> Result<(SignedStatement, GroupSecret), Refused> {
        let coordinator = &self.coordinator;
        let group = epoch.group;
        let held = self.groups.get(&group).map(|group| &group.keys);
        // The one it has applied was verified then, byte for byte: most that comes twice is that.
        let applied = held.and_then(GroupKeys::newest).filter(|newest| newest.as_bytes() == rekey.statement);
        let signed = match applied {
            Some(applied) => applied.clone(),
            None => {
                SignedStatement::verify(&rekey.statement, self.fleet, |_| Some(coordinator.statement_key()))?
            }
        };
        let keys = keys.or(held).ok_or(Refused::UnknownGroup { group })?;
        if let Err(refused) = keys.check(signed.statement()) {
            if let Refused::ConflictingCommitment { group, key_epoch } = refused
                && self.evidence.keep(&signed, &mut effects.writes)
            {
                effects.event(Event::Alarm { group, key_epoch });
            }
            return Err(refused);
        }
        let secret = wrap::open(&epoch.context, &epoch.kek, &signed, &rekey.wrap)?;
        Ok((signed, secret))
    }

    /// The device is out of a group: nothing of it is kept.
    pub(crate) fn forget_group(&mut self, group: GroupId, because: RemovedBecause, effects: &mut Effects) {
        let Some(gone) = self.groups.remove(&group) else { return };
        let cell = gone.keys.cell;
        effects.writes.delete(EntryKey::Group(group).to_string());
        self.forget_cell(cell, effects);
        effects.event(Event::Removed { group, because });
    }

    /// The device is out of a cell.
    pub(crate) fn forget_cell(&mut self, cell: CellId, effects: &mut Effects) {
        self.cells.remove(&cell);
        effects.writes.delete(EntryKey::Cell(cell).to_string());
        let topic = self.cell_topic(cell);
        if self.connection.as_mut().is_some_and(|connection| connection.unwant(topic)) {
            effects.outputs.push(Output::Unsubscribe { topic });
        }
    }
}

impl Group {
    /// Applies a statement whose wrap has opened.
    fn take_in(&mut self, signed: &SignedStatement, secret: GroupSecret, now: Millis, effects: &mut Effects) {
        let group = self.keys.group;
        let key_epoch = signed.statement().key_epoch;
        let Applied { advanced, activated } = self.keys.apply(signed, secret, now);
        if !advanced {
            self.confirmations.duplicate(key_epoch, now);
            return;
        }
        effects.writes.put(EntryKey::Group(group).to_string(), encode(&self.keys.to_stored()));
        self.confirmations.news(key_epoch, now);
        if let Some(key_epoch) = activated {
            effects.event(Event::KeyActivated { group, key_epoch });
        }
    }
}
