//! A run goes through everything that tells of it: JSON, CSV, the page, the table, the comparison.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use clap::Parser;
use fleetkey_report::{
    CPU_PARTS, Check, Comparison, Connections, Figure, Histogram, Machine, Mode, Outputs, Phase,
    RUN_REPORT_VERSION, Row, RunReport, Series, Shape, Times, Verdict, comparison_page, page, read,
    write_csv,
};

fn histogram(values: impl IntoIterator<Item = u64>) -> Histogram {
    let mut times = Times::default();
    values.into_iter().for_each(|value| times.record(Duration::from_micros(value)));
    times.histogram()
}

fn phase(name: &str, began_seconds: f64, devices: u64) -> Phase {
    let cpu = devices as f64 / 1_000.0;
    Phase {
        name: name.to_owned(),
        began_seconds,
        took_seconds: 2.5,
        latency: Some(histogram((1..=devices).map(|number| 800 + number * number % 90_000))),
        bytes_per_device: Some(histogram((1..=devices).map(|number| if number < 64 { 5_120 } else { 236 }))),
        figures: BTreeMap::from([
            (CPU_PARTS[0].to_owned(), Figure::new(cpu, "ms")),
            (CPU_PARTS[1].to_owned(), Figure::new(cpu * 4.0, "ms")),
            (CPU_PARTS[2].to_owned(), Figure::new(cpu * 30.0, "ms")),
            ("published".to_owned(), Figure::new(157.0, "messages")),
            ("rate".to_owned(), Figure::new(812.25, "devices/s")),
            ("revoked".to_owned(), Figure::new(300.0, "devices")),
        ]),
    }
}

/// A run as one might have been.
fn run(devices: usize) -> RunReport {
    let many = devices as u64;
    let series = |name: &str, unit: &str, value: &dyn Fn(f64) -> f64| Series {
        name: name.to_owned(),
        unit: unit.to_owned(),
        points: (0..200).map(|at| (f64::from(at) / 8.0, value(f64::from(at)))).collect(),
    };
    RunReport {
        version: RUN_REPORT_VERSION,
        scenario: "stolen-truck".to_owned(),
        about: "300 devices are lost at once <and> revoked in one command.".to_owned(),
        began_unix_seconds: 1_790_000_000,
        machine: Machine {
            processor: "A Processor & Co".to_owned(),
            cores: 2,
            memory_bytes: 24 << 30,
            system: "linux 6.1".to_owned(),
            program: "0.1.0".to_owned(),
        },
        mode: Mode::Real,
        connections: Connections::OnePerDevice,
        shape: Shape {
            devices,
            groups: 1,
            cells: devices.div_ceil(64),
            cell_capacity: 64,
            suite: "X25519, AES-128-GCM, Ed25519".to_owned(),
            broker: "the embedded broker, plain TCP".to_owned(),
        },
        phases: vec![phase("onboard", 0.0, many), phase("revoke the truck", 12.5, many - 300)],
        series: vec![
            series("members", "devices", &|at| (at * 80.0).min(10_000.0)),
            series("stragglers", "devices", &|at| if at > 100.0 { 200.0 - at } else { 0.0 }),
            series("memory", "B", &|at| 1e8 + at * 1e6 + 0.25),
        ],
        checks: vec![
            Check::each("every device holds the newest key", 9_700, &[]),
            Check::that("bytes outside the cell: at most 300", true, "236 B"),
        ],
        extrapolated: vec!["the last 10 %".to_owned()],
        notes: vec!["The moon was full.".to_owned()],
        seconds: 25.125,
    }
}

/// Every tag that is opened is closed, in order.
fn assert_well_formed(html: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = html.strip_prefix("<!doctype html>").unwrap();
    while let Some(at) = rest.find('<') {
        assert!(!rest[..at].contains('>'), "a > that belongs to nothing: {}", &rest[..at]);
        let (tag, after) = rest[at + 1..].split_once('>').unwrap();
        assert!(!tag.contains('<') && tag.matches('"').count() % 2 == 0, "<{tag}>");
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') && name != "meta" {
            open.push(name);
        }
        rest = match name == "style" && !tag.starts_with('/') {
            true => &after[after.find("</style>").unwrap()..],
            false => after,
        };
    }
    assert!(open.is_empty(), "left open: {open:?}");
}

