//! The policy shared between whoever feeds it and the broker that obeys it.
//!
//! A broker decides under [`PolicyHandle::read`] and watches for [`Effects`] to act on live sessions. It closes the gap
//! between the two by deciding again after it has registered a session or subscription: the state is changed before the
//! watchers are called.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};

use crate::state::{Effects, OutOfStep, PolicyState};
use crate::update::PolicyUpdate;

type Watcher = Box<dyn Fn(&Effects) + Send + Sync>;

/// A shared policy; clones are the same policy.
#[derive(Clone)]
pub struct PolicyHandle(Arc<Shared>);

struct Shared {
    state: RwLock<PolicyState>,
    watchers: Mutex<Watchers>,
}

#[derive(Default)]
struct Watchers {
    next: u64,
    list: Vec<(u64, Watcher)>,
}

/// Ends the watching when dropped.
#[must_use = "dropping it ends the watching"]
pub struct Watch {
    id: u64,
    shared: Weak<Shared>,
}

impl PolicyHandle {
    /// Shares this policy.
    pub fn new(state: PolicyState) -> Self {
        Self(Arc::new(Shared { state: RwLock::new(state), watchers: Mutex::default() }))
    }

    /// The state, for a decision. Hold it shortly: updates wait for it.
    pub fn read(&self) -> RwLockReadGuard<'_, PolicyState> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an update in, then tells every watcher what follows from it. Updates are taken one at a time.
    ///
    /// # Errors
    /// Updates were lost in between; nothing has changed.
    pub fn apply(&self, update: PolicyUpdate) -> Result<Effects, OutOfStep> {
        // Held to the end, so that watchers hear of effects in the order of the updates.
        let watchers = self.watchers();
        let effects = self.0.state.write().unwrap_or_else(PoisonError::into_inner).apply(update)?;
        if !effects.is_empty() {
            for (_, watcher) in &watchers.list {
                watcher(&effects);
            }
        }
        Ok(effects)
    }

    /// Calls `watcher` after each update that has effects. It must return soon, and not call back into this handle
    /// except to read.
    pub fn watch(&self, watcher: impl Fn(&Effects) + Send + Sync + 'static) -> Watch {
        let mut watchers = self.watchers();
        let id = watchers.next;
        watchers.next += 1;
        watchers.list.push((id, Box::new(watcher)));
        Watch { id, shared: Arc::downgrade(&self.0) }
    }

    fn watchers(&self) -> MutexGuard<'_, Watchers> {
        self.0.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            let mut watchers = shared.watchers.lock().unwrap_or_else(PoisonError::into_inner);
            watchers.list.retain(|(id, _)| *id != self.id);
        }
    }
}

impl fmt::Debug for PolicyHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.read();
        f.debug_struct("PolicyHandle")
            .field("fleet", &state.fleet())
            .field("sequence", &state.sequence())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("id", &self.id).finish_non_exhaustive()
    }
}
