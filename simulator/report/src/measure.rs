//! Times and sizes of many devices, as distributions.

use std::time::Duration;

use hdrhistogram::Histogram as Hdr;
use serde::{Deserialize, Serialize};

/// A distribution in milliseconds, or in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// How many values there are.
    pub count: u64,
    /// The smallest.
    pub min: f64,
    /// Half of them are at most this.
    pub p50: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

/// Values, each with how often it was seen, to three significant figures: what is written to a file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Histogram(Vec<(u64, u64)>);

impl Histogram {
    /// Values in rising order, each with how often it was seen.
    pub fn values(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(_, times)| times).sum()
    }

    /// The smallest value that so large a share of all is at most.
    pub fn quantile(&self, share: f64) -> u64 {
        let rank = (share.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let at = self.0.iter().find(|(_, times)| {
            seen += times;
            seen >= rank
        });
        at.map_or(0, |(value, _)| *value)
    }
}

/// Values being collected.
#[derive(Debug)]
pub struct Times(Hdr<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Hdr::new(3).expect("3 significant figures are allowed"))
    }
}

impl Times {
    /// Takes one time in.
    pub fn record(&mut self, time: Duration) {
        self.count(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Takes one plain number in.
    pub fn count(&mut self, value: u64) {
        self.0.record(value).expect("the histogram grows to whatever comes");
    }

    /// What was taken in, in milliseconds.
    pub fn milliseconds(&self) -> Distribution {
        self.scaled(1_000.0)
    }

    /// What was taken in, value by value: microseconds, or the plain numbers.
    pub fn histogram(&self) -> Histogram {
        let recorded = self.0.iter_recorded();
        Histogram(recorded.map(|value| (value.value_iterated_to(), value.count_at_value())).collect())
    }

    fn scaled(&self, by: f64) -> Distribution {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / by;
        let (min, max) = (self.0.min() as f64 / by, self.0.max() as f64 / by);
        Distribution { count: self.0.len(), min, p50: at(0.5), p99: at(0.99), max }
    }
}

/// The distribution of plain numbers.
pub fn distribution_of(values: impl IntoIterator<Item = u64>) -> Distribution {
    let mut times = Times::default();
    for value in values {
        times.count(value);
    }
    times.scaled(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_values() {
        let of = distribution_of(1..=1_000);
        assert_eq!((of.count, of.min, of.p50, of.p99, of.max), (1_000, 1.0, 500.0, 990.0, 1_000.0));
    }

    #[test]
    fn a_histogram_comes_back_from_a_file_with_the_same_quantiles() {
        let mut times = Times::default();
        (1..=10_000).for_each(|value| times.count(value));
        let written = serde_json::to_string(&times.histogram()).unwrap();
        let read: Histogram = serde_json::from_str(&written).unwrap();
        assert_eq!(read.count(), 10_000);
        for (share, about) in [(0.0, 1), (0.5, 5_000), (0.99, 9_900), (1.0, 10_000)] {
            let got = read.quantile(share);
            assert!(got.abs_diff(about) <= about / 500, "{share}: {got}, not {about}");
        }
    }

    #[test]
    fn nothing_has_no_quantiles() {
        assert_eq!((Histogram::default().count(), Histogram::default().quantile(0.5)), (0, 0));
    }
}
