//! Checks: claims that were held against what was seen.

use serde::{Deserialize, Serialize};

/// One claim, and what was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What is claimed.
    pub claim: String,
    /// Whether it held.
    pub held: bool,
    /// What was seen: a figure when it held; the devices and the reasons when it did not.
    pub seen: String,
}

/// Failures that are spelled out in one check; the rest is counted.
const SPELLED_OUT: usize = 5;

impl Check {
    /// A claim about the fleet as a whole.
    pub fn that(claim: impl Into<String>, held: bool, seen: impl Into<String>) -> Self {
        Self { claim: claim.into(), held, seen: seen.into() }
    }

    /// A claim about each of `count` devices, which held unless there are failures.
    pub fn each(claim: impl Into<String>, count: usize, failures: &[String]) -> Self {
        if failures.is_empty() {
            return Self::that(claim, count > 0, format!("{count} of {count}"));
        }
        let mut seen = failures.iter().take(SPELLED_OUT).cloned().collect::<Vec<_>>().join("; ");
        if failures.len() > SPELLED_OUT {
            seen.push_str(&format!("; and {} more", failures.len() - SPELLED_OUT));
        }
        Self::that(claim, false, format!("{} of {count} failed: {seen}", failures.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_about_no_device_at_all_does_not_hold() {
        assert!(!Check::each("x", 0, &[]).held);
        assert!(Check::each("x", 1, &[]).held);
    }

    #[test]
    fn a_failure_names_devices_and_reasons() {
        let failures: Vec<_> = (0..7).map(|n| format!("device {n}: lost")).collect();
        let check = Check::each("x", 10, &failures);
        assert!(!check.held);
        assert!(check.seen.starts_with("7 of 10 failed: device 0: lost; "), "{}", check.seen);
        assert!(check.seen.ends_with("and 2 more"), "{}", check.seen);
    }
}
