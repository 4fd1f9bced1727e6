//! How far a rekey is from what it could cost at best.
//!
//! The bound has two parts. The first: one message for each device and one back, of the same sizes, through the same broker and
//! the same connections, without a look at them. The second: what a device must compute for one rekey (verify the statement, open
//! the wrap, check the commitment, prove possession), measured alone, for all devices, over the processors of this machine. A
//! rekey is from the command to the moment at which the coordinator knows of the last device.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fleetkey_coordinator_core::{Event, Policy, Timing};
use fleetkey_wire::{CellId, DeviceId, GroupId, Topic};
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;

use crate::device_cost::{self, DeviceCost};
use crate::field::{Field, FieldBroker, FieldOptions, Spent};
use crate::onboarding::Onboarding;
use crate::plain_sockets;
use crate::prober::Prober;
use crate::progress::Progress;
use fleetkey_report::{Distribution, Times, median};

/// Nothing has happened for so long: it is time to look.
const QUIET: Duration = Duration::from_millis(50);

/// What is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Devices.
    pub devices: usize,
    /// Devices on one connection; 1: each has its own.
    pub devices_per_connection: usize,
    /// The broker.
    pub broker: FieldBroker,
    /// Revocations of one device, and bare rounds.
    pub rounds: usize,
    /// Devices in a cell.
    pub cell_capacity: u16,
}

/// What one revocation took.
#[derive(Debug, Clone, Serialize)]
pub struct Rekey {
    /// From the command to the coordinator's knowledge of each remaining device, in milliseconds.
    pub milliseconds: Distribution,
    /// Processor time of the thread that decides, in milliseconds.
    pub deciding_cpu_milliseconds: f64,
    /// Processor time of the coordinator's process, in milliseconds; it also measures.
    pub coordinator_cpu_milliseconds: f64,
    /// Of the broker, in milliseconds, where it is ours.
    pub broker_cpu_milliseconds: Option<f64>,
    /// Of the devices, all together, in milliseconds.
    pub devices_cpu_milliseconds: f64,
    /// Bytes that a device received: half of them at most so many, and the largest.
    pub bytes_per_device: Distribution,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Bound {
    /// The version of this format.
    pub version: u32,
    /// Devices.
    pub devices: usize,
    /// Connections that they share.
    pub connections: usize,
    /// Edges of the broker.
    pub edges: usize,
    /// Cells.
    pub cells: usize,
    /// The broker.
    pub broker: String,
    /// Processors.
    pub processors: usize,
    /// Payload bytes of a message, and of a reply.
    pub message_bytes: usize,
    /// Payload bytes of a reply.
    pub reply_bytes: usize,
    /// How the fleet came in.
    pub onboarding: Onboarding,
    /// Each revocation.
    pub rekeys: Vec<Rekey>,
    /// Messages and replies through the same broker and connections, in milliseconds, each round.
    pub bare_milliseconds: Vec<f64>,
    /// Of a bare round: processor time of broker and devices, in milliseconds, on average.
    pub bare_cpu_milliseconds: (Option<f64>, f64),
    /// The same through plain sockets, in milliseconds, each round.
    pub plain_milliseconds: Vec<f64>,
    /// What one device must compute.
    pub device: DeviceCost,
}

impl Bound {
    /// Fan-out and replies at their median, in milliseconds.
    pub fn bare(&self) -> f64 {
        median(&self.bare_milliseconds)
    }

    /// The devices' own cryptography, on all processors, in milliseconds.
    pub fn cryptography(&self) -> f64 {
        self.device.microseconds() * self.devices as f64 / self.processors as f64 / 1_000.0
    }

    /// The bound, in milliseconds.
    pub fn milliseconds(&self) -> f64 {
        self.bare() + self.cryptography()
    }

    /// The revocation at the median, in milliseconds.
    pub fn rekey(&self) -> f64 {
        median(&self.rekeys.iter().map(|rekey| rekey.milliseconds.max).collect::<Vec<_>>())
    }

