//! Requests for a certificate, as the EST server takes them: the header that shows a claim, and the body.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetkey_est::{MAX_BODY_BYTES, read_basic, read_request};
use fleetkey_identity::signing_request;

use crate::parties::device;

/// A request that is taken was signed with the key in it: here, one that the seeds have.
pub fn run(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let (header, body) = data.split_at(end);
    if let Some((user, _)) = std::str::from_utf8(header).ok().and_then(read_basic) {
        assert!(!user.contains(':') && user.len() <= header.len());
    }
    let body = body.strip_prefix(b"\n").unwrap_or(body);
    if body.len() > MAX_BODY_BYTES {
        return;
    }
    match read_request(body) {
        Ok(request) => assert_eq!(request.public_key, device().public_key(), "nobody else's key has signed"),
        Err(refused) => assert!(!refused.name().is_empty()),
    }
}

/// DER, base64 and PEM, with a claim and without.
pub fn seeds() -> Vec<Vec<u8>> {
    let der = signing_request(&device(), "pump-3");
    let packed = STANDARD.encode(&der);
    let lines: Vec<&str> =
        packed.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    let pem = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        lines.join("\n")
    );
    let claim = format!("Basic {}", STANDARD.encode("0123456789abcdef:secret"));
    let with = |body: &[u8]| [claim.as_bytes(), b"\n", body].concat();
    vec![
        with(&der),
        with(packed.as_bytes()),
        with(pem.as_bytes()),
        [b"\n", &der[..]].concat(),
        b"Basic OjpA\nMAA=".to_vec(),
    ]
}
