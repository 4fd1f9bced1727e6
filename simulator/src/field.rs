//! A fleet in several processes: the real coordinator here, on a real database; brokers and devices in processes of their own.
//!
//! One process may open so many files, and no more. Where there are more connections than that, a central broker has edges, each
//! with a process of devices. Leaves to `field/brokers` who tells brokers of the policy, to `field/power`
//! devices without power or without anything to do, and to others what is done with a field, and what is measured.

mod brokers;
mod power;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fleetkey_coordinator::{Fleet as Identities, PolicyFeed, Service, ServiceHandle, unix_seconds};
use fleetkey_coordinator_core::{Policy, Timing};
use fleetkey_identity::{Role, Validity, chain_to_pem, tls};
use fleetkey_mqtt::BrokerUrl;
use fleetkey_swarm::{Route, Tls};
use fleetkey_wire::{DeviceId, FleetId, GroupId};
use rand_core::OsRng;
use tempfile::TempDir;

use crate::fleet::start_coordinator;
use crate::parts::{DevicesAnswer, DevicesBegin, DevicesOrder, Made, Part, Seen, Usage, Which, first_source};
use crate::progress::Progress;
use brokers::{BrokerPart, Place};

/// What the broker's certificate is for.
const BROKER_NAME: &str = "localhost";
/// Open files of a process of devices, beside its connections.
const SPARE_FILES: u64 = 100;
/// Devices that are made, and enrolled, at once.
const AT_ONCE: usize = 2_000;
/// Within this time a broker that was ended has let go of its port.
const LETS_GO: Duration = Duration::from_secs(5);

/// Which broker, and how it is spoken to.
#[derive(Debug, Clone)]
pub enum FieldBroker {
    /// The embedded one, in a process of its own.
    Embedded {
        /// Over TLS, with certificates; else plain TCP on the loopback interface.
        tls: bool,
        /// Whether rumqttd's router carries cell messages, instead of the map.
        router: bool,
        /// How many edges it has, each in a process of its own; `None`: as many as the limit on open files asks for.
        edges: Option<usize>,
    },
    /// The one there, over plain TCP.
    Plain(BrokerUrl),
}

/// What a field is started with.
#[derive(Debug, Clone)]
pub struct FieldOptions {
    /// The broker.
    pub broker: FieldBroker,
    /// The most devices that there will be.
    pub devices: usize,
    /// The coordinator's patience.
    pub timing: Timing,
    /// Threads of each process of devices.
    pub threads: usize,
    /// Connections that are made at once on each of them.
    pub max_connecting: usize,
    /// Devices on one connection, as a gateway has them; 1: each has its own.
    pub devices_per_connection: usize,
}

impl FieldOptions {
    /// So many devices at this broker, with a connection each.
    pub fn new(broker: FieldBroker, devices: usize, timing: Timing) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { broker, devices, timing, threads, max_connecting: 256, devices_per_connection: 1 }
    }

    /// Connections of devices.
    pub const fn connections(&self) -> usize {
        self.devices.div_ceil(self.devices_per_connection)
    }

    /// How many edges there are, and how many devices are in one process, when one may have so many connections.
    ///
    /// # Errors
    /// When these edges cannot hold them.
    fn spread(&self, per_process: usize) -> anyhow::Result<(usize, usize)> {
        let connections = self.connections();
        let needed = connections.div_ceil(per_process);
        let edges = match self.broker {
            FieldBroker::Plain(_) => 0,
            FieldBroker::Embedded { edges: None, .. } => {
                if needed > 1 {
                    needed
                } else {
                    0
                }
            }
            FieldBroker::Embedded { edges: Some(edges), .. } => {
                anyhow::ensure!(
                    edges >= needed || needed <= 1,
                    "{connections} connections take {needed} edges: one process may have {per_process}"
                );
                edges
            }
        };
        let processes = edges.max(needed).max(1);
        let connections_each = connections.div_ceil(processes);
        Ok((edges, (connections_each * self.devices_per_connection).max(1)))
    }
}

/// What the three parts have cost so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// The process of the coordinator, which also measures.
    pub coordinator: Usage,
    /// Of that, the deciding thread, in microseconds.
    pub deciding_cpu_microseconds: u64,
    /// The broker, with its edges; none when it is not ours.
    pub broker: Option<Usage>,
    /// The devices, all processes together.
    pub devices: Usage,
}

/// How the field stands.
#[derive(Debug, Clone, Default)]
pub struct Looked {
    /// What it has cost.
    pub spent: Spent,
    /// The devices.
    pub devices: Seen,
}

