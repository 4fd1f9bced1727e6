//! One flat MLS group (RFC 9420) of the coordinator and all devices, on mls-rs with its RustCrypto provider.
//!
//! Set as the one on openmls: only the coordinator commits, adds carry no path, handshakes are encrypted and not padded,
//! and no former epoch is kept.

use mls_rs::client_builder::{MlsConfig, PaddingMode};
use mls_rs::group::{CommitEffect, ReceivedMessage};
use mls_rs::identity::SigningIdentity;
use mls_rs::identity::basic::{BasicCredential, BasicIdentityProvider};
use mls_rs::mls_rules::{CommitOptions, DefaultMlsRules, EncryptionOptions};
use mls_rs::storage_provider::in_memory::InMemoryGroupStateStorage;
use mls_rs::{
    CipherSuite, CipherSuiteProvider as _, Client, CryptoProvider as _, Group, GroupStateStorage as _,
    MlsMessage,
};
use mls_rs_crypto_rustcrypto::RustCryptoProvider;
use rayon::prelude::*;

use crate::budget::Budget;
use crate::scheme::{Fleet, Kind, Published, Scheme, Stopped, failed};

const SUITE: CipherSuite = CipherSuite::CURVE25519_AES128;
/// Devices that take part in truth, and one more that is removed first.
const SAMPLED: usize = 2;
/// Key packages in one commit of the set-up at most: between two of them the clock is looked at.
const ADDED_AT_ONCE: usize = 4_096;

/// The flat group.
#[derive(Debug, Clone, Copy)]
pub struct FlatMlsRs;

impl Scheme for FlatMlsRs {
    fn name(&self) -> String {
        "flat MLS, mls-rs".to_owned()
    }

    fn about(&self) -> &'static str {
        "The same on mls-rs with its RustCrypto provider. Every leaf comes from a real key package; two devices that remain, \
         and the one that is removed, have joined in truth."
    }

    fn set_up(&self, devices: usize, budget: &Budget) -> Result<Box<dyn Fleet>, Stopped> {
        let (client, store) = client_named(b"coordinator")?;
        let doing = "creating the group";
        let group =
            client.create_group(Default::default(), Default::default(), None).map_err(failed(doing))?;
        let mut server = Party { group, store };

        let live = SAMPLED + 1;
        let mut added = 0;
        while added < devices - live {
            let at_once = ADDED_AT_ONCE.min(devices - live - added);
            let packages: Result<Vec<MlsMessage>, Stopped> = (added..added + at_once)
                .into_par_iter()
                .map(|at| key_package(&client_named(&name(at))?.0))
                .collect();
            budget.check(|| format!("making key packages, {added} of {devices}"))?;
            server.add(packages?)?;
            added += at_once;
            budget.check(|| format!("adding devices, {added} of {devices}"))?;
        }
        // Those that take part in truth come last, so that their Welcome is theirs alone.
        let joining: Result<Vec<_>, Stopped> = (added..devices).map(|at| client_named(&name(at))).collect();
        let joining = joining?;
        let packages: Result<Vec<MlsMessage>, Stopped> =
            joining.iter().map(|(client, _)| key_package(client)).collect();
        let welcome = server.add(packages?)?;
        let mut parties = Vec::new();
        for (client, store) in joining {
            let (group, _) = client.join_group(None, &welcome, None).map_err(failed("joining"))?;
            parties.push(Party { group, store });
            budget.check(|| "joining, on the devices that take part in truth".to_owned())?;
        }
        let removed = parties.remove(0);
        Ok(Box::new(Flat { server, commit: Vec::new(), sampled: parties, removed, turns: 0 }))
    }
}

fn client_named(name: &[u8]) -> Result<(Client<impl MlsConfig + use<>>, InMemoryGroupStateStorage), Stopped> {
    let doing = "making a client";
    let crypto = RustCryptoProvider::default();
    let suite = crypto.cipher_suite_provider(SUITE).ok_or_else(|| failed(doing)("it lacks the suite"))?;
    let (secret, public) =
        suite.signature_key_generate().map_err(|error| failed(doing)(format!("{error:?}")))?;
    let identity = SigningIdentity::new(BasicCredential::new(name.to_vec()).into_credential(), public);
    let commits = CommitOptions::new()
        .with_path_required(false)
        .with_ratchet_tree_extension(true)
        .with_single_welcome_message(true);
    let rules = DefaultMlsRules::new()
        .with_commit_options(commits)
        .with_encryption_options(EncryptionOptions::new(true, PaddingMode::None));
    let store = InMemoryGroupStateStorage::new();
    let client = Client::builder()
        .identity_provider(BasicIdentityProvider)
        .crypto_provider(crypto)
        .mls_rules(rules)
        .group_state_storage(store.clone())
        .signing_identity(identity, secret, SUITE)
        .build();
    Ok((client, store))
}

