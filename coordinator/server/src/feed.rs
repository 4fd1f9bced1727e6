//! The policy feed: the coordinator's word to brokers on who is in which cell, and who is revoked.
//!
//! Listeners in the same process are called before anything is published that depends on a change. Listeners
//! elsewhere read a [`PolicyStream`]: a snapshot first, then changes by number; one that falls behind gets a
//! snapshot again, so that it can neither miss a change nor hold up the coordinator.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fleetkey_coordinator_core::Access;
use fleetkey_policy::PolicyUpdate;
use fleetkey_wire::{CellId, DeviceId};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Changes that a stream may fall behind before it is given a snapshot instead.
const MAX_BEHIND: usize = 4_096;

type Listener = Box<dyn Fn(&PolicyUpdate) + Send>;

/// The feed; clones are the same feed.
#[derive(Clone)]
pub struct PolicyFeed {
    view: Arc<Mutex<View>>,
    updates: broadcast::Sender<PolicyUpdate>,
}

#[derive(Default)]
struct View {
    /// The number of the last update; zero before the first.
    sequence: u64,
    revoked: BTreeSet<DeviceId>,
    cells: BTreeMap<CellId, BTreeSet<DeviceId>>,
    listeners: Vec<Listener>,
}

/// What one broker elsewhere reads.
pub struct PolicyStream {
    feed: PolicyFeed,
    first: Option<PolicyUpdate>,
    updates: broadcast::Receiver<PolicyUpdate>,
}

impl Default for PolicyFeed {
    fn default() -> Self {
        Self::new()
    }
}

impl PolicyFeed {
    /// A feed that knows nothing yet, and says nothing until it does.
    pub fn new() -> Self {
        Self { view: Arc::default(), updates: broadcast::Sender::new(MAX_BEHIND) }
    }

    /// Calls `listener` with every update from now on, a snapshot first if there is one already. It must return
    /// soon, and not call back.
    pub fn listen(&self, listener: impl Fn(&PolicyUpdate) + Send + 'static) {
        let mut view = self.view();
        if let Some(snapshot) = view.snapshot() {
            listener(&snapshot);
        }
        view.listeners.push(Box::new(listener));
    }

    /// A stream that begins with a snapshot, as soon as there is one.
    pub fn subscribe(&self) -> PolicyStream {
        let view = self.view();
        PolicyStream { feed: self.clone(), first: view.snapshot(), updates: self.updates.subscribe() }
    }

    /// The whole state, after the coordinator was loaded.
    pub(crate) fn replace(&self, all: Vec<Access>) {
        let mut view = self.view();
        view.revoked.clear();
        view.cells.clear();
        for access in all {
            view.take(access);
        }
        view.sequence += 1;
        let snapshot = view.snapshot().expect("it has a number now");
        self.send(&view, snapshot);
    }

    /// One transaction's changes.
    pub(crate) fn change(&self, changes: Vec<Access>) {
        let mut view = self.view();
        for access in changes {
            view.sequence += 1;
            let update = view.take(access);
            self.send(&view, update);
        }
    }

    fn send(&self, view: &View, update: PolicyUpdate) {
        for listener in &view.listeners {
            listener(&update);
        }
        // An error means that nobody reads a stream.
        let _ = self.updates.send(update);
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl View {
    fn snapshot(&self) -> Option<PolicyUpdate> {
        (self.sequence > 0).then(|| PolicyUpdate::Snapshot {
            sequence: self.sequence,
            revoked: self.revoked.clone(),
            cells: self.cells.clone(),
        })
    }

    fn take(&mut self, access: Access) -> PolicyUpdate {
        let sequence = self.sequence;
        match access {
            Access::CellMembers { cell, members } => {
                let members: BTreeSet<DeviceId> = members.into_iter().collect();
                self.cells.insert(cell, members.clone());
                PolicyUpdate::CellMembers { sequence, cell, members }
            }
            Access::CellGone { cell } => {
                self.cells.remove(&cell);
                PolicyUpdate::CellGone { sequence, cell }
            }
            Access::Revoked { device } => {
                self.revoked.insert(device);
                PolicyUpdate::Revoked { sequence, device }
            }
        }
    }
}

impl PolicyStream {
    /// The next update; `None` when the coordinator is gone.
    pub async fn next(&mut self) -> Option<PolicyUpdate> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        match self.updates.recv().await {
            Ok(update) => Some(update),
            Err(RecvError::Closed) => None,
            Err(RecvError::Lagged(_)) => {
                *self = self.feed.subscribe();
                self.first.take()
            }
        }
    }
}

impl fmt::Debug for PolicyFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyFeed").field("sequence", &self.view().sequence).finish_non_exhaustive()
    }
}

