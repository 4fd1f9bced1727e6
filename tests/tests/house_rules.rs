//! The rules of the house, checked on the workspace itself: which way dependencies point, and what a core may not name.
//!
//! `deny.toml` says who may use which third-party crate directly; this says the rest.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Our crates, and which of our crates each may use: wire <- mls <- cores <- shells.
const ARROWS: &[(&str, &[&str])] = &[
    ("fleetkey-wire", &[]),
    ("fleetkey-vault", &[]),
    ("fleetkey-mqtt", &[]),
    ("fleetkey-identity", &["fleetkey-wire"]),
    ("fleetkey-mls", &["fleetkey-wire"]),
    ("fleetkey-policy", &["fleetkey-wire"]),
    ("fleetkey-agent-core", &["fleetkey-identity", "fleetkey-mls", "fleetkey-wire"]),
    ("fleetkey-coordinator-core", &["fleetkey-identity", "fleetkey-mls", "fleetkey-wire"]),
    (
        "fleetkey-agent",
        &["fleetkey-agent-core", "fleetkey-identity", "fleetkey-mqtt", "fleetkey-vault", "fleetkey-wire"],
    ),
    (
        "fleetkey-coordinator",
        &[
            "fleetkey-coordinator-core",
            "fleetkey-est",
            "fleetkey-identity",
            "fleetkey-mqtt",
            "fleetkey-policy",
            "fleetkey-vault",
            "fleetkey-wire",
        ],
    ),
    ("fleetkey-est", &["fleetkey-identity", "fleetkey-wire"]),
    ("fleetkey-policy-follow", &["fleetkey-policy"]),
    (
        "fleetkey-broker",
        &[
            "fleetkey-door",
            "fleetkey-gate",
            "fleetkey-identity",
            "fleetkey-mqtt",
            "fleetkey-policy",
            "fleetkey-policy-follow",
            "fleetkey-wire",
        ],
    ),
    ("fleetkey-door", &["fleetkey-identity", "fleetkey-policy", "fleetkey-policy-follow", "fleetkey-wire"]),
    ("fleetkey-gate", &["fleetkey-policy", "fleetkey-policy-follow", "fleetkey-wire"]),
    ("fleetkey-report", &["fleetkey-plot"]),
    ("fleetkey-swarm", &["fleetkey-agent-core", "fleetkey-mqtt", "fleetkey-wire"]),
    ("fleetkey-plot", &[]),
    // It comes to brokers from outside.
    ("fleetkey-intruder", &["fleetkey-identity", "fleetkey-wire"]),
    // It meets the others as processes.
    ("fleetkey-kills", &["fleetkey-identity", "fleetkey-wire"]),
];

/// Where everything meets.
const MEETING_PLACES: &[&str] = &[
    "fleetkey-chaos",
    "fleetkey-fuzzed",
    "fleetkey-peers",
    "fleetkey-scenario",
    "fleetkey-sim",
    "fleetkey-tests",
];

/// No I/O, no clock, no entropy: time is an argument, randomness a parameter, storage a trait.
const CORES: &[&str] =
    &["fleetkey-agent-core", "fleetkey-coordinator-core", "fleetkey-policy", "fleetkey-wire"];

/// Reaches none of [`RUNTIMES`], not even through others.
const NO_RUNTIME: &[&str] = &[
    "fleetkey-agent-core",
    "fleetkey-coordinator-core",
    "fleetkey-identity",
    "fleetkey-mls",
    "fleetkey-policy",
    "fleetkey-vault",
    "fleetkey-wire",
];

/// Runtimes, networks and databases.
const RUNTIMES: &[&str] = &[
    "tokio",
    "mio",
    "async-std",
    "smol",
    "hyper",
    "axum",
    "ureq",
    "rumqttc",
    "rumqttd",
    "rusqlite",
    "postgres",
];

/// What a core's manifest does not name, beside [`RUNTIMES`].
const NOT_NAMED_BY_CORES: &[&str] = &["rand", "getrandom", "fastrand", "time", "chrono"];

/// Crates with one user each.
const ONE_USER: &[(&str, &str)] =
    &[("openmls", "fleetkey-mls"), ("rumqttc", "fleetkey-mqtt"), ("rumqttd", "fleetkey-broker")];

/// Whoever uses a guarded crate not to build on it, but to measure it beside us.
const MEASURED: &[(&str, &str)] = &[("openmls", "fleetkey-peers")];

/// What a core's source does not name.
const NOT_IN_CORES: &[&str] = &[
    "SystemTime",
    "Instant",
    "HashMap",
    "HashSet",
    "OsRng",
    "thread_rng",
    "getrandom",
    "from_entropy",
    "fs",
    "net",
    "thread",
    "env",
    "println",
    "eprintln",
    "tokio",
];

