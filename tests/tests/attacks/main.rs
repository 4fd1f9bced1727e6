//! Attacks by name, on both cores together: each is refused by name, each leaves what everybody has stored as it was, and
//! beside each stands the same act done rightly, which succeeds.
//!
//! Attacks on a broker's door are in `broker-plugin/rumqttd/tests/attacks.rs`, on the enrolment server in
//! `coordinator/est/tests/attacks.rs`; `docs/SECURITY.md` has the list of all.

mod bombs;
mod devices;
mod downgrades;
mod insider;
mod keys;
mod papers;
mod scene;
