//! A rekey in flight: the next one for joins waits until those who can confirm it have.
//!
//! Nobody is marked, and nothing is counted, when a rekey takes off: that would cost more than all else it does for a
//! large fleet. Where joins wait, one passes along the members up to the first who can answer and has not, and goes on
//! from there when that one has.

use std::ops::Bound;

use fleetkey_wire::{DeviceId, Millis, Now, PskId};

use super::{Devices, Group, resend};
use crate::context::Context;
use crate::device::Device;

/// A rekey whose confirmations the next one for joins waits for.
#[derive(Debug)]
pub(super) struct Flight {
    /// Nobody is waited for any longer.
    pub(super) until: Millis,
    /// The first who can answer and has not; nobody has looked yet where it is missing.
    waits_for: Option<DeviceId>,
}

impl Flight {
    /// When joins that wait for it are to be looked at again, if nobody confirms.
    pub(super) fn due(&self, window_until: Millis) -> Millis {
        if self.waits_for.is_some() { window_until.max(self.until) } else { window_until }
    }
}

impl Group {
    /// A statement is on its way to everybody.
    pub(super) fn begin_flight(&mut self, context: &Context, now: Now) {
        let until = now.mono.plus(context.setup.timing.in_flight_milliseconds);
        self.in_flight = Some(Flight { until, waits_for: None });
    }

    /// Some were given their places after the key was issued that admits them: they are waited for like everybody else.
    pub(super) fn await_joined(&mut self, context: &Context, now: Now) {
        self.begin_flight(context, now);
        let wait = context.setup.timing.resend_milliseconds;
        self.resend.get_or_insert_with(|| resend::Resend::first(now, wait));
    }

    /// Whether all have confirmed who can, or their time is over.
    pub(super) fn has_landed(&mut self, context: &Context, devices: &Devices, now: Now) -> bool {
        if self.in_flight.as_ref().is_some_and(|flight| flight.waits_for.is_none()) {
            self.wait_for_next(context, devices, Bound::Unbounded, now);
        }
        self.in_flight.is_none()
    }

    /// A member has confirmed the newest key.
    pub(super) fn goes_on_after(
        &mut self,
        context: &Context,
        devices: &Devices,
        confirmed: DeviceId,
        now: Now,
    ) {
        if self.in_flight.as_ref().is_some_and(|flight| flight.waits_for == Some(confirmed)) {
            self.wait_for_next(context, devices, Bound::Excluded(confirmed), now);
        }
    }

    fn wait_for_next(&mut self, context: &Context, devices: &Devices, after: Bound<DeviceId>, now: Now) {
        let newest = self.newest_digest();
        let psk = self.record.psk;
        let next = self.members.range((after, Bound::Unbounded)).find(|(id, member)| {
            member.cell().is_some()
                && !member.has_acknowledged(newest)
                && devices.get(id).is_some_and(|device| can_answer(context, device, psk, now))
        });
        let next = next.map(|(id, _)| *id);
        self.in_flight = self.in_flight.take().filter(|_| next.is_some());
        if let Some(flight) = &mut self.in_flight {
            flight.waits_for = next;
        }
    }
}

/// Whether a device that is told something can be expected to confirm it. One that lacks the pre-shared key may be stuck
/// in a former epoch.
fn can_answer(context: &Context, device: &Device, psk: Option<PskId>, now: Now) -> bool {
    device.is_online(context, now) && psk.is_none_or(|psk| device.psks.contains(&psk))
}
