//! When the coordinator was last heard: what tells a policy that stands from one that nobody vouches for any more.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The moment of the last sign of life on the stream; clones are the same moment.
#[derive(Debug, Clone, Default)]
pub struct LastHeard(Arc<Mutex<Option<Instant>>>);

impl LastHeard {
    /// How long nothing has been heard; `None` before the first snapshot.
    pub fn silence(&self) -> Option<Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|at| at.elapsed())
    }

    /// The coordinator was heard just now.
    pub fn hear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}
