//! A member of a group that plays by no rules: it has joined with its own hands, so it holds the cell's KEK and the
//! group's secret as bytes, and can do with them what no agent of ours would.

use fleetkey_mls::{CellContext, LeafSigner, MemberCell, PrivateKeyPackage, make_key_package};
use fleetkey_tests::{Hand, World};
use fleetkey_wire::wrap::{self, WrapContext};
use fleetkey_wire::{
    Confirmation, DeviceId, DownBody, GroupId, GroupSecret, Kek, SignedStatement, Suite, UpBody, Welcome,
};

use crate::scene::hello;

/// A member that holds everything it may hold, as bytes.
pub(crate) struct Insider {
    pub(crate) hand: Hand,
    pub(crate) statement: SignedStatement,
    pub(crate) secret: GroupSecret,
    pub(crate) context: WrapContext,
    pub(crate) kek: Kek,
}

impl Insider {
    /// Enrolls, and gets itself into the group.
    pub(crate) fn join(world: &mut World, group: GroupId) -> Self {
        let mut hand = Hand::enroll(world);
        let signer = LeafSigner::new(&hand.identity.seed());
        let (package, private) =
            make_key_package(hand.id, Suite::Aes128Gcm, &signer).expect("a key package can be made");
        give(&mut hand, world, Suite::Aes128Gcm, vec![package]);
        let welcome = add(&mut hand, world, group).expect("a good key package lets it in");
        Self::enter(hand, world, &welcome, &private)
    }

    fn enter(hand: Hand, world: &World, welcome: &Welcome, private: &PrivateKeyPackage) -> Self {
        let context = CellContext { fleet: world.fleet, group: welcome.group, cell: welcome.cell };
        let keys = [world.coordinator_public_key()];
        let (cell, _) =
            MemberCell::join(&context, private, &welcome.welcome, &keys, &[]).expect("the Welcome is for it");
        let newest = welcome.statements.last().expect("a Welcome brings the key");
        let statement = SignedStatement::from_trusted(&newest.statement).expect("the coordinator's own");
        let context = WrapContext {
            fleet: world.fleet,
            cell: welcome.cell,
            cell_epoch: welcome.cell_epoch,
            suite: welcome.suite,
        };
        let kek = cell.kek();
        let secret = wrap::open(&context, &kek, &statement, &newest.wrap).expect("it is for this cell");
        Self { hand, statement, secret, context, kek }
    }

    /// What it can prove with the secret in the name of `device`, to whom it shares with the coordinator what it does.
    pub(crate) fn confirm(&self, world: &World, device: DeviceId) -> UpBody {
        let said = self.statement.statement();
        let confirmation = Confirmation {
            fleet: world.fleet,
            group: said.group,
            key_epoch: said.key_epoch,
            commitment: said.commitment,
            device,
        };
        UpBody::Confirm {
            group: said.group,
            key_epoch: said.key_epoch,
            statement: self.statement.digest().short(),
            proof: confirmation.prove(&self.hand.pairwise, &self.secret),
        }
    }
}

/// Hands in key packages, once it is asked for some.
pub(crate) fn give(hand: &mut Hand, world: &mut World, suite: Suite, packages: Vec<Vec<u8>>) {
    hand.connect(world);
    world.run_for(6_000);
    hand.say(world, &hello()).expect("a fresh hello is heard");
    hand.say(world, &UpBody::KeyPackages { suite, packages }).expect("they were asked for");
}

/// Wants it in the group; the Welcome, if there is one.
pub(crate) fn add(hand: &mut Hand, world: &mut World, group: GroupId) -> Option<Welcome> {
    let before = world.published.len();
    world.coordinator.add_members(group, &[hand.id], world.now, &mut world.rng).expect("can be added");
    world.perform();
    world.run_for(5_000);
    hand.hear(world, before).into_iter().find_map(|body| match body {
        DownBody::Welcome(welcome) => Some(welcome),
        DownBody::HelloAgain
        | DownBody::Answer { .. }
        | DownBody::CellFrame { .. }
        | DownBody::RequestKeyPackages { .. }
        | DownBody::RequestUpdate { .. }
        | DownBody::Dismiss { .. }
        | DownBody::Certificate { .. }
        | DownBody::RequestEvidence { .. }
        | DownBody::RequestHello => None,
    })
}
