//! Attacks by name, on both cores together: each is refused by name, each leaves what everybody has stored as it was, and
//! beside each stands the same act done rightly, which succeeds.
//!
//! Attacks on the enrolment server are in `coordinator/est/tests/attacks/`; `docs/SECURITY.md` has the list of all, and
//! says where those on a broker's door are tried.

mod bombs;
mod devices;
mod downgrades;
mod insider;
mod keys;
mod papers;
mod scene;
