//! Files of secrets: readable by their owner alone, and never written over.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rand_core::{OsRng, RngCore};
use zeroize::Zeroizing;

/// Why files were not written, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is something there already.
    #[error("{} exists already, and nothing is written over", path.display())]
    Exists {
        /// The file or directory.
        path: PathBuf,
    },
    /// Others than its owner may read a secret.
    #[error(
        "{} is open to others than its owner (mode {mode:03o}): chmod 600 it, and consider its contents known",
        path.display()
    )]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else is at work on it.
    #[error("another command is at work there ({} is locked): wait until it has ended, and give this one again", path.display())]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// The system failed.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's word on it.
        source: io::Error,
    },
}

impl FileError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}

/// Reads a text file.
///
/// # Errors
/// [`FileError::Io`].
pub fn read(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(FileError::io("read", path))
}

/// Reads a text file that only its owner may read; looked at as opened, not as named.
///
/// # Errors
/// [`FileError`].
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let mut file = File::open(path).map_err(FileError::io("read", path))?;
    check_private(path, &file)?;
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text).map_err(FileError::io("read", path))?;
    Ok(text)
}

#[cfg(unix)]
fn check_private(path: &Path, file: &File) -> Result<(), FileError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = file.metadata().map_err(FileError::io("read", path))?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(FileError::OpenToOthers { path: path.to_owned(), mode }) }
}

#[cfg(not(unix))]
fn check_private(_: &Path, _: &File) -> Result<(), FileError> {
    Ok(())
}

/// Writes a file that is its owner's alone: whole and on the disk under its name, or not there. A file that exists is
/// written over only with `force`.
pub fn write_private(path: &Path, contents: &[u8], force: bool) -> Result<(), FileError> {
    write_whole(path, contents, force, 0o600)
}

/// Writes a file that anybody may read, over the one that is there: whole, or not at all.
pub fn write_public(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    write_whole(path, contents, true, 0o644)
}

fn write_whole(path: &Path, contents: &[u8], force: bool, mode: u32) -> Result<(), FileError> {
    let exists = || FileError::Exists { path: path.to_owned() };
    // Said before the work is done; what counts is the link below.
    if !force && fs::symlink_metadata(path).is_ok() {
        return Err(exists());
    }
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let draft = path.with_file_name(format!(".{name}.{:08x}", OsRng.next_u32()));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let written = options.open(&draft).and_then(|mut file| {
        file.write_all(contents)?;
        file.sync_all()
    });
    let placed = written.and_then(|()| {
        if force {
            return fs::rename(&draft, path);
        }
        // Unlike a rename it fails where something is.
        fs::hard_link(&draft, path)?;
        fs::remove_file(&draft)
    });
    if let Err(error) = placed {
        let _ = fs::remove_file(&draft);
        let is_there = error.kind() == io::ErrorKind::AlreadyExists;
        return Err(if is_there { exists() } else { FileError::io("write", path)(error) });
    }
    sync_directory(path)
}

/// Work on files that one process does at a time. It ends when this is dropped, or its process ends, however it does.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the system keeps the lock while it is open")] File);

impl Lock {
    /// Takes the lock of the file at `path`: another file beside it, which stays.
    ///
    /// # Errors
    /// [`FileError::Busy`] where somebody else has it.
    pub fn beside(path: &Path) -> Result<Self, FileError> {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let path = path.with_file_name(format!(".{name}.lock"));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&path).map_err(FileError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(FileError::Busy { path }),
            Err(TryLockError::Error(source)) => Err(FileError::io("lock", &path)(source)),
        }
    }
}

/// Makes the name of a file last: what is in its directory is on the disk.
pub fn sync_directory(path: &Path) -> Result<(), FileError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(FileError::io("write", parent))
}

/// A directory in the making. It appears under its name when it is complete, or not at all.
#[derive(Debug)]
pub struct NewDirectory {
    path: PathBuf,
    draft: PathBuf,
}

impl NewDirectory {
    /// Begins a directory, which must not exist yet, or be empty.
    pub fn begin(path: &Path) -> Result<Self, FileError> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries.count(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(FileError::io("look into", path)(error)),
        };
        if entries > 0 {
            return Err(FileError::Exists { path: path.to_owned() });
        }
        let name = path.file_name().ok_or_else(|| FileError::Io {
            doing: "make directory",
            path: path.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "it needs a name"),
        })?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(FileError::io("make directory", parent))?;
        let draft = parent.join(format!(".{}.{:08x}", name.display(), OsRng.next_u32()));
        make_directory(&draft)?;
        Ok(Self { path: path.to_owned(), draft })
    }

    /// Where a file is before the directory is complete.
    pub fn draft(&self, name: &str) -> PathBuf {
        self.draft.join(name)
    }

    /// Makes a directory inside.
    pub fn directory(&self, name: &str) -> Result<(), FileError> {
        make_directory(&self.draft(name))
    }

    /// Writes a file inside.
    pub fn write(&self, name: &str, contents: &str) -> Result<(), FileError> {
        let path = self.draft(name);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options.open(&path).and_then(|mut file| {
            file.write_all(contents.as_bytes())?;
            file.sync_all()
        });
        written.map_err(FileError::io("write", &path))
    }

    /// Gives it its name.
    pub fn complete(self) -> Result<(), FileError> {
        fs::rename(&self.draft, &self.path).map_err(|error| {
            let kind = error.kind();
            if kind == io::ErrorKind::AlreadyExists || kind == io::ErrorKind::DirectoryNotEmpty {
                FileError::Exists { path: self.path.clone() }
            } else {
                FileError::io("make directory", &self.path)(error)
            }
        })
    }
}

impl Drop for NewDirectory {
    fn drop(&mut self) {
        // Once it has its name there is nothing left under the draft's.
        let _ = fs::remove_dir_all(&self.draft);
    }
}

fn make_directory(path: &Path) -> Result<(), FileError> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(FileError::io("make directory", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_appears_complete_or_not_at_all() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b");
        let abandoned = NewDirectory::begin(&path).unwrap();
        abandoned.write("file", "text").unwrap();
        drop(abandoned);
        assert!(fs::read_dir(home.path().join("a")).unwrap().next().is_none());

        let new = NewDirectory::begin(&path).unwrap();
        new.write("file", "text").unwrap();
        assert!(!path.exists());
        new.complete().unwrap();
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "text");
    }

    #[test]
    fn a_directory_with_something_in_it_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("mine"), "").unwrap();
        assert!(matches!(NewDirectory::begin(home.path()), Err(FileError::Exists { .. })));
    }

    #[test]
    fn a_file_is_written_over_only_where_that_was_said() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("file");
        write_private(&path, b"one", false).unwrap();
        assert!(matches!(write_private(&path, b"two", false), Err(FileError::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write_private(&path, b"three", true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_lock_is_one_holders_at_a_time() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("file");
        let held = Lock::beside(&path).unwrap();
        assert!(matches!(Lock::beside(&path), Err(FileError::Busy { .. })));
        Lock::beside(&home.path().join("other")).unwrap();
        drop(held);
        Lock::beside(&path).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn files_are_their_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("d");
        let new = NewDirectory::begin(&path).unwrap();
        new.write("file", "text").unwrap();
        new.complete().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join("file")), 0o600);

        assert_eq!(*read_secret(&path.join("file")).unwrap(), "text");
        fs::set_permissions(path.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read_secret(&path.join("file")), Err(FileError::OpenToOthers { mode: 0o640, .. })));
    }
}
