//! Who may connect, publish and subscribe at a fleet's broker, and why not.
//!
//! | party | may publish | may subscribe |
//! | --- | --- | --- |
//! | coordinator | every cell, every `down` | `fk/{fleet}/dev/+/up` |
//! | device | its own `up` | its own `down`, the cells it is a member of |
//! | broker, as a relay | the `up` of any device that is admitted | the `down` of any such device, every cell |
//! | operator | nothing: refused at CONNECT | nothing |
//!
//! [`PolicyState`] decides, [`PolicyUpdate`] is how the coordinator feeds it, [`PolicyHandle`] shares it between the
//! feeder and a broker that must act on live sessions. The default is to deny.
//!
//! Deliberately absent: any broker, MQTT packets, sockets, certificates, clocks.

mod decide;
mod denied;
mod handle;
mod state;
mod update;

pub use decide::{Party, PayloadLimits, Qos, RELAY_CLIENT_ID_PREFIX};
pub use denied::Denied;
pub use handle::{PolicyHandle, Watch};
pub use state::{CellAccess, Effects, OutOfStep, PolicyState};
pub use update::PolicyUpdate;
