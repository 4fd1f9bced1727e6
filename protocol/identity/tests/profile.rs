//! What the profile accepts and what it refuses, on real certificates.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use ed25519_dalek::Signer as _;
use fleetkey_identity::{
    BadCertificate, BadPem, FleetCa, FleetRoots, IdentityKey, IssueError, KeyId, Role, Validity,
    chain_from_pem, chain_to_pem, read_certificate,
};
use fleetkey_wire::{DeviceId, FleetId, Generation};
use proptest::prelude::*;
use rand_core::OsRng;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, IsCa, Issuer, KeyUsagePurpose,
    PKCS_ED25519, PublicKeyData, SanType, SignatureAlgorithm, SigningKey,
};

const NOW: i64 = 1_800_000_000;
const DAY: i64 = 86_400;

fn fleet(byte: u8) -> FleetId {
    FleetId::from_bytes([byte; 16])
}

fn device() -> Role {
    Role::Device(DeviceId::from_bytes([0xd1; 16]))
}

fn year() -> Validity {
    Validity::days_from(NOW, 365)
}

fn new_ca(fleet: FleetId) -> FleetCa {
    FleetCa::create(fleet, &mut OsRng, year()).unwrap()
}

fn roots(ca: &FleetCa) -> FleetRoots {
    FleetRoots::new(&[ca.certificate_der().to_vec()]).unwrap()
}

fn key() -> IdentityKey {
    IdentityKey::generate(&mut OsRng)
}

/// Makes certificates that a proper CA would not.
struct Forger(IdentityKey);

impl Forger {
    /// With the private key of `ca`.
    fn of(ca: &FleetCa) -> Self {
        Self(IdentityKey::from_pkcs8_pem(&ca.key_pem().unwrap()).unwrap())
    }

    fn sign(&self, issuer_der: &[u8], params: &CertificateParams, public_key: &[u8; 32]) -> Vec<u8> {
        let issuer = Issuer::from_ca_cert_der(&issuer_der.into(), self).unwrap();
        params.signed_by(&PublicKey(*public_key), &issuer).unwrap().der().to_vec()
    }
}

impl PublicKeyData for &Forger {
    fn der_bytes(&self) -> &[u8] {
        self.0.signing_key().as_ref().as_bytes()
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl SigningKey for &Forger {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.0.signing_key().sign(message).to_bytes().to_vec())
    }
}

struct PublicKey([u8; 32]);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

fn uri(text: impl AsRef<str>) -> SanType {
    SanType::URI(text.as_ref().try_into().unwrap())
}

/// A leaf as the CA would make it, but for its names.
fn leaf_params(names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

#[test]
fn every_role_comes_back_from_its_certificate() {
    let ca = new_ca(fleet(1));
    for (role, hosts, serves) in [
        (Role::Coordinator { generation: Generation(7) }, vec!["coordinator.example".to_owned()], true),
        (Role::Broker, vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()], true),
        (Role::Operator { name: "ada".into() }, vec![], false),
        (device(), vec![], false),
    ] {
        let key = key();

        let der = ca.issue(&role, &key.public_key(), &hosts, year()).unwrap();
        let identity = roots(&ca).verify(std::slice::from_ref(&der), Some(NOW)).unwrap();

        assert_eq!(identity.fleet, fleet(1));
        assert_eq!(identity.role, role);
        assert_eq!(identity.public_key, key.public_key());
        assert_eq!(identity.key_id, KeyId::of_certificate(&der));
        assert_eq!(identity.not_after_unix_seconds, NOW + 365 * DAY);
        assert!(identity.client_auth);
        assert_eq!(identity.server_auth, serves);
        assert_eq!(read_certificate(&der), Ok(identity));
    }
}

#[test]
fn another_fleets_root_vouches_for_nothing_here() {
    let (ours, theirs) = (new_ca(fleet(1)), new_ca(fleet(2)));
    let der = theirs.issue(&device(), &key().public_key(), &[], year()).unwrap();

    let refused = roots(&ours).verify(&[der], Some(NOW));

    assert_eq!(refused, Err(BadCertificate::OtherFleet { got: fleet(2), expected: fleet(1) }));
}

