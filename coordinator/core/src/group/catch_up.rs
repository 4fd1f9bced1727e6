//! Catch-up: what a hello shows to be missing, brought in the cheapest way that works.
//!
//! All well; the current statement with a fresh wrap; the missed commits again; the Welcome again; a fresh join.
//! The comparison is made in memory against what the coordinator holds, and its cost is bounded whatever was
//! missed. A first hello may be a replay: it gets what costs nothing but bytes, and a request to say it again.

use fleetkey_wire::{CellEpoch, CellId, DeviceId, DownBody, HelloCell, Now};

use super::{Cell, Devices, Group};
use crate::context::Context;
use crate::device::Device;
use crate::effects::{CatchUp, Event};
use crate::records::{Place, Standing};

/// A Welcome is sent again this often before the device must come in afresh.
const WELCOMES_AGAIN: u8 = 2;
/// Commits are sent again this often to a member that stays where it is, before it must come in afresh: one that was
/// set back to an old image cannot follow a commit that covers an update of its own that it does not know.
const REPLAYS: u8 = 4;
const DAY_SECONDS: u64 = 24 * 3600;

/// A hello, as far as it concerns one group.
#[derive(Debug)]
pub(crate) struct Shown<'a> {
    pub(crate) cell: Option<&'a HelloCell>,
    pub(crate) is_fresh: bool,
}

impl Group {
    /// Brings a device up to date that has said where it stands.
    pub(crate) fn catch_up(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        id: DeviceId,
        shown: &Shown<'_>,
        now: Now,
    ) {
        let Some(member) = self.members.get(&id) else { return };
        let Place::In { cell: cell_id } = member.record.place else {
            self.make_ready(context, devices, id, now);
            return;
        };
        let Some(device) = devices.get_mut(&id) else { return };
        let incarnation = context.meta.incarnation;
        if shown.cell.is_some_and(|shown| self.is_anothers(shown.key_epoch, shown.statement, incarnation)) {
            device.say(context, &DownBody::RequestEvidence { group: self.record.id });
        }
        let way = self.way_for(cell_id, id, shown);
        let Some(way) = way else {
            self.settle(context, devices, id, shown, now);
            return;
        };
        match way {
            Way::Statement => self.send_statements(context, device, cell_id),
            Way::Replay { from } => {
                if shown.is_fresh {
                    self.count_replay(cell_id, id, from);
                }
                self.send_commits(context, device, cell_id, from);
                self.send_statements(context, device, cell_id);
            }
            Way::Welcome => self.send_welcome(context, device, cell_id),
            Way::FreshJoin => {
                self.lose(context, devices, id, shown, now);
                return;
            }
        }
        context.event(Event::CaughtUp { group: self.record.id, device: id, by: way.kind() });
    }

    /// The cheapest way to bring a member up to date, or `None` when it is.
    fn way_for(&self, cell: CellId, id: DeviceId, shown: &Shown<'_>) -> Option<Way> {
        let (Some(cell), Some(member)) = (self.cells.get(&cell), self.members.get(&id)) else { return None };
        let newest = self.newest_digest();
        let current = cell.managed.epoch();
        if let Some(shown) = shown.cell {
            if shown.cell_epoch == current && shown.authenticator.0 == cell.managed.epoch_authenticator8() {
                let is_current = shown.statement == newest && member.has_acknowledged(newest);
                return (!is_current).then_some(Way::Statement);
            }
            let is_of_our_past = cell
                .commits
                .get(&shown.cell_epoch)
                .is_some_and(|commit| commit.authenticator == shown.authenticator.0);
            let is_stuck = cell
                .replayed
                .get(&id)
                .is_some_and(|(from, times)| *from == shown.cell_epoch && *times >= REPLAYS);
            if is_of_our_past && !is_stuck && cell.has_commits_from(shown.cell_epoch) {
                return Some(Way::Replay { from: shown.cell_epoch });
            }
        }
        let is_on_its_way = cell.welcomes.get(&id).is_some_and(|welcome| {
            welcome.resent < WELCOMES_AGAIN
                && (welcome.record.epoch == current || cell.has_commits_from(welcome.record.epoch))
        });
        Some(if is_on_its_way { Way::Welcome } else { Way::FreshJoin })
    }

    fn count_replay(&mut self, cell: CellId, id: DeviceId, from: CellEpoch) {
        let Some(cell) = self.cells.get_mut(&cell) else { return };
        let replayed = cell.replayed.entry(id).or_insert((from, 0));
        if replayed.0 != from {
            *replayed = (from, 0);
        }
        replayed.1 = replayed.1.saturating_add(1);
    }

    /// All is well with this member: nothing that was kept for it is needed any more.
    fn settle(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        id: DeviceId,
        shown: &Shown<'_>,
        now: Now,
    ) {
        if !shown.is_fresh {
            return;
        }
        self.forget_welcome_of(context, id);
        self.afresh.remove(&id);
        if let Some(cell) = self.members.get(&id).and_then(super::Member::cell)
            && let Some(cell) = self.cells.get_mut(&cell)
        {
            cell.replayed.remove(&id);
        }
        if let Some(device) = devices.get_mut(&id) {
            device.lost.remove(&self.record.id);
            device.refill(context, self.record.policy.suite, now);
        }
    }

