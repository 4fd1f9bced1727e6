//! Where the executables are: beside the running test, or built there when they are missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

const PACKAGES: [(&str, &str); 3] = [
    ("fleetkey", "fleetkey-coordinator"),
    ("fleetkey-agent", "fleetkey-agent"),
    ("fleetkey-broker", "fleetkey-broker"),
];

/// The directory with the executables of one build.
#[derive(Debug, Clone)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Finds them, and builds what is missing.
    ///
    /// # Errors
    /// When there is no telling where they are, or they cannot be built.
    pub fn find() -> Result<Self> {
        let test = std::env::current_exe().context("where is this test")?;
        // target/PROFILE/deps/TEST
        let directory =
            test.parent().and_then(Path::parent).context("this test lies in no target directory")?;
        let directory = directory.to_owned();
        let missing: Vec<&str> = PACKAGES
            .iter()
            .filter(|(binary, _)| !directory.join(binary).exists())
            .map(|(_, package)| *package)
            .collect();
        if !missing.is_empty() {
            build(&directory, &missing)?;
        }
        Ok(Self { directory })
    }

    /// A command that takes nothing from the environment but what programs need.
    pub fn command(&self, binary: &str) -> Command {
        let mut command = Command::new(self.directory.join(binary));
        command.env_clear();
        for name in ["PATH", "TMPDIR", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }
}

fn build(directory: &Path, packages: &[&str]) -> Result<()> {
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => bail!("{} names no profile", directory.display()),
    };
    let target = directory.parent().context("a target directory")?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--locked", "--bins", "--profile", profile, "--target-dir"]).arg(target);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    for package in packages {
        command.args(["--package", package]);
    }
    eprintln!("building {}", packages.join(", "));
    let status = command.status().context("run cargo")?;
    ensure!(status.success(), "not run: {packages:?} cannot be built; try `cargo build --workspace --bins`");
    Ok(())
}
