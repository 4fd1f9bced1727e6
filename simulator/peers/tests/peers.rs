//! Every scheme really rekeys, on small fleets; and what a run writes is what it should be.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::time::Duration;

use clap::Parser as _;
use fleetkey_peers::{
    Budget, FlatOpenMls, Fleet, Fleetkey, KeyTree, Kind, NoFigures, Outcome, Pairwise, Peers, Published,
    Report, Scheme, Stopped, measure,
};

const DEVICES: usize = 24;

fn budget() -> Budget {
    Budget::of(Duration::from_secs(300))
}

fn schemes() -> Vec<Box<dyn Scheme>> {
    vec![
        Box::new(Fleetkey),
        Box::new(FlatOpenMls),
        #[cfg(feature = "mls-rs")]
        Box::new(fleetkey_peers::FlatMlsRs),
        Box::new(Pairwise),
        Box::new(KeyTree { degree: 2 }),
        Box::new(KeyTree { degree: 4 }),
    ]
}

#[test]
fn whoever_remains_has_the_new_key_and_the_removed_device_has_not() {
    for scheme in schemes() {
        let name = scheme.name();
        let mut fleet = scheme.set_up(DEVICES, &budget()).unwrap();
        let mut before = fleet.coordinator_key().unwrap();
        for turn in 0..3 {
            let published = fleet.remove().unwrap();
            assert!(published.messages > 0 && published.bytes > 0, "{name}");
            let key = fleet.coordinator_key().unwrap();
            assert_ne!(key, before, "{name}");
            for at in 0..fleet.sampled() {
                assert_ne!(fleet.key_of(at).unwrap(), key, "{name}: {at} has the key before it was told");
                assert!(fleet.deliver(at).unwrap() > 0, "{name}");
                assert_eq!(fleet.key_of(at).unwrap(), key, "{name}: sampled device {at}, turn {turn}");
            }
            let remaining = fleet.kinds().iter().map(|kind| kind.devices).sum::<usize>();
            assert!((DEVICES - 1 - turn..DEVICES).contains(&remaining), "{name}: {remaining}");
            if turn == 0 {
                let said = fleet.removed_derives().unwrap_err();
                assert!(!said.is_empty(), "{name}");
            }
            before = key;
            fleet.settle().unwrap();
        }
    }
}

#[test]
fn a_fleet_of_several_cells_has_devices_inside_and_outside() {
    let figures = measure(&Fleetkey, 150, 2, &budget()).unwrap();
    let [inside, outside] = &figures.kinds[..] else { panic!("{:?}", figures.kinds) };
    assert_eq!((inside.devices, outside.devices), (63, 86));
    assert_eq!((inside.sampled, outside.sampled), (63, 4));
    // The removed device's own cell gets the commit, everybody else the statement and a wrap.
    assert!(inside.bytes > 5_000 && inside.bytes < 7_168, "{}", inside.bytes);
    assert!(outside.bytes < 300, "{}", outside.bytes);
    assert_eq!(figures.device_bytes_median, outside.bytes);
    assert_eq!(figures.device_bytes_max, inside.bytes);
    assert_eq!(figures.published_messages, 3);
}

#[test]
fn batches_that_the_coordinator_adds_one_after_the_other_make_one_fleet() {
    let figures = measure(&Fleetkey, 540, 1, &budget()).unwrap();
    let remaining: usize = figures.kinds.iter().map(|kind| kind.devices).sum();
    assert_eq!(remaining, 539);
    assert_eq!(figures.published_messages, 540_u64.div_ceil(64));
}

/// A scheme that leaves the removed device its key, or a device without the new one.
struct Faulty {
    reaches_everybody: bool,
    forgets_the_removed: bool,
}

impl Scheme for Faulty {
    fn name(&self) -> String {
        "faulty".to_owned()
    }

    fn about(&self) -> &'static str {
        "None."
    }

    fn set_up(&self, _: usize, _: &Budget) -> Result<Box<dyn Fleet>, Stopped> {
        Ok(Box::new(FaultyFleet { of: Self { ..*self }, key: 0, held: 0 }))
    }
}