/// Workspaces of their own, for the weight of what they are built from: `cargo metadata` does not tell of them.
const OUTSIDE: &[&str] = &["broker-plugin/rmqtt"];

/// What no source of ours holds.
const NOWHERE: &[&str] = &["todo!", "unimplemented!", "#[allow(", "#![allow("];

struct Package {
    name: String,
    directory: PathBuf,
    /// Name and kind (`normal`, `dev`, `build`).
    dependencies: Vec<(String, String)>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn metadata(arguments: &[&str]) -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--offline", "--locked", "--format-version", "1"])
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn packages() -> Vec<Package> {
    let metadata = metadata(&["--no-deps"]);
    let packages = metadata["packages"].as_array().unwrap().iter().map(|package| Package {
        name: text(&package["name"]),
        directory: Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned(),
        dependencies: package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| (text(&d["name"]), d["kind"].as_str().unwrap_or("normal").to_owned()))
            .collect(),
    });
    packages.collect()
}

/// For each of our crates, everything it is built with on this machine: features as they are, tests apart.
fn reached() -> BTreeMap<String, BTreeSet<String>> {
    let version = Command::new("rustc").arg("-vV").current_dir(root()).output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let metadata = metadata(&["--filter-platform", host]);
    let names: BTreeMap<String, String> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    let mut edges: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let normal = node["deps"].as_array().unwrap().iter().filter(|dependency| {
            dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null())
        });
        edges.insert(text(&node["id"]), normal.map(|dependency| text(&dependency["pkg"])).collect());
    }
    let members = metadata["workspace_members"].as_array().unwrap().iter().map(text);
    let reached = members.map(|member| {
        let mut seen = BTreeSet::from([member.clone()]);
        let mut waiting = vec![member.clone()];
        while let Some(id) = waiting.pop() {
            waiting.extend(edges[&id].iter().filter(|next| seen.insert((*next).clone())).cloned());
        }
        seen.remove(&member);
        (names[&member].clone(), seen.into_iter().map(|id| names[&id].clone()).collect())
    });
    reached.collect()
}

#[test]
fn dependencies_point_one_way() {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    for package in packages() {
        if MEETING_PLACES.contains(&package.name.as_str()) {
            continue;
        }
        let allowed = arrows
            .get(package.name.as_str())
            .unwrap_or_else(|| panic!("{} is new: say in ARROWS what it may use", package.name));
        for (dependency, kind) in &package.dependencies {
            if dependency.starts_with("fleetkey") && kind != "dev" {
                assert!(
                    allowed.contains(&dependency.as_str()),
                    "{} may not depend on {dependency}",
                    package.name
                );
            }
        }
    }
}

#[test]
fn agent_and_coordinator_never_import_each_other() {
    let is_agent = |name: &str| name.starts_with("fleetkey-agent");
    let is_coordinator = |name: &str| name.starts_with("fleetkey-coordinator");
    for package in packages() {
        for (dependency, kind) in &package.dependencies {
            let both = is_agent(&package.name) && is_coordinator(dependency)
                || is_coordinator(&package.name) && is_agent(dependency);
            assert!(
                !both,
                "{} depends on {dependency} ({kind}): they meet in simulator and tests",
                package.name
            );
        }
    }
}

#[test]
fn cores_name_no_runtime_no_network_no_database() {
    for package in packages() {
        let is_core = CORES.contains(&package.name.as_str());
        for (dependency, kind) in package.dependencies.iter().filter(|(_, kind)| is_core && kind != "dev") {
            let named = NOT_NAMED_BY_CORES.contains(&dependency.as_str())
                || RUNTIMES.iter().any(|runtime| is_of(dependency, runtime));
            assert!(!named, "{} names {dependency} ({kind})", package.name);
        }
    }
}

#[test]
fn nothing_below_the_shells_reaches_a_runtime() {
    let reached = reached();
    // The walk sees through other crates: or this test would prove nothing.
    assert!(reached["fleetkey-coordinator"].contains("mio"));
    for name in NO_RUNTIME {
        let found: Vec<_> = RUNTIMES.iter().filter(|runtime| reached[*name].contains(**runtime)).collect();
        assert!(found.is_empty(), "{name} is built with {found:?}");
    }
}

