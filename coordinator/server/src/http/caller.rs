//! Who asks, and whether they may at all: one answer for everybody who is nobody, and a named one for those who are
//! known and may not.
//!
//! A token is judged by what the deciding thread has told of operators last: whoever only tries tokens takes nothing of its
//! time. Leaves the table of who may what to `routes`, and scopes to the core, which checks them in the decision itself.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use fleetkey_coordinator_core::operators::ActiveOperators;
use fleetkey_coordinator_core::records::{OperatorRecord, OperatorRole, Scope};
use fleetkey_coordinator_core::{Actor, ShownSecret};
use fleetkey_wire::error::Named as _;

use tokio::sync::watch;

use super::routes::Need;
use super::{Api, ApiError};
use crate::clock;
use crate::handle::ServiceHandle;

/// How often it is looked whether a token that expires has: by the clock on the wall, which may be set.
const LOOK_AT_CLOCK: Duration = Duration::from_millis(500);

/// Somebody who is known.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) actor: Actor,
    pub(super) role: OperatorRole,
    pub(super) scope: Scope,
    pub(super) expires_unix_seconds: Option<u64>,
}

impl Caller {
    /// Whoever holds the token that the fleet was made with.
    fn root() -> Self {
        let (role, scope) = (OperatorRole::Admin, Scope::Fleet);
        Self { actor: Actor::Root, role, scope, expires_unix_seconds: None }
    }

    /// Returns when their token opens nothing any more; never where it has no end. What goes on after it was let in ends with
    /// this.
    pub(super) async fn ended(self, mut operators: watch::Receiver<ActiveOperators>) {
        let Actor::Operator(name) = &self.actor else { return std::future::pending().await };
        while operators.borrow_and_update().has(name, clock::unix_seconds()) {
            tokio::select! {
                changed = operators.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_AT_CLOCK), if self.expires_unix_seconds.is_some() => {}
            }
        }
    }
}

impl From<&OperatorRecord> for Caller {
    fn from(record: &OperatorRecord) -> Self {
        let OperatorRecord { name, role, scope, expires_unix_seconds, .. } = record.clone();
        Self { actor: Actor::Operator(name), role, scope, expires_unix_seconds }
    }
}

enum Known {
    Broker,
    Caller(Caller),
}

/// Lets those pass whom the route's need lets.
pub(super) async fn check(
    State((api, need)): State<(Arc<Api>, Need)>,
    mut request: Request,
    next: Next,
) -> Response {
    if need == Need::Nothing {
        return next.run(request).await;
    }
    let known = match identify(&api, request.headers()) {
        Ok(known) => known,
        Err(refused) => return refused.into_response(),
    };
    let caller = match (need, known) {
        (Need::Broker, Known::Broker) => return next.run(request).await,
        // To the rest of the API a broker is nobody.
        (_, Known::Broker) => return ApiError::Unauthorized.into_response(),
        (_, Known::Caller(caller)) => caller,
    };
    let (who, method, path) =
        (caller.actor.to_string(), request.method().clone(), request.uri().path().to_owned());
    let answer = match may(need, &caller) {
        Ok(()) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refused) => {
            tracing::warn!(%who, %method, %path, why = refused.name(), "denied");
            return refused.into_response();
        }
    };
    if answer.status() == StatusCode::FORBIDDEN {
        tracing::warn!(%who, %method, %path, why = "out_of_scope", "denied");
    }
    answer
}

fn may(need: Need, caller: &Caller) -> Result<(), ApiError> {
    let (needed, is_for_fleet) = match need {
        Need::Nothing => return Ok(()),
        Need::Broker => (OperatorRole::Admin, true),
        Need::Role(role) => (role, false),
        Need::Fleet(role) => (role, true),
    };
    if caller.role < needed {
        return Err(ApiError::RoleMissing { needed, has: caller.role });
    }
    if is_for_fleet && caller.scope != Scope::Fleet {
        return Err(ApiError::ScopeMissing);
    }
    Ok(())
}

fn identify(api: &Api, headers: &HeaderMap) -> Result<Known, ApiError> {
    let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, shown) = shown.and_then(|value| value.split_once(' ')).ok_or(ApiError::Unauthorized)?;
    let (is_root, is_broker) = (api.operator_token.opens(shown), api.broker_token.opens(shown));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(ApiError::Unauthorized);
    }
    if is_root {
        return Ok(Known::Caller(Caller::root()));
    }
    if is_broker {
        return Ok(Known::Broker);
    }
    let token: ShownSecret = shown.parse().map_err(|_| ApiError::Unauthorized)?;
    let operators = api.service.operators();
    let caller = operators.borrow().holder_of(&token, clock::unix_seconds()).map(Caller::from);
    caller.map(Known::Caller).ok_or(ApiError::Unauthorized)
}

/// The API, for the one who asks: what is commanded is theirs, and within their scope.
pub(super) struct Asked {
    api: Arc<Api>,
    /// Acts in the name of the caller.
    pub(super) service: ServiceHandle,
    pub(super) caller: Caller,
}

impl Asked {
    /// What is said of something that is not there. To whoever has a scope it is said of what is outside of it, too: nobody
    /// learns so what others have.
    pub(super) fn not_there(&self, unknown: ApiError) -> ApiError {
        match self.caller.scope {
            Scope::Fleet => unknown,
            Scope::Groups(_) => ApiError::NotInScope(Box::new(unknown)),
        }
    }
}

impl Deref for Asked {
    type Target = Arc<Api>;

    fn deref(&self) -> &Arc<Api> {
        &self.api
    }
}

impl FromRequestParts<Arc<Api>> for Asked {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        // Only what passed `check` has one.
        let caller = parts.extensions.get::<Caller>().cloned().ok_or(ApiError::Unauthorized)?;
        let service = api.service.acting_as(caller.actor.clone());
        Ok(Self { api: api.clone(), service, caller })
    }
}
