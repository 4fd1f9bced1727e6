//! What travels over the HTTP API, as both sides know it. `fleetkey ... --json` prints these.

use std::fmt;

use axum::http::HeaderName;
use fleetkey_coordinator_core::audit::AuditHead;
use fleetkey_coordinator_core::backup::Backup;
use fleetkey_coordinator_core::doctor::{Finding, Severity};
use fleetkey_coordinator_core::records::{AuditRecord, OperatorRole};
use fleetkey_coordinator_core::{DeviceRecord, GroupStatus, Policy, Standing};
use fleetkey_wire::error::Named as _;
use fleetkey_wire::psk::PskText;
use fleetkey_wire::{CellId, DeviceId, FleetId, GroupId};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::shared_store::LastStep;
use crate::stats::Stats;

/// The largest request body, in bytes.
pub const MAX_REQUEST_BYTES: usize = 1024 * 1024;

/// Something went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What, by name: lower case, words joined by `_`.
    pub error: String,
    /// What, for people.
    pub message: String,
}

/// `POST /v1/devices`: provision a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewDevice {
    /// A label for people.
    pub name: String,
    /// Its id; a random one where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<DeviceId>,
    /// Its public key (Ed25519, 64 hexadecimal digits), where whoever asks has made the pair. Asked again with the same
    /// name, id and key, the same device gets its certificate again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// What it is labelled with: `key=value,key=value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
}

/// `POST /v1/claims`: a pre-shared secret that lets devices in over EST.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewClaim {
    /// For people: what it is for.
    #[serde(default)]
    pub note: String,
    /// How many devices it lets in.
    pub uses: u32,
    /// How long it is good for.
    pub valid_seconds: u64,
    /// What those devices are labelled with: `key=value,key=value`.
    #[serde(default)]
    pub labels: String,
    /// Whether each of them waits for an operator's word.
    #[serde(default)]
    pub needs_approval: bool,
}

/// A new claim. It is given out once: what is kept is a digest.
#[derive(Clone, Serialize, Deserialize)]
pub struct NewClaimSecret {
    /// Its id, which is no secret.
    pub id: String,
    /// `id:secret`: user and password for EST.
    pub claim: String,
    /// How many devices it lets in.
    pub uses: u32,
    /// Its last second.
    pub expires_unix_seconds: u64,
}

impl Drop for NewClaimSecret {
    fn drop(&mut self) {
        self.claim.zeroize();
    }
}

impl fmt::Debug for NewClaimSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewClaimSecret({}, redacted)", self.id)
    }
}

/// A claim, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimView {
    /// Its id.
    pub id: String,
    /// For people: what it is for.
    pub note: String,
    /// How many devices it lets in.
    pub uses: u32,
    /// How many it has let in.
    pub used: u32,
    /// When it was made.
    pub created_unix_seconds: u64,
    /// Its last second.
    pub expires_unix_seconds: u64,
    /// What those devices are labelled with.
    pub labels: String,
    /// Whether each of them waits for an operator's word.
    pub needs_approval: bool,
}

/// `GET /v1/claims`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimList {
    /// Those that have not ended.
    pub claims: Vec<ClaimView>,
}

/// A device that waits for an operator's word, or was denied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestView {
    /// The id that it will have.
    pub device: DeviceId,
    /// The name that it will have, if it is free by then.
    pub name: String,
    /// The way by which it came.
    pub origin: String,
    /// What it will be labelled with.
    pub labels: String,
    /// Since when it waits.
    pub unix_seconds: u64,
    /// Whether an operator has said no.
    pub is_denied: bool,
}

/// `GET /v1/requests`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestList {
    /// The requests, in the order of their ids.
    pub requests: Vec<RequestView>,
}

/// `POST /v1/operators`: make somebody an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewOperator {
    /// The name.
    pub name: String,
    /// What they may do.
    pub role: OperatorRole,
    /// Names or ids of the groups that it is about; none for the whole fleet.
    #[serde(default)]
    pub groups: Vec<String>,
    /// How long the token is good for; without it until the operator is ended.
    #[serde(default)]
    pub valid_seconds: Option<u64>,
}