#[test]
fn another_root_that_claims_our_fleet_vouches_for_nothing_here() {
    let (ours, impostor) = (new_ca(fleet(1)), new_ca(fleet(1)));
    let der = impostor.issue(&device(), &key().public_key(), &[], year()).unwrap();

    let refused = roots(&ours).verify(&[der, impostor.certificate_der().to_vec()], Some(NOW));

    assert_eq!(refused, Err(BadCertificate::UnknownIssuer { fleet: fleet(1) }));
}

#[test]
fn a_forger_with_the_roots_name_but_not_its_key_is_refused() {
    let ca = new_ca(fleet(1));
    let forger = Forger(key());
    let params = leaf_params(vec![uri(device().uri(fleet(1)))]);
    let der = forger.sign(ca.certificate_der(), &params, &key().public_key());

    assert_eq!(roots(&ca).verify(&[der], Some(NOW)), Err(BadCertificate::BadSignature));
}

#[test]
fn a_root_cannot_vouch_for_another_fleets_name() {
    let ca = new_ca(fleet(1));
    let params = leaf_params(vec![uri(device().uri(fleet(2)))]);
    let der = Forger::of(&ca).sign(ca.certificate_der(), &params, &key().public_key());

    let refused = roots(&ca).verify(&[der], Some(NOW));

    assert_eq!(refused, Err(BadCertificate::OtherFleet { got: fleet(2), expected: fleet(1) }));
}

#[test]
fn a_certificate_has_exactly_one_fleet_name_in_one_spelling() {
    let ca = new_ca(fleet(1));
    let forger = Forger::of(&ca);
    let verify = |names: Vec<SanType>| {
        let der = forger.sign(ca.certificate_der(), &leaf_params(names), &key().public_key());
        roots(&ca).verify(&[der], Some(NOW))
    };
    let good = device().uri(fleet(1));

    assert!(verify(vec![uri(&good)]).is_ok());
    assert!(verify(vec![uri("https://example.org/x"), uri(&good)]).is_ok());
    assert_eq!(verify(vec![]), Err(BadCertificate::NoFleetName));
    assert_eq!(verify(vec![uri("urn:uuid:x")]), Err(BadCertificate::NoFleetName));
    assert_eq!(
        verify(vec![SanType::DnsName(good.as_str().try_into().unwrap())]),
        Err(BadCertificate::NoFleetName),
        "a DNS name that looks like one is none"
    );
    for second in [good.clone(), Role::Broker.uri(fleet(1)), good.to_uppercase(), "urn:fleetkey:x".to_owned()]
    {
        assert_eq!(
            verify(vec![uri(&good), uri(&second)]),
            Err(BadCertificate::SeveralFleetNames),
            "{second}"
        );
    }
    for alike in
        [good.to_uppercase(), format!("{good} "), format!("{good}\0"), good.replace("device", "Device")]
    {
        let refused = verify(vec![uri(&alike)]);
        assert!(matches!(refused, Err(BadCertificate::BadFleetName { .. })), "{alike:?}: {refused:?}");
    }
}

#[test]
fn validity_is_judged_by_the_clock_if_there_is_one() {
    let ca = new_ca(fleet(1));
    let der = ca.issue(&device(), &key().public_key(), &[], year()).unwrap();
    let at = |now| roots(&ca).verify(std::slice::from_ref(&der), now).map(|_| ());
    let (first, last) = (NOW - 3_600, NOW + 365 * DAY);

    assert_eq!(at(Some(first)), Ok(()));
    assert_eq!(at(Some(last)), Ok(()));
    assert_eq!(
        at(Some(first - 1)),
        Err(BadCertificate::NotYetValid { not_before_unix_seconds: first, now_unix_seconds: first - 1 })
    );
    assert_eq!(
        at(Some(last + 1)),
        Err(BadCertificate::Expired { not_after_unix_seconds: last, now_unix_seconds: last + 1 })
    );
    assert_eq!(at(None), Ok(()));
}

