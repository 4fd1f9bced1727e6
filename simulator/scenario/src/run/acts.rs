//! What is done in each kind of phase.

use std::time::Duration;

use fleetkey_wire::DeviceId;

use super::{Known, LOOKS_PER_PHASE, Walk};
use crate::dice::Dice;
use crate::scenario::{Act, Amount, Phase, Which};
use crate::world::World;

/// Spreads numbered devices evenly over classes and groups, however many there are: multiples of these, less their whole part.
const GOLDEN: f64 = 0.618_033_988_749_895;
pub(super) const SILVER: f64 = 0.414_213_562_373_095;

/// Devices whose turns to come in are within so many milliseconds come together: what many have to do can be done at once.
const TOGETHER_MS: u64 = 100;
/// So often the devices of a power cut merely reconnect, for comparison.
const RECONNECTS: usize = 3;

/// What comes next in churn.
#[derive(Debug, Clone, Copy)]
enum Move {
    Join,
    Leave,
    Revoke,
}

impl<W: World> Walk<'_, W> {
    pub(super) async fn act(&mut self, phase: &Phase) -> anyhow::Result<()> {
        match &phase.act {
            Act::Onboard { count, rate } => {
                let count =
                    count.unwrap_or_else(|| self.scenario.fleet.devices.saturating_sub(self.in_use.len()));
                self.onboard(count, *rate).await
            }
            Act::Churn { lasts, joins, leaves, revocations } => {
                self.churn(
                    *lasts,
                    [(Move::Join, *joins), (Move::Leave, *leaves), (Move::Revoke, *revocations)],
                )
                .await
            }
            Act::Revoke { count, which, class } => {
                let count = match count {
                    Amount::Count(count) => *count,
                    Amount::Share(share) => (self.in_use.len() as f64 * share).round() as usize,
                };
                let ids = self.choose(count, *which, *class).await?;
                self.revoke(&ids, "stolen").await
            }
            Act::Rekey => self.rekey().await,
            Act::Rotate => {
                for group in 0..self.scenario.groups.len() {
                    self.world.rotate(group).await?;
                }
                Ok(())
            }
            Act::PowerCut { share, lasts, rekeys } => {
                let all: Vec<DeviceId> = self.in_use.iter().map(|known| known.id).collect();
                let count = (all.len() as f64 * share).round() as usize;
                let ids = self.dice.choose(&all, count);
                if phase.targets.reconnect_ratio_at_most.is_some() {
                    self.merely_reconnect(&phase.name, &ids).await?;
                }
                self.cut_power(&ids, *lasts, *rekeys).await
            }
            Act::RestartBroker { away } => {
                self.world.restart_broker(*away).await?;
                self.pass(self.world.now() + *away).await
            }
            Act::Network(profile) => self.world.network(profile).await,
            Act::Wait { lasts } => self.watch(self.world.now() + *lasts).await,
        }
    }

    async fn rekey(&mut self) -> anyhow::Result<()> {
        for group in 0..self.scenario.groups.len() {
            self.world.rekey(group).await?;
        }
        Ok(())
    }

    /// What a power cut is held against, and none of its costs.
    async fn merely_reconnect(&mut self, phase: &str, ids: &[DeviceId]) -> anyhow::Result<()> {
        match self.world.reconnect(ids, RECONNECTS).await? {
            Some(took) => self.gathered.reconnected(took),
            None => self.notes.push(format!(
                "{phase}: reconnect_ratio_at_most was not held against anything: in virtual time there are no connections."
            )),
        }
        self.before = self.world.look().await?;
        Ok(())
    }

    async fn cut_power(&mut self, ids: &[DeviceId], lasts: Duration, rekeys: bool) -> anyhow::Result<()> {
        let began = self.world.now();
        self.world.power(ids, false).await?;
        if rekeys {
            self.pass(began + lasts / 2).await?;
            self.rekey().await?;
        }
        self.watch(began + lasts).await?;
        self.gathered.power_is_back();
        self.world.power(ids, true).await
    }

    /// Enrols devices and brings them in, each when it is its turn. Whoever is late keeps its turn: it is due from then on.
    async fn onboard(&mut self, count: usize, rate: Option<f64>) -> anyhow::Result<()> {
        let began = self.world.now();
        let turn = |number: usize| {
            let wait = rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(number as f64 / rate));
            began + Duration::from_millis((wait.as_millis() as u64 / TOGETHER_MS) * TOGETHER_MS)
        };
        let looks_every = count.div_ceil(LOOKS_PER_PHASE as usize);
        let (mut done, mut looked) = (0, 0);
        while done < count {
            let due = turn(done);
            self.pass(due).await?;
            let now = self.world.now();
            let mut batch = 1;
            while done + batch < count && turn(done + batch) <= now {
                batch += 1;
            }
            self.bring_in(batch, due).await?;
            done += batch;
            if done - looked >= looks_every {
                looked = done;
                let stands = self.world.look().await?;
                self.note(&stands);
            }
        }
        Ok(())
    }

    async fn bring_in(&mut self, count: usize, due: Duration) -> anyhow::Result<()> {
        let numbers = self.enrolled..self.enrolled + count;
        let classes: Vec<usize> = numbers.clone().map(|number| self.class_of(number)).collect();
        let ids = self.world.enrol(&classes).await?;
        self.enrolled += count;
        let known: Vec<Known> = (ids.into_iter().zip(classes).zip(numbers))
            .map(|((id, class), number)| Known { id, class, number })
            .collect();
        for group in 0..self.scenario.groups.len() {
            let share = self.scenario.groups[group].share;
            let members = known.iter().filter(|known| known.belongs_in(group, share));
            let members: Vec<DeviceId> = members.map(|known| known.id).collect();
            if !members.is_empty() {
                self.world.bring_in(group, &members, due).await?;
            }
        }
        self.in_use.extend(known);
        Ok(())
    }

    fn class_of(&self, number: usize) -> usize {
        let at = (number as f64 * GOLDEN).fract();
        let mut below = 0.0;
        let found = self.scenario.classes.iter().position(|class| {
            below += class.share;
            at < below
        });
        found.unwrap_or(self.scenario.classes.len() - 1)
    }

    async fn revoke(&mut self, ids: &[DeviceId], reason: &str) -> anyhow::Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let gone: std::collections::BTreeSet<DeviceId> = ids.iter().copied().collect();
        self.in_use.retain(|known| !gone.contains(&known.id));
        self.world.revoke(ids, reason).await
    }

    async fn choose(
        &mut self,
        count: usize,
        which: Which,
        class: Option<usize>,
    ) -> anyhow::Result<Vec<DeviceId>> {
        let of_class = self.in_use.iter().filter(|known| class.is_none_or(|class| known.class == class));
        let candidates: Vec<DeviceId> = of_class.map(|known| known.id).collect();
        Ok(match which {
            Which::Spread => self.dice.choose(&candidates, count),
            Which::Newest => candidates[candidates.len().saturating_sub(count)..].to_vec(),
            Which::SameCells => {
                let meant: std::collections::BTreeSet<DeviceId> = candidates.into_iter().collect();
                let mut cells = self.world.cells(0).await?;
                // Whichever, but the same for the same seed: cells come in the order of their ids.
                let first = self.dice.below(cells.len() as u64) as usize;
                cells.rotate_left(first);
                cells.into_iter().flatten().filter(|id| meant.contains(id)).take(count).collect()
            }
        })
    }

    async fn churn(&mut self, lasts: Duration, rates: [(Move, f64); 3]) -> anyhow::Result<()> {
        let began = self.world.now();
        let ends = began + lasts;
        let mut dice = Dice::of(self.dice.below(u64::MAX), "churn", 0);
        let mut next: Vec<(Duration, Move, f64)> = rates
            .into_iter()
            .filter_map(|(what, rate)| Some((began + dice.next_arrival(rate)?, what, rate)))
            .collect();
        let look_every = lasts / LOOKS_PER_PHASE;
        let mut look_at = began + look_every;
        loop {
            let soonest = next.iter().enumerate().min_by_key(|(_, (at, ..))| *at).map(|(which, _)| which);
            let at = soonest.map_or(ends, |which| next[which].0).min(ends);
            while look_at < at {
                self.pass(look_at).await?;
                let looked = self.world.look().await?;
                self.note(&looked);
                look_at += look_every.max(Duration::from_millis(1));
            }
            self.pass(at).await?;
            let Some(which) = soonest.filter(|_| at < ends) else { return Ok(()) };
            let (_, what, rate) = next[which];
            match dice.next_arrival(rate) {
                Some(wait) => next[which].0 = at + wait,
                None => drop(next.remove(which)),
            }
            self.make(what, at).await?;
        }
    }

    async fn make(&mut self, what: Move, due: Duration) -> anyhow::Result<()> {
        match what {
            Move::Join => self.bring_in(1, due).await,
            Move::Leave | Move::Revoke if self.in_use.len() < 2 => Ok(()),
            Move::Leave => {
                let at = self.dice.below(self.in_use.len() as u64) as usize;
                let known = self.in_use.remove(at);
                for (group, of) in self.scenario.groups.iter().enumerate() {
                    if known.belongs_in(group, of.share) {
                        self.world.evict(group, &[known.id]).await?;
                    }
                }
                // Out of use: somebody takes it down.
                self.world.power(&[known.id], false).await
            }
            Move::Revoke => {
                let at = self.dice.below(self.in_use.len() as u64) as usize;
                let id = self.in_use[at].id;
                self.revoke(&[id], "lost").await
            }
        }
    }
}
