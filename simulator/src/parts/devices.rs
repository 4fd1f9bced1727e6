//! The part that is devices: real agent cores, each on its own connection.

use std::collections::BTreeMap;
use std::io;

use anyhow::Context as _;
use fleetkey_agent_core::{AgentConfig, MemoryStore};
use fleetkey_identity::{FleetRoots, IdentityKey, chain_from_pem, tls};
use fleetkey_swarm::{Clock, Crew, Device, Route, Seat, Shard, ShardOptions, Tls};
use fleetkey_wire::DeviceId;
use rand_core::OsRng;

use super::orders::{DevicesAnswer, DevicesBegin, DevicesOrder, Made, Seen, Which, hear, say};
use super::usage::Usage;

type Member = Device<MemoryStore>;

/// Is devices until standard input ends.
///
/// # Errors
/// When it is told nonsense, or a thread has ended.
pub fn run() -> anyhow::Result<()> {
    let (mut orders, mut answers) = (io::stdin().lock(), io::stdout().lock());
    let Some(begin) = hear::<DevicesBegin>(&mut orders)? else { return Ok(()) };
    let mut devices = Devices::start(begin)?;
    while let Some(order) = hear::<DevicesOrder>(&mut orders)? {
        let answer = devices.obey(order)?;
        say(&mut answers, &answer)?;
    }
    Ok(())
}

struct Devices {
    begin: DevicesBegin,
    roots: FleetRoots,
    coordinator: Vec<Vec<u8>>,
    clock: Clock,
    shards: Vec<Shard<Member>>,
    /// Where each device sits, in the order in which they were made.
    seats: Vec<(usize, Seat)>,
    by_id: BTreeMap<DeviceId, usize>,
    /// The keys of the devices made last, until they have their certificates.
    uncertified: Vec<IdentityKey>,
}

impl Devices {
    fn start(begin: DevicesBegin) -> anyhow::Result<Self> {
        let options = ShardOptions { max_connecting: begin.max_connecting, ..ShardOptions::default() };
        let shards = (0..begin.threads.max(1))
            .map(|number| Shard::start(&format!("devices-{number}"), options))
            .collect::<Result<_, _>>()
            .context("start a thread")?;
        Ok(Self {
            roots: FleetRoots::from_pem(&begin.roots).context("the roots")?,
            coordinator: chain_from_pem(&begin.coordinator).context("the coordinator's chain")?,
            clock: Clock::start(),
            shards,
            seats: Vec::new(),
            by_id: BTreeMap::new(),
            uncertified: Vec::new(),
            begin,
        })
    }

    fn obey(&mut self, order: DevicesOrder) -> anyhow::Result<DevicesAnswer> {
        match order {
            DevicesOrder::Make(count) => return Ok(DevicesAnswer::Made(self.make(count)?)),
            DevicesOrder::Certify(chains) => self.certify(&chains)?,
            DevicesOrder::Connect(which) => self.each(&which, Crew::connect)?,
            DevicesOrder::Disconnect(which) => self.each(&which, Crew::disconnect)?,
            DevicesOrder::Echo(reply_bytes) => {
                self.each(&Which::Range(0, self.seats.len()), move |crew, seat| {
                    _ = crew.with(seat, |device, _| device.set_echo(reply_bytes));
                })?
            }
            DevicesOrder::Look => return Ok(DevicesAnswer::Seen(Box::new(self.look()?))),
            DevicesOrder::WhoIsAnswered(ids) => return Ok(DevicesAnswer::Answered(self.answered(&ids)?)),
        }
        Ok(DevicesAnswer::Done)
    }

    fn make(&mut self, count: usize) -> anyhow::Result<Vec<Made>> {
        let mut made = Vec::with_capacity(count);
        let mut comers: Vec<Vec<Member>> = self.shards.iter().map(|_| Vec::new()).collect();
        self.uncertified.clear();
        let mut places = Vec::with_capacity(count);
        for number in 0..count {
            let (id, identity) = (DeviceId::random(&mut OsRng), IdentityKey::generate(&mut OsRng));
            made.push(Made { id, public_key: identity.public_key() });
            let config = AgentConfig {
                fleet: self.begin.fleet,
                device: id,
                identity: identity.clone(),
                roots: self.roots.clone(),
                coordinator_chain: self.coordinator.clone(),
            };
            self.uncertified.push(identity);
            let device = Device::open(config, MemoryStore::default(), self.clock).context("load an agent")?;
            let shard = (self.seats.len() + number) % self.shards.len();
            if let Some(comers) = comers.get_mut(shard) {
                comers.push(device);
            }
            places.push((id, shard));
        }
        let route = Route { broker: self.begin.broker, from: self.begin.from, tls: None };
        let mut seated = Vec::new();
        for (shard, comers) in self.shards.iter().zip(comers) {
            let route = route.clone();
            let seats = shard.call(move |crew| {
                let seats = comers.into_iter().map(|device| crew.add(device, route.clone()));
                seats.collect::<Vec<_>>()
            })?;
            seated.push(seats.into_iter());
        }
        for (id, shard) in places {
            let seat = seated.get_mut(shard).and_then(Iterator::next).context("a device without a seat")?;
            self.by_id.insert(id, self.seats.len());
            self.seats.push((shard, seat));
        }
        Ok(made)
    }

