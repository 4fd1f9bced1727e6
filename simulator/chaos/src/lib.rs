//! Whole fleets in virtual time, with every fault, against a reference model.
//!
//! The real coordinator core with the real order of deciding, storing and speaking, the real agent cores and real MLS run
//! in one thread; time, network, disks and chance are simulated from one seed. A plan drawn from the seed says what goes
//! wrong and when. After each step, and when the faults have stopped, the model says whether the rules still hold; a run that
//! broke one is told by its seed, and minimised.
//!
//! What is the same in two runs of one seed is the schedule: who says what to whom, when, and what breaks. The bytes
//! of HPKE are not: the MLS engine takes no randomness from outside.
//! Deliberately absent: sockets, SQLite, threads, and any decision of the protocol.

mod act;
mod check;
pub mod command;
mod device;
mod dice;
mod disk;
mod fleet;
mod heal;
mod host;
mod hostile;
mod hunt;
mod image;
mod minimise;
mod model;
mod named;
mod network;
mod operator;
mod plan;
mod power;
mod profile;
mod rogue;
mod run;
mod world;

pub use hunt::{Hunted, hunt};
pub use minimise::minimise;
pub use model::{Rule, Violation};
pub use named::{NAMED, Named};
pub use profile::Profile;
pub use run::{Figures, Options, Outcome, plan_of, run};
