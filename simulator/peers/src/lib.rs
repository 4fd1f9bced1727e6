//! What one removal costs: Fleetkey, and other ways of giving a group a new key, measured alike.
//!
//! Each [`Scheme`] sets up a [`Fleet`]; [`measure`] removes devices from it, delivers what was published to some that
//! remain, and holds the outcome against what the removal was for. [`Peers`] is the command around it. Deliberately
//! absent: brokers, sockets and disks, which all schemes would need alike, and confirmations, which only ours has.
//!
//! [`Alone`] is our coordinator by itself, on a store that is brought along.

mod budget;
mod command;
mod fleetkey;
mod html;
mod lkh;
mod machine;
mod measure;
#[cfg(feature = "mls-rs")]
mod mls_rs_flat;
mod openmls_flat;
mod pairwise;
mod report;
mod scheme;

pub use budget::Budget;
pub use command::Peers;
pub use fleetkey::alone::{Alone, CannotRevoke, Rekeyed};
pub use fleetkey::{Fleetkey, Steps};
pub use html::page;
pub use lkh::KeyTree;
pub use machine::Machine;
pub use measure::{Figures, KindFigures, NoFigures, measure};
#[cfg(feature = "mls-rs")]
pub use mls_rs_flat::FlatMlsRs;
pub use openmls_flat::FlatOpenMls;
pub use pairwise::Pairwise;
pub use report::{Outcome, REPORT_VERSION, Report, SchemeReport, Size};
pub use scheme::{Fleet, Kind, Published, Scheme, Stopped};
