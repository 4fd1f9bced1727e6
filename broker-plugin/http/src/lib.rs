//! The policy's answers over HTTP, for brokers that ask before they let somebody do something: EMQX 5 and RabbitMQ.
//!
//! ```text
//! broker ── "may CN x, client id y, publish to z?" ──▶ dialect ──▶ Gate: fleetkey_policy ──▶ allow or deny
//! broker ◀── "end the session of x" ── Kicker ◀── what follows from a change of policy
//! ```
//!
//! The broker has checked the client's certificate, against the fleet's roots and nothing else, and tells its common
//! name. Whoever is not known is denied, and so is every device while the policy is not known or old.
//!
//! Deliberately absent: certificates, the policy itself, settings, and any limit on rates: those are the broker's.

mod dialect;
mod gate;
mod kick;
mod party;
mod refused;
mod server;

pub use gate::{Gate, Question};
pub use kick::{Kicker, Management, ManagementKind};
pub use refused::Refused;
pub use server::{MAX_REQUEST_BYTES, serve};