    /// The Welcome that was kept for a member is needed no more.
    fn forget_welcome_of(&mut self, context: &mut Context, id: DeviceId) {
        if let Some(cell) = self.members.get(&id).and_then(super::Member::cell)
            && let Some(cell) = self.cells.get_mut(&cell)
        {
            cell.forget_welcome(context, id);
        }
    }

    fn send_statements(&self, context: &mut Context, device: &mut Device, cell: CellId) {
        let Some(cell) = self.cells.get(&cell) else { return };
        for key in self.live_keys() {
            let frame = self.statement_frame(context, &cell.managed, key).encode();
            device.say(context, &DownBody::CellFrame { cell: cell.id(), frame });
        }
    }

    fn send_commits(&self, context: &mut Context, device: &mut Device, cell: CellId, from: CellEpoch) {
        let Some(cell) = self.cells.get(&cell) else { return };
        for commit in cell.commits.range(from..).map(|(_, commit)| commit) {
            device.say(context, &DownBody::CellFrame { cell: cell.id(), frame: commit.frame.clone() });
        }
    }

    fn send_welcome(&mut self, context: &mut Context, device: &mut Device, cell: CellId) {
        let id = device.id();
        let Some(pending) = self.cells.get_mut(&cell).and_then(|cell| cell.welcomes.get_mut(&id)) else {
            return;
        };
        pending.resent += 1;
        let record = pending.record.clone();
        if let Some(body) = self.welcome_body(context, &record) {
            device.say(context, &body);
        }
        if self.cells.get(&cell).is_some_and(|cell| cell.managed.epoch() != record.epoch) {
            self.send_commits(context, device, cell, record.epoch);
            self.send_statements(context, device, cell);
        }
    }

    /// A member's state is lost to it: it comes in afresh, if it has not done so too often.
    fn lose(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        id: DeviceId,
        shown: &Shown<'_>,
        now: Now,
    ) {
        let Some(device) = devices.get_mut(&id) else { return };
        if !shown.is_fresh {
            device.nudge(context, &DownBody::RequestHello, now);
            return;
        }
        if self.is_lacked_by(device) {
            // It could not use the Welcome, and would be taken for a clone for asking again and again.
            context.count("lacks_psk");
            self.set_behind(context, id);
            return;
        }
        if !device.lost.contains(&self.record.id) {
            match may_join_afresh(context, device, now) {
                Verdict::Yes => {}
                Verdict::NotYet => {
                    context.count("fresh_join_too_soon");
                    return;
                }
                Verdict::Never => {
                    device.record.standing = Standing::Quarantined { unix_seconds: now.unix_seconds };
                    context.put(&device.record);
                    context.audit(now, "quarantine", id, "asked for too many fresh joins: perhaps a clone");
                    context.event(Event::Quarantined { device: id });
                    return;
                }
            }
            device.lost.insert(self.record.id);
            device.discard_stock(context, self.record.policy.suite);
            context.event(Event::CaughtUp { group: self.record.id, device: id, by: CatchUp::FreshJoin });
            self.forget_welcome_of(context, id);
        }
        self.make_ready(context, devices, id, now);
    }
}

enum Verdict {
    Yes,
    NotYet,
    Never,
}

fn may_join_afresh(context: &Context, device: &mut Device, now: Now) -> Verdict {
    let timing = &context.setup.timing;
    // Nothing has happened in the future: the clock was set back.
    let last = device.record.last_fresh_join_unix_seconds.min(now.unix_seconds);
    device.record.last_fresh_join_unix_seconds = last;
    let since = now.unix_seconds - last;
    if since >= DAY_SECONDS {
        device.record.fresh_joins = 0;
    }
    if device.record.fresh_joins >= timing.fresh_joins_per_day {
        return Verdict::Never;
    }
    let doublings = device.record.fresh_joins.saturating_sub(1).min(16);
    let wait =
        if device.record.fresh_joins == 0 { 0 } else { timing.fresh_join_backoff_seconds << doublings };
    if since < wait { Verdict::NotYet } else { Verdict::Yes }
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Statement,
    Replay { from: CellEpoch },
    Welcome,
    FreshJoin,
}

impl Way {
    const fn kind(self) -> CatchUp {
        match self {
            Self::Statement => CatchUp::Statement,
            Self::Replay { .. } => CatchUp::Replay,
            Self::Welcome => CatchUp::Welcome,
            Self::FreshJoin => CatchUp::FreshJoin,
        }
    }
}

impl Cell {
    /// Whether every commit from `epoch` to the current one is still kept.
    fn has_commits_from(&self, epoch: CellEpoch) -> bool {
        let missed = self.managed.epoch().0.checked_sub(epoch.0);
        missed.is_some_and(|missed| self.commits.range(epoch..).count() as u64 == missed)
    }
}
