//! What the coordinator says to one device, on its `down` topic: the body of a link frame.

use crate::cbor::{self, Item, Items};
use crate::error::BadFrame;
use crate::frame::StatementAndWrap;
use crate::ids::{CellEpoch, CellId, GroupId};
use crate::limits::{
    MAX_CELL_FRAME_BYTES, MAX_CERTIFICATE_BYTES, MAX_CHAIN, MAX_DOWN_FRAME_BYTES, MAX_GROUP_NAME_BYTES,
    MAX_STATEMENT_BYTES, MAX_WELCOME_STATEMENTS, MAX_WRAP_BYTES,
};
use crate::suite::Suite;
use crate::up::read_suite;

/// In place of a group's id in [`DownBody::RequestEvidence`]: every group that the device is in. No group has this id.
pub const EVERY_GROUP: GroupId = GroupId::from_bytes([0; 16]);

/// A device's way into a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The group.
    pub group: GroupId,
    /// Its name, for people.
    pub group_name: String,
    /// The cell.
    pub cell: CellId,
    /// The group's suite.
    pub suite: Suite,
    /// The cell epoch that the Welcome leads to, whose KEK the wraps use.
    pub cell_epoch: CellEpoch,
    /// The MLS Welcome (RFC 9420 §12.4.3.1), with this device's entry only and the ratchet tree.
    pub welcome: Vec<u8>,
    /// Each live secret the device may hold, oldest first.
    pub statements: Vec<StatementAndWrap>,
}

/// Why a device is no longer in a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DismissReason {
    /// Out of the group; still enrolled.
    Evicted,
    /// The cell is not one of the device's.
    NotAMember,
}

/// The body of a `down` frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DownBody {
    /// The nonce of the frame this answers means nothing here: draw a new one and say hello. It may come under
    /// no nonce at all, from a coordinator that has just started and has something to say.
    HelloAgain,
    /// The hello with this counter was heard, and is fresh.
    Answer {
        /// The counter of the hello's frame.
        hello: u64,
        /// Seconds after which the device should say hello again, without being asked.
        hello_interval_seconds: u32,
        /// Seconds of silence after which the device stops sealing.
        max_silence_seconds: u32,
    },
    /// A cell frame again, or one made anew for this device.
    CellFrame {
        /// The cell whose topic it would have come on.
        cell: CellId,
        /// The frame, version byte included.
        frame: Vec<u8>,
    },
    /// A way into a cell.
    Welcome(Welcome),
    /// Asks for key packages.
    RequestKeyPackages {
        /// The suite they are to be for.
        suite: Suite,
        /// How many.
        count: u8,
    },
    /// Asks for an Update proposal.
    RequestUpdate {
        /// The cell.
        cell: CellId,
    },
    /// The device is not in this cell (any longer): its state of the cell may go, and the group's with it when
    /// this is the cell through which the device is in the group.
    Dismiss {
        /// The group, all zero when the coordinator knows the cell no longer. The cell decides.
        group: GroupId,
        /// The cell.
        cell: CellId,
        /// Why.
        reason: DismissReason,
    },
    /// The coordinator's certificate, leaf first, without the root.
    Certificate {
        /// DER.
        chain: Vec<Vec<u8>>,
    },
    /// Asks for the newest statement that the device holds of a group, or of [`EVERY_GROUP`].
    RequestEvidence {
        /// The group.
        group: GroupId,
    },
    /// Asks for a hello under the nonces of this connection: the one that came was a first hello, which may be
    /// a replay, and what it shows needs more than a cheap answer. At most once a second per device is answered.
    RequestHello,
}

