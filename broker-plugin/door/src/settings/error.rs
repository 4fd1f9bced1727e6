//! Settings that cannot be used: what is wrong, by name, and what to do about it.

use std::io;
use std::path::PathBuf;

use fleetkey_identity::{BadCertificate, BadPem, Role};

use crate::crl_file::CrlError;

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A key that is not known, a value that does not fit, or no TOML at all.
    #[error("{}: {why}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong, by name.
        why: String,
    },
    /// A file cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: BadPem,
    },
    /// The broker's certificate is not one that clients will accept.
    #[error("{}: {source}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: BadCertificate,
    },
    /// The certificate is somebody else's.
    #[error("{} is not a broker's certificate, but one of {role}", path.display())]
    NotBroker {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        role: Role,
    },
    /// Clients check the name that they connected to.
    #[error("{} is not certified for any host name: clients will not accept it", path.display())]
    NoHostName {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key do not belong together.
    #[error("{} and {} do not belong together: {source}", certificate.display(), key.display())]
    Tls {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What TLS says.
        source: rustls::Error,
    },
    /// The CRL cannot be used.
    #[error(transparent)]
    Crl(#[from] CrlError),
    /// Members are known from the coordinator only.
    #[error("policy.url is not set: say where the coordinator is, or set policy.cells to \"any_device\"")]
    NoPolicy,
    /// The stream needs a token.
    #[error("policy.token is not set: the coordinator wants to know who asks")]
    NoToken,
    /// Not the address of a stream.
    #[error("policy.url is {url:?}, not http://host:port/path")]
    BadUrl {
        /// What was set.
        url: String,
    },
    /// The token would travel in the clear.
    #[error(
        "policy.url names another host ({host}), and the stream is not encrypted: set policy.allow_remote if the way \
         there is safe"
    )]
    RemotePolicy {
        /// The host.
        host: String,
    },
    /// A limit of nothing.
    #[error("limits.{name} cannot be {value}")]
    BadLimit {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: u64,
    },
}
