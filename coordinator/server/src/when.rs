//! Times as people read and write them.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// RFC 3339 in UTC; seconds since 1970 where the calendar ends.
pub fn show(unix_seconds: u64) -> String {
    i64::try_from(unix_seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| unix_seconds.to_string())
}

/// Reads RFC 3339, or seconds since 1970.
pub fn parse(text: &str) -> Option<u64> {
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(at.unix_timestamp()).ok()
}

/// Seconds, from a number with a unit: s, m, h or d.
///
/// # Errors
/// What to say instead.
pub fn parse_span(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no time: say 90s, 30m, 12h or 7d");
    let unit = text.chars().last().ok_or_else(bad)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(bad()),
    };
    let number: u64 = text.strip_suffix(unit).and_then(|number| number.parse().ok()).ok_or_else(bad)?;
    number.checked_mul(seconds).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_they_are_shown() {
        assert_eq!(show(1_800_000_000), "2027-01-15T08:00:00Z");
        assert_eq!(parse("2027-01-15T08:00:00Z"), Some(1_800_000_000));
        assert_eq!(parse("2027-01-15T09:00:00+01:00"), Some(1_800_000_000));
        assert_eq!(parse("1800000000"), Some(1_800_000_000));
        assert_eq!(parse("yesterday"), None);
        assert_eq!(show(u64::MAX), u64::MAX.to_string());
    }

    #[test]
    fn spans_have_a_unit() {
        for (text, seconds) in [("90s", 90), ("30m", 1_800), ("12h", 43_200), ("7d", 604_800)] {
            assert_eq!(parse_span(text), Ok(seconds));
        }
        for bad in ["", "7", "d", "-1d", "7w", "1.5h", "99999999999999999999d", "7é"] {
            assert!(parse_span(bad).unwrap_err().contains("is no time"), "{bad}");
        }
    }
}
