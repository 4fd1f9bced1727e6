//! A map from cell to sessions. Nothing else is needed: every filter that reaches the fan-out is one exact topic.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use fleetkey_policy::Qos;
use fleetkey_wire::CellId;

use super::{FanOut, Pending};
use crate::message::Message;
use crate::session::{JoinedCell, Session};

type Cells = HashMap<CellId, Vec<(Arc<Session>, Qos)>>;

/// The sessions in each cell.
#[derive(Default)]
pub(crate) struct ExactMap {
    cells: RwLock<Cells>,
}

impl ExactMap {
    fn cells(&self) -> RwLockWriteGuard<'_, Cells> {
        self.cells.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FanOut for ExactMap {
    fn join<'a>(&'a self, session: &'a Arc<Session>, cell: CellId, qos: Qos) -> Pending<'a> {
        let mut cells = self.cells();
        let members = cells.entry(cell).or_default();
        match members.iter_mut().find(|(member, _)| member.id == session.id) {
            Some((_, subscribed)) => *subscribed = qos,
            None => members.push((session.clone(), qos)),
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn leave(&self, session: &Session, cell: CellId) {
        if let Entry::Occupied(mut members) = self.cells().entry(cell) {
            members.get_mut().retain(|(member, _)| member.id != session.id);
            if members.get().is_empty() {
                members.remove();
            }
        }
    }

    fn forget(&self, session: &Session, cells: &[JoinedCell]) {
        for joined in cells {
            self.leave(session, joined.cell);
        }
    }

    fn publish<'a>(&'a self, cell: CellId, message: &'a Arc<Message>) -> Pending<'a> {
        let cells = self.cells.read().unwrap_or_else(PoisonError::into_inner);
        for (session, qos) in cells.get(&cell).into_iter().flatten() {
            session.deliver(message, *qos);
        }
        Box::pin(std::future::ready(Ok(())))
    }
}
