//! Which filters are wanted, which the broker has granted, and what to ask it next. No I/O.
//!
//! One SUBSCRIBE or UNSUBSCRIBE is outstanding at a time. So an answer can only belong to that one, whatever packet
//! identifiers are reused, and asking and taking back the same filter cannot overtake each other.

use std::collections::BTreeMap;

use tokio::time::Instant;

/// Most filters of one client.
pub const MAX_FILTERS: usize = 1024;

/// Most filters, and bytes of filters, in one SUBSCRIBE.
const MAX_BATCH: usize = 32;
const MAX_BATCH_BYTES: usize = 900;

/// Longest filter: one must fit in a batch.
const MAX_FILTER_BYTES: usize = 800;

/// Whether MQTT knows such a filter (3.1.1 §4.7).
pub(crate) fn is_filter(filter: &str) -> bool {
    filter.len() <= MAX_FILTER_BYTES && !filter.contains('\0') && rumqttc::valid_filter(filter)
}

#[derive(Debug, PartialEq, Eq)]
enum Wire {
    /// The broker does not know it.
    Off,
    /// In the outstanding SUBSCRIBE.
    Asked,
    On,
    Refused {
        retry_at: Instant,
    },
    /// In the outstanding UNSUBSCRIBE.
    Leaving,
}

#[derive(Debug)]
struct Filter {
    wanted: bool,
    wire: Wire,
    /// Not yet answered on this connection, and wanted when it was made.
    first: bool,
    /// In a row, over all connections.
    refusals: u32,
}

/// What to send to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    Subscribe(Vec<String>),
    Unsubscribe(String),
}

#[derive(Debug)]
struct Outstanding {
    ask: Ask,
    /// Known once it has been written.
    packet_id: Option<u16>,
    since: Instant,
}

/// An answer that fits nothing that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the broker answered a subscription that was not asked for")]
pub(crate) struct Unasked;

/// One filter's answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Granted(String),
    Refused(String),
}

#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    filters: BTreeMap<String, Filter>,
    outstanding: Option<Outstanding>,
}

impl Subscriptions {
    /// Wants `filter` from now on. False when there are too many.
    pub(crate) fn want(&mut self, filter: &str) -> bool {
        if let Some(known) = self.filters.get_mut(filter) {
            known.wanted = true;
            return true;
        }
        if self.filters.len() >= MAX_FILTERS {
            return false;
        }
        self.filters
            .insert(filter.to_owned(), Filter { wanted: true, wire: Wire::Off, first: false, refusals: 0 });
        true
    }

    /// Does not want `filter` any more.
    pub(crate) fn give_up(&mut self, filter: &str) {
        let Some(known) = self.filters.get_mut(filter) else { return };
        known.wanted = false;
        known.first = false;
        match known.wire {
            Wire::Off | Wire::Refused { .. } => {
                self.filters.remove(filter);
            }
            Wire::Asked | Wire::On | Wire::Leaving => {}
        }
    }

    /// A new connection: the broker knows nothing.
    pub(crate) fn connected(&mut self) {
        self.outstanding = None;
        self.filters.retain(|_, filter| filter.wanted);
        for filter in self.filters.values_mut() {
            filter.wire = Wire::Off;
            filter.first = true;
        }
    }

    /// Whether the broker has answered for every filter that was wanted when the connection was made.
    pub(crate) fn all_answered(&self) -> bool {
        self.filters.values().all(|filter| !filter.first)
    }

    /// The next thing to ask, if nothing is outstanding and something is due.
    pub(crate) fn next_ask(&mut self, now: Instant) -> Option<Ask> {
        if self.outstanding.is_some() {
            return None;
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        for (name, filter) in &mut self.filters {
            let due = match filter.wire {
                Wire::Off => true,
                Wire::Refused { retry_at } => retry_at <= now,
                Wire::Asked | Wire::On | Wire::Leaving => false,
            };
            if filter.wanted && due {
                bytes += name.len() + 3;
                if batch.len() == MAX_BATCH || bytes > MAX_BATCH_BYTES {
                    break;
                }
                filter.wire = Wire::Asked;
                batch.push(name.clone());
            }
        }
        let ask = if batch.is_empty() {
            let (name, filter) = self.filters.iter_mut().find(|(_, f)| !f.wanted && f.wire == Wire::On)?;
            filter.wire = Wire::Leaving;
            Ask::Unsubscribe(name.clone())
        } else {
            Ask::Subscribe(batch)
        };
        self.outstanding = Some(Outstanding { ask: ask.clone(), packet_id: None, since: now });
        Some(ask)
    }

    /// The outstanding request has been written under this packet identifier.
    pub(crate) fn written(&mut self, packet_id: u16) {
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.packet_id = Some(packet_id);
        }
    }

