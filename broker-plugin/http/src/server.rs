//! The HTTP service: paths, limits, and no answer but a short one.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::dialect::{emqx, rabbitmq};
use crate::gate::Gate;
use crate::refused::Refused;

/// No question is longer.
pub const MAX_REQUEST_BYTES: usize = 8 * 1024;

/// Serves until `stop`.
///
/// # Errors
/// When the socket fails.
pub async fn serve(socket: TcpListener, gate: Arc<Gate>, stop: CancellationToken) -> io::Result<()> {
    axum::serve(socket, routes(gate)).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn routes(gate: Arc<Gate>) -> Router {
    Router::new()
        .route("/emqx/authenticate", post(emqx::connect))
        .route("/emqx/authorize", post(emqx::act))
        .route("/rabbitmq/user", get(rabbitmq::user).post(rabbitmq::user))
        .route("/rabbitmq/vhost", get(rabbitmq::virtual_host).post(rabbitmq::virtual_host))
        .route("/rabbitmq/resource", get(rabbitmq::resource).post(rabbitmq::resource))
        .route("/rabbitmq/topic", get(rabbitmq::topic).post(rabbitmq::topic))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .with_state(gate)
}

async fn unknown(State(gate): State<Arc<Gate>>) -> (StatusCode, &'static str) {
    gate.answered::<()>("unknown", "", Err(Refused::UnknownPath));
    (StatusCode::NOT_FOUND, "deny")
}
