//! A fleet of real processes on this host, for tests that kill them: `fleetkey`, `fleetkey-broker` and many
//! `fleetkey-agent`, on loopback over TLS, in one temporary directory.
//!
//! ```text
//! binaries   where the executables are
//! process    one process: start, kill, stop, go on; ended when dropped
//! fleet      coordinator, broker and devices, and the operator's commands
//! device     one device: its bundle, its agent, what an application asks of it
//! door       a fleet with an EST server
//! intruder   a device's certificate in other hands: MQTT by hand
//! model      who should be in which group, and which messages must stay shut for whom
//! ledger     what anybody was seen to hold or to say
//! rules      DESIGN's rules, checked from outside
//! rounds     one activity, some kills, and the wait until all is well
//! scarce     a disk that is full
//! torn       databases as a power cut leaves them, for the tests of the crates that own them
//! dice       choices from one seed
//! faketime   another time on the clock of one process
//! ```
//!
//! Everything is asked for as an operator or an application would: through the command line, the agents' sockets and
//! the broker's port. Nothing reads a database. Deliberately absent: simulated time and simulated disks, which are
//! the simulator's.
//!
//! The tests run the executables that lie beside them (`target/debug` for `target/debug/deps/kills-…`), and build
//! those that are missing. Executables that are there are not built again: after a change run
//! `cargo build --bins` first, as `just kills` does.

pub mod binaries;
pub mod device;
pub mod dice;
pub mod door;
pub mod faketime;
pub mod fleet;
pub mod intruder;
pub mod ledger;
pub mod model;
pub mod process;
pub mod rounds;
pub mod rules;
pub mod scarce;
pub mod torn;
pub mod wait;

pub use binaries::Binaries;
pub use device::Device;
pub use dice::Dice;
pub use door::Door;
pub use fleet::Fleet;
pub use process::Process;

/// A number from the environment, or its default.
///
/// # Panics
/// When the variable holds something else: a misspelt number must not be a default in disguise.
pub fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, not a number")),
        Err(_) => default,
    }
}