    /// SUBACK: `retry_at` says when to repeat a filter after so many refusals in a row.
    pub(crate) fn subscribed(
        &mut self,
        packet_id: u16,
        granted: &[bool],
        mut retry_at: impl FnMut(u32) -> Instant,
    ) -> Result<Vec<Answer>, Unasked> {
        let outstanding = self.outstanding.take().ok_or(Unasked)?;
        let asked = match outstanding.ask {
            Ask::Subscribe(asked) if outstanding.packet_id == Some(packet_id) => asked,
            Ask::Subscribe(_) | Ask::Unsubscribe(_) => return Err(Unasked),
        };
        if asked.len() != granted.len() {
            return Err(Unasked);
        }
        let mut answers = Vec::new();
        for (name, granted) in asked.into_iter().zip(granted) {
            let filter = self.filters.get_mut(&name).ok_or(Unasked)?;
            filter.first = false;
            if *granted {
                filter.wire = Wire::On;
                filter.refusals = 0;
            } else {
                filter.wire = Wire::Refused { retry_at: retry_at(filter.refusals) };
                filter.refusals = filter.refusals.saturating_add(1);
            }
            match (filter.wanted, granted) {
                (true, true) => answers.push(Answer::Granted(name)),
                (true, false) => answers.push(Answer::Refused(name)),
                // Taken back meanwhile: the next request is UNSUBSCRIBE.
                (false, true) => {}
                (false, false) => {
                    self.filters.remove(&name);
                }
            }
        }
        Ok(answers)
    }

    /// UNSUBACK.
    pub(crate) fn unsubscribed(&mut self, packet_id: u16) -> Result<(), Unasked> {
        let outstanding = self.outstanding.take().ok_or(Unasked)?;
        let name = match outstanding.ask {
            Ask::Unsubscribe(name) if outstanding.packet_id == Some(packet_id) => name,
            Ask::Unsubscribe(_) | Ask::Subscribe(_) => return Err(Unasked),
        };
        match self.filters.get_mut(&name) {
            // Wanted again meanwhile: the next request is SUBSCRIBE.
            Some(filter) if filter.wanted => filter.wire = Wire::Off,
            Some(_) | None => {
                self.filters.remove(&name);
            }
        }
        Ok(())
    }

