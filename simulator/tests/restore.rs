//! A coordinator is lost and restored from a backup while its devices stay connected: on a real broker, a real database
//! and real agents.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fleetkey_agent::{AgentHandle, AgentSetup, MemoryStore};
use fleetkey_agent_core::AgentConfig;
use fleetkey_broker::{Broker, BrokerConfig, Listener};
use fleetkey_coordinator::config::Config;
use fleetkey_coordinator::{
    Fleet, PolicyFeed, RestoreDone, RestoreError, RestoreFrom, RestoreOptions, Service, ServiceConfig,
    ServiceHandle, SharedStore, SqliteStore, StoreReader, mqtt_options, restore, seal_backup, unix_seconds,
    write_private,
};
use fleetkey_coordinator_core::backup::Backup;
use fleetkey_coordinator_core::doctor::{About, Severity, examine};
use fleetkey_coordinator_core::{Coordinator, Policy, Store as _, Timing};
use fleetkey_identity::chain_to_pem;
use fleetkey_mqtt::BrokerUrl;
use fleetkey_policy::{CellAccess, PolicyHandle, PolicyState};
use fleetkey_sim::fleet::until;
use fleetkey_vault::MasterKey;
use fleetkey_wire::{DeviceId, FleetId, GroupId, KeyEpoch};
use rand_core::OsRng;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// The coordinator's files, and a broker that outlives it.
struct Place {
    directory: TempDir,
    fleet: Fleet,
    master: MasterKey,
    url: BrokerUrl,
    broker: Broker,
}

