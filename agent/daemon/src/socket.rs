//! How applications on the device reach a running agent: one line of JSON in, one line of JSON out, on a Unix socket
//! that its owner alone may open.
//!
//! Bytes are hexadecimal. A group is named by its UUID or, if that is unambiguous, by its name.
//!
//! ```text
//! {"op":"status"}
//! {"op":"seal","group":"pumps","plaintext":"68690a","context":"","sign":false}   {"ok":{"sealed":"83…"}}
//! {"op":"open","sealed":"83…","context":"","certificates":[]}                  {"ok":{"plaintext":"68690a",…}}
//! {"op":"key","group":"pumps","label":"telemetry","context":"","length":32}    {"ok":{"key":"…","key_epoch":"7.1"}}
//! {"op":"leave","group":"pumps"}                                               {"ok":{}}
//! {"op":"psk_add","group":"pumps","psk":"9f1c…"}                               {"ok":{"id":"…"}}
//! {"op":"psk_remove","id":"…"}                                                 {"ok":{}}
//!                                             {"error":{"name":"unknown_group","message":"…"}}
//! ```
//!
//! Leaves to the caller who may call: whoever can open the socket can use every group's keys.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fleetkey_agent_core::{GroupStatus, PskStatus, Status};
use fleetkey_wire::keys::AppKeyLength;
use fleetkey_wire::psk::PskText;
use fleetkey_wire::{GroupId, Named, PskId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use zeroize::{Zeroize, Zeroizing};

use crate::handle::{AgentHandle, CallError};

/// Longest line, either way, in bytes: room for the largest sealed message in hexadecimal.
pub const MAX_LINE_BYTES: usize = 1024 * 1024;
/// Callers that are served at once; others wait.
const MAX_CALLERS: usize = 16;
/// A caller that says nothing for this long is let go.
const IDLE: Duration = Duration::from_secs(60);
/// Certificates that one request may bring along.
const MAX_CERTIFICATES: usize = 4;

/// What an application asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Where the device stands.
    Status,
    /// Seal a message.
    Seal {
        /// For which group.
        group: String,
        /// The message, in hexadecimal.
        plaintext: String,
        /// What it is bound to, in hexadecimal.
        #[serde(default)]
        context: String,
        /// Whether the device signs it.
        #[serde(default)]
        sign: bool,
    },
    /// Open a sealed message.
    Open {
        /// The sealed message, in hexadecimal.
        sealed: String,
        /// What it is bound to, in hexadecimal.
        #[serde(default)]
        context: String,
        /// The certificate chain of a sender that signs, leaf first, DER in hexadecimal.
        #[serde(default)]
        certificates: Vec<String>,
    },
    /// Derive a key for the application's own use.
    Key {
        /// From which group's key.
        group: String,
        /// What it is for.
        label: String,
        /// What it is bound to, in hexadecimal.
        #[serde(default)]
        context: String,
        /// Its length in bytes, 1 to 64.
        length: u8,
    },
    /// Tell the coordinator that the device wants to be out of a group.
    Leave {
        /// Which group.
        group: String,
    },
    /// Give the device a pre-shared key.
    PskAdd {
        /// For which group: one that the device need not be in yet.
        group: String,
        /// The key.
        psk: PskText,
    },
    /// Take a pre-shared key from the device.
    PskRemove {
        /// Which one.
        id: PskId,
    },
}

/// What an application gets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// It was done.
    Ok(Value),
    /// It was not.
    Error(Failure),
}

/// Why it was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// A stable name.
    pub name: String,
    /// The same for people.
    pub message: String,
}

impl Failure {
    fn new(name: &str, message: impl ToString) -> Self {
        Self { name: name.to_owned(), message: message.to_string() }
    }
}

impl<E: Named + ToString> From<CallError<E>> for Failure {
    fn from(error: CallError<E>) -> Self {
        match error {
            CallError::Stopped => Self::new("stopped", "the agent has stopped"),
            CallError::Refused(refused) => Self::new(refused.name(), refused),
        }
    }
}

