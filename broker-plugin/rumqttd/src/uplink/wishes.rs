//! What sessions want of the broker above: each wish once, however many have it.
//!
//! A wish is noted before the session that has it can say anything that depends on it; who sends takes messages first and
//! wishes after them, and writes the wishes first. So an answer from above finds its subscription.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use fleetkey_wire::{CellId, DeviceId, FleetId, Topic};

/// A topic of the broker above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Wish {
    /// A cell's.
    Cell(CellId),
    /// The `down` of a device.
    Down(DeviceId),
}

impl Wish {
    pub(crate) fn filter(self, fleet: FleetId) -> String {
        match self {
            Self::Cell(cell) => Topic::Cell { fleet, cell },
            Self::Down(device) => Topic::Down { fleet, device },
        }
        .to_string()
    }
}

/// The way to the broker above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Way {
    /// It is there.
    Open,
    /// It was there a moment ago.
    Lost,
    /// It has been lost for so long that nobody is let in.
    #[default]
    Closed,
}

/// All wishes, and what has changed since they were last asked for.
#[derive(Default)]
pub(crate) struct Wishes(Mutex<State>);

#[derive(Default)]
struct State {
    wanted: HashMap<Wish, u32>,
    /// To be asked for, or given up; nothing while the way is not open.
    changed: BTreeMap<Wish, bool>,
    way: Way,
    waker: Option<Waker>,
}

impl Wishes {
    pub(crate) fn want(&self, wish: Wish) {
        let mut state = self.state();
        let wanted = state.wanted.entry(wish).or_default();
        *wanted += 1;
        if *wanted == 1 {
            state.change(wish, true);
            wake(state);
        }
    }

    pub(crate) fn release(&self, wishes: impl IntoIterator<Item = Wish>) {
        let mut state = self.state();
        for wish in wishes {
            let Some(wanted) = state.wanted.get_mut(&wish) else { continue };
            *wanted -= 1;
            if *wanted == 0 {
                state.wanted.remove(&wish);
                state.change(wish, false);
            }
        }
        wake(state);
    }

    /// What is to be asked for, and what is to be given up.
    pub(crate) fn take(&self) -> (Vec<Wish>, Vec<Wish>) {
        let changed = std::mem::take(&mut self.state().changed);
        let (wanted, unwanted): (Vec<_>, Vec<_>) = changed.into_iter().partition(|(_, is_wanted)| *is_wanted);
        let wishes = |changed: Vec<(Wish, bool)>| changed.into_iter().map(|(wish, _)| wish).collect();
        (wishes(wanted), wishes(unwanted))
    }

    /// Ready when there is something to ask for.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.changed.is_empty() {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// The way is there: everything is to be asked for. Answers whether there are sessions that may have missed something.
    pub(crate) fn open(&self) -> bool {
        let mut state = self.state();
        state.changed = state.wanted.keys().map(|wish| (*wish, true)).collect();
        std::mem::replace(&mut state.way, Way::Open) == Way::Lost
    }

    /// The way is lost.
    pub(crate) fn lose(&self) {
        let mut state = self.state();
        state.way = Way::Lost;
        state.changed.clear();
    }

    /// It has been lost for too long; answers whether that is news.
    pub(crate) fn close(&self) -> bool {
        std::mem::replace(&mut self.state().way, Way::Closed) == Way::Lost
    }

    /// Is nobody to be let in?
    pub(crate) fn is_way_closed(&self) -> bool {
        self.state().way == Way::Closed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn change(&mut self, wish: Wish, is_wanted: bool) {
        if self.way == Way::Open {
            self.changed.insert(wish, is_wanted);
        }
    }
}

/// Not under the lock.
fn wake(mut state: MutexGuard<'_, State>) {
    let waker = if state.changed.is_empty() { None } else { state.waker.take() };
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CELL: Wish = Wish::Cell(CellId::from_bytes([1; 16]));
    const DOWN: Wish = Wish::Down(DeviceId::from_bytes([2; 16]));

    #[test]
    fn a_wish_of_many_is_asked_for_once_and_given_up_by_the_last() {
        let wishes = Wishes::default();
        wishes.open();
        wishes.want(CELL);
        wishes.want(CELL);
        assert_eq!(wishes.take(), (vec![CELL], vec![]));
        wishes.release([CELL]);
        assert_eq!(wishes.take(), (vec![], vec![]));
        wishes.release([CELL]);
        assert_eq!(wishes.take(), (vec![], vec![CELL]));
    }

    #[test]
    fn everything_is_asked_for_anew_when_the_way_opens() {
        let wishes = Wishes::default();
        wishes.want(DOWN);
        assert_eq!(wishes.take(), (vec![], vec![]), "there is nobody to ask");
        assert!(!wishes.open(), "nobody was there before");
        assert_eq!(wishes.take(), (vec![DOWN], vec![]));
        wishes.lose();
        wishes.want(CELL);
        assert!(!wishes.is_way_closed());
        assert!(wishes.open());
        assert_eq!(wishes.take(), (vec![CELL, DOWN], vec![]));
        wishes.lose();
        assert!(wishes.close() && wishes.is_way_closed() && !wishes.close());
        assert!(!wishes.open(), "who was there has been sent away");
    }

    #[test]
    fn the_last_word_on_a_wish_stands() {
        let wishes = Wishes::default();
        wishes.open();
        wishes.want(DOWN);
        wishes.release([DOWN]);
        assert_eq!(wishes.take(), (vec![], vec![DOWN]));
        wishes.release([DOWN, CELL]);
        assert_eq!(wishes.take(), (vec![], vec![]), "nobody wanted it");
    }
}
