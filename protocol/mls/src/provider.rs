//! What every operation on a group needs: the crypto engine, its randomness, and the storage; and the settings
//! all our groups share.

use fleetkey_wire::Suite;
use openmls::prelude::{
    Capabilities, Ciphersuite, CredentialType, Lifetime, MlsGroupJoinConfig,
    PURE_CIPHERTEXT_WIRE_FORMAT_POLICY, ProtocolVersion, SenderRatchetConfiguration,
};
use openmls_traits::OpenMlsProvider;

use crate::crypto::Crypto;
use crate::slots::{Changes, Slots};
use crate::storage::Storage;

/// A fresh engine over one group's slots, for the length of one operation. Its randomness is seeded from the
/// operating system each time.
pub(crate) struct Provider<'a> {
    crypto: Crypto,
    storage: Storage<'a>,
}

impl<'a> Provider<'a> {
    pub(crate) fn over(slots: &'a Slots) -> Self {
        Self { crypto: Crypto::default(), storage: Storage::over(slots) }
    }

    pub(crate) fn into_changes(self) -> Changes {
        self.storage.into_changes()
    }
}

impl<'a> OpenMlsProvider for Provider<'a> {
    type CryptoProvider = Crypto;
    type RandProvider = Crypto;
    type StorageProvider = Storage<'a>;

    fn storage(&self) -> &Storage<'a> {
        &self.storage
    }

    fn crypto(&self) -> &Crypto {
        &self.crypto
    }

    fn rand(&self) -> &Crypto {
        &self.crypto
    }
}

/// The MLS cipher suite of `suite`.
pub(crate) const fn ciphersuite(suite: Suite) -> Ciphersuite {
    match suite {
        Suite::Aes128Gcm => Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
        Suite::ChaCha20Poly1305 => Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519,
        Suite::XWingChaCha20Poly1305 => Ciphersuite::MLS_256_XWING_CHACHA20POLY1305_SHA256_Ed25519,
    }
}

/// What our leaves say they can do: no more than the cell uses, because every member stores every leaf.
pub(crate) fn capabilities(suite: Suite) -> Capabilities {
    Capabilities::new(
        Some(&[ProtocolVersion::Mls10]),
        Some(&[ciphersuite(suite)]),
        Some(&[]),
        Some(&[]),
        Some(&[CredentialType::Basic]),
    )
}

/// A key package's lifetime: devices may have no clock, and a leaf that expires would make every later commit
/// fail at the devices that have one. The coordinator judges freshness by other means.
pub(crate) fn lifetime() -> Lifetime {
    Lifetime::init(0, u64::MAX)
}

/// Commits are all that travels in a cell: encrypted, unpadded, in order, each epoch's keys gone with it.
pub(crate) fn join_config() -> MlsGroupJoinConfig {
    MlsGroupJoinConfig::builder()
        .wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .padding_size(0)
        .max_past_epochs(0)
        .number_of_resumption_psks(0)
        .use_ratchet_tree_extension(true)
        .sender_ratchet_configuration(ratchets())
        .build()
}

/// A sender has one handshake message per epoch, two at most; skipping far ahead would only cost the receiver.
pub(crate) fn ratchets() -> SenderRatchetConfiguration {
    SenderRatchetConfiguration::new(0, 8)
}