/// The socket is taken, or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent answers there.
    #[error("another agent is running: {} is in use", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The system failed.
    #[error("{doing} socket {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The socket.
        path: PathBuf,
        /// The system's word on it.
        source: io::Error,
    },
}

/// The socket of a running agent. Its file goes when it is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Makes the socket at `path`, for its owner alone. One that a dead agent has left there is replaced.
    ///
    /// # Errors
    /// [`SocketError`].
    pub async fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |doing| move |source| SocketError::Io { doing, path: path.to_owned(), source };
        if UnixStream::connect(path).await.is_ok() {
            return Err(SocketError::InUse { path: path.to_owned() });
        }
        // Made under another name, and shown when nobody else can open it any more.
        let draft = path.with_extension(format!("{}.new", std::process::id()));
        remove(&draft).map_err(failed("remove"))?;
        let listener = UnixListener::bind(&draft).map_err(failed("make"))?;
        std::fs::set_permissions(&draft, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .and_then(|()| std::fs::rename(&draft, path))
            .map_err(failed("make"))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers callers for `agent`, for ever.
    pub async fn serve(&self, agent: AgentHandle) {
        let callers = Arc::new(Semaphore::new(MAX_CALLERS));
        loop {
            let Ok(permit) = Arc::clone(&callers).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let agent = agent.clone();
                    tokio::spawn(async move {
                        // A caller that hangs up is not worth a word.
                        _ = attend(stream, &agent).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.path);
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

async fn attend(stream: UnixStream, agent: &AgentHandle) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    while let Some(line) = timeout(IDLE, read_line(&mut read)).await?? {
        let response = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => answer(request, agent).await,
            Err(error) => Err(Failure::new("bad_request", error)),
        };
        let mut response = response.map_or_else(Response::Error, Response::Ok);
        let line = write_line(&response);
        if let Response::Ok(value) = &mut response {
            wipe(value);
        }
        timeout(IDLE, write.write_all(&line)).await??;
    }
    Ok(())
}

/// A response as a line, in a buffer that need not grow: growing leaves copies of keys behind.
fn write_line(response: &Response) -> Zeroizing<Vec<u8>> {
    let room = match response {
        Response::Ok(value) => text_bytes(value),
        Response::Error(failure) => failure.message.len(),
    };
    let mut line = Zeroizing::new(Vec::with_capacity(room * 2 + 4096));
    serde_json::to_writer(&mut *line, response).expect("writing to memory does not fail");
    line.push(b'\n');
    line
}

fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + text_bytes(value)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

/// Derived keys and plaintexts do not stay in memory when they are handed out.
fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(fields) => fields.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The next line; `None` at the end. A line that is too long ends the call.
async fn read_line(read: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut line = Zeroizing::new(Vec::new());
    let limit = MAX_LINE_BYTES as u64 + 1;
    read.take(limit).read_until(b'\n', &mut line).await?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if line.len() > MAX_LINE_BYTES => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "line too long"))
        }
        Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

async fn answer(request: Request, agent: &AgentHandle) -> Result<Value, Failure> {
    match request {
        Request::Status => Ok(status_json(&status(agent).await?)),
        Request::Seal { group, plaintext, context, sign } => {
            let plaintext = Zeroizing::new(bytes("plaintext", &plaintext)?);
            let group = find(agent, &group).await?;
            let sealed = agent.seal(group, &plaintext, &bytes("context", &context)?, sign).await?;
            Ok(json!({ "sealed": hex::encode(sealed) }))
        }
        Request::Open { sealed, context, certificates } => {
            know(agent, &certificates).await?;
            let opened = agent.open(&bytes("sealed", &sealed)?, &bytes("context", &context)?).await?;
            let header = opened.header;
            Ok(json!({
                "plaintext": hex::encode(&opened.plaintext),
                "group": header.group.to_string(),
                "key_epoch": header.key_epoch.to_string(),
                "sender": header.sender.to_string(),
                "signed": header.signed,
                "salt": hex::encode(header.salt),
                "counter": header.counter,
            }))
        }
        Request::Key { group, label, context, length } => {
            let length = AppKeyLength::new(length)
                .ok_or_else(|| Failure::new("bad_request", "length: 1 to 64 bytes can be derived"))?;
            let group = find(agent, &group).await?;
            let (key_epoch, key) = agent.app_key(group, &label, &bytes("context", &context)?, length).await?;
            Ok(json!({ "key": hex::encode(&*key), "key_epoch": key_epoch.to_string() }))
        }
        Request::Leave { group } => {
            agent.leave(find(agent, &group).await?).await?;
            Ok(json!({}))
        }
        Request::PskAdd { group, psk: PskText(psk) } => {
            let id = psk.id();
            agent.add_psk(&group, psk).await?;
            Ok(json!({ "id": id.to_string() }))
        }
        Request::PskRemove { id } => {
            agent.remove_psk(id).await?;
            Ok(json!({}))
        }
    }
}

