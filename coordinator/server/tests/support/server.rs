//! The HTTP API of a coordinator without a broker, on a real socket.

#![allow(dead_code, unreachable_pub, reason = "every test file uses a part of it")]

use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use fleetkey_coordinator::api::Bundle;
use fleetkey_coordinator::http::{Api, Keep, Token, router};
use fleetkey_coordinator::{
    Authority, Fleet, PolicyFeed, Service, ServiceConfig, SharedStore, mqtt_options, unix_seconds,
};
use fleetkey_coordinator_core::{Coordinator, MemoryStore, Store, Timing};
use fleetkey_vault::MasterKey;
use fleetkey_wire::FleetId;
use rand_core::OsRng;
use serde_json::{Value, json};

pub struct Server {
    pub runtime: tokio::runtime::Runtime,
    pub address: SocketAddr,
    pub fleet: Fleet,
    pub operator: Token,
    pub broker: Token,
    pub service: Option<Service>,
}

impl Server {
    /// An API without a broker behind it: port 9 discards.
    pub fn start() -> Self {
        Self::start_keeping(false)
    }

    /// One that can read its database too.
    pub fn start_with_keep() -> Self {
        Self::start_keeping(true)
    }

    pub fn start_keeping(keeps: bool) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let fleet = Fleet::create(FleetId::random(&mut OsRng), &[], unix_seconds(), &mut OsRng).unwrap();
        let (operator, broker) = (Token::generate(&mut OsRng), Token::generate(&mut OsRng));
        let mut store = MemoryStore::default();
        store.commit(&Coordinator::initial_rows(unix_seconds())).unwrap();
        let store = SharedStore::new(store);
        let master = MasterKey::generate(&mut OsRng);
        let keep = Keep::new(store.reader(), &master, fleet.id(), fleet.roots(), &fleet.coordinator);
        let ca = fleetkey_identity::FleetCa::from_pem(&fleet.ca().to_pem().unwrap()).unwrap();
        let authority = Authority::new(
            ca,
            fleet.roots().clone(),
            fleet.coordinator.chain.clone(),
            "mqtts://broker.example:8883".into(),
        );
        let (address, service) = runtime.block_on(async {
            let service = Service::start(ServiceConfig {
                setup: fleet.setup(Timing::default()),
                store: Box::new(store),
                mqtt: mqtt_options("mqtt://127.0.0.1:9".parse().unwrap(), None, fleet.id()),
                policy_feed: PolicyFeed::new(),
            })
            .await
            .unwrap();
            let api = Api {
                service: service.handle(),
                authority: Some(std::sync::Arc::new(authority)),
                lists: None,
                operator_token: operator.clone(),
                broker_token: broker.clone(),
                metrics: None,
                keep: keeps.then_some(keep),
            };
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move { axum::serve(listener, router(api)).await });
            (address, service)
        });
        Self { runtime, address, fleet, operator, broker, service: Some(service) }
    }

    pub fn ask(&self, method: &str, path: &str, token: Option<&str>, body: Option<&str>) -> (u16, String) {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
        let mut request =
            ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let mut answer = match body {
            Some(body) => {
                let request = request.header("content-type", "application/json").body(body.to_owned());
                agent.run(request.unwrap()).unwrap()
            }
            None => agent.run(request.body(()).unwrap()).unwrap(),
        };
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    }

    pub fn bearer(&self) -> String {
        format!("Bearer {}", self.operator.reveal())
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        let (status, text) = self.ask("GET", path, Some(&self.bearer()), None);
        (status, serde_json::from_str(&text).unwrap())
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.ask("POST", path, Some(&self.bearer()), Some(&body.to_string()));
        (status, serde_json::from_str(&text).unwrap())
    }

    pub fn provision(&self, name: &str) -> Bundle {
        let (status, bundle) = self.post("/v1/devices", &json!({ "name": name }));
        assert_eq!(status, 201, "{bundle}");
        serde_json::from_value(bundle).unwrap()
    }

    /// Opens the policy stream and leaves it open.
    pub fn policy(&self, token: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(
            stream,
            "GET /v1/policy HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n"
        )
        .unwrap();
        BufReader::new(stream)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(service) = self.service.take() {
            self.runtime.block_on(service.kill());
        }
    }
}
