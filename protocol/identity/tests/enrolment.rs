//! What enrolment is made of: signing requests, revocation lists, encrypted keys, certs-only messages. OpenSSL judges
//! ours and makes some of its own, where it is on the machine.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test's failure is its report")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use fleetkey_identity::{
    BadCertificate, BadCrl, BadPem, BadSigningRequest, CaKey, Crl, FleetCa, FleetRoots, IdentityKey,
    IssueError, MAX_CSR_BYTES, Revoked, Role, SigningFailed, Validity, crl_to_pem, pkcs7, read_certificate,
    read_signing_request,
};
use fleetkey_wire::{DeviceId, FleetId};
use rand_core::OsRng;

const NOW: i64 = 1_800_000_000;

fn ca() -> FleetCa {
    FleetCa::create(FleetId::from_bytes([7; 16]), &mut OsRng, Validity::without_end(NOW)).unwrap()
}

fn device_certificate(ca: &FleetCa, byte: u8) -> Vec<u8> {
    let role = Role::Device(DeviceId::from_bytes([byte; 16]));
    let key = IdentityKey::generate(&mut OsRng);
    ca.issue(&role, &key.public_key(), &[], Validity::days_from(NOW, 30)).unwrap()
}

/// A directory that goes when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fleetkey-identity-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `None` where there is no OpenSSL; the test then says that it did not run.
fn openssl(arguments: &[&str], directory: &Path) -> Option<std::process::Output> {
    match Command::new("openssl").args(arguments).current_dir(directory).output() {
        Ok(output) => Some(output),
        Err(_) => {
            eprintln!("NOT RUN: openssl is not installed");
            None
        }
    }
}

fn openssl_csr(scratch: &Scratch, extra: &[&str]) -> Option<Vec<u8>> {
    let made = openssl(&["genpkey", "-algorithm", "ed25519", "-out", "key.pem"], &scratch.0)?;
    assert!(made.status.success(), "{made:?}");
    let base = ["req", "-new", "-key", "key.pem", "-subj", "/CN=pump 7", "-outform", "DER", "-out", "r.der"];
    let made = openssl(&[&base, extra].concat(), &scratch.0)?;
    assert!(made.status.success(), "{made:?}");
    Some(fs::read(scratch.file("r.der")).unwrap())
}

#[test]
fn a_signing_request_of_openssl_is_read() {
    let scratch = Scratch::new("csr");
    let Some(csr) = openssl_csr(&scratch, &[]) else { return };
    let request = read_signing_request(&csr).unwrap();
    let key = IdentityKey::from_pkcs8_pem(&fs::read_to_string(scratch.file("key.pem")).unwrap()).unwrap();
    assert_eq!(request.public_key, key.public_key());
    assert_eq!(request.common_name.as_deref(), Some("pump 7"));
}

#[test]
fn a_signing_request_that_was_changed_is_refused() {
    let scratch = Scratch::new("changed-csr");
    let Some(csr) = openssl_csr(&scratch, &[]) else { return };
    for at in 0..csr.len() {
        let mut changed = csr.clone();
        changed[at] ^= 1;
        assert!(read_signing_request(&changed).is_err(), "byte {at} changed, and nobody minds");
        assert!(read_signing_request(&csr[..at]).is_err(), "cut after {at}, and nobody minds");
    }
    let longer = [&csr[..], &[0]].concat();
    let malformed = BadSigningRequest::Malformed { what: "bytes after its end" };
    assert_eq!(read_signing_request(&longer), Err(malformed));
    let large = vec![0x30; MAX_CSR_BYTES + 1];
    assert_eq!(read_signing_request(&large), Err(BadSigningRequest::TooLarge { bytes: large.len() }));
}

#[test]
fn a_signing_request_for_another_kind_of_key_is_refused() {
    let scratch = Scratch::new("ec-csr");
    let arguments = [
        "req",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        "k.pem",
        "-subj",
        "/CN=x",
        "-outform",
        "DER",
        "-out",
        "r.der",
    ];
    let Some(made) = openssl(&arguments, &scratch.0) else { return };
    assert!(made.status.success(), "{made:?}");
    let csr = fs::read(scratch.file("r.der")).unwrap();
    assert_eq!(read_signing_request(&csr), Err(BadSigningRequest::Key));
}

