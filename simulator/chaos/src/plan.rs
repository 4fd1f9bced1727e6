//! What will happen, drawn from a seed before anything does: a list of acts, each at its time.
//!
//! Acts name devices by numbers that are taken modulo the fleet when they are carried out, so that a plan makes sense
//! for any fleet, and any part of a plan is a plan: that is what minimising a failure needs.

use crate::dice::Dice;
use crate::disk::CrashPoint;
use crate::profile::Profile;

const MINUTE: u64 = 60_000;
/// Faults begin while the fleet is still coming in.
const BEGIN: u64 = 2_000;

/// Times that the operator takes a hostile device out of a group, where there are any.
const DISTRUSTED: u64 = 4;

/// One thing that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Act {
    Join {
        device: u64,
        group: u64,
    },
    Evict {
        device: u64,
        group: u64,
    },
    Revoke {
        devices: Vec<u64>,
    },
    /// The operator takes a hostile device out of a group.
    Distrust {
        number: u64,
        group: u64,
    },
    Leave {
        device: u64,
        group: u64,
    },
    /// Somebody who left comes back.
    Return {
        number: u64,
    },
    Rekey {
        group: u64,
    },
    Rotate {
        group: u64,
    },
    /// Somebody new is enrolled, and put into a group.
    Enroll {
        group: u64,
    },
    CrashCoordinator {
        point: CrashPoint,
        down: u64,
    },
    CoordinatorDiskFull {
        length: u64,
    },
    CrashDevice {
        device: u64,
        point: CrashPoint,
        down: u64,
    },
    DeviceDiskFull {
        device: u64,
        length: u64,
    },
    Sleep {
        device: u64,
        length: u64,
    },
    /// The power of most of the fleet fails.
    PowerCut {
        percent: u64,
        length: u64,
    },
    Wipe {
        device: u64,
    },
    TakeImage {
        device: u64,
    },
    /// The device is set back to its image.
    SetBack {
        device: u64,
    },
    /// The image runs beside the original.
    Clone {
        device: u64,
        length: u64,
    },
    BrokerRestart {
        length: u64,
    },
    Partition {
        percent: u64,
        length: u64,
    },
    /// Everybody connects anew, and then again.
    HelloStorm {
        times: u64,
    },
    CoordinatorClock {
        seconds: i64,
    },
    DeviceClock {
        device: u64,
        seconds: i64,
    },
    Replay {
        frames: u64,
    },
    Swap {
        frames: u64,
    },
    Edit {
        frames: u64,
    },
    Withhold {
        device: u64,
        length: u64,
    },
    /// A member of a cell wraps a secret of its own under a genuine statement.
    ForgeWrap {
        device: u64,
    },
    Backup,
    Restore,
    /// A copy of the coordinator runs beside it, and both are given commands.
    Copy {
        length: u64,
    },
    /// The coordinator's disk is copied; and later put back as it was, as a virtual machine's may be.
    Snapshot,
    RollBack,
}

/// An act and its time, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) at: u64,
    pub(crate) act: Act,
}

