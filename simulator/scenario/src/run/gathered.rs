//! What a phase has shown: gathered while it runs, told and held against its targets when it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fleetkey_report::{Check, Figure, Times};

use crate::scenario::Phase;
use crate::units::people;
use crate::world::{Looked, Waited};

/// A phase that is shorter says nothing about a day.
const WORTH_A_DAY: Duration = Duration::from_secs(3_600);

/// What a phase has shown so far.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    latency: Times,
    slowest: Duration,
    exposures: Vec<Duration>,
    key_ages: Vec<Duration>,
    /// What merely connecting and subscribing again took the devices of a power cut, each time.
    reconnects: Vec<Duration>,
    /// The slowest device since the power was back; none before that.
    current_again: Option<Duration>,
}

/// What was spent between two looks.
struct Spent {
    received: Vec<u64>,
    both_ways: u64,
    messages: u64,
    coordinator: Duration,
    devices: Duration,
    broker: Option<Duration>,
    days: f64,
}

impl Spent {
    fn between(before: &Looked, after: &Looked, in_use: &[usize], took: Duration) -> Self {
        let in_use: BTreeSet<usize> = in_use.iter().copied().collect();
        let grown = |before: &[u64], after: &[u64]| -> Vec<u64> {
            let was = |number: usize| before.get(number).copied().unwrap_or(0);
            let grown = after.iter().enumerate().map(|(number, is)| (number, is.saturating_sub(was(number))));
            grown.filter(|(number, by)| *by > 0 || in_use.contains(number)).map(|(_, by)| by).collect()
        };
        let received = grown(&before.received_bytes, &after.received_bytes);
        let sent = grown(&before.sent_bytes, &after.sent_bytes);
        Self {
            both_ways: received.iter().sum::<u64>() + sent.iter().sum::<u64>(),
            received,
            messages: after.messages.saturating_sub(before.messages),
            coordinator: after.coordinator_cpu.saturating_sub(before.coordinator_cpu),
            devices: after.device_cpu.saturating_sub(before.device_cpu),
            broker: after.broker_cpu.map(|cpu| cpu.saturating_sub(before.broker_cpu.unwrap_or_default())),
            days: took.as_secs_f64() / 86_400.0,
        }
    }

    /// Bytes of a device in a day, both ways, on average.
    fn bytes_per_device_and_day(&self) -> f64 {
        self.both_ways as f64 / self.received.len().max(1) as f64 / self.days
    }
}

impl Gathered {
    pub(super) fn reconnected(&mut self, took: Vec<Duration>) {
        self.reconnects = took;
    }

    /// The power is back: whoever was late before that is another matter.
    pub(super) const fn power_is_back(&mut self) {
        self.current_again = Some(Duration::ZERO);
    }

    /// What merely reconnecting took at the median, how long the slowest device took when the power was back, and how many
    /// times the one is in the other.
    fn reconnect_ratio(&self) -> Option<(Duration, Duration, f64)> {
        let (median, again) = (quantile(&self.reconnects, 0.5), self.current_again?);
        (!median.is_zero()).then(|| (median, again, again.as_secs_f64() / median.as_secs_f64()))
    }

    pub(super) fn take(&mut self, waited: Waited) {
        for latency in waited.latencies {
            self.latency.record(latency);
            self.slowest = self.slowest.max(latency);
            self.current_again = self.current_again.map(|again| again.max(latency));
        }
        self.exposures.extend(waited.exposures);
        self.key_ages.extend(waited.key_ages);
    }

    /// The phase as it is reported, and its targets.
    pub(super) fn tell(
        &mut self,
        phase: &Phase,
        [began, acted, ended]: [Duration; 3],
        settled: Option<bool>,
        [before, after]: [&Looked; 2],
        in_use: &[usize],
    ) -> (fleetkey_report::Phase, Vec<Check>) {
        let spent = Spent::between(before, after, in_use, ended.saturating_sub(began));
        let latency = self.latency.histogram();
        let told = fleetkey_report::Phase {
            name: phase.name.clone(),
            began_seconds: began.as_secs_f64(),
            took_seconds: ended.saturating_sub(began).as_secs_f64(),
            latency: (latency.count() > 0).then_some(latency),
            bytes_per_device: (!spent.received.is_empty()).then(|| {
                let mut bytes = Times::default();
                spent.received.iter().for_each(|received| bytes.count(*received));
                bytes.histogram()
            }),
            figures: self.figures(&spent, after, settled.map(|_| ended.saturating_sub(acted))),
        };
        let checks = self.checks(phase, &spent, after, settled, ended.saturating_sub(acted));
        (told, checks)
    }

