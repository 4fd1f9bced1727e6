//! Three nodes that are one broker, as processes: the intruder between them, revocations wherever a session is, and one node
//! killed.

#![cfg(feature = "cluster")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fmt::Write as _;
use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use fleetkey_identity::Role;
use fleetkey_intruder::client::Hello;
use fleetkey_intruder::{Cast, Client, Level, run_across};
use fleetkey_policy::PolicyUpdate;
use fleetkey_wire::DeviceId;
use support::{Feed, Running, free, papers, snapshot, until};
use tempfile::TempDir;

/// From one node to the others.
const SETTLE: Duration = Duration::from_millis(250);

struct Cluster {
    cast: Cast,
    feed: Feed,
    nodes: Vec<Running>,
    settings: Vec<String>,
    directory: TempDir,
}

impl Cluster {
    fn start() -> Self {
        let cast = Cast::new().unwrap();
        let directory = papers(&cast);
        let feed = Feed::start(&snapshot(&cast, 1));
        let mut list = String::new();
        for node in 1..=3 {
            writeln!(list, "{{ node = {node}, raft = '{}', messages = '{}' }},", free(), free()).unwrap();
        }
        let settings: Vec<_> =
            (1..=3).map(|node| format!("[cluster]\nnode = {node}\nnodes = [\n{list}]\n")).collect();
        let begun = Instant::now();
        let nodes: Vec<_> =
            settings.iter().map(|more| Running::start(directory.path(), &feed, more)).collect();
        for node in &nodes {
            until("the node is healthy", || node.is_healthy());
        }
        note(&format!("three nodes are one broker after {:?}", begun.elapsed()));
        Self { cast, feed, nodes, settings, directory }
    }

    fn device(&self, node: usize, device: DeviceId) -> Client {
        let papers = self.cast.papers(&Role::Device(device)).unwrap();
        let target = self.nodes[node].target(SETTLE);
        Client::honest(&target, Level::V4, &papers, &device.to_string()).unwrap()
    }

    fn coordinator(&self, node: usize) -> Client {
        let papers = self.cast.coordinator().unwrap();
        let target = self.nodes[node].target(SETTLE);
        let mut client = Client::honest(&target, Level::V4, &papers, "coordinator-1").unwrap();
        let all_up = format!("fk/{}/dev/+/up", self.cast.fleet);
        assert_eq!(client.subscribe(all_up.as_bytes(), 1), Some(1));
        client
    }

    /// Messages go both ways, sooner or later; says which of them were lost on the way there.
    fn hear_each_other(&self, coordinator: &mut Client, device: &mut Client, id: DeviceId) {
        let (down, up) = (self.cast.down(id), self.cast.up(id));
        let mut round = 0;
        until("coordinator and device hear each other", || {
            round += 1;
            let payload = format!("{id} {round}");
            coordinator.publish(0x32, down.as_bytes(), &[], payload.as_bytes());
            device.publish(0x32, up.as_bytes(), &[], payload.as_bytes());
            thread::sleep(SETTLE);
            let heard = |client: &mut Client| {
                client.arrived().iter().any(|arrived| arrived.payload == payload.as_bytes())
            };
            heard(device) && heard(coordinator)
        });
    }
}

fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[test]
fn the_intruder_gets_nothing_from_a_cluster() {
    let cluster = Cluster::start();
    for (honest, hostile, level) in [(0, 1, Level::V5), (1, 2, Level::V4), (2, 2, Level::V4)] {
        let (honest, hostile) = (cluster.nodes[honest].target(SETTLE), cluster.nodes[hostile].target(SETTLE));
        let report = run_across(&honest, &hostile, level, &cluster.cast).unwrap();
        assert!(report.got_through.is_empty(), "{level:?}: {:#?}", report.got_through);
        assert!(report.tried.len() >= 70, "{} attempts", report.tried.len());
    }
}

#[test]
fn a_revocation_ends_a_session_wherever_it_is_and_a_killed_node_takes_nobody_with_it() {
    let mut cluster = Cluster::start();
    let mut coordinator = cluster.coordinator(0);
    // One device on each node.
    let ids = [cluster.cast.intruder, cluster.cast.victim, DeviceId::from_bytes([0xcc; 16])];
    let mut devices: Vec<_> = ids.iter().enumerate().map(|(node, id)| cluster.device(node, *id)).collect();
    for (device, id) in devices.iter_mut().zip(ids) {
        assert_eq!(device.subscribe(cluster.cast.down(id).as_bytes(), 1), Some(1));
        cluster.hear_each_other(&mut coordinator, device, id);
    }

    // A device that comes in elsewhere takes its session with it.
    let mut moved = cluster.device(2, ids[1]);
    until("its session on the other node has ended", || devices[1].is_closed());
    assert_eq!(moved.subscribe(cluster.cast.down(ids[1]).as_bytes(), 1), Some(1));
    cluster.hear_each_other(&mut coordinator, &mut moved, ids[1]);

    // A node is killed, the first, which led: whoever is elsewhere notices nothing but that.
    cluster.nodes[0].kill();
    until("its sessions have ended", || devices[0].is_closed() && coordinator.is_closed());
    let begun = Instant::now();
    let mut coordinator = cluster.coordinator(1);
    cluster.hear_each_other(&mut coordinator, &mut devices[2], ids[2]);
    cluster.hear_each_other(&mut coordinator, &mut moved, ids[1]);
    note(&format!("a coordinator went on at another node {:?} after the first was killed", begun.elapsed()));
    let begun = Instant::now();
    let mut back = cluster.device(1, ids[0]);
    assert_eq!(back.subscribe(cluster.cast.down(ids[0]).as_bytes(), 1), Some(1));
    cluster.hear_each_other(&mut coordinator, &mut back, ids[0]);
    note(&format!("its device went on at another node after {:?}", begun.elapsed()));

    // Revocations go on meanwhile, on each node by itself.
    for (sequence, (device, id)) in
        [(&mut back, ids[0]), (&mut moved, ids[1]), (&mut devices[2], ids[2])].into_iter().enumerate()
    {
        let begun = Instant::now();
        cluster.feed.say(&PolicyUpdate::Revoked { sequence: sequence as u64 + 2, device: id });
        until("its session has ended", || device.is_closed());
        let took = begun.elapsed();
        note(&format!("from the revocation to the end of the session: {took:?}"));
        assert!(took < Duration::from_secs(1), "{took:?}");
        for node in &cluster.nodes[1..] {
            let papers = cluster.cast.papers(&Role::Device(id)).unwrap();
            let (_, code) = Client::connect(
                &node.target(SETTLE),
                Level::V4,
                Some(&papers),
                &id.to_string(),
                Hello::default(),
            )
            .unwrap();
            assert_eq!(code, Some(5), "it is back");
        }
    }
    assert!(!coordinator.is_closed());

    // The node comes back, and is one of them again.
    let node = Running::start(cluster.directory.path(), &cluster.feed, &cluster.settings[0]);
    until("the node is healthy", || node.is_healthy());
    cluster.nodes[0] = node;
    let extra = DeviceId::from_bytes([0xce; 16]);
    let mut device = cluster.device(0, extra);
    assert_eq!(device.subscribe(cluster.cast.down(extra).as_bytes(), 1), Some(1));
    cluster.hear_each_other(&mut coordinator, &mut device, extra);
}
