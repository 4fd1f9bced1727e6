//! Where the broker is: `mqtt://host[:port]` or `mqtts://host[:port]`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

const MQTT_PORT: u16 = 1883;
const MQTTS_PORT: u16 = 8883;

/// A broker's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BrokerUrl {
    tls: bool,
    host: String,
    port: u16,
}

/// A text that is not a broker's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is not a broker's address: {what} (expected mqtt://host:port or mqtts://host:port)")]
pub struct BadBrokerUrl {
    /// What was given, cut to 128 characters.
    pub url: String,
    /// What is wrong with it.
    pub what: &'static str,
}

impl BrokerUrl {
    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Host name or IP address (IPv6 without brackets).
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for BrokerUrl {
    type Err = BadBrokerUrl;

    fn from_str(url: &str) -> Result<Self, BadBrokerUrl> {
        let bad = |what| BadBrokerUrl { url: url.chars().take(128).collect(), what };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("no scheme"))?;
        let tls = match scheme {
            "mqtt" => false,
            "mqtts" => true,
            _ => return Err(bad("unknown scheme")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('@') {
            return Err(bad("user names do not belong here"));
        }
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(|| bad("no ] after the IPv6 address"))?;
                host.parse::<Ipv6Addr>().map_err(|_| bad("not an IPv6 address"))?;
                if tls {
                    return Err(bad("TLS needs a host name or an IPv4 address"));
                }
                let port = match port.strip_prefix(':') {
                    Some(port) => Some(port),
                    None if port.is_empty() => None,
                    None => return Err(bad("something other than a port after the host")),
                };
                (host, port)
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        if host.is_empty() {
            return Err(bad("no host"));
        }
        let is_name_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
        if host.len() > 253 || !host.bytes().all(is_name_byte) {
            return Err(bad("not a host name"));
        }
        let port = match port {
            None if tls => MQTTS_PORT,
            None => MQTT_PORT,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().ok().filter(|port| *port != 0).ok_or_else(|| bad("not a port"))?
            }
            Some(_) => return Err(bad("not a port")),
        };
        Ok(Self { tls, host: host.to_owned(), port })
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_and_without_port() {
        for (text, shown) in [
            ("mqtt://localhost", "mqtt://localhost:1883"),
            ("mqtts://broker.example", "mqtts://broker.example:8883"),
            ("mqtt://127.0.0.1:1884", "mqtt://127.0.0.1:1884"),
            ("mqtts://broker-1.example:443/", "mqtts://broker-1.example:443"),
            ("mqtt://[::1]", "mqtt://[::1]:1883"),
            ("mqtt://[2001:db8::7]:99", "mqtt://[2001:db8::7]:99"),
        ] {
            let url: BrokerUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(shown.parse(), Ok(url));
        }
    }

    #[test]
    fn anything_else_is_refused_with_its_reason() {
        for (text, what) in [
            ("", "no scheme"),
            ("localhost:1883", "no scheme"),
            ("tcp://localhost", "unknown scheme"),
            ("MQTT://localhost", "unknown scheme"),
            ("mqtt://", "no host"),
            ("mqtt://:1883", "no host"),
            ("mqtt://host:", "not a port"),
            ("mqtt://host:0", "not a port"),
            ("mqtt://host:+1", "not a port"),
            ("mqtt://host:65536", "not a port"),
            ("mqtt://host:1883/path", "not a port"),
            ("mqtt://host/path", "not a host name"),
            ("mqtt://ho st", "not a host name"),
            ("mqtt://user:secret@host", "user names do not belong here"),
            ("mqtt://[::1", "no ] after the IPv6 address"),
            ("mqtt://[x]", "not an IPv6 address"),
            ("mqtt://[::1]x", "something other than a port after the host"),
            ("mqtts://[::1]", "TLS needs a host name or an IPv4 address"),
        ] {
            let refused = text.parse::<BrokerUrl>().unwrap_err();
            assert_eq!(refused.what, what, "{text}");
            assert!(refused.to_string().contains("mqtt://host:port"));
        }
    }
}