/// Draws a plan.
pub(crate) fn draw(seed: u64, profile: &Profile) -> Vec<Planned> {
    let mut dice = Dice::of(seed, "plan", 0);
    let end = profile.minutes * MINUTE;
    let mut plan = Vec::new();
    let mut add = |dice: &mut Dice, count: u64, act: &mut dyn FnMut(&mut Dice) -> Act| {
        for _ in 0..count {
            let at = dice.within((BEGIN, end));
            plan.push(Planned { at, act: act(dice) });
        }
    };
    add(&mut dice, profile.commands, &mut command);
    add(&mut dice, profile.coordinator_crashes, &mut |dice| Act::CrashCoordinator {
        point: crash_point(dice),
        down: dice.within((100, 2 * MINUTE)),
    });
    add(&mut dice, profile.device_crashes, &mut |dice| Act::CrashDevice {
        device: dice.number(),
        point: crash_point(dice),
        down: dice.within((100, 10 * MINUTE)),
    });
    add(&mut dice, profile.full_disks, &mut |dice| match dice.below(2) {
        0 => Act::CoordinatorDiskFull { length: dice.within((1_000, 5 * MINUTE)) },
        _ => Act::DeviceDiskFull { device: dice.number(), length: dice.within((1_000, 30 * MINUTE)) },
    });
    add(&mut dice, profile.sleeps, &mut |dice| match dice.below(12) {
        0 => Act::PowerCut { percent: dice.within((30, 100)), length: dice.within((1_000, 20 * MINUTE)) },
        _ => Act::Sleep { device: dice.number(), length: dice.within((MINUTE, 120 * MINUTE)) },
    });
    add(&mut dice, profile.wipes, &mut |dice| Act::Wipe { device: dice.number() });
    add(&mut dice, profile.outages, &mut |dice| match dice.below(2) {
        0 => Act::BrokerRestart { length: dice.within((100, 3 * MINUTE)) },
        _ => Act::Partition { percent: dice.within((5, 80)), length: dice.within((1_000, 30 * MINUTE)) },
    });
    add(&mut dice, profile.storms, &mut |dice| Act::HelloStorm { times: dice.within((1, 4)) });
    add(&mut dice, profile.clock_jumps, &mut clock_jump);
    add(&mut dice, profile.hostile_broker, &mut |dice| match dice.below(8) {
        0 | 1 => Act::Replay { frames: dice.within((1, 40)) },
        2 | 3 => Act::Swap { frames: dice.within((1, 20)) },
        4 | 5 => Act::Edit { frames: dice.within((1, 20)) },
        6 => Act::ForgeWrap { device: dice.number() },
        _ => Act::Withhold { device: dice.number(), length: dice.within((MINUTE, 60 * MINUTE)) },
    });
    for _ in 0..profile.images {
        let (taken, used) = in_order(&mut dice, end);
        let device = dice.number();
        plan.push(Planned { at: taken, act: Act::TakeImage { device } });
        let act = match dice.below(2) {
            0 => Act::SetBack { device },
            _ => Act::Clone { device, length: dice.within((1_000, 10 * MINUTE)) },
        };
        plan.push(Planned { at: used, act });
    }
    if dice.below(100) < profile.restores_percent {
        let (taken, used) = in_order(&mut dice, end);
        plan.push(Planned { at: taken, act: Act::Backup });
        plan.push(Planned { at: used, act: Act::Restore });
    }
    if dice.below(100) < profile.copies_percent {
        let (taken, used) = in_order(&mut dice, end);
        match dice.below(3) {
            0 => {
                plan.push(Planned { at: taken, act: Act::Snapshot });
                plan.push(Planned { at: used, act: Act::RollBack });
            }
            _ => plan.push(Planned { at: used, act: Act::Copy { length: dice.within((5_000, 2 * MINUTE)) } }),
        }
    }
    for _ in 0..profile.power_cuts {
        plan.push(Planned { at: end / 2, act: Act::PowerCut { percent: 100, length: MINUTE } });
        // Something for everybody to catch up with.
        let devices = vec![dice.number()];
        plan.push(Planned { at: end / 2 + MINUTE / 2, act: Act::Revoke { devices } });
    }
    if profile.hostile_devices_percent > 0 {
        for _ in 0..DISTRUSTED {
            let at = dice.within((BEGIN, end));
            plan.push(Planned { at, act: Act::Distrust { number: dice.number(), group: dice.number() } });
        }
    }
    plan.sort_by_key(|planned| planned.at);
    plan
}

fn in_order(dice: &mut Dice, end: u64) -> (u64, u64) {
    let (a, b) = (dice.within((BEGIN, end)), dice.within((BEGIN, end)));
    (a.min(b), a.max(b))
}

fn command(dice: &mut Dice) -> Act {
    let (device, group) = (dice.number(), dice.number());
    match dice.below(16) {
        0..=3 => Act::Revoke { devices: (0..dice.within((1, 3))).map(|_| dice.number()).collect() },
        4 | 5 => Act::Evict { device, group },
        6..=8 => Act::Join { device, group },
        9 | 10 => Act::Enroll { group },
        11 => Act::Leave { device, group },
        12 => Act::Return { number: device },
        13 => Act::Rekey { group },
        _ => Act::Rotate { group },
    }
}

fn crash_point(dice: &mut Dice) -> CrashPoint {
    match dice.below(5) {
        0 => CrashPoint::Before,
        1 => CrashPoint::Torn,
        2 => CrashPoint::After,
        _ => CrashPoint::Between(u32::try_from(dice.below(12)).unwrap_or(0)),
    }
}

fn clock_jump(dice: &mut Dice) -> Act {
    const DAY: i64 = 86_400;
    let seconds = match dice.below(4) {
        0 => -400 * DAY,
        1 => -i64::try_from(dice.within((1, 7_200))).unwrap_or(1),
        2 => i64::try_from(dice.within((1, 7_200))).unwrap_or(1),
        _ => 30 * DAY,
    };
    match dice.below(3) {
        0 => Act::DeviceClock { device: dice.number(), seconds },
        _ => Act::CoordinatorClock { seconds },
    }
}
