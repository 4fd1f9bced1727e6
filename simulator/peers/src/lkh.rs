//! A logical key hierarchy (RFC 2627 §5.4): a tree of symmetric keys, each device holding those from its leaf to the root.
//!
//! When a device leaves, every key that it held but its own is replaced, each sent under the keys of the node's children:
//! one message for everybody, signed once. Leaves the tree and a device's side to `tree`, and keys under keys to `wrap`.

mod tree;
mod wrap;

use ed25519_dalek::SigningKey;
use rand_core::OsRng;

use self::tree::{Device, Server};
use crate::budget::Budget;
use crate::scheme::{Fleet, Kind, Published, Scheme, Stopped, failed};

/// Devices that take part in truth, apart from those beside the one that is removed first.
const SAMPLED: usize = 16;

/// A key tree whose nodes have so many children.
#[derive(Debug, Clone, Copy)]
pub struct KeyTree {
    /// Children of a node, at least 2.
    pub degree: usize,
}

impl Scheme for KeyTree {
    fn name(&self) -> String {
        match self.degree {
            2 => "LKH, binary".to_owned(),
            degree => format!("LKH, {degree}-ary"),
        }
    }

    fn about(&self) -> &'static str {
        "A full tree of 128-bit keys, replaced from the removed leaf's parent to the root, each wrapped with AES-128-GCM under \
         its children's keys; one signed message to everybody, from which places in the tree are not spelled out but \
         follow from the leaf that is gone. Every key is real; some 20 devices take part."
    }

    fn set_up(&self, devices: usize, _: &Budget) -> Result<Box<dyn Fleet>, Stopped> {
        let signing = SigningKey::generate(&mut OsRng);
        let server = Server::new(self.degree, devices, signing);
        let beside = 1..self.degree.min(devices);
        let step = (devices / SAMPLED).max(1);
        let elsewhere = (self.degree..devices).step_by(step).take(SAMPLED);
        let sampled: Vec<Device> = beside.chain(elsewhere).map(|leaf| server.device(leaf)).collect();
        let removed = server.device(0);
        let before = (server.clone(), sampled.clone());
        Ok(Box::new(Lkh { devices, server, message: Vec::new(), sampled, removed, before }))
    }
}

/// The key server, and some of its devices.
struct Lkh {
    /// How many there are before the removal.
    devices: usize,
    server: Server,
    /// What was published last.
    message: Vec<u8>,
    sampled: Vec<Device>,
    removed: Device,
    /// What each removal begins with.
    before: (Server, Vec<Device>),
}

/// Whose path to the root is also the removed leaf's, all of it; and who shares less of it.
const BESIDE: usize = 0;
const ELSEWHERE: usize = 1;

impl Fleet for Lkh {
    fn remove(&mut self) -> Result<Published, Stopped> {
        self.message = self.server.remove(self.removed.leaf(), &mut OsRng);
        Ok(Published { messages: 1, bytes: self.message.len() as u64 })
    }

    fn sampled(&self) -> usize {
        self.sampled.len()
    }

    fn kinds(&self) -> Vec<Kind> {
        let beside = self.server.degree().min(self.devices) - 1;
        vec![
            Kind { name: "beside the removed device", devices: beside },
            Kind { name: "elsewhere in the tree", devices: self.devices - 1 - beside },
        ]
    }

    fn kind_of(&self, sampled: usize) -> usize {
        if self.sampled[sampled].leaf() < self.server.degree() { BESIDE } else { ELSEWHERE }
    }

    fn deliver(&mut self, sampled: usize) -> Result<u64, Stopped> {
        self.sampled[sampled].take(&self.message).map_err(failed("taking new keys"))?;
        Ok(self.message.len() as u64)
    }

    fn key_of(&self, sampled: usize) -> Result<Vec<u8>, Stopped> {
        Ok(self.sampled[sampled].group_key().to_vec())
    }

    fn coordinator_key(&self) -> Result<Vec<u8>, Stopped> {
        Ok(self.server.group_key().to_vec())
    }

    fn removed_derives(&mut self) -> Result<Vec<u8>, String> {
        self.removed.take_anyhow(&self.message)?;
        Ok(self.removed.group_key().to_vec())
    }

    fn state_bytes(&self, sampled: usize) -> u64 {
        self.sampled[sampled].state_bytes()
    }

    fn settle(&mut self) -> Result<(), Stopped> {
        (self.server, self.sampled) = self.before.clone();
        Ok(())
    }
}