#[test]
fn each_guarded_crate_has_one_user() {
    let mut used = BTreeSet::new();
    for package in packages() {
        for (dependency, kind) in &package.dependencies {
            for (guarded, user) in ONE_USER {
                if is_of(dependency, guarded) && !MEASURED.contains(&(*guarded, package.name.as_str())) {
                    assert_eq!(package.name, *user, "{} names {dependency} ({kind})", package.name);
                    used.insert(*guarded);
                }
            }
        }
    }
    assert_eq!(used.len(), ONE_USER.len(), "a guarded crate is used by nobody: {used:?}");
}

#[test]
fn cores_name_no_clock_no_entropy_and_no_unordered_map() {
    let packages = packages();
    for core in CORES {
        let package = packages.iter().find(|package| package.name == *core).unwrap();
        let sources = sources(&package.directory.join("src"));
        assert!(!sources.is_empty(), "{core} has no sources");
        for source in sources {
            let found = words_in(&fs::read_to_string(&source).unwrap(), NOT_IN_CORES);
            assert!(found.is_empty(), "{} names {found:?}", source.display());
        }
    }
}

#[test]
fn nothing_is_left_undone_or_allowed_in_silence() {
    let inside = packages().into_iter().map(|package| package.directory);
    for directory in inside.chain(OUTSIDE.iter().map(|path| root().join(path))) {
        for source in sources(&directory.join("src")) {
            let code = without_comments(&fs::read_to_string(&source).unwrap());
            for marker in NOWHERE {
                assert!(!code.contains(marker), "{} holds {marker}", source.display());
            }
        }
    }
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    for package in packages() {
        let manifest = fs::read_to_string(package.directory.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{} has lints of its own", package.name);
    }
}

#[test]
fn what_is_outside_of_the_workspace_has_the_same_lints_and_is_used_by_nobody() {
    let section = |manifest: &str, name: &str| {
        let (_, rest) = manifest.split_once(&format!("[{name}]\n")).unwrap();
        rest.lines().take_while(|line| !line.is_empty()).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let own = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for path in OUTSIDE {
        let manifest = fs::read_to_string(root().join(path).join("Cargo.toml")).unwrap();
        for lints in ["rust", "clippy"] {
            let (here, there) = (format!("workspace.lints.{lints}"), format!("lints.{lints}"));
            assert_eq!(section(&own, &here), section(&manifest, &there), "the lints of {path}");
        }
        let excluded = own.lines().find(|line| line.starts_with("exclude = [")).unwrap();
        assert!(excluded.contains(&format!("\"{path}\"")), "{path} is not excluded");
        for package in packages() {
            let used = package.dependencies.iter().any(|(name, _)| is_of(name, "rmqtt"));
            assert!(!used, "{} is built from what {path} keeps apart", package.name);
        }
    }
}

#[test]
fn every_planted_bug_applies() {
    let planted =
        fs::read_dir(root().join("simulator/chaos/mutants")).unwrap().map(|entry| entry.unwrap().path());
    let planted: Vec<_> =
        planted.filter(|path| path.extension().is_some_and(|extension| extension == "patch")).collect();
    assert!(!planted.is_empty());
    for patch in planted {
        let Ok(tried) =
            Command::new("git").args(["apply", "--check"]).arg(&patch).current_dir(root()).output()
        else {
            eprintln!("NOT RUN: git is not installed");
            return;
        };
        let why = String::from_utf8_lossy(&tried.stderr);
        assert!(
            tried.status.success(),
            "{}: make it anew, so that it plants the same bug: {why}",
            patch.display()
        );
    }
}

/// Whether `name` is `family`, or one of its parts: `tokio`, `tokio-util`.
fn is_of(name: &str, family: &str) -> bool {
    name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
}

/// All Rust files under `directory`.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Which of `words` the code names, its comments and its tests (last in each file) apart.
fn words_in<'a>(source: &str, words: &[&'a str]) -> Vec<&'a str> {
    let code = without_comments(source);
    let code = code.split_once("#[cfg(test)]\nmod tests {").map_or(code.as_str(), |(code, _)| code);
    let named: BTreeSet<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    words.iter().copied().filter(|word| named.contains(word)).collect()
}

fn without_comments(source: &str) -> String {
    let lines = source.lines().map(|line| {
        // Strings that hold `//` are cut too: addresses, and no code.
        line.split_once("//").map_or(line, |(code, _)| code)
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_search_finds_what_it_looks_for() {
    let source = "//! No HashMap.\nuse std::time::Instant; // OsRng\nlet a = Instantly;\n\
        #[cfg(test)]\nmod tests {\n    use std::collections::HashSet;\n}\n";
    assert_eq!(words_in(source, NOT_IN_CORES), ["Instant"]);
    assert_eq!(words_in("std::fs::read(path)", NOT_IN_CORES), ["fs"]);
}
