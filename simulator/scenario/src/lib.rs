//! What a simulated fleet goes through, in a small language; and a world in virtual time to run it in.
//!
//! ```text
//! units             "30s", "10%", "100/s", "20kB"
//! scenario          a fleet, phases, targets
//! parse             the same, from text
//! shipped           those that come with the program
//! world             what a scenario needs of a fleet
//! run               walks through the phases and fills a report
//! ledger            who owes which key since when
//! in_virtual_time   a world with the real cores, and a simulated clock and network
//! command           `fleetkey-sim run`
//! twin              `fleetkey-sim twin`: a fleet like one that there is
//! ```
//!
//! Deliberately absent: sockets, brokers, real time. They are another world, where the same scenarios run.

pub mod command;
mod dice;
mod in_virtual_time;
mod ledger;
mod parse;
mod run;
mod scenario;
mod shipped;
pub mod twin;
mod units;
mod world;

pub use in_virtual_time::{VirtualWorld, policy};
pub use ledger::Ledger;
pub use parse::BadScenario;
pub use run::{RunOptions, Unwatched, Watch, run};
pub use scenario::{
    Act, Amount, Class, Fleet, Group, NetworkProfile, Phase, Scenario, Sleep, Targets, Which,
};
pub use shipped::{SHIPPED, shipped};
pub use units::people;
pub use world::{Looked, Until, Waited, World};
