//! Labels of devices, and selectors: what a group asks of the labels of those that belong in it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most labels that a device has, or a selector asks for.
pub const MAX_LABELS: usize = 16;
/// Longest key or value, in bytes.
pub const MAX_LABEL_BYTES: usize = 64;

/// Keys with a value each, such as `site=hamburg,type=meter`. As a selector: all of them must be there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(into = "BTreeMap<String, String>", try_from = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

/// Labels that are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLabels {
    /// Not `key=value`.
    #[error("{0:?} is not key=value")]
    NotAPair(String),
    /// A key or a value with other characters, or too long.
    #[error("{0:?} cannot be part of a label: 1 to {MAX_LABEL_BYTES} of A-Z a-z 0-9 . _ / -")]
    BadText(String),
    /// A key that comes twice.
    #[error("the label {0} comes twice")]
    Twice(String),
    /// More of them than are kept.
    #[error("{0} labels, at most {MAX_LABELS} are kept")]
    TooMany(usize),
}

impl Labels {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each key with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether these, as a selector, select a device with `labels`. Without any they select nobody.
    pub fn select(&self, labels: &Self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|(key, value)| labels.0.get(key) == Some(value))
    }

    /// These, and those of `others` whose keys are not among them, as far as there is room.
    #[must_use]
    pub fn with(&self, others: &Self) -> Self {
        let mut all = self.0.clone();
        for (key, value) in &others.0 {
            if all.len() < MAX_LABELS {
                all.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        Self(all)
    }
}

fn check(text: &str) -> Result<(), BadLabels> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'/' | b'-');
    if (1..=MAX_LABEL_BYTES).contains(&text.len()) && text.bytes().all(is_plain) {
        Ok(())
    } else {
        Err(BadLabels::BadText(text.chars().take(MAX_LABEL_BYTES).collect()))
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = BadLabels;

    fn try_from(map: BTreeMap<String, String>) -> Result<Self, BadLabels> {
        if map.len() > MAX_LABELS {
            return Err(BadLabels::TooMany(map.len()));
        }
        map.iter().flat_map(|(key, value)| [key, value]).try_for_each(|text| check(text))?;
        Ok(Self(map))
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

impl FromStr for Labels {
    type Err = BadLabels;

    /// `key=value,key=value`; an empty text has none.
    fn from_str(text: &str) -> Result<Self, BadLabels> {
        let mut map = BTreeMap::new();
        for part in text.split(',').map(str::trim).filter(|_| !text.trim().is_empty()) {
            let (key, value) =
                part.split_once('=').ok_or_else(|| BadLabels::NotAPair(part.chars().take(64).collect()))?;
            if map.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(BadLabels::Twice(key.to_owned()));
            }
        }
        Self::try_from(map)
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (key, value)) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        text.parse().unwrap()
    }

    #[test]
    fn labels_come_back_from_their_text() {
        for text in ["", "site=hamburg", "site=hamburg,type=meter/v2"] {
            assert_eq!(labels(text).to_string(), text);
        }
        assert_eq!(labels(" type=meter , site=hamburg "), labels("site=hamburg,type=meter"));
    }

    #[test]
    fn what_is_no_label_is_refused_by_name() {
        let long = "x".repeat(MAX_LABEL_BYTES + 1);
        let many = (0..=MAX_LABELS).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
        for (text, refused) in [
            ("site", BadLabels::NotAPair("site".into())),
            ("site=", BadLabels::BadText(String::new())),
            ("=hamburg", BadLabels::BadText(String::new())),
            ("site=ham burg", BadLabels::BadText("ham burg".into())),
            ("a=1,a=2", BadLabels::Twice("a".into())),
            (&format!("a={long}"), BadLabels::BadText("x".repeat(MAX_LABEL_BYTES))),
            (&many, BadLabels::TooMany(MAX_LABELS + 1)),
        ] {
            assert_eq!(text.parse::<Labels>(), Err(refused), "{text}");
        }
    }

    #[test]
    fn a_selector_selects_those_that_have_all_of_it() {
        let device = labels("site=hamburg,type=meter");
        for (selector, selects) in [
            ("site=hamburg", true),
            ("site=hamburg,type=meter", true),
            ("site=bremen", false),
            ("site=hamburg,floor=2", false),
            ("", false),
        ] {
            assert_eq!(labels(selector).select(&device), selects, "{selector:?}");
        }
    }

    #[test]
    fn own_labels_go_before_others() {
        assert_eq!(labels("a=1,b=2").with(&labels("b=3,c=4")), labels("a=1,b=2,c=4"));
    }
}
