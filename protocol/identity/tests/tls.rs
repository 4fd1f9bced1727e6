//! Handshakes over loopback: both sides prove who they are, and everybody else is turned away.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use fleetkey_identity::{FleetCa, FleetRoots, Identity, IdentityKey, Role, Validity, tls};
use fleetkey_wire::{DeviceId, FleetId, Generation};
use rand_core::OsRng;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

fn ca(byte: u8) -> FleetCa {
    let fleet = FleetId::from_bytes([byte; 16]);
    FleetCa::create(fleet, &mut OsRng, Validity::days_from(now(), 2)).unwrap()
}

fn roots(ca: &FleetCa) -> FleetRoots {
    FleetRoots::from_pem(&ca.certificate_pem()).unwrap()
}

fn device() -> Role {
    Role::Device(DeviceId::from_bytes([9; 16]))
}

/// A chain and its key.
fn party(ca: &FleetCa, role: &Role, hosts: &[&str], validity: Validity) -> (Vec<Vec<u8>>, IdentityKey) {
    let key = IdentityKey::generate(&mut OsRng);
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    (ca.chain(ca.issue(role, &key.public_key(), &hosts, validity).unwrap()), key)
}

fn today() -> Validity {
    Validity::days_from(now(), 1)
}

fn server(issuer: &FleetCa, trusts: &FleetCa, role: &Role, hosts: &[&str]) -> Arc<ServerConfig> {
    let (chain, key) = party(issuer, role, hosts, today());
    tls::server_config(&chain, &key, &roots(trusts)).unwrap()
}

fn client(issuer: &FleetCa, trusts: &FleetCa, role: &Role) -> Arc<ClientConfig> {
    let (chain, key) = party(issuer, role, &[], today());
    tls::client_config(&chain, &key, &roots(trusts)).unwrap()
}

/// Greets over TLS: who the server saw and who the client saw, or each side's error.
fn greet(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    host: &str,
) -> (Result<Identity, String>, Result<Identity, String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = thread::spawn(move || -> Result<Identity, String> {
        let (socket, _) = listener.accept().unwrap();
        let mut stream = StreamOwned::new(ServerConnection::new(server).unwrap(), socket);
        let mut greeting = [0; 5];
        stream.read_exact(&mut greeting).map_err(|error| error.to_string())?;
        assert_eq!(&greeting, b"hello");
        stream.write_all(b"there").map_err(|error| error.to_string())?;
        Ok(tls::peer_identity(stream.conn.peer_certificates()).unwrap())
    });
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let socket = TcpStream::connect(address).unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(client, name).unwrap(), socket);
    let asked = (|| {
        stream.write_all(b"hello")?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer)?;
        assert_eq!(&answer, b"there");
        Ok(tls::peer_identity(stream.conn.peer_certificates()).unwrap())
    })()
    .map_err(|error: std::io::Error| error.to_string());
    drop(stream);
    (accepting.join().unwrap(), asked)
}

#[test]
fn broker_and_device_learn_who_the_other_is() {
    let ca = ca(1);
    let server = server(&ca, &ca, &Role::Broker, &["localhost", "127.0.0.1"]);
    for host in ["localhost", "127.0.0.1"] {
        let (seen_by_server, seen_by_client) = greet(server.clone(), client(&ca, &ca, &device()), host);
        assert_eq!(seen_by_server.unwrap().role, device());
        assert_eq!(seen_by_client.unwrap().role, Role::Broker);
    }
}

#[test]
fn chains_with_an_intermediate_work_both_ways() {
    let root = ca(1);
    let middle = root.create_intermediate(&mut OsRng, today()).unwrap();
    let server = server(&middle, &root, &Role::Coordinator { generation: Generation(1) }, &["localhost"]);
    let client = client(&middle, &root, &Role::Operator { name: "ada".into() });

    let (seen_by_server, seen_by_client) = greet(server, client, "localhost");

    assert_eq!(seen_by_server.unwrap().role, Role::Operator { name: "ada".into() });
    assert_eq!(seen_by_client.unwrap().role, Role::Coordinator { generation: Generation(1) });
}

#[test]
fn a_device_of_another_fleet_is_turned_away() {
    let (ours, theirs) = (ca(1), ca(2));
    let server = server(&ours, &ours, &Role::Broker, &["localhost"]);

    let (seen_by_server, seen_by_client) = greet(server, client(&theirs, &ours, &device()), "localhost");

    let fault = seen_by_server.unwrap_err();
    assert!(fault.contains("belongs to fleet 02020202"), "{fault}");
    assert!(seen_by_client.is_err());
}

#[test]
fn a_client_without_a_certificate_is_turned_away() {
    let ca = ca(1);
    let mut trusted = rustls::RootCertStore::empty();
    trusted.add(ca.certificate_der().to_vec().into()).unwrap();
    let anonymous = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(trusted)
        .with_no_client_auth();

    let server = server(&ca, &ca, &Role::Broker, &["localhost"]);
    let (seen_by_server, seen_by_client) = greet(server, Arc::new(anonymous), "localhost");

    let fault = seen_by_server.unwrap_err();
    assert!(fault.contains("no certificates"), "{fault}");
    assert!(seen_by_client.is_err());
}

#[test]
fn a_broker_of_another_fleet_is_not_trusted() {
    let (ours, theirs) = (ca(1), ca(2));
    let server = server(&theirs, &ours, &Role::Broker, &["localhost"]);

    let (seen_by_server, seen_by_client) = greet(server, client(&ours, &ours, &device()), "localhost");

    let fault = seen_by_client.unwrap_err();
    assert!(fault.contains("belongs to fleet 02020202"), "{fault}");
    assert!(seen_by_server.is_err());
}

#[test]
fn a_broker_under_another_host_name_is_not_trusted() {
    let ca = ca(1);
    let server = server(&ca, &ca, &Role::Broker, &["broker.example"]);

    let (_, seen_by_client) = greet(server, client(&ca, &ca, &device()), "localhost");

    let fault = seen_by_client.unwrap_err();
    assert!(fault.contains("not valid for name"), "{fault}");
}

#[test]
fn a_device_cannot_pose_as_the_broker() {
    let ca = ca(1);
    let server = server(&ca, &ca, &device(), &[]);

    let (_, seen_by_client) = greet(server, client(&ca, &ca, &device()), "localhost");

    let fault = seen_by_client.unwrap_err();
    assert!(fault.contains("accepting TLS connections"), "{fault}");
}

#[test]
fn an_expired_device_is_turned_away() {
    let ca = ca(1);
    let (chain, key) = party(&ca, &device(), &[], Validity::days_from(now() - 3 * 86_400, 1));
    let client = tls::client_config(&chain, &key, &roots(&ca)).unwrap();

    let (seen_by_server, _) = greet(server(&ca, &ca, &Role::Broker, &["localhost"]), client, "localhost");

    let fault = seen_by_server.unwrap_err();
    assert!(fault.contains("Expired"), "{fault}");
}

#[test]
fn a_stolen_certificate_is_worth_nothing_without_its_key() {
    let ca = ca(1);
    let (chain, _) = party(&ca, &device(), &[], today());
    let other = IdentityKey::generate(&mut OsRng);

    assert!(tls::client_config(&chain, &other, &roots(&ca)).is_err());
    assert!(tls::server_config(&chain, &other, &roots(&ca)).is_err());
}