#[test]
fn a_revocation_list_names_certificates_and_is_vouched_for_by_its_ca() {
    let ca = ca();
    let (lost, kept) = (device_certificate(&ca, 1), device_certificate(&ca, 2));
    let serial = |der: &[u8]| read_certificate(der).unwrap().serial;
    let revoked = [Revoked { serial: serial(&lost), unix_seconds: NOW as u64 }];
    let der = ca.revocation_list(42, Validity::days_from(NOW, 1), &revoked).unwrap();
    for form in [der.clone(), crl_to_pem(&der).into_bytes()] {
        let list = Crl::read(&form).unwrap();
        assert_eq!(list.number, 42);
        assert_eq!(list.next_update_unix_seconds, Some(NOW + 86_400));
        assert!(list.is_revoked(&serial(&lost)));
        assert!(!list.is_revoked(&serial(&kept)));
        let roots = FleetRoots::new(&[ca.certificate_der().to_vec()]).unwrap();
        roots.check_crl(&list, &[]).unwrap();
    }
}

#[test]
fn a_revocation_list_of_another_ca_is_refused() {
    let (ours, other) = (ca(), ca());
    let roots = FleetRoots::new(&[ours.certificate_der().to_vec()]).unwrap();
    let list =
        |ca: &FleetCa| Crl::read(&ca.revocation_list(1, Validity::days_from(NOW, 1), &[]).unwrap()).unwrap();
    assert_eq!(roots.check_crl(&list(&other), &[]), Err(BadCrl::UnknownIssuer));
    let middle = ours.create_intermediate(&mut OsRng, Validity::days_from(NOW, 30)).unwrap();
    assert_eq!(roots.check_crl(&list(&middle), &[]), Err(BadCrl::UnknownIssuer));
    roots.check_crl(&list(&middle), &[middle.certificate_der().to_vec()]).unwrap();
    let stranger = other.create_intermediate(&mut OsRng, Validity::days_from(NOW, 30)).unwrap();
    let shown = [stranger.certificate_der().to_vec()];
    assert_eq!(roots.check_crl(&list(&stranger), &shown), Err(BadCrl::UnknownIssuer));
}

#[test]
fn openssl_refuses_what_our_revocation_list_names() {
    let scratch = Scratch::new("crl");
    let ca = ca();
    let lost = device_certificate(&ca, 1);
    let serial = read_certificate(&lost).unwrap().serial;
    let revoked = [Revoked { serial, unix_seconds: NOW as u64 }];
    let list = |revoked: &[Revoked]| {
        crl_to_pem(&ca.revocation_list(1, Validity::days_from(NOW, 1), revoked).unwrap())
    };
    fs::write(scratch.file("ca.pem"), ca.certificate_pem()).unwrap();
    fs::write(scratch.file("lost.pem"), fleetkey_identity::chain_to_pem(&[lost])).unwrap();
    let now = NOW.to_string();
    for (revoked, is_good) in [(&[][..], true), (&revoked[..], false)] {
        fs::write(scratch.file("crl.pem"), list(revoked)).unwrap();
        let arguments =
            ["verify", "-attime", &now, "-crl_check", "-CAfile", "ca.pem", "-CRLfile", "crl.pem", "lost.pem"];
        let Some(verdict) = openssl(&arguments, &scratch.0) else { return };
        assert_eq!(verdict.status.success(), is_good, "{verdict:?}");
    }
}

/// `openssl verify` of the leaf, with the issuing CA beside it and the root trusted.
fn openssl_verifies(scratch: &Scratch, extra: &[&str]) -> Option<bool> {
    let now = NOW.to_string();
    let arguments =
        ["verify", "-attime", &now, "-x509_strict", "-CAfile", "root.pem", "-untrusted", "issuing.pem"];
    let verdict = openssl(&[&arguments, extra, &["leaf.pem"]].concat(), &scratch.0)?;
    Some(verdict.status.success())
}

