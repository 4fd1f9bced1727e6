//! From many values to a distribution.

use crate::chart::{Marks, Series};

/// Which share of `values` is at most x.
pub fn cumulative(name: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Series {
    let mut sorted: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let count = sorted.len() as f64;
    let mut points: Vec<(f64, f64)> = Vec::new();
    for (at, value) in sorted.into_iter().enumerate() {
        let share = (at + 1) as f64 / count;
        match points.last_mut() {
            Some(last) if last.0 == value => last.1 = share,
            Some(_) => points.push((value, share)),
            None => points.extend([(value, 0.0), (value, share)]),
        }
    }
    Series::new(name, Marks::Steps, points)
}

/// How many of `values` lie in each of `bins` equal parts of what they span.
pub fn histogram(name: impl Into<String>, values: &[f64], bins: usize) -> Series {
    let finite = || values.iter().copied().filter(|value| value.is_finite());
    let (low, high) = finite()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    let bins = bins.max(1);
    let width = if high > low { (high - low) / bins as f64 } else { 1.0 };
    let mut counts = vec![0_u64; bins];
    for value in finite() {
        let bin = ((value - low) / width) as usize;
        counts[bin.min(bins - 1)] += 1;
    }
    let bars = counts.iter().enumerate().map(|(bin, count)| (low + bin as f64 * width, *count as f64));
    let points: Vec<_> = if low.is_finite() { bars.collect() } else { Vec::new() };
    Series::new(name, Marks::Bars { width }, points)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cumulative_distribution_rises_from_none_to_all() {
        let series = cumulative("times", [3.0, 1.0, 3.0, 2.0]);
        assert_eq!(series.points, [(1.0, 0.0), (1.0, 0.25), (2.0, 0.5), (3.0, 1.0)]);
    }

    #[test]
    fn a_histogram_counts_every_value_once() {
        let series = histogram("times", &[0.0, 1.0, 1.5, 4.0, f64::NAN], 4);
        assert_eq!(series.points, [(0.0, 1.0), (1.0, 2.0), (2.0, 0.0), (3.0, 1.0)]);
        assert_eq!(series.marks, Marks::Bars { width: 1.0 });
        assert!(histogram("none", &[], 4).points.is_empty());
    }
}
