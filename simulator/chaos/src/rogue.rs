//! A hostile device: it is enrolled, has its key, gets itself into cells, and says whatever it likes.

use std::rc::Rc;

use fleetkey_identity::IdentityKey;
use fleetkey_mls::{LeafSigner, make_key_package};
use fleetkey_wire::link::{DeviceLink, OpenedDown};
use fleetkey_wire::{
    CellEpoch, CellFrame, CellId, DeviceId, DownBody, Generation, GroupId, Hello, HelloCell, KeyEpoch,
    Pairwise, ShortAuthenticator, ShortDigest, SignedStatement, Suite, Topic, UpBody,
};

use crate::dice::Dice;
use crate::fleet::Fleet;
use crate::world::{Runner, World};

/// Groups and cells that it remembers having heard of.
const REMEMBERED: usize = 8;

/// A hostile device.
#[derive(Debug)]
pub(crate) struct Rogue {
    link: DeviceLink,
    signer: LeafSigner,
    groups: Vec<(GroupId, KeyEpoch, ShortDigest)>,
    cells: Vec<(CellId, CellEpoch)>,
    /// Genuine statements of any time: what was true once may still do harm.
    statements: Vec<Vec<u8>>,
}

impl Rogue {
    pub(crate) fn new(fleet: &Fleet, id: DeviceId, identity: &IdentityKey, dice: &mut Dice) -> Self {
        let coordinator = fleet.identity.public_key();
        let pairwise =
            Pairwise::agree(fleet.id, id, identity.signing_key(), &coordinator).expect("both keys are good");
        Self {
            link: DeviceLink::connect(pairwise.link_key(), dice.rng()),
            signer: LeafSigner::new(&identity.seed()),
            groups: Vec::new(),
            cells: Vec::new(),
            statements: Vec::new(),
        }
    }

    fn learn(&mut self, frame: &[u8]) {
        let Ok(CellFrame { rekey: Some(rekey), .. }) = CellFrame::decode(frame) else { return };
        self.learn_statement(&rekey.statement);
    }

    fn learn_statement(&mut self, statement: &[u8]) {
        let Ok(signed) = SignedStatement::from_trusted(statement) else { return };
        if self.statements.len() < REMEMBERED {
            self.statements.push(statement.to_vec());
        }
        let said = signed.statement();
        self.groups.retain(|(group, _, _)| *group != said.group);
        self.groups.push((said.group, said.key_epoch, signed.digest().short()));
        let excess = self.groups.len().saturating_sub(REMEMBERED);
        self.groups.drain(..excess);
    }

    /// Something to say, likely false.
    fn lie(&self, id: DeviceId, dice: &mut Dice) -> Option<UpBody> {
        let group = self.groups.get(dice.below(self.groups.len() as u64) as usize).copied();
        let cell = self.cells.get(dice.below(self.cells.len() as u64) as usize).copied();
        let mut bytes = vec![0; dice.within((1, 600)) as usize];
        rand_core::RngCore::fill_bytes(dice.rng(), &mut bytes);
        Some(match dice.below(7) {
            0 | 1 => {
                let (group, key_epoch, statement) = group?;
                let mut proof = [0; 32];
                proof.iter_mut().zip(&bytes).for_each(|(to, from)| *to = *from);
                UpBody::Confirm { group, key_epoch, statement, proof }
            }
            2 => {
                let good = make_key_package(id, Suite::default(), &self.signer).ok()?.0;
                UpBody::KeyPackages { suite: Suite::default(), packages: vec![good; 2] }
            }
            3 => UpBody::KeyPackages { suite: Suite::default(), packages: vec![bytes; 3] },
            4 => {
                let (cell, cell_epoch) = cell?;
                UpBody::Update { cell, cell_epoch, proposal: bytes }
            }
            5 => {
                bytes.truncate(200);
                let old = self.statements.get(dice.below(self.statements.len() as u64 * 2) as usize);
                UpBody::Evidence { statement: old.cloned().unwrap_or(bytes) }
            }
            _ => {
                let (cell, cell_epoch) = cell?;
                let (_, key_epoch, statement) = group?;
                UpBody::Hello(Hello {
                    generation: Generation(1),
                    cells: vec![HelloCell {
                        cell,
                        cell_epoch: CellEpoch(cell_epoch.0.saturating_add(dice.below(3)).saturating_sub(1)),
                        authenticator: ShortAuthenticator([dice.number() as u8; 8]),
                        statement,
                        key_epoch: KeyEpoch(key_epoch.0.saturating_add(dice.below(5))),
                        send: key_epoch,
                        oldest: key_epoch,
                    }],
                })
            }
        })
    }
}

