//! The HTTP API over a real socket: who may ask, what is refused and how, and what is answered.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

#[path = "support/server.rs"]
mod server;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use fleetkey_coordinator::api::{Bundle, MAX_AUDIT_PAGE, MAX_REQUEST_BYTES};
use fleetkey_coordinator::{Fleet, unix_seconds};
use fleetkey_identity::{IdentityKey, Role, chain_from_pem, chain_to_pem};
use fleetkey_policy::PolicyUpdate;
use fleetkey_wire::FleetId;
use rand_core::OsRng;
use serde_json::{Value, json};
use server::Server;

fn error_of(answer: &(u16, Value)) -> (u16, &str) {
    assert!(!answer.1["message"].as_str().unwrap().is_empty());
    (answer.0, answer.1["error"].as_str().unwrap())
}

/// The next JSON line of a stream; chunk headers and blank lines are passed over.
fn next_update(stream: &mut BufReader<TcpStream>) -> PolicyUpdate {
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).unwrap() > 0, "the stream has ended");
        if line.starts_with('{') {
            return serde_json::from_str(&line).unwrap();
        }
    }
}

#[test]
fn backups_and_adoptions_are_refused_without_a_database_to_read() {
    let server = Server::start();
    for path in ["/v1/backup", "/v1/audit", "/v1/doctor"] {
        let (status, body) = server.get(path);
        assert_eq!((status, body["error"].as_str()), (409, Some("no_database")), "{path}");
    }
    let (status, body) = server.post("/v1/devices/adopt", &json!({ "name": "x", "certificate": "y" }));
    assert_eq!((status, body["error"].as_str()), (409, Some("no_database")));
    assert_eq!(server.get("/v1/status").1["store"], Value::Null);
}

#[test]
fn pages_and_certificates_that_are_none_are_refused_by_name() {
    let server = Server::start_with_keep();
    let (status, body) = server.get("/v1/audit?after=xyz");
    assert_eq!((status, body["error"].as_str()), (400, Some("bad_request")), "{body}");
    let (status, body) = server.post("/v1/devices/adopt", &json!({ "name": "x", "certificate": "y" }));
    assert_eq!((status, body["error"].as_str()), (400, Some("bad_certificate")), "{body}");

    let other = Fleet::create(FleetId::random(&mut OsRng), &[], unix_seconds(), &mut OsRng).unwrap();
    let id = fleetkey_wire::DeviceId::random(&mut OsRng);
    let foreign = chain_to_pem(&other.device(id, unix_seconds(), &mut OsRng).chain);
    let (status, body) = server.post("/v1/devices/adopt", &json!({ "name": "x", "certificate": foreign }));
    assert_eq!((status, body["error"].as_str()), (400, Some("bad_certificate")), "{body}");
    let own = chain_to_pem(&server.fleet.device(id, unix_seconds(), &mut OsRng).chain);
    let (status, body) = server.post("/v1/devices/adopt", &json!({ "name": "x", "certificate": own }));
    assert_eq!((status, body["id"].clone()), (200, json!(id)), "{body}");
    assert_eq!(server.get("/v1/status").1["store"]["last_step"]["command"], "enroll");
    assert_eq!(server.get("/v1/audit").1["entries"][0]["detail"], "x");
}

#[test]
fn a_long_audit_log_is_told_in_bounded_pages() {
    let server = Server::start_with_keep();
    // Each leaves two entries: that it is enrolled, and its key.
    let enrolments = MAX_AUDIT_PAGE / 2 + 7;
    let keys: Vec<_> = (0..enrolments).map(|_| IdentityKey::generate(&mut OsRng).public_key()).collect();
    let service = server.service.as_ref().unwrap().handle();
    let enrolled = service.decide(move |coordinator, now, _| {
        for (n, key) in keys.into_iter().enumerate() {
            coordinator.enroll_device(
                fleetkey_wire::DeviceId::random(&mut OsRng),
                &format!("pump-{n}"),
                key,
                now,
            )?;
        }
        Ok(())
    });
    server.runtime.block_on(enrolled).unwrap();
    let (_, first) = server.get("/v1/audit");
    assert_eq!(first["entries"].as_array().unwrap().len(), MAX_AUDIT_PAGE);
    let (_, second) = server.get(&format!("/v1/audit?after={}", first["next"].as_str().unwrap()));
    assert_eq!((second["entries"].as_array().unwrap().len(), &second["next"]), (14, &Value::Null));
    let names = |page: &Value| -> Vec<String> {
        page["entries"].as_array().unwrap().iter().map(|e| e["detail"].to_string()).collect()
    };
    let mut all = [names(&first), names(&second)].concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 2 * enrolments);
}

