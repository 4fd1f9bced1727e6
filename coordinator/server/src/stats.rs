//! What the coordinator has sent, by kind, and what that took.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fleetkey_coordinator_core::{Event, Publish};
use fleetkey_wire::{CellFrame, DeviceId, Topic};
use serde::Serialize;

/// Messages of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Traffic {
    /// How many.
    pub messages: u64,
    /// Their payloads, in bytes.
    pub bytes: u64,
    /// The largest payload since [`crate::ServiceHandle::restart_maxima`], in bytes.
    pub max_bytes: u64,
}

/// What the coordinator has received, sent and spent since it was started. Counted when a message is decided and
/// stored, not when it has left.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Stats {
    /// Cell frames with a statement and no commit.
    pub cell_statements: Traffic,
    /// Cell frames with a commit, with or without a statement.
    pub cell_commits: Traffic,
    /// To single devices, following from a decision: Welcomes and the like.
    pub down_decided: Traffic,
    /// To single devices, in answer to what they said, or to ask something of them.
    pub down_answers: Traffic,
    /// To single devices, because their hello showed that they had missed something.
    pub down_catch_ups: Traffic,
    /// To single devices: statements that they had not confirmed, again.
    pub down_resends: Traffic,
    /// Anything that was in the outbox when the coordinator was loaded, again.
    pub republished: Traffic,
    /// From devices.
    pub received: Traffic,
    /// Messages from devices that were refused.
    pub refused: u64,
    /// Messages that were not sent, as there was no connection, and are not needed after one is back.
    pub dropped: u64,
    /// Transactions.
    pub transactions: u64,
    /// Signatures made outside MLS: one for each statement.
    pub signatures: u64,
    /// Time that the deciding thread has spent on a CPU, in microseconds, where the system says.
    pub cpu_microseconds: Option<u64>,
}

impl Traffic {
    fn count(&mut self, bytes: usize) {
        let bytes = bytes as u64;
        self.messages += 1;
        self.bytes += bytes;
        self.max_bytes = self.max_bytes.max(bytes);
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            messages: self.messages + other.messages,
            bytes: self.bytes + other.bytes,
            max_bytes: self.max_bytes.max(other.max_bytes),
        }
    }

    /// What came after `earlier`. The largest stays the largest.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            messages: self.messages - earlier.messages,
            bytes: self.bytes - earlier.bytes,
            max_bytes: self.max_bytes,
        }
    }
}

impl Stats {
    /// What was sent first-hand on account of decisions: to cells and to single devices, re-sends and answers apart.
    pub fn decided(&self) -> Traffic {
        self.cell_statements.and(self.cell_commits).and(self.down_decided)
    }
}

/// Why a message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    CellStatement,
    CellCommit,
    DownDecided,
    DownAnswer,
    DownCatchUp,
    DownResend,
    Republished,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::CellStatement => "cell_statement",
            Self::CellCommit => "cell_commit",
            Self::DownDecided => "down_decided",
            Self::DownAnswer => "down_answer",
            Self::DownCatchUp => "down_catch_up",
            Self::DownResend => "down_resend",
            Self::Republished => "republished",
        }
    }
}

/// Tells the kinds of one transaction's messages apart.
#[derive(Debug, Default)]
pub(crate) struct Classifier {
    is_load: bool,
    resent: BTreeSet<DeviceId>,
    caught_up: BTreeSet<DeviceId>,
}

impl Classifier {
    /// For the messages that follow from loading: they were in the outbox.
    pub(crate) fn for_load() -> Self {
        Self { is_load: true, ..Self::default() }
    }

    /// For the messages that go with these events.
    pub(crate) fn for_events(events: &[Event]) -> Self {
        let mut kinds = Self::default();
        for event in events {
            match event {
                Event::Resent { device, .. } => {
                    kinds.resent.insert(*device);
                }
                Event::CaughtUp { device, .. } => {
                    kinds.caught_up.insert(*device);
                }
                Event::Rekeyed { .. }
                | Event::Confirmed { .. }
                | Event::AllConfirmed { .. }
                | Event::Deadline { .. }
                | Event::Joined { .. }
                | Event::Left { .. }
                | Event::Quarantined { .. }
                | Event::Superseded { .. } => {}
            }
        }
        kinds
    }

