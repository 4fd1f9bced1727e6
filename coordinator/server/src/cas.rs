//! The fleet's CAs as files: the one that issues, those that did before, and what roots say of one another.
//!
//! ```text
//! ca.pem                      the CA that issues: its certificates, and its key
//! former-cas/ID.pem           a CA that issued before: it still signs its revocation list
//! former-cas/ID.retired       a CA that has been retired: its certificate, and its last revocation list
//! former-cas/ID.unpinned      a root that is pinned no more: its certificate
//! former-cas/root-links.pem   what older roots say of newer ones
//! former-cas/rolling          a roll that has begun, and not ended
//! .ca.pem.lock                locked while somebody changes these files
//! ```
//!
//! Each file is written whole, and in an order in which whoever is interrupted can begin again. Leaves to the
//! [`crate::Authority`] what is issued.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use fleetkey_identity::{
    BadPem, Crl, FleetCa, FleetRoots, KeyId, certificates_among_crls, certificates_from_pem, chain_to_pem,
    crl_to_pem,
};
use fleetkey_vault::files::{self, FileError, Lock, write_private};

use crate::config::IdentityConfig;
use crate::serve::{ServeError, read_ca};

const KEPT: &str = "pem";
const RETIRED: &str = "retired";
/// What the line of a retired CA's file begins with that says when its last certificate ends.
const UNTIL: &str = "# the last certificate ends at ";
const UNPINNED: &str = "unpinned";
const ROOT_LINKS: &str = "root-links.pem";

/// The CAs of a fleet.
#[derive(Debug)]
pub struct Cas {
    /// The one that issues.
    pub issuing: FleetCa,
    /// Those that did before, and still count.
    pub former: Vec<FleetCa>,
    /// Those that count no more.
    pub retired: Vec<RetiredCa>,
    /// Certificates (DER) of newer roots by older ones.
    pub links: Vec<Vec<u8>>,
}

/// A CA that counts no more.
#[derive(Debug, Clone)]
pub struct RetiredCa {
    /// Its certificate (DER).
    pub certificate: Vec<u8>,
    /// Its last revocation list (DER).
    pub last_list: Vec<u8>,
    /// When the last certificate that it issued ends (Unix seconds), if that is known.
    pub certificates_until: Option<u64>,
}

impl RetiredCa {
    /// Names it.
    pub fn id(&self) -> KeyId {
        KeyId::of_certificate(&self.certificate)
    }

    /// Whether a certificate that it issued may still be valid.
    pub fn may_count(&self, now_unix_seconds: u64) -> bool {
        self.certificates_until.is_none_or(|until| until >= now_unix_seconds)
    }

    /// Its file's text.
    pub(crate) fn to_pem(&self) -> String {
        let until = self.certificates_until.map_or_else(String::new, |until| format!("{UNTIL}{until}\n"));
        format!(
            "{until}{}{}",
            chain_to_pem(std::slice::from_ref(&self.certificate)),
            crl_to_pem(&self.last_list)
        )
    }

    /// Whether it is a root, and not an intermediate.
    pub fn is_root(&self) -> bool {
        FleetRoots::new(std::slice::from_ref(&self.certificate)).is_ok()
    }
}

/// What tells one state of the files from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<(PathBuf, Option<(SystemTime, u64)>)>);

impl Cas {
    /// A CA and no other.
    pub fn only(issuing: FleetCa) -> Self {
        Self { issuing, former: Vec::new(), retired: Vec::new(), links: Vec::new() }
    }

    /// Reads all of them; none where the settings name no CA.
    ///
    /// # Errors
    /// [`ServeError`], naming the file.
    pub fn read(config: &IdentityConfig) -> Result<Option<Self>, ServeError> {
        let Some(path) = &config.ca else { return Ok(None) };
        let mut cas = Self::only(read_ca(path, config)?);
        for path in entries(&config.former_cas)? {
            if is_kept(&path) {
                let ca = read_ca(&path, config)?;
                // Whoever was interrupted between two files has one CA in both.
                if ca.id() != cas.issuing.id() {
                    cas.former.push(ca);
                }
            } else if is_named(&path, RETIRED) {
                cas.retired.push(read_retired(&path)?);
            }
        }
        cas.former.retain(|ca| cas.retired.iter().all(|retired| retired.id() != ca.id()));
        let links = config.former_cas.join(ROOT_LINKS);
        if links.exists() {
            cas.links = certificates_from_pem(&files::read(&links)?).map_err(bad_pem(&links))?;
        }
        Ok(Some(cas))
    }

