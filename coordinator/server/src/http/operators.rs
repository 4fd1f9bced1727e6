//! `/v1/operators`, `/v1/whoami`.

use std::collections::BTreeSet;

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use fleetkey_coordinator_core::operators::OperatorTerms;
use fleetkey_coordinator_core::records::{BadOperatorName, OperatorName, OperatorRecord, Scope};
use fleetkey_coordinator_core::{CommandError, Coordinator};
use fleetkey_wire::GroupId;
use rand_core::CryptoRngCore;

use super::answers::{ApiError, Body, Name};
use super::caller::{Asked, Caller};
use crate::api::{NewOperator, NewOperatorToken, OperatorList, OperatorView, ScopeGroup, Whoami};
use crate::clock;

pub(super) async fn whoami(api: Asked) -> Result<Json<Whoami>, ApiError> {
    let Caller { actor, role, scope, expires_unix_seconds } = api.caller.clone();
    let groups = api.service.query(move |coordinator, _| named(coordinator, &scope)).await?;
    Ok(Json(Whoami { name: actor.to_string(), role, groups, expires_unix_seconds }))
}

pub(super) async fn list(api: Asked) -> Result<Json<OperatorList>, ApiError> {
    let operators = api
        .service
        .query(|coordinator, _| coordinator.operators().map(|record| view(coordinator, record)).collect())
        .await?;
    Ok(Json(OperatorList { operators }))
}

pub(super) async fn create(api: Asked, Body(new): Body<NewOperator>) -> Result<Response, ApiError> {
    let NewOperator { name, role, groups, valid_seconds } = new;
    let name: OperatorName =
        name.parse().map_err(|why: BadOperatorName| ApiError::BadRequest(why.to_string()))?;
    let expires_unix_seconds = valid_seconds.map(|seconds| clock::unix_seconds().saturating_add(seconds));
    let named = name.to_string();
    let made = api
        .service
        .decide(move |coordinator, now, rng| {
            let found: Result<BTreeSet<GroupId>, String> =
                groups.into_iter().map(|group| coordinator.find_group(&group).ok_or(group)).collect();
            let scope = match found {
                Ok(groups) if groups.is_empty() => Scope::Fleet,
                Ok(groups) => Scope::Groups(groups),
                Err(unknown) => return Ok(Err(unknown)),
            };
            let terms = OperatorTerms { name, role, scope, expires_unix_seconds };
            coordinator.create_operator(terms, now, rng).map(Ok)
        })
        .await?;
    let token = made.map_err(ApiError::UnknownGroup)?;
    let made =
        NewOperatorToken { name: named, role, token: token.reveal().to_string(), expires_unix_seconds };
    Ok((StatusCode::CREATED, [(CACHE_CONTROL, "no-store")], Json(made)).into_response())
}

pub(super) async fn end(api: Asked, Name(name): Name) -> Result<Json<OperatorList>, ApiError> {
    let name: OperatorName =
        name.parse().map_err(|_| ApiError::Command(CommandError::UnknownOperator(name).into()))?;
    // In one decision: who ends their own token is told what became of it, too.
    let end = move |coordinator: &mut Coordinator, now, _: &mut dyn CryptoRngCore| {
        coordinator.end_operator(&name, now)?;
        Ok(coordinator.operators().map(|record| view(coordinator, record)).collect())
    };
    Ok(Json(OperatorList { operators: api.service.decide(end).await? }))
}

fn view(coordinator: &Coordinator, record: &OperatorRecord) -> OperatorView {
    OperatorView {
        name: record.name.to_string(),
        role: record.role,
        groups: named(coordinator, &record.scope),
        created_unix_seconds: record.created_unix_seconds,
        expires_unix_seconds: record.expires_unix_seconds,
        ended_unix_seconds: record.ended_unix_seconds,
    }
}

/// The groups of a scope with their names; none for the whole fleet.
fn named(coordinator: &Coordinator, scope: &Scope) -> Option<Vec<ScopeGroup>> {
    let Scope::Groups(groups) = scope else { return None };
    let name = |id| coordinator.group(id).map(|group| group.name.clone()).unwrap_or_default();
    Some(groups.iter().map(|id| ScopeGroup { group: *id, name: name(*id) }).collect())
}