#[test]
fn openssl_takes_a_chain_of_root_issuing_ca_and_device_and_the_issuing_cas_list() {
    let scratch = Scratch::new("chain");
    let put = |name: &str, text: &str| fs::write(scratch.file(name), text).unwrap();
    let root = ca();
    let issuing = root.create_intermediate(&mut OsRng, Validity::without_end(NOW)).unwrap();
    let leaf = device_certificate(&issuing, 1);
    let roots = FleetRoots::new(&[root.certificate_der().to_vec()]).unwrap();
    roots.verify(&issuing.chain(leaf.clone()), Some(NOW)).unwrap();
    put("root.pem", &root.certificate_pem());
    put("issuing.pem", &issuing.certificate_pem());
    put("leaf.pem", &fleetkey_identity::chain_to_pem(std::slice::from_ref(&leaf)));
    let Some(is_good) = openssl_verifies(&scratch, &[]) else { return };
    assert!(is_good);
    let serial = read_certificate(&leaf).unwrap().serial;
    for (revoked, is_good) in [(vec![], true), (vec![Revoked { serial, unix_seconds: NOW as u64 }], false)] {
        let list = issuing.revocation_list(1, Validity::days_from(NOW, 1), &revoked).unwrap();
        // As it is published: the CA's certificate stands before its list.
        put("crl.pem", &format!("{}{}", issuing.certificate_pem(), crl_to_pem(&list)));
        assert_eq!(openssl_verifies(&scratch, &["-crl_check", "-CRLfile", "crl.pem"]), Some(is_good));
    }
}

#[test]
fn openssl_and_we_refuse_a_ca_below_the_issuing_one() {
    let scratch = Scratch::new("path-length");
    let put = |name: &str, text: &str| fs::write(scratch.file(name), text).unwrap();
    let root = ca();
    let issuing = root.create_intermediate(&mut OsRng, Validity::without_end(NOW)).unwrap();
    assert_eq!(
        issuing.create_intermediate(&mut OsRng, Validity::without_end(NOW)).unwrap_err(),
        IssueError::NotARoot
    );
    // What the issuing CA's key could sign all the same, were somebody to have it.
    let key = IdentityKey::from_pkcs8_pem(&issuing.key_pem().unwrap()).unwrap();
    let key: Arc<dyn CaKey> = Arc::new(key);
    let as_root = FleetCa::create_over(issuing.fleet(), key, Validity::without_end(NOW)).unwrap();
    let below = as_root.create_intermediate(&mut OsRng, Validity::without_end(NOW)).unwrap();
    let leaf = device_certificate(&below, 1);
    put("root.pem", &root.certificate_pem());
    put("issuing.pem", &format!("{}{}", below.certificate_pem(), issuing.certificate_pem()));
    put("leaf.pem", &fleetkey_identity::chain_to_pem(std::slice::from_ref(&leaf)));
    let roots = FleetRoots::new(&[root.certificate_der().to_vec()]).unwrap();
    let chain = [leaf, below.certificate_der().to_vec(), issuing.certificate_der().to_vec()];
    assert!(roots.verify(&chain, Some(NOW)).is_err());
    assert!(roots.verify(&chain[..2], Some(NOW)).is_err());
    let Some(is_good) = openssl_verifies(&scratch, &[]) else { return };
    assert!(!is_good);
}

/// Two roots: the second is certified by the first, and so is the CA that issues below the second.
fn rolled() -> (FleetCa, FleetCa, FleetCa, Vec<u8>) {
    let (first, second) = (ca(), ca());
    let always = Validity::without_end(NOW);
    let issuing = second.create_intermediate(&mut OsRng, always).unwrap();
    let issuing = {
        let cross = first.cross_certify(&issuing, always).unwrap();
        issuing.with_cross(cross).unwrap()
    };
    let link = first.cross_certify(&second, always).unwrap();
    (first, second, issuing, link)
}

