//! Who may ask what of the API: every role against every route, scopes, and tokens that open nothing any more.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

#[path = "support/server.rs"]
mod server;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use fleetkey_coordinator::http::routes;
use fleetkey_coordinator_core::enrolment::{Application, Enrolment, Proof, ShownClaim, Verdict};
use fleetkey_coordinator_core::records::OperatorRole;
use fleetkey_coordinator_core::{Coordinator, Labels};
use fleetkey_identity::IdentityKey;
use rand_core::OsRng;
use serde_json::{Value, json};
use server::Server;
use support::{Home, fleetkey, mode, ok, run};

/// Who may at least, as the documentation has it: the other side of the table in the code. "fleet" wants the whole
/// fleet as its scope.
const TABLE: [(&str, &str, &str); 41] = [
    ("GET", "/healthz", "anybody"),
    ("GET", "/readyz", "anybody"),
    ("GET", "/metrics", "anybody"),
    ("GET", "/crl", "anybody"),
    ("GET", "/crl/{ca}", "anybody"),
    ("GET", "/v1/policy", "broker"),
    ("GET", "/v1/whoami", "viewer"),
    ("GET", "/v1/status", "fleet viewer"),
    ("GET", "/v1/audit", "fleet viewer"),
    ("GET", "/v1/doctor", "fleet viewer"),
    ("GET", "/v1/backup", "admin"),
    ("GET", "/v1/operators", "admin"),
    ("POST", "/v1/operators", "admin"),
    ("POST", "/v1/operators/{operator}/end", "admin"),
    ("GET", "/v1/ca", "fleet viewer"),
    ("POST", "/v1/ca/{ca}/retire", "admin"),
    ("GET", "/v1/devices", "viewer"),
    ("POST", "/v1/devices", "operator"),
    ("POST", "/v1/devices/adopt", "admin"),
    ("GET", "/v1/devices/{device}", "viewer"),
    ("POST", "/v1/devices/{device}/release", "operator"),
    ("POST", "/v1/devices/{device}/certify", "admin"),
    ("POST", "/v1/devices/{device}/label", "operator"),
    ("POST", "/v1/revoke", "operator"),
    ("GET", "/v1/claims", "viewer"),
    ("POST", "/v1/claims", "operator"),
    ("POST", "/v1/claims/{claim}/end", "operator"),
    ("GET", "/v1/requests", "viewer"),
    ("POST", "/v1/requests/{device}/approve", "operator"),
    ("POST", "/v1/requests/{device}/deny", "operator"),
    ("POST", "/v1/requests/{device}/forget", "operator"),
    ("GET", "/v1/groups", "viewer"),
    ("POST", "/v1/groups", "operator"),
    ("GET", "/v1/groups/{group}", "viewer"),
    ("GET", "/v1/groups/{group}/members", "viewer"),
    ("POST", "/v1/groups/{group}/add", "operator"),
    ("POST", "/v1/groups/{group}/select", "fleet operator"),
    ("POST", "/v1/groups/{group}/remove", "operator"),
    ("POST", "/v1/groups/{group}/psk", "operator"),
    ("POST", "/v1/groups/{group}/rekey", "operator"),
    ("POST", "/v1/groups/{group}/rotate", "operator"),
];

/// Status and name of what is answered; of a stream that does not end only the status.
fn ask(server: &Server, method: &str, path: &str, token: Option<&str>) -> (u16, String) {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let bearer = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let (kind, body) = ("content-type: application/json", "{}");
    let length = if method == "POST" { body.len() } else { 0 };
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{bearer}{kind}\r\ncontent-length: {length}\r\n\r\n{}",
        &body[..length]
    )
    .unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    let status: u16 = std::str::from_utf8(&head[9..]).unwrap().parse().unwrap();
    if status < 400 {
        return (status, String::new());
    }
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    let body: Value =
        rest.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok()).unwrap_or_default();
    (status, body["error"].as_str().unwrap_or_default().to_owned())
}

impl Server {
    fn operator(&self, name: &str, role: &str, groups: &[&str]) -> String {
        let (status, made) =
            self.post("/v1/operators", &json!({ "name": name, "role": role, "groups": groups }));
        assert_eq!(status, 201, "{made}");
        made["token"].as_str().unwrap().to_owned()
    }

