//! Quantities as people write them: `"30s"`, `"10%"`, `"100/s"`, `"20kB"`.
//!
//! Each is bounded, and an error says what would be right.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// The longest time that can be written.
const MAX_SECONDS: f64 = 20.0 * 365.0 * 86_400.0;

/// A length of time: `"20ms"`, `"30s"`, `"5m"`, `"12h"`, `"7d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(pub(crate) Duration);

/// A share of something: `"10%"`, as 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(crate) struct Share(pub(crate) f64);

/// How often something happens, in times a second: `"100/s"`, `"30/m"`, `"5/h"`, `"3/d"`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(crate) struct Rate(pub(crate) f64);

/// A number of bytes: `"300B"`, `"7kB"`, `"2MB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes(pub(crate) u64);

/// A number with a unit: what is before the first letter, `%` or `/`, and the rest. `_` may stand between digits.
fn split(text: &str) -> Option<(f64, &str)> {
    let at = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '_')).unwrap_or(text.len());
    let number: f64 = text[..at].replace('_', "").parse().ok()?;
    Some((number, text[at..].trim()))
}

pub(crate) trait Quantity: Sized {
    /// What would be right.
    const LIKE: &'static str;

    fn read(text: &str) -> Option<Self>;
}

fn seconds_in(unit: &str) -> Option<f64> {
    Some(match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return None,
    })
}

impl Quantity for Time {
    const LIKE: &'static str =
        "a time such as \"20ms\", \"30s\", \"5m\", \"12h\" or \"7d\", 20 years at most";

    fn read(text: &str) -> Option<Self> {
        let (number, unit) = split(text)?;
        let seconds = number * seconds_in(unit)?;
        (seconds <= MAX_SECONDS).then(|| Self(Duration::from_millis((seconds * 1_000.0).round() as u64)))
    }
}

impl Quantity for Share {
    const LIKE: &'static str = "a share from \"0%\" to \"100%\"";

    fn read(text: &str) -> Option<Self> {
        let (number, unit) = split(text)?;
        (unit == "%" && number <= 100.0).then_some(Self(number / 100.0))
    }
}

impl Quantity for Rate {
    const LIKE: &'static str =
        "a rate such as \"100/s\", \"30/m\", \"5/h\" or \"3/d\", a million a second at most";

    fn read(text: &str) -> Option<Self> {
        let (number, unit) = split(text)?;
        let per_second = number / seconds_in(unit.strip_prefix('/')?)?;
        (per_second <= 1e6).then_some(Self(per_second))
    }
}

impl Quantity for Bytes {
    const LIKE: &'static str = "a size such as \"300B\", \"7kB\" or \"2MB\", a terabyte at most";

    fn read(text: &str) -> Option<Self> {
        let (number, unit) = split(text)?;
        let bytes = number
            * match unit {
                "B" => 1.0,
                "kB" => 1e3,
                "MB" => 1e6,
                "GB" => 1e9,
                _ => return None,
            };
        (bytes <= 1e12).then_some(Self(bytes as u64))
    }
}

struct Reader<Q>(std::marker::PhantomData<Q>);

impl<Q: Quantity> Visitor<'_> for Reader<Q> {
    type Value = Q;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Q::LIKE)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Q, E> {
        Q::read(text).ok_or_else(|| E::custom(format!("\"{text}\" is not {}", Q::LIKE)))
    }
}

macro_rules! deserialize {
    ($($name:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Reader(std::marker::PhantomData))
            }
        }
    )*};
}

deserialize!(Time, Share, Rate, Bytes);

/// A length of time for people.
pub fn people(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        _ if seconds < 1.0 => format!("{:.0} ms", seconds * 1_000.0),
        _ if seconds < 120.0 => format!("{seconds:.2} s"),
        _ if seconds < 7_200.0 => format!("{:.1} min", seconds / 60.0),
        _ if seconds < 172_800.0 => format!("{:.1} h", seconds / 3_600.0),
        _ => format!("{:.1} d", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_people_write_them() {
        assert_eq!(Time::read("1.5h"), Some(Time(Duration::from_secs(5_400))));
        assert_eq!(Time::read("20ms"), Some(Time(Duration::from_millis(20))));
        assert_eq!(Share::read("2.5%"), Some(Share(0.025)));
        assert_eq!(Rate::read("30/m"), Some(Rate(0.5)));
        assert_eq!(Bytes::read("7kB"), Some(Bytes(7_000)));
    }

    #[test]
    fn what_has_no_unit_or_is_out_of_bounds_is_none() {
        assert_eq!(Time::read("30"), None);
        assert_eq!(Time::read("30y"), None);
        assert_eq!(Time::read("8000d"), None);
        assert_eq!(Share::read("101%"), None);
        assert_eq!(Rate::read("-3/s"), None);
        assert_eq!(Bytes::read("7"), None);
    }
}
