//! Certificates and requests that look like somebody else's.

use fleetkey_identity::{
    FleetCa, FleetRoots, IdentityKey, Role, Validity, read_certificate, read_signing_request,
};
use fleetkey_wire::{DeviceId, FleetId, Generation};
use rand_core::OsRng;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType,
};

const FLEET: FleetId = FleetId::from_bytes([1; 16]);
const VICTIM: DeviceId = DeviceId::from_bytes([0xab; 16]);
const NOW: i64 = 1_800_000_000;
const DAY: i64 = 86_400;

fn year() -> Validity {
    Validity::days_from(NOW, 365)
}

struct Authority {
    ca: FleetCa,
    roots: FleetRoots,
}

impl Authority {
    fn new() -> Self {
        let ca = FleetCa::create(FLEET, &mut OsRng, year()).expect("a root can be made");
        let roots = FleetRoots::new(&[ca.certificate_der().to_vec()]).expect("our own root is one");
        Self { ca, roots }
    }
}

fn named(names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, VICTIM.to_string());
    params.subject_alt_names = names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.to_owned().try_into().expect("ASCII"))
}

/// A CA of the fleet's that signs whatever it is given: how far does the name alone carry?
fn careless() -> (Issuer<'static, KeyPair>, FleetRoots) {
    let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let mut params = named(vec![uri(&format!("urn:fleetkey:{FLEET}:ca"))]);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = params.self_signed(&key).expect("a root");
    let roots = FleetRoots::new(&[root.der().to_vec()]).expect("it is a root of the fleet");
    (Issuer::new(params, key), roots)
}

#[test]
fn certificate_with_a_look_alike_name() {
    let (issuer, roots) = careless();
    let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let verify = |names: Vec<SanType>| {
        let leaf = named(names).signed_by(&key, &issuer).expect("it signs anything").der().to_vec();
        roots.verify(&[leaf], None)
    };
    let right = format!("urn:fleetkey:{FLEET}:device:{VICTIM}");
    assert_eq!(verify(vec![uri(&right)]).map(|identity| identity.role), Ok(Role::Device(VICTIM)));

    let upper = VICTIM.to_string().to_uppercase();
    let plain = VICTIM.to_string().replace('-', "");
    let other = FleetId::from_bytes([2; 16]);
    let look_alikes = [
        format!("URN:FLEETKEY:{FLEET}:device:{VICTIM}"),
        format!("urn:fleetkey:{FLEET}:device:{upper}"),
        format!("urn:fleetkey:{FLEET}:device:{plain}"),
        format!("urn:fleetkey:{FLEET}:device:{{{VICTIM}}}"),
        format!("urn:fleetkey:{FLEET}:Device:{VICTIM}"),
        format!("urn:fleetkey:{FLEET}:device:{VICTIM} "),
        format!(" urn:fleetkey:{FLEET}:device:{VICTIM}"),
        format!("urn:fleetkey:{FLEET}:device:{VICTIM}\0"),
        format!("urn:fleetkey:{FLEET}:device:{VICTIM}\0.example"),
        format!("urn:fleetkey:{FLEET}:device:{VICTIM}:"),
        format!("urn:fleetkey:{FLEET}:device:{VICTIM}#a"),
        format!("urn:fleetkey:{FLEET}:device:%61{}", &VICTIM.to_string()[1..]),
        format!("urn:fleetkey:{FLEET}::device:{VICTIM}"),
        format!("urn:fleetkey:{other}:device:{VICTIM}"),
        format!("urn:fleetkey:{FLEET}:coordinator:01"),
        format!("urn:fleetkey:{FLEET}:coordinator:+1"),
        format!("urn:fleetkey:{FLEET}:coordinator:4294967296"),
        format!("urn:fleetkey:{FLEET}:coordinator"),
        format!("urn:fleetkey:{FLEET}:operator:"),
    ];
    for name in &look_alikes {
        let refused = verify(vec![uri(name)]);
        assert!(refused.is_err(), "{name:?} passed for {refused:?}");
    }
    // Two names, one of them right; the right one where a name does not count; no name but the subject's.
    let coordinator = format!("urn:fleetkey:{FLEET}:coordinator:1");
    let dns = |text: &str| SanType::DnsName(text.to_owned().try_into().expect("ASCII"));
    for names in
        [vec![uri(&right), uri(&coordinator)], vec![uri(&right), uri(&right)], vec![dns(&right)], vec![]]
    {
        assert!(verify(names.clone()).is_err(), "{names:?}");
    }
}

#[test]
fn signing_request_that_asks_for_more_than_it_may() {
    let authority = Authority::new();
    let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let coordinator = Role::Coordinator { generation: Generation(9) };
    let mut params = named(vec![uri(&coordinator.uri(FLEET))]);
    params.is_ca = IsCa::NoCa;
    params.distinguished_name.push(DnType::CommonName, "coordinator:9");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.custom_extensions.push(CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]));
    let request = params.serialize_request(&key).expect("a request").der().to_vec();
    let read = read_signing_request(&request).expect("its sender holds the key");
    // Whoever issues decides: of the request the key remains, and a wish for a name.
    let leaf = authority.ca.issue(&Role::Device(VICTIM), &read.public_key, &[], year()).expect("issued");
    let identity = authority.roots.verify(&[leaf], Some(NOW)).expect("a good certificate");
    assert_eq!((identity.role, identity.server_auth), (Role::Device(VICTIM), false));

    // The request of another's key, and another's request under one's own name.
    let other = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let at = request.windows(32).position(|bytes| bytes == read.public_key).expect("the key is in it");
    let mut stolen = request.clone();
    stolen[at..at + 32].copy_from_slice(&other.public_key_raw()[..32]);
    assert!(read_signing_request(&stolen).is_err());
    let mut renamed = request;
    let at = renamed.windows(11).position(|bytes| bytes == b"coordinator").expect("the name is in it");
    renamed[at] ^= 1;
    assert!(read_signing_request(&renamed).is_err());
}

#[test]
fn expired_and_not_yet_valid_certificates() {
    let authority = Authority::new();
    let key = IdentityKey::generate(&mut OsRng).public_key();
    let issue = |from: i64, to: i64| {
        let validity = Validity { not_before_unix_seconds: NOW + from, not_after_unix_seconds: NOW + to };
        authority.ca.issue(&Role::Device(VICTIM), &key, &[], validity).expect("issued")
    };
    let is_good = |leaf: &[u8], now| authority.roots.verify(&[leaf.to_vec()], Some(now)).is_ok();
    assert!(is_good(&issue(-DAY, DAY), NOW));
    for (from, to) in [(-2 * DAY, -DAY), (-2 * DAY, -1), (1, DAY), (DAY, 2 * DAY)] {
        let leaf = issue(from, to);
        assert!(!is_good(&leaf, NOW), "valid from {from} to {to}");
        assert!(is_good(&leaf, NOW + (from + to) / 2), "and in its own time it is good");
        assert!(read_certificate(&leaf).is_ok());
    }
}
