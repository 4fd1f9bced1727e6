//! Scheduled rotation, in three statements: hand the next key out, use it, accept the former no more.
//!
//! Each step waits for the share of confirmations that the policy names, or for its deadline. Any other rekey
//! overtakes a rotation and starts its clock anew.

use fleetkey_wire::{GroupSecret, KeyEpoch, Now, Reason};
use rand_core::CryptoRngCore;

use super::Group;
use super::commit::Failed;
use crate::context::Context;
use crate::records::Rotation;

impl Group {
    /// Begins a rotation: the next key goes to every cell, and is not used yet.
    pub(crate) fn distribute(
        &mut self,
        context: &mut Context,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<KeyEpoch, Failed> {
        let key_epoch = self.next_key_epoch(context)?;
        self.record.last_issued = key_epoch;
        self.record.rotation = Some(Rotation::Distributing { since_unix_seconds: now.unix_seconds });
        let secret = GroupSecret::random(rng);
        self.restate(context, key_epoch, secret, Reason::Distribute, now);
        Ok(key_epoch)
    }

    /// When the rotation moves on, or the next begins, at the latest.
    pub(super) fn rotation_due(&self) -> Option<u64> {
        let policy = &self.record.policy;
        match self.record.rotation {
            None if policy.rotation_interval_seconds == 0 => None,
            None => {
                Some(self.record.last_rekey_unix_seconds.saturating_add(policy.rotation_interval_seconds))
            }
            Some(Rotation::Distributing { since_unix_seconds: since }) => {
                Some(since.saturating_add(policy.rotation_deadline_seconds))
            }
            Some(Rotation::Activated { since_unix_seconds: since }) => {
                let overlap = u64::from(policy.overlap_seconds);
                let deadline = policy.rotation_deadline_seconds.max(overlap);
                Some(since.saturating_add(if self.has_threshold() { overlap } else { deadline }))
            }
        }
    }

    /// Moves a rotation on when its time has come, or begins one.
    pub(crate) fn rotate_on_time(&mut self, context: &mut Context, now: Now, rng: &mut dyn CryptoRngCore) {
        if context.is_superseded() {
            return;
        }
        let policy = &self.record.policy;
        let has_passed = |since: u64, seconds: u64| now.unix_seconds >= since.saturating_add(seconds);
        match self.record.rotation {
            None => {
                let is_due = policy.rotation_interval_seconds > 0
                    && self.placed() > 0
                    && has_passed(self.record.last_rekey_unix_seconds, policy.rotation_interval_seconds);
                if is_due {
                    // A failure has poisoned the context: there is nothing to add here.
                    let _ = self.distribute(context, now, rng);
                }
            }
            Some(Rotation::Distributing { since_unix_seconds: since }) => {
                if self.has_threshold() || has_passed(since, policy.rotation_deadline_seconds) {
                    self.activate(context, now);
                }
            }
            Some(Rotation::Activated { since_unix_seconds: since }) => {
                let is_over = has_passed(since, u64::from(policy.overlap_seconds));
                if is_over && (self.has_threshold() || has_passed(since, policy.rotation_deadline_seconds)) {
                    self.retire(context, now);
                }
            }
        }
    }

    fn has_threshold(&self) -> bool {
        self.acknowledged() * 100
            >= self.placed() * usize::from(self.record.policy.rotation_threshold_percent)
    }

    fn activate(&mut self, context: &mut Context, now: Now) {
        let Some((key_epoch, secret)) = self.newest_secret() else { return };
        self.record.send = key_epoch;
        self.record.rotation = Some(Rotation::Activated { since_unix_seconds: now.unix_seconds });
        self.record.last_rekey_unix_seconds = now.unix_seconds;
        self.restate(context, key_epoch, secret, Reason::Activate, now);
    }

    fn retire(&mut self, context: &mut Context, now: Now) {
        let Some((key_epoch, secret)) = self.newest_secret() else { return };
        self.record.oldest = key_epoch;
        self.record.rotation = None;
        self.restate(context, key_epoch, secret, Reason::Retire, now);
        self.give_up_before(context, key_epoch);
    }

    fn newest_secret(&self) -> Option<(KeyEpoch, GroupSecret)> {
        self.keys.last_key_value().map(|(key_epoch, key)| (*key_epoch, key.secret.clone()))
    }

    /// Signs a new statement and sends it to every cell, with a wrap for the epoch each is at.
    fn restate(
        &mut self,
        context: &mut Context,
        key_epoch: KeyEpoch,
        secret: GroupSecret,
        reason: Reason,
        now: Now,
    ) {
        self.state(context, key_epoch, secret, reason, now);
        let key = self.newest();
        for (id, cell) in &self.cells {
            let frame = self.statement_frame(context, &cell.managed, key);
            context.publish_cell(*id, &frame);
        }
        self.take_off(context, reason, now);
    }
}