    fn figures(
        &self,
        spent: &Spent,
        after: &Looked,
        settled_in: Option<Duration>,
    ) -> BTreeMap<String, Figure> {
        let mut figures = BTreeMap::new();
        let mut put = |name: &str, value: f64, unit: &str| {
            figures.insert(name.to_owned(), Figure::new(value, unit));
        };
        put("coordinator_cpu", spent.coordinator.as_secs_f64() * 1_000.0, "ms");
        put("device_cpu", spent.devices.as_secs_f64() * 1_000.0, "ms");
        if let Some(broker) = spent.broker {
            put("broker_cpu", broker.as_secs_f64() * 1_000.0, "ms");
        }
        put("memory", after.memory_bytes as f64, "B");
        put("members", after.members as f64, "devices");
        put("cells", after.cells as f64, "cells");
        put("stragglers", (after.stragglers + after.wanted) as f64, "devices");
        put("messages", spent.messages as f64, "messages");
        if let Some(settled_in) = settled_in {
            put("settled", settled_in.as_secs_f64(), "s");
        }
        if let Some((median, again, ratio)) = self.reconnect_ratio() {
            put("reconnect", median.as_secs_f64(), "s");
            put("current_again", again.as_secs_f64(), "s");
            put("reconnect_ratio", ratio, "");
        }
        if spent.days * 86_400.0 >= WORTH_A_DAY.as_secs_f64() {
            put("bytes_per_device_and_day", spent.bytes_per_device_and_day(), "B");
        }
        for (name, times) in [("exposure", &self.exposures), ("key_age", &self.key_ages)] {
            if !times.is_empty() {
                put(&format!("{name}_count"), times.len() as f64, "");
                put(&format!("{name}_p50"), quantile(times, 0.5).as_secs_f64(), "s");
                put(&format!("{name}_p99"), quantile(times, 0.99).as_secs_f64(), "s");
                put(&format!("{name}_max"), quantile(times, 1.0).as_secs_f64(), "s");
            }
        }
        figures
    }

    fn checks(
        &self,
        phase: &Phase,
        spent: &Spent,
        after: &Looked,
        settled: Option<bool>,
        settled_in: Duration,
    ) -> Vec<Check> {
        let targets = &phase.targets;
        let mut checks = Vec::new();
        let mut claim = |what: String, held: bool, seen: String| {
            checks.push(Check::that(format!("{}: {what}", phase.name), held, seen));
        };
        let at_most = |times: &[Duration], most: Duration| {
            let worst = times.iter().max();
            (
                worst.is_some_and(|worst| *worst <= most),
                worst.map_or("there was none".into(), |worst| people(*worst)),
            )
        };
        if let Some(within) = targets.current_within {
            let seen = match settled {
                Some(true) => people(settled_in),
                Some(false) | None => {
                    let (late, wanted) = (after.stragglers, after.wanted);
                    format!("{late} members without the newest key, {wanted} not yet in")
                }
            };
            claim(format!("every device current within {}", people(within)), settled == Some(true), seen);
        }
        if let Some((most, (median, again, ratio))) =
            targets.reconnect_ratio_at_most.zip(self.reconnect_ratio())
        {
            let held = settled == Some(true) && ratio <= most;
            let seen = format!("{ratio:.2} times: {} after {}", people(again), people(median));
            claim(format!("all current again in at most {most} times a mere reconnect"), held, seen);
        }
        if let Some(most) = targets.latency_at_most {
            let held = self.latency.milliseconds().count > 0 && self.slowest <= most;
            claim(format!("the slowest device at most {}", people(most)), held, people(self.slowest));
        }
        if let Some(most) = targets.bytes_per_device_at_most {
            let seen = spent.received.iter().max().copied().unwrap_or(0);
            claim(format!("at most {most} B to a device"), seen <= most, format!("{seen} B"));
        }
        if let Some(most) = targets.bytes_per_device_and_day_at_most {
            let seen = spent.bytes_per_device_and_day();
            claim(
                format!("at most {most} B per device and day"),
                seen <= most as f64,
                format!("{seen:.0} B"),
            );
        }
        if let Some(most) = targets.coordinator_cpu_at_most {
            let held = spent.coordinator <= most;
            claim(format!("coordinator CPU at most {}", people(most)), held, people(spent.coordinator));
        }
        if let Some(most) = targets.exposure_at_most {
            let (held, seen) = at_most(&self.exposures, most);
            claim(format!("exposed at most {} after a revocation", people(most)), held, seen);
        }
        if let Some(most) = targets.key_age_at_most {
            let (held, seen) = at_most(&self.key_ages, most);
            claim(format!("no key older than {}", people(most)), held, seen);
        }
        checks
    }
}

/// The smallest that so large a share of all is at most.
fn quantile(times: &[Duration], share: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (share * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_late_before_the_power_was_back_is_not_held_against_a_reconnect() {
        let seconds = Duration::from_secs;
        let late = |times: &[u64]| Waited {
            latencies: times.iter().copied().map(seconds).collect(),
            ..Waited::default()
        };
        let mut gathered = Gathered::default();
        gathered.reconnected(vec![seconds(4), seconds(2), seconds(1)]);
        gathered.take(late(&[60]));
        assert_eq!(gathered.reconnect_ratio(), None);
        gathered.power_is_back();
        gathered.take(late(&[1, 3]));
        assert_eq!(gathered.reconnect_ratio(), Some((seconds(2), seconds(3), 1.5)));
    }
}
