//! The client against brokers: a real one, and some that misbehave.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]
#![expect(clippy::wildcard_enum_match_arm, reason = "whatever else comes fails the test")]

mod hostile;
mod mosquitto;
mod support;