fn assert_needs_nothing_else(html: &str) {
    for outside in ["http:", "https:", "src=", "href=", "@import", "url(", "<script", "<link"] {
        assert!(!html.contains(outside), "it names {outside}");
    }
}

#[test]
fn a_report_comes_back_from_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.json");
    let report = run(10_000);
    let outputs = Outputs { json: Some(path.clone()), ..Outputs::default() };
    outputs.create().unwrap().write(&report).unwrap();
    assert_eq!(read(&path).unwrap(), report);
}

#[test]
fn what_is_no_report_of_this_version_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.json");
    let mut later = serde_json::to_value(run(1_000)).unwrap();
    later["version"] = 99.into();
    fs::write(&path, later.to_string()).unwrap();
    let refused = read(&path).unwrap_err().to_string();
    assert!(refused.contains("version 99") && refused.contains("run.json"), "{refused}");
    fs::write(&path, "{\"version\": 1, \"devices\": 3}").unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("not the report of a run"));
}

#[test]
fn csv_holds_the_same_numbers() {
    let reports = [run(1_000), run(10_000)];
    let mut written = Vec::new();
    write_csv(&reports, &mut written).unwrap();
    let rows: Vec<Row> =
        csv::Reader::from_reader(written.as_slice()).deserialize().collect::<Result<_, _>>().unwrap();
    for report in &reports {
        let of = |kind: &str, phase: &str, name: &str, x: Option<f64>| {
            let mut found = rows.iter().filter(|row| {
                row.devices == report.shape.devices
                    && (row.kind.as_str(), row.phase.as_str(), row.name.as_str(), row.x)
                        == (kind, phase, name, x)
            });
            let row = found.next().unwrap_or_else(|| panic!("no {kind} {phase} {name} {x:?}"));
            assert!(found.next().is_none(), "{kind} {phase} {name} {x:?} twice");
            row
        };
        assert_eq!(of("run", "", "seconds", None).value, Some(report.seconds));
        assert_eq!(of("run", "", "processor", None).text, report.machine.processor);
        for phase in &report.phases {
            assert_eq!(of("phase", &phase.name, "took", None).value, Some(phase.took_seconds));
            for (name, figure) in &phase.figures {
                let row = of("figure", &phase.name, name, None);
                assert_eq!((row.value, &row.unit), (Some(figure.value), &figure.unit));
            }
            for (kind, of_devices) in [("latency", &phase.latency), ("bytes", &phase.bytes_per_device)] {
                let all = of_devices.as_ref().unwrap();
                assert_eq!(of(kind, &phase.name, "count", None).value, Some(all.count() as f64));
                for share in [0.0, 0.5, 0.99, 1.0] {
                    let value = of(kind, &phase.name, "quantile", Some(share)).value;
                    assert_eq!(value, Some(all.quantile(share) as f64));
                }
            }
        }
        for series in &report.series {
            let points: Vec<_> = rows
                .iter()
                .filter(|row| row.kind == "series" && row.name == series.name)
                .filter(|row| row.devices == report.shape.devices)
                .map(|row| (row.x.unwrap(), row.value.unwrap()))
                .collect();
            assert_eq!(points, series.points);
        }
        let check = of("check", "", &report.checks[1].claim, None);
        assert_eq!((check.value, check.text.as_str()), (Some(1.0), "236 B"));
    }
}

#[test]
fn the_page_is_complete_in_itself_and_shows_the_figures() {
    let report = run(10_000);
    let html = page(std::slice::from_ref(&report)).unwrap();
    assert_well_formed(&html);
    assert_needs_nothing_else(&html);
    // Two distributions, members and stragglers, which share a plot no more than either with memory, and CPU.
    assert_eq!(html.matches("<svg").count(), 6);
    for shown in [
        "stolen-truck: 10,000 devices",
        "&lt;and&gt;",
        "A Processor &amp; Co, 2 cores, 24 GiB, linux 6.1, fleetkey 0.1.0",
        "one connection for each device",
        "in real time",
        "revoke the truck",
        "236 B",
        "5.12 KB",
        "812 devices/s",
        "157 messages",
        "every device holds the newest key",
        "9700 of 9700",
        "all 2 checks held",
        "Extrapolated, not measured: the last 10 %",
        "prefers-color-scheme: dark",
    ] {
        assert!(html.contains(shown), "{shown} is not on the page");
    }
    let mut failed = report;
    failed.checks.push(Check::that("nobody waits", false, "device 7 does"));
    failed.extrapolated.clear();
    let html = page(&[failed]).unwrap();
    assert!(html.contains("1 of 3 checks FAILED") && html.contains("device 7 does"));
    assert!(html.contains("none is extrapolated"));
    assert!(html.contains("The moon was full."));
}