    /// How many times the bound a revocation takes.
    pub fn ratio(&self) -> f64 {
        self.rekey() / self.milliseconds()
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{} devices in {} cells, {}, through {}{}; {} processors\n\n{}\n",
            self.devices,
            self.cells,
            if self.connections == self.devices {
                "each with its own connection".to_owned()
            } else {
                format!("on {} connections", self.connections)
            },
            self.broker,
            if self.edges == 0 { String::new() } else { format!(" and {} edges of it", self.edges) },
            self.processors,
            self.onboarding,
        )?;
        writeln!(
            f,
            "{:<12} {:>9} {:>9} {:>9} {:>9}  {:>11} {:>12} {:>10} {:>10}  {:>13}",
            "revoke one",
            "first ms",
            "p50 ms",
            "p99 ms",
            "last ms",
            "deciding ms",
            "coordinator",
            "broker",
            "devices",
            "bytes/device"
        )?;
        for (round, rekey) in self.rekeys.iter().enumerate() {
            let (times, bytes) = (&rekey.milliseconds, &rekey.bytes_per_device);
            writeln!(
                f,
                "{:<12} {:>9.1} {:>9.1} {:>9.1} {:>9.1}  {:>11.1} {:>12.1} {:>10} {:>10.1}  {:>13}",
                round + 1,
                times.min,
                times.p50,
                times.p99,
                times.max,
                rekey.deciding_cpu_milliseconds,
                rekey.coordinator_cpu_milliseconds,
                rekey.broker_cpu_milliseconds.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.1}")),
                rekey.devices_cpu_milliseconds,
                format!("{:.0} / {:.0}", bytes.p50, bytes.max),
            )?;
        }
        let device = &self.device;
        writeln!(
            f,
            "\nms: from the command to the coordinator's knowledge of a device; deciding, coordinator, broker, devices: processor \
             ms (deciding: the\ncoordinator's one writing thread); bytes/device: median / largest\n\n\
             fan-out and replies   {:>9.1} ms   {} and {} bytes, same broker and connections, median of {} (processor ms: broker {}, \
             devices {:.1})\n\
             by plain sockets      {:>9.1} ms   the same bytes, no broker\n\
             devices compute       {:>9.1} ms   {:.1} us each (verify {:.1}, open {:.1}, confirm {:.1}) over {} processors\n\
             the bound             {:>9.1} ms\n\
             revocation            {:>9.1} ms   median of {}\n\
             ratio                 {:>9.2}\n",
            self.bare(),
            self.message_bytes,
            self.reply_bytes,
            self.bare_milliseconds.len(),
            self.bare_cpu_milliseconds.0.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.1}")),
            self.bare_cpu_milliseconds.1,
            median(&self.plain_milliseconds),
            self.cryptography(),
            device.microseconds(),
            device.verify,
            device.open,
            device.confirm,
            self.processors,
            self.milliseconds(),
            self.rekey(),
            self.rekeys.len(),
            self.ratio(),
        )
    }
}

