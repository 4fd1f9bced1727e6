//! The intruder's whole script against the embedded broker: nothing gets through.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fleetkey_broker::policy::{CellAccess, PolicyHandle, PolicyState, PolicyUpdate};
use fleetkey_broker::{Broker, BrokerConfig, FanOutKind, Listener};
use fleetkey_identity::tls::server_config;
use fleetkey_identity::{IdentityKey, Role};
use fleetkey_intruder::{Cast, Level, Target};

#[test]
fn the_intruder_gets_nothing() {
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
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (fan_out, level) in [(FanOutKind::ExactMap, Level::V5), (FanOutKind::Router, Level::V4)] {
        let mut config =
            BrokerConfig::new(cast.fleet).listen(Listener::tls("127.0.0.1:0".parse().unwrap(), tls.clone()));
        config.fan_out = fan_out;
        let _guard = runtime.enter();
        let broker = Broker::start(config, policy.clone()).unwrap();
        let target = Target {
            address: broker.local_addrs()[0],
            settle: Duration::from_millis(20),
            has_open_cells: false,
        };
        let report = fleetkey_intruder::run(&target, level, &cast).unwrap();
        assert!(report.got_through.is_empty(), "{fan_out:?} {level:?}: {:#?}", report.got_through);
        assert!(report.tried.len() >= 70, "{} attempts", report.tried.len());
    }
}
