//! Every input that was ever kept, and quick mutations of them, without a fuzzer: what `cargo test` runs of `fuzz/`.
//!
//! `FLEETKEY_FUZZED_SEED` and `FLEETKEY_FUZZED_TIMES` look elsewhere, and longer.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use fleetkey_fuzzed::{TARGETS, Target};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

/// All corpora together, in bytes.
const MAX_CORPORA_BYTES: u64 = 2 * 1024 * 1024;

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn corpus(target: &Target) -> PathBuf {
    here().join("corpus").join(target.name)
}

/// The files of a corpus, in order.
fn kept(target: &Target) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let named =
        |path: PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap());
    files.into_iter().map(named).collect()
}

fn must_hold(target: &Target, what: &str, input: &[u8]) {
    let ran = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    assert!(ran.is_ok(), "{}: {what} breaks it: {}", target.name, hex(input));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_input_that_was_kept_still_holds() {
    for target in TARGETS {
        let kept = kept(target);
        assert!(kept.len() >= (target.seeds)().len(), "{} has too small a corpus", target.name);
        for (name, input) in kept {
            must_hold(target, &name, &input);
        }
    }
}

#[test]
fn mutations_of_real_objects_hold() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |said| said.parse().unwrap());
    let (seed, times) = (number("FLEETKEY_FUZZED_SEED", 1), number("FLEETKEY_FUZZED_TIMES", 1));
    for target in TARGETS {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let mut inputs: Vec<Vec<u8>> = (target.seeds)();
        inputs.extend(kept(target).into_iter().map(|(_, input)| input));
        for _ in 0..target.quick as u64 * times {
            let input = mutated(&inputs, &mut rng);
            must_hold(target, &format!("a mutation of seed {seed}"), &input);
        }
    }
}

#[test]
fn corpora_stay_small_and_each_target_has_its_binary() {
    let names: BTreeSet<&str> = TARGETS.iter().map(|target| target.name).collect();
    let directories = fs::read_dir(here().join("corpus")).unwrap();
    let directories: BTreeSet<String> =
        directories.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(directories.iter().map(String::as_str).eq(names.iter().copied()), "{directories:?}");
    let bytes: u64 = TARGETS.iter().flat_map(kept).map(|(_, input)| input.len() as u64).sum();
    assert!(bytes <= MAX_CORPORA_BYTES, "{bytes} bytes");
    let manifest = fs::read_to_string(here().join("../../fuzz/Cargo.toml")).unwrap();
    for name in names {
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "fuzz/ has no {name}");
        let binary = fs::read_to_string(here().join(format!("../../fuzz/fuzz_targets/{name}.rs"))).unwrap();
        assert!(binary.contains(&format!("fleetkey_fuzzed::{name}::run(")), "{name} runs another target");
    }
}

/// Writes the seeds anew, after a format has changed; what was found by a fuzzer stays.
#[test]
#[ignore = "writes to the tree: cargo test -p fleetkey-fuzzed -- --ignored write"]
fn write_the_seeds() {
    for target in TARGETS {
        fs::create_dir_all(corpus(target)).unwrap();
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            fs::write(corpus(target).join(format!("seed-{number:02}")), seed).unwrap();
        }
    }
}

/// One of the inputs, with a few changes such as a fuzzer makes.
fn mutated(inputs: &[Vec<u8>], rng: &mut ChaCha20Rng) -> Vec<u8> {
    const INTERESTING: [u8; 12] = [0x00, 0x01, 0x1b, 0x3b, 0x5b, 0x7f, 0x80, 0x81, 0x9f, 0xbf, 0xfe, 0xff];
    let below = |rng: &mut ChaCha20Rng, end: usize| if end == 0 { 0 } else { rng.next_u32() as usize % end };
    let mut input = inputs[below(rng, inputs.len())].clone();
    for _ in 0..=below(rng, 4) {
        let at = below(rng, input.len() + 1);
        match below(rng, 7) {
            0 if at < input.len() => input[at] ^= 1 << below(rng, 8),
            1 if at < input.len() => input[at] = INTERESTING[below(rng, INTERESTING.len())],
            2 => input.truncate(at),
            3 => input.insert(at, INTERESTING[below(rng, INTERESTING.len())]),
            4 if at < input.len() => drop(input.remove(at)),
            // A part again, and a part of another.
            5 => {
                let part = input[at..(at + below(rng, 16)).min(input.len())].to_vec();
                input.splice(at..at, part);
            }
            _ => {
                let other = &inputs[below(rng, inputs.len())];
                let from = below(rng, other.len() + 1);
                let part = other[from..(from + below(rng, 64)).min(other.len())].to_vec();
                let end = (at + part.len()).min(input.len());
                input.splice(at..end, part);
            }
        }
    }
    input
}