async fn status(agent: &AgentHandle) -> Result<Status, Failure> {
    agent.status().await.map_err(|stopped| Failure::new("stopped", stopped))
}

async fn know(agent: &AgentHandle, certificates: &[String]) -> Result<(), Failure> {
    if certificates.is_empty() {
        return Ok(());
    }
    if certificates.len() > MAX_CERTIFICATES {
        return Err(Failure::new("bad_request", format!("certificates: at most {MAX_CERTIFICATES}")));
    }
    let chain = certificates.iter().map(|der| bytes("certificates", der)).collect::<Result<Vec<_>, _>>()?;
    match agent.know_sender(&chain).await {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::new("bad_certificate", format!("sender's certificate: {error}"))),
    }
}

/// The group with this id, or the only one of this name.
async fn find(agent: &AgentHandle, group: &str) -> Result<GroupId, Failure> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let status = status(agent).await?;
    let mut named = status.groups.iter().filter(|of| of.name == group);
    match (named.next(), named.next()) {
        (Some(one), None) => Ok(one.group),
        (Some(_), Some(_)) => {
            Err(Failure::new("ambiguous_group", format!("several groups are called {group:?}: use the UUID")))
        }
        (None, _) => {
            Err(Failure::new("unknown_group", format!("the device is not in a group called {group:?}")))
        }
    }
}

fn bytes(field: &'static str, text: &str) -> Result<Vec<u8>, Failure> {
    hex::decode(text).map_err(|error| Failure::new("bad_request", format!("{field}: {error}")))
}

/// A status for people's tools: ids and epochs as text.
pub fn status_json(status: &Status) -> Value {
    let refused: BTreeMap<&str, u64> = status.refused.clone();
    let lacking = status.lacking_psks.iter().map(|(group, psk)| (group.to_string(), psk.to_string()));
    let lacking: BTreeMap<String, String> = lacking.collect();
    json!({
        "fleet": status.fleet.to_string(),
        "device": status.device.to_string(),
        "coordinator_generation": status.generation.0,
        "connected": status.is_connected,
        "answered": status.is_answered,
        "silent_seconds": status.silent_seconds,
        "max_silence_seconds": status.max_silence_seconds,
        "silent": status.is_silent,
        "groups": status.groups.iter().map(group_json).collect::<Vec<_>>(),
        "key_packages": status.key_packages,
        "alarms": status.alarms.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "psks": status.psks.iter().map(psk_json).collect::<Vec<_>>(),
        "lacking_psks": lacking,
        "refused": refused,
    })
}

fn psk_json(of: &PskStatus) -> Value {
    json!({ "id": of.psk.to_string(), "group": of.group.to_string() })
}

fn group_json(of: &GroupStatus) -> Value {
    json!({
        "group": of.group.to_string(),
        "name": of.name,
        "suite": of.suite.name(),
        "cell": of.cell.to_string(),
        "cell_epoch": of.cell_epoch.0,
        "send": of.send.to_string(),
        "oldest": of.oldest.to_string(),
        "held": of.held.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "statement": hex::encode(of.statement.0),
    })
}
