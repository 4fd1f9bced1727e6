//! What a cell costs in time, at several sizes, beside one flat group of 1,024 in the same run.
//!
//! The tree is as the coordinator leaves it: mostly blank, because nobody else commits.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on fails, and reports"
)]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use fleetkey_mls::{
    AddDevice, CellContext, Changes, Committed, LeafSigner, ManagedCell, MemberCell, PrivateKeyPackage,
    make_key_package,
};
use fleetkey_wire::{CellId, DeviceId, FleetId, GroupId, Suite};
use rand_core::{OsRng, RngCore};

/// Cells, and the flat group that they stand for.
const SIZES: [(Suite, usize); 7] = [
    (Suite::Aes128Gcm, 8),
    (Suite::Aes128Gcm, 16),
    (Suite::Aes128Gcm, 64),
    (Suite::Aes128Gcm, 256),
    (Suite::Aes128Gcm, 1024),
    (Suite::XWingChaCha20Poly1305, 8),
    (Suite::XWingChaCha20Poly1305, 24),
];
/// How many devices join in one commit.
const BATCH: usize = 8;

/// A full cell, seen from both sides.
struct Cell {
    context: CellContext,
    coordinator: LeafSigner,
    manager: ManagedCell,
    device: DeviceId,
    member: MemberCell,
    /// Another device, to be removed.
    other: DeviceId,
    joiner: PrivateKeyPackage,
    welcome: Vec<u8>,
}

impl Cell {
    fn of(suite: Suite, size: usize) -> Self {
        let context = CellContext {
            fleet: FleetId::random(&mut OsRng),
            group: GroupId::random(&mut OsRng),
            cell: CellId::random(&mut OsRng),
        };
        let coordinator = signer();
        let mut manager = ManagedCell::create(context, suite, &coordinator).unwrap();
        let (add, mut privates): (Vec<_>, Vec<_>) = (0..size).map(|_| newcomer(suite)).unzip();
        let (device, other) = (add[size / 2].device, add[size / 3].device);
        let committed = commit(&mut manager, &coordinator, Changes { add, ..Changes::default() });
        let joiner = privates.swap_remove(size / 2);
        let welcome = committed.welcomes[&device].clone();
        let member =
            MemberCell::join(&context, &joiner, &welcome, &[coordinator.public_key()], &[]).unwrap().0;
        Self { context, coordinator, manager, device, member, other, joiner, welcome }
    }

    fn keys(&self) -> [[u8; 32]; 1] {
        [self.coordinator.public_key()]
    }

    fn removal(&self) -> Changes {
        Changes { remove: vec![self.other], ..Changes::default() }
    }
}

fn signer() -> LeafSigner {
    let mut seed = [0; 32];
    OsRng.fill_bytes(&mut seed);
    LeafSigner::new(&seed)
}

fn newcomer(suite: Suite) -> (AddDevice, PrivateKeyPackage) {
    let (device, signer) = (DeviceId::random(&mut OsRng), signer());
    let (key_package, private) = make_key_package(device, suite, &signer).unwrap();
    (AddDevice { device, signature_key: signer.public_key(), key_package }, private)
}

fn commit(manager: &mut ManagedCell, coordinator: &LeafSigner, changes: Changes) -> Committed {
    manager.commit(coordinator, changes).unwrap().committed.unwrap()
}

fn cells(c: &mut Criterion) {
    let mut bench = c.benchmark_group("cell");
    bench.sample_size(20);
    for (suite, size) in SIZES {
        let cell = Cell::of(suite, size);
        let keys = cell.keys();
        let flat = if size == 1024 { "flat " } else { "" };
        let name = format!("{suite} {flat}{size}");
        let id = |what: &str| BenchmarkId::new(what, &name);

        bench.bench_function(id("remove one"), |b| {
            b.iter_batched_ref(
                || cell.manager.clone(),
                |manager| commit(manager, &cell.coordinator, cell.removal()),
                BatchSize::SmallInput,
            );
        });

        let removed = commit(&mut cell.manager.clone(), &cell.coordinator, cell.removal());
        bench.bench_function(id("process a removal"), |b| {
            b.iter_batched_ref(
                || cell.member.clone(),
                |member| member.process(&[], &removed.commit, &keys, &[]).unwrap(),
                BatchSize::SmallInput,
            );
        });

        let batch: Vec<_> = (0..BATCH).map(|_| newcomer(suite).0).collect();
        bench.bench_function(id("add 8"), |b| {
            b.iter_batched_ref(
                || (cell.manager.clone(), Changes { add: batch.clone(), ..Changes::default() }),
                |(manager, changes)| commit(manager, &cell.coordinator, std::mem::take(changes)),
                BatchSize::SmallInput,
            );
        });

        let added = commit(
            &mut cell.manager.clone(),
            &cell.coordinator,
            Changes { add: batch.clone(), ..Changes::default() },
        );
        bench.bench_function(id("process an add of 8"), |b| {
            b.iter_batched_ref(
                || cell.member.clone(),
                |member| member.process(&[], &added.commit, &keys, &[]).unwrap(),
                BatchSize::SmallInput,
            );
        });

        bench.bench_function(id("join"), |b| {
            b.iter(|| MemberCell::join(&cell.context, &cell.joiner, &cell.welcome, &keys, &[]).unwrap().0);
        });

        let snapshot = cell.manager.snapshot();
        bench.bench_function(id("restore, manager"), |b| {
            b.iter(|| ManagedCell::restore(black_box(&snapshot)).unwrap());
        });
        println!(
            "{name}: manager {} bytes, member {} bytes, removal {} bytes, Welcome {} bytes ({:?})",
            snapshot.len(),
            cell.member.snapshot().len(),
            removed.commit.len(),
            cell.welcome.len(),
            cell.device,
        );
    }
    bench.finish();
}

fn key_packages(c: &mut Criterion) {
    let (device, signer) = (DeviceId::random(&mut OsRng), signer());
    for suite in [Suite::Aes128Gcm, Suite::XWingChaCha20Poly1305] {
        c.bench_function(&format!("make a key package, {suite}"), |b| {
            b.iter(|| make_key_package(device, suite, &signer).unwrap());
        });
    }
}

criterion_group!(benches, cells, key_packages);
criterion_main!(benches);
