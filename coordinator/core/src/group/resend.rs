//! Stragglers that are online are sent the newest statement again, on `down`, with back-off.
//!
//! One sweep of the group at a time, bounded, so that neither a fleet that does not answer nor one that answers
//! all at once can hold the writer up.

use std::ops::Bound;

use fleetkey_wire::{CellId, DeviceId, DownBody, Millis, Now};

use super::{Devices, Group, Member};
use crate::context::Context;
use crate::device::Device;
use crate::effects::Event;

/// Stragglers that one step of a sweep sends to.
const PER_STEP: usize = 256;
/// Between two steps of one sweep.
const STEP_MILLISECONDS: u64 = 100;

/// A sweep to come, or under way.
#[derive(Debug)]
pub(crate) struct Resend {
    /// When the next step is due.
    pub(super) at: Millis,
    /// How long after this sweep the next one begins.
    wait_milliseconds: u64,
    /// Whether it is the first since the newest statement.
    is_first: bool,
    /// Where the last step ended.
    cursor: Option<DeviceId>,
}

impl Resend {
    pub(super) fn first(now: Now, wait_milliseconds: u64) -> Self {
        Self { at: now.mono.plus(wait_milliseconds), wait_milliseconds, is_first: true, cursor: None }
    }

    fn next(now: Now, wait_milliseconds: u64) -> Self {
        Self { is_first: false, ..Self::first(now, wait_milliseconds) }
    }
}

impl Group {
    pub(super) fn resend_on_time(&mut self, context: &mut Context, devices: &mut Devices, now: Now) {
        let Some(mut resend) = self.resend.take_if(|resend| resend.at <= now.mono) else { return };
        if self.behind() == 0 {
            return;
        }
        let from = resend.cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let newest = self.newest_digest();
        let mut sent = 0;
        let mut last = None;
        for (id, member) in self.members.range((from, Bound::Unbounded)) {
            // Before anything is looked up: mostly few are behind, and a fleet that sleeps is swept for days.
            if member.has_acknowledged(newest) {
                continue;
            }
            let (Some(cell), Some(device)) = (member.cell(), devices.get_mut(id)) else { continue };
            if sent == PER_STEP {
                break;
            }
            last = Some(*id);
            sent += usize::from(self.remind(context, device, member, cell, resend.is_first, now));
        }
        let timing = &context.setup.timing;
        if sent == PER_STEP {
            resend.cursor = last;
            resend.at = now.mono.plus(STEP_MILLISECONDS);
        } else {
            let wait = resend.wait_milliseconds.max(timing.resend_milliseconds / 2) * 2;
            resend = Resend::next(now, wait.min(timing.resend_max_milliseconds));
        }
        self.resend = Some(resend);
    }

    /// Reminds one straggler of the newest statement. Whether there was anything to say to it.
    fn remind(
        &self,
        context: &mut Context,
        device: &mut Device,
        member: &Member,
        cell: CellId,
        is_first: bool,
        now: Now,
    ) -> bool {
        let id = device.id();
        if device.heard.is_none() {
            device.nudge(context, &DownBody::HelloAgain, now);
            return true;
        }
        let Some(cell) = self.cells.get(&cell).filter(|_| device.is_online(context, now)) else {
            return false;
        };
        if cell.welcomes.contains_key(&id) {
            // It is still coming in, which takes a slow device a while. Then: where does it stand?
            if !is_first {
                device.nudge(context, &DownBody::RequestHello, now);
            }
            return !is_first;
        }
        let newest = self.newest_digest();
        for key in self.live_keys() {
            let is_new = key.statement.statement().key_epoch > member.record.confirmed;
            if is_new || key.statement.digest().short() == newest {
                let frame = self.statement_frame(context, &cell.managed, key).encode();
                device.say(context, &DownBody::CellFrame { cell: cell.id(), frame });
            }
        }
        context.event(Event::Resent { group: self.record.id, device: id });
        true
    }
}
