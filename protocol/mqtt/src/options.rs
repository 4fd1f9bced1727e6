//! What a connection is made of, and the limits on it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::subscriptions::{self, MAX_FILTERS};
use crate::url::BrokerUrl;

/// How messages travel between client and broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// Not acknowledged by the broker: right where the ends confirm to each other.
    AtMostOnce,
    /// Acknowledged by the broker, and possibly repeated.
    AtLeastOnce,
}

/// How long to wait between attempts: a random time up to a limit that doubles with each failure ("full jitter").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The limit after the first failure.
    pub min: Duration,
    /// The limit that is never exceeded.
    pub max: Duration,
}

impl Backoff {
    /// The wait after `failures` failures before this one; `random` is uniform over all values.
    pub fn delay(&self, failures: u32, random: u64) -> Duration {
        let factor = 2u32.saturating_pow(failures.min(31));
        let limit = self.min.saturating_mul(factor).min(self.max);
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(((u128::from(nanos) * u128::from(random)) >> 64) as u64)
    }
}

/// A connection to be. Made by [`Options::new`], then adjusted field by field.
#[derive(Clone)]
pub struct Options {
    /// Where the broker is.
    pub url: BrokerUrl,
    /// More ways to the same broker, such as the other nodes of a cluster: each failure and each break goes on to the next,
    /// and from the last to the first again.
    pub others: Vec<BrokerUrl>,
    /// Unique among the clients of the broker: a second client of the same id pushes out the first.
    pub client_id: String,
    /// How to speak TLS; needed for `mqtts`, and not allowed for `mqtt`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// User name and password, for brokers that want them.
    pub login: Option<(String, String)>,
    /// Longest silence before a ping, in whole seconds: 5 s to 18 h. A dead connection is noticed within twice this.
    pub keep_alive: Duration,
    /// For name resolution, TCP, TLS and MQTT together, and for each write that the broker does not take; at least 1 s.
    pub connect_timeout: Duration,
    /// For the broker's answer to a subscription; then the connection is given up.
    pub subscribe_timeout: Duration,
    /// Largest MQTT packet, both ways. A larger one that comes in ends the connection.
    pub max_packet_bytes: usize,
    /// Unacknowledged messages under way at once, with [`Qos::AtLeastOnce`].
    pub inflight: u16,
    /// Waits between attempts, to connect and to subscribe.
    pub backoff: Backoff,
    /// Messages that may wait to be sent.
    pub queue_messages: usize,
    /// Messages that may wait for the consumer.
    pub event_messages: usize,
    /// Payload bytes that may wait for the consumer.
    pub event_bytes: usize,
    /// Subscribed to after each connect, before anything is published.
    pub filters: Vec<String>,
    /// For publishing and subscribing.
    pub qos: Qos,
}

impl Options {
    /// Sensible settings for a device: keep-alive 60 s, 128 KiB packets, back-off 1 s to 1 min, queues of 256.
    pub fn new(url: BrokerUrl, client_id: impl Into<String>) -> Self {
        Self {
            url,
            others: Vec::new(),
            client_id: client_id.into(),
            tls: None,
            login: None,
            keep_alive: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(30),
            subscribe_timeout: Duration::from_secs(20),
            max_packet_bytes: 128 * 1024,
            inflight: 16,
            backoff: Backoff { min: Duration::from_secs(1), max: Duration::from_secs(60) },
            queue_messages: 256,
            event_messages: 256,
            event_bytes: 1024 * 1024,
            filters: Vec::new(),
            qos: Qos::AtMostOnce,
        }
    }

    /// The way to take after so many failures and breaks.
    pub(crate) fn way(&self, breaks: usize) -> &BrokerUrl {
        match breaks % (self.others.len() + 1) {
            0 => &self.url,
            other => &self.others[other - 1],
        }
    }

