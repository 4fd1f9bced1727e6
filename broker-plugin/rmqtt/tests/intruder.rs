//! The intruder's whole script against one node: nothing gets through. Nor does who goes around the front.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use fleetkey_broker_rmqtt::{Limits, Node, NodeConfig};
use fleetkey_identity::tls::server_config;
use fleetkey_identity::{IdentityKey, Revocations, Role};
use fleetkey_intruder::{Cast, Level, Target};
use fleetkey_policy::{CellAccess, PolicyHandle, PolicyState, PolicyUpdate};
use tokio::runtime::Runtime;

struct Stage {
    cast: Cast,
    runtime: Runtime,
    node: Node,
}

fn stage() -> Stage {
    let cast = Cast::new().unwrap();
    let policy = PolicyHandle::new(PolicyState::new(cast.fleet, CellAccess::Members));
    let cells = BTreeMap::from([
        (cast.cell, BTreeSet::from([cast.intruder, cast.victim])),
        (cast.other_cell, BTreeSet::from([cast.victim])),
    ]);
    let revoked = BTreeSet::from([cast.revoked]);
    policy.apply(PolicyUpdate::Snapshot { sequence: 1, revoked, cells }).unwrap();
    let papers = cast.papers(&Role::Broker).unwrap();
    let key = IdentityKey::from_pkcs8_pem(&papers.key_pem).unwrap();
    let tls = server_config(&papers.chain, &key, &cast.roots().unwrap()).unwrap();
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    let config = NodeConfig {
        fleet: cast.fleet,
        listen,
        tls,
        limits: Limits::default(),
        cluster: None,
        revocations: Revocations::default(),
    };
    let runtime = Runtime::new().unwrap();
    let node = runtime.block_on(Node::start(config, policy)).unwrap();
    Stage { cast, runtime, node }
}

#[test]
fn the_intruder_gets_nothing() {
    let Stage { cast, runtime, node } = stage();
    let target =
        Target { address: node.local_addrs()[0], settle: Duration::from_millis(50), has_open_cells: false };
    for level in [Level::V5, Level::V4] {
        let report = fleetkey_intruder::run(&target, level, &cast).unwrap();
        assert!(report.got_through.is_empty(), "{level:?}: {:#?}", report.got_through);
        assert!(report.tried.len() >= 70, "{} attempts", report.tried.len());
    }
    runtime.block_on(node.shutdown());
}

#[test]
fn who_goes_around_the_front_is_not_let_in() {
    let Stage { cast, runtime, node } = stage();
    for client_id in [cast.victim.to_string(), "coordinator-1".to_owned()] {
        let mut stream = TcpStream::connect(node.inner_addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut body = b"\x00\x04MQTT\x04\x02\x00\x3c".to_vec();
        body.extend(u16::try_from(client_id.len()).unwrap().to_be_bytes());
        body.extend(client_id.as_bytes());
        let mut packet = vec![0x10, u8::try_from(body.len()).unwrap()];
        packet.extend(body);
        stream.write_all(&packet).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, [0x20, 2, 0, 5], "{client_id}: not authorised, and closed");
    }
    runtime.block_on(node.shutdown());
}
