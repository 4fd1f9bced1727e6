//! What the figures were taken on.

use serde::{Deserialize, Serialize};

/// What the figures were taken on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor, as it names itself.
    pub cpu: String,
    /// Its cores, as far as this process may use them.
    pub cores: usize,
    /// The version of this program.
    pub version: String,
    /// Whether it was built to be fast.
    pub is_release: bool,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            cpu: model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            is_release: !cfg!(debug_assertions),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let build = if self.is_release { "release build" } else { "DEBUG BUILD: its times say nothing" };
        write!(f, "{}, {} cores, fleetkey {}, {build}", self.cpu, self.cores, self.version)
    }
}
