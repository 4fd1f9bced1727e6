//! Attacks on the embedded broker's door by name, that no other file here has: each is refused by name, and others notice
//! nothing. `docs/SECURITY.md` has the list of all.

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleetkey_broker::Limits;
use fleetkey_broker::policy::PolicyUpdate;
use fleetkey_identity::tls::client_config;
use fleetkey_identity::{FleetCa, IdentityKey, Role, Validity};
use rand_core::OsRng;

use support::*;

#[tokio::test]
async fn expired_and_not_yet_valid_certificates() {
    let fixture = Fixture::start(FAN_OUTS[1]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let now = i64::try_from(now).unwrap();
    let key = IdentityKey::generate(&mut OsRng);
    let come = async |ca: &FleetCa, from: i64, to: i64| {
        let validity = Validity { not_before_unix_seconds: now + from, not_after_unix_seconds: now + to };
        let leaf = ca.issue(&Role::Device(A), &key.public_key(), &[], validity).unwrap();
        let config = client_config(&ca.chain(leaf), &key, &fixture.pki.roots).unwrap();
        // In TLS 1.3 the client has finished before the server has looked at its certificate.
        let Ok(mut client) = Client::tls(fixture.tls(), Version::V5, config).await else { return None };
        let connect = client.connect_packet(2, 60, &A.to_string(), &[]);
        client.try_send(&connect).await;
        client.receive().await.map(|ack| ack.body[1])
    };
    let before = fixture.broker.stats().refused("tls_handshake");
    let strangers = Pki::new(FLEET);
    for (ca, from, to) in [
        (&fixture.pki.ca, -86_400, -60),
        (&fixture.pki.ca, 3_600, 86_400),
        // The same names, and a CA of the same name, that nobody has pinned.
        (&strangers.ca, -60, 3_600),
    ] {
        assert_eq!(come(ca, from, to).await, None, "valid from {from} to {to}");
    }
    until(&fixture.broker, "all are counted", |stats| stats.refused("tls_handshake") == before + 3).await;
    assert_eq!(fixture.broker.stats().sessions, 0);
    assert_eq!(come(&fixture.pki.ca, -60, 3_600).await, Some(0));
    fixture.still_serves().await;
}

#[tokio::test]
async fn crl_withheld() {
    // No list reaches this broker, ever: what it follows names the revoked by themselves.
    let fixture = Fixture::start(FAN_OUTS[1]);
    let (chain, key) = fixture.pki.issue(&Role::Device(A));
    let config = client_config(&chain, &key, &fixture.pki.roots).unwrap();
    let mut a = Client::tls(fixture.tls(), Version::V5, config.clone()).await.unwrap();
    assert_eq!(a.connect(&A.to_string()).await, 0, "until it is revoked it is let in");
    let mut b = fixture.device(Transport::Tls, Version::V5, B).await;
    fixture.policy.apply(PolicyUpdate::Revoked { sequence: 1, device: A }).unwrap();
    a.expect_close(0x87).await;
    // With the certificate that nobody has listed, and with a renewed one.
    for config in [config, fixture.pki.client(&Role::Device(A))] {
        let mut again = Client::tls(fixture.tls(), Version::V5, config).await.unwrap();
        assert_eq!(again.connect(&A.to_string()).await, 0x87);
    }
    let stats = fixture.broker.stats();
    assert_eq!((stats.refused("revoked"), stats.closed("revoked"), stats.sessions), (2, 1, 1));
    b.expect_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slowloris() {
    let limits = Limits {
        max_handshakes: 4,
        handshake_timeout: Duration::from_secs(3),
        connect_timeout: Duration::from_millis(500),
        ..Limits::default()
    };
    let fixture = Fixture::with(FAN_OUTS[1], limits, policy());
    // A byte now and then, of TLS and of CONNECT, by many.
    let mut slow = Vec::new();
    for n in 0..24u8 {
        let transport = if n % 2 == 0 { Transport::Tcp } else { Transport::Tls };
        let mut client = match n % 3 {
            0 => Client::plain(fixture.tls(), Version::V4).await,
            _ => fixture.reach(transport, Version::V4, &Role::Device(A)).await,
        };
        let bytes = match n % 3 {
            0 => [&[0x16, 0x03, 0x01, 0x02, 0x00][..], &[0; 40]].concat(),
            _ => client.connect_packet(2, 60, &A.to_string(), &[]),
        };
        slow.push(tokio::spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_millis(100));
            for byte in bytes {
                pace.tick().await;
                client.try_send(&[byte]).await;
            }
            client.receive().await
        }));
    }
    // Others come in meanwhile.
    let mut b = fixture.device(Transport::Tls, Version::V5, B).await;
    b.expect_nothing().await;
    for one in slow {
        assert_eq!(one.await.unwrap(), None, "none of them is answered");
    }
    let stats = fixture.broker.stats();
    assert_eq!((stats.refused("connect_timeout"), stats.sessions), (16, 1), "{stats:?}");
    assert_eq!(stats.refused("tls_timeout") + stats.refused("tls_handshake"), 8, "{stats:?}");
    fixture.still_serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn downgrade_of_tls() {
    let fixture = Fixture::start(FAN_OUTS[1]);
    let address = fixture.tls();
    let ask = |version: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-connect", &address.to_string(), version]).stdin(Stdio::null());
        let output = openssl.output().ok()?;
        Some([output.stdout, output.stderr].concat())
    };
    let says = |output: &[u8], what: &str| String::from_utf8_lossy(output).contains(what);
    for version in ["-tls1", "-tls1_1", "-tls1_2"] {
        let Some(output) = tokio::task::block_in_place(|| ask(version)) else {
            eprintln!("NOT RUN: openssl is not installed");
            return;
        };
        assert!(!says(&output, "BEGIN CERTIFICATE"), "{version}: the broker shows itself");
    }
    let output = tokio::task::block_in_place(|| ask("-tls1_3")).unwrap();
    assert!(says(&output, "BEGIN CERTIFICATE"), "{}", String::from_utf8_lossy(&output));
    fixture.still_serves().await;
}

#[tokio::test]
async fn client_id_that_looks_like_anothers() {
    let fixture = Fixture::start(FAN_OUTS[1]);
    let mut b = fixture.device(Transport::Tls, Version::V5, B).await;
    let upper = B.to_string().to_uppercase();
    let alike = [
        B.to_string(),
        upper,
        B.to_string().replace('-', ""),
        format!("{{{B}}}"),
        format!("urn:uuid:{B}"),
        format!(" {A}"),
        format!("{A} "),
        format!("{A}\u{200b}"),
        format!("\u{feff}{A}"),
        A.to_string().replace('a', "\u{430}"),
        A.to_string().to_uppercase(),
        format!("{A}/{B}"),
        "+".to_owned(),
        "#".to_owned(),
        "coordinator-1".to_owned(),
        "coordinator:1".to_owned(),
    ];
    for id in &alike {
        let mut a = fixture.reach(Transport::Tls, Version::V5, &Role::Device(A)).await;
        let code = a.connect(id).await;
        assert_ne!(code, 0, "{id:?}");
    }
    assert_eq!(fixture.broker.stats().sessions, 1, "B has not been thrown out");
    b.expect_nothing().await;
    fixture.device(Transport::Tls, Version::V5, A).await.expect_nothing().await;
}
