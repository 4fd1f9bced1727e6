//! A fresh key sealed to each device with HPKE (RFC 9180), and one signed statement that all of them hold it against.
//!
//! As good as pairwise delivery can be had: the signature is on a commitment to the key, so that there is one for all
//! devices, and the statement travels once.

use ed25519_dalek::{Signature, Signer as _, SigningKey, Verifier as _, VerifyingKey};
use openmls::prelude::Ciphersuite;
use openmls_rust_crypto::RustCrypto;
use openmls_traits::crypto::OpenMlsCrypto as _;
use openmls_traits::types::{HpkeCiphertext, HpkeConfig, HpkeKeyPair};
use rand_core::{OsRng, RngCore as _};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use crate::budget::Budget;
use crate::scheme::{Fleet, Kind, Published, Scheme, Stopped, failed};

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
const HPKE: HpkeConfig = SUITE.hpke_config();
const INFO: &[u8] = b"pairwise delivery of a group key";
/// Devices that take part in truth.
const SAMPLED: usize = 16;
/// Devices that are set up between two looks at the clock.
const AT_ONCE: usize = 4_096;

/// Pairwise delivery.
#[derive(Debug, Clone, Copy)]
pub struct Pairwise;

impl Scheme for Pairwise {
    fn name(&self) -> String {
        "pairwise HPKE".to_owned()
    }

    fn about(&self) -> &'static str {
        "A fresh 32-byte key, sealed to each remaining device (X25519, HKDF-SHA-256, AES-128-GCM), and one signed statement \
         with a commitment to it. Every device's key pair is real; 16 devices open what they are sent."
    }

    fn set_up(&self, devices: usize, budget: &Budget) -> Result<Box<dyn Fleet>, Stopped> {
        let mut pairs = Vec::with_capacity(devices);
        while pairs.len() < devices {
            budget.check(|| format!("making key pairs, {} of {devices}", pairs.len()))?;
            let some = AT_ONCE.min(devices - pairs.len());
            let made: Result<Vec<HpkeKeyPair>, Stopped> = (0..some)
                .into_par_iter()
                .map_init(RustCrypto::default, |crypto, _| key_pair(crypto))
                .collect();
            pairs.extend(made?);
        }
        let signing = SigningKey::generate(&mut OsRng);
        let coordinator_key = signing.verifying_key();
        let device = |at: usize, pair: &HpkeKeyPair| Device {
            at,
            private: pair.private.to_vec(),
            coordinator_key,
            sequence: 0,
            key: [0; 32],
            crypto: RustCrypto::default(),
        };
        let step = (devices / SAMPLED).max(1);
        let sampled = (1..devices).step_by(step).take(SAMPLED).map(|at| device(at, &pairs[at])).collect();
        let removed = device(0, &pairs[0]);
        Ok(Box::new(Delivery {
            crypto: RustCrypto::default(),
            signing,
            sequence: 0,
            members: pairs.into_iter().map(|pair| Some(pair.public)).collect(),
            key: [0; 32],
            statement: Vec::new(),
            sealed: Vec::new(),
            sampled,
            removed,
        }))
    }
}

fn key_pair(crypto: &RustCrypto) -> Result<HpkeKeyPair, Stopped> {
    let mut seed = [0; 32];
    OsRng.fill_bytes(&mut seed);
    crypto.derive_hpke_keypair(HPKE, &seed).map_err(failed("making a key pair"))
}

/// The key server, and some of its devices.
struct Delivery {
    crypto: RustCrypto,
    signing: SigningKey,
    sequence: u64,
    /// Public keys, none where a device was removed.
    members: Vec<Option<Vec<u8>>>,
    key: [u8; 32],
    /// What was published last: the statement, and what was sealed for each device.
    statement: Vec<u8>,
    sealed: Vec<Option<Vec<u8>>>,
    sampled: Vec<Device>,
    removed: Device,
}

/// A device: what it has stored, and its cryptography.
struct Device {
    at: usize,
    private: Vec<u8>,
    coordinator_key: VerifyingKey,
    sequence: u64,
    key: [u8; 32],
    crypto: RustCrypto,
}

