//! `/v1/devices`, `/v1/revoke`.

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use fleetkey_coordinator_core::certificates::NewCertificate;
use fleetkey_coordinator_core::{CommandError, Coordinator, DeviceRecord, MemberRecord, Place, Standing};
use fleetkey_identity::{Role, chain_from_pem, chain_to_pem};
use fleetkey_wire::{DeviceId, Now};

use super::answers::{ApiError, Body, Name};
use super::caller::Asked;
use super::enrolment::read_labels;
use crate::api::{
    Adoption, Certification, Certified, DeviceList, DeviceView, MembershipView, NewDevice, Revocation,
    Revoked,
};
use crate::authority::{AuthorityError, NewIdentity};
use crate::clock;

pub(super) async fn list(api: Asked) -> Result<Json<DeviceList>, ApiError> {
    let devices = api
        .service
        .query(|coordinator, now| {
            let mut devices: Vec<_> = coordinator
                .devices()
                .filter(|device| coordinator.sees_device(device.id))
                .map(|device| view(coordinator, device, now))
                .collect();
            devices.sort_by(|a, b| a.name.cmp(&b.name));
            devices
        })
        .await?;
    Ok(Json(DeviceList { devices }))
}

pub(super) async fn show(api: Asked, Name(name): Name) -> Result<Json<DeviceView>, ApiError> {
    let id = find_one(&api, name).await?;
    view_of(&api, id).await.map(Json)
}

pub(super) async fn provision(
    api: Asked,
    Body(NewDevice { name, id, public_key, labels }): Body<NewDevice>,
) -> Result<Response, ApiError> {
    let authority = api.authority.as_ref().ok_or(ApiError::NoAuthority)?;
    let new = NewIdentity {
        name,
        id,
        public_key: public_key.as_deref().map(read_public_key).transpose()?,
        labels: labels.as_deref().map(read_labels).transpose()?,
    };
    let bundle = authority.provision(&api.service, new).await.map_err(not_issued)?;
    Ok((StatusCode::CREATED, [(CACHE_CONTROL, "no-store")], Json(bundle)).into_response())
}

fn read_public_key(text: &str) -> Result<[u8; 32], ApiError> {
    let mut key = [0; 32];
    hex::decode_to_slice(text, &mut key)
        .map(|()| key)
        .map_err(|_| ApiError::BadRequest("public_key is not 64 hexadecimal digits".to_owned()))
}

/// Enrols a device by its own certificate: one that this coordinator does not know, or knows no more.
pub(super) async fn adopt(
    api: Asked,
    Body(Adoption { name, certificate }): Body<Adoption>,
) -> Result<Json<DeviceView>, ApiError> {
    let keep = api.keep.as_ref().ok_or(ApiError::NoDatabase)?;
    let chain = chain_from_pem(&certificate).map_err(|why| ApiError::Certificate(why.to_string()))?;
    let now = i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX);
    let identity =
        keep.roots.verify(&chain, Some(now)).map_err(|why| ApiError::Certificate(why.to_string()))?;
    let id = match identity.role {
        Role::Device(id) => id,
        role @ (Role::Coordinator { .. } | Role::Broker | Role::Registrar | Role::Operator { .. }) => {
            return Err(ApiError::NotADevice(role));
        }
    };
    let issuer = keep.roots.issuer_of(&chain).ok_or_else(|| ApiError::Certificate("no issuer".into()))?;
    let issuer = api.authority.as_ref().map_or(issuer, |authority| authority.cas().id_of(issuer));
    let record = NewCertificate {
        device: id,
        public_key: identity.public_key,
        serial: identity.serial,
        issuer,
        not_after_unix_seconds: identity.not_after_unix_seconds.unsigned_abs(),
    };
    api.service
        .decide(move |coordinator, now, _| {
            coordinator.check_may_enroll()?;
            match coordinator.device(id).map(|device| &device.standing) {
                Some(Standing::Revoked { .. }) => Err(CommandError::Revoked(id)),
                Some(Standing::Enrolled | Standing::Quarantined { .. }) | None => {
                    coordinator.enroll_device(id, &name, identity.public_key, now)?;
                    coordinator.record_certificate(record, now)
                }
            }
        })
        .await?;
    view_of(&api, id).await.map(Json)
}

/// A further certificate for a device that was away for longer than its own has lasted: same identity, same key.
pub(super) async fn certify(
    api: Asked,
    Name(name): Name,
    Body(Certification { request }): Body<Certification>,
) -> Result<Json<Certified>, ApiError> {
    let authority = api.authority.as_ref().ok_or(ApiError::NoAuthority)?;
    let id = find_one(&api, name).await?;
    let bad = |why: String| ApiError::BadRequest(format!("the signing request: {why}"));
    let der = fleetkey_identity::request_from_pem(&request).map_err(|why| bad(why.to_string()))?;
    let request = fleetkey_identity::read_signing_request(&der).map_err(|why| bad(why.to_string()))?;
    // Whoever is revoked, or shows another key, is refused where the certificate is stored.
    let chain = authority.issue(&api.service, id, &request.public_key).await.map_err(not_issued)?;
    Ok(Json(Certified { certificate: chain_to_pem(&chain) }))
}

