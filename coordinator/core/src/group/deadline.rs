//! Deadlines of revocations: by when whoever remains is to hold the new key, and whether they did.
//!
//! A deadline is kept with its group, so that a restart does not lose it, and what became of it is told in the audit
//! log. It hurries nobody: a rekey goes out at once in any case.

use std::collections::BTreeSet;

use fleetkey_wire::{KeyEpoch, Now};

use super::Group;
use crate::context::Context;
use crate::effects::Event;
use crate::records::{Deadline, MemberRecord, Outcome, Place};

/// How many a group keeps, open ones included.
const KEPT: usize = 8;
/// How many devices an open one remembers that went while they owed its key: past this it is judged where it stands.
const MAX_GONE_OWING: usize = 1_024;

impl Group {
    /// Whoever is in the group now is to hold `send` within so many seconds.
    pub(crate) fn set_deadline(&mut self, context: &mut Context, seconds: u64, now: Now) {
        // Room by the oldest: one that is open all the same is judged where it stands.
        while self.record.deadlines.len() >= KEPT {
            let is_over = |deadline: &Deadline| deadline.outcome != Outcome::Open;
            let oldest = self.record.deadlines.iter().position(is_over).unwrap_or(0);
            let oldest = self.record.deadlines.remove(oldest);
            if oldest.outcome == Outcome::Open {
                self.judge(context, &oldest, now);
            }
        }
        self.record.deadlines.push(Deadline {
            key_epoch: self.record.send,
            set_unix_seconds: now.unix_seconds,
            until_unix_seconds: now.unix_seconds.saturating_add(seconds),
            outcome: Outcome::Open,
            gone_owing: BTreeSet::new(),
        });
        context.put(&self.record);
        self.close_deadlines(context, now);
        self.tick_soon(now);
    }

    /// When the next one ends.
    pub(super) fn deadline_due(&self) -> Option<u64> {
        self.open_deadlines().map(|deadline| deadline.until_unix_seconds).min()
    }

    /// Judges those that are kept already, and those whose time is over.
    pub(super) fn close_deadlines(&mut self, context: &mut Context, now: Now) {
        if self.open_deadlines().next().is_none() {
            return;
        }
        // Members are counted only when it may be over: there may be very many.
        let have_all = self.behind() == 0;
        self.close_those(context, now, |group, deadline| {
            let is_over = now.unix_seconds >= deadline.until_unix_seconds;
            is_over || (have_all && group.back_owing(deadline) == 0)
        });
    }

    fn close_those(&mut self, context: &mut Context, now: Now, is_due: impl Fn(&Self, &Deadline) -> bool) {
        let mut deadlines = std::mem::take(&mut self.record.deadlines);
        let mut is_changed = false;
        for deadline in deadlines.iter_mut().filter(|deadline| deadline.outcome == Outcome::Open) {
            if is_due(self, deadline) {
                deadline.outcome = self.judge(context, deadline, now);
                deadline.gone_owing.clear();
                is_changed = true;
            }
        }
        self.record.deadlines = deadlines;
        if is_changed {
            context.put(&self.record);
        }
    }

    /// A member goes, or loses its place: what it owes it owes still, should it come back.
    pub(super) fn goes_owing(&mut self, context: &mut Context, gone: &MemberRecord) {
        if gone.place == Place::Wanted && gone.admitted == KeyEpoch::default() {
            return;
        }
        let open = self.record.deadlines.iter_mut().filter(|deadline| deadline.outcome == Outcome::Open);
        let owed = open.filter(|deadline| owes(gone, deadline.key_epoch));
        let noted = owed.filter_map(|deadline| deadline.gone_owing.insert(gone.device).then_some(())).count();
        if noted > 0 {
            context.put(&self.record);
        }
    }

    /// Judges those that would have to remember too many.
    pub(super) fn close_crowded_deadlines(&mut self, context: &mut Context, now: Now) {
        self.close_those(context, now, |_, deadline| deadline.gone_owing.len() > MAX_GONE_OWING);
    }

    /// Where the clock was set back, a deadline is as far off as it was when it was set.
    pub(super) fn mend_deadlines(&mut self, now: Now) -> bool {
        let mut is_mended = false;
        for deadline in &mut self.record.deadlines {
            if deadline.outcome == Outcome::Open && deadline.set_unix_seconds > now.unix_seconds {
                let length = deadline.until_unix_seconds.saturating_sub(deadline.set_unix_seconds);
                deadline.set_unix_seconds = now.unix_seconds;
                deadline.until_unix_seconds = now.unix_seconds.saturating_add(length);
                is_mended = true;
            }
        }
        is_mended
    }

    fn open_deadlines(&self) -> impl Iterator<Item = &Deadline> {
        self.record.deadlines.iter().filter(|deadline| deadline.outcome == Outcome::Open)
    }

    /// Members that were in the group when the key was issued, and have not proved to hold it or a later one.
    fn without(&self, deadline: &Deadline) -> usize {
        let (key_epoch, back) = (deadline.key_epoch, &deadline.gone_owing);
        let owes = |member: &&super::Member| {
            member.cell().is_some()
                && owes(&member.record, key_epoch)
                && !back.contains(&member.record.device)
        };
        self.members.values().filter(owes).count() + self.back_owing(deadline)
    }

    /// Of those that went while they owed the key: whoever is wanted in the group again, or in it, and has not proved to
    /// hold it or a later one.
    fn back_owing(&self, deadline: &Deadline) -> usize {
        let back = deadline.gone_owing.iter().filter_map(|device| self.members.get(device));
        back.filter(|member| member.record.confirmed < deadline.key_epoch).count()
    }

    fn judge(&self, context: &mut Context, deadline: &Deadline, now: Now) -> Outcome {
        let (group, key_epoch) = (self.id(), deadline.key_epoch);
        let missing = self.without(deadline);
        let outcome = if missing == 0 {
            Outcome::Kept { unix_seconds: now.unix_seconds }
        } else {
            Outcome::Missed { missing: u32::try_from(missing).unwrap_or(u32::MAX) }
        };
        let allowed = deadline.until_unix_seconds.saturating_sub(deadline.set_unix_seconds);
        let after = now.unix_seconds.saturating_sub(deadline.set_unix_seconds);
        let placed = self.placed();
        let detail = match outcome {
            Outcome::Missed { missing } if after < allowed => {
                format!(
                    "{key_epoch}: given up after {after} of {allowed} s, {missing} of {placed} without it"
                )
            }
            Outcome::Missed { missing } => {
                format!("{key_epoch}: missed after {allowed} s, {missing} of {placed} without it")
            }
            Outcome::Kept { .. } | Outcome::Open => {
                format!("{key_epoch}: kept after {after} of {allowed} s, by all of {placed}")
            }
        };
        context.audit(now, "deadline", group, detail);
        context.event(Event::Deadline { group, key_epoch, missing });
        outcome
    }
}

/// Whether a member was in the group when the key was issued, and has not proved to hold it or a later one.
fn owes(member: &MemberRecord, key_epoch: KeyEpoch) -> bool {
    member.admitted <= key_epoch && member.confirmed < key_epoch
}
