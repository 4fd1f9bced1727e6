//! Which cell of which group of which fleet, and what the exporter makes of that.

use fleetkey_wire::{CellId, FleetId, GroupId};

/// The full name of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellContext {
    /// The fleet; its bytes are the coordinator's credential.
    pub fleet: FleetId,
    /// The group whose secrets reach the cell.
    pub group: GroupId,
    /// The cell; its bytes are the MLS group id.
    pub cell: CellId,
}

impl CellContext {
    /// The exporter's context: the CBOR array (RFC 8949) of the three ids as byte strings.
    pub(crate) fn exporter_context(&self) -> [u8; 52] {
        const ARRAY_OF_3: u8 = 0x83;
        const BYTES_OF_16: u8 = 0x50;
        let mut cbor = [0; 52];
        cbor[0] = ARRAY_OF_3;
        let ids = [self.fleet.as_bytes(), self.group.as_bytes(), self.cell.as_bytes()];
        for (item, id) in cbor[1..].chunks_exact_mut(17).zip(ids) {
            item[0] = BYTES_OF_16;
            item[1..].copy_from_slice(id);
        }
        cbor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exporter_context_is_a_cbor_array_of_three_ids() {
        let context = CellContext {
            fleet: FleetId::from_bytes([0x11; 16]),
            group: GroupId::from_bytes([0x22; 16]),
            cell: CellId::from_bytes([0x33; 16]),
        };
        let mut expected = vec![0x83];
        for byte in [0x11, 0x22, 0x33] {
            expected.push(0x50);
            expected.extend([byte; 16]);
        }
        assert_eq!(context.exporter_context().as_slice(), expected);
    }
}
