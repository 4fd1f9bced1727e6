//! How numbers are written: short enough for an axis or a cell of a table.

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Bytes, in powers of a thousand.
    Bytes,
    /// Seconds.
    Seconds,
    /// A share of the whole, from 0 to 1.
    Share,
}

const BYTES: &[(f64, &str)] = &[(1e9, "GB"), (1e6, "MB"), (1e3, "KB"), (1.0, "B")];
const SECONDS: &[(f64, &str)] = &[(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")];

impl Unit {
    /// The number with its unit, in about three figures.
    ///
    /// ```
    /// use fleetkey_plot::Unit;
    ///
    /// assert_eq!(Unit::Bytes.show(5_812.0), "5.81 KB");
    /// assert_eq!(Unit::Seconds.show(0.000_035), "35 µs");
    /// assert_eq!(Unit::Count.show(100_000.0), "100,000");
    /// assert_eq!(Unit::Share.show(0.5), "50 %");
    /// ```
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Count if value.fract().abs() > 1e-9 => figures(value),
            Self::Count => grouped(value),
            Self::Bytes => scaled(value, BYTES),
            Self::Seconds => scaled(value, SECONDS),
            Self::Share => format!("{} %", figures(value * 100.0)),
        }
    }
}

fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    // What would be written as 1000 of a unit is 1 of the next.
    let fits = |(size, _): &&(f64, &str)| value.abs() >= size * 0.9995;
    let (size, name) = units.iter().find(fits).or(units.last()).unwrap_or(&(1.0, ""));
    format!("{} {name}", figures(value / size))
}

/// Three figures, without zeros that say nothing.
fn figures(value: f64) -> String {
    let decimals = match value.abs() {
        below_ten if below_ten < 9.995 => 2,
        below_hundred if below_hundred < 99.95 => 1,
        _ => 0,
    };
    let written = format!("{value:.decimals$}");
    match written.contains('.') {
        true => written.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => written,
    }
}

fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut shown = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            shown.push(',');
        }
        shown.push(digit);
    }
    if value < 0.0 { format!("-{shown}") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_figures_and_no_idle_zeros() {
        let bytes = |value| Unit::Bytes.show(value);
        assert_eq!(
            [bytes(0.0), bytes(236.0), bytes(999.9), bytes(8_200_000.0)],
            ["0", "236 B", "1 KB", "8.2 MB"]
        );
        let seconds = |value| Unit::Seconds.show(value);
        assert_eq!(
            [seconds(61.0), seconds(0.0234), seconds(2.5e-7), seconds(1e-9)],
            ["61 s", "23.4 ms", "250 ns", "1 ns"]
        );
        assert_eq!([Unit::Count.show(999.0), Unit::Count.show(1e6)], ["999", "1,000,000"]);
        assert_eq!(Unit::Count.show(2.5), "2.5");
    }
}
