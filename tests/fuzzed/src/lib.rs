//! What fuzzers feed: one function for each place where bytes come in, that must hold whatever the bytes are.
//!
//! `fuzz/` runs them under libFuzzer; `tests/replay.rs` runs the corpora, and mutations of them, wherever `cargo test`
//! runs. A function panics where something does not hold: a refusal that stores something, a reading that does not come
//! back from its own writing, a thing opened that nobody sealed. Where plain bytes would never get past a MAC, a
//! signature or an AEAD, they are put under one first.
//!
//! Leaves to others what else is tested there; `docs/TESTING.md` says how to look for more.

pub mod agent;
pub mod backups;
pub mod cell_frames;
pub mod certificates;
pub mod coordinator;
mod cose;
pub mod est_requests;
pub mod link_frames;
pub mod mqtt_packets;
mod parties;
pub mod payloads;
pub mod policy_stream;
pub mod settings;
pub mod statements;
mod steps;
pub mod wraps;

/// One place where bytes come in.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: of its module, its corpus, and its binary in `fuzz/`.
    pub name: &'static str,
    /// What is fed.
    pub run: fn(&[u8]),
    /// Inputs made of real objects, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How many mutations a quick pass makes.
    pub quick: usize,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "agent", run: agent::run, seeds: agent::seeds, quick: 60 },
    Target { name: "backups", run: backups::run, seeds: backups::seeds, quick: 5_000 },
    Target { name: "cell_frames", run: cell_frames::run, seeds: cell_frames::seeds, quick: 5_000 },
    Target { name: "certificates", run: certificates::run, seeds: certificates::seeds, quick: 1_000 },
    Target { name: "coordinator", run: coordinator::run, seeds: coordinator::seeds, quick: 60 },
    Target { name: "est_requests", run: est_requests::run, seeds: est_requests::seeds, quick: 3_000 },
    Target { name: "link_frames", run: link_frames::run, seeds: link_frames::seeds, quick: 3_000 },
    Target { name: "mqtt_packets", run: mqtt_packets::run, seeds: mqtt_packets::seeds, quick: 5_000 },
    Target { name: "payloads", run: payloads::run, seeds: payloads::seeds, quick: 3_000 },
    Target { name: "policy_stream", run: policy_stream::run, seeds: policy_stream::seeds, quick: 3_000 },
    Target { name: "settings", run: settings::run, seeds: settings::seeds, quick: 300 },
    Target { name: "statements", run: statements::run, seeds: statements::seeds, quick: 1_000 },
    Target { name: "wraps", run: wraps::run, seeds: wraps::seeds, quick: 3_000 },
];
