//! What a connection is for.

use std::time::Instant;

/// Somebody who uses one connection to a broker. It never waits: what is to be said goes into the [`Outbox`].
pub trait Rider: Send + 'static {
    /// The client id, unique among the clients of the broker.
    fn client_id(&self) -> String;

    /// The broker has accepted the connection.
    fn connected(&mut self, out: &mut Outbox);

    /// The connection is gone.
    fn disconnected(&mut self, out: &mut Outbox);

    /// The broker has granted a subscription, or refused it; a refused one is asked for again by and by.
    fn subscribed(&mut self, topic: &str, is_granted: bool, out: &mut Outbox);

    /// A message has come.
    fn message(&mut self, topic: &str, payload: &[u8], out: &mut Outbox);

    /// The time that [`Self::next_timeout`] has named is there.
    fn timeout(&mut self, out: &mut Outbox);

    /// When it wants to be woken.
    fn next_timeout(&self) -> Option<Instant>;

    /// Whether it has greeted on this connection, and nobody has answered yet. Meanwhile it keeps its turn among those that
    /// connect, so that a whole fleet does not say hello faster than it is answered.
    fn awaits_answer(&self) -> bool {
        false
    }
}

/// What a rider wants of its connection. Without one all of it is dropped.
#[derive(Debug, Default)]
pub struct Outbox {
    pub(crate) publishes: Vec<(Box<str>, Vec<u8>)>,
    pub(crate) subscribes: Vec<String>,
    pub(crate) unsubscribes: Vec<String>,
}

impl Outbox {
    /// Publishes, at most once (QoS 0).
    pub fn publish(&mut self, topic: impl Into<Box<str>>, payload: Vec<u8>) {
        self.publishes.push((topic.into(), payload));
    }

    /// Subscribes.
    pub fn subscribe(&mut self, topic: impl Into<String>) {
        self.subscribes.push(topic.into());
    }

    /// Gives a subscription up.
    pub fn unsubscribe(&mut self, topic: impl Into<String>) {
        self.unsubscribes.push(topic.into());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.publishes.is_empty() && self.subscribes.is_empty() && self.unsubscribes.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.publishes.clear();
        self.subscribes.clear();
        self.unsubscribes.clear();
    }
}
