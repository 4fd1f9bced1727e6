//! A buffer for what is secret: where it outgrows its room, what it leaves behind is wiped.
//!
//! A plain vector that grows leaves copies in memory that is free again.

use std::io;

use zeroize::Zeroizing;

/// Secret bytes, being written.
#[derive(Default)]
pub struct SecretWriter(Zeroizing<Vec<u8>>);

impl SecretWriter {
    /// With room for so many bytes to begin with.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(bytes)))
    }

    /// What was written.
    pub fn into_bytes(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
}

impl io::Write for SecretWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let needed = self.0.len() + bytes.len();
        if needed > self.0.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(needed.max(2 * self.0.capacity())));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_was_written_comes_out_however_often_it_grew() {
        for capacity in [0, 1, 7, 4_096] {
            let mut writer = SecretWriter::with_capacity(capacity);
            let pieces: Vec<Vec<u8>> = (0..200u8).map(|piece| vec![piece; usize::from(piece % 9)]).collect();
            for piece in &pieces {
                writer.write_all(piece).unwrap();
            }
            assert_eq!(*writer.into_bytes(), pieces.concat(), "room for {capacity}");
        }
    }
}
