//! A fleet on real parts: broker, coordinator, agents.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ValueEnum;
use fleetkey_agent::{AgentHandle, AgentSetup, MemoryStore, Traffic};
use fleetkey_agent_core::AgentConfig;
use fleetkey_broker::{Broker, BrokerConfig, FanOutKind, Listener};
use fleetkey_coordinator::{
    Fleet as Identities, PolicyFeed, Service, ServiceConfig, ServiceHandle, SqliteStore, mqtt_options,
    unix_seconds,
};
use fleetkey_coordinator_core::{Coordinator, Timing};
use fleetkey_identity::tls;
use fleetkey_mqtt::BrokerUrl;
use fleetkey_policy::{CellAccess, PolicyHandle, PolicyState};
use fleetkey_vault::MasterKey;
use fleetkey_wire::{DeviceId, FleetId};
use rand_core::OsRng;
use tempfile::TempDir;

use crate::outside::{Outside, PolicyServer};

/// What carries cell messages to members in the embedded broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum FanOut {
    /// A map from cell to sessions.
    #[default]
    ExactMap,
    /// The router of rumqttd.
    Router,
}

/// Which broker the fleet uses.
#[derive(Debug, Clone)]
pub enum BrokerChoice {
    /// The embedded one, over TLS.
    Embedded(FanOut),
    /// The one there, without TLS.
    Plain(BrokerUrl),
    /// One that knows this fleet, over TLS.
    Outside(Outside),
}

/// One device of the fleet.
#[derive(Debug)]
pub struct Device {
    /// Its running agent.
    pub agent: AgentHandle,
    /// Who it is.
    pub config: AgentConfig,
    /// What it has stored; a clone of it is the same store.
    pub store: MemoryStore,
}

impl Device {
    /// Its id.
    pub fn id(&self) -> DeviceId {
        self.config.device
    }

    /// What it has received and sent so far.
    pub fn traffic(&self) -> Traffic {
        self.agent.traffic()
    }
}

/// A running fleet.
#[derive(Debug)]
pub struct Fleet {
    identities: Identities,
    broker: Option<Broker>,
    urls: Vec<BrokerUrl>,
    with_tls: bool,
    service: Service,
    coordinator: ServiceHandle,
    devices: Vec<Device>,
    enrolled: usize,
    /// Tells brokers outside of the policy.
    _policy_server: Option<PolicyServer>,
    /// Holds the coordinator's database for as long as the fleet lives.
    _directory: TempDir,
}

impl Fleet {
    /// Starts broker and coordinator, without devices.
    ///
    /// # Errors
    /// What does not start, and why.
    pub async fn start(choice: &BrokerChoice) -> anyhow::Result<Self> {
        let identities = Identities::create(
            FleetId::random(&mut OsRng),
            &["localhost".to_owned(), "127.0.0.1".to_owned()],
            unix_seconds(),
            &mut OsRng,
        )
        .context("create the fleet's identities")?;
        let policy_feed = PolicyFeed::new();
        let (mut broker, mut policy_server) = (None, None);
        let urls = match choice {
            BrokerChoice::Embedded(fan_out) => {
                let (started, url) = start_broker(&identities, *fan_out, &policy_feed)?;
                broker = Some(started);
                vec![url]
            }
            BrokerChoice::Plain(url) => vec![url.clone()],
            BrokerChoice::Outside(outside) => {
                policy_server = Some(outside.let_in(&identities, &policy_feed).await?);
                outside.urls.clone()
            }
        };
        let with_tls = !matches!(choice, BrokerChoice::Plain(_));
        let (url, others) = ways(&urls, 0).context("there is no broker")?;
        let timing = Timing { hello_interval_seconds: 600, ..Timing::default() };
        let (service, directory) =
            start_coordinator(&identities, url, others, with_tls, timing, policy_feed).await?;
        let coordinator = service.handle();
        Ok(Self {
            identities,
            broker,
            urls,
            with_tls,
            service,
            coordinator,
            devices: Vec::new(),
            enrolled: 0,
            _policy_server: policy_server,
            _directory: directory,
        })
    }

    /// The way to give the coordinator commands.
    pub fn coordinator(&self) -> &ServiceHandle {
        &self.coordinator
    }

    /// The embedded broker, if there is one.
    pub fn broker(&self) -> Option<&Broker> {
        self.broker.as_ref()
    }

    /// Every device that was started and not set aside.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Sets devices aside, as revoked ones are.
    pub fn set_aside(&mut self, gone: &[DeviceId]) -> Vec<Device> {
        let (aside, rest) =
            std::mem::take(&mut self.devices).into_iter().partition(|d| gone.contains(&d.id()));
        self.devices = rest;
        aside
    }

