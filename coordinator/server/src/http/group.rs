//! `/v1/groups`.

use axum::Json;
use axum::http::StatusCode;
use fleetkey_coordinator_core::{Coordinator, GroupStatus};
use fleetkey_wire::GroupId;
use fleetkey_wire::psk::PskText;
use rand_core::CryptoRngCore;

use super::answers::{ApiError, Body, Name};
use super::caller::Asked;
use super::device;
use crate::api::{Added, DeviceNames, GroupList, LabelText, MemberList, NewGroup, NewPsk, PskSet, Rekeyed};

pub(super) async fn list(api: Asked) -> Result<Json<GroupList>, ApiError> {
    let mut groups = api
        .service
        .query(|coordinator, now| {
            let mut groups = coordinator.group_statuses(now);
            groups.retain(|group| coordinator.sees_group(group.id));
            groups
        })
        .await?;
    groups.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(GroupList { groups }))
}

pub(super) async fn create(
    api: Asked,
    Body(NewGroup { name, policy, select, psk }): Body<NewGroup>,
) -> Result<(StatusCode, Json<GroupStatus>), ApiError> {
    let selector = super::enrolment::read_labels(&select)?;
    let create = move |coordinator: &mut Coordinator, now, rng: &mut dyn CryptoRngCore| {
        let id = match psk {
            None => coordinator.create_group(&name, policy, now, rng)?,
            Some(PskText(psk)) => coordinator.create_guarded_group(&name, policy, psk, now, rng)?,
        };
        if !selector.is_empty() {
            coordinator.select_members(id, Some(selector), now, rng)?;
        }
        Ok(id)
    };
    let id = api.service.decide(create).await?;
    Ok((StatusCode::CREATED, Json(api.service.group_status(id).await?)))
}

pub(super) async fn show(api: Asked, Name(name): Name) -> Result<Json<GroupStatus>, ApiError> {
    let id = find(&api, name).await?;
    Ok(Json(api.service.group_status(id).await?))
}

pub(super) async fn members(api: Asked, Name(name): Name) -> Result<Json<MemberList>, ApiError> {
    let id = find(&api, name).await?;
    let members = api
        .service
        .query(move |coordinator, now| {
            let mut members: Vec<_> =
                coordinator.members(id).map(|member| device::membership(coordinator, member, now)).collect();
            members.sort_by(|a, b| a.device_name.cmp(&b.device_name));
            members
        })
        .await?;
    Ok(Json(MemberList { members }))
}

pub(super) async fn add(
    api: Asked,
    Name(name): Name,
    Body(DeviceNames { devices }): Body<DeviceNames>,
) -> Result<Json<Added>, ApiError> {
    let id = find(&api, name).await?;
    let devices = device::find_addable(&api, devices).await?;
    let added = api.service.add_members(id, devices).await?;
    Ok(Json(Added { added, group: api.service.group_status(id).await? }))
}

pub(super) async fn remove(
    api: Asked,
    Name(name): Name,
    Body(DeviceNames { devices }): Body<DeviceNames>,
) -> Result<Json<GroupStatus>, ApiError> {
    let id = find(&api, name).await?;
    let devices = device::find(&api, devices).await?;
    api.service.evict(id, devices).await?;
    Ok(Json(api.service.group_status(id).await?))
}

/// Says which devices belong in a group by their labels.
pub(super) async fn select(
    api: Asked,
    Name(name): Name,
    Body(LabelText { labels }): Body<LabelText>,
) -> Result<Json<Added>, ApiError> {
    let (id, selector) = (find(&api, name).await?, super::enrolment::read_labels(&labels)?);
    let added = api
        .service
        .decide(move |coordinator, now, rng| coordinator.select_members(id, Some(selector), now, rng))
        .await?;
    Ok(Json(Added { added, group: api.service.group_status(id).await? }))
}

/// Gives a group its next pre-shared key, or the same one again after a restore.
pub(super) async fn psk(
    api: Asked,
    Name(name): Name,
    Body(NewPsk { psk: PskText(psk) }): Body<NewPsk>,
) -> Result<Json<PskSet>, ApiError> {
    let id = find(&api, name).await?;
    let changed = api.service.decide(move |coordinator, now, _| coordinator.set_psk(id, psk, now)).await?;
    Ok(Json(PskSet { changed, group: api.service.group_status(id).await? }))
}

pub(super) async fn rekey(api: Asked, Name(name): Name) -> Result<Json<Rekeyed>, ApiError> {
    let id = find(&api, name).await?;
    let key_epoch = api.service.rekey(id).await?.to_string();
    Ok(Json(Rekeyed { key_epoch, group: api.service.group_status(id).await? }))
}

pub(super) async fn rotate(api: Asked, Name(name): Name) -> Result<Json<Rekeyed>, ApiError> {
    let id = find(&api, name).await?;
    let key_epoch = api.service.rotate(id).await?.to_string();
    Ok(Json(Rekeyed { key_epoch, group: api.service.group_status(id).await? }))
}

async fn find(api: &Asked, name: String) -> Result<GroupId, ApiError> {
    let found = api
        .service
        .query(move |coordinator, _| {
            let found = coordinator.find_group(&name).filter(|id| coordinator.sees_group(*id));
            found.ok_or(name)
        })
        .await?;
    found.map_err(|name| api.not_there(ApiError::UnknownGroup(name)))
}
