//! Randomness that hands out the bytes it was given, for inputs that a vector names.

use rand_chacha::rand_core::{CryptoRng, Error, RngCore};

/// Hands out `script` from its beginning; asked for more, it fails the test.
pub(crate) struct Scripted<'a> {
    script: &'a [u8],
}

impl<'a> Scripted<'a> {
    pub(crate) fn new(script: &'a [u8]) -> Self {
        Self { script }
    }
}

impl RngCore for Scripted<'_> {
    fn next_u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.fill_bytes(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_bytes(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill_bytes(&mut self, out: &mut [u8]) {
        let (now, later) = self.script.split_at_checked(out.len()).expect("the script covers every draw");
        out.copy_from_slice(now);
        self.script = later;
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Error> {
        self.fill_bytes(out);
        Ok(())
    }
}

impl CryptoRng for Scripted<'_> {}
