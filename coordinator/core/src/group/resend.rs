//! Stragglers that are online are sent the newest statement again, on `down`, with back-off.
//!
//! Whose turn has not come yet is no straggler: while confirmations stream in, the first sweep waits.
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
    /// Whether confirmations may still be streaming in.
    stream: Option<Stream>,
}

/// Confirmations as they come in before the first sweep.
#[derive(Debug)]
struct Stream {
    /// Looked at this often.
    every_milliseconds: u64,
    /// How many had come at the last look.
    seen: Option<usize>,
    /// When the sweep begins in any case.
    until: Millis,
}

/// Looks at the stream of confirmations in the time after which the first sweep is due.
const LOOKS: u64 = 4;
/// The first sweep waits this many times as long for a stream that does not end.
const PATIENCE: u64 = 4;
/// It is a stream as long as one in so many members confirms between two looks.
const STREAM_SHARE: usize = 64;

impl Resend {
    pub(super) fn first(now: Now, wait_milliseconds: u64) -> Self {
        let every_milliseconds = wait_milliseconds / LOOKS;
        let until = now.mono.plus(wait_milliseconds * PATIENCE);
        Self {
            at: now.mono.plus(wait_milliseconds - every_milliseconds),
            wait_milliseconds,
            is_first: true,
            cursor: None,
            stream: (every_milliseconds > 0).then_some(Stream { every_milliseconds, seen: None, until }),
        }
    }

    fn next(now: Now, wait_milliseconds: u64) -> Self {
        let at = now.mono.plus(wait_milliseconds);
        Self { at, wait_milliseconds, is_first: false, cursor: None, stream: None }
    }

    /// Puts the first sweep off while confirmations stream in. Whether it did.
    fn waits_for_stream(&mut self, confirmed: usize, members: usize, now: Now) -> bool {
        let Some(mut stream) = self.stream.take_if(|_| self.cursor.is_none()) else { return false };
        let goes_on = stream.seen.is_none_or(|seen| confirmed > seen + members / STREAM_SHARE);
        let at = now.mono.plus(stream.every_milliseconds);
        if !goes_on || at > stream.until {
            return false;
        }
        stream.seen = Some(confirmed);
        self.at = at;
        self.stream = Some(stream);
        true
    }
}

impl Group {
    pub(super) fn resend_on_time(&mut self, context: &mut Context, devices: &mut Devices, now: Now) {
        let Some(mut resend) = self.resend.take_if(|resend| resend.at <= now.mono) else { return };
        if self.behind() == 0 {
            return;
        }
        if resend.waits_for_stream(self.acknowledged, self.placed, now) {
            self.resend = Some(resend);
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

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: u64 = 3_000;

    fn at(milliseconds: u64) -> Now {
        Now { mono: Millis(milliseconds), unix_seconds: 0 }
    }

    /// When the first sweep of a thousand members begins, if so many have confirmed at each moment.
    fn begins(confirmed: impl Fn(u64) -> usize) -> u64 {
        let mut resend = Resend::first(at(0), WAIT);
        while resend.waits_for_stream(confirmed(resend.at.0), 1_000, at(resend.at.0)) {}
        resend.at.0
    }

    #[test]
    fn stragglers_are_reminded_on_time_where_all_others_have_long_confirmed() {
        assert_eq!(begins(|_| 990), WAIT);
        assert_eq!(begins(|_| 0), WAIT);
        // One now and then is no stream.
        assert_eq!(begins(|milliseconds| (milliseconds / 750) as usize), WAIT);
    }

    #[test]
    fn a_sweep_waits_until_the_stream_of_confirmations_has_ended() {
        let ends = 7_000;
        let begun = begins(|milliseconds| (milliseconds.min(ends) / 10) as usize);
        assert!((ends..ends + WAIT).contains(&begun), "{begun}");
    }

    #[test]
    fn a_stream_that_does_not_end_puts_a_sweep_off_for_so_long_and_no_longer() {
        let begun = begins(|milliseconds| (milliseconds / 10) as usize);
        assert!((WAIT * 3..=WAIT * PATIENCE).contains(&begun), "{begun}");
    }
}
