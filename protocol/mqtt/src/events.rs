//! What the consumer hears, through a queue that stays small however slow the consumer is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::client::Shared;

/// News from the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The broker accepted the connection. Subscriptions follow.
    Connected,
    /// The broker granted a filter. Messages published from now on may come.
    Subscribed {
        /// The filter.
        filter: String,
    },
    /// The broker refused a filter (SUBACK 0x80). It is asked again, with back-off.
    SubscribeRefused {
        /// The filter.
        filter: String,
    },
    /// A message.
    Message {
        /// Where it was published.
        topic: String,
        /// What was published.
        payload: Bytes,
    },
    /// Messages came in faster than they were taken: these were dropped here.
    MessagesDropped {
        /// How many.
        count: u64,
    },
    /// There is no connection: it broke, or could not be made.
    Disconnected {
        /// Why, in words.
        reason: String,
        /// When the next attempt is made.
        retry_in: Duration,
    },
}

/// The receiving half. Dropping it leaves the connection to the [`crate::Client`]s, if there are any.
#[derive(Debug)]
pub struct Events {
    pub(crate) shared: Arc<Shared>,
}

impl Events {
    /// The next event; `None` once the connection has ended for good. Safe to cancel.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let waiting = self.shared.wake_consumer.notified();
            {
                let mut queue = self.shared.events();
                if let Some(event) = queue.pop() {
                    return Some(event);
                }
                if queue.ended {
                    return None;
                }
            }
            waiting.await;
        }
    }

    /// The next event if there is one already.
    pub fn try_next(&mut self) -> Option<Event> {
        self.shared.events().pop()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.shared.consumer_left();
    }
}

#[derive(Debug)]
pub(crate) struct EventQueue {
    events: VecDeque<Event>,
    messages: usize,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
    /// Nobody listens: nothing is kept.
    pub(crate) deaf: bool,
    /// Nothing more will come.
    pub(crate) ended: bool,
}

impl EventQueue {
    pub(crate) fn new(max_messages: usize, max_bytes: usize) -> Self {
        Self {
            events: VecDeque::new(),
            messages: 0,
            bytes: 0,
            max_messages,
            max_bytes,
            deaf: false,
            ended: false,
        }
    }

    pub(crate) fn push_message(&mut self, topic: String, payload: &Bytes) {
        if self.deaf {
            return;
        }
        if self.messages >= self.max_messages || self.bytes + payload.len() > self.max_bytes {
            if let Some(Event::MessagesDropped { count }) = self.events.back_mut() {
                *count += 1;
            } else {
                self.events.push_back(Event::MessagesDropped { count: 1 });
            }
            return;
        }
        self.messages += 1;
        self.bytes += payload.len();
        // A copy: the original keeps the whole read buffer of the connection alive.
        self.events.push_back(Event::Message { topic, payload: Bytes::copy_from_slice(payload) });
    }

    pub(crate) fn push_connected(&mut self) {
        self.push(Event::Connected);
    }

    pub(crate) fn push_answer(&mut self, filter: &str, granted: bool) {
        // The newest answer for a filter is the only one that counts, so these cannot pile up.
        self.events.retain(|event| match event {
            Event::Subscribed { filter: other } | Event::SubscribeRefused { filter: other } => {
                other != filter
            }
            Event::Connected
            | Event::Message { .. }
            | Event::MessagesDropped { .. }
            | Event::Disconnected { .. } => true,
        });
        let filter = filter.to_owned();
        self.push(if granted { Event::Subscribed { filter } } else { Event::SubscribeRefused { filter } });
    }

    pub(crate) fn push_disconnected(&mut self, reason: String, retry_in: Duration) {
        // Connections come and go without limit while nobody listens; the last one is the one that matters.
        self.events.retain(|event| match event {
            Event::Message { .. } | Event::MessagesDropped { .. } => true,
            Event::Connected
            | Event::Subscribed { .. }
            | Event::SubscribeRefused { .. }
            | Event::Disconnected { .. } => false,
        });
        self.push(Event::Disconnected { reason, retry_in });
    }

    fn push(&mut self, event: Event) {
        if !self.deaf {
            self.events.push_back(event);
        }
    }

    fn pop(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        match &event {
            Event::Message { payload, .. } => {
                self.messages -= 1;
                self.bytes -= payload.len();
            }
            Event::Connected
            | Event::Subscribed { .. }
            | Event::SubscribeRefused { .. }
            | Event::MessagesDropped { .. }
            | Event::Disconnected { .. } => {}
        }
        Some(event)
    }

    /// Frees what nobody will take.
    pub(crate) fn close(&mut self) {
        self.deaf = true;
        self.events = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queue: &mut EventQueue) -> Vec<Event> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    fn message(byte: u8, length: usize) -> Event {
        Event::Message { topic: "t".into(), payload: vec![byte; length].into() }
    }

    fn push(queue: &mut EventQueue, byte: u8, length: usize) {
        queue.push_message("t".into(), &vec![byte; length].into());
    }

    #[test]
    fn messages_beyond_the_limit_are_dropped_and_counted_in_place() {
        let mut queue = EventQueue::new(2, 1_000);
        for byte in 0..5 {
            push(&mut queue, byte, 1);
        }
        assert_eq!(queue.pop(), Some(message(0, 1)));
        push(&mut queue, 5, 1);
        push(&mut queue, 6, 1);
        assert_eq!(
            drain(&mut queue),
            [
                message(1, 1),
                Event::MessagesDropped { count: 3 },
                message(5, 1),
                Event::MessagesDropped { count: 1 },
            ]
        );
        push(&mut queue, 7, 1);
        assert_eq!(drain(&mut queue), [message(7, 1)]);
    }

    #[test]
    fn bytes_are_limited_too() {
        let mut queue = EventQueue::new(100, 10);
        push(&mut queue, 0, 6);
        push(&mut queue, 1, 5);
        push(&mut queue, 2, 4);
        assert_eq!(drain(&mut queue), [message(0, 6), Event::MessagesDropped { count: 1 }, message(2, 4)]);
        push(&mut queue, 3, 10);
        assert_eq!(drain(&mut queue), [message(3, 10)]);
    }

    #[test]
    fn news_of_a_connection_that_is_gone_is_forgotten_and_messages_are_not() {
        let mut queue = EventQueue::new(10, 100);
        let disconnected =
            |n: u64| Event::Disconnected { reason: n.to_string(), retry_in: Duration::from_secs(n) };
        for n in 0..1_000 {
            queue.push_connected();
            queue.push_answer("a", true);
            queue.push_answer("b", false);
            if n == 500 {
                push(&mut queue, 1, 1);
            }
            queue.push_disconnected(n.to_string(), Duration::from_secs(n));
        }
        assert_eq!(drain(&mut queue), [message(1, 1), disconnected(999)]);
    }

    #[test]
    fn the_newest_answer_for_a_filter_stands() {
        let mut queue = EventQueue::new(10, 100);
        for _ in 0..100 {
            queue.push_answer("a", false);
            queue.push_answer("b", true);
        }
        queue.push_answer("a", true);
        assert_eq!(
            drain(&mut queue),
            [Event::Subscribed { filter: "b".into() }, Event::Subscribed { filter: "a".into() }]
        );
    }

    #[test]
    fn nothing_is_kept_for_nobody() {
        let mut queue = EventQueue::new(10, 100);
        push(&mut queue, 1, 1);
        queue.close();
        push(&mut queue, 1, 1);
        queue.push_connected();
        queue.push_disconnected("x".into(), Duration::ZERO);
        assert_eq!(drain(&mut queue), []);
    }
}
