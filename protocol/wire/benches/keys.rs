//! What one rekey costs the coordinator and one device, outside MLS, and what sealing costs an application.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ed25519_dalek::SigningKey;
use fleetkey_wire::keys::LinkKey;
use fleetkey_wire::link::{CoordinatorLink, DeviceLink, StartSecret};
use fleetkey_wire::payload::{self, Sealer};
use fleetkey_wire::wrap::{self, WrapContext};
use fleetkey_wire::{
    CellEpoch, CellId, Confirmation, DeviceId, DownBody, FleetId, Generation, GroupId, GroupSecret, Hello,
    Kek, KeyEpoch, KeyId, Pairwise, Reason, SignedStatement, Statement, Suite, UpBody,
};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

const FLEET: FleetId = FleetId::from_bytes([0x11; 16]);
const GROUP: GroupId = GroupId::from_bytes([0x22; 16]);
const CELL: CellId = CellId::from_bytes([0x33; 16]);
const DEVICE: DeviceId = DeviceId::from_bytes([0x44; 16]);
const KEY_EPOCH: KeyEpoch = KeyEpoch::new(29_000_000, 7);
const SIGNER: KeyId = KeyId([0x55; 8]);
const PAYLOAD_BYTES: usize = 256;

fn coordinator_key() -> SigningKey {
    SigningKey::from_bytes(&[0x0c; 32])
}

fn device_key() -> SigningKey {
    SigningKey::from_bytes(&[0x0d; 32])
}

fn secret() -> GroupSecret {
    GroupSecret::from_bytes([0x5e; 32])
}

fn pairwise() -> Pairwise {
    Pairwise::agree(FLEET, DEVICE, &device_key(), coordinator_key().verifying_key().as_bytes())
        .expect("the coordinator's key is a good one")
}

fn statement() -> Statement {
    Statement {
        group: GROUP,
        key_epoch: KEY_EPOCH,
        commitment: secret().commitment(GROUP, KEY_EPOCH),
        reason: Reason::Revoke,
        send: KEY_EPOCH,
        oldest: KEY_EPOCH,
        overlap_seconds: 30,
        issued_unix_seconds: 1_800_000_000,
    }
}

fn statements(c: &mut Criterion) {
    let key = coordinator_key();
    c.bench_function("statement/sign", |b| b.iter(|| statement().sign(FLEET, SIGNER, black_box(&key))));
    let signed = statement().sign(FLEET, SIGNER, &key);
    let public = key.verifying_key();
    c.bench_function("statement/verify", |b| {
        b.iter(|| SignedStatement::verify(black_box(signed.as_bytes()), FLEET, |_| Some(public)))
    });
}

fn wraps(c: &mut Criterion) {
    let kek = Kek::from_bytes([0x7e; 32]);
    let signed = statement().sign(FLEET, SIGNER, &coordinator_key());
    for suite in Suite::ALL {
        let context = WrapContext { fleet: FLEET, cell: CELL, cell_epoch: CellEpoch(41), suite };
        c.bench_with_input(BenchmarkId::new("wrap/wrap", suite), &context, |b, context| {
            b.iter(|| wrap::wrap(context, black_box(&kek), &signed, &secret()))
        });
        let wrapped = wrap::wrap(&context, &kek, &signed, &secret());
        c.bench_with_input(BenchmarkId::new("wrap/open", suite), &context, |b, context| {
            b.iter(|| wrap::open(context, black_box(&kek), &signed, &wrapped))
        });
    }
}

fn confirmations(c: &mut Criterion) {
    let confirmation = Confirmation {
        fleet: FLEET,
        group: GROUP,
        key_epoch: KEY_EPOCH,
        commitment: statement().commitment,
        device: DEVICE,
    };
    let pairwise = pairwise();
    c.bench_function("confirm/prove", |b| b.iter(|| confirmation.prove(black_box(&pairwise), &secret())));
    let proof = confirmation.prove(&pairwise, &secret());
    c.bench_function("confirm/verify", |b| {
        b.iter(|| confirmation.holds(black_box(&pairwise), &secret(), &proof))
    });
    c.bench_function("pairwise/agree", |b| b.iter(self::pairwise));
}

fn payloads(c: &mut Criterion) {
    let mut rng = ChaCha20Rng::seed_from_u64(7);
    let plaintext = [0x99; PAYLOAD_BYTES];
    let key = device_key();
    let public = key.verifying_key();
    let mut group = c.benchmark_group("payload");
    group.throughput(Throughput::Bytes(PAYLOAD_BYTES as u64));
    for suite in Suite::ALL {
        for (how, signer) in [("unsigned", None), ("signed", Some(&key))] {
            let mut sealer = Sealer::new(suite, GROUP, KEY_EPOCH, &secret(), DEVICE, &mut rng);
            let sealed = sealer.seal(&plaintext, b"", signer).expect("256 bytes can be sealed");
            group.bench_function(BenchmarkId::new(format!("seal/{how}"), suite), |b| {
                b.iter(|| sealer.seal(black_box(&plaintext), b"", signer))
            });
            group.bench_function(BenchmarkId::new(format!("open/{how}"), suite), |b| {
                b.iter(|| payload::open(suite, &secret(), black_box(&sealed), b"", |_| Some(public)))
            });
        }
    }
    group.finish();
}

/// Always the same two ends of a link, before the first hello.
fn ends(key: &LinkKey) -> (StartSecret, DeviceLink) {
    let mut rng = ChaCha20Rng::seed_from_u64(7);
    (StartSecret::random(&mut rng), DeviceLink::connect(key.clone(), &mut rng))
}

fn links(c: &mut Criterion) {
    let key = pairwise().link_key();
    let (start, mut device) = ends(&key);
    let mut coordinator = CoordinatorLink::default();
    let hello = UpBody::Hello(Hello { generation: Generation(1), cells: Vec::new() });
    let (greeting, counter) = device.seal(&hello);
    coordinator.open(&start, DEVICE, &key, &greeting).expect("a first hello is heard");
    let answer =
        DownBody::Answer { hello: counter, hello_interval_seconds: 1_800, max_silence_seconds: 86_400 };
    let answered = coordinator.seal(&start, DEVICE, &key, &answer);
    let greeted = coordinator.clone();

    c.bench_function("link/device_open", |b| {
        // Opened by a link that has not heard it yet: a second time it would be a replay.
        b.iter_batched_ref(
            || ends(&key).1,
            |fresh| fresh.open(black_box(&answered)).expect("it is of this connection"),
            criterion::BatchSize::SmallInput,
        )
    });
    device.open(&answered).expect("the answer is fresh");
    let (confirm, _) = device.seal(&UpBody::Confirm {
        group: GROUP,
        key_epoch: KEY_EPOCH,
        statement: Default::default(),
        proof: [0x77; 32],
    });
    c.bench_function("link/coordinator_open", |b| {
        b.iter_batched_ref(
            || greeted.clone(),
            |link| link.open(&start, DEVICE, &key, black_box(&confirm)).expect("it proves the connection"),
            criterion::BatchSize::SmallInput,
        )
    });
    c.bench_function("link/device_seal", |b| b.iter(|| device.seal(black_box(&hello))));
    c.bench_function("link/coordinator_seal", |b| {
        b.iter(|| coordinator.seal(&start, DEVICE, &key, black_box(&answer)))
    });
}

criterion_group!(benches, statements, wraps, confirmations, payloads, links);
criterion_main!(benches);
