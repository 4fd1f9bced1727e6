//! What stands in front of every broker of ours, whatever carries the messages behind it.
//!
//! ```text
//! socket      addresses listened on
//! handshake   TLS, so many at once
//! papers      who the certificate says it is, and for how long
//! addresses   how many connections each address has
//! rate        how much a device may say
//! certificate_file  the broker's own certificate, read again when it changes
//! crl_file    certificates that no longer count
//! settings    TLS, policy and logs as they stand in a file
//! process     logs, files, /metrics
//! ```
//!
//! Deliberately absent: MQTT, sessions, what the policy decides.

pub mod addresses;
pub mod certificate_file;
pub mod crl_file;
pub mod handshake;
pub mod metrics_endpoint;
pub mod papers;
pub mod process;
pub mod rate;
pub mod settings;
pub mod socket;