/// A new operator's token. It is given out once: what is kept is its digest.
#[derive(Clone, Serialize, Deserialize)]
pub struct NewOperatorToken {
    /// The name.
    pub name: String,
    /// What they may do.
    pub role: OperatorRole,
    /// The token.
    pub token: String,
    /// Its last second.
    pub expires_unix_seconds: Option<u64>,
}

impl Drop for NewOperatorToken {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

impl fmt::Debug for NewOperatorToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewOperatorToken({}, redacted)", self.name)
    }
}

/// A group that an operator is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScopeGroup {
    /// Its id.
    pub group: GroupId,
    /// Its name.
    pub name: String,
}

/// An operator, without the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorView {
    /// The name.
    pub name: String,
    /// What they may do.
    pub role: OperatorRole,
    /// The groups that it is about; none for the whole fleet.
    pub groups: Option<Vec<ScopeGroup>>,
    /// When they were made one.
    pub created_unix_seconds: u64,
    /// The last second of the token.
    pub expires_unix_seconds: Option<u64>,
    /// When they were ended.
    pub ended_unix_seconds: Option<u64>,
}

/// `GET /v1/operators`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorList {
    /// All there ever were, in the order of their names.
    pub operators: Vec<OperatorView>,
}

/// `GET /v1/whoami`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whoami {
    /// The name that the audit log tells.
    pub name: String,
    /// What they may do.
    pub role: OperatorRole,
    /// The groups that it is about; none for the whole fleet.
    pub groups: Option<Vec<ScopeGroup>>,
    /// The last second of the token.
    pub expires_unix_seconds: Option<u64>,
}

/// `POST /v1/devices/{device}/label`, `POST /v1/groups/{group}/select`: labels, or a selector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelText {
    /// `key=value,key=value`; empty for none.
    pub labels: String,
}

/// `POST /v1/devices/{device}/certify`: a further certificate for a device that cannot renew its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certification {
    /// A signing request (PKCS #10, PEM) made with the device's key.
    pub request: String,
}

/// A device's further certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certified {
    /// Its chain, PEM, leaf first.
    pub certificate: String,
}

/// `GET /v1/ca`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaList {
    /// The CA that issues.
    pub issuing: CaView,
    /// CAs that issued before, and still count.
    pub former: Vec<CaView>,
    /// Ids of CAs that count no more.
    pub retired: Vec<String>,
    /// Ids of the pinned roots.
    pub roots: Vec<String>,
}

/// A CA, and what hangs on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaView {
    /// Its id.
    pub id: String,
    /// Whether it is a root.
    pub is_root: bool,
    /// Its last second.
    pub not_after_unix_seconds: i64,
    /// Devices that have a certificate of this CA, and none of the one that issues. Of the one that issues: none.
    pub devices: usize,
    /// Whether the coordinator's own certificate is of this CA.
    pub coordinator: bool,
}

/// `POST /v1/ca/{ca}/retire`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retirement {
    /// Even if somebody is cut off.
    pub force: bool,
}

/// A CA that has been retired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredView {
    /// Its id.
    pub ca: String,
    /// Where its key is, if it is a root's, to be put away.
    pub root_key: Option<std::path::PathBuf>,
}

/// `POST /v1/devices/adopt`: enrol a device by the certificate that it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adoption {
    /// A label for people.
    pub name: String,
    /// Its certificate chain, PEM, leaf first.
    pub certificate: String,
}