/// Measures all of it.
///
/// # Errors
/// When something does not start, or does not come to its end.
pub async fn run(options: &Options) -> anyhow::Result<Bound> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let timing = Timing { hello_interval_seconds: 3_600, ..Timing::default() };
    let field_options = FieldOptions {
        devices_per_connection: options.devices_per_connection,
        ..FieldOptions::new(options.broker.clone(), options.devices, timing)
    };
    let connections = field_options.connections();
    let mut field = Field::start(field_options).await?;
    let policy =
        Policy { rotation_interval_seconds: 0, cell_capacity: options.cell_capacity, ..Policy::default() };
    let group = field.create_group(policy).await?;
    let (ids, onboarding) = Onboarding::of(&mut field, group, options.devices).await?;

    let (mut rekeys, mut costs) = (Vec::new(), Vec::new());
    let mut remaining: BTreeSet<DeviceId> = ids.into_iter().collect();
    for _ in 0..options.rounds {
        let victim = remaining.pop_last().context("there is nobody left to revoke")?;
        // In between, so that a machine that is slower for a while is so for both.
        costs.push(tokio::task::spawn_blocking(move || device_cost::measure(processors)).await?);
        rekeys.push(revoke(&mut field, group, victim, remaining.len()).await?);
        // The broker lets it in no more.
        field.plug(&[victim], false).await?;
    }
    let sizes = field.coordinator().stats().await?;
    let message_bytes = usize::try_from(sizes.cell_statements.max_bytes)?;
    let cells = cells_of(&field, group).await?;
    let (fleet, edges) = (field.id(), field.edges());

    field.end_coordinator().await;
    let device = DeviceCost::median(&costs);
    let reply_bytes = device.reply_bytes;
    field.echo(Some(reply_bytes)).await?;
    let topics: Vec<Topic> = cells.iter().map(|cell| Topic::Cell { fleet, cell: *cell }).collect();
    let route = field.coordinator_route()?;
    let (rounds, replies) = (options.rounds, remaining.len() as u64);
    let before = field.look().await?.spent;
    let progress = Progress::start("bare rounds", rounds);
    let bare_milliseconds = tokio::task::spawn_blocking(move || {
        let prober = Prober::connect(fleet, route)?;
        // The first finds nothing warm.
        prober.round(&topics, message_bytes, replies)?;
        let rounds = (0..rounds).map(|_| prober.round(&topics, message_bytes, replies).map(milliseconds));
        rounds.collect::<anyhow::Result<Vec<_>>>()
    })
    .await??;
    progress.finish(rounds);
    let bare = spent(&before, &field.look().await?.spent);
    // The first, which warms up, is not among the rounds.
    let per_round = |milliseconds: f64| milliseconds / (rounds + 1) as f64;
    let bare_cpu_milliseconds =
        (bare.broker_cpu_milliseconds.map(per_round), per_round(bare.devices_cpu_milliseconds));
    field.shutdown().await;

    let progress = Progress::start("plain sockets", rounds);
    let plain_milliseconds = plain_sockets::rounds(connections, message_bytes, reply_bytes, rounds).await?;
    progress.finish(rounds);
    Ok(Bound {
        version: 2,
        devices: options.devices,
        connections,
        edges,
        cells: cells.len(),
        broker: describe(&options.broker),
        processors,
        message_bytes,
        reply_bytes,
        onboarding,
        rekeys,
        bare_milliseconds,
        bare_cpu_milliseconds,
        plain_milliseconds: plain_milliseconds.into_iter().map(milliseconds).collect(),
        device,
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

pub(crate) fn describe(broker: &FieldBroker) -> String {
    match broker {
        FieldBroker::Embedded { tls, router, .. } => format!(
            "the embedded broker, {}, {}",
            if *tls { "TLS" } else { "plain TCP" },
            if *router { "rumqttd's router" } else { "exact map" }
        ),
        FieldBroker::Plain(url) => format!("{url}, plain TCP"),
    }
}

async fn revoke(field: &mut Field, group: GroupId, victim: DeviceId, others: usize) -> anyhow::Result<Rekey> {
    let before = field.look().await?;
    let mut events = field.coordinator().events();
    let mut times = Times::default();
    let progress = Progress::start("revoke one", others);
    let started = Instant::now();
    let revoking = tokio::spawn({
        let coordinator = field.coordinator().clone();
        async move { coordinator.revoke(vec![victim], "measured").await }
    });
    let patience = Duration::from_secs(60) + Duration::from_millis(10) * u32::try_from(others)?;
    let (mut confirmed, mut missed) = (0, 0);
    while confirmed < others {
        // When this process gets too little of the processors, the oldest events are dropped, and never the newest: the last
        // confirmation is seen, but it takes a look at the group to know that it was the last.
        let pause = if missed > 0 { QUIET } else { patience };
        match tokio::time::timeout(pause, events.recv()).await {
            Ok(Ok(Event::Confirmed { group: of, is_current: true, .. })) if of == group => {
                confirmed += 1;
                times.record(started.elapsed());
            }
            Ok(Ok(_)) => {}
            Ok(Err(RecvError::Lagged(more))) => missed += more,
            Ok(Err(RecvError::Closed)) => anyhow::bail!("the coordinator has ended"),
            Err(_) if missed > 0 && field.coordinator().group_status(group).await?.stragglers == 0 => break,
            Err(_) => {}
        }
        anyhow::ensure!(started.elapsed() < patience, "{confirmed} of {others} devices have confirmed");
    }
    progress.finish(confirmed);
    revoking.await?.context("revoke")?;
    let after = field.look().await?;
    let bytes = after.devices.received_bytes.iter().zip(&before.devices.received_bytes);
    Ok(Rekey {
        milliseconds: times.milliseconds(),
        bytes_per_device: fleetkey_report::distribution_of(bytes.map(|(after, before)| after - before)),
        ..spent(&before.spent, &after.spent)
    })
}

fn spent(before: &Spent, after: &Spent) -> Rekey {
    let milliseconds = |after: u64, before: u64| after.saturating_sub(before) as f64 / 1_000.0;
    let broker = before.broker.zip(after.broker);
    Rekey {
        milliseconds: Times::default().milliseconds(),
        bytes_per_device: Times::default().milliseconds(),
        deciding_cpu_milliseconds: milliseconds(
            after.deciding_cpu_microseconds,
            before.deciding_cpu_microseconds,
        ),
        coordinator_cpu_milliseconds: milliseconds(
            after.coordinator.cpu_microseconds,
            before.coordinator.cpu_microseconds,
        ),
        broker_cpu_milliseconds: broker
            .map(|(before, after)| milliseconds(after.cpu_microseconds, before.cpu_microseconds)),
        devices_cpu_milliseconds: milliseconds(
            after.devices.cpu_microseconds,
            before.devices.cpu_microseconds,
        ),
    }
}

async fn cells_of(field: &Field, group: GroupId) -> anyhow::Result<Vec<CellId>> {
    let status = field.coordinator().group_status(group).await?;
    Ok(status.cells.iter().map(|cell| cell.id).collect())
}
