//! The way up: this broker as an edge of another one, which the coordinator is connected to.
//!
//! ```text
//! wishes   what sessions want of the broker above: counted, and asked for as it changes
//! way      connects, again and again; what becomes of sessions while the way is lost
//! talk     one connection: packets up and down
//! ```
//!
//! The way up is one more listener for what devices say, as a coordinator is: what waits for it makes devices wait. Everything goes
//! at QoS 0: what a lost connection has swallowed, nobody knows, and so the sessions that live of it are ended; their
//! devices come back and say hello. Nothing is trusted on the way, for everything is authenticated end to end.
//!
//! Leaves to the policy, here and above, who may say what.

mod talk;
mod way;
mod wishes;

pub(crate) use way::Way;
pub(crate) use wishes::{Wish, Wishes};
