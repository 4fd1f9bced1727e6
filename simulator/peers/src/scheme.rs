//! What a way of giving a group a new key has to be able to do, so that all of them are measured alike.
//!
//! Leaves the measuring to `measure`.

use crate::budget::Budget;

/// Why a scheme has no figures for a size.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// It takes longer than it may.
    #[error("{doing} took longer than {seconds} s")]
    OutOfTime {
        /// What was not finished.
        doing: String,
        /// What it had, in all.
        seconds: u64,
    },
    /// It cannot: what its library said.
    #[error("{doing}: {why}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// What was said.
        why: String,
    },
}

/// Turns what a library says into [`Stopped::Failed`].
pub(crate) fn failed<E: std::fmt::Display>(doing: &'static str) -> impl FnOnce(E) -> Stopped {
    move |error| Stopped::Failed { doing, why: error.to_string() }
}

/// A way of giving a group a new key.
pub trait Scheme {
    /// Its name, in a table.
    fn name(&self) -> String;

    /// What was measured, in a sentence or two.
    fn about(&self) -> &'static str;

    /// Whether it is ours.
    fn is_ours(&self) -> bool {
        false
    }

    /// A fleet of so many devices that all hold the group's key.
    ///
    /// # Errors
    /// [`Stopped`], when that takes too long or cannot be done.
    fn set_up(&self, devices: usize, budget: &Budget) -> Result<Box<dyn Fleet>, Stopped>;
}

/// What the coordinator handed to whatever carries messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Messages, each counted once however many devices it reaches.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Devices to which a removal costs the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Which they are.
    pub name: &'static str,
    /// How many of them remain.
    pub devices: usize,
}

/// A fleet with a group key: the coordinator with all that it holds for all devices, and some of the devices.
pub trait Fleet: Send {
    /// The coordinator removes a device, stores what follows, and has the messages ready. Measured.
    ///
    /// The first to be removed is the one that [`Self::removed_derives`] asks.
    ///
    /// # Errors
    /// [`Stopped::Failed`].
    fn remove(&mut self) -> Result<Published, Stopped>;

    /// How many of the remaining devices there are in truth, and not only on the coordinator's side.
    fn sampled(&self) -> usize;

    /// The kinds of devices, as the last removal left them.
    fn kinds(&self) -> Vec<Kind>;

    /// Which of them a sampled device is.
    fn kind_of(&self, sampled: usize) -> usize;

    /// A sampled device takes what was published for it, and stores what follows. The bytes that reached it. Measured.
    ///
    /// # Errors
    /// [`Stopped::Failed`].
    fn deliver(&mut self, sampled: usize) -> Result<u64, Stopped>;

    /// The group's key, as a sampled device has it.
    ///
    /// # Errors
    /// [`Stopped::Failed`].
    fn key_of(&self, sampled: usize) -> Result<Vec<u8>, Stopped>;

    /// The group's key, as the coordinator has it.
    ///
    /// # Errors
    /// [`Stopped::Failed`].
    fn coordinator_key(&self) -> Result<Vec<u8>, Stopped>;

    /// What the first device to be removed makes of all that was published, by its own code: the key that it ends with,
    /// or why it has none.
    fn removed_derives(&mut self) -> Result<Vec<u8>, String>;

    /// Bytes that a sampled device has stored.
    fn state_bytes(&self, sampled: usize) -> u64;

    /// What has to happen before the next removal, and counts for nobody.
    ///
    /// # Errors
    /// [`Stopped::Failed`].
    fn settle(&mut self) -> Result<(), Stopped> {
        Ok(())
    }

    /// The coordinator's CPU time in seconds for taking in one device's confirmation, where there are confirmations.
    fn confirmation_cpu_seconds(&self) -> Option<f64> {
        None
    }
}
