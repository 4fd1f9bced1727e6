//! A fleet in several processes: the real coordinator here, on a real database; the broker and the devices in processes of
//! their own.
//!
//! Leaves to others what is done with it, and what is measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fleetkey_coordinator::{
    Fleet as Identities, PolicyFeed, PolicyStream, Service, ServiceHandle, unix_seconds,
};
use fleetkey_coordinator_core::{Policy, Timing};
use fleetkey_identity::{Role, Validity, chain_to_pem, tls};
use fleetkey_mqtt::BrokerUrl;
use fleetkey_swarm::{Route, Tls};
use fleetkey_wire::{DeviceId, FleetId, GroupId};
use rand_core::OsRng;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::fleet::{start_coordinator, until};
use crate::parts::{
    BrokerAnswer, BrokerBegin, BrokerOrder, DevicesAnswer, DevicesBegin, DevicesOrder, Made, Papers, Part,
    Seen, Usage, Which,
};
use crate::progress::Progress;

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
}

/// What the three parts have cost so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// The process of the coordinator, which also measures.
    pub coordinator: Usage,
    /// Of that, the deciding thread, in microseconds.
    pub deciding_cpu_microseconds: u64,
    /// The broker; none when it is not ours.
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
    broker: Option<BrokerPart>,
    address: SocketAddr,
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
        let (broker, address) = match &options.broker {
            FieldBroker::Embedded { router, .. } => {
                let (broker, address) =
                    start_broker(&identities, &options, is_tls, *router, &feed, None).await?;
                (Some(broker), address)
            }
            FieldBroker::Plain(url) => (None, resolve(url).await?),
        };
        let scheme = if is_tls { "mqtts" } else { "mqtt" };
        let host = if is_tls { BROKER_NAME.to_owned() } else { address.ip().to_string() };
        let url: BrokerUrl = format!("{scheme}://{host}:{}", address.port()).parse()?;
        let (service, directory) =
            start_coordinator(&identities, url, Vec::new(), is_tls, options.timing, feed.clone()).await?;
        let coordinator = service.handle();
        let allowed = rlimit::increase_nofile_limit(u64::MAX).context("read the limit on open files")?;
        let per_process = usize::try_from(allowed.saturating_sub(SPARE_FILES))?.max(1);
        Ok(Self {
            identities,
            broker,
            address,
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
        }
        for (number, part) in self.devices.iter_mut().enumerate() {
            let begin = first.saturating_sub(number * self.per_process);
            if begin < self.per_process {
                done(part.ask(&DevicesOrder::Connect(Which::Range(begin, self.per_process))).await?)?;
            }
        }
        Ok(self.ids[first..].to_vec())
    }

    /// Which of these devices the coordinator has answered, on the connections that they have now.
    ///
    /// # Errors
    /// When a process has ended.
    pub async fn answered(&mut self, ids: &[DeviceId]) -> anyhow::Result<Vec<DeviceId>> {
        let mut all = Vec::new();
        for part in &mut self.devices {
            let DevicesAnswer::Answered(ids) = part.ask(&DevicesOrder::WhoIsAnswered(ids.to_vec())).await?
            else {
                anyhow::bail!("the devices answer something else");
            };
            all.extend(ids);
        }
        Ok(all)
    }

    /// Ends the broker, with all its sessions.
    ///
    /// # Errors
    /// When it is not ours.
    pub async fn end_broker(&mut self) -> anyhow::Result<()> {
        let broker = self.broker.as_ref().context("this broker is not ours to end, or has ended")?;
        if let BrokerAnswer::Seen { usage, .. } = broker.look().await? {
            self.former_brokers_cpu += usage.cpu_microseconds;
        }
        if let Some(broker) = self.broker.take() {
            broker.task.abort();
            // Its process ends with the task.
            _ = broker.task.await;
        }
        Ok(())
    }

    /// Starts a broker where the one was that has ended.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart_broker(&mut self) -> anyhow::Result<()> {
        let FieldBroker::Embedded { router, .. } = self.options.broker else {
            anyhow::bail!("this broker is not ours to start");
        };
        let (identities, options, at) = (&self.identities, &self.options, Some(self.address));
        let started = Instant::now();
        loop {
            match start_broker(identities, options, self.is_tls, router, &self.feed, at).await {
                Ok((broker, _)) => {
                    self.broker = Some(broker);
                    return Ok(());
                }
                // The one before may still be letting go of its port.
                Err(_) if started.elapsed() < LETS_GO => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => return Err(error),
            }
        }
    }

    async fn start_devices(&self) -> anyhow::Result<Part> {
        // One address has some 28,000 ports; every process connects from one of its own.
        let from = (!self.is_tls && self.address.ip().is_loopback())
            .then(|| std::net::Ipv4Addr::new(127, 0, 1, 1 + (self.devices.len() % 250) as u8));
        let begin = DevicesBegin {
            fleet: self.id(),
            roots: self.identities.roots().to_pem(),
            coordinator: chain_to_pem(&self.identities.coordinator.chain),
            broker: self.address,
            broker_name: self.is_tls.then(|| BROKER_NAME.to_owned()),
            from,
            threads: self.options.threads,
            max_connecting: self.options.max_connecting,
        };
        Ok(Part::start("devices", &begin).await?)
    }

    async fn enrol(&mut self, count: usize) -> anyhow::Result<()> {
        let part = self.devices.last_mut().context("there is no process for devices")?;
        let DevicesAnswer::Made(made) = part.ask(&DevicesOrder::Make(count)).await? else {
            anyhow::bail!("the devices answer something else");
        };
        if self.is_tls {
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
        let mut answered = 0;
        let all = until(started + patience, async || {
            answered = self.coordinator.query(|coordinator, now| coordinator.status(now).online).await?;
            progress.set(answered);
            Ok(answered >= count)
        })
        .await?;
        progress.finish(answered.min(count));
        anyhow::ensure!(all, "{answered} of {count} devices have an answer of the coordinator");
        Ok(started.elapsed())
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
        if let Some(broker) = &self.broker
            && let BrokerAnswer::Seen { mut usage, .. } = broker.look().await?
        {
            usage.cpu_microseconds += self.former_brokers_cpu;
            looked.spent.broker = Some(usage);
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

/// The broker's process, with whom the policy is told.
#[derive(Debug)]
struct BrokerPart {
    looks: mpsc::Sender<oneshot::Sender<BrokerAnswer>>,
    task: JoinHandle<()>,
}

impl BrokerPart {
    async fn look(&self) -> anyhow::Result<BrokerAnswer> {
        let (tell, told) = oneshot::channel();
        self.looks.send(tell).await.ok().context("the broker has ended")?;
        told.await.context("the broker has ended")
    }
}

async fn start_broker(
    identities: &Identities,
    options: &FieldOptions,
    is_tls: bool,
    router: bool,
    feed: &PolicyFeed,
    at: Option<SocketAddr>,
) -> anyhow::Result<(BrokerPart, SocketAddr)> {
    let party = &identities.broker;
    let papers = is_tls.then(|| Papers {
        chain: chain_to_pem(&party.chain),
        key: party.key.to_pkcs8_pem().as_str().to_owned(),
    });
    let begin = BrokerBegin {
        fleet: identities.id(),
        roots: identities.roots().to_pem(),
        papers,
        router,
        max_connections: options.devices + 100,
        address: at,
    };
    let mut part = Part::start("broker", &begin).await?;
    let BrokerAnswer::Listening(address) = part.hear().await.context("start the broker")? else {
        anyhow::bail!("the broker says something else");
    };
    let (looks, asked) = mpsc::channel(4);
    let task = tokio::spawn(tell_broker(part, feed.subscribe(), asked));
    Ok((BrokerPart { looks, task }, address))
}

/// Tells the broker of the policy as it changes, until it has ended.
async fn tell_broker(
    mut part: Part,
    mut policy: PolicyStream,
    mut asked: mpsc::Receiver<oneshot::Sender<BrokerAnswer>>,
) {
    loop {
        tokio::select! {
            biased;
            update = policy.next() => {
                let Some(update) = update else { return };
                if let Err(error) = part.tell(&BrokerOrder::Policy(update)).await {
                    return tracing::error!(%error, "the broker follows no more");
                }
            }
            look = asked.recv() => {
                let Some(look) = look else { return };
                match part.ask(&BrokerOrder::Look).await {
                    Ok(answer) => _ = look.send(answer),
                    Err(error) => return tracing::error!(%error, "the broker does not answer"),
                }
            }
        }
    }
}
