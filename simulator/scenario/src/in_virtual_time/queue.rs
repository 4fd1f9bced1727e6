//! What is to happen, in the order of time; what is at the same moment, in the order in which it was told.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

#[derive(Debug)]
struct Queued<T> {
    at: u64,
    number: u64,
    what: T,
}

impl<T> PartialEq for Queued<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl<T> Eq for Queued<T> {}

impl<T> PartialOrd for Queued<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Queued<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What is to happen.
#[derive(Debug)]
pub(super) struct Queue<T> {
    heap: BinaryHeap<Reverse<Queued<T>>>,
    queued: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), queued: 0 }
    }
}

impl<T> Queue<T> {
    pub(super) fn push(&mut self, at: u64, what: T) {
        self.queued += 1;
        self.heap.push(Reverse(Queued { at, number: self.queued, what }));
    }

    /// When the next thing is to happen.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(next)| next.at)
    }

    /// The next thing, if it is before `end`.
    pub(super) fn pop_before(&mut self, end: u64) -> Option<(u64, T)> {
        self.next_at().filter(|at| *at < end)?;
        self.heap.pop().map(|Reverse(Queued { at, what, .. })| (at, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_at_the_same_moment_keeps_its_order() {
        let mut queue = Queue::default();
        for (at, what) in [(5, 'c'), (3, 'a'), (5, 'd'), (3, 'b'), (9, 'e')] {
            queue.push(at, what);
        }
        let popped: String = std::iter::from_fn(|| queue.pop_before(9)).map(|(_, what)| what).collect();
        assert_eq!(popped, "abcd");
        assert_eq!(queue.next_at(), Some(9));
    }
}
