//! A disk that is full, for one process: a small tmpfs where mounting is allowed, else a limit on the size of files.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::Process;

/// A tmpfs is as large as this.
const BYTES: usize = 12 * 1024 * 1024;
/// Under a limit no file can be written to beyond this.
const LIMIT_BYTES: u64 = 4096;

/// Space for one process's files, which can run out.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Full when a file of ours takes what is left.
    Mounted,
    /// Full when the process is told so by `prlimit`.
    Limited,
}

impl Disk {
    /// An empty one at `path`, which is made. `None` where neither way is open here; why is said on standard error.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(path: PathBuf) -> Result<Option<Self>> {
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        let may_mount = std::env::var_os("FLEETKEY_KILLS_NO_MOUNT").is_none();
        let size = format!("size={BYTES},mode=0700");
        let mounted = may_mount
            && succeeds(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path));
        if mounted {
            return Ok(Some(Self { path, kind: Kind::Mounted }));
        }
        if succeeds(Command::new("prlimit").arg("--version")) {
            eprintln!("no tmpfs can be mounted here: the size of files is limited instead");
            return Ok(Some(Self { path, kind: Kind::Limited }));
        }
        eprintln!("NOT RUN: a full disk needs mount (as root) or prlimit (of util-linux)");
        Ok(None)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a database here, with what lies beside it.
    ///
    /// # Errors
    /// When a file cannot be copied.
    pub fn take_in(&self, database: &Path) -> Result<PathBuf> {
        let name = database.file_name().context("a file")?;
        for beside in ["", "-wal", "-journal"] {
            let with = |path: &Path| {
                let mut path = OsString::from(path);
                path.push(beside);
                PathBuf::from(path)
            };
            let (from, to) = (with(database), with(&self.path.join(name)));
            if from.exists() {
                fs::copy(&from, &to).with_context(|| from.display().to_string())?;
                fs::remove_file(&from)?;
            }
        }
        Ok(self.path.join(name))
    }

    /// The same command, so that it outlives a limit: a file that would be too large is an error, and no signal.
    pub fn wrap(&self, command: &Command) -> Command {
        let mut wrapped = Command::new("sh");
        wrapped
            .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
            .arg(command.get_program())
            .args(command.get_args());
        wrapped.env_clear();
        wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        wrapped
    }

    /// From now on there is no space.
    ///
    /// # Errors
    /// When it cannot be taken.
    pub fn fill(&self, process: &Process) -> Result<()> {
        match self.kind {
            Kind::Mounted => {
                fill_up(&mut File::create(self.ballast())?)?;
                // A page that was begun has room for a few lines more.
                if process.log().starts_with(&self.path) {
                    fill_up(&mut OpenOptions::new().append(true).open(process.log())?)?;
                }
                Ok(())
            }
            Kind::Limited => limit(process, &LIMIT_BYTES.to_string()),
        }
    }

    /// There is space again.
    ///
    /// # Errors
    /// When it cannot be given back.
    pub fn clear(&self, process: &Process) -> Result<()> {
        match self.kind {
            Kind::Mounted => fs::remove_file(self.ballast()).context("clear the disk"),
            // A limit ends with its process.
            Kind::Limited if process.id().is_none() => Ok(()),
            Kind::Limited => limit(process, "unlimited"),
        }
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.kind == Kind::Mounted {
            // Lazily: a process that ends later still has its files.
            succeeds(Command::new("umount").arg("-l").arg(&self.path));
        }
    }
}

/// Writes until nothing more fits.
fn fill_up(file: &mut File) -> Result<()> {
    for chunk in [64 * 1024, 512, 1] {
        loop {
            match file.write(&vec![b'\n'; chunk]) {
                Ok(_) => {}
                Err(full) if full.kind() == ErrorKind::StorageFull => break,
                Err(other) => return Err(other).context("fill the disk"),
            }
        }
    }
    Ok(())
}

/// The soft limit: the hard one could not be raised again.
fn limit(process: &Process, bytes: &str) -> Result<()> {
    let id = process.id().context("it does not run")?.to_string();
    let set = succeeds(Command::new("prlimit").args(["--pid", &id, &format!("--fsize={bytes}:")]));
    ensure!(set, "prlimit --fsize={bytes} failed");
    Ok(())
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}
