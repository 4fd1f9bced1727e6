//! HTTP's basic authentication (RFC 7617), as RFC 7030 §3.2.3 has it.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Longer headers hold no claim.
const MAX_HEADER_BYTES: usize = 512;

/// User and password, if both are there and readable.
pub(crate) fn basic(headers: &HeaderMap) -> Option<(String, Zeroizing<String>)> {
    read_basic(headers.get(AUTHORIZATION)?.to_str().ok()?)
}

/// User and password in the value of an `Authorization` header.
pub fn read_basic(value: &str) -> Option<(String, Zeroizing<String>)> {
    if value.len() > MAX_HEADER_BYTES {
        return None;
    }
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = Zeroizing::new(STANDARD.decode(encoded.trim()).ok()?);
    let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some((user.to_owned(), Zeroizing::new(password.to_owned())))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn read(header: &str) -> Option<(String, String)> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_str(header).unwrap());
        basic(&headers).map(|(user, password)| (user, password.to_string()))
    }

    #[test]
    fn user_and_password_are_read_and_nothing_else() {
        let encoded = STANDARD.encode("0123:secret:with a colon");
        let both = Some(("0123".to_owned(), "secret:with a colon".to_owned()));
        assert_eq!(read(&format!("Basic {encoded}")), both);
        assert_eq!(read(&format!("basic {encoded}")), both);
        for none in ["Basic", "Basic ===", "Bearer x", "Basic bm9jb2xvbg==", "Basic gIA6gIA="] {
            assert_eq!(read(none), None, "{none}");
        }
        assert_eq!(read(&format!("Basic {}", STANDARD.encode("x:".repeat(400)))), None);
    }
}