    fn as_operator(&self, token: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (bearer, body) = (format!("Bearer {token}"), body.to_string());
        let (status, text) =
            self.ask(method, path, Some(&bearer), (method == "POST").then_some(body.as_str()));
        (status, serde_json::from_str(&text).unwrap())
    }
}

#[test]
fn every_route_is_in_the_table() {
    let code: BTreeSet<(&str, &str)> = routes().iter().map(|route| (route.method, route.path)).collect();
    let told: BTreeSet<(&str, &str)> = TABLE.iter().map(|(method, path, _)| (*method, *path)).collect();
    assert_eq!(code, told);
    assert_eq!(routes().len(), TABLE.len(), "each once");
}

#[test]
fn each_role_may_what_the_table_says_and_nothing_else() {
    let server = Server::start();
    server.post("/v1/groups", &json!({ "name": "pumps" }));
    let (viewer, operator) = (OperatorRole::Viewer.name(), OperatorRole::Operator.name());
    let tokens = [
        ("nobody", None),
        ("stranger", Some("0f".repeat(32))),
        ("broker", Some(server.broker.reveal().to_owned())),
        ("scoped", Some(server.operator("v-pumps", viewer, &["pumps"]))),
        ("viewer", Some(server.operator("v", viewer, &[]))),
        ("operator", Some(server.operator("o", operator, &[]))),
        ("admin", Some(server.operator("a", "admin", &[]))),
        ("root", Some(server.operator.reveal().to_owned())),
    ];
    let rank = |who: &str| ["viewer", "operator", "admin", "root"].iter().position(|known| *known == who);
    for (method, path, least) in TABLE {
        let filled: Vec<&str> =
            path.split('/').map(|part| if part.starts_with('{') { "nothing" } else { part }).collect();
        let filled = filled.join("/");
        for (who, token) in &tokens {
            let (status, name) = ask(&server, method, &filled, token.as_deref());
            let case = format!("{who} {method} {path}: {status} {name}");
            let (needed, is_for_fleet) =
                least.strip_prefix("fleet ").map_or((least, false), |role| (role, true));
            let who_ranks = rank(if *who == "scoped" { "viewer" } else { who });
            let expected = match (needed, *who) {
                ("anybody", _) | ("broker", "broker") => None,
                (_, "nobody" | "stranger" | "broker") => Some((401, "unauthorized")),
                ("broker", "admin" | "root") => None,
                ("broker", _) => Some((403, "role_missing")),
                _ if who_ranks < rank(needed) => Some((403, "role_missing")),
                (_, "scoped") if is_for_fleet || path.contains('{') => Some((403, "out_of_scope")),
                _ => None,
            };
            match expected {
                Some((status_expected, name_expected)) => {
                    assert_eq!((status, name.as_str()), (status_expected, name_expected), "{case}");
                }
                None => assert!(![401, 403, 405].contains(&status), "{case}"),
            }
        }
    }
}

#[test]
fn a_token_that_was_ended_or_never_was_gets_one_answer() {
    let server = Server::start();
    let token = server.operator("ops1", "admin", &[]);
    assert_eq!(server.as_operator(&token, "GET", "/v1/whoami", &Value::Null).1["name"], "ops1");
    let refused =
        server.post("/v1/operators", &json!({ "name": "late", "role": "viewer", "valid_seconds": 0 }));
    assert_eq!((refused.0, &refused.1["error"]), (400, &json!("bad_operator")));
    let (status, list) = server.as_operator(&token, "POST", "/v1/operators/ops1/end", &json!({}));
    assert_eq!((status, list["operators"][0]["name"].as_str()), (200, Some("ops1")));
    let ended = server.as_operator(&token, "GET", "/v1/whoami", &Value::Null);
    let never = server.as_operator(&"ab".repeat(32), "GET", "/v1/whoami", &Value::Null);
    let no_form = server.as_operator("short", "GET", "/v1/whoami", &Value::Null);
    assert_eq!(ended.0, 401);
    assert_eq!((&ended, &ended), (&never, &no_form), "nothing tells one from the other");
    let again = server.post("/v1/operators", &json!({ "name": "ops1", "role": "viewer" }));
    assert_eq!((again.0, &again.1["error"]), (409, &json!("name_taken")));
    let gone = server.post("/v1/operators/nobody/end", &json!({}));
    assert_eq!((gone.0, &gone.1["error"]), (404, &json!("unknown_operator")));
}

