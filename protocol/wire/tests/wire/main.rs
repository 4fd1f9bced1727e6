//! What the formats look like, that they bear hostile input, and that the link holds against whoever carries it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod binding;
mod formats;
mod hostile;
mod link;
mod link_adversary;
mod link_restarts;
mod properties;
mod scripted;
mod sizes;
mod support;
mod vectors;
