//! Clients made of plain openmls: they can do whatever MLS allows, and keep none of our rules.

use fleetkey_mls::{AddDevice, CellContext};
use fleetkey_wire::{CellId, DeviceId, Suite};
use openmls::prelude::tls_codec::{Deserialize as _, Serialize as _};
use openmls::prelude::*;
use openmls_rust_crypto::MemoryStorage;
use openmls_traits::OpenMlsProvider;
use openmls_traits::signatures::{Signer, SignerError};
use openmls_traits::types::SignatureScheme;

use super::crypto::Crypto;

/// Plain openmls, in all our suites.
#[derive(Default)]
pub(crate) struct Provider {
    crypto: Crypto,
    storage: MemoryStorage,
}

impl OpenMlsProvider for Provider {
    type CryptoProvider = Crypto;
    type RandProvider = Crypto;
    type StorageProvider = MemoryStorage;

    fn storage(&self) -> &MemoryStorage {
        &self.storage
    }

    fn crypto(&self) -> &Crypto {
        &self.crypto
    }

    fn rand(&self) -> &Crypto {
        &self.crypto
    }
}

/// An Ed25519 key that signs anything.
pub struct Key(ed25519_dalek::SigningKey);

impl Key {
    pub fn new() -> Self {
        Self::from_seed(&super::seed())
    }

    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    pub fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    pub fn with(&self, identity: &[u8; 16]) -> CredentialWithKey {
        CredentialWithKey {
            credential: BasicCredential::new(identity.to_vec()).into(),
            signature_key: self.public().as_slice().into(),
        }
    }
}

impl Signer for Key {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        use ed25519_dalek::Signer as _;
        Ok(self.0.sign(payload).to_bytes().to_vec())
    }

    fn signature_scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

/// A client in, or on its way into, one group.
pub struct Rogue {
    pub(crate) provider: Provider,
    pub key: Key,
    pub id: [u8; 16],
    pub suite: Ciphersuite,
    pub group: Option<MlsGroup>,
}

pub fn suite(suite: Suite) -> Ciphersuite {
    match suite {
        Suite::Aes128Gcm => Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
        Suite::ChaCha20Poly1305 => Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519,
        Suite::XWingChaCha20Poly1305 => Ciphersuite::MLS_256_XWING_CHACHA20POLY1305_SHA256_Ed25519,
    }
}

impl Rogue {
    pub fn device(ciphersuite: Suite) -> Self {
        let id = *DeviceId::random(&mut rand_core::OsRng).as_bytes();
        Self { provider: Provider::default(), key: Key::new(), id, suite: suite(ciphersuite), group: None }
    }

    /// The creator of a group, with any settings.
    pub fn creator(
        context: &CellContext,
        ciphersuite: Suite,
        key: Key,
        config: MlsGroupCreateConfig,
    ) -> Self {
        let provider = Provider::default();
        let id = *context.fleet.as_bytes();
        let group = MlsGroup::new_with_group_id(
            &provider,
            &key,
            &config,
            GroupId::from_slice(context.cell.as_bytes()),
            key.with(&id),
        )
        .unwrap();
        Self { provider, key, id, suite: suite(ciphersuite), group: Some(group) }
    }

    /// A coordinator that plays by our settings, but does what the test tells it to.
    pub fn coordinator(context: &CellContext, ciphersuite: Suite) -> Self {
        Self::creator(context, ciphersuite, Key::new(), config(ciphersuite))
    }

    pub fn device_id(&self) -> DeviceId {
        DeviceId::from_bytes(self.id)
    }

    pub fn builder(&self) -> KeyPackageBuilder {
        KeyPackage::builder()
            .key_package_lifetime(Lifetime::init(0, u64::MAX))
            .leaf_node_capabilities(Capabilities::new(None, Some(&[self.suite]), None, None, None))
    }

    pub fn package(&self) -> AddDevice {
        self.package_of(self.builder())
    }

    /// What it can be added with, made by `builder`.
    pub fn package_of(&self, builder: KeyPackageBuilder) -> AddDevice {
        let bundle = builder.build(self.suite, &self.provider, &self.key, self.key.with(&self.id)).unwrap();
        AddDevice {
            device: self.device_id(),
            signature_key: self.key.public(),
            key_package: MlsMessageOut::from(bundle.into_key_package()).to_bytes().unwrap(),
        }
    }

    pub fn join(&mut self, welcome: &[u8]) {
        let MlsMessageBodyIn::Welcome(welcome) =
            MlsMessageIn::tls_deserialize_exact(welcome).unwrap().extract()
        else {
            panic!("no Welcome")
        };
        let config = join_config();
        let staged = StagedWelcome::new_from_welcome(&self.provider, &config, welcome, None).unwrap();
        self.group = Some(staged.into_group(&self.provider).unwrap());
    }

    pub fn group(&mut self) -> &mut MlsGroup {
        self.group.as_mut().unwrap()
    }

    /// Adds devices by their public key packages, as the coordinator would: commit and one Welcome for all.
    pub fn add(&mut self, packages: &[&[u8]]) -> (Vec<u8>, Vec<u8>) {
        self.add_with(packages, Vec::new())
    }

    /// The same, with other proposals in the commit.
    pub fn add_with(&mut self, packages: &[&[u8]], proposals: Vec<Proposal>) -> (Vec<u8>, Vec<u8>) {
        let packages: Vec<_> = packages.iter().map(|bytes| key_package(&self.provider, bytes)).collect();
        let Self { provider, key, group, .. } = self;
        let group = group.as_mut().unwrap();
        let bundle = group
            .commit_builder()
            .propose_adds(packages)
            .add_proposals(proposals)
            .load_psks(provider.storage())
            .unwrap()
            .build(provider.rand(), provider.crypto(), key, |_| true)
            .unwrap()
            .stage_commit(provider)
            .unwrap();
        let (commit, welcome, _) = bundle.into_messages();
        group.merge_pending_commit(provider).unwrap();
        (commit.to_bytes().unwrap(), welcome.unwrap().to_bytes().unwrap())
    }