/// Reads the stream until it ends, and says how long that took. One that does not end says something every few seconds.
fn until_it_ends(mut stream: impl BufRead) -> Duration {
    let begun = Instant::now();
    let mut line = String::new();
    while stream.read_line(&mut line).unwrap() > 0 && begun.elapsed() < Duration::from_secs(12) {
        line.clear();
    }
    begun.elapsed()
}

#[test]
fn a_policy_stream_ends_with_the_token_that_opened_it() {
    let server = Server::start();
    let token = server.operator("ops1", "admin", &[]);
    let begun = |token: &str| {
        let mut stream = server.policy(token);
        let mut line = String::new();
        while !line.contains("snapshot") {
            line.clear();
            assert!(stream.read_line(&mut line).unwrap() > 0, "it ended at once");
        }
        stream
    };
    let ended = begun(&token);
    // Others come and go meanwhile.
    server.operator("ops2", "viewer", &[]);
    assert_eq!(server.post("/v1/operators/ops1/end", &json!({})).0, 200);
    assert!(until_it_ends(ended) < Duration::from_secs(4));

    let new = json!({ "name": "ops3", "role": "admin", "valid_seconds": 1 });
    let token = server.post("/v1/operators", &new).1["token"].as_str().unwrap().to_owned();
    let took = until_it_ends(begun(&token));
    assert!(took < Duration::from_secs(6), "a second, its last, and half of one until it is seen: {took:?}");
}

#[test]
fn tokens_are_judged_while_the_deciding_thread_is_busy() {
    let server = Server::start();
    let (scoped, ended) = (server.operator("ops1", "viewer", &[]), server.operator("ops2", "admin", &[]));
    assert_eq!(server.post("/v1/operators/ops2/end", &json!({})).0, 200);
    let (let_go, held) = std::sync::mpsc::channel::<()>();
    let (entered, is_busy) = std::sync::mpsc::channel();
    let handle = server.service.as_ref().unwrap().handle();
    let holding = server.runtime.spawn(async move {
        let hold = move |_: &Coordinator, _| {
            entered.send(()).unwrap();
            held.recv().is_ok()
        };
        handle.query(hold).await
    });
    is_busy.recv().unwrap();
    let unauthorized = (401, "unauthorized".to_owned());
    assert_eq!(ask(&server, "GET", "/v1/devices", Some(&"0f".repeat(32))), unauthorized);
    assert_eq!(ask(&server, "GET", "/v1/devices", Some(&ended)), unauthorized);
    assert_eq!(ask(&server, "GET", "/v1/backup", Some(&scoped)), (403, "role_missing".to_owned()));
    let_go.send(()).unwrap();
    assert_eq!(server.runtime.block_on(holding).unwrap(), Ok(true));
}

