//! Certificates, signing requests, revocation lists and the messages that carry them: any bytes in place of one, and any
//! contents under a signature of the fleet's CA.

use ed25519_dalek::Signer as _;
use fleetkey_identity::{
    Crl, FleetCa, FleetRoots, IdentityKey, Revoked, Role, Validity, certificates_from_pem, chain_from_pem,
    crl_to_pem, pkcs7, read_certificate, read_signing_request, signing_request,
};
use fleetkey_wire::Generation;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use crate::parties::{DEVICE, FLEET, device};
use crate::steps::choose;

const NOW: i64 = 1_800_000_000;

/// Ed25519 (RFC 8410 §3).
const ALGORITHM: [u8; 7] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];

struct Authority {
    ca: FleetCa,
    key: IdentityKey,
    roots: FleetRoots,
}

fn authority() -> Authority {
    let mut rng = ChaCha20Rng::from_seed([5; 32]);
    let validity = Validity::without_end(NOW - 60);
    let ca = FleetCa::create(FLEET, &mut rng, validity).expect("a root can be made");
    let key = IdentityKey::from_pkcs8_pem(&ca.key_pem().expect("it is here")).expect("its own");
    let roots = FleetRoots::new(&[ca.certificate_der().to_vec()]).expect("our own root is one");
    Authority { ca, key, roots }
}

thread_local! {
    static AUTHORITY: Authority = authority();
}

/// Nothing is vouched for that the CA has not signed, whatever it looks like.
pub fn run(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 8) else { return };
    AUTHORITY.with(|authority| match choice {
        0 => {
            let read = read_certificate(rest);
            let verified = authority.roots.verify(&[rest.to_vec()], Some(NOW));
            assert!(read.is_ok() || verified.is_err(), "what cannot be read is vouched for");
        }
        // What it says is anything; the CA has signed it. It names one party, or it is refused.
        1 => {
            let certificate = signed(rest, &authority.key);
            if let Ok(identity) = authority.roots.verify(&[certificate], Some(NOW)) {
                assert_eq!(identity.fleet, FLEET);
                assert!(identity.not_before_unix_seconds <= NOW && NOW <= identity.not_after_unix_seconds);
            }
        }
        2 => {
            let mut parts = rest.splitn(2, |byte| *byte == 0xff).map(<[u8]>::to_vec);
            let chain: Vec<Vec<u8>> =
                parts.by_ref().chain([authority.ca.certificate_der().to_vec()]).collect();
            let _ = authority.roots.verify(&chain, None);
        }
        3 => {
            if let Ok(found) = pkcs7::decode_certificates(rest) {
                let again = pkcs7::decode_certificates(&pkcs7::encode_certificates(&found));
                assert_eq!(again, Ok(found));
            }
        }
        4 => check_list(authority, rest, false),
        5 => check_list(authority, &signed(rest, &authority.key), true),
        6 => {
            if let Ok(request) = read_signing_request(&signed(rest, &device())) {
                assert_eq!(
                    request.public_key,
                    device().public_key(),
                    "it is not signed with the key it names"
                );
            }
            let _ = read_signing_request(rest);
        }
        _ => {
            let text = String::from_utf8_lossy(rest);
            for chain in [chain_from_pem(&text), certificates_from_pem(&text)].into_iter().flatten() {
                assert!(!chain.is_empty());
            }
            let _ = FleetRoots::from_pem(&text);
            let _ = IdentityKey::from_pkcs8_pem(&text);
        }
    });
}

fn check_list(authority: &Authority, bytes: &[u8], is_signed: bool) {
    let Ok(list) = Crl::read(bytes) else { return };
    let verdict = authority.roots.check_crl(&list, &[]);
    assert!(is_signed || verdict.is_err() || is_genuine(authority, bytes), "nobody made this list");
    assert!(list.revoked.keys().all(|serial| list.is_revoked(serial)));
}

/// The seeds hold one that the CA did make; its contents decide, and not how it was wrapped.
fn is_genuine(authority: &Authority, bytes: &[u8]) -> bool {
    let genuine = Crl::read(&list(authority)).expect("our own");
    let read = Crl::read(bytes).expect("it was read before");
    (read.number, &read.revoked) == (genuine.number, &genuine.revoked)
}

/// `SEQUENCE { contents, algorithm, signature }`: what certificates, lists and requests have in common.
fn signed(contents: &[u8], key: &IdentityKey) -> Vec<u8> {
    let signature = key.signing_key().sign(contents).to_bytes();
    let body = [contents, &ALGORITHM, &[0x03, 0x41, 0x00], &signature].concat();
    let length = u32::try_from(body.len()).expect("inputs are short").to_be_bytes();
    [&[0x30, 0x84], &length[..], &body].concat()
}

/// What is signed in one of those: its first item.
fn contents(der: &[u8]) -> Vec<u8> {
    let header = |bytes: &[u8]| match bytes[1] {
        0x81 => (3, usize::from(bytes[2])),
        0x82 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
        short => (2, usize::from(short)),
    };
    let inner = &der[header(der).0..];
    let (head, length) = header(inner);
    inner[..head + length].to_vec()
}

fn list(authority: &Authority) -> Vec<u8> {
    let revoked = [Revoked { serial: vec![0x11; 16], unix_seconds: NOW as u64 }];
    authority.ca.revocation_list(7, Validity::days_from(NOW, 2), &revoked).expect("a list can be made")
}

/// Certificates of each role, lists, requests, and what carries them.
pub fn seeds() -> Vec<Vec<u8>> {
    let authority = authority();
    let issue = |role: &Role| {
        let hosts = if *role == Role::Broker { vec!["localhost".to_owned()] } else { Vec::new() };
        let validity = Validity::days_from(NOW - 60, 30);
        authority.ca.issue(role, &device().public_key(), &hosts, validity).expect("issued")
    };
    let device_certificate = issue(&Role::Device(DEVICE));
    let coordinator = issue(&Role::Coordinator { generation: Generation(3) });
    let broker = issue(&Role::Broker);
    let list = list(&authority);
    let request = signing_request(&device(), "pump-3");
    let chain = [device_certificate.clone(), authority.ca.certificate_der().to_vec()];
    let root = authority.ca.certificate_der();
    let pem = fleetkey_identity::chain_to_pem(&chain);
    let key = device().to_pkcs8_pem();
    let list_pem = crl_to_pem(&list);
    let seeds: [(u8, &[u8]); 12] = [
        (0, &device_certificate),
        (1, &contents(&device_certificate)),
        (1, &contents(&coordinator)),
        (1, &contents(&broker)),
        (2, &[&device_certificate[..], &[0xff], root].concat()),
        (3, &pkcs7::encode_certificates(&chain)),
        (4, &list),
        (4, list_pem.as_bytes()),
        (5, &contents(&list)),
        (6, &contents(&request)),
        (7, pem.as_bytes()),
        (7, key.as_bytes()),
    ];
    seeds.into_iter().map(|(choice, bytes)| [&[choice], bytes].concat()).collect()
}