#[test]
fn without_the_right_token_nothing_is_answered() {
    let server = Server::start();
    let (operator, broker) = (server.operator.reveal(), server.broker.reveal());
    let almost = format!("Bearer {}x", &operator[..operator.len() - 1]);
    let refused = [
        None,
        Some("Bearer".to_owned()),
        Some("Bearer ".to_owned()),
        Some(format!("Basic {operator}")),
        Some(operator.to_owned()),
        Some(format!("Bearer  {operator}")),
        Some(almost),
    ];
    let paths = [
        "/v1/status",
        "/v1/devices",
        "/v1/groups",
        "/v1/groups/x/members",
        "/v1/devices/x",
        "/v1/policy",
        "/v1/backup",
        "/v1/audit",
        "/v1/doctor",
    ];
    for path in paths {
        for token in &refused {
            let (status, body) = server.ask("GET", path, token.as_deref(), None);
            assert_eq!(status, 401, "{path} {token:?}");
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(body["error"], "unauthorized");
            assert!(!body.to_string().contains(operator));
        }
    }
    for (path, body) in [
        ("/v1/revoke", "{}"),
        ("/v1/devices", "{}"),
        ("/v1/devices/adopt", "{}"),
        ("/v1/groups/x/rekey", "{}"),
    ] {
        assert_eq!(server.ask("POST", path, None, Some(body)).0, 401, "{path}");
        let broker = format!("Bearer {broker}");
        assert_eq!(server.ask("POST", path, Some(&broker), Some(body)).0, 401, "{path}");
    }
    assert_eq!(server.ask("GET", "/v1/status", Some(&format!("bearer {operator}")), None).0, 200);
}

