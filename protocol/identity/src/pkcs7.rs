//! Certificates in a degenerate PKCS #7 `SignedData` (RFC 5652 §5, "certs-only"): how EST carries them.

use yasna::models::ObjectIdentifier;
use yasna::{ASN1Error, ASN1ErrorKind, BERReader, Tag};

/// Most certificates that are read.
const MAX_CERTIFICATES: usize = 16;
/// Largest message that is read.
const MAX_BYTES: usize = 256 * 1024;

const SIGNED_DATA: [u64; 7] = [1, 2, 840, 113_549, 1, 7, 2];
const DATA: [u64; 7] = [1, 2, 840, 113_549, 1, 7, 1];

/// Bytes that are no such message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a certs-only PKCS #7 message")]
pub struct BadPkcs7;

/// Puts certificates (DER) into one message (DER), in their order.
pub fn encode_certificates(certificates: &[Vec<u8>]) -> Vec<u8> {
    yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_oid(&ObjectIdentifier::from_slice(&SIGNED_DATA));
            writer.next().write_tagged(Tag::context(0), |writer| {
                writer.write_sequence(|writer| {
                    writer.next().write_u8(1);
                    // Nobody signs it: no algorithms, no content, no signers.
                    writer.next().write_set(|_| {});
                    writer.next().write_sequence(|writer| {
                        writer.next().write_oid(&ObjectIdentifier::from_slice(&DATA));
                    });
                    writer.next().write_tagged_implicit(Tag::context(0), |writer| {
                        writer.write_sequence(|writer| {
                            for certificate in certificates {
                                writer.next().write_der(certificate);
                            }
                        });
                    });
                    writer.next().write_set(|_| {});
                });
            });
        });
    })
}

/// Takes the certificates (DER) out of a message, in their order. Nobody has vouched for them.
///
/// # Errors
/// [`BadPkcs7`], also when there are none, or far too many.
pub fn decode_certificates(message: &[u8]) -> Result<Vec<Vec<u8>>, BadPkcs7> {
    if message.len() > MAX_BYTES {
        return Err(BadPkcs7);
    }
    let certificates = yasna::parse_ber(message, read).map_err(|_| BadPkcs7)?;
    if certificates.is_empty() || certificates.len() > MAX_CERTIFICATES {
        Err(BadPkcs7)
    } else {
        Ok(certificates)
    }
}

fn read(reader: BERReader<'_, '_>) -> Result<Vec<Vec<u8>>, ASN1Error> {
    reader.read_sequence(|reader| {
        if reader.next().read_oid()? != ObjectIdentifier::from_slice(&SIGNED_DATA) {
            return Err(ASN1Error::new(ASN1ErrorKind::Invalid));
        }
        reader.next().read_tagged(Tag::context(0), |reader| {
            reader.read_sequence(|reader| {
                reader.next().read_u8()?;
                reader.next().read_der()?;
                reader.next().read_der()?;
                let mut found = Vec::new();
                reader.next().read_tagged_implicit(Tag::context(0), |reader| {
                    reader.read_sequence_of(|reader| {
                        found.push(reader.read_der()?);
                        Ok(())
                    })
                })?;
                // Revocation lists, if there are any, and signers.
                reader.next().read_der()?;
                reader.read_optional(|reader| reader.read_der())?;
                Ok(found)
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_come_back_in_their_order() {
        // Any DER will do: what is inside is not looked at.
        let certificates = vec![vec![0x30, 0x00], vec![0x30, 0x03, 0x02, 0x01, 0x05]];
        let message = encode_certificates(&certificates);
        assert_eq!(decode_certificates(&message), Ok(certificates));
        assert_eq!(decode_certificates(&encode_certificates(&[])), Err(BadPkcs7));
        for length in 0..message.len() {
            assert_eq!(decode_certificates(&message[..length]), Err(BadPkcs7), "{length}");
        }
    }
}
