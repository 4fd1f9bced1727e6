//! `/v1/ca`: the CAs, what hangs on each, and the end of one.

use axum::Json;
use fleetkey_identity::{FleetCa, KeyId};

use super::Api;
use super::answers::{ApiError, Body, Name};
use super::caller::Asked;
use crate::api::{CaList, CaView, RetiredView, Retirement};
use crate::authority::Authority;

pub(super) async fn list(api: Asked) -> Result<Json<CaList>, ApiError> {
    let authority = authority(&api)?;
    let cas = authority.cas();
    let mut former = Vec::new();
    for ca in &cas.former {
        former.push(view(&api, authority, ca).await?);
    }
    Ok(Json(CaList {
        issuing: view(&api, authority, &cas.issuing).await?,
        former,
        retired: cas.retired.iter().map(|retired| retired.id().to_string()).collect(),
        roots: authority.roots().ders().iter().map(|der| KeyId::of_certificate(der).to_string()).collect(),
    }))
}

pub(super) async fn retire(
    api: Asked,
    Name(name): Name,
    Body(Retirement { force }): Body<Retirement>,
) -> Result<Json<RetiredView>, ApiError> {
    let ca = read_id(&name)?;
    let key = authority(&api)?.retire(&api.service, ca, force).await.map_err(ApiError::Retire)?;
    if let Some(lists) = &api.lists
        && let Err(error) = lists.refresh().await
    {
        // It is retired all the same; the lists are tried again until they are made.
        tracing::error!(%error, "no new revocation lists yet");
    }
    Ok(Json(RetiredView { ca: ca.to_string(), root_key: key }))
}

async fn view(api: &Api, authority: &Authority, ca: &FleetCa) -> Result<CaView, ApiError> {
    let hanging = authority.hanging_on(&api.service, ca.id()).await?;
    Ok(CaView {
        id: ca.id().to_string(),
        is_root: ca.is_root(),
        not_after_unix_seconds: ca.validity().not_after_unix_seconds,
        devices: hanging.devices.len(),
        coordinator: hanging.coordinator,
    })
}

fn authority(api: &Api) -> Result<&Authority, ApiError> {
    api.authority.as_deref().ok_or(ApiError::NoAuthority)
}

pub(super) fn read_id(text: &str) -> Result<KeyId, ApiError> {
    let mut id = [0; 8];
    hex::decode_to_slice(text, &mut id)
        .map_err(|_| ApiError::BadRequest(format!("{text:?} names no CA: 16 hexadecimal digits")))?;
    Ok(KeyId(id))
}
