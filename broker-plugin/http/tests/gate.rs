//! The gate as brokers meet it: over HTTP, in their own words.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use fleetkey_gate::{Gate, Kicker, MAX_REQUEST_BYTES, Management, ManagementKind, serve};
use fleetkey_policy::{CellAccess, PolicyHandle, PolicyState, PolicyUpdate};
use fleetkey_policy_follow::LastHeard;
use fleetkey_wire::{CellId, DeviceId, FleetId};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const FLEET: FleetId = FleetId::from_bytes([1; 16]);
const A: DeviceId = DeviceId::from_bytes([0xa; 16]);
const B: DeviceId = DeviceId::from_bytes([0xb; 16]);
const CELL: CellId = CellId::from_bytes([0xc; 16]);
const OTHER_CELL: CellId = CellId::from_bytes([0xd; 16]);
/// Nothing here takes this long; what does has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A gate that listens.
struct Fixture {
    policy: PolicyHandle,
    heard: LastHeard,
    gate: Arc<Gate>,
    address: SocketAddr,
    _runtime: Runtime,
}

impl Fixture {
    fn start(max_silence: Duration) -> Self {
        let policy = PolicyHandle::new(PolicyState::new(FLEET, CellAccess::Members));
        let heard = LastHeard::default();
        let gate = Arc::new(Gate::new(policy.clone(), Some(heard.clone()), max_silence));
        let runtime = Runtime::new().unwrap();
        let socket = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = socket.local_addr().unwrap();
        runtime.spawn(serve(socket, gate.clone(), CancellationToken::new()));
        Self { policy, heard, gate, address, _runtime: runtime }
    }

    /// A gate whose policy is known: A is in the one cell, B in both.
    fn known() -> Self {
        let fixture = Self::start(PATIENCE);
        fixture.tell();
        fixture
    }

    fn tell(&self) {
        let cells = BTreeMap::from([(CELL, BTreeSet::from([A, B])), (OTHER_CELL, BTreeSet::from([B]))]);
        let snapshot = PolicyUpdate::Snapshot { sequence: 1, revoked: BTreeSet::new(), cells };
        self.policy.apply(snapshot).unwrap();
        self.heard.hear();
    }

