//! The HTTP API: commands and questions as JSON, the policy stream, metrics, health.
//!
//! Everything under `/v1` wants a bearer token: the operator's for all of it, a broker's for `/v1/policy` alone.
//! `/metrics`, `/healthz`, `/readyz` and `/crl` are open to whoever reaches the port, and say nothing of keys.

mod answers;
mod auth;
mod device;
mod enrolment;
mod group;
mod keep;
mod policy;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::{get, post};
use axum::{Json, Router};
use fleetkey_coordinator_core::Actor;
use metrics_exporter_prometheus::PrometheusHandle;

use crate::api::{MAX_REQUEST_BYTES, Readiness, StatusView};
use crate::authority::Authority;
use crate::handle::ServiceHandle;
use crate::revocations::RevocationLists;

pub use answers::ApiError;
pub use auth::{BadToken, Token};
pub use keep::Keep;

/// What the API is made of.
pub struct Api {
    /// The coordinator.
    pub service: ServiceHandle,
    /// Makes devices; without it `POST /v1/devices` is refused.
    pub authority: Option<Arc<Authority>>,
    /// The revocation list; none without an authority.
    pub lists: Option<RevocationLists>,
    /// Opens everything.
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
    let api = Arc::new(Api { service: api.service.acting_as(Actor::Root), ..api });
    let operator = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/devices", get(device::list).post(device::provision))
        .route("/v1/devices/adopt", post(device::adopt))
        .route("/v1/devices/{device}", get(device::show))
        .route("/v1/devices/{device}/release", post(device::release))
        .route("/v1/devices/{device}/label", post(enrolment::label))
        .route("/v1/claims", get(enrolment::claims).post(enrolment::create_claim))
        .route("/v1/claims/{claim}/end", post(enrolment::end_claim))
        .route("/v1/requests", get(enrolment::requests))
        .route("/v1/requests/{device}/approve", post(enrolment::approve))
        .route("/v1/requests/{device}/deny", post(enrolment::deny))
        .route("/v1/requests/{device}/forget", post(enrolment::forget))
        .route("/v1/revoke", post(device::revoke))
        .route("/v1/groups", get(group::list).post(group::create))
        .route("/v1/groups/{group}", get(group::show))
        .route("/v1/groups/{group}/members", get(group::members))
        .route("/v1/groups/{group}/add", post(group::add))
        .route("/v1/groups/{group}/select", post(group::select))
        .route("/v1/groups/{group}/remove", post(group::remove))
        .route("/v1/groups/{group}/rekey", post(group::rekey))
        .route("/v1/groups/{group}/rotate", post(group::rotate))
        .route("/v1/backup", get(keep::backup))
        .route("/v1/audit", get(keep::audit))
        .route("/v1/doctor", get(keep::doctor))
        .route_layer(middleware::from_fn_with_state(api.clone(), auth::operator));
    let broker = Router::new()
        .route("/v1/policy", get(policy::stream))
        .route_layer(middleware::from_fn_with_state(api.clone(), auth::broker));
    Router::new()
        .merge(operator)
        .merge(broker)
        .route("/crl", get(enrolment::revocation_list))
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .fallback(answers::not_found)
        .method_not_allowed_fallback(answers::method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .with_state(api)
}

async fn status(State(api): Shared) -> Result<Json<StatusView>, ApiError> {
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
