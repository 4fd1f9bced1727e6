//! The envelope all payloads share (a version byte, then one CBOR array) and the cell frame.
//!
//! A cell frame carries what moves a cell, a group, or both: `[cell epoch, covered updates, commit, statement,
//! wrap]`. It is applied whole or not at all. What the topic says is not repeated in it, but bound by AAD.

use crate::cbor::{self, Items};
use crate::error::BadFrame;
use crate::ids::CellEpoch;
use crate::limits::{
    MAX_CELL_FRAME_BYTES, MAX_COVERED_UPDATES, MAX_STATEMENT_BYTES, MAX_UPDATE_BYTES, MAX_WRAP_BYTES,
};

/// The version byte in front of every payload that this build writes and reads.
pub const FRAME_VERSION: u8 = 1;

/// Puts the version byte in front of an array.
pub(crate) fn enclose(array: Vec<u8>) -> Vec<u8> {
    let mut frame = Vec::with_capacity(array.len() + 1);
    frame.push(FRAME_VERSION);
    frame.extend_from_slice(&array);
    frame
}

/// Checks size and version, and opens the array behind them.
pub(crate) fn disclose<'a>(what: &'static str, frame: &'a [u8], max: usize) -> Result<Items<'a>, BadFrame> {
    if frame.len() > max {
        return Err(BadFrame::TooLarge { what, bytes: frame.len(), max });
    }
    match frame.split_first() {
        None => Err(BadFrame::Empty { what }),
        Some((&FRAME_VERSION, array)) => Items::decode(what, array),
        Some((&got, _)) => {
            Err(BadFrame::UnknownVersion { what, got: got.into(), known: FRAME_VERSION.into() })
        }
    }
}

/// A commit with the Update proposals it covers, as MLS messages (RFC 9420 §6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitMessages {
    /// The members' Update proposals that the commit refers to.
    pub covered_updates: Vec<Vec<u8>>,
    /// The commit.
    pub commit: Vec<u8>,
}

/// A statement and the wrap that goes with it: they never travel apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementAndWrap {
    /// COSE_Sign1.
    pub statement: Vec<u8>,
    /// COSE_Encrypt0.
    pub wrap: Vec<u8>,
}

/// What travels on a cell's topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellFrame {
    /// The cell epoch that it applies to. Its wrap uses the epoch after its commit.
    pub cell_epoch: CellEpoch,
    /// What moves the cell.
    pub commit: Option<CommitMessages>,
    /// What moves the group.
    pub rekey: Option<StatementAndWrap>,
}

impl CellFrame {
    /// The bytes to publish.
    pub fn encode(&self) -> Vec<u8> {
        let covered = self.commit.as_ref().map_or(&[][..], |commit| &commit.covered_updates);
        enclose(cbor::array(&[
            cbor::uint(self.cell_epoch.0),
            cbor::list(covered, cbor::bytes),
            cbor::optional_bytes(self.commit.as_ref().map(|commit| commit.commit.as_slice())),
            cbor::optional_bytes(self.rekey.as_ref().map(|rekey| rekey.statement.as_slice())),
            cbor::optional_bytes(self.rekey.as_ref().map(|rekey| rekey.wrap.as_slice())),
        ]))
    }

    /// Reads a frame.
    pub fn decode(frame: &[u8]) -> Result<Self, BadFrame> {
        let mut items = disclose("cell frame", frame, MAX_CELL_FRAME_BYTES)?;
        let cell_epoch = CellEpoch(items.uint("cell epoch")?);
        let covered_updates =
            items.list_of_bytes("covered updates", MAX_COVERED_UPDATES, MAX_UPDATE_BYTES)?;
        let commit = items.optional_bytes("commit", MAX_CELL_FRAME_BYTES)?.map(<[u8]>::to_vec);
        let statement = items.optional_bytes("statement", MAX_STATEMENT_BYTES)?.map(<[u8]>::to_vec);
        let wrap = items.optional_bytes("wrap", MAX_WRAP_BYTES)?.map(<[u8]>::to_vec);
        items.end()?;
        let commit = match commit {
            Some(commit) => Some(CommitMessages { covered_updates, commit }),
            None if covered_updates.is_empty() => None,
            None => return Err(BadFrame::Shape { field: "covered updates" }),
        };
        let rekey = match (statement, wrap) {
            (Some(statement), Some(wrap)) => Some(StatementAndWrap { statement, wrap }),
            (None, None) => None,
            (Some(_), None) => return Err(BadFrame::Shape { field: "wrap" }),
            (None, Some(_)) => return Err(BadFrame::Shape { field: "statement" }),
        };
        if commit.is_none() && rekey.is_none() {
            return Err(BadFrame::Shape { field: "cell frame" });
        }
        Ok(Self { cell_epoch, commit, rekey })
    }
}
