//! The HTTP API: commands and questions as JSON, the policy stream, metrics, health.
//!
//! Who may ask what is one table, in `routes`. Everything under `/v1` wants a bearer token: an operator's, or a broker's
//! for `/v1/policy` alone.

mod answers;
mod auth;
mod ca;
mod caller;
mod device;
mod enrolment;
mod group;
mod keep;
mod operators;
mod policy;
mod routes;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::api::{MAX_REQUEST_BYTES, Readiness, StatusView};
use crate::authority::Authority;
use crate::handle::ServiceHandle;
use crate::revocations::RevocationLists;

pub use answers::ApiError;
pub use auth::{BadToken, Token};
pub use keep::Keep;
pub use routes::{Need, Route, routes};

use caller::Asked;
use routes::{Entry, table};

/// What the API is made of.
pub struct Api {
    /// The coordinator.
    pub service: ServiceHandle,
    /// Makes devices; without it `POST /v1/devices` is refused.
    pub authority: Option<Arc<Authority>>,
    /// The revocation list; none without an authority.
    pub lists: Option<RevocationLists>,
    /// Root's: opens everything.
    pub operator_token: Token,
    /// Opens the policy stream.
    pub broker_token: Token,
    /// What `/metrics` shows; nothing without it.
    pub metrics: Option<PrometheusHandle>,
    /// What is read of the database past the deciding thread: without it there are no backups, audit pages or
    /// examinations.
    pub keep: Option<Keep>,
}

type Shared = State<Arc<Api>>;

/// The API as a router.
pub fn router(api: Api) -> Router {
    let api = Arc::new(api);
    table()
        .into_iter()
        .fold(Router::new(), |router, Entry { route, handler }| {
            let need = (api.clone(), route.need);
            router.route(route.path, handler.route_layer(middleware::from_fn_with_state(need, caller::check)))
        })
        .fallback(answers::not_found)
        .method_not_allowed_fallback(answers::method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .with_state(api)
}

async fn status(api: Asked) -> Result<Json<StatusView>, ApiError> {
    Ok(Json(StatusView {
        coordinator: api.service.status().await?,
        broker_connected: api.service.is_connected(),
        stats: api.service.stats().await?,
        store: keep::store(&api).await?,
    }))
}

async fn metrics(State(api): Shared) -> Result<String, ApiError> {
    api.metrics.as_ref().map(PrometheusHandle::render).ok_or(ApiError::NotFound)
}

async fn health() -> &'static str {
    "ok\n"
}

async fn readiness(State(api): Shared) -> (StatusCode, Json<Readiness>) {
    let (loaded, broker_connected) = (api.service.is_loaded(), api.service.is_connected());
    let ready = loaded && broker_connected;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, loaded, broker_connected }))
}