    /// The files of CAs that issued before, with their keys.
    ///
    /// # Errors
    /// [`ServeError`], naming the directory.
    pub fn kept_files(config: &IdentityConfig) -> Result<Vec<PathBuf>, ServeError> {
        Ok(entries(&config.former_cas)?.into_iter().filter(|path| is_kept(path)).collect())
    }

    /// Those that sign revocation lists.
    pub fn signing(&self) -> impl Iterator<Item = &FleetCa> {
        [&self.issuing].into_iter().chain(&self.former)
    }

    /// The CA that one of these certificates is of, whichever root has signed it.
    pub fn id_of(&self, certificate: KeyId) -> KeyId {
        let is_of = |ca: &&FleetCa| ca.certificates().any(|der| KeyId::of_certificate(der) == certificate);
        self.signing().find(is_of).map_or(certificate, FleetCa::id)
    }

    /// What devices are to know of them: roots, what these say of one another, and intermediates.
    pub fn certificates(&self, roots: &FleetRoots) -> Vec<Vec<u8>> {
        let mut all = roots.ders();
        let own = self.signing().flat_map(FleetCa::certificates).map(<[u8]>::to_vec);
        for der in own.chain(self.links.iter().cloned()) {
            if !all.contains(&der) {
                all.push(der);
            }
        }
        all
    }
}

/// The files of a fleet's CAs, and what is done to them.
#[derive(Debug, Clone)]
pub struct CaFiles<'a>(pub &'a IdentityConfig);

impl CaFiles<'_> {
    /// Takes the lock that whoever changes these files holds until all is done.
    ///
    /// # Errors
    /// [`FileError::Busy`] where somebody else does.
    pub fn lock(&self) -> Result<Lock, ServeError> {
        Ok(Lock::beside(self.issuing()?)?)
    }

    /// Puts a new CA in the place of the one that issues, which is kept. `encrypt` makes its file's text.
    ///
    /// # Errors
    /// [`ServeError`]; the CA before then still issues.
    pub fn replace_issuing(&self, before: KeyId, after: &str) -> Result<(), ServeError> {
        let path = self.issuing()?;
        let kept = self.former(before);
        self.make_directory()?;
        write_private(&kept, files::read_secret(path)?.as_bytes(), true)?;
        write_private(path, after.as_bytes(), true)?;
        Ok(())
    }

    /// Pins a further root, with what the one before says of it; what is there already stays as it is.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn add_root(&self, root: &FleetCa, link: &[u8]) -> Result<(), ServeError> {
        self.make_directory()?;
        add_certificate(&self.0.former_cas.join(ROOT_LINKS), link)?;
        add_certificate(&self.0.roots, root.certificate_der())
    }

    /// Puts down the last word of a CA, and its key away. Where the key of a root is put, if it was one: nothing here
    /// reads it any more.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn retire(&self, ca: &RetiredCa) -> Result<Option<PathBuf>, ServeError> {
        self.make_directory()?;
        write_private(&self.retired(ca.id()), ca.to_pem().as_bytes(), true)?;
        self.put_key_away(ca.id(), ca.is_root())
    }

    /// Puts the key of a retired CA away: where that of a root is by now. Done again it changes nothing.
    ///
    /// # Errors
    /// [`ServeError`].
    pub(crate) fn put_key_away(&self, ca: KeyId, is_root: bool) -> Result<Option<PathBuf>, ServeError> {
        let (kept, place) = (self.former(ca), self.0.former_cas.join(format!("{ca}.root-key")));
        let moved = if is_root { std::fs::rename(&kept, &place) } else { std::fs::remove_file(&kept) };
        match moved {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(FileError::Io { doing: "put away", path: kept, source }.into());
            }
            Ok(()) | Err(_) => {}
        }
        files::sync_directory(&kept)?;
        Ok((is_root && place.exists()).then_some(place))
    }

    /// Whether the file of a CA that issued before is there still, with its key.
    pub(crate) fn keeps(&self, ca: KeyId) -> bool {
        self.former(ca).exists()
    }

    /// Pins a root (DER) no more; the CA that issues shows its own certificate again. `issuing` is its file's text then.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn retire_root(&self, gone: &[u8], left: &[Vec<u8>], issuing: &str) -> Result<(), ServeError> {
        self.make_directory()?;
        let unpinned = self.unpinned(KeyId::of_certificate(gone));
        write_private(&unpinned, chain_to_pem(&[gone.to_vec()]).as_bytes(), true)?;
        write_private(self.issuing()?, issuing.as_bytes(), true)?;
        write_private(&self.0.roots, chain_to_pem(left).as_bytes(), true)?;
        Ok(())
    }

    /// Whether this root was pinned once; it may be still where somebody was interrupted.
    pub(crate) fn is_unpinned(&self, root: KeyId) -> bool {
        self.unpinned(root).exists()
    }

    /// What the files are by now.
    pub(crate) fn stamp(&self) -> Stamp {
        let mut all = vec![self.0.roots.clone()];
        all.extend(self.0.ca.clone());
        // What cannot be listed has changed when it can.
        all.extend(entries(&self.0.former_cas).unwrap_or_default());
        let stamp = |path: PathBuf| {
            let state = std::fs::metadata(&path).and_then(|data| Ok((data.modified()?, data.len())));
            (path, state.ok())
        };
        Stamp(all.into_iter().map(stamp).collect())
    }

    fn issuing(&self) -> Result<&Path, ServeError> {
        self.0.ca.as_deref().ok_or(ServeError::NoAuthority)
    }

    fn former(&self, ca: KeyId) -> PathBuf {
        self.0.former_cas.join(format!("{ca}.{KEPT}"))
    }

    fn retired(&self, ca: KeyId) -> PathBuf {
        self.0.former_cas.join(format!("{ca}.{RETIRED}"))
    }

    fn unpinned(&self, root: KeyId) -> PathBuf {
        self.0.former_cas.join(format!("{root}.{UNPINNED}"))
    }

    pub(crate) fn make_directory(&self) -> Result<(), ServeError> {
        let path = &self.0.former_cas;
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder
            .create(path)
            .map_err(|source| FileError::Io { doing: "make directory", path: path.clone(), source }.into())
    }
}

