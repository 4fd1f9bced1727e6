//! The tree of keys, as the server has it, and the path through it that a device has.
//!
//! Nodes are named by their level, the root's being 0, and their place in it. A node is there as long as a device is below
//! it. A rekey message is: sequence, the leaf that is gone, the new keys from the lowest to the root, each wrapped for
//! each child that is there, in order; and a signature over all that. Who is there, every device can tell from the
//! removals so far.

use std::collections::BTreeSet;

use ed25519_dalek::{Signature, Signer as _, SigningKey, Verifier as _, VerifyingKey};
use rand_core::CryptoRngCore;

use super::wrap::{Key, WRAPPED_BYTES, unwrap, wrap};

const HEADER_BYTES: usize = 12;
const SIGNATURE_BYTES: usize = 64;

/// The shape of a tree: what the server and all devices know of it.
#[derive(Debug, Clone)]
struct Shape {
    degree: usize,
    devices: usize,
    /// Levels below the root.
    height: usize,
    /// Leaves that are gone.
    gone: BTreeSet<usize>,
}

impl Shape {
    fn new(degree: usize, devices: usize) -> Self {
        let mut height = 1;
        while degree.pow(height as u32) < devices {
            height += 1;
        }
        Self { degree, devices, height, gone: BTreeSet::new() }
    }

    /// The node of a level that is above a leaf.
    fn above(&self, leaf: usize, level: usize) -> usize {
        leaf / self.degree.pow((self.height - level) as u32)
    }

    fn nodes_of(&self, level: usize) -> usize {
        self.devices.div_ceil(self.degree.pow((self.height - level) as u32))
    }

    /// Whether there is a device below a node.
    fn is_there(&self, level: usize, node: usize) -> bool {
        let width = self.degree.pow((self.height - level) as u32);
        let leaves = node * width..((node + 1) * width).min(self.devices);
        leaves.start < leaves.end && self.gone.range(leaves.clone()).count() < leaves.len()
    }

    fn children_of(&self, level: usize, node: usize) -> impl Iterator<Item = usize> {
        let children = node * self.degree..(node + 1) * self.degree;
        children.filter(move |child| self.is_there(level + 1, *child))
    }

    /// The levels on which keys are replaced when `leaf` is gone, from the lowest to the root.
    fn replaced(&self, leaf: usize) -> impl Iterator<Item = usize> {
        (0..self.height).rev().filter(move |level| self.is_there(*level, self.above(leaf, *level)))
    }
}

/// Binds a wrapped key to its node.
fn name(level: usize, node: usize) -> [u8; 9] {
    let mut name = [0; 9];
    name[0] = level as u8;
    name[1..].copy_from_slice(&(node as u64).to_be_bytes());
    name
}

/// The key server.
#[derive(Debug, Clone)]
pub(super) struct Server {
    shape: Shape,
    signing: SigningKey,
    sequence: u64,
    /// The keys of each level, the root's first.
    keys: Vec<Vec<Key>>,
}

impl Server {
    pub(super) fn new(degree: usize, devices: usize, signing: SigningKey) -> Self {
        let shape = Shape::new(degree, devices);
        let mut rng = rand_core::OsRng;
        let keys = (0..=shape.height).map(|level| vec_of_keys(shape.nodes_of(level), &mut rng)).collect();
        Self { shape, signing, sequence: 0, keys }
    }

    /// What a device is given when it joins.
    pub(super) fn device(&self, leaf: usize) -> Device {
        let path = (0..=self.shape.height).map(|level| self.keys[level][self.shape.above(leaf, level)]);
        Device {
            shape: self.shape.clone(),
            leaf,
            server: self.signing.verifying_key(),
            sequence: self.sequence,
            path: path.collect(),
        }
    }

    /// Removes a leaf. The one message that brings everybody else to new keys.
    pub(super) fn remove(&mut self, leaf: usize, rng: &mut impl CryptoRngCore) -> Vec<u8> {
        self.shape.gone.insert(leaf);
        self.sequence += 1;
        let mut message =
            Vec::with_capacity(HEADER_BYTES + self.shape.height * self.shape.degree * WRAPPED_BYTES);
        message.extend_from_slice(&self.sequence.to_be_bytes());
        message.extend_from_slice(&(leaf as u32).to_be_bytes());
        for level in self.shape.replaced(leaf) {
            let node = self.shape.above(leaf, level);
            let mut key = [0; 16];
            rng.fill_bytes(&mut key);
            for child in self.shape.children_of(level, node) {
                // Of a child on the path this is its new key already.
                let under = &self.keys[level + 1][child];
                message.extend_from_slice(&wrap(under, &key, self.sequence, &name(level, node)));
            }
            self.keys[level][node] = key;
        }
        let signature = self.signing.sign(&message);
        message.extend_from_slice(&signature.to_bytes());
        message
    }

    pub(super) fn degree(&self) -> usize {
        self.shape.degree
    }

    pub(super) fn group_key(&self) -> &Key {
        &self.keys[0][0]
    }
}

fn vec_of_keys(count: usize, rng: &mut impl CryptoRngCore) -> Vec<Key> {
    let mut keys = vec![[0; 16]; count];
    keys.iter_mut().for_each(|key| rng.fill_bytes(key));
    keys
}

/// A device: the keys from the root to its leaf.
#[derive(Debug, Clone)]
pub(super) struct Device {
    shape: Shape,
    leaf: usize,
    server: VerifyingKey,
    sequence: u64,
    /// The root's first.
    path: Vec<Key>,
}

