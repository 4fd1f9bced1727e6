//! Who is due to hold which key since when, and what became of it.
//!
//! Times are taken from when something was due, so a device that is late for several keys is as late as for the first of
//! them. Knows nothing of clocks: every moment is told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use fleetkey_wire::DeviceId;

use crate::world::Waited;

/// What a member owes its group.
#[derive(Debug, Clone, Copy)]
struct Owed {
    /// Since when the device could be expected to have the key.
    due: Duration,
    /// Since when there has been a newer key than the one it holds; none for one that holds none yet.
    newer_since: Option<Duration>,
}

/// The books on one group.
#[derive(Debug, Default)]
struct Book {
    members: BTreeSet<DeviceId>,
    owed: BTreeMap<DeviceId, Owed>,
    /// How many members hold a key that is no more the newest, by since when.
    outdated: BTreeMap<Duration, usize>,
    revocations: VecDeque<Duration>,
    key_since: Option<Duration>,
}

/// Who is due to hold which key since when.
#[derive(Debug, Default)]
pub struct Ledger {
    books: Vec<Book>,
    /// Devices that are due to be answered by the coordinator, as they were cut off: since when.
    unanswered: BTreeMap<DeviceId, Duration>,
    happened: Waited,
}

impl Ledger {
    /// Books on so many groups.
    pub fn new(groups: usize) -> Self {
        Self { books: (0..groups).map(|_| Book::default()).collect(), ..Self::default() }
    }

    /// Devices are to come into a group.
    pub fn wanted(&mut self, group: usize, ids: &[DeviceId], due: Duration) {
        let book = &mut self.books[group];
        for id in ids {
            book.owed.entry(*id).or_insert(Owed { due, newer_since: None });
        }
    }

    /// A group has moved to a new key.
    pub fn rekeyed(&mut self, group: usize, is_new_key: bool, at: Duration) {
        let book = &mut self.books[group];
        for id in &book.members {
            let owed = book.owed.entry(*id).or_insert(Owed { due: at, newer_since: None });
            if owed.newer_since.is_none() {
                owed.newer_since = Some(at);
                *book.outdated.entry(at).or_default() += 1;
            }
        }
        if is_new_key && let Some(since) = book.key_since.replace(at) {
            self.happened.key_ages.push(at.saturating_sub(since));
        } else if is_new_key {
            book.key_since = Some(at);
        }
    }

    /// Members of a group were revoked: the others are exposed until each has a newer key. To be told after
    /// [`Self::left`], and after the rekey that this leads to.
    pub fn revoked(&mut self, group: usize, at: Duration) {
        self.books[group].revocations.push_back(at);
        self.close_exposures(at);
    }

    /// A device came into a group, by its own key from then on.
    pub fn joined(&mut self, group: usize, id: DeviceId, at: Duration) {
        let book = &mut self.books[group];
        book.members.insert(id);
        book.owed.entry(id).or_insert(Owed { due: at, newer_since: None });
    }

    /// A device is out of a group, or is wanted there no more.
    pub fn left(&mut self, group: usize, id: DeviceId, at: Duration) {
        let book = &mut self.books[group];
        book.members.remove(&id);
        if let Some(owed) = book.owed.remove(&id) {
            book.settle(owed);
        }
        self.close_exposures(at);
    }

    /// A device is out of the fleet, or will be: also one that was only wanted, of which no [`Self::left`] tells.
    pub fn gone(&mut self, id: DeviceId, at: Duration) {
        self.unanswered.remove(&id);
        for group in 0..self.books.len() {
            self.left(group, id, at);
        }
    }

    /// A member holds the newest key, and the coordinator knows.
    pub fn current(&mut self, group: usize, id: DeviceId, at: Duration) {
        let book = &mut self.books[group];
        let Some(owed) = book.owed.remove(&id) else { return };
        book.settle(owed);
        let mut due = owed.due;
        // Who has shown what it owed has been reached: that it was answered need not be told any more.
        if self.owes_no_key(id)
            && let Some(since) = self.unanswered.remove(&id)
        {
            due = due.min(since);
        }
        self.happened.latencies.push(at.saturating_sub(due));
        self.close_exposures(at);
    }

    /// A device could not be reached until now: from now on it is due to be current.
    pub fn back(&mut self, id: DeviceId, at: Duration) {
        self.unanswered.insert(id, at);
        for book in &mut self.books {
            if let Some(owed) = book.owed.get_mut(&id) {
                owed.due = at;
            }
        }
    }

    /// Whether a device is due to be answered.
    pub fn is_unanswered(&self, id: DeviceId) -> bool {
        self.unanswered.contains_key(&id)
    }

    /// A device was answered by the coordinator, on its new connection.
    pub fn answered(&mut self, id: DeviceId, at: Duration) {
        let Some(due) = self.unanswered.remove(&id) else { return };
        // One that owes a key is late for that, which is told when it has it.
        if self.owes_no_key(id) {
            self.happened.latencies.push(at.saturating_sub(due));
        }
    }