    pub(crate) fn kind(&self, publish: &Publish) -> Kind {
        match publish.topic {
            _ if self.is_load && publish.outbox.is_some() => Kind::Republished,
            Topic::Cell { .. } => match CellFrame::decode(&publish.payload) {
                Ok(CellFrame { commit: None, .. }) => Kind::CellStatement,
                Ok(CellFrame { commit: Some(_), .. }) | Err(_) => Kind::CellCommit,
            },
            Topic::Down { .. } if publish.outbox.is_some() => Kind::DownDecided,
            Topic::Down { device, .. } if self.caught_up.contains(&device) => Kind::DownCatchUp,
            Topic::Down { device, .. } if self.resent.contains(&device) => Kind::DownResend,
            Topic::Down { .. } | Topic::Up { .. } => Kind::DownAnswer,
        }
    }
}

/// The counts, shared between the deciding thread and whoever asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts(Arc<Mutex<Stats>>);

impl Counts {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Stats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sent(&self, kind: Kind, bytes: usize) {
        let mut stats = self.lock();
        match kind {
            Kind::CellStatement => &mut stats.cell_statements,
            Kind::CellCommit => &mut stats.cell_commits,
            Kind::DownDecided => &mut stats.down_decided,
            Kind::DownAnswer => &mut stats.down_answers,
            Kind::DownCatchUp => &mut stats.down_catch_ups,
            Kind::DownResend => &mut stats.down_resends,
            Kind::Republished => &mut stats.republished,
        }
        .count(bytes);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.lock().received.count(bytes);
    }

    pub(crate) fn restart_maxima(&self) {
        let mut stats = self.lock();
        let Stats {
            cell_statements,
            cell_commits,
            down_decided,
            down_answers,
            down_catch_ups,
            down_resends,
            republished,
            received,
            refused: _,
            dropped: _,
            transactions: _,
            signatures: _,
            cpu_microseconds: _,
        } = &mut *stats;
        for traffic in [
            cell_statements,
            cell_commits,
            down_decided,
            down_answers,
            down_catch_ups,
            down_resends,
            republished,
            received,
        ] {
            traffic.max_bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use fleetkey_coordinator_core::CatchUp;
    use fleetkey_wire::{CellEpoch, CellId, CommitMessages, FleetId, GroupId, StatementAndWrap};

    use super::*;

    fn fleet() -> FleetId {
        FleetId::from_bytes([1; 16])
    }

    fn device(n: u8) -> DeviceId {
        DeviceId::from_bytes([n; 16])
    }

    fn group() -> GroupId {
        GroupId::from_bytes([2; 16])
    }

    fn down(n: u8, outbox: Option<u64>) -> Publish {
        Publish { topic: Topic::Down { fleet: fleet(), device: device(n) }, payload: vec![0; 10], outbox }
    }

    fn cell(commit: Option<CommitMessages>) -> Publish {
        let rekey = Some(StatementAndWrap { statement: vec![1; 20], wrap: vec![2; 20] });
        let frame = CellFrame { cell_epoch: CellEpoch(3), commit, rekey };
        let topic = Topic::Cell { fleet: fleet(), cell: CellId::from_bytes([3; 16]) };
        Publish { topic, payload: frame.encode(), outbox: Some(1) }
    }

    #[test]
    fn messages_are_told_apart_by_what_they_follow_from() {
        let kinds = Classifier::for_events(&[
            Event::Resent { group: group(), device: device(1) },
            Event::CaughtUp { group: group(), device: device(2), by: CatchUp::Statement },
        ]);
        assert_eq!(kinds.kind(&down(1, None)), Kind::DownResend);
        assert_eq!(kinds.kind(&down(2, None)), Kind::DownCatchUp);
        assert_eq!(kinds.kind(&down(3, None)), Kind::DownAnswer);
        assert_eq!(kinds.kind(&down(1, Some(7))), Kind::DownDecided);
        assert_eq!(kinds.kind(&cell(None)), Kind::CellStatement);
        let commit = CommitMessages { covered_updates: Vec::new(), commit: vec![5; 50] };
        assert_eq!(kinds.kind(&cell(Some(commit))), Kind::CellCommit);
        assert_eq!(Classifier::for_load().kind(&cell(None)), Kind::Republished);
    }

    #[test]
    fn maxima_start_again_and_sums_go_on() {
        let counts = Counts::default();
        counts.sent(Kind::CellStatement, 270);
        counts.restart_maxima();
        counts.sent(Kind::CellStatement, 240);
        assert_eq!(counts.lock().cell_statements, Traffic { messages: 2, bytes: 510, max_bytes: 240 });
    }
}