#[test]
fn what_a_new_root_issues_is_taken_under_the_old_one_by_us_and_by_openssl() {
    let scratch = Scratch::new("cross");
    let put = |name: &str, text: &str| fs::write(scratch.file(name), text).unwrap();
    let (first, second, issuing, _) = rolled();
    let read_back = FleetCa::from_pem(&issuing.to_pem().unwrap()).unwrap();
    assert_eq!(read_back.certificates().collect::<Vec<_>>(), issuing.certificates().collect::<Vec<_>>());
    let leaf = device_certificate(&read_back, 1);
    put("leaf.pem", &fleetkey_identity::chain_to_pem(std::slice::from_ref(&leaf)));
    let shown = read_back.chain(leaf.clone());
    let alone = read_back.without_crosses().chain(leaf);
    for (root, chain, is_good) in
        [(&first, &shown, true), (&first, &alone, false), (&second, &alone, true), (&second, &shown, false)]
    {
        let roots = FleetRoots::new(&[root.certificate_der().to_vec()]).unwrap();
        assert_eq!(roots.verify(chain, Some(NOW)).is_ok(), is_good);
        put("root.pem", &root.certificate_pem());
        put("issuing.pem", &fleetkey_identity::chain_to_pem(&chain[1..]));
        let Some(verdict) = openssl_verifies(&scratch, &[]) else { continue };
        assert_eq!(verdict, is_good);
    }
    // A device shows for years what it was given while the first root counted.
    let roots = FleetRoots::new(&[second.certificate_der().to_vec()]).unwrap();
    roots.hear_of(&alone[1..]);
    roots.verify(&shown, Some(NOW)).unwrap();
    let strangers = FleetRoots::new(&[ca().certificate_der().to_vec()]).unwrap();
    strangers.hear_of(&alone[1..]);
    assert!(strangers.verify(&shown, Some(NOW)).is_err(), "to be heard of is not to be trusted");
    let other = ca().create_intermediate(&mut OsRng, Validity::without_end(NOW)).unwrap();
    let cross = first.cross_certify(&issuing, Validity::without_end(NOW)).unwrap();
    assert_eq!(other.with_cross(cross).unwrap_err(), BadPem::OtherKey);
}

#[test]
fn a_root_is_learnt_from_one_that_is_pinned_and_from_nobody_else() {
    let (first, second, issuing, link) = rolled();
    let (root, leaf) = (second.certificate_der().to_vec(), device_certificate(&issuing, 1));
    let alone = issuing.without_crosses().chain(leaf);
    let pin = || FleetRoots::new(&[first.certificate_der().to_vec()]).unwrap();

    let roots = pin();
    let held_elsewhere = roots.clone();
    assert_eq!(roots.learn(std::slice::from_ref(&root)), 0, "nobody vouches for it");
    assert_eq!(roots.learn(std::slice::from_ref(&link)), 0, "the root itself is missing");
    assert!(held_elsewhere.verify(&alone, Some(NOW)).is_err());
    assert_eq!(roots.learn(&[b"none".to_vec(), root.clone(), link.clone()]), 1);
    held_elsewhere.verify(&alone, Some(NOW)).unwrap();
    assert_eq!(roots.learn(&[root.clone(), link.clone()]), 0, "it is known");

    // An issuing CA certifies no root, whatever it signs.
    let middle = first.create_intermediate(&mut OsRng, Validity::without_end(NOW)).unwrap();
    let key: Arc<dyn CaKey> = Arc::new(IdentityKey::from_pkcs8_pem(&middle.key_pem().unwrap()).unwrap());
    let as_root = FleetCa::create_over(middle.fleet(), key, Validity::without_end(NOW)).unwrap();
    let forged = as_root.cross_certify(&second, Validity::without_end(NOW)).unwrap();
    let shown = [root.clone(), forged, middle.certificate_der().to_vec(), as_root.certificate_der().to_vec()];
    assert_eq!(pin().learn(&shown), 0);

    // A root of a root that was learnt is learnt with it.
    let third = ca();
    let further = second.cross_certify(&third, Validity::without_end(NOW)).unwrap();
    let all = [third.certificate_der().to_vec(), further, root, link];
    assert_eq!(pin().learn(&all), 2);
}