impl World {
    pub(crate) fn rogue_connects(&mut self, runner: Runner) {
        let down = Topic::Down { fleet: self.fleet.id, device: self.devices[runner].id };
        self.subscribe(runner, down);
    }

    pub(crate) fn rogue_subscribed(&mut self, runner: Runner) {
        let device = &mut self.devices[runner];
        let crate::device::Mind::Rogue(rogue) = &mut device.mind else { return };
        rogue.link.restart(device.dice.rng());
        self.rogue_says(runner, &UpBody::Hello(Hello { generation: Generation(1), cells: Vec::new() }));
    }

    fn rogue_says(&mut self, runner: Runner, body: &UpBody) {
        let device = &mut self.devices[runner];
        let topic = Topic::Up { fleet: self.fleet.id, device: device.id };
        let crate::device::Mind::Rogue(rogue) = &mut device.mind else { return };
        let (frame, _) = rogue.link.seal(body);
        self.device_publishes(runner, topic, frame.into());
    }

    pub(crate) fn rogue_hears(&mut self, runner: Runner, topic: Topic, payload: &Rc<[u8]>) {
        let device = &mut self.devices[runner];
        let crate::device::Mind::Rogue(rogue) = &mut device.mind else { return };
        if !matches!(topic, Topic::Down { .. }) {
            rogue.learn(payload);
            return;
        }
        let body = match rogue.link.open(payload) {
            Ok(OpenedDown::Fresh(body)) => body,
            Ok(OpenedDown::Poke) => return self.rogue_subscribed(runner),
            Err(_) => {
                if device.dice.happens(100) {
                    self.rogue_subscribed(runner);
                }
                return;
            }
        };
        match body {
            DownBody::RequestKeyPackages { suite, count } => self.rogue_offers(runner, suite, count),
            DownBody::Welcome(welcome) => {
                for rekey in &welcome.statements {
                    rogue.learn_statement(&rekey.statement);
                }
                rogue.cells.push((welcome.cell, welcome.cell_epoch));
                let excess = rogue.cells.len().saturating_sub(REMEMBERED);
                rogue.cells.drain(..excess);
                let cell = Topic::Cell { fleet: self.fleet.id, cell: welcome.cell };
                self.subscribe(runner, cell);
            }
            DownBody::CellFrame { frame, .. } => rogue.learn(&frame),
            DownBody::HelloAgain => return self.rogue_subscribed(runner),
            DownBody::Answer { .. }
            | DownBody::RequestUpdate { .. }
            | DownBody::Dismiss { .. }
            | DownBody::Certificate { .. }
            | DownBody::RequestEvidence { .. }
            | DownBody::RequestHello => {}
        }
        self.rogue_lies(runner);
    }

    /// Good key packages now and then, so that it comes in; others otherwise.
    fn rogue_offers(&mut self, runner: Runner, suite: Suite, count: u8) {
        let device = &mut self.devices[runner];
        let crate::device::Mind::Rogue(rogue) = &mut device.mind else { return };
        let good = make_key_package(device.id, suite, &rogue.signer).ok().map(|(public, _)| public);
        let Some(good) = good else { return };
        let package = match device.dice.below(6) {
            0..=2 => good,
            3 => vec![0xa5; 300],
            4 => {
                let mut bad = good;
                let at = device.dice.below(bad.len() as u64) as usize;
                bad[at] ^= 1 << device.dice.below(8);
                bad
            }
            _ => {
                // Under another's name: it is refused only when the leaf is looked at.
                let other = DeviceId::random(device.dice.rng());
                make_key_package(other, suite, &rogue.signer).map_or(good, |(public, _)| public)
            }
        };
        let packages = vec![package; usize::from(count)];
        self.rogue_says(runner, &UpBody::KeyPackages { suite, packages });
    }

    fn rogue_lies(&mut self, runner: Runner) {
        if self.is_healed {
            return;
        }
        let device = &mut self.devices[runner];
        let (id, mut dice) = (device.id, device.dice.clone());
        let crate::device::Mind::Rogue(rogue) = &device.mind else { return };
        let lie = if dice.happens(300) { rogue.lie(id, &mut dice) } else { None };
        self.devices[runner].dice = dice;
        if let Some(lie) = lie {
            self.figures.lies += 1;
            self.rogue_says(runner, &lie);
        }
    }
}