impl Fleet for Delivery {
    fn remove(&mut self) -> Result<Published, Stopped> {
        self.members[self.removed.at] = None;
        self.sequence += 1;
        OsRng.fill_bytes(&mut self.key);
        self.statement = [&self.sequence.to_be_bytes()[..], Sha256::digest(self.key).as_slice()].concat();
        let signature = self.signing.sign(&self.statement);
        self.statement.extend_from_slice(&signature.to_bytes());
        let seal = |public: &Vec<u8>| -> Result<Vec<u8>, Stopped> {
            let sealed = self.crypto.hpke_seal(HPKE, public, INFO, &self.statement, &self.key);
            let sealed = sealed.map_err(failed("sealing"))?;
            Ok([sealed.kem_output.as_slice(), sealed.ciphertext.as_slice()].concat())
        };
        let sealed: Result<Vec<_>, _> =
            self.members.iter().map(|member| member.as_ref().map(seal).transpose()).collect();
        self.sealed = sealed?;
        let each = self.sealed.iter().flatten();
        let bytes = self.statement.len() + each.clone().map(Vec::len).sum::<usize>();
        Ok(Published { messages: 1 + each.count() as u64, bytes: bytes as u64 })
    }

    fn sampled(&self) -> usize {
        self.sampled.len()
    }

    fn kinds(&self) -> Vec<Kind> {
        vec![Kind { name: "each", devices: self.members.iter().flatten().count() }]
    }

    fn kind_of(&self, _: usize) -> usize {
        0
    }

    fn deliver(&mut self, sampled: usize) -> Result<u64, Stopped> {
        let device = &mut self.sampled[sampled];
        let sealed = self.sealed[device.at].as_ref().ok_or_else(|| failed("delivering")("it was removed"))?;
        device.take(&self.statement, sealed).map_err(failed("taking a key"))?;
        Ok((self.statement.len() + sealed.len()) as u64)
    }

    fn key_of(&self, sampled: usize) -> Result<Vec<u8>, Stopped> {
        Ok(self.sampled[sampled].key.to_vec())
    }

    fn coordinator_key(&self) -> Result<Vec<u8>, Stopped> {
        Ok(self.key.to_vec())
    }

    fn removed_derives(&mut self) -> Result<Vec<u8>, String> {
        let mut said = String::new();
        for sealed in self.sealed.iter().flatten() {
            match self.removed.take(&self.statement, sealed) {
                Ok(()) => return Ok(self.removed.key.to_vec()),
                Err(why) => said = why,
            }
        }
        Err(said)
    }

    fn state_bytes(&self, sampled: usize) -> u64 {
        let device = &self.sampled[sampled];
        (device.private.len()
            + device.coordinator_key.as_bytes().len()
            + size_of_val(&device.sequence)
            + device.key.len()) as u64
    }
}

impl Device {
    /// Holds the statement against its signature, and the key against the statement.
    fn take(&mut self, statement: &[u8], sealed: &[u8]) -> Result<(), String> {
        let (signed, signature) = statement.split_last_chunk::<64>().ok_or("the statement is too short")?;
        self.coordinator_key
            .verify(signed, &Signature::from_bytes(signature))
            .map_err(|_| "the signature is not the coordinator's")?;
        let (sequence, commitment) = signed.split_first_chunk::<8>().ok_or("the statement is too short")?;
        let sequence = u64::from_be_bytes(*sequence);
        if sequence <= self.sequence {
            return Err("the statement is an old one".to_owned());
        }
        let (kem_output, ciphertext) = sealed.split_at_checked(32).ok_or("the sealed key is too short")?;
        let sealed =
            HpkeCiphertext { kem_output: kem_output.to_vec().into(), ciphertext: ciphertext.to_vec().into() };
        let key = self
            .crypto
            .hpke_open(HPKE, &sealed, &self.private, INFO, statement)
            .map_err(|error| format!("nothing that was sealed opens: {error}"))?;
        if Sha256::digest(&key).as_slice() != commitment {
            return Err("the key is not the one that was signed".to_owned());
        }
        self.key = key.try_into().map_err(|_| "the key has another length")?;
        self.sequence = sequence;
        Ok(())
    }
}