impl Device {
    /// Follows a removal.
    pub(super) fn take(&mut self, message: &[u8]) -> Result<(), String> {
        let (signed, signature) =
            message.split_last_chunk::<SIGNATURE_BYTES>().ok_or("the message is too short")?;
        self.server
            .verify(signed, &Signature::from_bytes(signature))
            .map_err(|_| "the signature is not the server's")?;
        let (sequence, rest) = signed.split_first_chunk::<8>().ok_or("the message is too short")?;
        let (gone, wrapped) = rest.split_first_chunk::<4>().ok_or("the message is too short")?;
        let (sequence, gone) = (u64::from_be_bytes(*sequence), u32::from_be_bytes(*gone) as usize);
        if sequence != self.sequence + 1 {
            return Err(format!("it is message {sequence} after {}", self.sequence));
        }
        if gone == self.leaf {
            return Err("it is the one that is gone".to_owned());
        }
        let mut shape = self.shape.clone();
        shape.gone.insert(gone);
        let mut path = self.path.clone();
        let mut wrapped = wrapped.as_chunks::<WRAPPED_BYTES>().0.iter();
        for level in shape.replaced(gone) {
            let node = shape.above(gone, level);
            let children: Vec<usize> = shape.children_of(level, node).collect();
            let of_node: Vec<_> = wrapped.by_ref().take(children.len()).collect();
            if shape.above(self.leaf, level) != node {
                continue;
            }
            let own = shape.above(self.leaf, level + 1);
            let key = children
                .iter()
                .position(|child| *child == own)
                .and_then(|at| unwrap(&path[level + 1], of_node.get(at)?, sequence, &name(level, node)));
            path[level] = key.ok_or_else(|| format!("its key of level {level} does not open"))?;
        }
        self.shape = shape;
        self.path = path;
        self.sequence = sequence;
        Ok(())
    }

    /// Tries every key it has on all that was wrapped, and whatever that yields again, as one that was removed would.
    pub(super) fn take_anyhow(&mut self, message: &[u8]) -> Result<(), String> {
        let refused = self.take(message).err().ok_or("it was let through")?;
        let sequence = self.sequence + 1;
        let signed = message.len().saturating_sub(SIGNATURE_BYTES);
        let wrapped = message.get(HEADER_BYTES..signed).unwrap_or_default().as_chunks::<WRAPPED_BYTES>().0;
        let mut keys = self.path.clone();
        let mut tried = 0;
        while let Some(key) = keys.get(tried).copied() {
            tried += 1;
            for level in 0..self.shape.height {
                let name = name(level, self.shape.above(self.leaf, level));
                let opened = wrapped.iter().filter_map(|wrapped| unwrap(&key, wrapped, sequence, &name));
                for opened in opened.filter(|opened| !keys.contains(opened)).collect::<Vec<_>>() {
                    self.path[level] = opened;
                    keys.push(opened);
                }
            }
        }
        match keys.len() > self.path.len() {
            true => Ok(()),
            false => Err(format!("{refused}, and none of its {tried} keys opens anything")),
        }
    }

    pub(super) fn leaf(&self) -> usize {
        self.leaf
    }

    pub(super) fn group_key(&self) -> &Key {
        &self.path[0]
    }

    /// Its keys, the server's public key, its place, the tree's size, and the sequence. Not who is gone: of that it needs
    /// only what is beside its own path, and that is little.
    pub(super) fn state_bytes(&self) -> u64 {
        (self.path.len() * 16 + self.server.as_bytes().len() + 4 + 4 + 8) as u64
    }
}

#[cfg(test)]
mod tests {
    use rand_core::OsRng;

    use super::*;

    fn server(degree: usize, devices: usize) -> Server {
        Server::new(degree, devices, SigningKey::generate(&mut OsRng))
    }

    #[test]
    fn everybody_follows_any_order_of_removals_in_trees_of_any_shape() {
        for (degree, count) in [(2, 2), (2, 7), (2, 16), (3, 10), (4, 17), (4, 64)] {
            let mut server = server(degree, count);
            let mut devices: Vec<Device> = (0..count).map(|leaf| server.device(leaf)).collect();
            // Steps over the leaves in an order that empties some nodes early.
            let mut at = 0;
            while devices.len() > 1 {
                at = (at + 5) % devices.len();
                let mut gone = devices.remove(at);
                let message = server.remove(gone.leaf(), &mut OsRng);
                for device in &mut devices {
                    device.take(&message).expect("it remains");
                    assert_eq!(device.group_key(), server.group_key());
                }
                assert!(gone.take_anyhow(&message).is_err());
                assert_ne!(gone.group_key(), server.group_key());
            }
        }
    }

    #[test]
    fn a_removal_takes_one_wrap_less_than_degree_times_depth() {
        let mut binary = server(2, 1 << 17);
        let message = binary.remove(77, &mut OsRng);
        assert_eq!(message.len(), HEADER_BYTES + 33 * WRAPPED_BYTES + SIGNATURE_BYTES);
        let mut quaternary = server(4, 1 << 16);
        let message = quaternary.remove(77, &mut OsRng);
        assert_eq!(message.len(), HEADER_BYTES + 31 * WRAPPED_BYTES + SIGNATURE_BYTES);
    }

    #[test]
    fn a_removed_device_that_kept_a_replaced_key_would_be_found_out() {
        // The sibling of the removed device, taken for it: the attempt is a real one.
        let mut server = server(2, 8);
        let mut sibling = server.device(1);
        let message = server.remove(0, &mut OsRng);
        sibling.leaf = 0;
        assert!(sibling.take_anyhow(&message).is_ok());
        assert_eq!(sibling.group_key(), server.group_key());
    }

    #[test]
    fn a_message_that_another_signed_changes_nothing() {
        let mut server = server(2, 8);
        let mut device = server.device(3);
        let before = device.path.clone();
        let mut message = server.remove(0, &mut OsRng);
        message[20] ^= 1;
        assert!(device.take(&message).is_err());
        assert_eq!(device.path, before);
    }
}
