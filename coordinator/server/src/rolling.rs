//! A roll that has begun: what is noted before its first key is made, so that one that was cut off is given again and goes on.
//!
//! ```text
//! former-cas/rolling      the CA that is replaced, the label of the next key in a token, the next root's certificate
//! ```
//!
//! A key or a root that was there before is never taken for the roll's own: only what the note names is. Leaves the roll to
//! `fleetkey ca roll`.

use std::io;
use std::path::PathBuf;

use fleetkey_identity::{KeyId, certificates_from_pem, chain_to_pem};
use fleetkey_vault::files::{self, FileError, write_private};

use crate::cas::CaFiles;
use crate::pkcs11::{TokenError, label_in, reference_to};
use crate::serve::ServeError;

const NOTE: &str = "rolling";
const BEFORE: &str = "# replaces CA ";

/// A roll that has begun, and not said that it has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rolling {
    /// The CA that it replaces.
    pub before: KeyId,
    /// The label of the next key, where it is made in a token.
    pub label: Option<String>,
    /// The certificate (DER) of the next root, where there is to be one.
    pub root: Option<Vec<u8>>,
}

impl Rolling {
    fn to_text(&self) -> Result<String, TokenError> {
        let label = self.label.as_deref().map_or_else(|| Ok(String::new()), reference_to)?;
        let root =
            self.root.as_ref().map_or_else(String::new, |root| chain_to_pem(std::slice::from_ref(root)));
        Ok(format!("{BEFORE}{}\n{label}{root}", self.before))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut before = [0; 8];
        hex::decode_to_slice(text.lines().next()?.strip_prefix(BEFORE)?, &mut before).ok()?;
        Some(Self {
            before: KeyId(before),
            label: label_in(text).map(str::to_owned),
            root: certificates_from_pem(text).ok().and_then(|roots| roots.into_iter().next()),
        })
    }
}

impl CaFiles<'_> {
    /// Notes that a roll begins, in the place of any that was noted before.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn begin_roll(&self, rolling: &Rolling) -> Result<(), ServeError> {
        let path = self.note();
        self.make_directory()?;
        let text = rolling.to_text().map_err(|why| ServeError::CaToken { path: path.clone(), why })?;
        Ok(write_private(&path, text.as_bytes(), true)?)
    }

    /// The roll that has begun, if one has.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn begun_roll(&self) -> Result<Option<Rolling>, ServeError> {
        let path = self.note();
        Ok(if path.exists() { Rolling::parse(&files::read(&path)?) } else { None })
    }

    /// Notes that no roll is under way.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn end_roll(&self) -> Result<(), ServeError> {
        let path = self.note();
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(FileError::Io { doing: "delete", path, source }.into())
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn note(&self) -> PathBuf {
        self.0.former_cas.join(NOTE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_reads_back() {
        let fleet = crate::fleet::Fleet::create(
            fleetkey_wire::FleetId::from_bytes([1; 16]),
            &[],
            1_800_000_000,
            &mut rand_core::OsRng,
        );
        let root = fleet.unwrap().root().certificate_der().to_vec();
        for label in [None, Some("issuing-2".to_owned())] {
            for root in [None, Some(root.clone())] {
                let note = Rolling { before: KeyId([7; 8]), label: label.clone(), root };
                assert_eq!(Rolling::parse(&note.to_text().unwrap()), Some(note));
            }
        }
        assert_eq!(Rolling::parse("no note\n"), None);
    }
}