fn not_issued(failed: AuthorityError) -> ApiError {
    match failed {
        AuthorityError::Command(command) => ApiError::Command(command),
        AuthorityError::Issue(error) => ApiError::Issue(error),
    }
}

pub(super) async fn release(api: Asked, Name(name): Name) -> Result<Json<DeviceView>, ApiError> {
    let id = find_one(&api, name).await?;
    api.service.release(id).await?;
    view_of(&api, id).await.map(Json)
}

pub(super) async fn revoke(
    api: Asked,
    Body(Revocation { devices, reason, deadline_seconds }): Body<Revocation>,
) -> Result<Json<Revoked>, ApiError> {
    let devices = find(&api, devices).await?;
    let groups = api.service.revoke_within(devices.clone(), reason, deadline_seconds).await?;
    if let Some(lists) = &api.lists
        && let Err(error) = lists.catch_up().await
    {
        // The devices are revoked all the same; the list is tried again until it is made.
        tracing::error!(%error, "no new revocation list yet");
    }
    let groups = api
        .service
        .query(move |coordinator, now| {
            groups.into_iter().filter_map(|group| coordinator.group_status(group, now)).collect()
        })
        .await?;
    Ok(Json(Revoked { devices, groups }))
}

/// The devices of these names or ids, as far as the caller sees them.
pub(super) async fn find(api: &Asked, names: Vec<String>) -> Result<Vec<DeviceId>, ApiError> {
    find_those(api, names, Coordinator::sees_device).await
}

/// The devices of these names or ids, as far as the caller may put them into groups.
pub(super) async fn find_addable(api: &Asked, names: Vec<String>) -> Result<Vec<DeviceId>, ApiError> {
    find_those(api, names, Coordinator::may_add_device).await
}

async fn find_those(
    api: &Asked,
    names: Vec<String>,
    are_meant: fn(&Coordinator, DeviceId) -> bool,
) -> Result<Vec<DeviceId>, ApiError> {
    if names.is_empty() {
        return Err(ApiError::NoDevices);
    }
    let found: Result<Vec<_>, String> = api
        .service
        .query(move |coordinator, _| {
            let find = |name: String| {
                coordinator.find_device(&name).filter(|id| are_meant(coordinator, *id)).ok_or(name)
            };
            names.into_iter().map(find).collect()
        })
        .await?;
    let mut found = found.map_err(|name| api.not_there(ApiError::UnknownDevice(name)))?;
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

pub(super) async fn find_one(api: &Asked, name: String) -> Result<DeviceId, ApiError> {
    Ok(find(api, vec![name]).await?[0])
}

pub(super) async fn view_of(api: &Asked, id: DeviceId) -> Result<DeviceView, ApiError> {
    let view = api
        .service
        .decide(move |coordinator, now, _| {
            coordinator.check_seen(id)?;
            Ok(coordinator.device(id).map(|device| view(coordinator, device, now)))
        })
        .await?;
    view.ok_or_else(|| ApiError::UnknownDevice(id.to_string()))
}

fn view(coordinator: &Coordinator, device: &DeviceRecord, now: Now) -> DeviceView {
    DeviceView {
        id: device.id,
        name: device.name.clone(),
        standing: device.standing.clone(),
        labels: device.labels.to_string(),
        origin: device.origin.to_string(),
        enrolled_unix_seconds: device.enrolled_unix_seconds,
        online: device.standing == Standing::Enrolled && coordinator.is_online(device.id, now),
        groups: coordinator
            .groups_of(device.id)
            .filter(|member| coordinator.sees_group(member.group))
            .map(|member| membership(coordinator, member, now))
            .collect(),
    }
}

pub(super) fn membership(coordinator: &Coordinator, member: &MemberRecord, now: Now) -> MembershipView {
    let group = coordinator.group(member.group);
    MembershipView {
        group: member.group,
        group_name: group.map(|group| group.name.clone()).unwrap_or_default(),
        device: member.device,
        device_name: coordinator.device(member.device).map(|device| device.name.clone()).unwrap_or_default(),
        cell: match member.place {
            Place::Wanted => None,
            Place::In { cell } => Some(cell),
        },
        confirmed: member.confirmed.to_string(),
        confirmed_unix_seconds: member.confirmed_unix_seconds,
        holds_newest: group.is_some_and(|group| member.confirmed >= group.last_issued),
        online: coordinator.is_online(member.device, now),
        lacks_psk: coordinator.is_online(member.device, now)
            && coordinator.lacks_psk(member.group, member.device),
    }
}
