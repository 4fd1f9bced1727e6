//! What the audit log tells of keys and certificates, so that a restore knows of those that its backup does not: a key
//! that was revoked since is refused, and a certificate that was handed out since is on the list when its device is.

use fleetkey_wire::DeviceId;

use crate::records::CertificateRecord;

/// The action of an entry that tells a device's key.
pub(crate) const KEY: &str = "key";
/// The action of an entry that tells of a certificate.
pub(crate) const CERTIFICATE: &str = "certificate";

/// The detail of a [`KEY`] entry.
pub(crate) fn of_key(public_key: &[u8; 32]) -> String {
    hex::encode(public_key)
}

/// Reads what [`of_key`] wrote.
pub(crate) fn key(detail: &str) -> Option<[u8; 32]> {
    hex::decode(detail).ok()?.try_into().ok()
}

/// The detail of a [`CERTIFICATE`] entry.
pub(crate) fn of_certificate(record: &CertificateRecord) -> String {
    let CertificateRecord { serial, issuer, not_after_unix_seconds, .. } = record;
    format!("serial {} issuer {} until {not_after_unix_seconds}", hex::encode(serial), hex::encode(issuer))
}

/// Reads what [`of_certificate`] wrote.
pub(crate) fn certificate(device: DeviceId, detail: &str) -> Option<CertificateRecord> {
    let words: Vec<&str> = detail.split(' ').collect();
    let ["serial", serial, "issuer", issuer, "until", until] = words.as_slice() else { return None };
    Some(CertificateRecord {
        device,
        serial: hex::decode(serial).ok()?,
        issuer: hex::decode(issuer).ok()?.try_into().ok()?,
        not_after_unix_seconds: until.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read_again() {
        let device = DeviceId::from_bytes([1; 16]);
        let record = CertificateRecord {
            device,
            serial: vec![0xab; 16],
            issuer: [0xcd; 8],
            not_after_unix_seconds: 9,
        };
        assert_eq!(certificate(device, &of_certificate(&record)), Some(record));
        assert_eq!(key(&of_key(&[0xef; 32])), Some([0xef; 32]));
        for other in ["", "serial", "serial x issuer y until z", "serial é issuer 00 until 1"] {
            assert_eq!(certificate(device, other), None, "{other}");
            assert_eq!(key(other), None, "{other}");
        }
    }
}
