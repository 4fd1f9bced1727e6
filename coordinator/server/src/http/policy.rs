//! `GET /v1/policy`: what a broker has to know, as a stream of JSON lines that does not end.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;
use tracing::info;

use super::Shared;
use crate::feed::PolicyStream;

/// After this long without news a blank line shows that the stream is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// What may be under way to one broker; beyond it the feed notes that the broker falls behind.
const BUFFER_BYTES: usize = 64 * 1024;

pub(super) async fn stream(State(api): Shared) -> Response {
    let (write, read) = tokio::io::duplex(BUFFER_BYTES);
    tokio::spawn(async_write(api.service.policy_feed().subscribe(), write));
    let headers = [(CONTENT_TYPE, "application/x-ndjson"), (CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(ReaderStream::new(read))).into_response()
}

async fn async_write(mut updates: PolicyStream, mut write: tokio::io::DuplexStream) {
    info!("a broker follows the policy");
    loop {
        let line = match tokio::time::timeout(ALIVE_EVERY, updates.next()).await {
            Ok(Some(update)) => {
                let mut line = serde_json::to_vec(&update).expect("ids and numbers always encode");
                line.push(b'\n');
                line
            }
            Ok(None) => break,
            Err(_) => b"\n".to_vec(),
        };
        if write.write_all(&line).await.is_err() {
            break;
        }
    }
    info!("a broker follows the policy no more");
}
