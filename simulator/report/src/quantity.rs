//! How a number with its unit is written, drawn, and judged.

use fleetkey_plot::Unit;

use crate::run::Figure;

/// Times, longest first, as they are written from two of each on.
const LONG: [(f64, &str); 3] = [(86_400.0, "days"), (3_600.0, "h"), (60.0, "min")];

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    /// Times, bytes, messages.
    Less,
    /// Rates, and what holds.
    More,
    /// Neither: how many there were.
    Neither,
}

/// What a unit's name stands for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Quantity {
    /// How it is drawn.
    pub(crate) unit: Unit,
    /// What to multiply with, to draw it.
    pub(crate) factor: f64,
    /// What to write after it: `messages`, `/day`.
    after: String,
}

impl Quantity {
    pub(crate) fn of(unit: &str) -> Self {
        let (base, per) = match unit.split_once('/') {
            Some((base, per)) => (base.trim(), format!("/{}", per.trim())),
            None => (unit.trim(), String::new()),
        };
        let known = |unit, factor| Self { unit, factor, after: per.clone() };
        match base {
            "s" => known(Unit::Seconds, 1.0),
            "ms" => known(Unit::Seconds, 1e-3),
            "us" | "µs" => known(Unit::Seconds, 1e-6),
            "ns" => known(Unit::Seconds, 1e-9),
            "min" => known(Unit::Seconds, 60.0),
            "h" => known(Unit::Seconds, 3_600.0),
            "days" => known(Unit::Seconds, 86_400.0),
            "B" => known(Unit::Bytes, 1.0),
            "KB" => known(Unit::Bytes, 1e3),
            "MB" => known(Unit::Bytes, 1e6),
            "%" => known(Unit::Share, 0.01),
            "" => known(Unit::Count, 1.0),
            other => Self { unit: Unit::Count, factor: 1.0, after: format!(" {other}{per}") },
        }
    }

    /// The number, in about three figures, with its unit.
    pub(crate) fn show(&self, value: f64) -> String {
        let value = value * self.factor;
        match self.unit {
            Unit::Seconds => format!("{}{}", seconds(value), self.after),
            Unit::Count | Unit::Bytes | Unit::Share => format!("{}{}", self.unit.show(value), self.after),
        }
    }

    /// The number as it is drawn.
    pub(crate) fn drawn(&self, value: f64) -> f64 {
        value * self.factor
    }

    /// Which way a figure of that name and unit is better.
    pub(crate) fn better(&self, name: &str) -> Better {
        const MORE: [&str; 3] = ["kept", "current", "reached"];
        const LESS: [&str; 13] = [
            "alarm",
            "bytes",
            "cpu",
            "dropped",
            "failed",
            "lost",
            "memory",
            "message",
            "ratio",
            "refused",
            "resent",
            "signature",
            "straggler",
        ];
        let name = name.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| name.contains(word));
        if self.after.ends_with("/s") {
            return Better::More;
        }
        match self.unit {
            Unit::Seconds | Unit::Bytes => Better::Less,
            Unit::Count | Unit::Share if says(&LESS) || self.after == " messages" => Better::Less,
            Unit::Count | Unit::Share if says(&MORE) => Better::More,
            Unit::Count | Unit::Share => Better::Neither,
        }
    }
}

/// The figure, in about three figures.
pub(crate) fn shown(figure: &Figure) -> String {
    Quantity::of(&figure.unit).show(figure.value)
}

/// Seconds, or what is said instead of thousands of them.
pub(crate) fn seconds(value: f64) -> String {
    match LONG.iter().find(|(size, _)| value.abs() >= size * 2.0) {
        Some((size, name)) => format!("{} {name}", Unit::Count.show((value / size * 100.0).round() / 100.0)),
        None => Unit::Seconds.show(value),
    }
}

/// An axis of time up to so many seconds: its label, and what a second is on it. Nothing for one that is in seconds.
pub(crate) fn long_axis(last: f64) -> Option<(&'static str, f64)> {
    LONG.iter().find(|(size, _)| last >= size * 2.0).map(|(size, name)| (*name, size.recip()))
}

/// Microseconds.
pub(crate) fn microseconds(value: u64) -> String {
    seconds(value as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_with_their_units() {
        let show = |value, unit| shown(&Figure::new(value, unit));
        assert_eq!(show(35.0, "us"), "35 µs");
        assert_eq!(show(1_500.0, "ms"), "1.5 s");
        assert_eq!(show(12_000.0, "messages"), "12,000 messages");
        assert_eq!(show(2_560.0, "B/day"), "2.56 KB/day");
        assert_eq!(show(812.0, "devices/s"), "812 devices/s");
        assert_eq!(show(1.3, ""), "1.3");
        assert_eq!(show(31_536_000.0, "s"), "365 days");
        assert_eq!(show(90.0, "s"), "90 s");
    }

    #[test]
    fn it_is_known_which_way_is_better() {
        let better = |name, unit| Quantity::of(unit).better(name);
        assert_eq!(better("coordinator_cpu", "ms"), Better::Less);
        assert_eq!(better("onboarded", "devices/s"), Better::More);
        assert_eq!(better("stragglers", "devices"), Better::Less);
        assert_eq!(better("published", "messages"), Better::Less);
        assert_eq!(better("revoked", "devices"), Better::Neither);
    }
}
