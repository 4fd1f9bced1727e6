//! What was measured, all of it: as JSON, and as a table for a terminal.
//!
//! Leaves the page to `html`.

use std::fmt;

use fleetkey_plot::Unit;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::measure::Figures;

/// The version of the JSON document.
pub const REPORT_VERSION: u32 = 1;

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// On what.
    pub machine: Machine,
    /// What each scheme had for each size, set-up included.
    pub budget_seconds: u64,
    /// Each scheme, ours first.
    pub schemes: Vec<SchemeReport>,
}

/// What was measured of one scheme.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SchemeReport {
    /// Its name.
    pub name: String,
    /// What was measured.
    pub about: String,
    /// Whether it is ours.
    pub is_ours: bool,
    /// By size, smallest first.
    pub sizes: Vec<Size>,
}

/// One scheme at one size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Size {
    /// Devices before the removal.
    pub devices: usize,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of measuring.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Figures.
    Figures(Figures),
    /// None, and why.
    NotReached(String),
}

impl Report {
    /// All sizes, smallest first.
    pub fn sizes(&self) -> Vec<usize> {
        let all = self.schemes.iter().flat_map(|scheme| scheme.sizes.iter().map(|size| size.devices));
        let mut sizes: Vec<usize> = all.collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// What the columns mean, and what is not in them.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = NOTES.map(str::to_owned).into();
        let all = self
            .schemes
            .iter()
            .flat_map(|scheme| scheme.sizes.iter().map(move |size| (scheme, &size.outcome)));
        let mut confirmed = all.filter_map(|(scheme, outcome)| match outcome {
            Outcome::Figures(figures) => Some((scheme, figures.confirmation_cpu_seconds?)),
            Outcome::NotReached(_) => None,
        });
        if let Some((scheme, seconds)) = confirmed.next_back() {
            let seconds = Unit::Seconds.show(seconds);
            notes.push(format!(
                "Not in the table: in {} each device confirms, which takes the coordinator {seconds} each; in no other scheme.",
                scheme.name
            ));
        }
        notes
    }

    /// What each scheme came to at one size.
    pub fn at(&self, devices: usize) -> impl Iterator<Item = (&SchemeReport, &Outcome)> {
        self.schemes.iter().filter_map(move |scheme| {
            let size = scheme.sizes.iter().find(|size| size.devices == devices)?;
            Some((scheme, &size.outcome))
        })
    }
}

/// The columns of the table, for a terminal and for the page.
pub(crate) const COLUMNS: [&str; 6] = [
    "one removal",
    "coordinator CPU",
    "published",
    "to a device: median / most",
    "device CPU: median / most",
    "device state",
];

/// One row of it, without the name.
pub(crate) fn cells(figures: &Figures) -> [String; 5] {
    let bytes = |bytes: u64| Unit::Bytes.show(bytes as f64);
    let seconds = |seconds| Unit::Seconds.show(seconds);
    [
        seconds(figures.coordinator_cpu_seconds),
        format!(
            "{} in {}",
            bytes(figures.published_bytes),
            Unit::Count.show(figures.published_messages as f64)
        ),
        format!("{} / {}", bytes(figures.device_bytes_median), bytes(figures.device_bytes_max)),
        format!(
            "{} / {}",
            seconds(figures.device_cpu_seconds_median),
            seconds(figures.device_cpu_seconds_max)
        ),
        bytes(figures.device_state_bytes),
    ]
}

/// The line over the rows of one size.
pub(crate) fn group(devices: usize) -> String {
    format!("{} devices", Unit::Count.show(devices as f64))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.machine)?;
        writeln!(
            f,
            "{:<20}{:>16}{:>22}{:>28}{:>27}{:>14}",
            COLUMNS[0], COLUMNS[1], COLUMNS[2], COLUMNS[3], COLUMNS[4], COLUMNS[5]
        )?;
        for devices in self.sizes() {
            writeln!(f, "\n{}", group(devices))?;
            for (scheme, outcome) in self.at(devices) {
                match outcome {
                    Outcome::Figures(figures) => {
                        let [coordinator, published, delivered, device, state] = cells(figures);
                        writeln!(
                            f,
                            "  {:<18}{coordinator:>16}{published:>22}{delivered:>28}{device:>27}{state:>14}",
                            scheme.name
                        )?;
                    }
                    Outcome::NotReached(why) => writeln!(f, "  {:<18}  {why}", scheme.name)?,
                }
            }
        }
        writeln!(f)?;
        self.notes().iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}

/// What the columns mean.
const NOTES: [&str; 4] = [
    "CPU: of one thread, the work of several threads added up; medians over removals, and over sampled devices.",
    "published: bytes and messages that the coordinator hands to the broker, each message once, payloads alone.",
    "median / most: over all devices that remain; Fleetkey's most is that of the removed device's cell, at most 63 devices.",
    "Each removal is checked: those sampled hold the coordinator's new key, and the removed device's own code finds none.",
];
