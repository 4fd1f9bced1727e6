//! The sending half, and what both halves share with the task that serves the connection.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use crate::driver::Driver;
use crate::events::{EventQueue, Events};
use crate::options::{BadOptions, Options};
use crate::subscriptions::{self, MAX_FILTERS, Subscriptions};

/// Starts serving a connection on the current tokio runtime and returns its two halves.
///
/// The connection ends when both halves are dropped (at once, without a word to the broker, like a power cut) or
/// with [`Client::close`]. Everything else is retried for ever.
///
/// # Errors
/// [`BadOptions`], before anything is started.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn connect(options: Options) -> Result<(Client, Events), BadOptions> {
    options.check()?;
    let (sender, receiver) = mpsc::channel(options.queue_messages);
    let mut subscriptions = Subscriptions::default();
    for filter in &options.filters {
        subscriptions.want(filter);
    }
    let shared = Arc::new(Shared {
        state: Mutex::new(State::default()),
        subscriptions: Mutex::new(subscriptions),
        events: Mutex::new(EventQueue::new(options.event_messages, options.event_bytes)),
        wake_driver: Notify::new(),
        wake_consumer: Notify::new(),
    });
    let max_packet_bytes = options.max_packet_bytes;
    tokio::spawn(Driver::new(options, Arc::clone(&shared), receiver).run());
    let half = Half { sender, shared: Arc::clone(&shared), max_packet_bytes };
    Ok((Client(Arc::new(half)), Events { shared }))
}

/// The sending half. Clones share the connection.
#[derive(Clone)]
pub struct Client(Arc<Half>);

struct Half {
    sender: mpsc::Sender<Outgoing>,
    shared: Arc<Shared>,
    max_packet_bytes: usize,
}

impl Client {
    /// Queues a message without waiting.
    ///
    /// # Errors
    /// [`PublishError::QueueFull`], or what is wrong with the message.
    pub fn try_publish(&self, topic: &str, payload: impl Into<Bytes>) -> Result<(), PublishError> {
        let message = self.message(topic, payload.into())?;
        self.0.sender.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => PublishError::QueueFull,
            mpsc::error::TrySendError::Closed(_) => PublishError::Closed,
        })
    }

    /// Queues a message, waiting for room: as long as it takes, when there is no connection. Safe to cancel: the message
    /// is then not queued.
    ///
    /// # Errors
    /// [`PublishError::Closed`], or what is wrong with the message.
    pub async fn publish(&self, topic: &str, payload: impl Into<Bytes>) -> Result<(), PublishError> {
        let message = self.message(topic, payload.into())?;
        self.0.sender.send(message).await.map_err(|_| PublishError::Closed)
    }

    /// Subscribes to `filter`, now and after each reconnect. [`crate::Event::Subscribed`] tells when it is in force.
    ///
    /// # Errors
    /// [`SubscribeError`], when nothing has changed.
    pub fn subscribe(&self, filter: &str) -> Result<(), SubscribeError> {
        if !subscriptions::is_filter(filter) {
            return Err(SubscribeError::BadFilter { filter: filter.to_owned() });
        }
        if self.0.sender.is_closed() {
            return Err(SubscribeError::Closed);
        }
        if !self.0.shared.subscriptions().want(filter) {
            return Err(SubscribeError::TooManyFilters);
        }
        self.0.shared.wake_driver.notify_one();
        Ok(())
    }

    /// Ends the subscription to `filter`. Messages under way may still come.
    pub fn unsubscribe(&self, filter: &str) {
        self.0.shared.subscriptions().give_up(filter);
        self.0.shared.wake_driver.notify_one();
    }

    /// Ends the connection for good: what is queued is still sent if there is a connection (for at most 5 s), the broker
    /// is told goodbye, and [`Events::next`] returns `None` once it has returned what came before. Returns when it is done.
    pub async fn close(&self) {
        self.0.shared.state().closing = true;
        self.0.shared.wake_driver.notify_one();
        self.0.sender.closed().await;
    }

    fn message(&self, topic: &str, payload: Bytes) -> Result<Outgoing, PublishError> {
        let is_topic = !topic.is_empty() && !topic.contains(['+', '#', '\0']) && topic.len() <= 1024;
        if !is_topic {
            return Err(PublishError::BadTopic { topic: topic.chars().take(128).collect() });
        }
        // Fixed header, length of the topic, packet identifier: at most 9 bytes.
        let bytes = topic.len() + payload.len() + 9;
        let limit = self.0.max_packet_bytes;
        if bytes > limit {
            return Err(PublishError::TooLarge { bytes, limit });
        }
        Ok(Outgoing { topic: topic.to_owned(), payload })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.shared.state().clients_left = true;
        self.shared.wake_driver.notify_one();
    }
}

/// A message on its way out.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
}

/// Why a message was not queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No room: the broker is away, or slower than what is published.
    #[error("the queue of outgoing messages is full")]
    QueueFull,
    /// The connection has ended for good.
    #[error("the connection is closed")]
    Closed,
    /// Not a topic one can publish to.
    #[error("{topic:?} is not an MQTT topic")]
    BadTopic {
        /// The topic, cut to 128 characters.
        topic: String,
    },
    /// Larger than packets may be.
    #[error("a message of {bytes} bytes, packets are limited to {limit}")]
    TooLarge {
        /// The size of its packet, at most.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

/// Why a filter was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// The connection has ended for good.
    #[error("the connection is closed")]
    Closed,
    /// A filter that MQTT does not know, or of more than 800 bytes.
    #[error("{filter:?} is not an MQTT topic filter")]
    BadFilter {
        /// The filter.
        filter: String,
    },
    /// More filters than [`MAX_FILTERS`].
    #[error("more than {MAX_FILTERS} topic filters")]
    TooManyFilters,
}

/// What the halves and the task share. Locks are held for moments only, one at a time, and never across an await.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    subscriptions: Mutex<Subscriptions>,
    events: Mutex<EventQueue>,
    pub(crate) wake_driver: Notify,
    pub(crate) wake_consumer: Notify,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Somebody called `close`.
    pub(crate) closing: bool,
    clients_left: bool,
    consumer_left: bool,
}

impl State {
    /// Nobody is left who could send or receive anything.
    pub(crate) fn abandoned(&self) -> bool {
        self.clients_left && self.consumer_left
    }
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn subscriptions(&self) -> MutexGuard<'_, Subscriptions> {
        lock(&self.subscriptions)
    }

    pub(crate) fn events(&self) -> MutexGuard<'_, EventQueue> {
        lock(&self.events)
    }

    pub(crate) fn consumer_left(&self) {
        self.events().close();
        self.state().consumer_left = true;
        self.wake_driver.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds this lock")
}
