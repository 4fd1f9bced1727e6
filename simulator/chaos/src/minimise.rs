//! The smallest plan that still breaks the same rule: acts are left out, then devices, then the weather.

use crate::run::{Options, Outcome, run};

/// Runs that minimising may take.
const MAX_RUNS: usize = 60;

/// Makes a failing run smaller, as far as that goes in a bounded number of runs. `progress` hears of each that still
/// fails. Answers the smallest, with how it ended.
pub fn minimise(
    failing: &Options,
    outcome: &Outcome,
    mut progress: impl FnMut(&Options),
) -> (Options, Outcome) {
    let Some(rule) = outcome.violation.as_ref().map(|violation| violation.rule) else {
        return (failing.clone(), outcome.clone());
    };
    let mut best = (failing.clone(), outcome.clone());
    let mut runs = 0;
    let mut try_out = |options: Options, best: &mut (Options, Outcome)| {
        if runs >= MAX_RUNS {
            return false;
        }
        runs += 1;
        let tried = run(&options);
        let still_fails = tried.violation.as_ref().is_some_and(|violation| violation.rule == rule);
        if still_fails {
            progress(&options);
            *best = (options, tried);
        }
        still_fails
    };
    let devices = best.0.devices;
    for fewer in [8, 16, 32, 64, 128] {
        if fewer < devices && try_out(Options { devices: fewer, ..best.0.clone() }, &mut best) {
            break;
        }
    }
    if !best.0.calm_network {
        try_out(Options { calm_network: true, ..best.0.clone() }, &mut best);
    }
    let mut acts: Vec<usize> = best.0.only.clone().unwrap_or_else(|| (0..best.1.planned).collect());
    let mut chunk = acts.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        while at < acts.len() {
            let mut fewer = acts.clone();
            fewer.drain(at..(at + chunk).min(acts.len()));
            if try_out(Options { only: Some(fewer.clone()), ..best.0.clone() }, &mut best) {
                acts = fewer;
            } else {
                at += chunk;
            }
        }
        chunk = if chunk == 1 { 0 } else { chunk.div_ceil(2) };
    }
    best
}
