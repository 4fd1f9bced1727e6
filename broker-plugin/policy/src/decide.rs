//! The decisions: connect, publish, subscribe.
//!
//! Raw strings come in, typed topics go out, so that nothing behind this point reads a topic again. Leaves to others
//! how a refusal is told to the client: that differs between versions of MQTT.

use fleetkey_wire::{DeviceId, Filter, Topic};

use crate::denied::Denied;
use crate::state::{CellAccess, PolicyState};

/// The longest client id that is accepted, in bytes.
const MAX_CLIENT_ID_BYTES: usize = 64;

/// What the client id of a relay begins with, and no other party's does: where parties are known by their client ids,
/// they cannot be mistaken for each other.
pub const RELAY_CLIENT_ID_PREFIX: &str = "relay";

/// Who is at the other end of a connection, as its certificate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// A coordinator of the fleet.
    Coordinator,
    /// A broker of the fleet. On a connection of its own to another broker it is a relay: it speaks for the devices that are
    /// connected to it, and takes what is for them.
    Broker,
    /// An operator of the fleet.
    Operator,
    /// A device of the fleet.
    Device(DeviceId),
}

/// Quality of service (MQTT 3.1.1 §4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// QoS 0.
    AtMostOnce,
    /// QoS 1.
    AtLeastOnce,
    /// QoS 2, which is refused in publishes.
    ExactlyOnce,
}

/// The largest payloads, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayloadLimits {
    /// From the coordinator to a cell.
    pub cell_bytes: usize,
    /// From the coordinator to one device.
    pub down_bytes: usize,
    /// From a device to the coordinator.
    pub up_bytes: usize,
}

impl Default for PayloadLimits {
    fn default() -> Self {
        Self { cell_bytes: 64 * 1024, down_bytes: 64 * 1024, up_bytes: 32 * 1024 }
    }
}

impl PayloadLimits {
    /// The largest of them.
    pub fn max_bytes(&self) -> usize {
        self.cell_bytes.max(self.down_bytes).max(self.up_bytes)
    }
}

impl PolicyState {
    /// May `party` connect under this client id?
    ///
    /// # Errors
    /// The reason why not.
    pub fn decide_connect(&self, party: &Party, client_id: &str) -> Result<(), Denied> {
        if client_id.is_empty()
            || client_id.len() > MAX_CLIENT_ID_BYTES
            || !client_id.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(Denied::BadClientId);
        }
        match party {
            Party::Coordinator
                if client_id.parse::<DeviceId>().is_ok() || client_id.starts_with(RELAY_CLIENT_ID_PREFIX) =>
            {
                Err(Denied::BadClientId)
            }
            Party::Coordinator => Ok(()),
            Party::Broker if client_id.starts_with(RELAY_CLIENT_ID_PREFIX) => self.check_known(),
            Party::Broker => Err(Denied::ClientIdNotRelay),
            Party::Operator => Err(Denied::RoleWithoutTopics),
            Party::Device(device) => {
                self.check_device(*device)?;
                if client_id.parse() == Ok(*device) {
                    Ok(())
                } else {
                    Err(Denied::ClientIdNotDevice { device: *device })
                }
            }
        }
    }

    /// May `party` publish this? Answers with the topic it goes to.
    ///
    /// # Errors
    /// The reason why not.
    pub fn decide_publish(
        &self,
        party: &Party,
        raw_topic: &str,
        payload_bytes: usize,
        qos: Qos,
        retain: bool,
    ) -> Result<Topic, Denied> {
        if qos == Qos::ExactlyOnce {
            return Err(Denied::Qos2);
        }
        if retain {
            return Err(Denied::Retain);
        }
        let topic = self.own_fleet(Topic::parse(raw_topic)?)?;
        let limits = self.payload_limits();
        let limit = match (party, topic) {
            (Party::Coordinator, Topic::Cell { .. }) => limits.cell_bytes,
            (Party::Coordinator, Topic::Down { .. }) => limits.down_bytes,
            (Party::Coordinator, Topic::Up { .. }) => return Err(Denied::DevicePublishes),
            (Party::Device(own), Topic::Up { device, .. }) => {
                self.check_device(*own)?;
                if *own != device {
                    return Err(Denied::OtherDevice { device });
                }
                limits.up_bytes
            }
            // Its frames are authentic or they are not: who carries them makes no difference to the coordinator.
            (Party::Broker, Topic::Up { device, .. }) => {
                self.check_device(device)?;
                limits.up_bytes
            }
            (Party::Device(_) | Party::Broker, Topic::Cell { .. } | Topic::Down { .. }) => {
                return Err(Denied::CoordinatorPublishes);
            }
            (Party::Operator, _) => return Err(Denied::RoleWithoutTopics),
        };
        if payload_bytes > limit {
            return Err(Denied::PayloadTooLarge { bytes: payload_bytes, limit });
        }
        Ok(topic)
    }

    /// May `party` subscribe to this? Answers with what it subscribes to.
    ///
    /// # Errors
    /// The reason why not.
    pub fn decide_subscribe(&self, party: &Party, raw_filter: &str) -> Result<Filter, Denied> {
        let filter = Filter::parse(raw_filter)?;
        match filter {
            Filter::AllUp { fleet } if fleet != self.fleet() => return Err(Denied::OtherFleet { fleet }),
            Filter::AllUp { .. } => {}
            Filter::Exact(topic) => {
                self.own_fleet(topic)?;
            }
        }
        match (party, filter) {
            (Party::Coordinator, Filter::AllUp { .. }) => Ok(filter),
            (Party::Coordinator, Filter::Exact(_)) => Err(Denied::DeviceSubscribes),
            (Party::Device(_) | Party::Broker, Filter::AllUp { .. } | Filter::Exact(Topic::Up { .. })) => {
                Err(Denied::CoordinatorSubscribes)
            }
            (Party::Device(own), Filter::Exact(Topic::Down { device, .. })) => {
                self.check_device(*own)?;
                if *own == device { Ok(filter) } else { Err(Denied::OtherDevice { device }) }
            }
            (Party::Device(own), Filter::Exact(Topic::Cell { cell, .. })) => {
                self.check_device(*own)?;
                match self.access() {
                    CellAccess::AnyDevice => Ok(filter),
                    CellAccess::Members if self.is_member(cell, *own) => Ok(filter),
                    CellAccess::Members => Err(Denied::NotMember { cell }),
                }
            }
            (Party::Broker, Filter::Exact(Topic::Down { device, .. })) => {
                self.check_device(device).map(|()| filter)
            }
            // It sees to it that its own clients are members; and it may know of a cell before this broker does.
            (Party::Broker, Filter::Exact(Topic::Cell { .. })) => self.check_known().map(|()| filter),
            (Party::Operator, _) => Err(Denied::RoleWithoutTopics),
        }
    }

    fn own_fleet(&self, topic: Topic) -> Result<Topic, Denied> {
        if topic.fleet() == self.fleet() {
            Ok(topic)
        } else {
            Err(Denied::OtherFleet { fleet: topic.fleet() })
        }
    }

    fn check_device(&self, device: DeviceId) -> Result<(), Denied> {
        if self.is_revoked(device) {
            return Err(Denied::Revoked { device });
        }
        self.check_known()
    }

    fn check_known(&self) -> Result<(), Denied> {
        if self.access() == CellAccess::Members && self.sequence().is_none() {
            return Err(Denied::PolicyUnknown);
        }
        Ok(())
    }
}
