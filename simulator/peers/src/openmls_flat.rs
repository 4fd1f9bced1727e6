//! One flat MLS group (RFC 9420) of the coordinator and all devices, on openmls.
//!
//! As a fleet would have it where one party commits: the tree below the coordinator's own path stays blank, adds carry no
//! path, handshakes are encrypted and not padded. Its storage is openmls's own in memory.

mod packed;

use ed25519_dalek::{Signer as _, SigningKey};
use openmls::prelude::tls_codec::Deserialize as _;
use openmls::prelude::*;
use openmls_rust_crypto::OpenMlsRustCrypto;
use openmls_traits::signatures::{Signer, SignerError};
use openmls_traits::types::SignatureScheme;
use rand_core::OsRng;
use rayon::prelude::*;

use crate::budget::Budget;
use crate::scheme::{Fleet, Kind, Published, Scheme, Stopped, failed};

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
/// Devices that take part in truth, and one more that is removed first.
const SAMPLED: usize = 2;
/// Key packages in one commit of the set-up at most: between two of them the clock is looked at.
const ADDED_AT_ONCE: usize = 4_096;

/// The flat group.
#[derive(Debug, Clone, Copy)]
pub struct FlatOpenMls;

impl Scheme for FlatOpenMls {
    fn name(&self) -> String {
        "flat MLS, openmls".to_owned()
    }

    fn about(&self) -> &'static str {
        "One MLS group of everybody, in which only the coordinator commits. Every leaf comes from a real key package; two \
         devices that remain, and the one that is removed, have joined in truth."
    }

    fn set_up(&self, devices: usize, budget: &Budget) -> Result<Box<dyn Fleet>, Stopped> {
        let provider = OpenMlsRustCrypto::default();
        let signer = Key(SigningKey::generate(&mut OsRng));
        let create = MlsGroupCreateConfig::builder()
            .ciphersuite(SUITE)
            .capabilities(capabilities())
            .lifetime(Lifetime::init(0, u64::MAX))
            .wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)
            .padding_size(0)
            .max_past_epochs(0)
            .number_of_resumption_psks(0)
            .use_ratchet_tree_extension(true)
            .build();
        let group = MlsGroup::new(&provider, &signer, &create, signer.credential(b"coordinator"))
            .map_err(failed("creating the group"))?;
        let mut server = Party { provider, signer, group };

        let live = SAMPLED + 1;
        let mut added = 0;
        while added < devices - live {
            let at_once = ADDED_AT_ONCE.min(devices - live - added);
            let packages: Result<Vec<KeyPackage>, Stopped> = (added..added + at_once)
                .into_par_iter()
                .map_init(OpenMlsRustCrypto::default, |provider, at| {
                    Key(SigningKey::generate(&mut OsRng)).key_package(provider, at)
                })
                .collect();
            budget.check(|| format!("making key packages, {added} of {devices}"))?;
            server.add(packages?)?;
            added += at_once;
            budget.check(|| format!("adding devices, {added} of {devices}"))?;
        }
        // Those that take part in truth come last, so that their Welcome is theirs alone.
        let joining: Vec<(OpenMlsRustCrypto, Key)> = (0..live)
            .map(|_| (OpenMlsRustCrypto::default(), Key(SigningKey::generate(&mut OsRng))))
            .collect();
        let packages: Result<Vec<KeyPackage>, Stopped> = joining
            .iter()
            .enumerate()
            .map(|(at, (provider, key))| key.key_package(provider, added + at))
            .collect();
        let welcome = server.add(packages?)?;
        let mut parties = Vec::new();
        for (provider, signer) in joining {
            parties.push(Party::join(provider, signer, &welcome)?);
            budget.check(|| "joining, on the devices that take part in truth".to_owned())?;
        }
        let removed = parties.remove(0);
        Ok(Box::new(Flat { server, commit: Vec::new(), sampled: parties, removed, turns: 0 }))
    }
}

fn capabilities() -> Capabilities {
    Capabilities::new(
        Some(&[ProtocolVersion::Mls10]),
        Some(&[SUITE]),
        Some(&[]),
        Some(&[]),
        Some(&[CredentialType::Basic]),
    )
}

struct Key(SigningKey);

impl Signer for Key {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.0.sign(payload).to_bytes().to_vec())
    }

    fn signature_scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

impl Key {
    fn credential(&self, name: &[u8]) -> CredentialWithKey {
        CredentialWithKey {
            credential: BasicCredential::new(name.to_vec()).into(),
            signature_key: self.0.verifying_key().to_bytes().to_vec().into(),
        }
    }

    /// With a name of 16 bytes, as a UUID is.
    fn key_package(&self, provider: &OpenMlsRustCrypto, at: usize) -> Result<KeyPackage, Stopped> {
        let bundle = KeyPackage::builder()
            .key_package_lifetime(Lifetime::init(0, u64::MAX))
            .leaf_node_capabilities(capabilities())
            .build(SUITE, provider, self, self.credential(&(at as u128).to_be_bytes()))
            .map_err(failed("making a key package"))?;
        Ok(bundle.key_package().clone())
    }
}

/// A member, the coordinator or a device.
struct Party {
    provider: OpenMlsRustCrypto,
    signer: Key,
    group: MlsGroup,
}

