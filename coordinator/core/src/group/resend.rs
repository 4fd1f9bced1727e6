//! Stragglers that are online are sent the newest statement again, on `down`, with back-off.
//!
//! One sweep of the group at a time, bounded, so that neither a fleet that does not answer nor one that answers
//! all at once can hold the writer up.

use std::ops::Bound;

use fleetkey_wire::{DeviceId, DownBody, Millis, Now};

use super::{Devices, Group};
use crate::context::Context;
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
    /// Where the last step ended.
    cursor: Option<DeviceId>,
}

impl Resend {
    pub(super) fn first(now: Now, wait_milliseconds: u64) -> Self {
        Self { at: now.mono.plus(wait_milliseconds), wait_milliseconds, cursor: None }
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
            let (Some(cell), Some(device)) = (member.cell(), devices.get_mut(id)) else { continue };
            if member.has_acknowledged(newest) {
                continue;
            }
            if sent == PER_STEP {
                break;
            }
            last = Some(*id);
            if device.heard.is_none() {
                device.nudge(context, &DownBody::HelloAgain, now);
                sent += 1;
            } else if device.is_online(context, now)
                && let Some(cell) = self.cells.get(&cell)
            {
                for key in self.live_keys().filter(|key| {
                    key.statement.statement().key_epoch > member.record.confirmed
                        || key.statement.digest().short() == newest
                }) {
                    let frame = self.statement_frame(context, &cell.managed, key).encode();
                    device.say(context, &DownBody::CellFrame { cell: cell.id(), frame });
                }
                context.event(Event::Resent { group: self.record.id, device: *id });
                sent += 1;
            }
        }
        let timing = &context.setup.timing;
        if sent == PER_STEP {
            resend.cursor = last;
            resend.at = now.mono.plus(STEP_MILLISECONDS);
        } else {
            let wait = resend.wait_milliseconds.max(timing.resend_milliseconds / 2) * 2;
            resend = Resend::first(now, wait.min(timing.resend_max_milliseconds));
        }
        self.resend = Some(resend);
    }
}
