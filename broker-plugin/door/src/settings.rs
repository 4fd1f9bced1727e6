//! Settings that every broker of ours has: TLS, the policy's stream, logs; and the layers that settings come in.
//!
//! A key that is not known is refused by name: a misspelt setting must not be a default in disguise. Paths are
//! relative to the file they stand in. Leaves to each broker what else it has, and the names of its variables.

mod error;
mod policy;
mod tls;

use std::path::Path;

use config::{Environment, File, FileFormat};
use serde::Deserialize;
use serde::de::DeserializeOwned;

pub use error::SettingsError;
pub use policy::{Cells, PolicySettings};
pub use tls::{TlsSettings, TlsSetup};

/// Settings that flags put on top.
pub type Overrides = Vec<(&'static str, config::Value)>;

/// Logs, which go to standard error.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// How they look.
    pub format: LogFormat,
    /// What is logged: `info`, or finer, such as `info,fleetkey_broker=debug`.
    pub filter: String,
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// Lines of JSON.
    Json,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { format: LogFormat::default(), filter: "info,rumqttd=warn,rmqtt=warn,rmqtt_net=warn,rmqtt_raft=warn,rmqtt_raft_core=warn,rmqtt_cluster_raft=warn".into() }
    }
}

/// Where settings come from, one layer above the other.
#[derive(Debug, Clone)]
pub struct Layers<'a> {
    /// The file, or what stands for it when there is none: for what is said of it.
    pub path: &'a Path,
    /// What it says.
    pub text: &'a str,
    /// Variables.
    pub environment: Environment,
    /// What every variable begins with.
    pub prefix: &'a str,
    /// Settings that are lists; in a variable their items are separated by commas.
    pub lists: &'a [&'a str],
    /// Flags.
    pub overrides: Overrides,
}

impl Layers<'_> {
    /// Puts the layers on top of each other: the file, then variables, then flags.
    ///
    /// # Errors
    /// [`SettingsError::Bad`], naming the file and what is wrong in it.
    pub fn settle<T: DeserializeOwned>(self) -> Result<T, SettingsError> {
        let bad = |error: config::ConfigError| SettingsError::Bad {
            path: self.path.to_owned(),
            // One line: TOML's own errors draw a picture of the place.
            why: error.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
        };
        let mut environment = self
            .environment
            .prefix(self.prefix)
            .prefix_separator("__")
            .separator("__")
            .list_separator(",")
            .try_parsing(true);
        for list in self.lists {
            environment = environment.with_list_parse_key(list);
        }
        let mut layers = config::Config::builder()
            .add_source(File::from_str(self.text, FileFormat::Toml))
            .add_source(environment);
        for (key, value) in self.overrides {
            layers = layers.set_override(key, value).map_err(bad)?;
        }
        layers.build().and_then(config::Config::try_deserialize).map_err(bad)
    }
}

/// What a file says.
///
/// # Errors
/// [`SettingsError::Read`].
pub fn read(path: &Path) -> Result<String, SettingsError> {
    std::fs::read_to_string(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })
}

/// Whether a limit is at least as large as makes sense.
///
/// # Errors
/// [`SettingsError::BadLimit`].
pub fn at_least(name: &'static str, value: u64, least: u64) -> Result<(), SettingsError> {
    if value < least { Err(SettingsError::BadLimit { name, value }) } else { Ok(()) }
}
