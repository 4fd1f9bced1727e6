//! How much a device may say: token buckets, one for packets and one for their bytes.
//!
//! Leaves to the broker what follows from having said too much.

use std::time::Duration;

use tokio::time::Instant;

/// What a device may say in the long run, and at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Packets of any kind in each second.
    pub packets_per_second: u32,
    /// Packets at once, after a time of silence.
    pub burst_packets: u32,
    /// Bytes of them in each second.
    pub bytes_per_second: u32,
    /// Bytes at once, after a time of silence.
    pub burst_bytes: u32,
    /// A device that is still over the limit after this long is cut off.
    pub patience: Duration,
}

impl Default for RateLimit {
    /// An agent that joins several cells at once says some dozens of packets, then one now and then.
    fn default() -> Self {
        Self {
            packets_per_second: 20,
            burst_packets: 200,
            bytes_per_second: 64 * 1024,
            burst_bytes: 512 * 1024,
            patience: Duration::from_secs(30),
        }
    }
}

/// What a device has left.
#[derive(Debug)]
pub struct Budget {
    packets: Bucket,
    bytes: Bucket,
    patience: Duration,
    /// Since when there has been too little, without half of a burst in between.
    over_since: Option<Instant>,
}

/// What comes of asking a [`Budget`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Say on.
    GoOn,
    /// Nothing more is read before then.
    WaitUntil(Instant),
    /// It has gone on for too long.
    Exceeded,
}

impl Budget {
    /// Everything that the limit allows at once.
    pub fn new(limit: &RateLimit, now: Instant) -> Self {
        Self {
            packets: Bucket::new(limit.packets_per_second, limit.burst_packets, now),
            bytes: Bucket::new(limit.bytes_per_second, limit.burst_bytes, now),
            patience: limit.patience,
            over_since: None,
        }
    }

    /// May the next packet be read? It is known how long it is only afterwards: see [`Budget::spend`].
    pub fn ask(&mut self, now: Instant) -> Verdict {
        self.packets.refill(now);
        self.bytes.refill(now);
        if self.packets.is_half_full() && self.bytes.is_half_full() {
            self.over_since = None;
        }
        let wait = self.packets.wait().max(self.bytes.wait());
        if wait.is_zero() {
            return Verdict::GoOn;
        }
        let since = *self.over_since.get_or_insert(now);
        if now.duration_since(since) >= self.patience {
            Verdict::Exceeded
        } else {
            Verdict::WaitUntil(now + wait)
        }
    }

    /// A packet of this length has been read.
    pub fn spend(&mut self, bytes: usize) {
        self.packets.tokens -= 1.0;
        self.bytes.tokens -= bytes as f64;
    }
}

#[derive(Debug)]
struct Bucket {
    per_second: f64,
    burst: f64,
    /// Below nothing when a packet was longer than what was left.
    tokens: f64,
    refilled: Instant,
}

impl Bucket {
    fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self { per_second: per_second.into(), burst: burst.into(), tokens: burst.into(), refilled: now }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.duration_since(self.refilled).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        self.refilled = now;
    }

    fn is_half_full(&self) -> bool {
        self.tokens >= self.burst / 2.0
    }

    /// How long until there is something in it again; nothing when there is.
    fn wait(&self) -> Duration {
        if self.tokens >= 1.0 {
            return Duration::ZERO;
        }
        // A little more than needed, so that it is not asked a moment too early.
        Duration::from_secs_f64((1.0 - self.tokens) / self.per_second) + Duration::from_millis(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: RateLimit = RateLimit {
        packets_per_second: 10,
        burst_packets: 100,
        bytes_per_second: 1_000,
        burst_bytes: 10_000,
        patience: Duration::from_secs(5),
    };

    /// Says packets of this length for as long as it may, in steps of a tenth of a second; when it was cut off.
    fn flood(bytes: usize, pause: Duration, seconds: u64) -> (u32, Option<Duration>) {
        let start = Instant::now();
        let mut budget = Budget::new(&LIMIT, start);
        let (mut now, mut packets) = (start, 0);
        while now < start + Duration::from_secs(seconds) {
            match budget.ask(now) {
                Verdict::GoOn => {
                    budget.spend(bytes);
                    packets += 1;
                    now += pause;
                }
                Verdict::WaitUntil(then) => now = then,
                Verdict::Exceeded => return (packets, Some(now - start)),
            }
        }
        (packets, None)
    }

    #[test]
    fn a_burst_passes_and_a_flood_is_slowed_down_then_cut_off() {
        let (packets, cut) = flood(1, Duration::ZERO, 60);
        assert!((140..=160).contains(&packets), "a burst of 100, then 10 in each of 5 seconds: {packets}");
        assert!(cut.is_some_and(|after| after >= LIMIT.patience), "{cut:?}");
        let (packets, cut) = flood(1_000, Duration::ZERO, 60);
        assert!((14..=17).contains(&packets), "10,000 bytes, then 1,000 in each of 5 seconds: {packets}");
        assert!(cut.is_some());
    }

    #[test]
    fn whoever_keeps_to_the_rate_is_never_slowed_down() {
        let (packets, cut) = flood(90, Duration::from_millis(100), 600);
        assert_eq!((packets, cut), (6_000, None));
    }

    #[test]
    fn a_long_packet_is_paid_for_afterwards() {
        let now = Instant::now();
        let mut budget = Budget::new(&LIMIT, now);
        budget.spend(15_000);
        let Verdict::WaitUntil(then) = budget.ask(now) else { panic!("nothing to wait for") };
        assert!((Duration::from_secs(5)..Duration::from_secs(6)).contains(&(then - now)));
        assert_eq!(budget.ask(then), Verdict::GoOn);
    }
}
