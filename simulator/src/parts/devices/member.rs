//! What is on a connection: one device, or a gateway with many.

use std::time::Instant;

use fleetkey_agent_core::MemoryStore;
use fleetkey_swarm::{Crew, Device, Gateway, Outbox, Rider, Seat};

/// Who is on a connection.
pub(super) enum Member {
    Alone(Box<Device<MemoryStore>>),
    Many(Box<Gateway<MemoryStore>>),
}

/// Where a device sits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    /// The thread.
    pub(super) shard: usize,
    /// The connection.
    pub(super) seat: Seat,
    /// Its number on that connection.
    pub(super) at: usize,
}

impl Member {
    /// Its devices, in the order in which they came.
    pub(super) fn devices(&self) -> Box<dyn Iterator<Item = &Device<MemoryStore>> + '_> {
        match self {
            Self::Alone(device) => Box::new(std::iter::once(&**device)),
            Self::Many(gateway) => Box::new(gateway.devices()),
        }
    }

    fn device(&mut self, at: usize) -> Option<&mut Device<MemoryStore>> {
        match self {
            Self::Alone(device) => Some(device),
            Self::Many(gateway) => gateway.device(at),
        }
    }

    fn rider(&mut self) -> &mut dyn Rider {
        match self {
            Self::Alone(device) => &mut **device,
            Self::Many(gateway) => &mut **gateway,
        }
    }
}

/// Speaks with a device that says nothing to that.
pub(super) fn with<T>(
    crew: &mut Crew<Member>,
    spot: Spot,
    speak: impl FnOnce(&mut Device<MemoryStore>) -> T,
) -> Option<T> {
    crew.with(spot.seat, |member, _| member.device(spot.at).map(speak)).flatten()
}

/// Connects, and stays connected; with its gateway, where it has one.
pub(super) fn plug_in(crew: &mut Crew<Member>, spot: Spot) {
    _ = crew.with(spot.seat, |member, out| {
        if let Member::Many(gateway) = member {
            gateway.plug(spot.at, true, out);
        }
    });
    crew.connect(spot.seat);
}

/// Like pulling the cable: its own, not the gateway's.
pub(super) fn unplug(crew: &mut Crew<Member>, spot: Spot) {
    let is_alone = crew.with(spot.seat, |member, out| match member {
        Member::Alone(_) => true,
        Member::Many(gateway) => {
            gateway.plug(spot.at, false, out);
            false
        }
    });
    if is_alone == Some(true) {
        crew.disconnect(spot.seat);
    }
}

/// Ends the device's agent, and its connection with it; the gateway's stays.
pub(super) fn cut_power(crew: &mut Crew<Member>, spot: Spot) {
    unplug(crew, spot);
    _ = with(crew, spot, Device::cut_power);
}

impl Rider for Member {
    fn client_id(&self) -> String {
        match self {
            Self::Alone(device) => device.client_id(),
            Self::Many(gateway) => gateway.client_id(),
        }
    }

    fn connected(&mut self, out: &mut Outbox) {
        self.rider().connected(out);
    }

    fn disconnected(&mut self, out: &mut Outbox) {
        self.rider().disconnected(out);
    }

    fn subscribed(&mut self, topic: &str, is_granted: bool, out: &mut Outbox) {
        self.rider().subscribed(topic, is_granted, out);
    }

    fn message(&mut self, topic: &str, payload: &[u8], out: &mut Outbox) {
        self.rider().message(topic, payload, out);
    }

    fn timeout(&mut self, out: &mut Outbox) {
        self.rider().timeout(out);
    }

    fn next_timeout(&self) -> Option<Instant> {
        match self {
            Self::Alone(device) => device.next_timeout(),
            Self::Many(gateway) => gateway.next_timeout(),
        }
    }
}
