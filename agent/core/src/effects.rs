//! What goes into the state machine, and what comes out of it.

use fleetkey_wire::{CellId, DismissReason, Generation, GroupId, KeyEpoch, Psk, PskId, Topic};

use crate::refused::Refused;
use crate::store::Writes;

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input<'a> {
    /// The broker has accepted the connection. Nothing is subscribed yet.
    Connected,
    /// The connection is gone.
    Disconnected,
    /// The broker has granted a subscription (SUBACK, MQTT 3.1.1 §3.9).
    Subscribed {
        /// The topic.
        topic: Topic,
    },
    /// The broker has refused a subscription.
    SubscribeRefused {
        /// The topic.
        topic: Topic,
    },
    /// A message arrived.
    Message {
        /// Its topic.
        topic: Topic,
        /// Its payload, not yet bounded or believed.
        payload: &'a [u8],
    },
    /// Messages were lost on the way through the shell.
    MessagesDropped,
    /// The time that [`crate::Agent::poll_timeout`] named has come.
    Timeout,
    /// The device's owner wants it to be out of a group.
    Leave {
        /// The group.
        group: GroupId,
    },
    /// The device's operator gives it a pre-shared key: from now on it is in that group only with one.
    AddPsk {
        /// The group it is for, by its UUID or its name.
        group: &'a str,
        /// The key.
        psk: &'a Psk,
    },
    /// The device's operator takes a pre-shared key from it.
    RemovePsk {
        /// The key.
        psk: PskId,
    },
}

/// One thing for the shell to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Publish, at most once (QoS 0), not retained.
    Publish {
        /// The topic: always the device's own `up`.
        topic: Topic,
        /// The frame.
        payload: Vec<u8>,
    },
    /// Subscribe to a topic, and keep at it should the broker refuse, as long as the connection lasts.
    Subscribe {
        /// The topic.
        topic: Topic,
    },
    /// Give a subscription up.
    Unsubscribe {
        /// The topic.
        topic: Topic,
    },
    /// Tell the device's applications.
    Event(Event),
}

/// What the device's applications may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The device is in a group, or has come back to it through another cell or by a fresh join.
    Joined {
        /// The group.
        group: GroupId,
        /// Its name, for people.
        name: String,
        /// The cell through which.
        cell: CellId,
    },
    /// From now on the group's messages are sealed under this key epoch.
    KeyActivated {
        /// The group.
        group: GroupId,
        /// The key epoch.
        key_epoch: KeyEpoch,
    },
    /// The device is out of a group; its keys of the group are gone.
    Removed {
        /// The group.
        group: GroupId,
        /// How it came to know.
        because: RemovedBecause,
    },
    /// The coordinator has signed two secrets for one key epoch: it was copied or rolled back.
    Alarm {
        /// The group.
        group: GroupId,
        /// The key epoch.
        key_epoch: KeyEpoch,
    },
    /// A group that the device is in, or was let into, asks for a pre-shared key that the device does not hold for it.
    PskLacking {
        /// The group.
        group: GroupId,
        /// The key.
        psk: PskId,
    },
    /// For too long no fresh answer has come from the coordinator: nothing is sealed until one does.
    Silent {
        /// For how long, in seconds.
        seconds: u64,
    },
    /// The coordinator has answered again after [`Event::Silent`].
    Heard,
    /// The coordinator shows a newer certificate, and it is good.
    CertificateUpdated {
        /// Its generation.
        generation: Generation,
    },
}

/// How a device learned that it is out of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemovedBecause {
    /// A commit removed its leaf.
    Commit,
    /// The coordinator said so.
    Dismissed(DismissReason),
}

/// What one input led to. The writes are one transaction, to be committed before any output is performed.
#[derive(Debug, Default)]
pub struct Effects {
    /// What to store, first.
    pub writes: Writes,
    /// What to do after that, in order.
    pub outputs: Vec<Output>,
    /// Why the input was refused, if it was.
    pub refused: Option<Refused>,
}

impl Effects {
    pub(crate) fn event(&mut self, event: Event) {
        self.outputs.push(Output::Event(event));
    }

    /// The events among the outputs.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.outputs.iter().filter_map(|output| match output {
            Output::Event(event) => Some(event),
            Output::Publish { .. } | Output::Subscribe { .. } | Output::Unsubscribe { .. } => None,
        })
    }
}
