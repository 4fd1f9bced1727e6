//! What a device says to the coordinator, on its `up` topic: the body of a link frame.

use crate::cbor::{self, Item, Items};
use crate::confirm::CONFIRM_MAC_BYTES;
use crate::error::BadFrame;
use crate::ids::{CellEpoch, CellId, Generation, GroupId, KeyEpoch, PskId};
use crate::limits::{
    MAX_CELLS_PER_DEVICE, MAX_KEY_PACKAGE_BYTES, MAX_KEY_PACKAGES, MAX_PSKS_PER_DEVICE, MAX_STATEMENT_BYTES,
    MAX_UP_FRAME_BYTES, MAX_UPDATE_BYTES,
};
use crate::statement::ShortDigest;
use crate::suite::Suite;

/// The first 8 bytes of an MLS epoch authenticator (RFC 9420 §8.7): two that agree on it are in the same epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ShortAuthenticator(pub [u8; 8]);

/// Where a device stands in one cell and its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloCell {
    /// The cell.
    pub cell: CellId,
    /// The cell epoch it is at.
    pub cell_epoch: CellEpoch,
    /// Whether it is the coordinator's epoch of that number.
    pub authenticator: ShortAuthenticator,
    /// The newest statement it has stored.
    pub statement: ShortDigest,
    /// The newest key epoch it holds.
    pub key_epoch: KeyEpoch,
    /// The largest `send` it has seen.
    pub send: KeyEpoch,
    /// The largest `oldest` it has seen.
    pub oldest: KeyEpoch,
}

/// Where a device stands. It confirms nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The coordinator certificate it holds.
    pub generation: Generation,
    /// Each cell it is in.
    pub cells: Vec<HelloCell>,
}

/// The body of an `up` frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpBody {
    /// Where the device stands; said after each SUBACK, and from time to time.
    Hello(Hello),
    /// One-time key packages for the coordinator's stock (RFC 9420 §10).
    KeyPackages {
        /// The suite they are for.
        suite: Suite,
        /// MLS messages.
        packages: Vec<Vec<u8>>,
    },
    /// The device holds the secret of `key_epoch`, stored.
    Confirm {
        /// The group.
        group: GroupId,
        /// The key epoch.
        key_epoch: KeyEpoch,
        /// The newest statement applied.
        statement: ShortDigest,
        /// The proof, see [`crate::confirm`].
        proof: [u8; CONFIRM_MAC_BYTES],
    },
    /// An MLS Update proposal, as asked for.
    Update {
        /// The cell.
        cell: CellId,
        /// The cell epoch it is made for, with which it dies.
        cell_epoch: CellEpoch,
        /// The MLS message.
        proposal: Vec<u8>,
    },
    /// The device wants to be out of a group.
    Leave {
        /// The group.
        group: GroupId,
    },
    /// A genuine statement that contradicts what the device holds, or that the coordinator seems not to know.
    Evidence {
        /// COSE_Sign1.
        statement: Vec<u8>,
    },
    /// The external pre-shared keys that the device holds, all of them: it joins no group that asks for another.
    Psks {
        /// Their names.
        held: Vec<PskId>,
    },
}