/// Adds a certificate (DER) to those in a file, if it is not one of them.
fn add_certificate(path: &Path, der: &[u8]) -> Result<(), ServeError> {
    let before = if path.exists() { files::read(path)? } else { String::new() };
    let is_there = certificates_from_pem(&before).is_ok_and(|all| all.iter().any(|known| known == der));
    if !is_there {
        let added = chain_to_pem(&[der.to_vec()]);
        write_private(path, format!("{before}{added}").as_bytes(), true)?;
    }
    Ok(())
}

fn is_kept(path: &Path) -> bool {
    is_named(path, KEPT) && path.file_name().is_some_and(|name| name != ROOT_LINKS)
}

fn read_retired(path: &Path) -> Result<RetiredCa, ServeError> {
    let text = files::read(path)?;
    let missing = BadPem::Missing { what: "certificate" };
    let certificate = certificates_among_crls(&text).into_iter().next();
    let certificate = certificate.ok_or(missing).map_err(bad_pem(path))?;
    let bad = |source| ServeError::Crl { path: path.to_owned(), source };
    Crl::read(text.as_bytes()).map_err(bad)?;
    let last_list = fleetkey_identity::crls_from_pem(&text).map_err(bad)?.swap_remove(0);
    let certificates_until = text.lines().find_map(|line| line.strip_prefix(UNTIL)?.parse().ok());
    Ok(RetiredCa { certificate, last_list, certificates_until })
}

/// What is in a directory, in order; nothing where there is none.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, ServeError> {
    let look = |source| FileError::Io { doing: "look into", path: directory.to_owned(), source };
    let listed = match std::fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(look(error).into()),
    };
    let mut paths = Vec::new();
    for entry in listed {
        let path = entry.map_err(look)?.path();
        // Drafts of files that are being written begin with a dot.
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn is_named(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|got| got == extension)
}

fn bad_pem(path: &Path) -> impl FnOnce(BadPem) -> ServeError {
    move |why| ServeError::Pem { path: path.to_owned(), why }
}