/// A running fleet.
#[derive(Debug)]
pub struct Field {
    identities: Identities,
    /// The broker that the coordinator is connected to, and its edges; none when it is not ours, or has ended.
    brokers: Vec<BrokerPart>,
    address: SocketAddr,
    edge_addresses: Vec<SocketAddr>,
    is_tls: bool,
    service: Option<Service>,
    coordinator: ServiceHandle,
    devices: Vec<Part>,
    per_process: usize,
    options: FieldOptions,
    ids: Vec<DeviceId>,
    feed: PolicyFeed,
    /// What brokers have cost that are no more, in microseconds.
    former_brokers_cpu: u64,
    _directory: TempDir,
}

impl Field {
    /// Starts broker and coordinator, without devices.
    ///
    /// # Errors
    /// What does not start, and why.
    pub async fn start(options: FieldOptions) -> anyhow::Result<Self> {
        let names = [BROKER_NAME.to_owned(), "127.0.0.1".to_owned()];
        let identities = Identities::create(FleetId::random(&mut OsRng), &names, unix_seconds(), &mut OsRng)
            .context("create the fleet's identities")?;
        let feed = PolicyFeed::new();
        let is_tls = matches!(options.broker, FieldBroker::Embedded { tls: true, .. });
        let allowed = rlimit::increase_nofile_limit(u64::MAX).context("read the limit on open files")?;
        let most = usize::try_from(allowed.saturating_sub(SPARE_FILES))?.max(1);
        let (edges, per_process) = options.spread(most)?;
        let mut brokers = Vec::new();
        let address = match &options.broker {
            FieldBroker::Embedded { .. } => {
                let at = Place { address: None, above: None };
                let (broker, address) = BrokerPart::start(&identities, &options, edges, at, &feed).await?;
                brokers.push(broker);
                address
            }
            FieldBroker::Plain(url) => resolve(url).await?,
        };
        let scheme = if is_tls { "mqtts" } else { "mqtt" };
        let host = if is_tls { BROKER_NAME.to_owned() } else { address.ip().to_string() };
        let url: BrokerUrl = format!("{scheme}://{host}:{}", address.port()).parse()?;
        let (service, directory) =
            start_coordinator(&identities, url, Vec::new(), is_tls, options.timing, feed.clone()).await?;
        let coordinator = service.handle();
        let mut edge_addresses = Vec::new();
        for _ in 0..edges {
            let at = Place { address: None, above: Some(address) };
            let (broker, address) = BrokerPart::start(&identities, &options, edges, at, &feed).await?;
            brokers.push(broker);
            edge_addresses.push(address);
        }
        Ok(Self {
            identities,
            brokers,
            address,
            edge_addresses,
            is_tls,
            service: Some(service),
            coordinator,
            devices: Vec::new(),
            per_process,
            options,
            ids: Vec::new(),
            feed,
            former_brokers_cpu: 0,
            _directory: directory,
        })
    }

    /// The way to give the coordinator commands.
    pub fn coordinator(&self) -> &ServiceHandle {
        &self.coordinator
    }

    /// The fleet.
    pub fn id(&self) -> FleetId {
        self.identities.id()
    }

    /// Every device that was made, in that order.
    pub fn ids(&self) -> &[DeviceId] {
        &self.ids
    }

    /// Processes that are devices.
    pub fn processes(&self) -> usize {
        self.devices.len()
    }

    /// Edges of the broker.
    pub fn edges(&self) -> usize {
        self.edge_addresses.len()
    }

    /// Enrols `count` more devices, and lets them connect.
    ///
    /// # Errors
    /// When the coordinator refuses, or a process does not start.
    pub async fn add_devices(&mut self, count: usize) -> anyhow::Result<Vec<DeviceId>> {
        let progress = Progress::start(format!("enrol {count}"), count);
        let added = self.add(count, |done| progress.set(done)).await?;
        progress.finish(count);
        Ok(added)
    }

    /// The same; tells how many are enrolled so far.
    ///
    /// # Errors
    /// When the coordinator refuses, or a process does not start.
    pub async fn add(&mut self, count: usize, tell: impl Fn(usize)) -> anyhow::Result<Vec<DeviceId>> {
        let first = self.ids.len();
        while self.ids.len() < first + count {
            let within = self.ids.len() % self.per_process;
            if within == 0 {
                self.devices.push(self.start_devices().await?);
            }
            let batch = AT_ONCE.min(first + count - self.ids.len()).min(self.per_process - within);
            self.enrol(batch).await?;
            tell(self.ids.len() - first);
            if self.ids.len().is_multiple_of(self.per_process) {
                self.connect_last(first).await?;
            }
        }
        if !self.ids.len().is_multiple_of(self.per_process) {
            self.connect_last(first).await?;
        }
        Ok(self.ids[first..].to_vec())
    }