    pub(crate) fn check(&self) -> Result<(), BadOptions> {
        let bad = |what| Err(BadOptions::Setting { what });
        for url in std::iter::once(&self.url).chain(&self.others) {
            match (url.is_tls(), &self.tls) {
                (true, None) => return Err(BadOptions::NoTls { url: url.clone() }),
                (false, Some(_)) => return Err(BadOptions::TlsNotUsed { url: url.clone() }),
                (true, Some(_)) | (false, None) => {}
            }
        }
        if self.client_id.is_empty() || self.client_id.len() > 1024 {
            return bad("the client id needs 1 to 1024 bytes");
        }
        if self.keep_alive.as_secs() < 5 || self.keep_alive.as_secs() > u64::from(u16::MAX) {
            return bad("keep-alive must be 5 s to 65535 s");
        }
        if self.connect_timeout.as_secs() < 1 || self.subscribe_timeout.is_zero() {
            return bad("timeouts must be at least 1 s");
        }
        if self.max_packet_bytes < 1024 {
            return bad("packets must be allowed 1 KiB");
        }
        if self.inflight == 0
            || self.queue_messages == 0
            || self.event_messages == 0
            || self.event_bytes < self.max_packet_bytes
        {
            return bad("queues need room for one message");
        }
        if self.backoff.min.is_zero() || self.backoff.max < self.backoff.min {
            return bad("back-off needs 0 < min <= max");
        }
        if self.filters.len() > MAX_FILTERS {
            return Err(BadOptions::TooManyFilters);
        }
        match self.filters.iter().find(|filter| !subscriptions::is_filter(filter)) {
            Some(filter) => Err(BadOptions::BadFilter { filter: filter.clone() }),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("url", &self.url)
            .field("client_id", &self.client_id)
            .field("filters", &self.filters)
            .field("qos", &self.qos)
            .finish_non_exhaustive()
    }
}

/// Options that cannot work. The fault is the caller's, or the configuration's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOptions {
    /// `mqtts` without a TLS configuration.
    #[error("{url} needs TLS, and there is no certificate to use")]
    NoTls {
        /// The broker.
        url: BrokerUrl,
    },
    /// A TLS configuration that would not be used.
    #[error("{url} would be used without TLS although a certificate is configured: use mqtts://")]
    TlsNotUsed {
        /// The broker.
        url: BrokerUrl,
    },
    /// A filter that MQTT does not know.
    #[error("{filter:?} is not an MQTT topic filter")]
    BadFilter {
        /// The filter.
        filter: String,
    },
    /// More filters than [`MAX_FILTERS`].
    #[error("more than {MAX_FILTERS} topic filters")]
    TooManyFilters,
    /// A number out of its range.
    #[error("{what}")]
    Setting {
        /// Which one.
        what: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_up_to_its_limit_with_full_jitter() {
        let backoff = Backoff { min: Duration::from_secs(1), max: Duration::from_secs(60) };
        let most: Vec<u64> = (0..8).map(|n| backoff.delay(n, u64::MAX).as_millis() as u64 + 1).collect();
        assert_eq!(most, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(backoff.delay(3, 0), Duration::ZERO);
        assert_eq!(backoff.delay(3, 1 << 63), Duration::from_secs(4));
        assert!(backoff.delay(u32::MAX, u64::MAX) < Duration::from_secs(60));
        let huge = Backoff { min: Duration::MAX, max: Duration::MAX };
        assert!(huge.delay(5, u64::MAX) > Duration::from_secs(1 << 30));
    }

    #[test]
    fn the_ways_are_taken_in_turn() {
        let mut options = Options::new("mqtt://a".parse().unwrap(), "c");
        assert_eq!(options.way(7).host(), "a");
        options.others = vec!["mqtt://b".parse().unwrap(), "mqtt://c".parse().unwrap()];
        let hosts: Vec<_> = (0..5).map(|breaks| options.way(breaks).host()).collect();
        assert_eq!(hosts, ["a", "b", "c", "a", "b"]);
    }

    #[test]
    fn options_that_cannot_work_are_refused_by_name() {
        let good = || Options::new("mqtt://localhost".parse().unwrap(), "c");
        assert_eq!(good().check(), Ok(()));
        let refused = |change: fn(&mut Options)| {
            let mut options = good();
            change(&mut options);
            options.check().unwrap_err().to_string()
        };
        assert!(refused(|o| o.url = "mqtts://h".parse().unwrap()).contains("mqtts://h:8883 needs TLS"));
        assert!(refused(|o| o.others = vec!["mqtts://h".parse().unwrap()]).contains("needs TLS"));
        assert!(refused(|o| o.client_id.clear()).contains("client id"));
        assert!(refused(|o| o.keep_alive = Duration::from_secs(4)).contains("keep-alive"));
        assert!(refused(|o| o.connect_timeout = Duration::from_millis(999)).contains("timeouts"));
        assert!(refused(|o| o.max_packet_bytes = 1_000).contains("1 KiB"));
        assert!(refused(|o| o.inflight = 0).contains("queues"));
        assert!(refused(|o| o.event_bytes = 1024).contains("queues"));
        assert!(refused(|o| o.backoff.min = Duration::ZERO).contains("back-off"));
        assert!(refused(|o| o.filters = vec!["a/#/b".into()]).contains("a/#/b"));
        assert!(refused(|o| o.filters = vec!["a".into(); MAX_FILTERS + 1]).contains("topic filters"));
    }
}
