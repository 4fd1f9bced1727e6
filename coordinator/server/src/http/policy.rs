//! `GET /v1/policy`: what a broker has to know, as a stream of JSON lines. It ends with the token that opened it; a broker's
//! has no end.

use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;
use tracing::info;

use super::Shared;
use super::caller::Caller;
use crate::feed::PolicyStream;

/// After this long without news a blank line shows that the stream is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// What may be under way to one broker; beyond it the feed notes that the broker falls behind.
const BUFFER_BYTES: usize = 64 * 1024;

/// An admin may look at it too, and then there is a caller.
pub(super) async fn stream(State(api): Shared, caller: Option<Extension<Caller>>) -> Response {
    let (write, read) = tokio::io::duplex(BUFFER_BYTES);
    let updates = api.service.policy_feed().subscribe();
    let operators = api.service.operators();
    tokio::spawn(async move {
        info!("a broker follows the policy");
        // Whoever does not read holds up no end.
        match caller {
            None => write_to(write, updates).await,
            Some(Extension(caller)) => tokio::select! {
                () = caller.ended(operators) => {}
                () = write_to(write, updates) => {}
            },
        }
        info!("a broker follows the policy no more");
    });
    let headers = [(CONTENT_TYPE, "application/x-ndjson"), (CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(ReaderStream::new(read))).into_response()
}

async fn write_to(mut write: tokio::io::DuplexStream, mut updates: PolicyStream) {
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
}