impl Place {
    fn new() -> Self {
        let fleet = Fleet::create(FleetId::random(&mut OsRng), &[], unix_seconds(), &mut OsRng)
            .expect("identities can be made");
        let directory = tempfile::tempdir().expect("there is room for a directory");
        let policy = PolicyHandle::new(PolicyState::new(fleet.id(), CellAccess::AnyDevice));
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = BrokerConfig::new(fleet.id()).listen(Listener::insecure_loopback(address));
        let broker = Broker::start(config, policy).expect("the broker starts");
        let port = broker.local_addrs()[0].port();
        let url = format!("mqtt://127.0.0.1:{port}").parse().expect("it is an address");
        let place = Self { directory, fleet, master: MasterKey::generate(&mut OsRng), url, broker };
        let write = |name: &str, text: &str| {
            write_private(&place.file(name), text.as_bytes(), false).expect("a file can be written");
        };
        write("fleetkey.toml", "");
        write("master.key", &place.master.to_hex());
        write("fleet-roots.pem", &place.fleet.roots().to_pem());
        write("coordinator.crt", &chain_to_pem(&place.fleet.coordinator.chain));
        write("coordinator.key", &place.fleet.coordinator.key.to_pkcs8_pem());
        let rows = Coordinator::initial_rows(unix_seconds());
        SqliteStore::create(&place.database(), &place.master, &rows).expect("a database can be made");
        place
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn database(&self) -> PathBuf {
        self.file("fleetkey.db")
    }

    fn open(&self) -> SqliteStore {
        SqliteStore::open(&self.database(), &self.master).expect("nobody else has it")
    }

    async fn serve(&self) -> (Service, StoreReader) {
        let store = SharedStore::new(self.open());
        let reader = store.reader();
        let service = Service::start(ServiceConfig {
            setup: self.fleet.setup(Timing::default()),
            store: Box::new(store),
            mqtt: mqtt_options(self.url.clone(), None, self.fleet.id()),
            policy_feed: PolicyFeed::new(),
        })
        .await
        .expect("the coordinator starts");
        service.handle().connected().await;
        (service, reader)
    }

    async fn device(&self, coordinator: &ServiceHandle, name: &str) -> AgentHandle {
        let id = DeviceId::random(&mut OsRng);
        let party = self.fleet.device(id, unix_seconds(), &mut OsRng);
        coordinator.enroll_device(id, name, party.key.public_key()).await.expect("it is new");
        let config = AgentConfig {
            fleet: self.fleet.id(),
            device: id,
            identity: party.key,
            roots: self.fleet.roots().clone(),
            coordinator_chain: self.fleet.coordinator.chain.clone(),
        };
        let mqtt = fleetkey_mqtt::Options::new(self.url.clone(), id.to_string());
        let setup = AgentSetup::new(config, Box::new(MemoryStore::default()), mqtt);
        fleetkey_agent::spawn(setup).expect("an agent starts")
    }

    fn restore(&self, from: &Path, accept: bool) -> Result<RestoreDone, RestoreError> {
        restore(RestoreOptions {
            config: Config::load(&self.file("fleetkey.toml"), Vec::new()).expect("it is ours"),
            from: RestoreFrom::File(from.to_owned()),
            replace: true,
            audits: Vec::new(),
            old_databases: Vec::new(),
            accept_unknown_revocations: accept,
        })
    }
}

async fn all_confirmed(coordinator: &ServiceHandle, group: GroupId, members: usize) -> bool {
    let deadline = Instant::now() + PATIENCE;
    until(deadline, async || {
        let status = coordinator.group_status(group).await?;
        Ok(status.confirmed == members && status.members == members && status.wanted == 0)
    })
    .await
    .expect("the coordinator answers")
}

/// The key epoch that a device seals with.
async fn send(agent: &AgentHandle, group: GroupId) -> Option<KeyEpoch> {
    let status = agent.status().await.expect("it runs");
    status.groups.iter().find(|of| of.group == group).map(|of| of.send)
}

#[tokio::test(flavor = "multi_thread")]
async fn connected_devices_come_back_to_a_restored_coordinator_and_the_revoked_stay_out() {
    let place = Place::new();
    let (service, reader) = place.serve().await;
    let coordinator = service.handle();
    let mut agents = Vec::new();
    for n in 0..6 {
        agents.push(place.device(&coordinator, &format!("pump-{n}")).await);
    }
    let group = coordinator.create_group("pumps", Policy::default()).await.expect("it is new");
    let ids: Vec<DeviceId> = agents.iter().map(AgentHandle::device).collect();
    coordinator.add_members(group, ids.clone()).await.expect("they are enrolled");
    assert!(all_confirmed(&coordinator, group, 6).await);

    let backup = reader
        .read(|store| Backup::of_store(store, unix_seconds()))
        .expect("it runs")
        .expect("the database is sound");
    let file = place.file("monday");
    let sealed = seal_backup(&place.master, place.fleet.id(), &backup).expect("it is small");
    write_private(&file, &sealed, false).expect("it can be written");
    // What the backup does not know: a revocation, and keys.
    coordinator.revoke(vec![ids[0]], "stolen").await.expect("it is enrolled");
    coordinator.rekey(group).await.expect("it can be rekeyed");
    assert!(all_confirmed(&coordinator, group, 5).await);
    let former = send(&agents[1], group).await.expect("it is in");
    service.kill().await;

    let done = match place.restore(&file, false) {
        Ok(done) => done,
        // The old database's last sign of life was in another second than now.
        Err(RestoreError::UnknownRevocations { .. }) => place.restore(&file, true).expect("it is accepted"),
        Err(other) => panic!("{other}"),
    };
    assert_eq!((done.revoked.as_slice(), done.wanted), (&ids[..1], 5));
    assert!(done.set_aside.is_some_and(|path| path.exists()));

    let (service, _reader) = place.serve().await;
    let coordinator = service.handle();
    assert!(all_confirmed(&coordinator, group, 5).await, "the devices were connected all the time");
    for agent in &agents[1..] {
        let now = send(agent, group).await.expect("it is in");
        assert!(now.incarnation() == done.incarnation && now > former, "{now} after {former}");
        let alarms = agent.status().await.expect("it runs").alarms;
        assert!(alarms.is_empty(), "{alarms:?}");
    }
    assert!(send(&agents[0], group).await.is_none_or(|send| send.incarnation() < done.incarnation));
    let status = coordinator.status().await.expect("it runs");
    assert_eq!((status.members, status.wanted, status.revoked), (5, 0, 1));
    assert!(!status.superseded && status.restored.is_some());

    for agent in &agents {
        agent.stop().await;
    }
    service.shutdown().await;
    let about = About { fleet: place.fleet.id(), coordinator: place.fleet.coordinator.key.public_key() };
    let mut store = place.open();
    let found = examine(&mut store, &about, unix_seconds()).expect("the database is there");
    assert!(found.iter().all(|found| found.severity() == Severity::Notice), "{found:#?}");
    assert_eq!(store.count(fleetkey_coordinator_core::Table::Outbox).expect("it is there"), 0);
    place.broker.shutdown().await;
}