    /// Enrols `count` more devices, in one transaction, and starts their agents.
    ///
    /// # Errors
    /// When the coordinator refuses, or an agent does not start.
    pub async fn add_devices(&mut self, count: usize) -> anyhow::Result<Vec<DeviceId>> {
        let now = unix_seconds();
        let mut parties = Vec::with_capacity(count);
        for _ in 0..count {
            let id = DeviceId::random(&mut OsRng);
            parties.push((id, self.identities.device(id, now, &mut OsRng)));
        }
        let first = self.enrolled;
        let enrolments: Vec<_> = parties
            .iter()
            .enumerate()
            .map(|(n, (id, party))| (*id, format!("sensor-{:05}", first + n), party.key.public_key()))
            .collect();
        self.enrolled += count;
        self.coordinator
            .decide(move |coordinator, now, _| {
                enrolments
                    .iter()
                    .try_for_each(|(id, name, key)| coordinator.enroll_device(*id, name, *key, now))
            })
            .await
            .context("enrol devices")?;
        let mut ids = Vec::with_capacity(count);
        for (n, (id, party)) in parties.into_iter().enumerate() {
            let tls = if self.with_tls {
                Some(tls::client_config(&party.chain, &party.key, self.identities.roots())?)
            } else {
                None
            };
            let config = AgentConfig {
                fleet: self.identities.id(),
                device: id,
                identity: party.key,
                roots: self.identities.roots().clone(),
                coordinator_chain: self.identities.coordinator.chain.clone(),
            };
            let store = MemoryStore::default();
            // Spread over the nodes of a cluster, each with its own next one.
            let (url, others) = ways(&self.urls, first + n).context("there is no broker")?;
            let mut mqtt = fleetkey_mqtt::Options::new(url, id.to_string());
            mqtt.others = others;
            mqtt.tls = tls;
            let mut setup = AgentSetup::new(config.clone(), Box::new(store.clone()), mqtt);
            setup.record = true;
            let agent = fleetkey_agent::spawn(setup).context("start an agent")?;
            self.devices.push(Device { agent, config, store });
            ids.push(id);
        }
        Ok(ids)
    }

    /// Ends everything, in order.
    pub async fn shutdown(self) {
        for device in &self.devices {
            device.agent.stop().await;
        }
        self.service.shutdown().await;
        if let Some(broker) = self.broker {
            broker.shutdown().await;
        }
    }
}

/// Starts a fleet's coordinator on a new database, which lives as long as its directory, and waits until it is connected.
pub(crate) async fn start_coordinator(
    identities: &Identities,
    url: BrokerUrl,
    others: Vec<BrokerUrl>,
    with_tls: bool,
    timing: Timing,
    policy_feed: PolicyFeed,
) -> anyhow::Result<(Service, TempDir)> {
    let directory = tempfile::tempdir().context("create a directory for the database")?;
    let store = SqliteStore::create(
        &directory.path().join("coordinator.db"),
        &MasterKey::generate(&mut OsRng),
        &Coordinator::initial_rows(unix_seconds()),
    )
    .context("create the database")?;
    let party = &identities.coordinator;
    let tls = with_tls.then(|| tls::client_config(&party.chain, &party.key, identities.roots()));
    let mut mqtt = mqtt_options(url.clone(), tls.transpose()?, identities.id());
    mqtt.others = others;
    let config = ServiceConfig { setup: identities.setup(timing), store: Box::new(store), mqtt, policy_feed };
    let service = Service::start(config).await.context("start the coordinator")?;
    tokio::time::timeout(Duration::from_secs(15), service.handle().connected())
        .await
        .ok()
        .with_context(|| format!("the coordinator cannot reach the broker at {url}: is it running?"))?;
    Ok((service, directory))
}

/// The ways to the broker, beginning with another one for each `turn`.
fn ways(urls: &[BrokerUrl], turn: usize) -> Option<(BrokerUrl, Vec<BrokerUrl>)> {
    let mut urls = urls.to_vec();
    let count = urls.len().max(1);
    urls.rotate_left(turn % count);
    let mut urls = urls.into_iter();
    Some((urls.next()?, urls.collect()))
}

fn start_broker(
    identities: &Identities,
    fan_out: FanOut,
    feed: &PolicyFeed,
) -> anyhow::Result<(Broker, BrokerUrl)> {
    let policy = PolicyHandle::new(PolicyState::new(identities.id(), CellAccess::Members));
    let party = &identities.broker;
    let tls = tls::server_config(&party.chain, &party.key, identities.roots())?;
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = BrokerConfig::new(identities.id()).listen(Listener::tls(address, tls));
    config.fan_out = match fan_out {
        FanOut::ExactMap => FanOutKind::ExactMap,
        FanOut::Router => FanOutKind::Router,
    };
    let broker = Broker::start(config, policy.clone()).context("start the broker")?;
    feed.listen(move |update| {
        // Out of step means that an update was lost, and this feed cannot lose one: it calls in order.
        if let Err(error) = policy.apply(update.clone()) {
            tracing::error!(%error, "policy");
        }
    });
    let port = broker.local_addrs().first().context("the broker listens nowhere")?.port();
    let url = format!("mqtts://127.0.0.1:{port}").parse()?;
    Ok((broker, url))
}

/// Waits until `done` says so, asking it again and again, or gives up at `deadline`. What it said last.
pub async fn until(
    deadline: Instant,
    mut done: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<bool> {
    const PAUSE: Duration = Duration::from_millis(20);
    loop {
        if done().await? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(PAUSE).await;
    }
}