impl Party {
    fn join(provider: OpenMlsRustCrypto, signer: Key, welcome: &[u8]) -> Result<Self, Stopped> {
        let doing = "joining";
        let config = MlsGroupJoinConfig::builder()
            .wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)
            .padding_size(0)
            .max_past_epochs(0)
            .number_of_resumption_psks(0)
            .use_ratchet_tree_extension(true)
            .build();
        let message = MlsMessageIn::tls_deserialize_exact(welcome).map_err(failed(doing))?;
        let MlsMessageBodyIn::Welcome(welcome) = message.extract() else {
            return Err(failed(doing)("it is no Welcome"));
        };
        let group = StagedWelcome::new_from_welcome(&provider, &config, welcome, None)
            .map_err(failed(doing))?
            .into_group(&provider)
            .map_err(failed(doing))?;
        Ok(Self { provider, signer, group })
    }

    /// Adds devices, without a path. Their Welcome.
    fn add(&mut self, packages: Vec<KeyPackage>) -> Result<Vec<u8>, Stopped> {
        let doing = "adding devices";
        let bundle = self
            .group
            .commit_builder()
            .propose_adds(packages)
            .load_psks(self.provider.storage())
            .map_err(failed(doing))?
            .create_group_info(false)
            .use_ratchet_tree_extension(true)
            .build(self.provider.rand(), self.provider.crypto(), &self.signer, |_| true)
            .map_err(failed(doing))?
            .stage_commit(&self.provider)
            .map_err(failed(doing))?;
        let (_, welcome, _) = bundle.into_messages();
        self.group.merge_pending_commit(&self.provider).map_err(failed(doing))?;
        welcome.ok_or_else(|| failed(doing)("there is no Welcome"))?.to_bytes().map_err(failed(doing))
    }

    /// Removes a leaf, with a path.
    fn remove(&mut self, leaf: LeafNodeIndex) -> Result<Vec<u8>, Stopped> {
        let doing = "removing";
        let bundle = self
            .group
            .commit_builder()
            .propose_removals([leaf])
            .load_psks(self.provider.storage())
            .map_err(failed(doing))?
            .create_group_info(false)
            .build(self.provider.rand(), self.provider.crypto(), &self.signer, |_| true)
            .map_err(failed(doing))?
            .stage_commit(&self.provider)
            .map_err(failed(doing))?;
        let commit = bundle.into_commit().to_bytes().map_err(failed(doing))?;
        self.group.merge_pending_commit(&self.provider).map_err(failed(doing))?;
        Ok(commit)
    }

    fn take(&mut self, commit: &[u8]) -> Result<(), Stopped> {
        let doing = "following a commit";
        let message = MlsMessageIn::tls_deserialize_exact(commit).map_err(failed(doing))?;
        let message = message.try_into_protocol_message().map_err(failed(doing))?;
        let processed = self.group.process_message(&self.provider, message).map_err(failed(doing))?;
        let ProcessedMessageContent::StagedCommitMessage(staged) = processed.into_content() else {
            return Err(failed(doing)("it is no commit"));
        };
        self.group.merge_staged_commit(&self.provider, *staged).map_err(failed(doing))
    }

    fn key(&self) -> Result<Vec<u8>, Stopped> {
        self.group
            .export_secret(self.provider.crypto(), "group key", &[], 32)
            .map_err(failed("exporting the key"))
    }
}

/// The group, and some of its devices.
struct Flat {
    server: Party,
    /// What was published last.
    commit: Vec<u8>,
    sampled: Vec<Party>,
    removed: Party,
    turns: u32,
}

impl Fleet for Flat {
    fn remove(&mut self) -> Result<Published, Stopped> {
        // First the one that is here to be removed, and then those at the front of the tree.
        let leaf = match self.turns {
            0 => self.removed.group.own_leaf_index(),
            turn => LeafNodeIndex::new(turn),
        };
        self.turns += 1;
        self.commit = self.server.remove(leaf)?;
        Ok(Published { messages: 1, bytes: self.commit.len() as u64 })
    }

    fn sampled(&self) -> usize {
        self.sampled.len()
    }

    fn kinds(&self) -> Vec<Kind> {
        vec![Kind { name: "each", devices: self.server.group.members().count() - 1 }]
    }

    fn kind_of(&self, _: usize) -> usize {
        0
    }

    fn deliver(&mut self, sampled: usize) -> Result<u64, Stopped> {
        self.sampled[sampled].take(&self.commit)?;
        Ok(self.commit.len() as u64)
    }

    fn key_of(&self, sampled: usize) -> Result<Vec<u8>, Stopped> {
        self.sampled[sampled].key()
    }

    fn coordinator_key(&self) -> Result<Vec<u8>, Stopped> {
        self.server.key()
    }

    fn removed_derives(&mut self) -> Result<Vec<u8>, String> {
        self.removed.take(&self.commit).map_err(|why| why.to_string())?;
        self.removed.key().map_err(|why| why.to_string())
    }

    fn state_bytes(&self, sampled: usize) -> u64 {
        let values = &self.sampled[sampled].provider.storage().values;
        let values = values.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        values.values().map(|value| packed::bytes_of(value).unwrap_or(value.len() as u64)).sum()
    }
}