#[test]
fn a_scoped_operator_is_shown_the_scope_and_refused_the_rest_by_name() {
    let server = Server::start();
    for name in ["ours", "theirs"] {
        server.post("/v1/groups", &json!({ "name": name }));
        server.post(&format!("/v1/groups/{name}/select"), &json!({ "labels": format!("hall={name}") }));
    }
    for name in ["in-ours", "in-theirs", "in-both", "in-none"] {
        server.provision(name);
    }
    server.post("/v1/groups/ours/add", &json!({ "devices": ["in-ours", "in-both"] }));
    server.post("/v1/groups/theirs/add", &json!({ "devices": ["in-theirs", "in-both"] }));
    for labels in ["hall=ours", "hall=theirs", "floor=1"] {
        let claim = json!({ "uses": 1, "valid_seconds": 60, "labels": labels });
        assert_eq!(server.post("/v1/claims", &claim).0, 201);
    }
    let token = server.operator("ops2", "operator", &["ours"]);
    let get = |path: &str| server.as_operator(&token, "GET", path, &Value::Null);
    let post = |path: &str, body: Value| server.as_operator(&token, "POST", path, &body);
    let names = |list: &Value, key: &str| -> Vec<String> {
        list.as_array().unwrap().iter().map(|one| one[key].as_str().unwrap().to_owned()).collect()
    };
    let me = get("/v1/whoami").1;
    assert_eq!((me["name"].as_str(), me["groups"][0]["name"].as_str()), (Some("ops2"), Some("ours")));

    let devices = get("/v1/devices").1["devices"].clone();
    assert_eq!(names(&devices, "name"), ["in-both", "in-ours"]);
    assert_eq!(names(&devices[0]["groups"], "group_name"), ["ours"], "the other group is not shown");
    assert_eq!(names(&get("/v1/groups").1["groups"], "name"), ["ours"]);
    assert_eq!(names(&get("/v1/claims").1["claims"], "labels"), ["hall=ours"]);
    for path in
        ["/v1/devices/in-theirs", "/v1/devices/in-none", "/v1/groups/theirs", "/v1/groups/theirs/members"]
    {
        let (status, body) = get(path);
        assert_eq!((status, body["error"].as_str()), (403, Some("out_of_scope")), "{path}");
    }
    let denied = [
        ("/v1/groups/theirs/rekey", json!({}), "there is no group \"theirs\" in your scope"),
        ("/v1/groups/ours/select", json!({ "labels": "hall=theirs" }), "the whole fleet"),
        ("/v1/groups", json!({ "name": "new" }), "the whole fleet"),
        ("/v1/devices", json!({ "name": "new" }), "the whole fleet"),
        ("/v1/groups/ours/add", json!({ "devices": ["in-theirs"] }), "no device \"in-theirs\" in your scope"),
        (
            "/v1/revoke",
            json!({ "devices": ["in-both"], "reason": "" }),
            "in a group outside of your scope as well",
        ),
        (
            "/v1/claims",
            json!({ "uses": 1, "valid_seconds": 60, "labels": "hall=theirs" }),
            "outside of your scope",
        ),
    ];
    for (path, body, why) in denied {
        let (status, answer) = post(path, body);
        assert_eq!((status, answer["error"].as_str()), (403, Some("out_of_scope")), "{path}: {answer}");
        assert!(answer["message"].as_str().unwrap().contains(why), "{path}: {answer}");
    }
    let allowed = [
        ("/v1/groups/ours/rekey", json!({}), 200),
        ("/v1/groups/ours/add", json!({ "devices": ["in-none"] }), 200),
        ("/v1/groups/ours/remove", json!({ "devices": ["in-both"] }), 200),
        ("/v1/revoke", json!({ "devices": ["in-ours"], "reason": "stolen" }), 200),
        ("/v1/claims", json!({ "uses": 1, "valid_seconds": 60, "labels": "hall=ours" }), 201),
    ];
    for (path, body, expected) in allowed {
        let (status, answer) = post(path, body);
        assert_eq!(status, expected, "{path}: {answer}");
    }
    let theirs = server.get("/v1/devices/in-both").1;
    assert_eq!(
        (&theirs["standing"], theirs["groups"][0]["group_name"].as_str()),
        (&json!("enrolled"), Some("theirs"))
    );
}

/// What a scoped operator is answered, with the name that was asked for taken out.
fn answers(server: &Server, token: &str, name: &str, claim: &str) -> Vec<(u16, String)> {
    let devices = json!({ "devices": [name] });
    let asked = [
        ("GET", format!("/v1/devices/{name}"), Value::Null),
        ("POST", format!("/v1/devices/{name}/release"), json!({})),
        ("POST", format!("/v1/devices/{name}/label"), json!({ "labels": "floor=1" })),
        ("POST", "/v1/revoke".to_owned(), json!({ "devices": [name], "reason": "" })),
        ("POST", "/v1/groups/ours/add".to_owned(), devices.clone()),
        ("POST", "/v1/groups/ours/remove".to_owned(), devices.clone()),
        ("GET", format!("/v1/groups/{name}"), Value::Null),
        ("GET", format!("/v1/groups/{name}/members"), Value::Null),
        ("POST", format!("/v1/groups/{name}/add"), devices.clone()),
        ("POST", format!("/v1/groups/{name}/remove"), devices),
        ("POST", format!("/v1/groups/{name}/rekey"), json!({})),
        ("POST", format!("/v1/groups/{name}/rotate"), json!({})),
        ("POST", format!("/v1/requests/{name}/approve"), json!({})),
        ("POST", format!("/v1/requests/{name}/deny"), json!({})),
        ("POST", format!("/v1/requests/{name}/forget"), json!({})),
        ("POST", format!("/v1/claims/{claim}/end"), json!({})),
    ];
    let answer = |(method, path, body): (&str, String, Value)| {
        let (status, body) = server.as_operator(token, method, &path, &body);
        (status, body.to_string().replace(name, "NAME").replace(claim, "CLAIM"))
    };
    asked.into_iter().map(answer).collect()
}