#[test]
fn a_pinned_root_outlives_its_own_validity() {
    let ca = FleetCa::create(fleet(1), &mut OsRng, Validity::days_from(NOW, 1)).unwrap();
    let der = ca.issue(&device(), &key().public_key(), &[], year()).unwrap();

    assert!(roots(&ca).verify(&[der], Some(NOW + 300 * DAY)).is_ok());
}

#[test]
fn a_certificate_without_end_is_valid_in_a_thousand_years() {
    let ca = new_ca(fleet(1));
    let der = ca.issue(&device(), &key().public_key(), &[], Validity::without_end(NOW)).unwrap();

    assert!(roots(&ca).verify(&[der], Some(NOW + 1_000 * 365 * DAY)).is_ok());
}

#[test]
fn an_intermediate_issues_for_the_root_above_it() {
    let root = new_ca(fleet(1));
    let middle = root.create_intermediate(&mut OsRng, Validity::days_from(NOW, 30)).unwrap();
    let leaf = middle.issue(&device(), &key().public_key(), &[], year()).unwrap();
    let chain = middle.chain(leaf.clone());
    assert_eq!(chain.len(), 2);

    assert!(roots(&root).verify(&chain, Some(NOW)).is_ok());

    let with_root = [chain.as_slice(), &[root.certificate_der().to_vec()]].concat();
    assert!(roots(&root).verify(&with_root, Some(NOW)).is_ok(), "a root sent along does no harm");
    assert_eq!(
        roots(&root).verify(std::slice::from_ref(&leaf), Some(NOW)),
        Err(BadCertificate::UnknownIssuer { fleet: fleet(1) }),
        "the intermediate is needed"
    );
    assert!(
        matches!(roots(&root).verify(&chain, Some(NOW + 31 * DAY)), Err(BadCertificate::Expired { .. })),
        "an intermediate expires"
    );
    let other = root.create_intermediate(&mut OsRng, year()).unwrap();
    assert_eq!(
        roots(&root).verify(&other.chain(leaf), Some(NOW)),
        Err(BadCertificate::UnknownIssuer { fleet: fleet(1) }),
        "another intermediate of the same root did not issue it"
    );
}