    fn owes_no_key(&self, id: DeviceId) -> bool {
        self.books.iter().all(|book| !book.owed.contains_key(&id))
    }

    /// Whether nobody owes anything.
    pub fn is_current(&self) -> bool {
        self.unanswered.is_empty() && self.books.iter().all(|book| book.owed.is_empty())
    }

    /// Devices that owe something, by what to say of them.
    pub fn late(&self) -> BTreeSet<DeviceId> {
        let owing = self.books.iter().flat_map(|book| book.owed.keys().copied());
        owing.chain(self.unanswered.keys().copied()).collect()
    }

    /// What has happened since this was asked last.
    pub fn take(&mut self) -> Waited {
        Waited { is_current: self.is_current(), ..std::mem::take(&mut self.happened) }
    }

    fn close_exposures(&mut self, at: Duration) {
        for book in &mut self.books {
            let oldest = book.outdated.keys().next().copied();
            while let Some(revoked) = book.revocations.front().copied() {
                if oldest.is_some_and(|oldest| oldest <= revoked) {
                    break;
                }
                book.revocations.pop_front();
                self.happened.exposures.push(at.saturating_sub(revoked));
            }
        }
    }
}

impl Book {
    fn settle(&mut self, owed: Owed) {
        let Some(since) = owed.newer_since else { return };
        if let Some(count) = self.outdated.get_mut(&since) {
            *count -= 1;
            if *count == 0 {
                self.outdated.remove(&since);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn fleet(count: u8) -> (Ledger, Vec<DeviceId>) {
        let mut ledger = Ledger::new(1);
        let ids: Vec<DeviceId> = (0..count).map(|n| DeviceId::from_bytes([n; 16])).collect();
        ledger.wanted(0, &ids, s(1));
        for id in &ids {
            ledger.joined(0, *id, s(2));
        }
        ledger.rekeyed(0, true, s(2));
        for id in &ids {
            ledger.current(0, *id, s(3));
        }
        assert_eq!(ledger.take().latencies, vec![s(2); count.into()]);
        (ledger, ids)
    }

    #[test]
    fn who_skips_a_key_is_late_since_the_first() {
        let (mut ledger, ids) = fleet(2);
        ledger.rekeyed(0, true, s(10));
        ledger.current(0, ids[0], s(11));
        ledger.rekeyed(0, true, s(20));
        ledger.current(0, ids[0], s(21));
        ledger.current(0, ids[1], s(25));
        let waited = ledger.take();
        assert_eq!(waited.latencies, [s(1), s(1), s(15)]);
        assert_eq!(waited.key_ages, [s(8), s(10)]);
        assert!(waited.is_current);
    }

    #[test]
    fn an_exposure_lasts_until_the_last_member_has_a_newer_key() {
        let (mut ledger, ids) = fleet(3);
        ledger.left(0, ids[0], s(10));
        ledger.rekeyed(0, true, s(10));
        ledger.revoked(0, s(10));
        ledger.current(0, ids[1], s(11));
        assert!(ledger.take().exposures.is_empty());
        ledger.rekeyed(0, true, s(12));
        ledger.current(0, ids[2], s(14));
        assert_eq!(ledger.take().exposures, [s(4)]);
    }

    #[test]
    fn who_was_only_wanted_owes_nothing_once_it_is_gone() {
        let mut ledger = Ledger::new(2);
        let id = DeviceId::from_bytes([1; 16]);
        ledger.wanted(0, &[id], s(1));
        ledger.wanted(1, &[id], s(1));
        ledger.left(0, id, s(2));
        assert!(!ledger.is_current());
        ledger.gone(id, s(2));
        assert!(ledger.is_current());
        assert!(ledger.take().latencies.is_empty());
    }

    #[test]
    fn who_was_cut_off_is_due_from_when_it_is_back() {
        let (mut ledger, ids) = fleet(2);
        ledger.rekeyed(0, true, s(10));
        ledger.current(0, ids[1], s(11));
        ledger.back(ids[0], s(100));
        ledger.back(ids[1], s(100));
        ledger.answered(ids[0], s(101));
        ledger.answered(ids[1], s(102));
        assert!(!ledger.is_current());
        ledger.current(0, ids[0], s(105));
        assert!(ledger.is_current());
        assert_eq!(ledger.take().latencies, [s(1), s(2), s(5)]);
    }

    #[test]
    fn who_confirms_before_it_is_known_to_be_answered_counts_once() {
        let (mut ledger, ids) = fleet(2);
        ledger.back(ids[0], s(100));
        ledger.back(ids[1], s(100));
        ledger.rekeyed(0, true, s(101));
        ledger.current(0, ids[0], s(103));
        ledger.answered(ids[0], s(104));
        ledger.current(0, ids[1], s(106));
        assert!(ledger.is_current());
        assert_eq!(ledger.take().latencies, [s(3), s(6)]);
    }
}
