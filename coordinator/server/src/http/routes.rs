//! The one table of what the API answers: method, path, who may ask, and by what it is answered.
//!
//! A route cannot be entered without saying who may. Leaves telling who asks to `caller`, and where they may to the core.

use std::sync::Arc;

use axum::handler::Handler;
use axum::routing::{self, MethodRouter};
use fleetkey_coordinator_core::records::OperatorRole;

use super::{Api, ca, device, enrolment, group, keep, operators, policy};

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Whoever reaches the port: it says nothing of keys.
    Nothing,
    /// A broker; or an admin.
    Broker,
    /// This role at least; what a scope allows is decided where it is known what is asked about.
    Role(OperatorRole),
    /// This role at least, and the whole fleet as its scope.
    Fleet(OperatorRole),
}

/// One route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The method.
    pub method: &'static str,
    /// The path, with `{…}` for what varies.
    pub path: &'static str,
    /// Who may ask.
    pub need: Need,
}

pub(super) struct Entry {
    pub(super) route: Route,
    pub(super) handler: MethodRouter<Arc<Api>>,
}

fn get<H: Handler<T, Arc<Api>>, T: 'static>(path: &'static str, need: Need, handler: H) -> Entry {
    Entry { route: Route { method: "GET", path, need }, handler: routing::get(handler) }
}

fn post<H: Handler<T, Arc<Api>>, T: 'static>(path: &'static str, need: Need, handler: H) -> Entry {
    Entry { route: Route { method: "POST", path, need }, handler: routing::post(handler) }
}

/// Every route.
pub fn routes() -> Vec<Route> {
    table().into_iter().map(|entry| entry.route).collect()
}

pub(super) fn table() -> Vec<Entry> {
    const VIEWER: Need = Need::Role(OperatorRole::Viewer);
    const OPERATOR: Need = Need::Role(OperatorRole::Operator);
    const FLEET_VIEWER: Need = Need::Fleet(OperatorRole::Viewer);
    const FLEET_OPERATOR: Need = Need::Fleet(OperatorRole::Operator);
    const ADMIN: Need = Need::Fleet(OperatorRole::Admin);
    vec![
        get("/healthz", Need::Nothing, super::health),
        get("/readyz", Need::Nothing, super::readiness),
        get("/metrics", Need::Nothing, super::metrics),
        get("/crl", Need::Nothing, enrolment::revocation_list),
        get("/crl/{ca}", Need::Nothing, enrolment::revocation_list_of),
        get("/v1/policy", Need::Broker, policy::stream),
        get("/v1/whoami", VIEWER, operators::whoami),
        get("/v1/status", FLEET_VIEWER, super::status),
        get("/v1/audit", FLEET_VIEWER, keep::audit),
        get("/v1/doctor", FLEET_VIEWER, keep::doctor),
        get("/v1/backup", ADMIN, keep::backup),
        get("/v1/operators", ADMIN, operators::list),
        post("/v1/operators", ADMIN, operators::create),
        post("/v1/operators/{operator}/end", ADMIN, operators::end),
        get("/v1/ca", FLEET_VIEWER, ca::list),
        post("/v1/ca/{ca}/retire", ADMIN, ca::retire),
        get("/v1/devices", VIEWER, device::list),
        post("/v1/devices", OPERATOR, device::provision),
        post("/v1/devices/adopt", ADMIN, device::adopt),
        get("/v1/devices/{device}", VIEWER, device::show),
        post("/v1/devices/{device}/release", OPERATOR, device::release),
        post("/v1/devices/{device}/certify", ADMIN, device::certify),
        post("/v1/devices/{device}/label", OPERATOR, enrolment::label),
        post("/v1/revoke", OPERATOR, device::revoke),
        get("/v1/claims", VIEWER, enrolment::claims),
        post("/v1/claims", OPERATOR, enrolment::create_claim),
        post("/v1/claims/{claim}/end", OPERATOR, enrolment::end_claim),
        get("/v1/requests", VIEWER, enrolment::requests),
        post("/v1/requests/{device}/approve", OPERATOR, enrolment::approve),
        post("/v1/requests/{device}/deny", OPERATOR, enrolment::deny),
        post("/v1/requests/{device}/forget", OPERATOR, enrolment::forget),
        get("/v1/groups", VIEWER, group::list),
        post("/v1/groups", OPERATOR, group::create),
        get("/v1/groups/{group}", VIEWER, group::show),
        get("/v1/groups/{group}/members", VIEWER, group::members),
        post("/v1/groups/{group}/add", OPERATOR, group::add),
        post("/v1/groups/{group}/select", FLEET_OPERATOR, group::select),
        post("/v1/groups/{group}/remove", OPERATOR, group::remove),
        post("/v1/groups/{group}/psk", OPERATOR, group::psk),
        post("/v1/groups/{group}/rekey", OPERATOR, group::rekey),
        post("/v1/groups/{group}/rotate", OPERATOR, group::rotate),
    ]
}
