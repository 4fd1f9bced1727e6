//! Bounds on everything that comes from outside, checked before it is decoded. Units come last in a name.

/// A frame on a cell topic, in bytes. At the default suite and capacity none exceeds 16 KiB.
pub const MAX_CELL_FRAME_BYTES: usize = 48 * 1024;
/// A frame on a `down` topic, in bytes. At the default suite and capacity none exceeds 32 KiB.
pub const MAX_DOWN_FRAME_BYTES: usize = 64 * 1024;
/// A frame on an `up` topic, in bytes.
pub const MAX_UP_FRAME_BYTES: usize = 32 * 1024;
/// A COSE_Sign1 statement, in bytes.
pub const MAX_STATEMENT_BYTES: usize = 256;
/// A COSE_Encrypt0 wrap, in bytes.
pub const MAX_WRAP_BYTES: usize = 96;
/// Update proposals that one commit covers.
pub const MAX_COVERED_UPDATES: usize = 32;
/// One Update proposal as an MLS message, in bytes.
pub const MAX_UPDATE_BYTES: usize = 2 * 1024;
/// One key package as an MLS message, in bytes.
pub const MAX_KEY_PACKAGE_BYTES: usize = 4 * 1024;
/// Key packages in one frame.
pub const MAX_KEY_PACKAGES: usize = 8;
/// Cells a device may be in, and so a hello may name.
pub const MAX_CELLS_PER_DEVICE: usize = 32;
/// External pre-shared keys that a device may hold, and so name: a former and a next one for each group.
pub const MAX_PSKS_PER_DEVICE: usize = 64;
/// Statements (each with its wrap) in one Welcome: the live secrets of a group in rotation.
pub const MAX_WELCOME_STATEMENTS: usize = 4;
/// A group's name, in bytes.
pub const MAX_GROUP_NAME_BYTES: usize = 64;
/// Certificates in a chain.
pub const MAX_CHAIN: usize = 4;
/// One certificate, DER, in bytes.
pub const MAX_CERTIFICATE_BYTES: usize = 2 * 1024;
/// Devices in one cell: the smallest capacity that a policy may set.
pub const MIN_CELL_CAPACITY: u16 = 8;
/// Devices in one cell: the largest capacity that a policy may set, where the suite does not set less.
pub const MAX_CELL_CAPACITY: u16 = 256;