    /// Since when an answer is awaited.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        self.outstanding.as_ref().map(|outstanding| outstanding.since)
    }

    /// When the next refused filter is due, if nothing is outstanding.
    pub(crate) fn next_retry(&self) -> Option<Instant> {
        if self.outstanding.is_some() {
            return None;
        }
        self.filters
            .values()
            .filter_map(|filter| match filter.wire {
                Wire::Refused { retry_at } if filter.wanted => Some(retry_at),
                Wire::Off | Wire::Asked | Wire::On | Wire::Refused { .. } | Wire::Leaving => None,
            })
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn never(_: u32) -> Instant {
        panic!("nothing is refused here")
    }

    fn subscribe(names: &[&str]) -> Option<Ask> {
        Some(Ask::Subscribe(names.iter().map(|&name| name.to_owned()).collect()))
    }

    fn connected(names: &[&str]) -> Subscriptions {
        let mut subscriptions = Subscriptions::default();
        for name in names {
            assert!(subscriptions.want(name));
        }
        subscriptions.connected();
        subscriptions
    }

    #[test]
    fn answers_are_matched_in_the_order_asked() {
        let now = Instant::now();
        let mut subscriptions = connected(&["b", "a"]);
        assert_eq!(subscriptions.next_ask(now), subscribe(&["a", "b"]));
        assert_eq!(subscriptions.next_ask(now), None, "one at a time");
        subscriptions.written(7);
        assert!(!subscriptions.all_answered());

        let answers = subscriptions.subscribed(7, &[true, false], |refusals| {
            assert_eq!(refusals, 0);
            now + Duration::from_secs(1)
        });

        assert_eq!(answers, Ok(vec![Answer::Granted("a".into()), Answer::Refused("b".into())]));
        assert!(subscriptions.all_answered());
        assert_eq!(subscriptions.next_ask(now), None);
        assert_eq!(subscriptions.next_retry(), Some(now + Duration::from_secs(1)));
        assert_eq!(subscriptions.next_ask(now + Duration::from_secs(1)), subscribe(&["b"]));
    }

    #[test]
    fn a_refusal_is_counted_over_connections_until_it_is_granted() {
        let now = Instant::now();
        let mut subscriptions = connected(&["a"]);
        for refusals in 0..3 {
            subscriptions.connected();
            assert_eq!(subscriptions.next_ask(now), subscribe(&["a"]), "a new connection asks at once");
            subscriptions.written(1);
            let answer = subscriptions.subscribed(1, &[false], |counted| {
                assert_eq!(counted, refusals);
                now + Duration::from_secs(60)
            });
            assert_eq!(answer, Ok(vec![Answer::Refused("a".into())]));
        }
        subscriptions.connected();
        assert_eq!(subscriptions.next_ask(now), subscribe(&["a"]));
        subscriptions.written(1);
        assert_eq!(subscriptions.subscribed(1, &[true], never), Ok(vec![Answer::Granted("a".into())]));
        assert_eq!(subscriptions.next_retry(), None);
    }

    #[test]
    fn an_answer_to_nothing_is_an_error() {
        let now = Instant::now();
        assert_eq!(connected(&[]).subscribed(1, &[true], never), Err(Unasked));
        assert_eq!(connected(&[]).unsubscribed(1), Err(Unasked));
        for (packet_id, granted) in [(2, &[true][..]), (1, &[]), (1, &[true, true])] {
            let mut subscriptions = connected(&["a"]);
            assert_eq!(subscriptions.next_ask(now), subscribe(&["a"]));
            subscriptions.written(1);
            assert_eq!(subscriptions.subscribed(packet_id, granted, never), Err(Unasked));
        }
        let mut subscriptions = connected(&["a"]);
        assert_eq!(subscriptions.next_ask(now), subscribe(&["a"]));
        assert_eq!(subscriptions.subscribed(1, &[true], never), Err(Unasked), "not even written");
        let mut subscriptions = connected(&["a"]);
        assert_eq!(subscriptions.next_ask(now), subscribe(&["a"]));
        subscriptions.written(1);
        assert_eq!(subscriptions.unsubscribed(1), Err(Unasked));
    }

    #[test]
    fn taking_back_and_asking_again_cannot_overtake_each_other() {
        let now = Instant::now();
        let mut subscriptions = connected(&["a"]);
        assert_eq!(subscriptions.next_ask(now), subscribe(&["a"]));
        subscriptions.written(1);
        subscriptions.give_up("a");
        assert_eq!(subscriptions.next_ask(now), None);
        assert_eq!(subscriptions.subscribed(1, &[true], never), Ok(vec![]));
        assert_eq!(subscriptions.next_ask(now), Some(Ask::Unsubscribe("a".into())));
        subscriptions.written(2);
        assert!(subscriptions.want("a"));
        assert_eq!(subscriptions.unsubscribed(2), Ok(()));
        assert_eq!(subscriptions.next_ask(now), subscribe(&["a"]));
        subscriptions.written(3);
        assert_eq!(subscriptions.subscribed(3, &[true], never), Ok(vec![Answer::Granted("a".into())]));
        subscriptions.give_up("a");
        assert_eq!(subscriptions.next_ask(now), Some(Ask::Unsubscribe("a".into())));
        subscriptions.written(4);
        assert_eq!(subscriptions.unsubscribed(4), Ok(()));
        assert_eq!(subscriptions.next_ask(now), None);
        assert!(subscriptions.filters.is_empty());
    }

    #[test]
    fn a_filter_taken_back_no_longer_holds_up_the_connection() {
        let mut subscriptions = connected(&["a"]);
        assert!(!subscriptions.all_answered());
        subscriptions.give_up("a");
        assert!(subscriptions.all_answered());
        assert_eq!(subscriptions.next_ask(Instant::now()), None);
    }

    #[test]
    fn many_filters_go_in_bounded_batches() {
        let now = Instant::now();
        let names: Vec<String> = (0..MAX_FILTERS).map(|n| format!("{n:04}/{}", "x".repeat(95))).collect();
        let mut subscriptions = connected(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(!subscriptions.want("one more"));
        assert!(subscriptions.want(&names[0]), "a known one is no more");
        let mut granted = Vec::new();
        while let Some(Ask::Subscribe(batch)) = subscriptions.next_ask(now) {
            assert!(batch.len() <= MAX_BATCH);
            assert!(batch.iter().map(|name| name.len() + 3).sum::<usize>() <= MAX_BATCH_BYTES);
            subscriptions.written(1);
            for answer in subscriptions.subscribed(1, &vec![true; batch.len()], never).unwrap() {
                match answer {
                    Answer::Granted(name) => granted.push(name),
                    Answer::Refused(name) => panic!("{name}"),
                }
            }
        }
        assert_eq!(granted, names);
        assert!(subscriptions.all_answered());
    }

    #[test]
    fn the_longest_filter_fits_a_batch() {
        let longest = "x".repeat(MAX_FILTER_BYTES);
        assert!(is_filter(&longest));
        assert!(!is_filter(&format!("{longest}x")));
        assert!(!is_filter("a\0b"));
        assert!(!is_filter(""));
        let mut subscriptions = connected(&[&longest]);
        assert_eq!(subscriptions.next_ask(Instant::now()), subscribe(&[&longest]));
    }
}
