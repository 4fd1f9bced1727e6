//! What a device must compute for one rekey, measured alone: without a fleet, a socket or a store, on every processor at once,
//! as simulated devices share them.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use fleetkey_identity::IdentityKey;
use fleetkey_report::median;
use fleetkey_wire::link::DeviceLink;
use fleetkey_wire::wrap::{self, WrapContext};
use fleetkey_wire::{
    CellEpoch, CellId, Confirmation, DeviceId, FleetId, GroupId, GroupSecret, Kek, KeyEpoch, KeyId, Pairwise,
    Reason, SignedStatement, Statement, Suite, UpBody,
};
use rand_core::OsRng;
use serde::Serialize;

/// Each step is done so often; the fastest of some such runs counts.
const TIMES: u32 = 400;
const RUNS: u32 = 7;

/// Microseconds for each step.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct DeviceCost {
    /// Verify the statement's signature (Ed25519).
    pub verify: f64,
    /// Open the wrap, and compare the commitment.
    pub open: f64,
    /// Prove possession (HMAC), and frame the proof under the link's key.
    pub confirm: f64,
    /// The frame with the proof, in bytes.
    #[serde(skip)]
    pub reply_bytes: usize,
}

impl DeviceCost {
    /// All steps.
    pub fn microseconds(&self) -> f64 {
        self.verify + self.open + self.confirm
    }

    /// Each step at its median.
    pub fn median(costs: &[Self]) -> Self {
        let of = |step: fn(&Self) -> f64| median(&costs.iter().map(step).collect::<Vec<_>>());
        Self {
            verify: of(|cost| cost.verify),
            open: of(|cost| cost.open),
            confirm: of(|cost| cost.confirm),
            reply_bytes: costs.iter().map(|cost| cost.reply_bytes).max().unwrap_or_default(),
        }
    }
}

/// Measures it on so many processors at once; answers with their mean.
///
/// # Panics
/// Never: what it makes itself is good.
pub fn measure(processors: usize) -> DeviceCost {
    let together = Barrier::new(processors.max(1));
    let costs: Vec<DeviceCost> = thread::scope(|scope| {
        let started: Vec<_> =
            (0..processors.max(1)).map(|_| scope.spawn(|| measure_here(&together))).collect();
        started.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    });
    let mean = |of: fn(&DeviceCost) -> f64| costs.iter().map(of).sum::<f64>() / costs.len() as f64;
    DeviceCost {
        verify: mean(|cost| cost.verify),
        open: mean(|cost| cost.open),
        confirm: mean(|cost| cost.confirm),
        reply_bytes: costs.iter().map(|cost| cost.reply_bytes).max().unwrap_or_default(),
    }
}

fn measure_here(together: &Barrier) -> DeviceCost {
    let fleet = FleetId::random(&mut OsRng);
    let (group, cell) = (GroupId::random(&mut OsRng), CellId::random(&mut OsRng));
    let device = DeviceId::random(&mut OsRng);
    let (coordinator, identity) = (IdentityKey::generate(&mut OsRng), IdentityKey::generate(&mut OsRng));
    let (secret, kek) = (GroupSecret::from_bytes([0x5e; 32]), Kek::from_bytes([0x7e; 32]));
    let key_epoch = KeyEpoch::new(29_000_000, 7);
    let commitment = secret.commitment(group, key_epoch);
    let statement = Statement {
        group,
        key_epoch,
        commitment,
        reason: Reason::Revoke,
        send: key_epoch,
        oldest: key_epoch,
        overlap_seconds: 0,
        issued_unix_seconds: 1_800_000_000,
    };
    let signed = statement.sign(fleet, KeyId([0x55; 8]), coordinator.signing_key());
    let public = coordinator.signing_key().verifying_key();
    let context = WrapContext { fleet, cell, cell_epoch: CellEpoch(41), suite: Suite::default() };
    let wrapped = wrap::wrap(&context, &kek, &signed, &secret);
    let pairwise = Pairwise::agree(fleet, device, identity.signing_key(), &coordinator.public_key())
        .expect("a new key is a good one");
    let confirmation = Confirmation { fleet, group, key_epoch, commitment, device };
    let mut link = DeviceLink::connect(pairwise.link_key(), &mut OsRng);
    let mut confirm = || {
        let proof = confirmation.prove(black_box(&pairwise), &secret);
        link.seal(&UpBody::Confirm { group, key_epoch, statement: Default::default(), proof }).0
    };
    let reply_bytes = confirm().len();
    together.wait();
    DeviceCost {
        verify: fastest(|| {
            SignedStatement::verify(black_box(signed.as_bytes()), fleet, |_| Some(public))
                .expect("it was signed")
        }),
        open: fastest(|| {
            let opened = wrap::open(&context, black_box(&kek), &signed, &wrapped).expect("it was wrapped");
            assert!(opened.commitment(group, key_epoch) == commitment);
            opened
        }),
        confirm: fastest(&mut confirm),
        reply_bytes,
    }
}

fn fastest<T>(mut step: impl FnMut() -> T) -> f64 {
    let run = |_| {
        let began = Instant::now();
        for _ in 0..TIMES {
            black_box(step());
        }
        began.elapsed().as_secs_f64() * 1e6 / f64::from(TIMES)
    };
    (0..RUNS).map(run).fold(f64::INFINITY, f64::min)
}
