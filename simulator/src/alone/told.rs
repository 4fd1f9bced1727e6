//! The coordinator by itself, told: tables, and what was not measured.

use std::fmt;

use fleetkey_plot::Unit;

use super::{Costs, Found, OfSize};

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        writeln!(
            f,
            "The coordinator alone: real cells of 64, devices as key packages, on SQLite.\n{}, {} cores, {}, fleetkey {}\n",
            machine.processor, machine.cores, machine.system, machine.program
        )?;
        let row = |size: &OfSize| {
            let costs = &size.revocation;
            [
                count(size.devices),
                count(size.cells),
                ms(costs.decide),
                ms(costs.store),
                ms(costs.hand_over),
                ms(costs.cpu),
                ms(costs.elapsed),
                ms(costs.clean_up),
                count(costs.messages),
                bytes(costs.published_bytes),
                format!("{} B", costs.outside_bytes),
                format!("{} B", costs.inside_bytes),
            ]
        };
        writeln!(f, "one revocation, processor time of the coordinator")?;
        table(
            f,
            [
                "devices",
                "cells",
                "decide",
                "store",
                "hand over",
                "in all",
                "elapsed",
                "later",
                "messages",
                "published",
                "outside",
                "inside",
            ],
            self.sizes.iter().map(row),
        )?;
        let row = |size: &OfSize| {
            let Costs { decide, store, hand_over, cpu, elapsed, clean_up, .. } = size.rekey;
            [
                count(size.devices),
                ms(decide),
                ms(store),
                ms(hand_over),
                ms(cpu),
                ms(elapsed),
                ms(clean_up),
                ms(size.revocation.decide - decide),
            ]
        };
        writeln!(f, "\na rekey without anybody going: statements alone, no MLS commit")?;
        table(
            f,
            ["devices", "decide", "store", "hand over", "in all", "elapsed", "later", "what the commit adds"],
            self.sizes.iter().map(row),
        )?;
        let row = |size: &OfSize| {
            [
                count(size.devices),
                seconds(size.onboarded_in_seconds),
                seconds(size.onboarding_cpu_seconds),
                seconds(size.onboarding_cpu_seconds / size.devices as f64),
                bytes(size.database_bytes),
                seconds(size.start_seconds),
                seconds(size.start_cpu_seconds),
                bytes(size.resident_bytes),
                bytes(size.resident_bytes_per_device as u64),
            ]
        };
        writeln!(f, "\nonboarding, and a start on what is stored")?;
        table(
            f,
            [
                "devices",
                "all in after",
                "coordinator CPU",
                "a device",
                "database",
                "start",
                "its CPU",
                "resident",
                "a device",
            ],
            self.sizes.iter().map(row),
        )?;
        writeln!(f)?;
        NOTES.iter().try_for_each(|note| writeln!(f, "{note}"))?;
        self.extrapolated.iter().try_for_each(|line| writeln!(f, "counted up, not measured: {line}"))?;
        writeln!(f)?;
        for check in &self.checks {
            writeln!(f, "{} {}: {}", if check.held { "  ok  " } else { "FAILED" }, check.claim, check.seen)?;
        }
        Ok(())
    }
}

/// What the columns mean.
const NOTES: [&str; 6] = [
    "decide: MLS, one signature, a wrap for each cell, encoding. store: one SQLite transaction. hand over: each message taken.",
    "in all: the median of the three together. elapsed: the same by the clock, with the wait for the disk.",
    "later: rows of sent messages are deleted, with whatever is stored next. outside, inside: the largest message to a device \
     of another cell, and of the revoked device's.",
    "all in after: from the first enrolment on, with the work of the devices' real agents (hello, key packages), on all cores.",
    "resident: a process that has just loaded all of it; devices that speak with it add their links.",
    "Each rekey is checked on agents that live: one whole cell, and four of others. The other devices' agents were dropped once \
     they were in: what they would answer is not sent.",
];

/// What this size would have cost besides, had all its devices been there.
pub(super) fn extrapolated(size: &OfSize) -> String {
    format!(
        "{} devices: taking in every device's confirmation of one rekey, {:.1} us each on the {} that live, would be {}",
        count(size.devices),
        size.confirmation_cpu_microseconds,
        size.living,
        seconds(size.confirmation_cpu_microseconds * size.devices as f64 / 1e6),
    )
}

fn table<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> fmt::Result {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            write!(f, "  {cell:>width$}")?;
        }
        writeln!(f)?;
    }
    Ok(())
}

pub(super) fn count(count: usize) -> String {
    Unit::Count.show(count as f64)
}

fn ms(milliseconds: f64) -> String {
    seconds(milliseconds / 1_000.0)
}

fn seconds(seconds: f64) -> String {
    Unit::Seconds.show(seconds)
}

fn bytes(bytes: u64) -> String {
    Unit::Bytes.show(bytes as f64)
}