    /// EMQX's question; with status and body of the answer.
    fn emqx(&self, path: &str, body: &str) -> (u16, Value) {
        let url = format!("http://{}/emqx/{path}", self.address);
        let mut answer = agent().post(url).header("content-type", "application/json").send(body).unwrap();
        let body = answer.body_mut().read_to_string().unwrap();
        (answer.status().as_u16(), serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    fn emqx_allows(&self, path: &str, body: &Value) -> bool {
        let (status, answer) = self.emqx(path, &body.to_string());
        assert_eq!(status, 200, "{body}: {answer}");
        match answer {
            answer if answer == json!({"result": "allow"}) => true,
            answer if answer == json!({"result": "deny"}) => false,
            answer => panic!("{body}: {answer}"),
        }
    }

    /// RabbitMQ's question, asked both ways.
    fn rabbitmq_allows(&self, path: &str, fields: &[(&str, &str)]) -> bool {
        let url = format!("http://{}/rabbitmq/{path}", self.address);
        let asked = [
            agent().post(&url).send_form(fields.iter().copied()).unwrap(),
            agent().get(&url).query_pairs(fields.iter().copied()).call().unwrap(),
        ];
        let [posted, got] = asked.map(|mut answer| {
            assert_eq!(answer.status(), 200, "{path} {fields:?}");
            answer.body_mut().read_to_string().unwrap()
        });
        assert_eq!(posted, got, "{path} {fields:?}");
        match posted.as_str() {
            "allow" => true,
            "deny" => false,
            answer => panic!("{path} {fields:?}: {answer}"),
        }
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).build().into()
}

fn connect(name: &str, client_id: &str) -> Value {
    json!({"cert_common_name": name, "clientid": client_id})
}

fn act(name: &str, client_id: &str, action: &str, topic: &str) -> Value {
    json!({
        "cert_common_name": name, "clientid": client_id, "action": action, "topic": topic,
        "qos": "1", "retain": "false",
    })
}

fn topic(rest: &str) -> String {
    format!("fk/{FLEET}/{rest}")
}

#[test]
fn emqx_is_told_who_may_connect() {
    let fixture = Fixture::known();
    let (a, b) = (A.to_string(), B.to_string());
    let allows = |name: &str, client_id: &str| fixture.emqx_allows("authenticate", &connect(name, client_id));
    assert!(allows(&a, &a));
    assert!(allows("coordinator:3", "coordinator-1"));
    assert!(allows("broker", "relay-1"));
    for (name, client_id) in [
        (a.as_str(), b.as_str()),
        (&a, &a.to_uppercase()),
        (&a, ""),
        (&a.to_uppercase(), &a),
        ("undefined", &a),
        ("", &a),
        ("coordinator:3", &a),
        ("coordinator:03", "coordinator-1"),
        ("operator:ada", "ada"),
        ("broker", "broker"),
        (&a, "relay-1"),
        ("Fleetkey 01010101", "ca"),
    ] {
        assert!(!allows(name, client_id), "{name:?} as {client_id:?}");
    }
    assert_eq!(fixture.gate.refused("client_id_not_device"), 3);
    assert_eq!(fixture.gate.refused("unknown_name"), 5);
    assert_eq!(fixture.gate.refused("role_without_topics"), 1);
    assert_eq!(fixture.gate.refused("client_id_not_relay"), 1);
}

#[test]
fn emqx_is_told_who_may_publish_and_subscribe() {
    let fixture = Fixture::known();
    let (a, coordinator) = (A.to_string(), "coordinator:1");
    let allows = |name: &str, action: &str, topic: &str| {
        let client_id = if name == coordinator { "coordinator-1" } else { name };
        fixture.emqx_allows("authorize", &act(name, client_id, action, topic))
    };
    let (own_up, own_down) = (topic(&format!("dev/{A}/up")), topic(&format!("dev/{A}/down")));
    assert!(allows(&a, "publish", &own_up));
    assert!(allows(&a, "subscribe", &own_down));
    assert!(allows(&a, "subscribe", &topic(&format!("cell/{CELL}"))));
    assert!(allows(coordinator, "publish", &own_down));
    assert!(allows(coordinator, "publish", &topic(&format!("cell/{CELL}"))));
    assert!(allows(coordinator, "subscribe", &topic("dev/+/up")));
    for (name, action, topic) in [
        (a.as_str(), "publish", topic(&format!("dev/{B}/up"))),
        (&a, "publish", own_down.clone()),
        (&a, "publish", topic(&format!("cell/{CELL}"))),
        (&a, "publish", topic("dev/+/up")),
        (&a, "subscribe", topic(&format!("dev/{B}/down"))),
        (&a, "subscribe", topic(&format!("cell/{OTHER_CELL}"))),
        (&a, "subscribe", topic("cell/+")),
        (&a, "subscribe", topic("dev/+/up")),
        (&a, "subscribe", "#".to_owned()),
        (&a, "subscribe", format!("$share/g/{own_down}")),
        (&a, "subscribe", format!("{own_down}\u{0}")),
        (&a, "subscribe", format!("\u{feff}{own_down}")),
        (&a, "publish", "weather/hamburg".to_owned()),
        (coordinator, "subscribe", "#".to_owned()),
        (coordinator, "publish", own_up.clone()),
        ("operator:ada", "subscribe", own_down),
    ] {
        assert!(!allows(name, action, &topic), "{name} {action} {topic:?}");
    }
    // As numbers and truths, and what may not be.
    for (qos, retain, expected) in [
        (json!(0), json!(false), true),
        (json!("0"), json!("false"), true),
        (json!(1), json!("false"), true),
        (json!(2), json!(false), false),
        (json!("2"), json!(false), false),
        (json!(3), json!(false), false),
        (json!(null), json!(false), false),
        (json!(1), json!(true), false),
        (json!(1), json!("true"), false),
        (json!(1), json!("undefined"), false),
        (json!(1), json!(null), false),
    ] {
        let mut question = act(&a, &a, "publish", &own_up);
        question["qos"] = qos;
        question["retain"] = retain;
        assert_eq!(fixture.emqx_allows("authorize", &question), expected, "{question}");
    }
}

#[test]
fn what_cannot_be_read_is_denied_in_a_way_that_brokers_understand() {
    let fixture = Fixture::known();
    let good = connect(&A.to_string(), &A.to_string()).to_string();
    let long = format!("{{\"x\":\"{}\",{}", "x".repeat(MAX_REQUEST_BYTES), &good[1..]);
    for body in ["", "{", "null", "[]", "{}", &good[1..], &long, "{\"cert_common_name\":1,\"clientid\":1}"] {
        for path in ["authenticate", "authorize"] {
            // EMQX takes any other status for "ask the next one".
            assert_eq!(fixture.emqx(path, body), (200, json!({"result": "deny"})), "{body:.40}");
        }
    }
    assert_eq!(fixture.gate.refused("bad_request"), 16);
    let a = A.to_string();
    for (path, fields) in [
        ("user", vec![]),
        ("user", vec![("username", a.as_str()), ("username", "coordinator:1")]),
        ("vhost", vec![("vhost", "/")]),
        ("resource", vec![("username", a.as_str()), ("resource", "exchange"), ("name", "amq.topic")]),
        (
            "resource",
            vec![("username", &a), ("resource", "exchange"), ("name", "amq.topic"), ("permission", "own")],
        ),
        ("topic", vec![("username", &a), ("name", "amq.topic"), ("permission", "read")]),
    ] {
        assert!(!fixture.rabbitmq_allows(path, &fields), "{path} {fields:?}");
    }
    let nowhere = agent().get(format!("http://{}/emqx/authenticate", fixture.address)).call().unwrap();
    assert_eq!(nowhere.status(), 404);
    assert_eq!(fixture.gate.refused("unknown_path"), 1);
}

#[test]
fn rabbitmq_is_told_who_may_do_what() {
    let fixture = Fixture::known();
    let (a, b) = (A.to_string(), B.to_string());
    let allows = |path: &str, fields: &[(&str, &str)]| fixture.rabbitmq_allows(path, fields);
    for (path, fields, expected) in [
        ("user", vec![("username", a.as_str())], true),
        ("user", vec![("username", &a), ("vhost", "/"), ("client_id", &a)], true),
        ("user", vec![("username", &a), ("client_id", &b)], false),
        ("user", vec![("username", "coordinator:1")], true),
        ("user", vec![("username", "operator:ada")], false),
        ("user", vec![("username", "guest")], false),
        // Whoever says a password has chosen the name.
        ("user", vec![("username", &a), ("password", "")], false),
        ("user", vec![("username", &b), ("password", "x")], false),
        ("vhost", vec![("username", &a), ("vhost", "/"), ("ip", "::1"), ("tags", "")], true),
        ("vhost", vec![("username", &a), ("vhost", "/"), ("client_id", &b)], false),
    ] {
        assert_eq!(allows(path, &fields), expected, "{path} {fields:?}");
    }
    assert_eq!(fixture.gate.refused("password"), 4);

    let resource = |name: &str, kind: &str, resource: &str, permission: &str| {
        let fields = [
            ("username", name),
            ("vhost", "/"),
            ("resource", kind),
            ("name", resource),
            ("permission", permission),
            ("tags", ""),
        ];
        allows("resource", &fields)
    };
    let queue = |client: &str, qos: u8| format!("mqtt-subscription-{client}qos{qos}");
    for permission in ["read", "write"] {
        assert!(resource(&a, "exchange", "amq.topic", permission));
        assert!(resource("coordinator:1", "exchange", "amq.topic", permission));
        for exchange in ["amq.default", "", "amq.direct", "amq.fanout", "mine"] {
            assert!(!resource(&a, "exchange", exchange, permission), "{exchange}");
        }
    }
    assert!(!resource(&a, "exchange", "amq.topic", "configure"));
    for permission in ["configure", "read", "write"] {
        assert!(resource(&a, "queue", &queue(&a, 0), permission));
        assert!(resource(&a, "queue", &queue(&a, 1), permission));
        assert!(resource("coordinator:1", "queue", &queue("coordinator-9", 1), permission));
        for other in [queue(&b, 0), queue(&a, 2), a.clone(), String::new(), queue("coordinator-9", 1)] {
            assert!(!resource(&a, "queue", &other, permission), "{other}");
        }
        assert!(!resource("coordinator:1", "queue", &queue(&a, 1), permission));
    }

    let topic = |name: &str, permission: &str, key: &str| {
        let fields = [
            ("username", name),
            ("vhost", "/"),
            ("resource", "topic"),
            ("name", "amq.topic"),
            ("permission", permission),
            ("routing_key", key),
            ("variable_map.client_id", if name == "coordinator:1" { "coordinator-1" } else { name }),
            ("variable_map.vhost", "/"),
        ];
        allows("topic", &fields)
    };
    let dots = |rest: &str| format!("fk.{FLEET}.{rest}");
    assert!(topic(&a, "write", &dots(&format!("dev.{A}.up"))));
    assert!(topic(&a, "read", &dots(&format!("dev.{A}.down"))));
    assert!(topic(&a, "read", &dots(&format!("cell.{CELL}"))));
    assert!(topic("coordinator:1", "read", &dots("dev.*.up")));
    assert!(topic("coordinator:1", "write", &dots(&format!("cell.{CELL}"))));
    for (permission, key) in [
        ("write", dots(&format!("dev.{B}.up"))),
        ("write", dots(&format!("dev.{A}.down"))),
        ("write", dots(&format!("cell.{CELL}"))),
        ("write", format!("fk/{FLEET}/dev/{A}/up")),
        ("read", dots(&format!("cell.{OTHER_CELL}"))),
        ("read", dots("dev.*.up")),
        ("read", dots("dev.+.up")),
        ("read", dots("dev.#")),
        ("read", "#".to_owned()),
        ("configure", dots(&format!("dev.{A}.up"))),
    ] {
        assert!(!topic(&a, permission, &key), "{permission} {key}");
    }
}

#[test]
fn a_device_is_denied_until_the_policy_is_known_and_from_the_moment_it_is_revoked() {
    let fixture = Fixture::start(PATIENCE);
    let a = A.to_string();
    let allowed = || {
        let emqx = fixture.emqx_allows("authenticate", &connect(&a, &a));
        assert_eq!(fixture.rabbitmq_allows("user", &[("username", &a)]), emqx);
        emqx
    };
    assert!(!allowed());
    assert!(fixture.rabbitmq_allows("user", &[("username", "coordinator:1")]), "or it could never be known");
    assert_eq!(fixture.gate.refused("policy_unknown"), 3);
    fixture.tell();
    assert!(allowed());
    fixture.policy.apply(PolicyUpdate::Revoked { sequence: 2, device: A }).unwrap();
    assert!(!allowed());
    assert!(!fixture.rabbitmq_allows(
        "topic",
        &[
            ("username", &a),
            ("name", "amq.topic"),
            ("permission", "write"),
            ("routing_key", &format!("fk.{FLEET}.dev.{A}.up")),
        ]
    ));
    assert_eq!(fixture.gate.refused("revoked"), 5);
}

#[test]
fn a_policy_that_nobody_vouches_for_any_more_lets_no_device_in() {
    // Heard just now is too long ago.
    let fixture = Fixture::start(Duration::ZERO);
    fixture.tell();
    let a = A.to_string();
    assert!(!fixture.emqx_allows("authenticate", &connect(&a, &a)));
    assert!(fixture.emqx_allows("authenticate", &connect("coordinator:1", "coordinator-1")));
    assert_eq!(fixture.gate.refused("policy_stale"), 1);
}

/// What came, and what is answered: the first so often with an error.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<(Vec<String>, usize)>>);

impl Api {
    fn start(runtime: &Runtime, failures: usize) -> (Self, String) {
        let api = Self(Arc::new(Mutex::new((Vec::new(), failures))));
        let socket = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = socket.local_addr().unwrap();
        let routes = Router::new().fallback(Self::answer).with_state(api.clone());
        runtime.spawn(async move { axum::serve(socket, routes).await });
        (api, format!("http://{address}/"))
    }

    fn answer(State(api): State<Self>, request: Request) -> Ready<StatusCode> {
        let authorization = request.headers()["authorization"].to_str().unwrap().to_owned();
        assert_eq!(authorization, "Basic a2V5OnNlY3JldA==");
        let mut api = api.0.lock().unwrap();
        api.0.push(format!("{} {}", request.method(), request.uri()));
        if api.1 > 0 {
            api.1 -= 1;
            return ready(StatusCode::SERVICE_UNAVAILABLE);
        }
        ready(StatusCode::NO_CONTENT)
    }

    /// Waits until this many requests have come.
    fn asked(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let asked = self.0.lock().unwrap().0.clone();
            if asked.len() >= count {
                return asked;
            }
            assert!(Instant::now() < deadline, "{asked:?}");
            std::thread::yield_now();
        }
    }
}

#[test]
fn sessions_are_ended_at_once_tried_until_it_works_and_once_more() {
    let runtime = Runtime::new().unwrap();
    let (api, url) = Api::start(&runtime, 2);
    let policy = PolicyHandle::new(PolicyState::new(FLEET, CellAccess::Members));
    let management = Management::new(ManagementKind::Emqx, &url, "key", "secret");
    let _kicker = Kicker::start(management, &policy).unwrap();
    let cells = BTreeMap::from([(CELL, BTreeSet::from([A, B]))]);
    policy.apply(PolicyUpdate::Snapshot { sequence: 1, revoked: BTreeSet::new(), cells }).unwrap();
    let begun = Instant::now();
    policy.apply(PolicyUpdate::Revoked { sequence: 2, device: A }).unwrap();
    let delete = |device| format!("DELETE /api/v5/clients/{device}");
    assert_eq!(api.asked(1), [delete(A)]);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    // Two failures, a success, and the second time.
    assert_eq!(api.asked(4), vec![delete(A); 4]);
    // Out of the cell.
    policy
        .apply(PolicyUpdate::CellMembers { sequence: 3, cell: CELL, members: BTreeSet::from([A]) })
        .unwrap();
    assert_eq!(api.asked(5)[4], delete(B));
}

#[test]
fn a_session_of_rabbitmq_is_its_connections_and_its_queues() {
    let runtime = Runtime::new().unwrap();
    let (api, url) = Api::start(&runtime, 0);
    let policy = PolicyHandle::new(PolicyState::new(FLEET, CellAccess::Members));
    let kind = ManagementKind::RabbitMq { vhost: "/".to_owned() };
    let _kicker = Kicker::start(Management::new(kind, &url, "key", "secret"), &policy).unwrap();
    // Revoked before anybody watched.
    let revoked = BTreeSet::from([A]);
    policy.apply(PolicyUpdate::Snapshot { sequence: 9, revoked, cells: BTreeMap::new() }).unwrap();
    assert_eq!(
        api.asked(3)[..3],
        [
            format!("DELETE /api/connections/username/{A}"),
            format!("DELETE /api/queues/%2F/mqtt-subscription-{A}qos0"),
            format!("DELETE /api/queues/%2F/mqtt-subscription-{A}qos1"),
        ]
    );
}
