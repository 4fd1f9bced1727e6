//! What an agent sent and received: counted always, kept when asked for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fleetkey_wire::Topic;

/// Payload bytes that are kept at most of what one agent receives.
pub const MAX_RECORDED_BYTES: usize = 64 * 1024 * 1024;

/// Messages and payload bytes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Volume {
    /// Messages.
    pub messages: u64,
    /// Bytes of payload.
    pub bytes: u64,
}

/// What an agent sent and received since it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Received on cell topics.
    pub cell: Volume,
    /// Received on the device's `down` topic.
    pub down: Volume,
    /// Published on the device's `up` topic.
    pub up: Volume,
    /// Messages that were lost between broker and agent, or agent and broker, because a queue was full.
    pub dropped: u64,
    /// How often the broker has accepted a connection.
    pub connections: u64,
}

/// A message as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Its topic.
    pub topic: Topic,
    /// Its payload.
    pub payload: Bytes,
}

#[derive(Debug, Default)]
struct Counter {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    fn add(&self, bytes: usize) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn read(&self) -> Volume {
        Volume { messages: self.messages.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// The counters, shared between an agent's task and those who ask.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    cell: Counter,
    down: Counter,
    up: Counter,
    dropped: AtomicU64,
    connections: AtomicU64,
    recorder: Option<Mutex<Recorder>>,
}

#[derive(Debug, Default)]
struct Recorder {
    messages: Vec<Recorded>,
    bytes: usize,
}

impl Meter {
    pub(crate) fn new(record: bool) -> Self {
        Self { recorder: record.then(Mutex::default), ..Self::default() }
    }

    pub(crate) fn received(&self, topic: Topic, payload: &Bytes) {
        match topic {
            Topic::Cell { .. } => self.cell.add(payload.len()),
            Topic::Down { .. } | Topic::Up { .. } => self.down.add(payload.len()),
        }
        if let Some(mut recorder) = self.recorder()
            && recorder.bytes + payload.len() <= MAX_RECORDED_BYTES
        {
            recorder.bytes += payload.len();
            recorder.messages.push(Recorded { topic, payload: payload.clone() });
        }
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.up.add(bytes);
    }

    pub(crate) fn dropped(&self, messages: u64) {
        self.dropped.fetch_add(messages, Ordering::Relaxed);
    }

    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Traffic {
        Traffic {
            cell: self.cell.read(),
            down: self.down.read(),
            up: self.up.read(),
            dropped: self.dropped.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn recorded(&self) -> Vec<Recorded> {
        self.recorder().map(|recorder| recorder.messages.clone()).unwrap_or_default()
    }

    fn recorder(&self) -> Option<MutexGuard<'_, Recorder>> {
        Some(self.recorder.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
