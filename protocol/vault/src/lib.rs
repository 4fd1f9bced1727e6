//! Secrets at rest: a master key that stays outside the database, and the sealing of stored values under it.
//!
//! A sealed value says nothing but its length, can be opened only where it was sealed (purpose and location are bound),
//! and cannot be changed unnoticed. What it does not stop: an old value put back in its own place. Whoever can write
//! the database can roll it back; what is stored must show that itself (DESIGN: incarnations).
//!
//! [`files`] are how secrets are kept outside a database: their owner's alone, whole or not there.
//!
//! Leaves to others: where values are kept, and how the master key came to its file.

pub mod files;
mod master;
mod vault;

pub use master::{MASTER_KEY_BYTES, MasterKey, MasterKeyError};
pub use vault::{SEALED_OVERHEAD, Vault, VaultError};
