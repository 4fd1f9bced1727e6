//! What is answered when a request is not followed: a status, and JSON that names what went wrong.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use fleetkey_coordinator_core::records::OperatorRole;
use fleetkey_coordinator_core::{CommandError, OutOfScope};
use fleetkey_identity::{IssueError, Role};
use fleetkey_wire::error::Named;
use serde::de::DeserializeOwned;

use crate::api::ErrorBody;
use crate::backup_file::BadBackupFile;
use crate::engine::CommandFailed;
use crate::meter;
use crate::retirement::RetireError;
use crate::serve::ServeError;
use crate::shared_store::Closed;
use fleetkey_vault::files::FileError;

/// Why a request is not followed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No token, or one that does not open this.
    #[error("a bearer token is needed that opens this")]
    Unauthorized,
    /// A role that is not enough.
    #[error("this needs the role {needed}, and you have {has}")]
    RoleMissing {
        /// The role that is enough.
        needed: OperatorRole,
        /// The caller's.
        has: OperatorRole,
    },
    /// A scope that is not enough.
    #[error("{}", OutOfScope::Fleet)]
    ScopeMissing,
    /// There is nothing at this path.
    #[error("there is nothing at this path")]
    NotFound,
    /// There is something at this path, for another method.
    #[error("this path is for another method")]
    MethodNotAllowed,
    /// The body is too large.
    #[error("the body is larger than {} bytes", crate::api::MAX_REQUEST_BYTES)]
    TooLarge,
    /// The body is not the JSON that is expected.
    #[error("{0}")]
    BadRequest(String),
    /// A name or id that no device has.
    #[error("there is no device {0:?}")]
    UnknownDevice(String),
    /// A name or id that no group has.
    #[error("there is no group {0:?}")]
    UnknownGroup(String),
    /// A name or id under which nobody waits.
    #[error("nobody waits for an operator's word as {0:?}")]
    UnknownRequest(String),
    /// No claim's id.
    #[error("there is no claim {0:?}")]
    UnknownClaim(String),
    /// What is not there, or not in the caller's scope: the two are answered alike.
    #[error("{0} in your scope")]
    NotInScope(Box<ApiError>),
    /// The CA did not issue.
    #[error(transparent)]
    Issue(IssueError),
    /// A request that names no device.
    #[error("no device is named")]
    NoDevices,
    /// The CA's key is not here.
    #[error("this coordinator does not have the CA's key: provision where it is")]
    NoAuthority,
    /// There is no database to read.
    #[error("this coordinator keeps no database that could be read")]
    NoDatabase,
    /// The coordinator is stopping.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The database cannot be read.
    #[error("{0}")]
    Database(String),
    /// What is read is too much for a backup.
    #[error(transparent)]
    Backup(#[from] BadBackupFile),
    /// A certificate that is none, or of another fleet.
    #[error("the certificate: {0}")]
    Certificate(String),
    /// A certificate of somebody else than a device.
    #[error("the certificate is of {0}, not of a device")]
    NotADevice(Role),
    /// A CA is not retired.
    #[error(transparent)]
    Retire(RetireError),
    /// The coordinator did not follow.
    #[error(transparent)]
    Command(#[from] CommandFailed),
}

impl Named for ApiError {
    fn name(&self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::RoleMissing { .. } => "role_missing",
            Self::ScopeMissing => "out_of_scope",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::TooLarge => "too_large",
            Self::BadRequest(_) => "bad_request",
            Self::UnknownDevice(_) => "unknown_device",
            Self::UnknownGroup(_) => "unknown_group",
            Self::UnknownRequest(_) => "unknown_request",
            Self::UnknownClaim(_) => "unknown_claim",
            Self::NotInScope(_) => "out_of_scope",
            Self::Issue(_) => "issue",
            Self::NoDevices => "no_devices",
            Self::NoAuthority => "no_authority",
            Self::NoDatabase => "no_database",
            Self::Closed(Closed) => "stopping",
            Self::Database(_) => "database",
            Self::Backup(_) => "backup",
            Self::Certificate(_) => "bad_certificate",
            Self::NotADevice(_) => "not_a_device",
            Self::Retire(refused) => refused.name(),
            Self::Command(failed) => failed.name(),
        }
    }
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::RoleMissing { .. } | Self::ScopeMissing | Self::NotInScope(_) => StatusCode::FORBIDDEN,
            Self::NotFound
            | Self::UnknownDevice(_)
            | Self::UnknownGroup(_)
            | Self::UnknownRequest(_)
            | Self::UnknownClaim(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BadRequest(_) | Self::NoDevices | Self::Certificate(_) | Self::NotADevice(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::Retire(RetireError::Unknown(_)) => StatusCode::NOT_FOUND,
            Self::Retire(RetireError::Files(ServeError::File(FileError::Busy { .. }))) => {
                StatusCode::CONFLICT
            }
            Self::Retire(RetireError::Files(_) | RetireError::Authority(_)) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::NoAuthority
            | Self::NoDatabase
            | Self::Retire(
                RetireError::Issues(_)
                | RetireError::StillInUse { .. }
                | RetireError::RestsOnIt { .. }
                | RetireError::NoRoom,
            ) => StatusCode::CONFLICT,
            Self::Closed(Closed) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Database(_) | Self::Backup(_) | Self::Issue(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Command(CommandFailed::Refused(refused)) => status_of(refused),
            Self::Command(CommandFailed::NotStored { .. } | CommandFailed::Unavailable) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }
}

fn status_of(refused: &CommandError) -> StatusCode {
    match refused {
        CommandError::UnknownDevice(_)
        | CommandError::UnknownGroup(_)
        | CommandError::NoRequest(_)
        | CommandError::UnknownOperator(_)
        | CommandError::UnknownClaim(_) => StatusCode::NOT_FOUND,
        CommandError::NotAnOperator(_) => StatusCode::UNAUTHORIZED,
        CommandError::OutOfScope(_) => StatusCode::FORBIDDEN,
        CommandError::BadName(_)
        | CommandError::BadDeadline { .. }
        | CommandError::ReasonTooLong { .. }
        | CommandError::BadKey { .. }
        | CommandError::BadClaim(_)
        | CommandError::BadOperator(_)
        | CommandError::BadPolicy(_) => StatusCode::BAD_REQUEST,
        CommandError::AlreadyEnrolled(_)
        | CommandError::NameTaken(_)
        | CommandError::Revoked(_)
        | CommandError::NotAMember { .. }
        | CommandError::TooManyGroups(_)
        | CommandError::NotQuarantined(_)
        | CommandError::NoPskGroup(_)
        | CommandError::PskInUse { .. }
        | CommandError::RotationUnderWay(_)
        | CommandError::OtherKey(_)
        | CommandError::KeyInUse { .. }
        | CommandError::TooManyCertificates(_)
        | CommandError::TooManyClaims
        | CommandError::TooManyOperators
        | CommandError::TooManyOperatorNames
        | CommandError::Superseded => StatusCode::CONFLICT,
        CommandError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        // A command's failure was counted where it happened.
        if !matches!(self, Self::Command(_)) {
            meter::request_refused(self.name());
        }
        // Whoever was ended meanwhile is told what everybody is told whom nobody knows.
        let is_ended = matches!(&self, Self::Command(CommandFailed::Refused(CommandError::NotAnOperator(_))));
        let message = if is_ended { Self::Unauthorized.to_string() } else { self.to_string() };
        let body = ErrorBody { error: self.name().to_owned(), message };
        (self.status(), Json(body)).into_response()
    }
}

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Json(body) = Json::from_request(request, state).await?;
        Ok(Self(body))
    }
}

/// The one part of a path that varies: a name or an id.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(name) = Path::from_request_parts(parts, state).await?;
        Ok(Self(name))
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            Self::TooLarge
        } else {
            Self::BadRequest(rejection.body_text())
        }
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::BadRequest(rejection.body_text())
    }
}

pub(super) async fn not_found() -> ApiError {
    ApiError::NotFound
}

pub(super) async fn method_not_allowed() -> ApiError {
    ApiError::MethodNotAllowed
}