#[test]
fn an_intermediate_has_none_below_it() {
    let root = new_ca(fleet(1));
    let middle = root.create_intermediate(&mut OsRng, year()).unwrap();
    assert_eq!(middle.create_intermediate(&mut OsRng, year()).unwrap_err(), IssueError::NotARoot);
    let lower_key = key();
    let mut params = leaf_params(vec![uri(format!("urn:fleetkey:{}:ca", fleet(1)))]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(rcgen::DnType::CommonName, "lower");
    let lower = Forger::of(&middle).sign(middle.certificate_der(), &params, &lower_key.public_key());
    let leaf =
        Forger(lower_key).sign(&lower, &leaf_params(vec![uri(device().uri(fleet(1)))]), &key().public_key());
    let chain = [leaf, lower, middle.certificate_der().to_vec()];

    assert_eq!(roots(&root).verify(&chain, Some(NOW)), Err(BadCertificate::ChainTooLong));
}

#[test]
fn a_root_without_room_for_intermediates_has_none() {
    let forger = Forger(key());
    let mut params = leaf_params(vec![uri(format!("urn:fleetkey:{}:ca", fleet(1)))]);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root_der = params.self_signed(&&forger).unwrap().der().to_vec();
    let text = format!("{}{}", pem_of(&root_der), *forger.0.to_pkcs8_pem());
    let root = FleetCa::from_pem(&text).unwrap();
    let direct = root.issue(&device(), &key().public_key(), &[], year()).unwrap();
    let middle = root.create_intermediate(&mut OsRng, year()).unwrap();
    let below = middle.issue(&device(), &key().public_key(), &[], year()).unwrap();

    assert!(roots(&root).verify(&[direct], Some(NOW)).is_ok());
    assert_eq!(roots(&root).verify(&middle.chain(below), Some(NOW)), Err(BadCertificate::ChainTooLong));
}

#[test]
fn a_device_cannot_act_as_ca() {
    let ca = new_ca(fleet(1));
    let device_key = key();
    let device_der = ca.issue(&device(), &device_key.public_key(), &[], year()).unwrap();
    let forged = Forger(device_key).sign(
        &device_der,
        &leaf_params(vec![uri(Role::Coordinator { generation: Generation(9) }.uri(fleet(1)))]),
        &key().public_key(),
    );

    let refused = roots(&ca).verify(&[forged, device_der.clone()], Some(NOW));

    assert_eq!(refused, Err(BadCertificate::IssuerIsNotCa));
    assert_eq!(FleetRoots::new(&[device_der]).unwrap_err(), BadCertificate::IssuerIsNotCa);
}

#[test]
fn a_ca_names_no_party() {
    let ca = new_ca(fleet(1));
    assert_eq!(read_certificate(ca.certificate_der()), Err(BadCertificate::IsCa));
    assert_eq!(
        roots(&ca).verify(&[ca.certificate_der().to_vec()], Some(NOW)),
        Err(BadCertificate::EmptyChain),
        "the root alone is a chain without a leaf"
    );
    let middle = ca.create_intermediate(&mut OsRng, year()).unwrap();
    assert_eq!(roots(&ca).verify(&[middle.certificate_der().to_vec()], Some(NOW)), Err(BadCertificate::IsCa));
}

#[test]
fn name_ca_flag_and_key_usage_tell_the_same_story() {
    let ca = new_ca(fleet(1));
    let forger = Forger::of(&ca);
    let read = |params: &CertificateParams| {
        read_certificate(&forger.sign(ca.certificate_der(), params, &key().public_key())).map(|_| ())
    };
    let leaf = leaf_params(vec![uri(device().uri(fleet(1)))]);
    assert_eq!(read(&leaf), Ok(()));

    let mut params = leaf.clone();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert_eq!(read(&params), Err(BadCertificate::IsCa));
    let mut params = leaf.clone();
    params.key_usages.push(KeyUsagePurpose::KeyCertSign);
    assert_eq!(read(&params), Err(BadCertificate::IsCa));
    let mut params = leaf.clone();
    params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    assert_eq!(read(&params), Err(BadCertificate::KeyUsage { needed: "digital signatures" }));
    let mut params = leaf;
    params.key_usages.clear();
    assert_eq!(read(&params), Err(BadCertificate::KeyUsage { needed: "digital signatures" }));
    let params = leaf_params(vec![uri(format!("urn:fleetkey:{}:ca", fleet(1)))]);
    assert_eq!(read(&params), Err(BadCertificate::IssuerIsNotCa));
}

#[test]
fn an_unknown_extension_is_refused_only_when_it_is_critical() {
    let ca = new_ca(fleet(1));
    let forger = Forger::of(&ca);
    let read = |critical: &[bool]| {
        let mut params = leaf_params(vec![uri(device().uri(fleet(1)))]);
        for critical in critical {
            let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
            extension.set_criticality(*critical);
            params.custom_extensions.push(extension);
        }
        read_certificate(&forger.sign(ca.certificate_der(), &params, &key().public_key())).map(|_| ())
    };

    assert_eq!(read(&[false]), Ok(()));
    assert_eq!(
        read(&[true]),
        Err(BadCertificate::UnknownCriticalExtension { oid: "1.3.6.1.4.1.99999.1".into() })
    );
    assert_eq!(read(&[false, false]), Err(BadCertificate::Malformed { what: "an extension occurs twice" }));
}

#[test]
fn only_strong_ed25519_keys_are_read() {
    let ca = new_ca(fleet(1));
    let forger = Forger::of(&ca);
    let params = leaf_params(vec![uri(device().uri(fleet(1)))]);
    let mut neutral = [0; 32];
    neutral[0] = 1;
    let mut no_point = [0; 32];
    no_point[0] = 2;
    for weak in [neutral, [0; 32], no_point] {
        let der = forger.sign(ca.certificate_der(), &params, &weak);
        assert_eq!(read_certificate(&der), Err(BadCertificate::WeakKey));
        assert_eq!(ca.issue(&device(), &weak, &[], year()), Err(IssueError::BadPublicKey));
    }

    let p256 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let issuer = Issuer::from_ca_cert_der(&ca.certificate_der().into(), &forger).unwrap();
    let other_key = params.signed_by(&p256, &issuer).unwrap();
    assert_eq!(read_certificate(other_key.der()), Err(BadCertificate::NotEd25519 { what: "key" }));
    let other_signature = params.self_signed(&p256).unwrap();
    assert_eq!(
        read_certificate(other_signature.der()),
        Err(BadCertificate::NotEd25519 { what: "signature" })
    );
}

#[test]
fn a_request_that_makes_no_sense_is_refused() {
    let ca = new_ca(fleet(1));
    let public = key().public_key();
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    for name in ["", "a b", "urn:x", &"x".repeat(65)] {
        let role = Role::Operator { name: name.to_owned() };
        assert_eq!(
            ca.issue(&role, &public, &[], year()),
            Err(IssueError::BadOperatorName { name: name.to_owned() })
        );
    }
    for name in ["", "a b", "ä.example", "x..y", "host:8883"] {
        assert_eq!(
            ca.issue(&Role::Broker, &public, &names(&[name]), year()),
            Err(IssueError::BadHostName { name: name.to_owned() })
        );
    }
    assert_eq!(
        ca.issue(&device(), &public, &names(&["broker.example"]), year()),
        Err(IssueError::HostNamesNotAllowed { role: device() })
    );
    for (not_before_unix_seconds, not_after_unix_seconds) in [(1, 0), (-1, 5), (0, 253_402_300_800)] {
        let validity = Validity { not_before_unix_seconds, not_after_unix_seconds };
        assert_eq!(
            ca.issue(&device(), &public, &[], validity),
            Err(IssueError::BadValidity { not_before_unix_seconds, not_after_unix_seconds })
        );
    }
}

#[test]
fn the_same_request_gives_the_same_bytes_and_another_another_serial() {
    let ca = new_ca(fleet(1));
    let public = key().public_key();
    let issue = |validity| ca.issue(&device(), &public, &[], validity).unwrap();
    let serial = |der: &[u8]| {
        use x509_parser::prelude::FromDer;
        x509_parser::certificate::X509Certificate::from_der(der).unwrap().1.raw_serial().to_vec()
    };

    let (first, again, renewed) = (issue(year()), issue(year()), issue(Validity::days_from(NOW, 366)));

    assert_eq!(first, again);
    assert_ne!(serial(&first), serial(&renewed));
    assert_eq!(serial(&first).len(), 16);
}

#[test]
fn a_ca_comes_back_from_its_pem() {
    let root = new_ca(fleet(1));
    let middle = root.create_intermediate(&mut OsRng, year()).unwrap();
    let public = key().public_key();
    for ca in [&root, &middle] {
        let again = FleetCa::from_pem(&ca.to_pem().unwrap()).unwrap();
        assert_eq!(again.fleet(), fleet(1));
        assert_eq!(again.certificate_der(), ca.certificate_der());
        assert_eq!(
            again.issue(&device(), &public, &[], year()),
            ca.issue(&device(), &public, &[], year()),
            "it signs with the same key under the same name"
        );
        assert_eq!(again.chain(vec![]).len(), ca.chain(vec![]).len());
    }
    let mixed = format!("{}{}", root.certificate_pem(), *middle.key_pem().unwrap());
    assert_eq!(FleetCa::from_pem(&mixed).unwrap_err(), BadPem::OtherKey);
    assert_eq!(
        FleetCa::from_pem(&root.certificate_pem()).unwrap_err(),
        BadPem::Missing { what: "private key" }
    );
    let device_key = key();
    let leaf = root.issue(&device(), &device_key.public_key(), &[], year()).unwrap();
    let party = format!("{}{}", pem_of(&leaf), *device_key.to_pkcs8_pem());
    assert_eq!(FleetCa::from_pem(&party).unwrap_err(), BadPem::Certificate(BadCertificate::IssuerIsNotCa));
}

#[test]
fn a_chain_comes_back_from_pem_leaf_first() {
    let root = new_ca(fleet(1));
    let middle = root.create_intermediate(&mut OsRng, year()).unwrap();
    let leaf = middle.issue(&device(), &key().public_key(), &[], year()).unwrap();
    let chain = middle.chain(leaf);

    let text = chain_to_pem(&chain);

    assert_eq!(chain_from_pem(&text), Ok(chain));
    assert_eq!(chain_from_pem("nothing"), Err(BadPem::Missing { what: "certificate" }));
    assert_eq!(chain_from_pem(&text.repeat(2)), Err(BadPem::TooMany { what: "certificate", limit: 3 }));
}

fn pem_of(der: &[u8]) -> String {
    x509_pem("CERTIFICATE", der)
}

fn x509_pem(label: &str, der: &[u8]) -> String {
    use ed25519_dalek::pkcs8::spki::der::pem::{LineEnding, encode_string};
    encode_string(label, LineEnding::LF, der).unwrap()
}

#[test]
fn roots_come_back_from_pem_and_belong_to_one_fleet() {
    let (first, second) = (new_ca(fleet(1)), new_ca(fleet(1)));
    let text = format!("{}# a comment\n{}", first.certificate_pem(), second.certificate_pem());

    let pinned = FleetRoots::from_pem(&text).unwrap();

    assert_eq!(pinned.fleet(), fleet(1));
    assert_eq!(FleetRoots::from_pem(&pinned.to_pem()).unwrap().ders().len(), 2);
    for ca in [&first, &second] {
        let der = ca.issue(&device(), &key().public_key(), &[], year()).unwrap();
        assert!(pinned.verify(&[der], Some(NOW)).is_ok());
    }
    let stranger = new_ca(fleet(2));
    assert_eq!(
        FleetRoots::from_pem(&format!("{text}{}", stranger.certificate_pem())).unwrap_err(),
        BadPem::Certificate(BadCertificate::OtherFleet { got: fleet(2), expected: fleet(1) })
    );
    assert_eq!(FleetRoots::from_pem("").unwrap_err(), BadPem::Missing { what: "certificate" });
    assert_eq!(
        FleetRoots::from_pem(&first.certificate_pem().repeat(17)).unwrap_err(),
        BadPem::TooMany { what: "certificate", limit: 16 }
    );
    assert_eq!(FleetRoots::new(&[]).unwrap_err(), BadCertificate::EmptyChain);
    let cut = &first.certificate_pem()[..200];
    assert!(matches!(FleetRoots::from_pem(cut).unwrap_err(), BadPem::Malformed { .. }));
    assert!(matches!(
        FleetRoots::from_pem(&"x".repeat(300_000)).unwrap_err(),
        BadPem::TooLarge { bytes: 300_000, .. }
    ));
}

#[test]
fn a_root_must_have_signed_itself() {
    let ca = new_ca(fleet(1));
    let middle = ca.create_intermediate(&mut OsRng, year()).unwrap();
    assert_eq!(
        FleetRoots::new(&[middle.certificate_der().to_vec()]).unwrap_err(),
        BadCertificate::BadSignature
    );
}

/// RFC 8410 §10.3: the same key, without and with the public key and an attribute beside it.
#[test]
fn the_keys_of_rfc_8410_are_read() {
    let plain = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    let public = hex::decode("19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1").unwrap();

    let key = IdentityKey::from_pkcs8_pem(plain).unwrap();

    assert_eq!(key.public_key().as_slice(), public);
    assert_eq!(*key.to_pkcs8_pem(), plain);
    assert_eq!(IdentityKey::from_seed(&key.seed()).public_key(), key.public_key());
}

#[test]
fn a_key_whose_public_half_is_another_is_refused() {
    let (key, other) = (key(), key());
    let mut der = hex::decode("3051020101300506032b657004220420").unwrap();
    der.extend(*key.seed());
    der.extend([0x81, 0x21, 0x00]);
    let with_public =
        |public: [u8; 32]| x509_pem("PRIVATE KEY", &[der.as_slice(), public.as_slice()].concat());

    assert_eq!(
        IdentityKey::from_pkcs8_pem(&with_public(key.public_key())).unwrap().public_key(),
        key.public_key()
    );
    assert_eq!(
        IdentityKey::from_pkcs8_pem(&with_public(other.public_key())).unwrap_err(),
        BadPem::NotEd25519Key
    );
}

#[test]
fn a_key_does_not_print_its_secret() {
    let key = IdentityKey::from_seed(&[0x5a; 32]);
    let ca = new_ca(fleet(1));
    assert_eq!(format!("{key:?}"), "IdentityKey(\"(redacted)\")");
    let printed = format!("{ca:?}");
    let secret = ca.key_pem().unwrap();
    let secret = IdentityKey::from_pkcs8_pem(&secret).unwrap().seed();
    assert!(!printed.contains(&hex::encode(*secret)));
    assert!(!printed.contains(&format!("{:?}", &secret[..4]).trim_matches(['[', ']']).to_owned()));
}

/// Certificates in the field must be read for ever, and issuing must stay reproducible.
#[test]
fn certificates_of_the_first_version_are_still_read_and_issued() {
    let root = FleetCa::from_pem(include_str!("vectors/ca.pem")).unwrap();
    let public = IdentityKey::from_seed(&[7; 32]).public_key();
    let validity = Validity { not_before_unix_seconds: NOW, not_after_unix_seconds: NOW + 365 * DAY };
    for (role, hosts, vector) in [
        (device(), vec![], include_str!("vectors/device.pem")),
        (
            Role::Coordinator { generation: Generation(3) },
            vec!["coordinator.example".to_owned(), "127.0.0.1".to_owned()],
            include_str!("vectors/coordinator.pem"),
        ),
    ] {
        let der = root.issue(&role, &public, &hosts, validity).unwrap();
        assert_eq!(pem_of(&der), vector);
        let identity = roots(&root).verify(&[der], Some(NOW)).unwrap();
        assert_eq!((identity.role, identity.fleet), (role, fleet(0xf1)));
    }
}

#[test]
fn no_byte_of_a_chain_can_be_changed() {
    let root = new_ca(fleet(1));
    let middle = root.create_intermediate(&mut OsRng, year()).unwrap();
    let leaf = middle.issue(&device(), &key().public_key(), &[], year()).unwrap();
    let chain = middle.chain(leaf);
    let pinned = roots(&root);
    assert!(pinned.verify(&chain, Some(NOW)).is_ok());
    for which in 0..chain.len() {
        for at in 0..chain[which].len() {
            for change in [0x01, 0x80, 0xff] {
                let mut changed = chain.clone();
                changed[which][at] ^= change;
                assert!(pinned.verify(&changed, Some(NOW)).is_err(), "certificate {which}, byte {at}");
            }
            let mut cut = chain.clone();
            cut[which].truncate(at);
            assert!(pinned.verify(&cut, Some(NOW)).is_err(), "certificate {which} cut at {at}");
        }
        let mut longer = chain.clone();
        longer[which].push(0);
        assert!(pinned.verify(&longer, Some(NOW)).is_err(), "certificate {which} with a byte more");
    }
}

#[test]
fn an_oversized_certificate_is_refused_before_it_is_decoded() {
    assert_eq!(read_certificate(&vec![0x30; 8193]), Err(BadCertificate::TooLarge { bytes: 8193 }));
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(read_certificate(&bytes).is_err());
    }

    #[test]
    fn a_mutilated_certificate_is_refused_without_a_panic(
        at in 0usize..1000,
        cut in 0usize..64,
        put in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let root = FleetCa::from_pem(include_str!("vectors/ca.pem")).unwrap();
        let der = root.issue(&device(), &IdentityKey::from_seed(&[7; 32]).public_key(), &[], year()).unwrap();
        let at = at % der.len();
        let mut changed = der.clone();
        changed.splice(at..(at + cut).min(der.len()), put);
        let verified = roots(&root).verify(std::slice::from_ref(&changed), Some(NOW));
        prop_assert_eq!(verified.is_ok(), changed == der);
        let _ = read_certificate(&changed);
    }

    #[test]
    fn any_text_is_refused_without_a_panic(text in "\\PC{0,300}") {
        prop_assert!(FleetRoots::from_pem(&text).is_err());
        prop_assert!(IdentityKey::from_pkcs8_pem(&text).is_err());
    }
}
