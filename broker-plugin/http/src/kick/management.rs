//! The management APIs of EMQX and RabbitMQ, as far as ending a session goes.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetkey_wire::DeviceId;
use ureq::http::StatusCode;
use zeroize::Zeroizing;

/// The API answers within this, or is asked again.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Whose API it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManagementKind {
    /// EMQX 5: a session goes by its client id.
    Emqx,
    /// RabbitMQ: a session is the connections of a user, and the queues that outlive them.
    RabbitMq {
        /// The virtual host of the fleet.
        vhost: String,
    },
}

/// A broker's management API, and the account to use there.
pub struct Management {
    kind: ManagementKind,
    url: String,
    authorization: Zeroizing<String>,
    agent: ureq::Agent,
}

/// Why a session may still be there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error("{0}")]
    Http(#[from] ureq::Error),
    #[error("the broker answers {0}")]
    Status(StatusCode),
}

impl Management {
    /// The API at `url` (`http://host:port`), for the account with this name and secret.
    pub fn new(kind: ManagementKind, url: &str, account: &str, secret: &str) -> Self {
        let credentials = Zeroizing::new(format!("{account}:{secret}"));
        let authorization = Zeroizing::new(format!("Basic {}", STANDARD.encode(credentials.as_bytes())));
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .max_redirects(0)
            .http_status_as_error(false)
            .build()
            .into();
        Self { kind, url: url.trim_end_matches('/').to_owned(), authorization, agent }
    }

    /// Ends what there is of the device's sessions; answers whether there was anything.
    pub(crate) fn end_session(&self, device: DeviceId) -> Result<bool, Failed> {
        match &self.kind {
            // Its session goes with it, however long it was to live.
            ManagementKind::Emqx => self.delete(&format!("/api/v5/clients/{device}")),
            ManagementKind::RabbitMq { vhost } => {
                let mut found = self.delete(&format!("/api/connections/username/{device}"))?;
                let vhost = percent_encoded(vhost);
                for qos in [0, 1] {
                    found |=
                        self.delete(&format!("/api/queues/{vhost}/mqtt-subscription-{device}qos{qos}"))?;
                }
                Ok(found)
            }
        }
    }

    fn delete(&self, path: &str) -> Result<bool, Failed> {
        let answer = self
            .agent
            .delete(format!("{}{path}", self.url))
            .header("Authorization", self.authorization.as_str())
            .call()?;
        match answer.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            status => Err(Failed::Status(status)),
        }
    }
}

impl fmt::Debug for Management {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Management").field("kind", &self.kind).field("url", &self.url).finish_non_exhaustive()
    }
}

/// For one segment of a path: RabbitMQ's first virtual host is called `/`.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_host_is_one_segment_of_a_path() {
        assert_eq!(percent_encoded("/"), "%2F");
        assert_eq!(percent_encoded("a b/..?#%"), "a%20b%2F%2E%2E%3F%23%25");
    }

    #[test]
    fn the_secret_is_not_printed() {
        let management = Management::new(ManagementKind::Emqx, "http://127.0.0.1:1", "key", "hunter2");
        let shown = format!("{management:?}");
        assert!(!shown.contains("hunter2") && !shown.contains(&STANDARD.encode("key:hunter2")), "{shown}");
    }
}
