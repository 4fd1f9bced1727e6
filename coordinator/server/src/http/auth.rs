//! Who may ask: bearer tokens (RFC 6750), compared in constant time.

use std::fmt;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;
use rand_core::CryptoRngCore;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Api, ApiError};

/// Random bytes in a token of our own making.
const TOKEN_BYTES: usize = 32;
/// Shorter ones can be guessed.
const MIN_TOKEN_CHARACTERS: usize = 32;
const MAX_TOKEN_CHARACTERS: usize = 512;

/// A shared secret that opens the API. Never printed.
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

/// A text that is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a token has {MIN_TOKEN_CHARACTERS} to {MAX_TOKEN_CHARACTERS} printable characters and no spaces, not {0}"
)]
pub struct BadToken(usize);

impl Token {
    /// A fresh one.
    pub fn generate(rng: &mut dyn CryptoRngCore) -> Self {
        let mut bytes = Zeroizing::new([0; TOKEN_BYTES]);
        rng.fill_bytes(bytes.as_mut());
        Self(Zeroizing::new(hex::encode(*bytes)))
    }

    /// Reads one; white space around it is passed over.
    ///
    /// # Errors
    /// When it is too short, too long, or has other characters.
    pub fn parse(text: &str) -> Result<Self, BadToken> {
        let text = text.trim();
        let fits = (MIN_TOKEN_CHARACTERS..=MAX_TOKEN_CHARACTERS).contains(&text.len());
        if fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(Zeroizing::new(text.to_owned())))
        } else {
            Err(BadToken(text.len()))
        }
    }

    /// The token itself, to be written or sent.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    fn opens(&self, shown: &str) -> bool {
        self.0.as_bytes().ct_eq(shown.as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token((redacted))")
    }
}

/// Lets operators pass.
pub(super) async fn operator(
    State(api): State<Arc<Api>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    check(&request, &[&api.operator_token])?;
    Ok(next.run(request).await)
}

/// Lets brokers and operators pass.
pub(super) async fn broker(
    State(api): State<Arc<Api>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    check(&request, &[&api.broker_token, &api.operator_token])?;
    Ok(next.run(request).await)
}

fn check(request: &Request, tokens: &[&Token]) -> Result<(), ApiError> {
    let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, shown) = shown.and_then(|value| value.split_once(' ')).ok_or(ApiError::Unauthorized)?;
    let is_open = tokens.iter().fold(false, |open, token| open | token.opens(shown));
    if scheme.eq_ignore_ascii_case("bearer") && is_open { Ok(()) } else { Err(ApiError::Unauthorized) }
}
