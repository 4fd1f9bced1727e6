//! How the acts of a plan are carried out.

use fleetkey_wire::DeviceId;

use crate::device::Mind;
use crate::operator::Order;
use crate::plan::Act;
use crate::world::{Due, Runner, World};

impl World {
    pub(crate) fn act(&mut self, number: usize) {
        let act = self.plan[number].act.clone();
        self.figures.acts += 1;
        tracing::debug!(number, at = self.time, ?act, "act");
        match act {
            Act::Join { device, group } => self.wants(device, group),
            Act::Evict { device, group } => self.wants_no_more(device, group),
            Act::Revoke { devices } => self.wants_revoked(&devices),
            Act::Distrust { number, group } => self.distrusts(number, group),
            Act::Leave { device, group } => self.leaves(device, group),
            Act::Return { number } => self.returns(number),
            Act::Rekey { group } => {
                if let Some((group, _)) = self.group_named(group) {
                    self.order(Order::Rekey { group });
                }
            }
            Act::Rotate { group } => {
                if let Some((group, _)) = self.group_named(group) {
                    self.order(Order::Rotate { group });
                }
            }
            Act::Enroll { group } => {
                let runner = self.add_device(false);
                self.order(Order::Enroll { runner });
                let id = self.devices[runner].id;
                if let Some((group, _)) = self.group_named(group) {
                    self.operator.wanted.entry(group).or_default().insert(id);
                    self.order(Order::Add { group, devices: vec![id] });
                }
            }
            Act::CrashCoordinator { point, down } => {
                if down.is_multiple_of(4) {
                    // Killed between two inputs.
                    self.kill_host(0, down);
                } else {
                    self.hosts[0].disk.health().arm(point);
                }
            }
            Act::CoordinatorDiskFull { length } => {
                self.hosts[0].disk.health().is_full.set(true);
                self.after(length, Due::HostDiskFree { host: 0 });
            }
            Act::CrashDevice { device, point, down } => self.crash_device(device, point, down),
            Act::DeviceDiskFull { device, length } => {
                if let Some(runner) = self.device_named(device) {
                    self.devices[runner].disk.health().is_full.set(true);
                    self.after(length, Due::DeviceDiskFree { runner });
                }
            }
            Act::Sleep { device, length } => {
                if let Some(runner) = self.device_named(device) {
                    self.kill_device(runner);
                    self.start_later(runner, length);
                }
            }
            Act::PowerCut { percent, length } => self.cut_power(percent, length),
            Act::Wipe { device } => self.wipe(device),
            Act::TakeImage { device } => {
                if let Some(runner) = self.device_named(device) {
                    self.devices[runner].image = Some(self.devices[runner].disk.image());
                }
            }
            Act::SetBack { device } => self.set_back(device),
            Act::Clone { device, length } => self.clone_device(device, length),
            Act::BrokerRestart { length } => self.restart_broker(length),
            Act::Partition { percent, length } => self.partition(percent, length),
            Act::HelloStorm { times } => {
                for time in 0..times {
                    self.after(time * 5_000, Due::Storm);
                }
            }
            Act::CoordinatorClock { seconds } => self.hosts[0].clock.jump(seconds),
            Act::DeviceClock { device, seconds } => {
                if let Some(runner) = self.device_named(device) {
                    self.devices[runner].clock.jump(seconds);
                }
            }
            Act::Replay { frames } => self.replay(frames),
            Act::Swap { frames } => self.swap(frames),
            Act::Edit { frames } => self.edit(frames),
            Act::Withhold { device, length } => {
                if let Some(runner) = self.device_named(device) {
                    self.devices[runner].withheld_until = self.time + length;
                }
            }
            Act::ForgeWrap { device } => {
                if let Some(runner) = self.device_named(device) {
                    self.forge_wrap(runner);
                }
            }
            Act::Backup => self.take_backup(),
            Act::Restore => {
                if let Some(backup) = self.operator.backup.take() {
                    self.end_copies();
                    if self.hosts[0].dice.happens(350) {
                        // The original was not dead: it lives on beside the restored one for a while.
                        let length = self.hosts[0].dice.within((10_000, 180_000));
                        self.copy_coordinator(length);
                    }
                    self.restore(&backup);
                }
            }
            Act::Copy { length } => self.copy_coordinator(length),
            Act::Snapshot => self.operator.snapshot = Some(self.hosts[0].disk.image()),
            Act::RollBack => self.roll_back(),
        }
    }

    fn wants(&mut self, device: u64, group: u64) {
        let (Some(runner), Some((group, _))) = (self.device_named(device), self.group_named(group)) else {
            return;
        };
        let id = self.devices[runner].id;
        if self.operator.revoked.contains(&id) {
            return;
        }
        self.operator.wanted.entry(group).or_default().insert(id);
        self.order(Order::Add { group, devices: vec![id] });
    }