#[test]
fn lists_of_several_cas_are_read_from_one_text() {
    let (one, two) = (ca(), ca());
    let list = |ca: &FleetCa| ca.revocation_list(1, Validity::days_from(NOW, 1), &[]).unwrap();
    let text = [one.certificate_pem(), crl_to_pem(&list(&one)), crl_to_pem(&list(&two))].concat();
    let lists = Crl::read_all(text.as_bytes()).unwrap();
    assert_eq!(lists.len(), 2);
    assert!(!lists[0].is_of_same_ca(&lists[1]));
    assert!(lists[0].is_of_same_ca(&Crl::read(&list(&one)).unwrap()));
    assert!(matches!(Crl::read(text.as_bytes()), Err(BadCrl::Malformed { .. })));
    assert!(matches!(Crl::read_all(one.certificate_pem().as_bytes()), Err(BadCrl::Malformed { .. })));
}

#[test]
fn a_ca_that_has_made_its_last_list_vouches_for_nobody() {
    let root = ca();
    let always = Validity::without_end(NOW);
    let [former, current] = [1, 2].map(|_| root.create_intermediate(&mut OsRng, always).unwrap());
    let chains = [&former, &current].map(|ca| ca.chain(device_certificate(ca, 1)));
    let roots = FleetRoots::new(&[root.certificate_der().to_vec()]).unwrap();
    let list = |validity| Crl::read(&former.revocation_list(1, validity, &[]).unwrap()).unwrap();
    assert!(!roots.close(&list(Validity::days_from(NOW, 9_000))));
    roots.verify(&chains[0], Some(NOW)).unwrap();
    let held_elsewhere = roots.clone();
    assert!(roots.close(&list(always)));
    assert_eq!(held_elsewhere.verify(&chains[0], Some(NOW)), Err(BadCertificate::RetiredIssuer));
    held_elsewhere.verify(&chains[1], Some(NOW)).unwrap();
}

#[test]
fn two_cas_of_a_fleet_give_no_serial_number_twice() {
    let root = ca();
    let issue = |ca: &FleetCa| {
        let role = Role::Device(DeviceId::from_bytes([1; 16]));
        let key = IdentityKey::from_seed(&[3; 32]).public_key();
        read_certificate(&ca.issue(&role, &key, &[], Validity::days_from(NOW, 30)).unwrap()).unwrap().serial
    };
    let [one, two] =
        [1, 2].map(|_| root.create_intermediate(&mut OsRng, Validity::without_end(NOW)).unwrap());
    assert_eq!(issue(&one), issue(&one));
    assert_ne!(issue(&one), issue(&two));
}

#[test]
fn an_encrypted_key_opens_with_its_passphrase_alone() {
    let ca = ca();
    let text = ca.to_encrypted_pem("correct horse", &mut OsRng).unwrap();
    assert!(!text.contains("BEGIN PRIVATE KEY"), "{text}");
    let again = FleetCa::from_encrypted_pem(&text, "correct horse").unwrap();
    assert_eq!(again.to_pem(), ca.to_pem());
    assert_eq!(FleetCa::from_encrypted_pem(&text, "battery staple").unwrap_err(), BadPem::WrongPassphrase);
    assert_eq!(FleetCa::from_pem(&text).unwrap_err(), BadPem::NeedsPassphrase);
}