/// Everything that a new device is equipped with. It is given out once: the private key is not kept.
#[derive(Clone, Serialize, Deserialize)]
pub struct Bundle {
    /// The fleet.
    pub fleet: FleetId,
    /// The device.
    pub device: DeviceId,
    /// Its label.
    pub name: String,
    /// Where its broker is.
    pub broker: String,
    /// Its certificate chain, PEM, leaf first.
    pub certificate: String,
    /// Its private key, PEM; empty where whoever asked has made the pair.
    pub private_key: String,
    /// The roots that it pins, PEM.
    pub fleet_roots: String,
    /// The coordinator's certificate chain, PEM, leaf first.
    pub coordinator_certificate: String,
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.private_key.zeroize();
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bundle({}, {:?}, redacted)", self.device, self.name)
    }
}

/// One device in one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipView {
    /// The group.
    pub group: GroupId,
    /// Its name.
    pub group_name: String,
    /// The device.
    pub device: DeviceId,
    /// Its name.
    pub device_name: String,
    /// The cell it is in; none while it is only wanted.
    pub cell: Option<CellId>,
    /// The newest key epoch it proved to hold.
    pub confirmed: String,
    /// When it last confirmed.
    pub confirmed_unix_seconds: u64,
    /// Whether it has confirmed the group's newest key epoch.
    pub holds_newest: bool,
    /// Whether it was heard lately.
    pub online: bool,
    /// Whether it was heard lately, and has not said to hold the pre-shared key that the group asks for.
    #[serde(default)]
    pub lacks_psk: bool,
}

/// `GET /v1/devices/{device}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceView {
    /// Its id.
    pub id: DeviceId,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub standing: Standing,
    /// What selectors of groups look at: `key=value,key=value`.
    #[serde(default)]
    pub labels: String,
    /// The way by which it came in.
    #[serde(default)]
    pub origin: String,
    /// When it was enrolled.
    pub enrolled_unix_seconds: u64,
    /// Whether it was heard lately.
    pub online: bool,
    /// The groups it is in, or wanted in.
    pub groups: Vec<MembershipView>,
}

/// `GET /v1/devices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceList {
    /// In the order of their names.
    pub devices: Vec<DeviceView>,
}

/// `POST /v1/groups`: create a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewGroup {
    /// Its name.
    pub name: String,
    /// How it is run; what is left out has its default.
    #[serde(default)]
    pub policy: Policy,
    /// Which devices belong in it, by their labels: KEY=VALUE,KEY=VALUE; none when left out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub select: String,
    /// The external pre-shared key that it asks for, for as long as it is there: 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psk: Option<PskText>,
}

/// `POST /v1/groups/{group}/psk`: the next pre-shared key, or the same one again after a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPsk {
    /// 64 hexadecimal digits.
    pub psk: PskText,
}

/// What became of `POST /v1/groups/{group}/psk`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PskSet {
    /// Whether it is another key than before.
    pub changed: bool,
    /// The group now.
    pub group: GroupStatus,
}

/// `GET /v1/groups`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupList {
    /// In the order of their names.
    pub groups: Vec<GroupStatus>,
}

/// `GET /v1/groups/{group}/members`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberList {
    /// In the order of the devices' names.
    pub members: Vec<MembershipView>,
}

/// `POST /v1/groups/{group}/add` and `/remove`: which devices, by name or id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceNames {
    /// Names or ids.
    pub devices: Vec<String>,
}

/// What became of `POST /v1/groups/{group}/add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Added {
    /// Devices that were not wanted in the group before.
    pub added: usize,
    /// The group now.
    pub group: GroupStatus,
}

/// `POST /v1/revoke`: end the identities of devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// Names or ids.
    pub devices: Vec<String>,
    /// Why, for the record.
    pub reason: String,
    /// Within how many seconds whoever remains is to hold the new keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<u64>,
}

/// What became of `POST /v1/revoke`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Revoked {
    /// The devices.
    pub devices: Vec<DeviceId>,
    /// The groups that were rekeyed on their account, as they are now.
    pub groups: Vec<GroupStatus>,
}