#[test]
fn nobody_learns_whether_what_is_outside_of_their_scope_exists() {
    let server = Server::start();
    for name in ["ours", "theirs"] {
        server.post("/v1/groups", &json!({ "name": name, "select": format!("hall={name}") }));
    }
    // A device, a group and a request that share their name: whatever is asked for, it is there.
    server.provision("theirs");
    server.post("/v1/groups/theirs/add", &json!({ "devices": ["theirs"] }));
    let claim = json!({ "uses": 1, "valid_seconds": 60, "labels": "hall=theirs", "needs_approval": true });
    let claim = server.post("/v1/claims", &claim).1;
    let shown: ShownClaim = claim["claim"].as_str().unwrap().parse().unwrap();
    let application = Application {
        public_key: IdentityKey::generate(&mut OsRng).public_key(),
        name: Some("theirs".into()),
        proof: Proof::Claim(shown),
        verdict: Verdict::Approve,
        labels: Labels::default(),
    };
    let handle = server.service.as_ref().unwrap().handle();
    let applied = handle.decide(move |coordinator, now, rng| Ok(coordinator.enrol(&application, now, rng)));
    let applied = server.runtime.block_on(applied).unwrap();
    let Ok(Enrolment::Waits { device: request }) = applied else { panic!("{applied:?}") };
    let ids = [
        server.get("/v1/devices/theirs").1["id"].as_str().unwrap().to_owned(),
        server.get("/v1/groups/theirs").1["id"].as_str().unwrap().to_owned(),
        request.to_string(),
    ];

    let token = server.operator("ops2", "operator", &["ours"]);
    let nothing = answers(&server, &token, "nothing", &"0".repeat(16));
    for (status, body) in &nothing {
        assert_eq!((*status, body.contains("out_of_scope")), (403, true), "{body}");
    }
    let claim = claim["id"].as_str().unwrap();
    assert_eq!(answers(&server, &token, "theirs", claim), nothing);
    for id in ids {
        assert_eq!(answers(&server, &token, &id, claim), nothing);
    }
    let theirs = server.get("/v1/devices/theirs").1;
    assert_eq!(theirs["standing"], json!("enrolled"), "nothing was done, either");
    let root = server.get("/v1/devices/nothing");
    assert_eq!((root.0, &root.1["error"]), (404, &json!("unknown_device")), "to whom the fleet is open");
}

#[test]
fn operators_are_made_and_used_from_the_command_line() {
    let home = Home::with_fleet();
    let serving = home.serve();
    serving.ok(&["group", "create", "pumps"]);
    let printed = serving.ok(&[
        "operator",
        "create",
        "ops2",
        "--role",
        "operator",
        "--group",
        "pumps",
        "--expires",
        "90d",
    ]);
    let token = home.directory.path().join("ops2.token");
    fs::write(&token, &printed).unwrap();
    assert_eq!(printed.trim().len(), 64);
    let as_ops2 = |arguments: &[&str]| {
        let mut command = fleetkey();
        command.args(["--api", &serving.api, "--token-file", token.to_str().unwrap()]).args(arguments);
        run(&mut command)
    };
    assert!(ok(&as_ops2(&["operator", "whoami"])).starts_with("ops2, operator of pumps, until 20"));
    ok(&as_ops2(&["group", "rekey", "pumps"]));
    let denied = support::failure(&as_ops2(&["backup", "x"]));
    assert!(denied.contains("this needs the role admin, and you have operator"), "{denied}");
    let denied = support::failure(&as_ops2(&["status"]));
    assert!(denied.contains("the whole fleet"), "{denied}");
    let listed = serving.ok(&["operator", "list"]);
    assert!(listed.starts_with("ops2  operator of pumps, until 20"), "{listed}");
    assert!(!serving.ok(&["operator", "list", "--json"]).contains(printed.trim()));
    let log = serving.ok(&["audit"]);
    assert!(
        log.contains("  root  create_operator  ops2  operator of ") && log.contains("  ops2  rekey  "),
        "{log}"
    );
    assert!(serving.ok(&["operator", "end", "ops2"]).contains("ended 20"));
    let refused = support::failure(&as_ops2(&["operator", "whoami"]));
    assert!(refused.contains("a bearer token is needed"), "{refused}");
    let log = serving.stop();
    assert!(log.contains("denied") && log.contains("role_missing") && !log.contains(printed.trim()), "{log}");
    assert_eq!(mode(&home.file("api.token")), 0o600);
}
