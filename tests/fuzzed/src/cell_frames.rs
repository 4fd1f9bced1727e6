//! Frames on a cell's topic.

use fleetkey_wire::{CellFrame, CommitMessages};

use crate::parties::{CELL_EPOCH, rekey};

/// What is read is written back as it can be read again.
pub fn run(data: &[u8]) {
    if let Ok(frame) = CellFrame::decode(data) {
        let again = CellFrame::decode(&frame.encode());
        assert_eq!(again.as_ref(), Ok(&frame));
    }
}

/// Frames of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let commit =
        || Some(CommitMessages { covered_updates: vec![vec![7; 20], vec![8; 30]], commit: vec![9; 40] });
    [(None, Some(rekey())), (commit(), None), (commit(), Some(rekey()))]
        .into_iter()
        .map(|(commit, rekey)| CellFrame { cell_epoch: CELL_EPOCH, commit, rekey }.encode())
        .collect()
}