impl fmt::Debug for PolicyStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyStream").field("feed", &self.feed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use fleetkey_policy::{CellAccess, PolicyState};
    use fleetkey_wire::FleetId;

    use super::*;

    fn cell(n: u8) -> CellId {
        CellId::from_bytes([n; 16])
    }

    fn device(n: u8) -> DeviceId {
        DeviceId::from_bytes([n; 16])
    }

    fn members(n: u8, devices: &[u8]) -> Access {
        Access::CellMembers { cell: cell(n), members: devices.iter().copied().map(device).collect() }
    }

    fn broker() -> PolicyState {
        PolicyState::new(FleetId::from_bytes([9; 16]), CellAccess::Members)
    }

    #[tokio::test]
    async fn a_broker_that_follows_a_stream_knows_what_the_coordinator_knows() {
        let feed = PolicyFeed::new();
        let mut stream = feed.subscribe();
        feed.replace(vec![members(1, &[1, 2]), members(2, &[3])]);
        feed.change(vec![
            members(1, &[1]),
            Access::CellGone { cell: cell(2) },
            Access::Revoked { device: device(2) },
        ]);
        let mut broker = broker();
        for _ in 0..4 {
            broker.apply(stream.next().await.unwrap()).unwrap();
        }
        assert!(broker.is_member(cell(1), device(1)));
        assert!(!broker.is_member(cell(1), device(2)));
        assert_eq!(broker.cell_count(), 1);
        assert!(broker.is_revoked(device(2)));
    }

    #[tokio::test]
    async fn a_late_stream_begins_with_a_snapshot_and_goes_on_without_a_gap() {
        let feed = PolicyFeed::new();
        feed.replace(vec![members(1, &[1])]);
        feed.change(vec![members(2, &[2])]);
        let mut stream = feed.subscribe();
        feed.change(vec![members(3, &[3])]);
        let mut broker = broker();
        broker.apply(stream.next().await.unwrap()).unwrap();
        assert_eq!(broker.cell_count(), 2);
        broker.apply(stream.next().await.unwrap()).unwrap();
        assert_eq!(broker.cell_count(), 3);
    }

    #[tokio::test]
    async fn a_stream_that_fell_behind_gets_a_snapshot() {
        let feed = PolicyFeed::new();
        feed.replace(Vec::new());
        let mut stream = feed.subscribe();
        let mut broker = broker();
        broker.apply(stream.next().await.unwrap()).unwrap();
        for round in 0..=u32::try_from(MAX_BEHIND).unwrap() {
            feed.change(vec![members(1, &[u8::try_from(round % 200).unwrap()])]);
        }
        feed.change(vec![members(2, &[2])]);
        broker.apply(stream.next().await.unwrap()).unwrap();
        assert_eq!(broker.cell_count(), 2);
        feed.change(vec![members(3, &[3])]);
        broker.apply(stream.next().await.unwrap()).unwrap();
        assert_eq!(broker.cell_count(), 3);
    }

    #[test]
    fn a_listener_hears_of_a_change_before_the_call_returns() {
        let feed = PolicyFeed::new();
        let heard = Arc::new(Mutex::new(Vec::new()));
        feed.listen({
            let heard = heard.clone();
            move |update| heard.lock().unwrap().push(update.sequence())
        });
        assert!(heard.lock().unwrap().is_empty(), "nothing is known yet");
        feed.replace(Vec::new());
        feed.change(vec![members(1, &[1])]);
        assert_eq!(*heard.lock().unwrap(), [1, 2]);
    }
}