struct FaultyFleet {
    of: Faulty,
    key: u8,
    held: u8,
}

impl Fleet for FaultyFleet {
    fn remove(&mut self) -> Result<Published, Stopped> {
        self.key += 1;
        Ok(Published { messages: 1, bytes: 1 })
    }

    fn sampled(&self) -> usize {
        1
    }

    fn kinds(&self) -> Vec<Kind> {
        vec![Kind { name: "each", devices: 1 }]
    }

    fn kind_of(&self, _: usize) -> usize {
        0
    }

    fn deliver(&mut self, _: usize) -> Result<u64, Stopped> {
        if self.of.reaches_everybody {
            self.held = self.key;
        }
        Ok(1)
    }

    fn key_of(&self, _: usize) -> Result<Vec<u8>, Stopped> {
        Ok(vec![self.held])
    }

    fn coordinator_key(&self) -> Result<Vec<u8>, Stopped> {
        Ok(vec![self.key])
    }

    fn removed_derives(&mut self) -> Result<Vec<u8>, String> {
        if self.of.forgets_the_removed { Ok(vec![self.key]) } else { Err("nothing".to_owned()) }
    }

    fn state_bytes(&self, _: usize) -> u64 {
        1
    }
}

#[test]
fn a_removal_that_does_not_do_its_work_gives_no_figures() {
    let sound = Faulty { reaches_everybody: true, forgets_the_removed: false };
    assert!(measure(&sound, 2, 2, &budget()).is_ok());
    for faulty in
        [Faulty { reaches_everybody: false, ..sound }, Faulty { forgets_the_removed: true, ..sound }]
    {
        let refused = measure(&faulty, 2, 2, &budget());
        assert!(matches!(refused, Err(NoFigures::Broken { .. })), "{refused:?}");
    }
}

#[test]
fn what_takes_too_long_has_no_figures_and_says_so() {
    for scheme in schemes() {
        let refused = measure(scheme.as_ref(), DEVICES, 1, &Budget::of(Duration::ZERO));
        let why = refused.unwrap_err().to_string();
        assert!(
            why.starts_with("not reached: ") && why.ends_with("took longer than 0 s"),
            "{}: {why}",
            scheme.name()
        );
    }
}

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    peers: Peers,
}

#[test]
fn a_run_writes_a_table_a_document_and_a_page() {
    let directory = tempfile::tempdir().unwrap();
    let (json, html) = (directory.path().join("peers.json"), directory.path().join("peers.html"));
    let mut line = vec!["peers", "--devices", "20,40", "--removals", "1"];
    line.extend(["--json", json.to_str().unwrap(), "--html", html.to_str().unwrap()]);
    let mut out = Vec::new();
    assert!(Line::parse_from(line).peers.run(&mut out).unwrap());

    let table = String::from_utf8(out).unwrap();
    let report: Report = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!((report.version, report.sizes()), (1, vec![20, 40]));
    assert_eq!(report.schemes.len(), schemes().len());
    for scheme in &report.schemes {
        assert!(table.matches(scheme.name.as_str()).count() >= 2, "{table}");
        assert!(scheme.sizes.iter().all(|size| matches!(size.outcome, Outcome::Figures(_))), "{scheme:?}");
    }

    let page = std::fs::read_to_string(&html).unwrap();
    assert_eq!(page.matches("<svg").count(), 5);
    assert!(!page.contains("http"), "it names an address");
    assert_balanced(&page);
    for scheme in &report.schemes {
        assert!(page.contains(&scheme.name));
    }
}

/// Every element that is opened is closed, in order.
fn assert_balanced(page: &str) {
    const VOID: [&str; 2] = ["meta", "!doctype"];
    let mut open: Vec<&str> = Vec::new();
    for tag in page.split('<').skip(1) {
        let inside = tag.split_once('>').unwrap().0;
        let name = inside.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap();
        if inside.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{inside}");
        } else if !inside.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} are never closed");
}
