//! How much a cell costs in bytes. Bytes do not move with the machine, so the budgets are hard.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;

use common::World;
use fleetkey_mls::{Changes, MemberCell};
use fleetkey_wire::Suite;

struct Costs {
    manager: usize,
    member: usize,
    member_with_update: usize,
    key_package: usize,
    private_key_package: usize,
    add: usize,
    add_eight: usize,
    removal: usize,
    update: usize,
    covered: usize,
    welcome: usize,
}

/// Of a cell of `members` that only the coordinator ever committed to.
fn costs(suite: Suite, members: usize) -> Costs {
    let mut world = World::new(suite);
    let ids: Vec<_> = (0..members).map(|_| world.enrol()).collect();
    let (add, mut privates): (Vec<_>, Vec<_>) = ids.iter().map(|id| world.package(*id)).unzip();
    let key_package = add[0].key_package.len();
    let private_key_package = privates[0].to_bytes().len();
    let committed = world.commit(Changes { add, ..Changes::default() });
    let keys = world.keys();
    // One device is enough to measure a device.
    let (watcher, private) = (ids[members / 2], privates.swap_remove(members / 2));
    let welcome = &committed.welcomes[&watcher];
    let mut cell = MemberCell::join(&world.context, &private, welcome, &keys, &[]).unwrap().0;
    world.cells.insert(watcher, cell.clone());

    let update = world.update_of(watcher);
    let member_with_update = world.cells[&watcher].snapshot().len();
    let covered = world.commit(Changes { updates: vec![(watcher, update.clone())], ..Changes::default() });
    world
        .cells
        .get_mut(&watcher)
        .unwrap()
        .process(&covered.covered_updates, &covered.commit, &keys, &[])
        .unwrap();
    refuse_to_grow(suite, &world.cells[&watcher], &cell);
    cell = world.cells[&watcher].clone();

    let removed = world.commit(Changes { remove: vec![ids[0]], ..Changes::default() });
    cell.process(&[], &removed.commit, &keys, &[]).unwrap();
    let (add, _) = world.package(ids[0]);
    let added = world.commit(Changes { add: vec![add], ..Changes::default() });
    cell.process(&[], &added.commit, &keys, &[]).unwrap();
    let welcome = added.welcomes[&ids[0]].len();
    let costs = Costs {
        manager: world.manager.snapshot().len(),
        member: cell.snapshot().len(),
        member_with_update,
        key_package,
        private_key_package,
        add: added.commit.len(),
        add_eight: 0,
        removal: removed.commit.len(),
        update: update.len(),
        covered: covered.commit.len(),
        welcome,
    };
    let late: Vec<_> = (0..8).map(|_| world.enrol()).collect();
    let add = late.iter().map(|id| world.package(*id).0).collect();
    let eight = world.commit(Changes { add, ..Changes::default() });
    Costs { add_eight: eight.commit.len(), ..costs }
}

/// An update that has been covered leaves nothing behind but the path of its commit: a public key at each level.
fn refuse_to_grow(suite: Suite, after: &MemberCell, before: &MemberCell) {
    let (after, before) = (after.snapshot().len(), before.snapshot().len());
    assert!(after < before + 2048 + 6 * suite.kem_public_key_bytes(), "{before} bytes grew to {after}");
}

#[test]
fn a_full_cell_stays_within_its_budget() {
    for suite in [Suite::Aes128Gcm, Suite::ChaCha20Poly1305] {
        let costs = costs(suite, suite.default_cell_capacity().into());
        assert!(costs.member <= 45_000, "a device stores {} bytes", costs.member);
        assert!(costs.member_with_update <= 45_000, "a device stores {} bytes", costs.member_with_update);
        assert!(costs.removal <= 6_500, "a removal takes {} bytes", costs.removal);
        assert!(costs.welcome <= 32 * 1024, "a Welcome takes {} bytes", costs.welcome);
        assert!(costs.add <= 600, "an add takes {} bytes", costs.add);
        assert!(costs.update <= 600, "an update takes {} bytes", costs.update);
        assert!(costs.key_package <= 400, "a key package takes {} bytes", costs.key_package);
    }
}

#[test]
fn a_full_cell_with_x_wing_stays_within_its_budget() {
    let suite = Suite::XWingChaCha20Poly1305;
    for (capacity, removal, welcome) in
        [(suite.default_cell_capacity(), 16, 20), (suite.max_cell_capacity(), 36, 44)]
    {
        let costs = costs(suite, capacity.into());
        assert!(costs.removal <= removal * 1024, "{capacity}: a removal takes {} bytes", costs.removal);
        assert!(costs.covered <= (removal + 2) * 1024, "{capacity}: a path takes {} bytes", costs.covered);
        assert!(costs.welcome <= welcome * 1024, "{capacity}: a Welcome takes {} bytes", costs.welcome);
        assert!(costs.member <= 2 * welcome * 1024, "{capacity}: a device stores {} bytes", costs.member);
        assert!(costs.add <= 3_000, "an add takes {} bytes", costs.add);
        assert!(costs.update <= 1_700, "an update takes {} bytes", costs.update);
        assert!(costs.key_package <= 2_750, "a key package takes {} bytes", costs.key_package);
    }
}

#[test]
fn a_cell_grows_with_its_members_and_no_faster() {
    println!("members  manager  member  +update  kp  kp priv  add  add 8  removal  update  covered  welcome");
    let x_wing = Suite::XWingChaCha20Poly1305;
    let mut last: BTreeMap<(Suite, &str), usize> = BTreeMap::new();
    for (suite, members) in [16, 64, 256]
        .map(|members| (Suite::Aes128Gcm, members))
        .into_iter()
        .chain([8, 16, 24].map(|members| (x_wing, members)))
    {
        let c = costs(suite, members);
        println!(
            "{members:7} {:8} {:7} {:8} {:3} {:8} {:4} {:6} {:8} {:7} {:8} {:8}",
            c.manager,
            c.member,
            c.member_with_update,
            c.key_package,
            c.private_key_package,
            c.add,
            c.add_eight,
            c.removal,
            c.update,
            c.covered,
            c.welcome
        );
        for (what, bytes) in [("manager", c.manager), ("member", c.member), ("removal", c.removal)] {
            if let Some(before) = last.insert((suite, what), bytes) {
                assert!(bytes < before * 5, "{what}: {before} bytes grew to {bytes}");
            }
        }
    }
}

#[test]
fn a_cell_does_not_grow_with_its_history() {
    let mut world = World::with(Suite::Aes128Gcm, 6);
    let ids = world.ids();
    let step = |world: &mut World| {
        // Proposed and never covered, removed and back again, and a path for its own sake.
        world.update_of(ids[0]);
        world.add_these(&ids[1..2], ids[1..2].to_vec());
        let committed = world.commit(Changes { force_path: true, ..Changes::default() });
        world.deliver(&committed, &BTreeMap::new());
    };
    step(&mut world);
    let sizes = |world: &World| (world.manager.snapshot().len(), world.cells[&ids[0]].snapshot().len());
    let before = sizes(&world);
    for _ in 0..20 {
        step(&mut world);
    }
    let after = sizes(&world);
    assert!(after.0 < before.0 + 64 && after.1 < before.1 + 64, "{before:?} grew to {after:?}");
}