#[test]
fn what_cannot_be_followed_is_refused_by_name() {
    let server = Server::start();
    let answer = server.get("/v1/nothing");
    assert_eq!(error_of(&answer), (404, "not_found"));
    let answer = server.post("/v1/status", &json!({}));
    assert_eq!(error_of(&answer), (405, "method_not_allowed"));
    let answer = server.get("/v1/devices/nobody");
    assert_eq!(error_of(&answer), (404, "unknown_device"));
    let answer = server.get("/v1/groups/none");
    assert_eq!(error_of(&answer), (404, "unknown_group"));
    let answer = server.post("/v1/groups", &json!({ "name": "x", "policy": { "cell_capacity": 4 } }));
    assert_eq!(error_of(&answer), (400, "bad_policy"));
    let with_x_wing = json!({ "suite": "xwing-chacha20poly1305", "cell_capacity": 64 });
    let answer = server.post("/v1/groups", &json!({ "name": "x", "policy": with_x_wing }));
    assert_eq!(error_of(&answer), (400, "bad_policy"));
    assert!(answer.1["message"].as_str().unwrap().contains("8 to 24"), "{}", answer.1);
    let answer = server.post("/v1/groups", &json!({ "name": "x", "policy": { "capacity": 64 } }));
    assert_eq!(error_of(&answer), (400, "bad_request"));
    assert!(answer.1["message"].as_str().unwrap().contains("capacity"));
    let answer = server.post("/v1/groups", &json!({ "name": "" }));
    assert_eq!(error_of(&answer), (400, "bad_name"));
    let answer = server.post("/v1/revoke", &json!({ "devices": [], "reason": "" }));
    assert_eq!(error_of(&answer), (400, "no_devices"));
    let answer = server.post("/v1/revoke", &json!({ "devices": ["a"] }));
    assert_eq!(error_of(&answer), (400, "bad_request"));

    server.provision("pump-1");
    let answer = server.post("/v1/devices", &json!({ "name": "pump-1" }));
    assert_eq!(error_of(&answer), (409, "name_taken"));
    let answer = server.post("/v1/devices/pump-1/release", &json!({}));
    assert_eq!(error_of(&answer), (409, "not_quarantined"));
    let bearer = server.bearer();
    for body in ["", "{", "[]", "{\"name\": 5}", "\u{0}"] {
        let (status, text) = server.ask("POST", "/v1/groups", Some(&bearer), Some(body));
        assert_eq!(status, 400, "{body:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["error"], "bad_request");
    }
}

#[test]
fn bodies_are_bounded() {
    let server = Server::start();
    let name = "x".repeat(MAX_REQUEST_BYTES);
    // The server may answer before it has been sent everything, so the connection is spoken to by hand.
    let mut stream = TcpStream::connect(server.address).unwrap();
    let body = json!({ "name": name }).to_string();
    write!(
        stream,
        "POST /v1/groups HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        server.bearer(),
        body.len()
    )
    .unwrap();
    let _ = stream.write_all(body.as_bytes());
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 413");
}

#[test]
fn a_provisioned_device_gets_all_that_it_needs_once() {
    let server = Server::start();
    let bundle = server.provision("pump 1/ä");
    let key = IdentityKey::from_pkcs8_pem(&bundle.private_key).unwrap();
    let chain = chain_from_pem(&bundle.certificate).unwrap();
    let now = i64::try_from(unix_seconds()).unwrap();
    let identity = server.fleet.roots().verify(&chain, Some(now)).unwrap();
    assert_eq!(identity.role, Role::Device(bundle.device));
    assert_eq!(identity.public_key, key.public_key());
    assert_eq!(bundle.fleet, server.fleet.id());
    assert_eq!(bundle.broker, "mqtts://broker.example:8883");
    assert_eq!(bundle.fleet_roots, server.fleet.roots().to_pem());
    assert_eq!(chain_from_pem(&bundle.coordinator_certificate).unwrap(), server.fleet.coordinator.chain);

    let (status, shown) = server.get("/v1/devices/pump%201%2F%C3%A4");
    assert_eq!((status, &shown["id"]), (200, &json!(bundle.device)));
    assert_eq!(shown["standing"], "enrolled");
    let by_id = server.get(&format!("/v1/devices/{}", bundle.device));
    assert_eq!(by_id.1, shown);
    let everything = server.get("/v1/devices").1.to_string();
    assert!(!everything.contains("PRIVATE KEY"));
}

#[test]
fn groups_and_devices_are_led_through_their_lives() {
    let server = Server::start();
    let (status, group) =
        server.post("/v1/groups", &json!({ "name": "pumps", "policy": { "cell_capacity": 8 } }));
    assert_eq!((status, &group["policy"]["cell_capacity"]), (201, &json!(8)));
    let others = [("valves", "chacha20poly1305", 64), ("ledgers", "xwing-chacha20poly1305", 8)];
    for (name, suite, capacity) in others {
        let (status, group) =
            server.post("/v1/groups", &json!({ "name": name, "policy": { "suite": suite } }));
        let (suite, capacity) = (json!(suite), json!(capacity));
        assert_eq!(status, 201);
        assert_eq!((&group["policy"]["suite"], &group["policy"]["cell_capacity"]), (&suite, &capacity));
    }
    let devices: Vec<Bundle> = ["a", "b", "c"].map(|name| server.provision(name)).into();

    let by_any_name = json!({ "devices": ["a", devices[1].device, "a"] });
    let (status, added) = server.post("/v1/groups/pumps/add", &by_any_name);
    assert_eq!((status, &added["added"]), (200, &json!(2)));
    assert_eq!(added["group"]["wanted"], 2);
    let again = server.post("/v1/groups/pumps/add", &by_any_name).1;
    assert_eq!(again["added"], 0);
    let unknown = server.post("/v1/groups/pumps/add", &json!({ "devices": ["c", "nobody"] }));
    assert_eq!(error_of(&unknown), (404, "unknown_device"));
    let members = server.get("/v1/groups/pumps/members").1;
    let names: Vec<_> = members["members"].as_array().unwrap().iter().map(|m| &m["device_name"]).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(members["members"][0]["cell"], Value::Null, "it has not been heard yet");

    let (status, removed) = server.post("/v1/groups/pumps/remove", &json!({ "devices": ["a"] }));
    assert_eq!((status, &removed["wanted"]), (200, &json!(1)));
    let not_in = server.post("/v1/groups/pumps/remove", &json!({ "devices": ["c"] }));
    assert_eq!(error_of(&not_in), (409, "not_a_member"));

    let before = server.get("/v1/groups/pumps").1;
    let (status, rekeyed) = server.post("/v1/groups/pumps/rekey", &json!({}));
    assert_eq!(status, 200);
    assert_ne!(rekeyed["key_epoch"], before["key_epoch"]);
    assert_eq!(rekeyed["group"]["key_epoch"], rekeyed["key_epoch"]);

    let revocation = json!({ "devices": ["b"], "reason": "stolen" });
    let (status, revoked) = server.post("/v1/revoke", &revocation);
    assert_eq!((status, &revoked["devices"]), (200, &json!([devices[1].device])));
    assert_eq!(revoked["groups"][0]["name"], "pumps");
    assert_eq!(revoked["groups"][0]["wanted"], 0);
    assert_eq!(server.get("/v1/devices/b").1["standing"]["revoked"]["reason"], "stolen");
    let back = server.post("/v1/groups/pumps/add", &json!({ "devices": ["b"] }));
    assert_eq!(error_of(&back), (409, "revoked"));

    let status = server.get("/v1/status").1;
    assert_eq!(status["coordinator"]["revoked"], 1);
    assert_eq!(status["coordinator"]["enrolled"], 2);
    assert_eq!(status["broker_connected"], false);
    assert!(status["coordinator"]["signatures"].as_u64().unwrap() >= 2);
}

#[test]
fn a_pre_shared_key_goes_in_and_never_comes_out() {
    let server = Server::start_with_keep();
    let (first, second) = ("00112233445566778899aabbccddeeff".repeat(2), "0123456789abcdef".repeat(4));
    let (status, group) = server.post("/v1/groups", &json!({ "name": "pumps", "psk": first }));
    assert_eq!((status, &group["psk"]["installed"]), (201, &json!(true)), "{group}");
    let (status, set) = server.post("/v1/groups/pumps/psk", &json!({ "psk": second }));
    assert_eq!((status, &set["changed"]), (200, &json!(true)), "{set}");
    assert_ne!(set["group"]["psk"]["id"], group["psk"]["id"]);
    let (_, again) = server.post("/v1/groups/pumps/psk", &json!({ "psk": second }));
    assert_eq!(again["changed"], false);

    server.post("/v1/groups", &json!({ "name": "plain" }));
    let refused = server.post("/v1/groups/plain/psk", &json!({ "psk": first }));
    assert_eq!(error_of(&refused), (409, "no_psk_group"));
    let taken = server.post("/v1/groups", &json!({ "name": "valves", "psk": second }));
    assert_eq!(error_of(&taken), (409, "psk_in_use"));
    let cut = server.post("/v1/groups", &json!({ "name": "valves", "psk": second[1..] }));
    assert_eq!(cut.0, 400, "{cut:?}");

    let audit = server.get("/v1/audit").1;
    assert!(audit.to_string().contains(set["group"]["psk"]["id"].as_str().unwrap()), "{audit}");
    let shown = [group, set, refused.1, taken.1, cut.1, audit, server.get("/v1/groups").1];
    for answer in shown.map(|answer| answer.to_string()) {
        assert!(!answer.contains(&first[..16]) && !answer.contains(&second[..16]), "{answer}");
    }
}

#[test]
fn a_rotation_is_started_once() {
    let server = Server::start();
    server.post("/v1/groups", &json!({ "name": "pumps" }));
    let (status, rotating) = server.post("/v1/groups/pumps/rotate", &json!({}));
    assert_eq!(status, 200, "{rotating}");
    assert!(rotating["key_epoch"].is_string());
}

#[test]
fn a_broker_is_told_everything_and_then_what_changes() {
    let server = Server::start();
    let device = server.provision("pump-1").device;
    let mut stream = server.policy(server.broker.reveal());
    let update = next_update(&mut stream);
    let PolicyUpdate::Snapshot { sequence: first, revoked, cells } = update else { panic!("{update:?}") };
    assert!(revoked.is_empty() && cells.is_empty());
    server.post("/v1/revoke", &json!({ "devices": ["pump-1"], "reason": "stolen" }));
    assert_eq!(next_update(&mut stream), PolicyUpdate::Revoked { sequence: first + 1, device });

    let mut late = server.policy(server.operator.reveal());
    let update = next_update(&mut late);
    let PolicyUpdate::Snapshot { revoked, .. } = update else { panic!("{update:?}") };
    assert!(revoked.contains(&device));
}

#[test]
fn health_needs_no_token_and_readiness_says_what_is_missing() {
    let server = Server::start();
    assert_eq!(server.ask("GET", "/healthz", None, None).0, 200);
    let (status, body) = server.ask("GET", "/readyz", None, None);
    assert_eq!(status, 503);
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body, json!({ "ready": false, "loaded": true, "broker_connected": false }));
}