    fn certify(&mut self, chains: &[String]) -> anyhow::Result<()> {
        let keys = std::mem::take(&mut self.uncertified);
        anyhow::ensure!(keys.len() == chains.len(), "{} chains for {} devices", chains.len(), keys.len());
        let name = self.begin.broker_name.clone().context("the broker speaks no TLS")?;
        let first = self.seats.len() - keys.len();
        for ((key, chain), (shard, seat)) in keys.iter().zip(chains).zip(self.seats.iter().skip(first)) {
            let chain = chain_from_pem(chain).context("a device's chain")?;
            let config = tls::client_config(&chain, key, &self.roots)?;
            let tls = Tls { config, name: name.clone().try_into().context("the broker's name")? };
            let route = Route { broker: self.begin.broker, from: self.begin.from, tls: Some(tls) };
            let (seat, shard) = (*seat, self.shards.get(*shard).context("no such thread")?);
            shard.call(move |crew| crew.reroute(seat, route))?;
        }
        Ok(())
    }

    /// Does something with each of these devices.
    fn each(
        &self,
        which: &Which,
        act: impl Fn(&mut Crew<Member>, Seat) + Copy + Send + 'static,
    ) -> anyhow::Result<()> {
        let chosen: Vec<(usize, Seat)> = match which {
            Which::Range(first, end) => {
                self.seats.iter().skip(*first).take(end.saturating_sub(*first)).copied().collect()
            }
            Which::Ids(ids) => {
                let numbers = ids.iter().filter_map(|id| self.by_id.get(id));
                numbers.filter_map(|number| self.seats.get(*number).copied()).collect()
            }
        };
        for (number, shard) in self.shards.iter().enumerate() {
            let seats: Vec<Seat> =
                chosen.iter().filter(|(of, _)| *of == number).map(|(_, seat)| *seat).collect();
            shard.call(move |crew| seats.into_iter().for_each(|seat| act(crew, seat)))?;
        }
        Ok(())
    }

    fn look(&self) -> anyhow::Result<Seen> {
        let mut all = Seen { devices: self.seats.len(), ..Seen::default() };
        let mut bytes = Vec::new();
        for shard in &self.shards {
            let mut seen = shard.call(|crew| look_at(crew))?;
            let received = std::mem::take(&mut seen.received_bytes);
            bytes.push(received.into_iter().zip(std::mem::take(&mut seen.sent_bytes)));
            all += seen;
        }
        // On each thread they sit in the order in which they were made.
        for (shard, _) in &self.seats {
            let of_device = bytes.get_mut(*shard).and_then(Iterator::next);
            let (received, sent) = of_device.context("a device that was not looked at")?;
            all.received_bytes.push(received);
            all.sent_bytes.push(sent);
        }
        all.usage = Usage::of_this_process();
        Ok(all)
    }

    fn answered(&self, ids: &[DeviceId]) -> anyhow::Result<Vec<DeviceId>> {
        let places = ids.iter().filter_map(|id| self.by_id.get(id));
        let places: Vec<(usize, Seat)> =
            places.filter_map(|number| self.seats.get(*number).copied()).collect();
        let mut answered = Vec::new();
        for (number, shard) in self.shards.iter().enumerate() {
            let here = places.iter().filter(|(of, _)| *of == number);
            let seats: Vec<Seat> = here.map(|(_, seat)| *seat).collect();
            answered.extend(shard.call(move |crew| {
                let ask = |seat| {
                    crew.with(seat, |device, _| device.status().is_answered.then(|| device.id())).flatten()
                };
                seats.into_iter().filter_map(ask).collect::<Vec<_>>()
            })?);
        }
        Ok(answered)
    }
}

fn look_at(crew: &Crew<Member>) -> Seen {
    let mut seen = Seen { connected: crew.open(), lost: crew.lost(), ..Seen::default() };
    for (_, device) in crew.riders() {
        seen.in_group += usize::from(device.agent().topics().len() > 1);
        seen.alarms += device.alarms();
        seen.traffic += device.traffic();
        seen.received_bytes.push(device.traffic().received_bytes());
        seen.sent_bytes.push(device.traffic().up.bytes);
        seen.echoed += device.echoed();
        for (name, count) in device.refused() {
            *seen.refused.entry((*name).to_owned()).or_default() += count;
        }
    }
    seen
}