impl UpBody {
    /// Its name in counters and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::KeyPackages { .. } => "key_packages",
            Self::Confirm { .. } => "confirm",
            Self::Update { .. } => "update",
            Self::Leave { .. } => "leave",
            Self::Evidence { .. } => "evidence",
            Self::Psks { .. } => "psks",
        }
    }

    /// The bytes that a link frame carries.
    pub fn encode(&self) -> Vec<u8> {
        cbor::array(&match self {
            Self::Hello(hello) => {
                vec![cbor::uint(0u8), cbor::uint(hello.generation.0), cbor::list(&hello.cells, hello_cell)]
            }
            Self::KeyPackages { suite, packages } => {
                vec![cbor::uint(1u8), cbor::uint(suite.code()), cbor::list(packages, cbor::bytes)]
            }
            Self::Confirm { group, key_epoch, statement, proof } => vec![
                cbor::uint(2u8),
                cbor::bytes(group.as_bytes()),
                cbor::uint(key_epoch.0),
                cbor::bytes(&statement.0),
                cbor::bytes(proof),
            ],
            Self::Update { cell, cell_epoch, proposal } => vec![
                cbor::uint(3u8),
                cbor::bytes(cell.as_bytes()),
                cbor::uint(cell_epoch.0),
                cbor::bytes(proposal),
            ],
            Self::Leave { group } => vec![cbor::uint(4u8), cbor::bytes(group.as_bytes())],
            Self::Evidence { statement } => vec![cbor::uint(5u8), cbor::bytes(statement)],
            Self::Psks { held } => {
                vec![cbor::uint(6u8), cbor::list(held, |id| cbor::bytes(id.as_bytes()))]
            }
        })
    }

    /// Reads the body of an authenticated link frame.
    pub fn decode(body: &[u8]) -> Result<Self, BadFrame> {
        const WHAT: &str = "up body";
        if body.len() > MAX_UP_FRAME_BYTES {
            return Err(BadFrame::TooLarge { what: WHAT, bytes: body.len(), max: MAX_UP_FRAME_BYTES });
        }
        let mut items = Items::decode(WHAT, body)?;
        let read = match items.uint("up kind")? {
            0 => {
                let generation = Generation(items.uint32("generation")?);
                let cells = items.list("hello cells", MAX_CELLS_PER_DEVICE, read_hello_cell)?;
                Self::Hello(Hello { generation, cells })
            }
            1 => Self::KeyPackages {
                suite: read_suite(&mut items)?,
                packages: items.list_of_bytes("key packages", MAX_KEY_PACKAGES, MAX_KEY_PACKAGE_BYTES)?,
            },
            2 => Self::Confirm {
                group: GroupId::from_bytes(items.fixed("group")?),
                key_epoch: KeyEpoch(items.uint("key epoch")?),
                statement: ShortDigest(items.fixed("statement digest")?),
                proof: items.fixed("confirmation")?,
            },
            3 => Self::Update {
                cell: CellId::from_bytes(items.fixed("cell")?),
                cell_epoch: CellEpoch(items.uint("cell epoch")?),
                proposal: items.bytes("update proposal", MAX_UPDATE_BYTES)?.to_vec(),
            },
            4 => Self::Leave { group: GroupId::from_bytes(items.fixed("group")?) },
            5 => Self::Evidence { statement: items.bytes("statement", MAX_STATEMENT_BYTES)?.to_vec() },
            6 => Self::Psks { held: read_psks(&mut items)? },
            kind => return Err(BadFrame::UnknownKind { what: WHAT, kind }),
        };
        items.end()?;
        Ok(read)
    }
}

pub(crate) fn read_suite(items: &mut Items<'_>) -> Result<Suite, BadFrame> {
    let code = items.uint("suite")?;
    u16::try_from(code)
        .ok()
        .and_then(Suite::from_code)
        .ok_or(BadFrame::UnknownKind { what: "suite", kind: code })
}

fn read_psks(items: &mut Items<'_>) -> Result<Vec<PskId>, BadFrame> {
    const FIELD: &str = "pre-shared keys";
    items.list(FIELD, MAX_PSKS_PER_DEVICE, |items| items.fixed(FIELD).map(PskId::from_bytes))
}

fn hello_cell(cell: &HelloCell) -> Item<'_> {
    Item::List(vec![
        cbor::bytes(cell.cell.as_bytes()),
        cbor::uint(cell.cell_epoch.0),
        cbor::bytes(&cell.authenticator.0),
        cbor::bytes(&cell.statement.0),
        cbor::uint(cell.key_epoch.0),
        cbor::uint(cell.send.0),
        cbor::uint(cell.oldest.0),
    ])
}

fn read_hello_cell(items: &mut Items<'_>) -> Result<HelloCell, BadFrame> {
    items.nested("hello cell", |items| {
        Ok(HelloCell {
            cell: CellId::from_bytes(items.fixed("cell")?),
            cell_epoch: CellEpoch(items.uint("cell epoch")?),
            authenticator: ShortAuthenticator(items.fixed("epoch authenticator")?),
            statement: ShortDigest(items.fixed("statement digest")?),
            key_epoch: KeyEpoch(items.uint("key epoch")?),
            send: KeyEpoch(items.uint("send")?),
            oldest: KeyEpoch(items.uint("oldest")?),
        })
    })
}
