//! How a connection is made.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

/// Where the broker is, and how to speak to it.
#[derive(Debug, Clone)]
pub struct Route {
    /// The broker.
    pub broker: SocketAddr,
    /// The address to connect from: one of them has some 28,000 ports.
    pub from: Option<Ipv4Addr>,
    /// With TLS, if at all.
    pub tls: Option<Tls>,
}

impl Route {
    /// Plain TCP.
    pub const fn plain(broker: SocketAddr) -> Self {
        Self { broker, from: None, tls: None }
    }
}

/// TLS, as one party.
#[derive(Clone)]
pub struct Tls {
    /// With the party's certificate.
    pub config: Arc<ClientConfig>,
    /// What the broker's certificate must be for.
    pub name: ServerName<'static>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}