/// What became of a rekey or of the start of a rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rekeyed {
    /// The new key epoch.
    pub key_epoch: String,
    /// The group now.
    pub group: GroupStatus,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatusView {
    /// The coordinator.
    pub coordinator: fleetkey_coordinator_core::Status,
    /// Whether there is a connection to the broker.
    pub broker_connected: bool,
    /// What was received, sent and spent.
    pub stats: Stats,
    /// What is stored, where the API can read it.
    pub store: Option<StoreView>,
}

/// What is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreView {
    /// Messages in the outbox: decided, stored, and not known to be sent.
    pub outbox: usize,
    /// The last transaction.
    pub last_step: LastStep,
}

/// The header of a response to `GET /v1/backup` that says what is in it: a [`BackupSummary`] in JSON.
pub const BACKUP_HEADER: HeaderName = HeaderName::from_static("fleetkey-backup");

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSummary {
    /// The fleet.
    pub fleet: FleetId,
    /// When it was taken.
    pub taken_unix_seconds: u64,
    /// The incarnation.
    pub incarnation: u32,
    /// Devices, the revoked ones included.
    pub devices: usize,
    /// Of those, the revoked ones.
    pub revoked: usize,
    /// Groups.
    pub groups: usize,
    /// Devices in groups, counted in each.
    pub memberships: usize,
    /// Entries of the audit log.
    pub audit: usize,
    /// Key epochs that were issued.
    pub issued: usize,
    /// The length of the file.
    pub bytes: usize,
}

impl BackupSummary {
    pub(crate) fn of(fleet: FleetId, backup: &Backup, bytes: usize) -> Self {
        let is_revoked = |device: &&DeviceRecord| matches!(device.standing, Standing::Revoked { .. });
        Self {
            fleet,
            taken_unix_seconds: backup.taken_unix_seconds,
            incarnation: backup.incarnation,
            devices: backup.devices.len(),
            revoked: backup.devices.iter().filter(is_revoked).count(),
            groups: backup.groups.len(),
            memberships: backup.memberships.len(),
            audit: backup.audit.len(),
            issued: backup.issued.len(),
            bytes,
        }
    }
}

/// Entries of the audit log in one answer.
pub const MAX_AUDIT_PAGE: usize = 1_000;

/// `GET /v1/audit?since=SECONDS`, and then `?after=` what the last page named. It begins with the first entry of that
/// time or later, and leaves none out from there on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPage {
    /// The fleet.
    pub fleet: FleetId,
    /// The entries, oldest first.
    pub entries: Vec<AuditRecord>,
    /// What to ask for the next page with; none after the last.
    pub next: Option<String>,
    /// How far the log has come, by what the database says of itself.
    pub head: AuditHead,
    /// Until when the pages so far are all there is.
    pub until_unix_seconds: u64,
}

/// `GET /v1/doctor`: what was found, gravest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examined {
    /// The findings.
    pub findings: Vec<FindingView>,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingView {
    /// What, by name.
    pub name: String,
    /// `broken`, `attention` or `notice`.
    pub severity: String,
    /// What of, with its ids.
    pub subject: String,
    /// The particulars.
    pub detail: String,
    /// What it means.
    pub meaning: String,
    /// What to do.
    pub remedy: String,
}

impl Examined {
    /// These findings.
    pub fn of(findings: &[Finding]) -> Self {
        let view = |finding: &Finding| FindingView {
            name: finding.kind.name().to_owned(),
            severity: finding.severity().name().to_owned(),
            subject: finding.subject.clone(),
            detail: finding.detail.clone(),
            meaning: finding.kind.meaning().to_owned(),
            remedy: finding.kind.remedy().to_owned(),
        };
        Self { findings: findings.iter().map(view).collect() }
    }

    /// Whether anything is broken, or needs an operator.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity == Severity::Notice.name())
    }
}

/// `GET /readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Both of the others.
    pub ready: bool,
    /// Whether the coordinator is loaded and follows commands.
    pub loaded: bool,
    /// Whether there is a connection to the broker.
    pub broker_connected: bool,
}
