//! Times of many devices, as a distribution.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// A distribution in milliseconds, or in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Distribution {
    /// How many values there are.
    pub count: u64,
    /// Half of them are at most this.
    pub p50: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

/// Times being collected.
#[derive(Debug)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new(3).expect("3 significant figures are allowed"))
    }
}

impl Times {
    /// Takes one time in.
    pub fn record(&mut self, time: Duration) {
        self.count(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// What was taken in, in milliseconds.
    pub fn milliseconds(&self) -> Distribution {
        self.scaled(1_000.0)
    }

    fn count(&mut self, value: u64) {
        self.0.record(value).expect("the histogram grows to whatever comes");
    }

    fn scaled(&self, by: f64) -> Distribution {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / by;
        Distribution { count: self.0.len(), p50: at(0.5), p99: at(0.99), max: self.0.max() as f64 / by }
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
        assert_eq!((of.count, of.p50, of.p99, of.max), (1_000, 500.0, 990.0, 1_000.0));
    }
}
