//! The outer shape that all our COSE messages share: `[protected, {}, …]`, untagged, nothing unprotected.
//!
//! It is checked here, before `coset` sees any of it: `coset` follows countersignatures inside protected headers
//! without a bound, each a byte string that it decodes anew, so a few kilobytes of them would overflow the
//! stack. None of our headers is large. Leaves what a header must say to its format.

use ciborium::Value;
use coset::ProtectedHeader;

use crate::cbor::Items;
use crate::error::BadFrame;

/// Room for the largest protected header of ours, with some to spare.
const MAX_PROTECTED_BYTES: usize = 128;

/// The protected header of a COSE message, and the items behind its (empty) unprotected one.
pub(crate) fn open<'a>(
    what: &'static str,
    encoded: &'a [u8],
) -> Result<(ProtectedHeader, Items<'a>), BadFrame> {
    let bad_header = BadFrame::CoseHeader { what };
    let mut items = Items::decode(what, encoded)?;
    let protected = items.bytes(what, MAX_PROTECTED_BYTES).map_err(|_| bad_header.clone())?;
    items.empty_map(what).map_err(|_| bad_header.clone())?;
    let protected = Value::Bytes(protected.to_vec());
    let protected = ProtectedHeader::from_cbor_bstr(protected).map_err(|_| bad_header)?;
    Ok((protected, items))
}
