//! `/v1/claims`, `/v1/requests`, `/crl`: who may come in, and who may no more.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use fleetkey_coordinator_core::enrolment::ClaimTerms;
use fleetkey_coordinator_core::records::{ClaimId, ClaimRecord, RequestRecord};
use fleetkey_coordinator_core::{CommandError, Coordinator, Labels};
use fleetkey_wire::{DeviceId, Now};
use rand_core::CryptoRngCore;

use super::Shared;
use super::answers::{ApiError, Body, Name};
use super::ca::read_id;
use super::caller::Asked;
use super::device::{find_one, view_of};
use crate::api::{
    ClaimList, ClaimView, DeviceView, LabelText, NewClaim, NewClaimSecret, RequestList, RequestView,
};
use crate::clock;

pub(super) async fn claims(api: Asked) -> Result<Json<ClaimList>, ApiError> {
    let claims = api
        .service
        .query(|coordinator, _| {
            let seen = coordinator.claims().filter(|claim| coordinator.sees_labels(&claim.labels));
            seen.map(view).collect()
        })
        .await?;
    Ok(Json(ClaimList { claims }))
}

pub(super) async fn create_claim(api: Asked, Body(new): Body<NewClaim>) -> Result<Response, ApiError> {
    let NewClaim { note, uses, valid_seconds, labels, needs_approval } = new;
    let labels = read_labels(&labels)?;
    let expires_unix_seconds = clock::unix_seconds().saturating_add(valid_seconds);
    let terms = ClaimTerms { note, uses, expires_unix_seconds, labels, needs_approval };
    let shown =
        api.service.decide(move |coordinator, now, rng| coordinator.create_claim(terms, now, rng)).await?;
    let made = NewClaimSecret {
        id: shown.id.to_string(),
        claim: shown.reveal().to_string(),
        uses,
        expires_unix_seconds,
    };
    Ok((StatusCode::CREATED, [(CACHE_CONTROL, "no-store")], Json(made)).into_response())
}

pub(super) async fn end_claim(api: Asked, Name(id): Name) -> Result<Json<ClaimList>, ApiError> {
    let not_there = |asked| api.not_there(ApiError::UnknownClaim(asked));
    let claim: ClaimId = id.parse().map_err(|_| not_there(id.clone()))?;
    let is_ended = api
        .service
        .decide(move |coordinator, now, _| {
            let is_it = |seen: &ClaimRecord| seen.id == claim && coordinator.sees_labels(&seen.labels);
            if !coordinator.claims().any(is_it) {
                return Ok(false);
            }
            coordinator.end_claim(claim, now).map(|()| true)
        })
        .await?;
    if is_ended { claims(api).await } else { Err(not_there(id)) }
}

pub(super) async fn requests(api: Asked) -> Result<Json<RequestList>, ApiError> {
    let requests = api
        .service
        .query(|coordinator, _| {
            let seen = coordinator.requests().filter(|request| coordinator.sees_labels(&request.labels));
            seen.map(request_view).collect()
        })
        .await?;
    Ok(Json(RequestList { requests }))
}

pub(super) async fn approve(api: Asked, Name(name): Name) -> Result<Json<DeviceView>, ApiError> {
    let id = about(&api, name, Coordinator::approve).await?;
    view_of(&api, id).await.map(Json)
}

pub(super) async fn deny(api: Asked, Name(name): Name) -> Result<Json<RequestList>, ApiError> {
    about(&api, name, |coordinator, device, now, _| coordinator.deny(device, now)).await?;
    requests(api).await
}

pub(super) async fn forget(api: Asked, Name(name): Name) -> Result<Json<RequestList>, ApiError> {
    about(&api, name, |coordinator, device, now, _| coordinator.forget_request(device, now)).await?;
    requests(api).await
}

/// Does something about the request of this name or id.
async fn about(
    api: &Asked,
    name: String,
    act: impl FnOnce(&mut Coordinator, DeviceId, Now, &mut dyn CryptoRngCore) -> Result<(), CommandError>
    + Send
    + 'static,
) -> Result<DeviceId, ApiError> {
    let asked = name.clone();
    let device = api
        .service
        .decide(move |coordinator, now, rng| {
            let named = coordinator.find_request(&name);
            let is_it = |request: &&RequestRecord| {
                Some(request.device) == named && coordinator.sees_labels(&request.labels)
            };
            let found = coordinator.requests().find(is_it).map(|request| request.device);
            let Some(device) = found else { return Ok(None) };
            act(coordinator, device, now, rng).map(|()| Some(device))
        })
        .await?;
    device.ok_or_else(|| api.not_there(ApiError::UnknownRequest(asked)))
}

pub(super) async fn label(
    api: Asked,
    Name(name): Name,
    Body(LabelText { labels }): Body<LabelText>,
) -> Result<Json<DeviceView>, ApiError> {
    let (id, labels) = (find_one(&api, name).await?, read_labels(&labels)?);
    api.service.decide(move |coordinator, now, rng| coordinator.label_device(id, labels, now, rng)).await?;
    view_of(&api, id).await.map(Json)
}

/// The newest revocation list, for whoever wants it: it is public.
pub(super) async fn revocation_list(State(api): Shared) -> Result<Response, ApiError> {
    let list = api.lists.as_ref().and_then(|lists| lists.newest()).ok_or(ApiError::NoAuthority)?;
    Ok(([(CONTENT_TYPE, "application/pkix-crl")], list).into_response())
}

/// The newest revocation list of one CA.
pub(super) async fn revocation_list_of(State(api): Shared, Name(name): Name) -> Result<Response, ApiError> {
    let ca = read_id(&name)?;
    let list = api.lists.as_ref().and_then(|lists| lists.newest_of(ca)).ok_or(ApiError::NotFound)?;
    Ok(([(CONTENT_TYPE, "application/pkix-crl")], list).into_response())
}

pub(super) fn read_labels(text: &str) -> Result<Labels, ApiError> {
    text.parse().map_err(|why: fleetkey_coordinator_core::BadLabels| ApiError::BadRequest(why.to_string()))
}

fn view(claim: &ClaimRecord) -> ClaimView {
    ClaimView {
        id: claim.id.to_string(),
        note: claim.note.clone(),
        uses: claim.uses,
        used: claim.used,
        created_unix_seconds: claim.created_unix_seconds,
        expires_unix_seconds: claim.expires_unix_seconds,
        labels: claim.labels.to_string(),
        needs_approval: claim.needs_approval,
    }
}

fn request_view(request: &RequestRecord) -> RequestView {
    RequestView {
        device: request.device,
        name: request.name.clone(),
        origin: request.origin.to_string(),
        labels: request.labels.to_string(),
        unix_seconds: request.unix_seconds,
        is_denied: request.is_denied,
    }
}