/// With 16 bytes, as a UUID has.
const fn name(at: usize) -> [u8; 16] {
    (at as u128).to_be_bytes()
}

fn key_package<C: MlsConfig>(client: &Client<C>) -> Result<MlsMessage, Stopped> {
    client
        .generate_key_package_message(Default::default(), Default::default(), None)
        .map_err(failed("making a key package"))
}

/// A member, the coordinator or a device.
struct Party<C: MlsConfig> {
    group: Group<C>,
    store: InMemoryGroupStateStorage,
}

impl<C: MlsConfig> Party<C> {
    /// Adds devices, without a path. Their Welcome.
    fn add(&mut self, packages: Vec<MlsMessage>) -> Result<MlsMessage, Stopped> {
        let doing = "adding devices";
        let mut builder = self.group.commit_builder();
        for package in packages {
            builder = builder.add_member(package).map_err(failed(doing))?;
        }
        let output = builder.build().map_err(failed(doing))?;
        self.group.apply_pending_commit().map_err(failed(doing))?;
        output.welcome_messages.into_iter().next().ok_or_else(|| failed(doing)("there is no Welcome"))
    }

    /// Removes a leaf, with a path.
    fn remove(&mut self, leaf: u32) -> Result<Vec<u8>, Stopped> {
        let doing = "removing";
        let builder = self.group.commit_builder().remove_member(leaf).map_err(failed(doing))?;
        let output = builder.build().map_err(failed(doing))?;
        let commit = output.commit_message.to_bytes().map_err(failed(doing))?;
        self.group.apply_pending_commit().map_err(failed(doing))?;
        self.group.write_to_storage().map_err(failed(doing))?;
        Ok(commit)
    }

    /// Follows a commit. Whether it is still in the group.
    fn take(&mut self, commit: &[u8]) -> Result<bool, Stopped> {
        let doing = "following a commit";
        let message = MlsMessage::from_bytes(commit).map_err(failed(doing))?;
        let received = self.group.process_incoming_message(message).map_err(failed(doing))?;
        let ReceivedMessage::Commit(commit) = received else { return Err(failed(doing)("it is no commit")) };
        self.group.write_to_storage().map_err(failed(doing))?;
        Ok(!matches!(commit.effect, CommitEffect::Removed { .. }))
    }

    fn key(&self) -> Result<Vec<u8>, Stopped> {
        let key = self.group.export_secret(b"group key", &[], 32).map_err(failed("exporting the key"))?;
        Ok(key.as_bytes().to_vec())
    }
}

/// The group, and some of its devices.
struct Flat<C: MlsConfig> {
    server: Party<C>,
    /// What was published last.
    commit: Vec<u8>,
    sampled: Vec<Party<C>>,
    removed: Party<C>,
    turns: u32,
}

impl<C: MlsConfig + Send + Sync> Fleet for Flat<C> {
    fn remove(&mut self) -> Result<Published, Stopped> {
        // First the one that is here to be removed, and then those at the front of the tree.
        let leaf = match self.turns {
            0 => self.removed.group.current_member_index(),
            turn => turn,
        };
        self.turns += 1;
        self.commit = self.server.remove(leaf)?;
        Ok(Published { messages: 1, bytes: self.commit.len() as u64 })
    }

    fn sampled(&self) -> usize {
        self.sampled.len()
    }

    fn kinds(&self) -> Vec<Kind> {
        vec![Kind { name: "each", devices: self.server.group.roster().members_iter().count() - 1 }]
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
        match self.removed.take(&self.commit) {
            Err(why) => Err(why.to_string()),
            Ok(is_in) => {
                let left = self.removed.key().map_err(|why| why.to_string())?;
                match is_in || left == self.server.key().map_err(|why| why.to_string())? {
                    true => Ok(left),
                    false => Err("following a commit: it was removed".to_owned()),
                }
            }
        }
    }

    fn state_bytes(&self, sampled: usize) -> u64 {
        let Party { group, store } = &self.sampled[sampled];
        let stored = store.state(group.group_id()).ok().flatten();
        stored.map_or(0, |state| state.len() as u64)
    }
}