#[test]
fn several_sizes_of_one_scenario_make_plots_against_the_size() {
    let reports = [run(1_000), run(100_000), run(10_000)];
    let html = page(&reports).unwrap();
    assert_well_formed(&html);
    assert_needs_nothing_else(&html);
    assert_eq!(html.matches("<svg").count(), 6 + 3 * 6);
    for shown in ["Against the size of the fleet", "Coordinator CPU", "Bytes to a device, median"] {
        assert!(html.contains(shown), "{shown} is not on the page");
    }
    let head = html.find("<th></th><th>1,000 devices</th><th>10,000 devices</th><th>100,000 devices</th>");
    assert!(head.is_some(), "the sizes are not in their order");
    assert!(html.contains("<td>onboard</td><td>1 ms</td><td>10 ms</td><td>100 ms</td>"));
}

#[test]
fn the_table_for_a_terminal_shows_phases_figures_and_checks() {
    let shown = run(10_000).to_string();
    for part in ["stolen-truck", "revoke the truck", "5.12 KB", "157 messages", "  ok   every device", "held"]
    {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
}

#[test]
fn a_fifth_more_is_worse_and_a_hundredth_is_noise() {
    let before = run(10_000);
    let mut after = before.clone();
    let figures = &mut after.phases[1].figures;
    let scaled = |figures: &mut BTreeMap<String, Figure>, name: &str, by: f64| {
        figures.get_mut(name).unwrap().value *= by;
    };
    scaled(figures, CPU_PARTS[0], 1.2);
    scaled(figures, CPU_PARTS[1], 1.01);
    scaled(figures, CPU_PARTS[2], 0.7);
    scaled(figures, "rate", 0.8);
    scaled(figures, "revoked", 2.0);
    let comparison = Comparison::of(&before, &after, 0.05, false).unwrap();
    let phase = comparison.phases.iter().find(|phase| phase.name == "revoke the truck").unwrap();
    let of = |name: &str| phase.figures.iter().find(|figure| figure.name == name).unwrap();
    assert_eq!(of(CPU_PARTS[0]).verdict, Verdict::Worse);
    assert!((of(CPU_PARTS[0]).ratio.unwrap() - 1.2).abs() < 1e-9);
    assert_eq!(of(CPU_PARTS[1]).verdict, Verdict::Same);
    assert_eq!(of(CPU_PARTS[2]).verdict, Verdict::Better);
    assert_eq!(of("rate").verdict, Verdict::Worse);
    assert_eq!(of("revoked").verdict, Verdict::Changed);
    assert_eq!(of("new key: p99").verdict, Verdict::Same);
    assert_eq!((comparison.count(Verdict::Worse), comparison.count(Verdict::Better)), (2, 1));
    assert!(!comparison.is_good());
    assert!(Comparison::of(&before, &after, 0.5, false).unwrap().is_good());
    let shown = comparison.to_string();
    let line = shown.lines().filter(|line| line.contains("coordinator CPU")).nth(1).unwrap();
    assert!(line.contains("1.200") && line.ends_with("WORSE"), "{line}");
    let html = comparison_page(&comparison, &before, &after, ["a.json", "b.json"]).unwrap();
    assert_well_formed(&html);
    assert_needs_nothing_else(&html);
    assert!(html.contains("WORSE") && html.contains("b.json") && html.contains("1.200"));
}

#[test]
fn slower_devices_are_seen_in_the_distribution() {
    let before = run(10_000);
    let mut after = before.clone();
    let slower = |(value, times): &(u64, u64)| std::iter::repeat_n(value * 6 / 5, *times as usize);
    let values = before.phases[0].latency.as_ref().unwrap().values().iter().flat_map(slower);
    after.phases[0].latency = Some(histogram(values));
    let comparison = Comparison::of(&before, &after, 0.05, false).unwrap();
    let worse: Vec<_> = comparison.phases[1]
        .figures
        .iter()
        .filter(|figure| figure.verdict == Verdict::Worse)
        .map(|figure| figure.name.as_str())
        .collect();
    assert_eq!(worse, ["new key: p50", "new key: p90", "new key: p99", "new key: p99.9", "new key: last"]);
}

#[test]
fn what_the_runs_were_taken_on_is_held_against_each_other() {
    let before = run(10_000);
    let mut after = run(1_000);
    after.machine.cores = 8;
    after.mode = Mode::Virtual;
    after.connections = Connections::None;
    after.machine.program = "0.2.0".to_owned();
    after.phases.push(phase("rotate", 20.0, 1_000));
    after.checks[0].held = false;
    let comparison = Comparison::of(&before, &after, 0.05, false).unwrap();
    let differs: Vec<_> = comparison.differs.iter().map(|of| of.what.as_str()).collect();
    assert_eq!(differs, ["program", "time", "connections", "devices", "cells", "cores"]);
    let rotate = comparison.phases.iter().find(|phase| phase.name == "rotate").unwrap();
    assert!(rotate.figures.iter().all(|figure| figure.verdict == Verdict::OnlyAfter));
    assert_eq!(comparison.checks.len(), 1);
    assert_eq!(comparison.checks[0].verdict, Verdict::Worse);
}

#[test]
fn another_scenario_is_refused_by_name_unless_it_is_forced() {
    let before = run(1_000);
    let after = RunReport { scenario: "first-day".to_owned(), ..before.clone() };
    let refused = Comparison::of(&before, &after, 0.05, false).unwrap_err().to_string();
    assert!(refused.contains("another scenario: stolen-truck and first-day"), "{refused}");
    let forced = Comparison::of(&before, &after, 0.05, true).unwrap();
    assert_eq!(forced.differs[0].what, "scenario");
}

#[derive(Debug, Parser)]
enum Program {
    Report(fleetkey_report::Report),
    Compare(fleetkey_report::Compare),
}

fn command(words: &[&str]) -> anyhow::Result<(bool, String)> {
    let mut out = Vec::new();
    let all_is_well = match Program::try_parse_from([&["program"], words].concat())? {
        Program::Report(report) => report.run(&mut out)?,
        Program::Compare(compare) => compare.run(&mut out)?,
    };
    Ok((all_is_well, String::from_utf8(out)?))
}

#[test]
fn the_commands_read_what_runs_have_written() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let store = |name: &str, report: &RunReport| {
        let outputs = Outputs { json: Some(file(name).into()), ..Outputs::default() };
        outputs.create().unwrap().write(report).unwrap();
        file(name)
    };
    let (small, large) = (store("a.json", &run(1_000)), store("b.json", &run(10_000)));
    let (html, csv) = (file("page.html"), file("table.csv"));
    let (all_held, shown) = command(&["report", &small, &large, "--html", &html, "--csv", &csv]).unwrap();
    assert!(all_held && shown.contains("10,000 devices"));
    assert_well_formed(&fs::read_to_string(&html).unwrap());
    assert!(fs::read_to_string(&csv).unwrap().lines().count() > 1_200);

    assert!(command(&["compare", &small, &small]).unwrap().0);
    let (is_good, shown) = command(&["compare", &small, &large, "--noise", "10%", "--html", &html]).unwrap();
    assert!(!is_good && shown.contains("not the same devices: 1,000 | 10,000"), "{shown}");
    assert!(fs::read_to_string(&html).unwrap().contains("WORSE"));

    let other = RunReport { scenario: "first-day".to_owned(), ..run(1_000) };
    let other = store("c.json", &other);
    assert!(command(&["compare", &small, &other]).unwrap_err().to_string().contains("another scenario"));
    assert!(command(&["compare", &small, &other, "--force"]).is_ok());
    assert!(command(&["report", &small, &other]).unwrap_err().to_string().contains("several scenarios"));
}