#[test]
fn openssl_opens_our_encrypted_keys_and_we_open_its() {
    let scratch = Scratch::new("encrypted");
    let ca = ca();
    fs::write(scratch.file("ours.pem"), ca.to_encrypted_pem("secret", &mut OsRng).unwrap()).unwrap();
    let opened = openssl(&["pkey", "-in", "ours.pem", "-passin", "pass:secret"], &scratch.0);
    let Some(opened) = opened else { return };
    assert!(opened.status.success(), "{opened:?}");
    let opened = IdentityKey::from_pkcs8_pem(&String::from_utf8(opened.stdout).unwrap()).unwrap();
    assert_eq!(*opened.to_pkcs8_pem(), *ca.key_pem().unwrap());
    let arguments =
        ["genpkey", "-algorithm", "ed25519", "-aes-256-cbc", "-pass", "pass:secret", "-out", "theirs.pem"];
    assert!(openssl(&arguments, &scratch.0).unwrap().status.success());
    let theirs = fs::read_to_string(scratch.file("theirs.pem")).unwrap();
    IdentityKey::from_encrypted_pkcs8_pem(&theirs, "secret").unwrap();
    assert_eq!(IdentityKey::from_encrypted_pkcs8_pem(&theirs, "other").unwrap_err(), BadPem::WrongPassphrase);
}

#[test]
fn openssl_reads_our_certs_only_messages_and_we_read_its() {
    let scratch = Scratch::new("pkcs7");
    let ca = ca();
    let certificates = vec![device_certificate(&ca, 1), ca.certificate_der().to_vec()];
    fs::write(scratch.file("ours.p7"), pkcs7::encode_certificates(&certificates)).unwrap();
    let shown = openssl(&["pkcs7", "-inform", "DER", "-in", "ours.p7", "-print_certs"], &scratch.0);
    let Some(shown) = shown else { return };
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert_eq!(fleetkey_identity::chain_from_pem(&shown).unwrap(), certificates);
    fs::write(scratch.file("both.pem"), shown).unwrap();
    let arguments = ["crl2pkcs7", "-nocrl", "-certfile", "both.pem", "-outform", "DER", "-out", "theirs.p7"];
    assert!(openssl(&arguments, &scratch.0).unwrap().status.success());
    let theirs = fs::read(scratch.file("theirs.p7")).unwrap();
    assert_eq!(pkcs7::decode_certificates(&theirs), Ok(certificates));
}

/// A key that answers only while it is plugged in.
#[derive(Debug)]
struct Token(Option<IdentityKey>, [u8; 32]);

impl CaKey for Token {
    fn public_key(&self) -> [u8; 32] {
        self.1
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SigningFailed> {
        let unplugged = || SigningFailed { why: "the token is not plugged in".into() };
        self.0.as_ref().ok_or_else(unplugged)?.sign(message)
    }
}

#[test]
fn a_ca_whose_key_lives_elsewhere_issues_and_says_when_it_cannot() {
    let key = IdentityKey::generate(&mut OsRng);
    let public_key = IdentityKey::public_key(&key);
    let fleet = FleetId::from_bytes([7; 16]);
    let plugged: Arc<dyn CaKey> = Arc::new(Token(Some(key), public_key));
    let ca = FleetCa::create_over(fleet, plugged, Validity::without_end(NOW)).unwrap();
    assert_eq!(ca.to_pem(), None);
    let roots = FleetRoots::new(&[ca.certificate_der().to_vec()]).unwrap();
    roots.verify(&[device_certificate(&ca, 1)], Some(NOW)).unwrap();

    let unplugged: Arc<dyn CaKey> = Arc::new(Token(None, public_key));
    let ca = FleetCa::from_pem_over(&ca.certificate_pem(), unplugged).unwrap();
    let role = Role::Device(DeviceId::from_bytes([1; 16]));
    let refused = ca.issue(&role, &public_key, &[], Validity::days_from(NOW, 30)).unwrap_err();
    assert!(matches!(refused, IssueError::Signing(_)), "{refused}");
    let refused = ca.revocation_list(1, Validity::days_from(NOW, 1), &[]).unwrap_err();
    assert!(matches!(refused, IssueError::Signing(_)), "{refused}");

    let other: Arc<dyn CaKey> = Arc::new(IdentityKey::generate(&mut OsRng));
    assert_eq!(FleetCa::from_pem_over(&ca.certificate_pem(), other).unwrap_err(), BadPem::OtherKey);
}
