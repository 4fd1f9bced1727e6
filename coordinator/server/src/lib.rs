//! The coordinator's service: the deciding thread with its database, the connection to the broker, the policy feed,
//! the HTTP API, and what the `fleetkey` command line is made of.
//!
//! [`Service`] runs in any process; [`serve`] puts one together from a configuration file. What is decided is
//! `fleetkey-coordinator-core`'s; here it is stored first, and then done.

pub mod api;
mod authority;
mod bundle;
mod clock;
pub mod config;
mod cpu;
mod engine;
mod feed;
mod files;
mod fleet;
mod handle;
pub mod http;
mod init;
mod link;
mod meter;
mod serve;
mod service;
mod stats;
mod store;

pub use authority::Authority;
pub use bundle::{check_bundle_directory, write_bundle};
pub use clock::unix_seconds;
pub use engine::CommandFailed;
pub use feed::{PolicyFeed, PolicyStream};
pub use files::FileError;
pub use fleet::{FIRST_GENERATION, Fleet, Party};
pub use handle::ServiceHandle;
pub use init::{InitError, InitOptions, Initialised, init};
pub use link::mqtt_options;
pub use serve::{ServeError, serve};
pub use service::{Service, ServiceConfig, StartError};
pub use stats::{Stats, Traffic};
pub use store::{OpenError, SCHEMA_VERSION, SqliteStore};
