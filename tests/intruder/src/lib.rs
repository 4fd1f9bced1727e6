//! A scripted intruder: the same attempts against any broker, with real certificates of a fleet made for the occasion.
//!
//! What a broker answers proves little: some acknowledge what they then throw away. So the judge is what arrives.
//! Honest clients are connected all along, a coordinator and two devices, and every attempt carries a mark of its own: an
//! attempt got through when its mark reached somebody, when a mark of somebody else's reached the intruder, or when an
//! honest session ended.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`cast`] | the fleet, its honest parties, and certificates that should open no door |
//! | [`client`] | MQTT by hand over TLS, blocking |
//! | [`script`] | the attempts, and the report |
//!
//! Leaves to each test how its broker is started, and what that broker is known to let through.

pub mod cast;
pub mod client;
pub mod script;

pub use cast::Cast;
pub use client::{Client, Level, Target};
pub use script::{Report, run, run_across};