    /// Whoever left by himself, and is out, may come back.
    fn returns(&mut self, number: u64) {
        let left: Vec<(usize, DeviceId)> = self.operator.leaving.iter().copied().collect();
        let Some(&(group, id)) = left.get((number % left.len().max(1) as u64) as usize) else { return };
        let Some(of) = self.groups[group] else { return };
        let is_running = |runner: &Runner| self.devices[*runner].status(self.time).is_some();
        let is_in = |runner: &Runner| {
            let status = self.devices[*runner].status(self.time);
            status.is_some_and(|status| status.groups.iter().any(|shown| shown.group == of))
        };
        let runners = self.runners.get(&id).cloned().unwrap_or_default();
        let is_out = !self.model.is_member(of, id) && !runners.iter().any(is_in);
        if is_out && runners.iter().any(is_running) && !self.operator.revoked.contains(&id) {
            self.operator.leaving.remove(&(group, id));
            self.operator.wanted.entry(group).or_default().insert(id);
            self.order(Order::Add { group, devices: vec![id] });
        }
    }

    fn distrusts(&mut self, number: u64, group: u64) {
        let hostile: Vec<Runner> = (0..self.devices.len())
            .filter(|runner| matches!(self.devices[*runner].mind, Mind::Rogue(_)))
            .collect();
        let Some(runner) = hostile.get((number % hostile.len().max(1) as u64) as usize) else { return };
        self.wants_out(*runner, group);
    }

    fn wants_no_more(&mut self, device: u64, group: u64) {
        if let Some(runner) = self.device_named(device) {
            self.wants_out(runner, group);
        }
    }

    fn wants_out(&mut self, runner: Runner, group: u64) {
        let Some((group, _)) = self.group_named(group) else { return };
        let id = self.devices[runner].id;
        if self.operator.wanted.entry(group).or_default().remove(&id) {
            self.order(Order::Evict { group, device: id });
        }
    }

    fn wants_revoked(&mut self, devices: &[u64]) {
        // A fleet that is revoked to the last device shows nothing any more.
        if self.operator.revoked.len() * 3 > self.devices.len() {
            return;
        }
        let ids: Vec<_> = devices
            .iter()
            .filter_map(|device| self.device_named(*device))
            .map(|runner| self.devices[runner].id)
            .collect();
        for id in &ids {
            self.operator.revoked.insert(*id);
            self.operator.wanted.values_mut().for_each(|wanted| {
                wanted.remove(id);
            });
        }
        self.order(Order::Revoke { devices: ids });
    }

    fn leaves(&mut self, device: u64, group: u64) {
        let (Some(runner), Some((number, group))) = (self.device_named(device), self.group_named(group))
        else {
            return;
        };
        let id = self.devices[runner].id;
        let is_in = self.devices[runner]
            .status(self.time)
            .is_some_and(|status| status.groups.iter().any(|of| of.group == group));
        if is_in {
            self.operator.leaving.insert((number, id));
            self.feed(runner, fleetkey_agent_core::Input::Leave { group });
        }
    }

    fn crash_device(&mut self, device: u64, point: crate::disk::CrashPoint, down: u64) {
        let Some(runner) = self.device_named(device) else { return };
        if down.is_multiple_of(4) || matches!(self.devices[runner].mind, Mind::Rogue(_)) {
            // Killed between two inputs.
            self.kill_device(runner);
            self.start_later(runner, down);
        } else {
            self.devices[runner].disk.health().arm(point);
        }
    }

    fn cut_power(&mut self, percent: u64, length: u64) {
        let cut: Vec<Runner> =
            (0..self.devices.len()).filter(|_| self.hostile_dice.below(100) < percent).collect();
        self.power_is_out(&cut, length);
        for runner in cut {
            self.kill_device(runner);
            self.start_later(runner, length);
        }
    }

    fn wipe(&mut self, device: u64) {
        let Some(runner) = self.device_named(device).filter(|runner| self.devices[*runner].is_honest())
        else {
            return;
        };
        self.kill_device(runner);
        self.devices[runner].disk = crate::disk::DeviceDisk::default();
        self.model.forget_runner(runner);
        self.start_later(runner, 1_000);
    }

    fn set_back(&mut self, device: u64) {
        let Some(runner) = self.device_named(device) else { return };
        let Some(image) = self.devices[runner].image.take() else { return };
        self.kill_device(runner);
        self.devices[runner].disk = crate::disk::DeviceDisk::holding(image);
        self.model.forget_runner(runner);
        self.start_later(runner, 1_000);
    }

    fn clone_device(&mut self, device: u64, length: u64) {
        let Some(runner) = self.device_named(device) else { return };
        let Some(image) = self.devices[runner].image.take() else { return };
        if !self.devices[runner].is_honest() {
            return;
        }
        let clone = self.add_clone(runner, image);
        self.after(length, Due::CloneEnds { runner: clone });
    }

    pub(crate) fn end_clone(&mut self, runner: Runner) {
        self.kill_device(runner);
        self.devices[runner].is_off = true;
    }

    fn partition(&mut self, percent: u64, length: u64) {
        let until = self.time + length;
        for runner in 0..self.devices.len() {
            if self.hostile_dice.below(100) < percent {
                self.devices[runner].cut_off_until = until;
                self.disconnect(runner);
            }
        }
    }
}