    /// A proposal of an external pre-shared key, under any name.
    pub fn psk(&self, name: &[u8], secret: &[u8; 32]) -> Proposal {
        use openmls::schedule::{ExternalPsk, PreSharedKeyId, Psk};
        let named = Psk::External(ExternalPsk::new(name.to_vec()));
        let id = PreSharedKeyId::new(self.suite, self.provider.rand(), named).unwrap();
        id.store(&self.provider, secret).unwrap();
        Proposal::PreSharedKey(Box::new(PreSharedKeyProposal::new(id)))
    }

    /// A commit of `proposals`, staged and merged.
    pub fn commit(&mut self, proposals: Vec<Proposal>) -> Vec<u8> {
        let commit = self.stage(proposals);
        let Self { provider, group, .. } = self;
        group.as_mut().unwrap().merge_pending_commit(provider).unwrap();
        commit
    }

    /// A commit of `proposals` that it does not merge itself.
    pub fn stage(&mut self, proposals: Vec<Proposal>) -> Vec<u8> {
        let Self { provider, key, group, .. } = self;
        let bundle = group
            .as_mut()
            .unwrap()
            .commit_builder()
            .add_proposals(proposals)
            .force_self_update(true)
            .load_psks(provider.storage())
            .unwrap()
            .build(provider.rand(), provider.crypto(), key, |_| true)
            .unwrap()
            .stage_commit(provider)
            .unwrap();
        bundle.into_commit().to_bytes().unwrap()
    }

    /// An Update proposal, under its own or another key.
    pub fn update(&mut self, other: Option<&Key>) -> Vec<u8> {
        let Self { provider, key, group, id, .. } = self;
        let group = group.as_mut().unwrap();
        let (message, _) = match other {
            None => group.propose_self_update(provider, key, LeafNodeParameters::default()).unwrap(),
            Some(new) => {
                let bundle = NewSignerBundle { signer: new, credential_with_key: new.with(id) };
                let parameters = LeafNodeParameters::default();
                group.propose_self_update_with_new_signer(provider, key, bundle, parameters).unwrap()
            }
        };
        message.to_bytes().unwrap()
    }

    /// An Update proposal with another identity, under its own key.
    pub fn update_as(&mut self, identity: &[u8; 16]) -> Vec<u8> {
        let Self { provider, key, group, .. } = self;
        let parameters = LeafNodeParameters::builder().with_credential_with_key(key.with(identity)).build();
        let (message, _) = group.as_mut().unwrap().propose_self_update(provider, key, parameters).unwrap();
        message.to_bytes().unwrap()
    }

    /// Takes in a proposal of another member.
    pub fn take_in(&mut self, proposal: &[u8]) {
        let Self { provider, group, .. } = self;
        let group = group.as_mut().unwrap();
        let message = MlsMessageIn::tls_deserialize_exact(proposal).unwrap();
        let processed =
            group.process_message(provider, message.try_into_protocol_message().unwrap()).unwrap();
        let ProcessedMessageContent::ProposalMessage(proposal) = processed.into_content() else {
            panic!("no proposal")
        };
        group.store_pending_proposal(provider.storage(), *proposal).unwrap();
    }

    pub fn follow(&mut self, commit: &[u8]) {
        let Self { provider, group, .. } = self;
        let group = group.as_mut().unwrap();
        let message = MlsMessageIn::tls_deserialize_exact(commit).unwrap();
        let processed =
            group.process_message(provider, message.try_into_protocol_message().unwrap()).unwrap();
        let ProcessedMessageContent::StagedCommitMessage(staged) = processed.into_content() else {
            panic!("no commit")
        };
        group.merge_staged_commit(provider, *staged).unwrap();
    }

    pub fn authenticator8(&self) -> [u8; 8] {
        *self.group.as_ref().unwrap().epoch_authenticator().as_slice().first_chunk().unwrap()
    }
}

/// Settings of a group like ours.
pub fn config(ciphersuite: Suite) -> MlsGroupCreateConfig {
    MlsGroupCreateConfig::builder()
        .ciphersuite(suite(ciphersuite))
        .wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .use_ratchet_tree_extension(true)
        .build()
}

pub fn join_config() -> MlsGroupJoinConfig {
    MlsGroupJoinConfig::builder()
        .wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .use_ratchet_tree_extension(true)
        .build()
}

pub(crate) fn key_package(provider: &Provider, bytes: &[u8]) -> KeyPackage {
    let MlsMessageBodyIn::KeyPackage(package) = MlsMessageIn::tls_deserialize_exact(bytes).unwrap().extract()
    else {
        panic!("no key package")
    };
    package.validate(provider.crypto(), ProtocolVersion::Mls10).unwrap()
}

/// The raw bytes of `package`'s public encryption key.
pub fn encryption_key(package: &KeyPackage) -> Vec<u8> {
    package.leaf_node().encryption_key().tls_serialize_detached().unwrap()[1..].to_vec()
}

pub fn cell_of(message: &[u8]) -> CellId {
    let message = MlsMessageIn::tls_deserialize_exact(message).unwrap().try_into_protocol_message().unwrap();
    CellId::from_bytes(message.group_id().as_slice().try_into().unwrap())
}
