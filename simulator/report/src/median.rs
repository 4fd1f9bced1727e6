//! The value in the middle.

use std::time::Duration;

/// Of so many values the one in the middle; of none, not a number.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// Of so many times the one in the middle, in seconds; of none, nothing.
pub fn median_seconds(times: impl IntoIterator<Item = Duration>) -> f64 {
    let seconds: Vec<f64> = times.into_iter().map(|time| time.as_secs_f64()).collect();
    if seconds.is_empty() { 0.0 } else { median(&seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_values_lie_on_either_side() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
        assert_eq!(median_seconds([1, 9, 2].map(Duration::from_secs)), 2.0);
        assert_eq!(median_seconds([]), 0.0);
    }
}
