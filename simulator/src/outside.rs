//! A broker that is not started here, and knows this fleet all the same: it is given its papers as files, and the policy
//! over HTTP, as from a coordinator's service.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fleetkey_coordinator::{Fleet as Identities, PolicyFeed, PolicyStream, write_private};
use fleetkey_identity::chain_to_pem;
use fleetkey_mqtt::BrokerUrl;
use rand_core::{OsRng, RngCore as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

/// How long a broker may take to start, once its papers are there.
const PATIENCE: Duration = Duration::from_secs(300);
/// After this long without news a blank line shows that the stream is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(100);
const MAX_REQUEST_BYTES: usize = 8 * 1024;

/// A broker outside: its nodes, and what they are given.
#[derive(Debug, Clone)]
pub struct Outside {
    /// The nodes.
    pub urls: Vec<BrokerUrl>,
    /// Where their papers are written.
    pub papers: PathBuf,
    /// Where they ask for the policy.
    pub policy: SocketAddr,
}

/// Tells brokers of the policy until it is dropped.
#[derive(Debug)]
pub struct PolicyServer(JoinHandle<()>);

impl Drop for PolicyServer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Outside {
    /// Writes the papers, serves the policy, and waits until every node listens.
    pub(crate) async fn let_in(
        &self,
        identities: &Identities,
        feed: &PolicyFeed,
    ) -> anyhow::Result<PolicyServer> {
        let socket = TcpListener::bind(self.policy)
            .await
            .with_context(|| format!("serve the policy on {}", self.policy))?;
        let mut token = [0; 32];
        OsRng.fill_bytes(&mut token);
        let token: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
        let server = PolicyServer(tokio::spawn(serve(socket, feed.clone(), format!("Bearer {token}"))));

        std::fs::create_dir_all(&self.papers).with_context(|| format!("create {}", self.papers.display()))?;
        let party = &identities.broker;
        // The token is last: where it is, the others are.
        for (name, text) in [
            ("fleet-roots.pem", Zeroizing::new(identities.roots().to_pem())),
            ("broker.crt", Zeroizing::new(chain_to_pem(&party.chain))),
            ("broker.key", party.key.to_pkcs8_pem()),
            ("broker.token", Zeroizing::new(token)),
        ] {
            write_private(&self.papers.join(name), text.as_bytes(), true)
                .with_context(|| format!("write {name}"))?;
        }
        let deadline = Instant::now() + PATIENCE;
        for url in &self.urls {
            while let Err(error) = TcpStream::connect((url.host(), url.port())).await {
                if Instant::now() >= deadline {
                    return Err(error).with_context(|| format!("wait for the broker at {url}"));
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(server)
    }
}

async fn serve(socket: TcpListener, feed: PolicyFeed, authorization: String) {
    while let Ok((stream, _)) = socket.accept().await {
        let (updates, authorization) = (feed.subscribe(), authorization.clone());
        tokio::spawn(async move {
            if let Err(error) = answer(stream, updates, &authorization).await {
                tracing::debug!(%error, "a broker follows the policy no more");
            }
        });
    }
}

/// Answers the one question that there is.
async fn answer(mut stream: TcpStream, mut updates: PolicyStream, authorization: &str) -> anyhow::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        anyhow::ensure!(request.len() < MAX_REQUEST_BYTES, "a request without end");
        request.push(stream.read_u8().await?);
    }
    let request = String::from_utf8(request)?;
    let shows_token = request
        .lines()
        .filter_map(|line| line.split_once(": "))
        .any(|(name, value)| name.eq_ignore_ascii_case("authorization") && value == authorization);
    if !request.starts_with("GET /v1/policy ") || !shows_token {
        stream
            .write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await?;
        return Ok(());
    }
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n")
        .await?;
    loop {
        let line = match tokio::time::timeout(ALIVE_EVERY, updates.next()).await {
            Ok(Some(update)) => serde_json::to_string(&update)? + "\n",
            Ok(None) => return Ok(()),
            Err(_) => "\n".to_owned(),
        };
        stream.write_all(line.as_bytes()).await?;
    }
}
