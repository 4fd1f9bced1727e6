//! How a cell's message reaches the sessions of its members.
//!
//! One trait, two implementations that pass the same tests. Leaves to others who may join: the policy has decided by
//! then; and how messages are written: they end in a session's queue.

mod exact_map;
mod router;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use fleetkey_policy::Qos;
use fleetkey_wire::{CellId, FleetId};

use crate::config::{BrokerError, FanOutKind, Limits};
use crate::message::Message;
use crate::session::{JoinedCell, Session};

pub(crate) type Pending<'a> = Pin<Box<dyn Future<Output = Result<(), FanOutGone>> + Send + 'a>>;

/// The fan-out has stopped working; so has the broker then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the fan-out has stopped")]
pub(crate) struct FanOutGone;

/// Carries messages to the sessions that joined a cell.
pub(crate) trait FanOut: Send + Sync {
    /// From the moment this is done, the session receives what is published to the cell. The session's own list of
    /// subscriptions has the cell already. Joining again only changes the QoS.
    fn join<'a>(&'a self, session: &'a Arc<Session>, cell: CellId, qos: Qos) -> Pending<'a>;

    /// The session receives no more of the cell, except what is on its way already.
    fn leave(&self, session: &Session, cell: CellId);

    /// The session has ended: forget it, and all the cells that it was in.
    fn forget(&self, session: &Session, cells: &[JoinedCell]);

    /// Hands a message over to every session in the cell; waits when there is too much on its way.
    fn publish<'a>(&'a self, cell: CellId, message: &'a Arc<Message>) -> Pending<'a>;
}

/// Starts a fan-out of this kind.
pub(crate) fn start(
    kind: FanOutKind,
    fleet: FleetId,
    limits: &Limits,
) -> Result<Box<dyn FanOut>, BrokerError> {
    Ok(match kind {
        FanOutKind::Router => {
            Box::new(router::RouterFanOut::start(fleet, limits).map_err(BrokerError::Router)?)
        }
        FanOutKind::ExactMap => Box::new(exact_map::ExactMap::default()),
    })
}
