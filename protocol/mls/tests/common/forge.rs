//! Key packages written byte by byte (RFC 9420 §7.2, §10), with whatever keys a test wants in them.

use ed25519_dalek::{Signer as _, SigningKey};
use fleetkey_mls::AddDevice;
use fleetkey_wire::{DeviceId, Suite};
use rand_core::OsRng;
use x_wing::{Decapsulator as _, KeyExport as _};

/// What a fresh device can be added with; its leaf's encryption key and its init key are those given, or good ones.
pub fn packaged(suite: Suite, encryption_key: Option<&[u8]>, init_key: Option<&[u8]>) -> AddDevice {
    let device = DeviceId::random(&mut OsRng);
    let key = SigningKey::from_bytes(&super::seed());
    let good_key = || public_key(suite, super::seed());
    let encryption_key = encryption_key.map_or_else(good_key, Vec::from);
    let init_key = init_key.map_or_else(good_key, Vec::from);

    let mut leaf = Vec::new();
    vector(&mut leaf, &encryption_key);
    vector(&mut leaf, key.verifying_key().as_bytes());
    leaf.extend([0, 1]); // basic credential
    vector(&mut leaf, device.as_bytes());
    vector(&mut leaf, &[0, 1]); // versions
    vector(&mut leaf, &suite.code().to_be_bytes());
    vector(&mut leaf, &[]); // extensions
    vector(&mut leaf, &[]); // proposals
    vector(&mut leaf, &[0, 1]); // credentials
    leaf.push(1); // from a key package
    leaf.extend(0_u64.to_be_bytes());
    leaf.extend(u64::MAX.to_be_bytes());
    vector(&mut leaf, &[]); // extensions
    let signature = sign(&key, "LeafNodeTBS", &leaf);
    vector(&mut leaf, &signature);

    let mut package = vec![0, 1]; // mls10
    package.extend(suite.code().to_be_bytes());
    vector(&mut package, &init_key);
    package.extend(leaf);
    vector(&mut package, &[]); // extensions
    let signature = sign(&key, "KeyPackageTBS", &package);
    vector(&mut package, &signature);

    let key_package = [[0, 1, 0, 5].as_slice(), &package].concat(); // MLSMessage: mls10, key package
    AddDevice { device, signature_key: key.verifying_key().to_bytes(), key_package }
}

/// The public key of the suite's KEM whose private key is `private`.
pub fn public_key(suite: Suite, private: [u8; 32]) -> Vec<u8> {
    match suite {
        Suite::Aes128Gcm | Suite::ChaCha20Poly1305 => {
            x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(private)).to_bytes().to_vec()
        }
        Suite::XWingChaCha20Poly1305 => {
            x_wing::DecapsulationKey::from(private).encapsulation_key().to_bytes().to_vec()
        }
    }
}

/// SignWithLabel (RFC 9420 §5.1.2).
fn sign(key: &SigningKey, label: &str, content: &[u8]) -> [u8; 64] {
    let mut signed = Vec::new();
    vector(&mut signed, format!("MLS 1.0 {label}").as_bytes());
    vector(&mut signed, content);
    key.sign(&signed).to_bytes()
}

/// A variable-size vector (RFC 9420 §2.1.2).
fn vector(out: &mut Vec<u8>, bytes: &[u8]) {
    match u16::try_from(bytes.len()).unwrap() {
        length @ 0..64 => out.push(length as u8),
        length => out.extend((0x4000 | length).to_be_bytes()),
    }
    out.extend(bytes);
}
