//! Whether a log is what was entered, entry by entry, in memory that does not grow with it.

use std::fmt;

use fleetkey_wire::error::Named;

use super::{AuditHash, AuditHead};
use crate::records::AuditRecord;

/// What is wrong with a log: the first thing, by the number of its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Entries are not there.
    Missing {
        /// The first of them.
        first: u64,
        /// The last of them.
        last: u64,
    },
    /// An entry does not say any more what it said.
    Changed {
        /// Its number.
        sequence: u64,
    },
    /// An entry is there twice, or another one was put in under its number.
    Doubled {
        /// Its number.
        sequence: u64,
    },
    /// An entry stands before one that it followed.
    OutOfOrder {
        /// Its number.
        sequence: u64,
        /// The one that it followed.
        before: u64,
    },
    /// The log ends before the head that was noted.
    Truncated {
        /// The head that was noted.
        expected: AuditHead,
        /// Where it ends.
        head: AuditHead,
    },
    /// The log has another entry than the one that was noted: it was written anew.
    Rewritten {
        /// The head that was noted.
        expected: AuditHead,
        /// The hash of that entry now.
        got: AuditHash,
    },
    /// The log begins after the head that was noted, and can say nothing of it.
    BeginsAfter {
        /// The head that was noted.
        expected: AuditHead,
        /// The first entry.
        first: u64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { first, last } if first == last => write!(f, "entry {first} is missing"),
            Self::Missing { first, last } => write!(f, "entries {first} to {last} are missing"),
            Self::Changed { sequence } => {
                write!(f, "entry {sequence} was changed: it is not what its hash, or the next entry, says")
            }
            Self::Doubled { sequence } => write!(f, "entry {sequence} is there twice"),
            Self::OutOfOrder { sequence, before } => {
                write!(f, "entry {sequence} is out of order: it stands before entry {before}")
            }
            Self::Truncated { expected, head } => {
                write!(f, "the log ends at {head}, and had come to {expected}: its end was cut off")
            }
            Self::Rewritten { expected, got } => write!(
                f,
                "entry {} has the hash {got}, and had {}: the log was written anew",
                expected.sequence, expected.hash
            ),
            Self::BeginsAfter { expected, first } => {
                write!(f, "the log begins with entry {first}: whether it follows {expected} cannot be seen")
            }
        }
    }
}

impl std::error::Error for Fault {}

impl Named for Fault {
    fn name(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "entry_missing",
            Self::Changed { .. } => "entry_changed",
            Self::Doubled { .. } => "entry_doubled",
            Self::OutOfOrder { .. } => "entry_out_of_order",
            Self::Truncated { .. } => "log_truncated",
            Self::Rewritten { .. } => "log_rewritten",
            Self::BeginsAfter { .. } => "log_begins_after",
        }
    }
}

/// A log that is what was entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// How many entries were looked at.
    pub entries: u64,
    /// The first of them; what came before was not looked at. 0 when there are none.
    pub first: u64,
    /// The last of them: to be noted elsewhere.
    pub head: AuditHead,
}

/// Follows a log from entry to entry, and keeps the first fault.
#[derive(Debug, Clone)]
pub struct Verifier {
    /// What the first entry followed, once that is known.
    anchor: Option<AuditHead>,
    head: AuditHead,
    entries: u64,
    expected: Option<AuditHead>,
    found: Option<AuditHash>,
    fault: Option<Fault>,
}

impl Verifier {
    /// Follows a log from its very first entry.
    pub fn from_the_start() -> Self {
        Self { anchor: Some(AuditHead::default()), ..Self::from_anywhere() }
    }

    /// Follows a part of a log from whatever entry it begins with.
    pub fn from_anywhere() -> Self {
        let head = AuditHead::default();
        Self { anchor: None, head, entries: 0, expected: None, found: None, fault: None }
    }

    /// The log must hold this head, which was noted earlier.
    #[must_use]
    pub fn expecting(self, expected: Option<AuditHead>) -> Self {
        Self { expected, ..self }
    }

    /// Looks at the next entry.
    pub fn take(&mut self, entry: &AuditRecord) {
        let sequence = entry.sequence;
        match self.fault {
            // What was missing is there after all, and too late.
            Some(Fault::Missing { first, last }) if (first..=last).contains(&sequence) => {
                self.fault = Some(Fault::OutOfOrder { sequence: last.saturating_add(1), before: sequence });
                return;
            }
            Some(_) => return,
            None => {}
        }
        let anchor = *self.anchor.get_or_insert_with(|| {
            self.head = AuditHead { sequence: sequence.saturating_sub(1), hash: entry.previous };
            self.head
        });
        if self.entries == 0 {
            self.meet(anchor);
        }
        let next = self.head.sequence.saturating_add(1);
        self.fault = if sequence > next {
            Some(Fault::Missing { first: next, last: sequence - 1 })
        } else if sequence <= anchor.sequence {
            Some(Fault::OutOfOrder { sequence: next, before: sequence })
        } else if sequence < next {
            Some(Fault::Doubled { sequence })
        } else if !entry.is_intact() {
            Some(Fault::Changed { sequence })
        } else if entry.previous != self.head.hash {
            // It is whole, and so is the one before it: but that is not the one that it was entered after.
            Some(Fault::Changed { sequence: self.head.sequence.max(1) })
        } else {
            None
        };
        if self.fault.is_none() {
            self.head = entry.head();
            self.entries += 1;
            self.meet(self.head);
        }
    }

    fn meet(&mut self, head: AuditHead) {
        if self.expected.is_some_and(|expected| expected.sequence == head.sequence) {
            self.found = Some(head.hash);
        }
    }

    /// What came of it. `stored_head` is how far the log is said to have come, where somebody says so.
    ///
    /// # Errors
    /// The first [`Fault`].
    pub fn finish(mut self, stored_head: Option<AuditHead>) -> Result<Verified, Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let anchor = self.anchor.unwrap_or_default();
        if self.entries == 0 {
            self.meet(anchor);
        }
        let head = self.head;
        if let Some(stored) = stored_head.filter(|stored| *stored != head) {
            return Err(if stored.sequence > head.sequence {
                Fault::Missing { first: head.sequence + 1, last: stored.sequence }
            } else {
                Fault::Rewritten { expected: stored, got: head.hash }
            });
        }
        match (self.expected, self.found) {
            (Some(expected), Some(got)) if expected.hash != got => Err(Fault::Rewritten { expected, got }),
            (Some(expected), None) if expected.sequence < anchor.sequence => {
                Err(Fault::BeginsAfter { expected, first: anchor.sequence + 1 })
            }
            (Some(expected), None) => Err(Fault::Truncated { expected, head }),
            (Some(_), Some(_)) | (None, _) => {
                let first = if self.entries == 0 { 0 } else { anchor.sequence + 1 };
                Ok(Verified { entries: self.entries, first, head })
            }
        }
    }
}