    /// Those of the last process that came after `first` devices begin to connect: while others are made, and not all at once.
    async fn connect_last(&mut self, first: usize) -> anyhow::Result<()> {
        let before = self.devices.len().saturating_sub(1) * self.per_process;
        let part = self.devices.last_mut().context("there is no process for devices")?;
        let which = Which::Range(first.saturating_sub(before), self.per_process);
        done(part.ask(&DevicesOrder::Connect(which)).await?)
    }

    /// Which of these devices the coordinator has answered, on the connections that they have now, and how long ago.
    ///
    /// # Errors
    /// When a process has ended.
    pub async fn answered(&mut self, ids: &[DeviceId]) -> anyhow::Result<Vec<(DeviceId, Duration)>> {
        let mut all = Vec::new();
        for part in &mut self.devices {
            let DevicesAnswer::Answered(ids) = part.ask(&DevicesOrder::WhoIsAnswered(ids.to_vec())).await?
            else {
                anyhow::bail!("the devices answer something else");
            };
            all.extend(ids.into_iter().map(|(id, ago)| (id, Duration::from_micros(ago))));
        }
        Ok(all)
    }

    /// Ends the broker and its edges, with all their sessions.
    ///
    /// # Errors
    /// When it is not ours.
    pub async fn end_broker(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.brokers.is_empty(), "this broker is not ours to end, or has ended");
        for broker in std::mem::take(&mut self.brokers) {
            self.former_brokers_cpu += broker.look().await?.usage.cpu_microseconds;
            broker.end().await;
        }
        Ok(())
    }

    /// Starts brokers where those were that have ended.
    ///
    /// # Errors
    /// When they do not start.
    pub async fn restart_broker(&mut self) -> anyhow::Result<()> {
        anyhow::ensure!(
            matches!(self.options.broker, FieldBroker::Embedded { .. }),
            "this broker is not ours to start"
        );
        let central = Place { address: Some(self.address), above: None };
        let edge = |address: &SocketAddr| Place { address: Some(*address), above: Some(self.address) };
        for place in std::iter::once(central).chain(self.edge_addresses.iter().map(edge)) {
            let started = Instant::now();
            let broker = loop {
                match BrokerPart::start(&self.identities, &self.options, self.edges(), place, &self.feed)
                    .await
                {
                    Ok((broker, _)) => break broker,
                    // The one before may still be letting go of its port.
                    Err(_) if started.elapsed() < LETS_GO => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => return Err(error),
                }
            };
            self.brokers.push(broker);
        }
        Ok(())
    }

    async fn start_devices(&self) -> anyhow::Result<Part> {
        let number = self.devices.len();
        let from = (!self.is_tls && self.address.ip().is_loopback()).then(|| first_source(number));
        let edge = self.edge_addresses.iter().cycle().nth(number);
        let per_connection = self.options.devices_per_connection;
        let begin = DevicesBegin {
            fleet: self.id(),
            roots: self.identities.roots().to_pem(),
            coordinator: chain_to_pem(&self.identities.coordinator.chain),
            broker: edge.copied().unwrap_or(self.address),
            broker_name: self.is_tls.then(|| BROKER_NAME.to_owned()),
            from,
            threads: (self.options.threads / self.edges().max(1)).max(1),
            max_connecting: self.options.max_connecting,
            per_connection,
            relay: (self.is_tls && per_connection > 1).then(|| brokers::papers(&self.identities)),
        };
        Ok(Part::start("devices", &begin).await?)
    }

    async fn enrol(&mut self, count: usize) -> anyhow::Result<()> {
        let part = self.devices.last_mut().context("there is no process for devices")?;
        let DevicesAnswer::Made(made) = part.ask(&DevicesOrder::Make(count)).await? else {
            anyhow::bail!("the devices answer something else");
        };
        // What is behind a gateway shows no certificate of its own to the broker.
        if self.is_tls && self.options.devices_per_connection == 1 {
            let valid = Validity::without_end(i64::try_from(unix_seconds())?);
            let chain = |made: &Made| {
                let role = Role::Device(made.id);
                let ca = self.identities.ca();
                anyhow::Ok(chain_to_pem(&ca.chain(ca.issue(&role, &made.public_key, &[], valid)?)))
            };
            let chains = made.iter().map(chain).collect::<Result<Vec<_>, _>>()?;
            done(part.ask(&DevicesOrder::Certify(chains)).await?)?;
        }
        let first = self.ids.len();
        self.ids.extend(made.iter().map(|made| made.id));
        self.coordinator
            .decide(move |coordinator, now, _| {
                made.iter().enumerate().try_for_each(|(number, made)| {
                    let name = format!("sensor-{:06}", first + number);
                    coordinator.enroll_device(made.id, &name, made.public_key, now)
                })
            })
            .await
            .context("enrol devices")?;
        Ok(())
    }

    /// Waits until the coordinator has answered every device that is not in `gone`.
    ///
    /// # Errors
    /// When it takes too long.
    pub async fn wait_until_answered(&self, gone: usize) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let count = self.ids.len() - gone;
        let progress = Progress::start(format!("connect {count}"), count);
        let patience = Duration::from_secs(60) + Duration::from_millis(20) * u32::try_from(count)?;
        loop {
            let asked = Instant::now();
            let answered = self.coordinator.query(|coordinator, now| coordinator.status(now).online).await?;
            progress.set(answered);
            if answered >= count {
                progress.finish(count);
                return Ok(started.elapsed());
            }
            anyhow::ensure!(
                started.elapsed() < patience,
                "{answered} of {count} devices have an answer of the coordinator"
            );
            tokio::time::sleep(pause_after(asked)).await;
        }
    }

    /// A group for all of them.
    ///
    /// # Errors
    /// When the coordinator refuses.
    pub async fn create_group(&self, policy: Policy) -> anyhow::Result<GroupId> {
        self.coordinator.create_group("meters", policy).await.context("create the group")
    }

    /// How everything stands, and what it has cost.
    ///
    /// # Errors
    /// When a part has ended.
    pub async fn look(&mut self) -> anyhow::Result<Looked> {
        let mut looked = Looked::default();
        for part in &mut self.devices {
            let DevicesAnswer::Seen(seen) = part.ask(&DevicesOrder::Look).await? else {
                anyhow::bail!("the devices answer something else");
            };
            looked.devices += *seen;
        }
        looked.spent.devices = looked.devices.usage;
        for broker in &self.brokers {
            let usage = looked.spent.broker.get_or_insert_default();
            *usage += broker.look().await?.usage;
        }
        if let Some(usage) = &mut looked.spent.broker {
            usage.cpu_microseconds += self.former_brokers_cpu;
        }
        looked.spent.coordinator = Usage::of_this_process();
        if self.service.is_some() {
            let stats = self.coordinator.stats().await?;
            looked.spent.deciding_cpu_microseconds = stats.cpu_microseconds.unwrap_or(0);
        }
        Ok(looked)
    }

    /// Pulls these devices' cables, or plugs them in again.
    ///
    /// # Errors
    /// When a process has ended.
    pub async fn plug(&mut self, ids: &[DeviceId], is_in: bool) -> anyhow::Result<()> {
        for part in &mut self.devices {
            let which = Which::Ids(ids.to_vec());
            let order = if is_in { DevicesOrder::Connect(which) } else { DevicesOrder::Disconnect(which) };
            done(part.ask(&order).await?)?;
        }
        Ok(())
    }

    /// From now on devices answer each message of a cell with so many bytes, without a look at it; or look again.
    ///
    /// # Errors
    /// When a process has ended.
    pub async fn echo(&mut self, reply_bytes: Option<usize>) -> anyhow::Result<()> {
        for part in &mut self.devices {
            done(part.ask(&DevicesOrder::Echo(reply_bytes)).await?)?;
        }
        Ok(())
    }

    /// Ends the coordinator; broker, devices and their connections stay.
    pub async fn end_coordinator(&mut self) {
        if let Some(service) = self.service.take() {
            service.shutdown().await;
        }
    }

    /// How a coordinator connects, for somebody who takes its place.
    ///
    /// # Errors
    /// When its papers are none.
    pub fn coordinator_route(&self) -> anyhow::Result<Route> {
        let party = &self.identities.coordinator;
        let tls = if self.is_tls {
            let config = tls::client_config(&party.chain, &party.key, self.identities.roots())?;
            Some(Tls { config, name: BROKER_NAME.try_into()? })
        } else {
            None
        };
        Ok(Route { broker: self.address, from: None, tls })
    }

    /// Ends everything.
    pub async fn shutdown(mut self) {
        self.end_coordinator().await;
        for part in self.devices {
            part.end().await;
        }
    }
}

/// How long to leave the coordinator alone after a question that was asked then: it looks at every device for it.
pub(crate) fn pause_after(asked: Instant) -> Duration {
    (asked.elapsed() * 10).clamp(Duration::from_millis(20), Duration::from_secs(2))
}

fn done(answer: DevicesAnswer) -> anyhow::Result<()> {
    anyhow::ensure!(matches!(answer, DevicesAnswer::Done), "the devices answer something else");
    Ok(())
}

async fn resolve(url: &BrokerUrl) -> anyhow::Result<SocketAddr> {
    anyhow::ensure!(!url.is_tls(), "{url}: a broker with TLS does not know this fleet");
    let mut found = tokio::net::lookup_host((url.host(), url.port()))
        .await
        .with_context(|| format!("look up the broker at {url}"))?;
    found.find(SocketAddr::is_ipv4).with_context(|| format!("the broker at {url} has no IPv4 address"))
}
