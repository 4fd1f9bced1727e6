//! The part that is devices: real agent cores, each on its own connection, or many on one.

mod member;

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fleetkey_agent_core::{AgentConfig, MemoryStore};
use fleetkey_identity::{FleetRoots, IdentityKey, chain_from_pem, tls};
use fleetkey_swarm::{Clock, Crew, Device, Gateway, Route, Shard, ShardOptions, Tls};
use fleetkey_wire::DeviceId;
use rand_core::OsRng;

use super::orders::{DevicesAnswer, DevicesBegin, DevicesOrder, Made, Seen, Which, hear, say};
use super::source;
use super::usage::Usage;
use member::{Member, Spot};

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
    spots: Vec<Spot>,
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
            spots: Vec::new(),
            by_id: BTreeMap::new(),
            uncertified: Vec::new(),
            begin,
        })
    }

    fn obey(&mut self, order: DevicesOrder) -> anyhow::Result<DevicesAnswer> {
        match order {
            DevicesOrder::Make(count) => return Ok(DevicesAnswer::Made(self.make(count)?)),
            DevicesOrder::Certify(chains) => self.certify(&chains)?,
            DevicesOrder::Connect(which) => self.each(&which, member::plug_in)?,
            DevicesOrder::Disconnect(which) => self.each(&which, member::unplug)?,
            DevicesOrder::Echo(reply_bytes) => {
                self.each(&Which::Range(0, self.spots.len()), move |crew, spot| {
                    _ = member::with(crew, spot, |device| device.set_echo(reply_bytes));
                })?
            }
            DevicesOrder::Look => return Ok(DevicesAnswer::Seen(Box::new(self.look()?))),
            DevicesOrder::CutPower(which) => self.each(&which, member::cut_power)?,
            DevicesOrder::Bare(which, is_bare) => self.each(&which, move |crew, spot| {
                _ = member::with(crew, spot, |device| device.set_bare(is_bare));
            })?,
            DevicesOrder::WhoIsAnswered(ids) => return Ok(DevicesAnswer::Answered(self.answered(&ids)?)),
            DevicesOrder::HowManyAreSubscribed => {
                let (devices, since) = self.subscribed()?;
                return Ok(DevicesAnswer::Subscribed {
                    devices,
                    microseconds_since_the_last: microseconds(since),
                });
            }
        }
        Ok(DevicesAnswer::Done)
    }

    fn make(&mut self, count: usize) -> anyhow::Result<Vec<Made>> {
        let mut made = Vec::with_capacity(count);
        let mut devices = Vec::with_capacity(count);
        self.uncertified.clear();
        for _ in 0..count {
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
            devices.push(Device::open(config, MemoryStore::default(), self.clock).context("load an agent")?);
        }
        if self.begin.per_connection > 1 {
            devices.into_iter().try_for_each(|device| self.seat_with_others(device))?;
        } else {
            self.seat_alone(devices)?;
        }
        Ok(made)
    }

    /// Each on a connection of its own.
    fn seat_alone(&mut self, devices: Vec<Device<MemoryStore>>) -> anyhow::Result<()> {
        let mut comers: Vec<Vec<(Member, Route)>> = self.shards.iter().map(|_| Vec::new()).collect();
        let mut places = Vec::with_capacity(devices.len());
        for (number, device) in devices.into_iter().enumerate() {
            let shard = (self.spots.len() + number) % self.shards.len();
            places.push((device.id(), shard));
            if let Some(comers) = comers.get_mut(shard) {
                let route = self.route(self.spots.len() + number, None);
                comers.push((Member::Alone(Box::new(device)), route));
            }
        }
        let mut seated = Vec::new();
        for (shard, comers) in self.shards.iter().zip(comers) {
            let seats = shard.call(move |crew| {
                let seats = comers.into_iter().map(|(member, route)| crew.add(member, route));
                seats.collect::<Vec<_>>()
            })?;
            seated.push(seats.into_iter());
        }
        for (id, shard) in places {
            let seat = seated.get_mut(shard).and_then(Iterator::next).context("a device without a seat")?;
            self.by_id.insert(id, self.spots.len());
            self.spots.push(Spot { shard, seat, at: 0 });
        }
        Ok(())
    }

    /// On the gateway that was begun last, or on the next one when that is full.
    fn seat_with_others(&mut self, device: Device<MemoryStore>) -> anyhow::Result<()> {
        let number = self.spots.len() / self.begin.per_connection;
        let (shard, at) = (number % self.shards.len(), self.spots.len() % self.begin.per_connection);
        let on = self.shards.get(shard).context("no such thread")?;
        let seat = match self.spots.last() {
            Some(last) if at > 0 => last.seat,
            Some(_) | None => {
                let gateway = Gateway::new(format!("relay-{}-{number}", std::process::id()));
                let tls = self.begin.relay.as_ref().map(|papers| self.tls(&papers.chain, &papers.key));
                let route = self.route(number, tls.transpose()?);
                on.call(move |crew| crew.add(Member::Many(Box::new(gateway)), route))?
            }
        };
        self.by_id.insert(device.id(), self.spots.len());
        self.spots.push(Spot { shard, seat, at });
        on.call(move |crew| {
            crew.with(seat, |member, _| {
                if let Member::Many(gateway) = member {
                    gateway.add(device);
                }
            });
        })?;
        Ok(())
    }

    /// How the connection of this number is made.
    fn route(&self, connection: usize, tls: Option<Tls>) -> Route {
        let from = self.begin.from.map(|first| source(first, connection));
        Route { broker: self.begin.broker, from, tls }
    }

    fn tls(&self, chain: &str, key: &str) -> anyhow::Result<Tls> {
        let key = IdentityKey::from_pkcs8_pem(key).context("a gateway's key")?;
        self.tls_of(chain, &key)
    }

    fn tls_of(&self, chain: &str, key: &IdentityKey) -> anyhow::Result<Tls> {
        let name = self.begin.broker_name.clone().context("the broker speaks no TLS")?;
        let chain = chain_from_pem(chain).context("a chain")?;
        let config = tls::client_config(&chain, key, &self.roots)?;
        Ok(Tls { config, name: name.try_into().context("the broker's name")? })
    }

    fn certify(&mut self, chains: &[String]) -> anyhow::Result<()> {
        let keys = std::mem::take(&mut self.uncertified);
        anyhow::ensure!(keys.len() == chains.len(), "{} chains for {} devices", chains.len(), keys.len());
        let first = self.spots.len() - keys.len();
        for (number, (key, chain)) in keys.iter().zip(chains).enumerate() {
            let spot = self.spots.get(first + number).context("a device without a seat")?;
            let route = self.route(first + number, Some(self.tls_of(chain, key)?));
            let (seat, shard) = (spot.seat, self.shards.get(spot.shard).context("no such thread")?);
            shard.call(move |crew| crew.reroute(seat, route))?;
        }
        Ok(())
    }

    /// Does something with each of these devices.
    fn each(
        &self,
        which: &Which,
        act: impl Fn(&mut Crew<Member>, Spot) + Copy + Send + 'static,
    ) -> anyhow::Result<()> {
        let chosen: Vec<Spot> = match which {
            Which::Range(first, end) => {
                self.spots.iter().skip(*first).take(end.saturating_sub(*first)).copied().collect()
            }
            Which::Ids(ids) => self.spots_of(ids),
        };
        for (number, shard) in self.shards.iter().enumerate() {
            let spots: Vec<Spot> = chosen.iter().filter(|spot| spot.shard == number).copied().collect();
            shard.call(move |crew| spots.into_iter().for_each(|spot| act(crew, spot)))?;
        }
        Ok(())
    }

    fn spots_of(&self, ids: &[DeviceId]) -> Vec<Spot> {
        let numbers = ids.iter().filter_map(|id| self.by_id.get(id));
        numbers.filter_map(|number| self.spots.get(*number).copied()).collect()
    }

    fn look(&self) -> anyhow::Result<Seen> {
        let mut all = Seen { devices: self.spots.len(), ..Seen::default() };
        let mut bytes = Vec::new();
        for shard in &self.shards {
            let mut seen = shard.call(|crew| look_at(crew))?;
            let received = std::mem::take(&mut seen.received_bytes);
            bytes.push(received.into_iter().zip(std::mem::take(&mut seen.sent_bytes)));
            all += seen;
        }
        // On each thread they sit in the order in which they were made.
        for spot in &self.spots {
            let of_device = bytes.get_mut(spot.shard).and_then(Iterator::next);
            let (received, sent) = of_device.context("a device that was not looked at")?;
            all.received_bytes.push(received);
            all.sent_bytes.push(sent);
        }
        all.usage = Usage::of_this_process();
        Ok(all)
    }

    /// Who of these has been answered, and how many microseconds ago.
    fn answered(&self, ids: &[DeviceId]) -> anyhow::Result<Vec<(DeviceId, u64)>> {
        let places = self.spots_of(ids);
        let mut answered = Vec::new();
        for (number, shard) in self.shards.iter().enumerate() {
            let here: Vec<Spot> = places.iter().filter(|spot| spot.shard == number).copied().collect();
            answered.extend(shard.call(move |crew| {
                let ask = |device: &mut Device<MemoryStore>| {
                    Some((device.id(), microseconds(device.answered_at()?.elapsed())))
                };
                let ask = |spot| member::with(crew, spot, ask).flatten();
                here.into_iter().filter_map(ask).collect::<Vec<_>>()
            })?);
        }
        Ok(answered)
    }

    /// How many bare devices have all their subscriptions, and since when the last of them has.
    fn subscribed(&self) -> anyhow::Result<(usize, Duration)> {
        let (mut count, mut since) = (0, Duration::MAX);
        for shard in &self.shards {
            let (here, last) = shard.call(|crew| {
                let devices = crew.riders().flat_map(|(_, member)| member.devices());
                devices.filter_map(Device::subscribed_at).fold((0, None), |(count, last), at| {
                    (count + 1, Some(last.map_or(at, |last: Instant| last.max(at))))
                })
            })?;
            count += here;
            since = last.map_or(since, |last| since.min(last.elapsed()));
        }
        Ok((count, since))
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn look_at(crew: &Crew<Member>) -> Seen {
    let mut seen = Seen { connected: crew.open(), lost: crew.lost(), ..Seen::default() };
    for device in crew.riders().flat_map(|(_, member)| member.devices()) {
        seen.in_group += usize::from(device.topics().len() > 1);
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