impl DownBody {
    /// Its name in counters and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::HelloAgain => "hello_again",
            Self::Answer { .. } => "answer",
            Self::CellFrame { .. } => "cell_frame",
            Self::Welcome(_) => "welcome",
            Self::RequestKeyPackages { .. } => "request_key_packages",
            Self::RequestUpdate { .. } => "request_update",
            Self::Dismiss { .. } => "dismiss",
            Self::Certificate { .. } => "certificate",
            Self::RequestEvidence { .. } => "request_evidence",
            Self::RequestHello => "request_hello",
        }
    }

    /// The bytes that a link frame carries.
    pub fn encode(&self) -> Vec<u8> {
        cbor::array(&match self {
            Self::HelloAgain => vec![cbor::uint(0u8)],
            Self::Answer { hello, hello_interval_seconds, max_silence_seconds } => vec![
                cbor::uint(1u8),
                cbor::uint(*hello),
                cbor::uint(*hello_interval_seconds),
                cbor::uint(*max_silence_seconds),
            ],
            Self::CellFrame { cell, frame } => {
                vec![cbor::uint(2u8), cbor::bytes(cell.as_bytes()), cbor::bytes(frame)]
            }
            Self::Welcome(welcome) => vec![
                cbor::uint(3u8),
                cbor::bytes(welcome.group.as_bytes()),
                cbor::text(&welcome.group_name),
                cbor::bytes(welcome.cell.as_bytes()),
                cbor::uint(welcome.suite.code()),
                cbor::uint(welcome.cell_epoch.0),
                cbor::bytes(&welcome.welcome),
                cbor::list(&welcome.statements, statement_and_wrap),
            ],
            Self::RequestKeyPackages { suite, count } => {
                vec![cbor::uint(4u8), cbor::uint(suite.code()), cbor::uint(*count)]
            }
            Self::RequestUpdate { cell } => vec![cbor::uint(5u8), cbor::bytes(cell.as_bytes())],
            Self::Dismiss { group, cell, reason } => vec![
                cbor::uint(6u8),
                cbor::bytes(group.as_bytes()),
                cbor::bytes(cell.as_bytes()),
                cbor::uint(match reason {
                    DismissReason::Evicted => 0u8,
                    DismissReason::NotAMember => 1u8,
                }),
            ],
            Self::Certificate { chain } => {
                vec![cbor::uint(7u8), cbor::list(chain, cbor::bytes)]
            }
            Self::RequestEvidence { group } => vec![cbor::uint(8u8), cbor::bytes(group.as_bytes())],
            Self::RequestHello => vec![cbor::uint(9u8)],
        })
    }

    /// Reads the body of an authenticated link frame.
    pub fn decode(body: &[u8]) -> Result<Self, BadFrame> {
        const WHAT: &str = "down body";
        if body.len() > MAX_DOWN_FRAME_BYTES {
            return Err(BadFrame::TooLarge { what: WHAT, bytes: body.len(), max: MAX_DOWN_FRAME_BYTES });
        }
        let mut items = Items::decode(WHAT, body)?;
        let read = match items.uint("down kind")? {
            0 => Self::HelloAgain,
            1 => Self::Answer {
                hello: items.uint("hello counter")?,
                hello_interval_seconds: items.uint32("hello interval")?,
                max_silence_seconds: items.uint32("max silence")?,
            },
            2 => Self::CellFrame {
                cell: CellId::from_bytes(items.fixed("cell")?),
                frame: items.bytes("cell frame", MAX_CELL_FRAME_BYTES)?.to_vec(),
            },
            3 => Self::Welcome(Welcome {
                group: GroupId::from_bytes(items.fixed("group")?),
                group_name: items.text("group name", MAX_GROUP_NAME_BYTES)?.to_owned(),
                cell: CellId::from_bytes(items.fixed("cell")?),
                suite: read_suite(&mut items)?,
                cell_epoch: CellEpoch(items.uint("cell epoch")?),
                welcome: items.bytes("welcome", MAX_DOWN_FRAME_BYTES)?.to_vec(),
                statements: items.list(
                    "welcome statements",
                    MAX_WELCOME_STATEMENTS,
                    read_statement_and_wrap,
                )?,
            }),
            4 => Self::RequestKeyPackages {
                suite: read_suite(&mut items)?,
                count: u8::try_from(items.uint("count")?).map_err(|_| BadFrame::Shape { field: "count" })?,
            },
            5 => Self::RequestUpdate { cell: CellId::from_bytes(items.fixed("cell")?) },
            6 => Self::Dismiss {
                group: GroupId::from_bytes(items.fixed("group")?),
                cell: CellId::from_bytes(items.fixed("cell")?),
                reason: match items.uint("dismiss reason")? {
                    0 => DismissReason::Evicted,
                    1 => DismissReason::NotAMember,
                    kind => return Err(BadFrame::UnknownKind { what: "dismiss reason", kind }),
                },
            },
            7 => Self::Certificate {
                chain: items.list_of_bytes("certificate chain", MAX_CHAIN, MAX_CERTIFICATE_BYTES)?,
            },
            8 => Self::RequestEvidence { group: GroupId::from_bytes(items.fixed("group")?) },
            9 => Self::RequestHello,
            kind => return Err(BadFrame::UnknownKind { what: WHAT, kind }),
        };
        items.end()?;
        Ok(read)
    }
}

fn statement_and_wrap(rekey: &StatementAndWrap) -> Item<'_> {
    Item::List(vec![cbor::bytes(&rekey.statement), cbor::bytes(&rekey.wrap)])
}

fn read_statement_and_wrap(items: &mut Items<'_>) -> Result<StatementAndWrap, BadFrame> {
    items.nested("welcome statement", |items| {
        Ok(StatementAndWrap {
            statement: items.bytes("statement", MAX_STATEMENT_BYTES)?.to_vec(),
            wrap: items.bytes("wrap", MAX_WRAP_BYTES)?.to_vec(),
        })
    })
}
