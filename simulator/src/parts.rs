//! A fleet in several processes: the coordinator here, the broker and the devices in processes of their own.
//!
//! So each part's processor time is told apart, no part shares another's limit on open files, and devices are cut off by a real
//! process's end if need be. The parts are this same program (`fleetkey-sim part …`), and are spoken to over their standard
//! input and output: a length, and then CBOR.
//!
//! ```text
//! orders       what is said to a part, and answered
//! devices      the part that is devices
//! broker       the part that is the embedded broker
//! coordinator  the part that is a coordinator by itself
//! process      a part, seen from here
//! sources      where connections come from
//! usage        processor time and memory of the process that asks
//! ```

pub mod broker;
pub mod coordinator;
pub mod devices;
mod orders;
mod process;
mod sources;
mod usage;

pub use orders::{
    BrokerAnswer, BrokerBegin, BrokerOrder, BrokerSeen, CoordinatorBegin, CoordinatorStarted, DevicesAnswer,
    DevicesBegin, DevicesOrder, Made, Papers, Seen, Which,
};
pub(crate) use orders::{hear, say};
pub use process::{Part, PartFailed};
pub(crate) use sources::{first_source, source};
pub use usage::Usage;
