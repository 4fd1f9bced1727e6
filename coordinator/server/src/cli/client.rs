//! The way to the coordinator's HTTP API: where it is, what opens it, and what went wrong in plain words.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use fleetkey_coordinator::MAX_BACKUP_BYTES;
use fleetkey_coordinator::api::ErrorBody;
use fleetkey_coordinator::config::Config;
use fleetkey_coordinator::http::Token;
use serde::Serialize;
use serde_json::Value;
use ureq::Agent;
use ureq::http::{HeaderName, Response};

/// Where settings are looked for that were not named.
const CONFIG_FILES: [&str; 2] = ["fleetkey.toml", "/etc/fleetkey/fleetkey.toml"];
/// A million devices fit.
const MAX_ANSWER_BYTES: u64 = 1024 * 1024 * 1024;
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub(crate) struct ClientOptions {
    /// The coordinator's settings: for `serve` its own, for other commands where API and token are
    /// [default: ./fleetkey.toml, then /etc/fleetkey/fleetkey.toml].
    #[arg(long, global = true, value_name = "FILE", env = "FLEETKEY_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
    /// The API's address, instead of the one in the settings: http://HOST:PORT.
    #[arg(long, global = true, value_name = "URL", env = "FLEETKEY_API", hide_env_values = true)]
    api: Option<String>,
    /// The file of the API's token, instead of the one in the settings. FLEETKEY_TOKEN may hold the token itself.
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// The variable that holds a token.
const TOKEN_VARIABLE: &str = "FLEETKEY_TOKEN";

pub(crate) struct Client {
    agent: Agent,
    url: String,
    token: Token,
}

impl Client {
    /// Finds out where the API is. Nothing is asked yet.
    pub(crate) fn connect(options: &ClientOptions) -> anyhow::Result<Self> {
        let token = match std::env::var(TOKEN_VARIABLE) {
            Ok(token) => Some(Token::parse(&token).context(TOKEN_VARIABLE)?),
            Err(_) => options.token_file.as_deref().map(read_token).transpose()?,
        };
        let (url, token) = match (options.api.clone(), token) {
            (Some(url), Some(token)) => (url, token),
            (url, token) => {
                let config = read_config(options.config.as_deref())?;
                let url = url.unwrap_or_else(|| format!("http://{}", config.api.listen));
                (url, token.map_or_else(|| read_token(&config.api.token), Ok)?)
            }
        };
        if !url.starts_with("http://") {
            bail!("{url:?} is not the address of an API: http://HOST:PORT");
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(ANSWER_WITHIN))
            .build()
            .new_agent();
        Ok(Self { agent, url: url.trim_end_matches('/').to_owned(), token })
    }

    pub(crate) fn get(&self, path: &str) -> anyhow::Result<Value> {
        let asked = self.agent.get(self.at(path)).header("authorization", self.bearer()).call();
        self.read(asked)
    }

    /// The same, or nothing where nobody answers at all.
    pub(crate) fn get_if_running(&self, path: &str) -> anyhow::Result<Option<Value>> {
        match self.agent.get(self.at(path)).header("authorization", self.bearer()).call() {
            Ok(answer) => self.read(Ok(answer)).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// A file, with what its header `told` says of it.
    pub(crate) fn get_bytes(&self, path: &str, told: &HeaderName) -> anyhow::Result<(String, Vec<u8>)> {
        let asked = self.agent.get(self.at(path)).header("authorization", self.bearer()).call();
        let mut answer = asked.map_err(|error| self.unreachable(&error))?;
        if !answer.status().is_success() {
            self.read(Ok(answer))?;
            bail!("{} answers no file", self.url);
        }
        let said = answer.headers().get(told).and_then(|value| value.to_str().ok());
        let said = said.with_context(|| format!("{} does not say what it sends", self.url))?.to_owned();
        let limit = MAX_BACKUP_BYTES as u64 + 1;
        let bytes = answer
            .body_mut()
            .with_config()
            .limit(limit)
            .read_to_vec()
            .with_context(|| format!("read the answer of {}", self.url))?;
        Ok((said, bytes))
    }

    pub(crate) fn post(&self, path: &str, body: &impl Serialize) -> anyhow::Result<Value> {
        let asked = self.agent.post(self.at(path)).header("authorization", self.bearer()).send_json(body);
        self.read(asked)
    }

    /// A command that says everything in its path.
    pub(crate) fn post_nothing(&self, path: &str) -> anyhow::Result<Value> {
        let asked = self.agent.post(self.at(path)).header("authorization", self.bearer()).send_empty();
        self.read(asked)
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token.reveal())
    }

    fn read(&self, asked: Result<Response<ureq::Body>, ureq::Error>) -> anyhow::Result<Value> {
        let mut answer = asked.map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        let text = answer
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER_BYTES)
            .read_to_string()
            .with_context(|| format!("read the answer of {}", self.url))?;
        if status.is_success() {
            return serde_json::from_str(&text).with_context(|| format!("{} answers no JSON", self.url));
        }
        match serde_json::from_str::<ErrorBody>(&text) {
            Ok(ErrorBody { message, .. }) => bail!("{message}"),
            Err(_) => bail!("{} answers {status}", self.url),
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> anyhow::Error {
        anyhow::anyhow!("no coordinator answers at {} ({error}): is `fleetkey serve` running?", self.url)
    }
}

/// A name or id as part of a path (RFC 3986 §2.1).
pub(crate) fn segment(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

pub(crate) fn read_config(path: Option<&Path>) -> anyhow::Result<Config> {
    let found = CONFIG_FILES.iter().map(Path::new).find(|path| path.exists());
    let path = path.or(found).context(
        "no settings found: name them with --config FILE (or FLEETKEY_CONFIG), or the API with --api and --token-file",
    )?;
    Ok(Config::load(path, Vec::new())?)
}

fn read_token(path: &Path) -> anyhow::Result<Token> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Token::parse(&text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_a_path() {
        assert_eq!(segment("pump-1_a~"), "pump-1_a~");
        assert_eq!(segment("a/b c?#%é."), "a%2Fb%20c%3F%23%25%C3%A9%2E");
    }
}
