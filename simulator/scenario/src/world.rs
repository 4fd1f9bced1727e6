//! What a scenario needs of a fleet, in real time or in virtual time.
//!
//! Times are since the run began, in the run's own time. Leaves what is done when to `run`.

use std::time::Duration;

use fleetkey_coordinator_core::GroupStatus;
use fleetkey_wire::DeviceId;

use crate::scenario::NetworkProfile;

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// A moment.
    Time(Duration),
    /// Every device holds its groups' newest keys, and the coordinator knows; or this moment, if that comes first.
    Current {
        /// When it gives up.
        deadline: Duration,
    },
}

/// What has happened since the last wait.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Waited {
    /// Whether every device holds its groups' newest keys now.
    pub is_current: bool,
    /// For each key that a device was due to hold, from when it was due to when the coordinator knew that it does. A device
    /// that skipped keys has one, from when the first of them was due.
    pub latencies: Vec<Duration>,
    /// For each revocation that has come to its end: until the last of the remaining members held a newer key.
    pub exposures: Vec<Duration>,
    /// For each key that was replaced: how long it had been in use.
    pub key_ages: Vec<Duration>,
}

/// How a fleet stands, and what it has cost since the run began.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Looked {
    /// Devices in a cell, counted in each group.
    pub members: usize,
    /// Devices that are to come in, counted in each group.
    pub wanted: usize,
    /// Members that do not hold their group's newest key, counted in each group.
    pub stragglers: usize,
    /// Cells of all groups.
    pub cells: usize,
    /// Payload bytes that each device has received, in the order in which they were enrolled.
    pub received_bytes: Vec<u64>,
    /// The same, sent.
    pub sent_bytes: Vec<u64>,
    /// Messages that devices have received.
    pub messages: u64,
    /// What deciding has cost the coordinator.
    pub coordinator_cpu: Duration,
    /// What all devices together have cost.
    pub device_cpu: Duration,
    /// What the broker has cost, where it is real and ours.
    pub broker_cpu: Option<Duration>,
    /// Memory of everything, in bytes.
    pub memory_bytes: u64,
    /// Inputs that were refused, by either side.
    pub refused: u64,
}

/// A fleet that a scenario is run on. Groups and classes are numbered as in the scenario that the world was made for.
#[expect(async_fn_in_trait, reason = "nobody needs these futures to be sent to another thread")]
pub trait World {
    /// How long the run has lasted, in its own time.
    fn now(&self) -> Duration;

    /// Makes and enrols a device of each of these classes, and switches it on.
    async fn enrol(&mut self, classes: &[usize]) -> anyhow::Result<Vec<DeviceId>>;

    /// Wants devices in a group. They are due to hold its key from `due` on, which may be past where the run is late.
    async fn bring_in(&mut self, group: usize, ids: &[DeviceId], due: Duration) -> anyhow::Result<()>;

    /// Revokes devices.
    async fn revoke(&mut self, ids: &[DeviceId], reason: &str) -> anyhow::Result<()>;

    /// Takes devices out of a group.
    async fn evict(&mut self, group: usize, ids: &[DeviceId]) -> anyhow::Result<()>;

    /// Moves a group to a new key.
    async fn rekey(&mut self, group: usize) -> anyhow::Result<()>;

    /// Begins a rotation of a group.
    async fn rotate(&mut self, group: usize) -> anyhow::Result<()>;

    /// Cuts devices' power, or gives it back: then they are due to be current from that moment on.
    async fn power(&mut self, ids: &[DeviceId], is_on: bool) -> anyhow::Result<()>;

    /// Cuts these devices' connections and has them come back with nothing to do but connect and subscribe, so many times:
    /// how long that took each time. `None` where there are no connections.
    async fn reconnect(&mut self, ids: &[DeviceId], rounds: usize) -> anyhow::Result<Option<Vec<Duration>>>;

    /// Ends the broker, which forgets its sessions, for so long. Then devices are due to be current.
    async fn restart_broker(&mut self, away: Duration) -> anyhow::Result<()>;

    /// How the network is from now on.
    async fn network(&mut self, profile: &NetworkProfile) -> anyhow::Result<()>;

    /// The members of each cell of a group.
    async fn cells(&mut self, group: usize) -> anyhow::Result<Vec<Vec<DeviceId>>>;

    /// Its groups, as the coordinator tells of them: sizes and policies, nothing secret.
    async fn shape(&mut self) -> anyhow::Result<Vec<GroupStatus>>;

    /// Lets time pass.
    async fn wait(&mut self, until: Until) -> anyhow::Result<Waited>;

    /// How the fleet stands.
    async fn look(&mut self) -> anyhow::Result<Looked>;
}
