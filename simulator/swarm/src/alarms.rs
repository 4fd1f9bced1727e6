//! When each of many is to be looked at next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// An alarm for each number that one was set for. What it is about may move it later without a word: at the time that was
/// set first, one looks in vain, and sets it anew.
#[derive(Debug, Default)]
pub(crate) struct Alarms {
    heap: BinaryHeap<Reverse<(Instant, usize)>>,
    /// The earliest that the heap knows of each number.
    known: Vec<Option<Instant>>,
}

impl Alarms {
    /// Rings for `at` when it is `due`, or earlier if that was asked for before.
    pub(crate) fn set(&mut self, at: usize, due: Instant) {
        if self.known.len() <= at {
            self.known.resize(at + 1, None);
        }
        let known = &mut self.known[at];
        if known.is_none_or(|known| due < known) {
            *known = Some(due);
            self.heap.push(Reverse((due, at)));
        }
    }

    /// When the next one rings.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((due, _))| *due)
    }

    /// One whose time has come, which is not set any more.
    pub(crate) fn ring(&mut self, now: Instant) -> Option<usize> {
        while self.next().is_some_and(|due| due <= now) {
            let Reverse((due, at)) = self.heap.pop()?;
            // Otherwise it was set for an earlier time after this one, and has rung.
            if self.known[at] == Some(due) {
                self.known[at] = None;
                return Some(at);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_rings_once_at_the_earliest_time_that_was_set() {
        let began = Instant::now();
        let after = |milliseconds| began + Duration::from_millis(milliseconds);
        let mut alarms = Alarms::default();
        alarms.set(7, after(30));
        alarms.set(7, after(10));
        alarms.set(7, after(20));
        alarms.set(0, after(15));
        assert_eq!(alarms.next(), Some(after(10)));
        assert_eq!(alarms.ring(after(9)), None);
        assert_eq!(alarms.ring(after(15)), Some(7));
        assert_eq!(alarms.ring(after(15)), Some(0));
        assert_eq!(alarms.ring(after(99)), None, "what was set first does not ring for the second time");
        alarms.set(7, after(50));
        assert_eq!(alarms.ring(after(99)), Some(7));
    }
}
