//! A hostile broker: it replays, swaps topics, edits bytes, and passes on what a member of a cell forges.

use std::rc::Rc;

use fleetkey_mls::MemberCell;
use fleetkey_wire::wrap::{WrapContext, wrap};
use fleetkey_wire::{CellFrame, CellId, GroupSecret, SignedStatement, StatementAndWrap, Topic};

use crate::dice::Dice;
use crate::world::{Due, Runner, World};

/// Frames that the broker remembers.
const REMEMBERED: usize = 4_096;
/// A frame with a leave is not longer; a hello that shows a cell is, and a confirmation.
const TERSE_BYTES: usize = 96;

/// What the broker remembers: some of everything that it ever passed on.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    frames: Vec<(Topic, Rc<[u8]>)>,
    /// What devices say in few words: leave, mostly. It is rare, and worth saying again.
    terse: Vec<(Topic, Rc<[u8]>)>,
    seen: u64,
}

impl Recorder {
    /// Remembers a frame, perhaps in the place of another, so that old ones stay among the new.
    pub(crate) fn record(&mut self, topic: Topic, payload: &Rc<[u8]>, dice: &mut Dice) {
        self.seen += 1;
        if matches!(topic, Topic::Up { .. }) && payload.len() <= TERSE_BYTES && self.terse.len() < REMEMBERED
        {
            self.terse.push((topic, Rc::clone(payload)));
        }
        if self.frames.len() < REMEMBERED {
            self.frames.push((topic, Rc::clone(payload)));
            return;
        }
        let at = dice.below(self.seen) as usize;
        if let Some(slot) = self.frames.get_mut(at) {
            *slot = (topic, Rc::clone(payload));
        }
    }

    fn any(&self, dice: &mut Dice) -> Option<(Topic, Rc<[u8]>)> {
        if !self.terse.is_empty() && dice.happens(300) {
            return self.terse.get(dice.below(self.terse.len() as u64) as usize).cloned();
        }
        self.frames.get(dice.below(self.frames.len() as u64) as usize).cloned()
    }
}

impl World {
    /// Old frames again, on their topics.
    pub(crate) fn replay(&mut self, frames: u64) {
        for _ in 0..frames {
            if let Some((topic, payload)) = self.recorder.any(&mut self.hostile_dice) {
                self.pass_on(topic, &payload);
            }
        }
    }

    /// Old frames on the topics of others.
    pub(crate) fn swap(&mut self, frames: u64) {
        for _ in 0..frames {
            let one = self.recorder.any(&mut self.hostile_dice);
            let other = self.recorder.any(&mut self.hostile_dice);
            if let (Some((_, payload)), Some((topic, _))) = (one, other) {
                self.pass_on(topic, &payload);
            }
        }
    }

    /// Old frames with a change, and soon as many new ones.
    pub(crate) fn edit(&mut self, frames: u64) {
        for _ in 0..frames {
            let Some((topic, payload)) = self.recorder.any(&mut self.hostile_dice) else { return };
            let edited = edited(&payload, &mut self.hostile_dice);
            self.pass_on(topic, &edited);
        }
        self.edits_to_come += frames;
    }

    /// A frame for a cell comes with a change, before it comes as it is.
    pub(crate) fn edit_new(&mut self, topic: Topic, payload: &Rc<[u8]>) {
        if self.edits_to_come > 0 && matches!(topic, Topic::Cell { .. }) {
            self.edits_to_come -= 1;
            let edited = edited(payload, &mut self.edit_dice);
            self.hurry(topic, &edited);
        }
    }

    /// To everybody who listens, before whatever the coordinator sends.
    fn hurry(&mut self, topic: Topic, payload: &Rc<[u8]>) {
        for listener in self.subscribers.get(&topic).into_iter().flatten().copied().collect::<Vec<_>>() {
            let session = self.devices[listener].session;
            let payload = Rc::clone(payload);
            self.after(0, Due::AtDevice { runner: listener, session, topic, payload });
        }
    }

    /// A member of a cell wraps a secret of its own under a genuine statement, and the broker passes it on.
    pub(crate) fn forge_wrap(&mut self, runner: Runner) {
        let device = &self.devices[runner];
        let cells: Vec<MemberCell> = device
            .disk
            .image()
            .iter()
            .filter(|(key, _)| key.starts_with("cell/"))
            .filter_map(|(_, bytes)| MemberCell::restore(bytes).ok())
            .collect();
        let statements: Vec<(CellId, StatementAndWrap)> = self
            .recorder
            .frames
            .iter()
            .filter_map(|(topic, payload)| match topic {
                Topic::Cell { cell, .. } => Some((*cell, CellFrame::decode(payload).ok()?.rekey?)),
                Topic::Up { .. } | Topic::Down { .. } => None,
            })
            .collect();
        for cell in cells {
            // The newest that was heard for this cell, which its other members may not have applied.
            let newest = statements
                .iter()
                .filter(|(of, _)| *of == cell.context().cell)
                .filter_map(|(_, rekey)| SignedStatement::from_trusted(&rekey.statement).ok())
                .max_by_key(|signed| signed.statement().key_epoch);
            let Some(signed) = newest else { continue };
            let context = WrapContext {
                fleet: self.fleet.id,
                cell: cell.context().cell,
                cell_epoch: cell.epoch(),
                suite: cell.suite(),
            };
            let secret = GroupSecret::random(self.hostile_dice.rng());
            let rekey = StatementAndWrap {
                statement: signed.as_bytes().to_vec(),
                wrap: wrap(&context, &cell.kek(), &signed, &secret),
            };
            let frame = CellFrame { cell_epoch: cell.epoch(), commit: None, rekey: Some(rekey) };
            let topic = Topic::Cell { fleet: self.fleet.id, cell: cell.context().cell };
            self.hurry(topic, &frame.encode().into());
        }
    }
}

/// The same with a change: cut short, longer, or with a bit that differs.
fn edited(payload: &[u8], dice: &mut Dice) -> Rc<[u8]> {
    let mut edited = payload.to_vec();
    let at = dice.below(edited.len() as u64) as usize;
    match dice.below(4) {
        0 => edited.truncate(at),
        1 => edited.push(dice.number() as u8),
        2 => edited.insert(at, dice.number() as u8),
        _ => {
            if let Some(byte) = edited.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
        }
    }
    edited.into()
}
