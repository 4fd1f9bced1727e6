//! An agent as a task, over TCP, against a broker and a coordinator made by hand.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::Line;
use common::broker::Broker;
use common::fleet::{Device, Fleet, Group};
use fleetkey_agent::{
    AgentEvent, AgentHandle, AgentSetup, CallError, CannotOpen, Event, MemoryStore, Stopped, Store,
    StoreError, spawn,
};
use fleetkey_agent_core::{Entries, Writes};
use fleetkey_mqtt::{Backoff, Options};
use fleetkey_wire::{Named, Topic};
use std::time::Duration;

fn options(broker: &Broker, device: &Device) -> Options {
    let mut options = Options::new(broker.url().parse().unwrap(), device.id.to_string());
    options.backoff = Backoff { min: Duration::from_millis(10), max: Duration::from_millis(100) };
    options
}

struct Running {
    fleet: Fleet,
    broker: Broker,
    device: Device,
    group: Group,
    agent: AgentHandle,
    line: Line,
}

/// An agent that has joined a group.
async fn running(seed: u8, change: impl FnOnce(&mut AgentSetup)) -> Running {
    let mut fleet = Fleet::new(seed);
    let broker = Broker::start().await;
    let mut device = fleet.device();
    let mut group = fleet.group();
    let mqtt = options(&broker, &device);
    let mut setup = AgentSetup::new(device.config.clone(), Box::new(MemoryStore::default()), mqtt);
    change(&mut setup);
    let agent = spawn(setup).unwrap();
    let mut line = Line::accept(&broker, &fleet, &mut device).await;
    line.admit(&mut fleet, &mut device, &mut group).await;
    Running { fleet, broker, device, group, agent, line }
}

#[tokio::test]
async fn an_agent_joins_seals_and_opens() {
    let observed = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&observed);
    let mut scene = running(1, |setup| {
        setup.record = true;
        setup.observer =
            Some(Arc::new(move |_, event: &AgentEvent| seen.lock().unwrap().push(event.clone())));
    })
    .await;
    let Running { fleet, device, group, agent, line, .. } = &mut scene;
    let mut events = agent.events();

    let sealed = agent.seal(group.id, b"valve 3 shut", b"", false).await.unwrap();
    assert_eq!(agent.open(&sealed, b"").await.unwrap().plaintext, b"valve 3 shut");
    let frame = group.rekey_frame(fleet);
    line.session.publish(&device.cell_topic(group.id_of_cell()).to_string(), &frame).await;
    line.until_confirmed(fleet, device, group).await;
    let key_epoch = group.send;
    let status = agent.wait_until(move |status| status.groups[0].send == key_epoch).await.unwrap();
    assert_eq!(status.groups[0].oldest, key_epoch);

    let traffic = agent.traffic();
    assert_eq!((traffic.cell.messages, traffic.cell.bytes), (1, frame.len() as u64));
    assert!(traffic.down.messages >= 3 && traffic.up.messages >= 3, "{traffic:?}");
    assert_eq!((traffic.connections, traffic.dropped), (1, 0));
    let recorded = agent.recorded();
    assert_eq!(recorded.len() as u64, traffic.cell.messages + traffic.down.messages);
    assert!(recorded.iter().any(|recorded| recorded.payload == frame));
    let group_id = group.id;
    let activated = AgentEvent::Device(Event::KeyActivated { group: group_id, key_epoch });
    assert_eq!(events.recv().await, Ok(activated.clone()));
    let observed = observed.lock().unwrap();
    assert_eq!(observed.first(), Some(&AgentEvent::Connected));
    assert_eq!(observed.last(), Some(&activated));
}

#[tokio::test]
async fn an_unplugged_agent_keeps_its_keys_and_says_hello_when_it_is_back() {
    let mut scene = running(2, |_| {}).await;
    let Running { fleet, broker, device, group, agent, line } = &mut scene;
    let sealed = agent.seal(group.id, b"x", b"", false).await.unwrap();

    agent.disconnect().await.unwrap();
    while line.session.published().await.is_some() {}
    assert!(!agent.status().await.unwrap().is_connected);
    assert!(agent.open(&sealed, b"").await.is_ok());
    let frame = group.rekey_frame(fleet);
    agent.reconnect().await.unwrap();

    let mut line = Line::accept(broker, fleet, device).await;
    let topics = [device.cell_topic(group.id_of_cell()).to_string(), device.down_topic().to_string()];
    assert_eq!(line.session.subscribed, topics, "subscribed before the hello");
    line.session.publish(&topics[0], &frame).await;
    line.until_confirmed(fleet, device, group).await;
    assert_eq!(agent.traffic().connections, 2);
}

#[tokio::test]
async fn a_broken_connection_is_made_again() {
    let mut scene = running(3, |_| {}).await;
    drop(scene.line);
    let line = Line::accept(&scene.broker, &scene.fleet, &mut scene.device).await;
    assert_eq!(line.session.subscribed.len(), 2);
    assert!(scene.agent.status().await.unwrap().is_connected);
}

#[tokio::test]
async fn a_stopped_agent_says_so() {
    let mut scene = running(4, |_| {}).await;
    tokio::join!(scene.agent.stop(), async { while scene.line.session.published().await.is_some() {} });
    assert_eq!(scene.agent.status().await, Err(Stopped));
    let sealed = scene.agent.seal(scene.group.id, b"x", b"", false).await;
    assert_eq!(sealed, Err(CallError::Stopped));
    scene.agent.stop().await;
}

#[tokio::test]
async fn a_message_can_be_injected_and_is_trusted_no_more_than_the_brokers() {
    let mut scene = running(5, |_| {}).await;
    let Running { fleet, device, group, agent, .. } = &mut scene;
    let topic = device.cell_topic(group.id_of_cell());
    let frame = group.rekey_frame(fleet);
    agent.disconnect().await.unwrap();
    agent.inject(topic, frame.clone().into()).await.unwrap();
    assert_eq!(agent.status().await.unwrap().groups[0].send, group.send);
    let mut forged = frame;
    forged[10] ^= 1;
    let refused = agent.inject(topic, forged.into()).await.unwrap_err();
    assert!(matches!(&refused, CallError::Refused(refused) if !refused.name().is_empty()), "{refused}");
    let up = Topic::Up { fleet: fleet.id, device: device.id };
    let refused = agent.inject(up, vec![1].into()).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused(refused) if refused.name() == "unexpected_topic"));
}

/// A store that fails when it is told to.
struct Failing {
    inner: MemoryStore,
    fails: Arc<AtomicBool>,
}

impl Store for Failing {
    fn load_all(&mut self) -> Result<Entries, StoreError> {
        self.inner.load_all()
    }

    fn commit(&mut self, writes: &Writes) -> Result<(), StoreError> {
        if self.fails.swap(false, Ordering::SeqCst) {
            return Err(StoreError { doing: "write", reason: "disk full".to_owned() });
        }
        self.inner.commit(writes)
    }
}

#[tokio::test]
async fn a_transaction_that_is_not_stored_never_happened() {
    let fails = Arc::new(AtomicBool::new(false));
    let store = Failing { inner: MemoryStore::default(), fails: Arc::clone(&fails) };
    let mut scene = running(6, |setup| setup.store = Box::new(store)).await;
    let Running { fleet, broker, device, group, agent, line } = &mut scene;
    let before = group.send;
    let frame = group.rekey_frame(fleet);
    let topic = device.cell_topic(group.id_of_cell()).to_string();
    fails.store(true, Ordering::SeqCst);

    line.session.publish(&topic, &frame).await;

    // Nothing is confirmed; the connection ends, and the agent comes back as it was stored.
    while let Some((_, payload)) = line.session.published().await {
        let opened = device.link.open(&fleet.start, device.id, &device.link_key, &payload).unwrap();
        assert!(!matches!(opened.body, fleetkey_wire::UpBody::Confirm { .. }));
    }
    assert_eq!(agent.status().await.unwrap().groups[0].send, before);
    let mut line = Line::accept(broker, fleet, device).await;
    line.session.publish(&topic, &frame).await;
    line.until_confirmed(fleet, device, group).await;
    assert_eq!(agent.status().await.unwrap().groups[0].send, group.send);
}

#[tokio::test]
async fn a_stranger_cannot_open() {
    let mut scene = running(7, |_| {}).await;
    let mut other = running(8, |_| {}).await;
    let sealed = scene.agent.seal(scene.group.id, b"x", b"", false).await.unwrap();
    let refused = other.agent.open(&sealed, b"").await.unwrap_err();
    assert!(matches!(refused, CallError::Refused(CannotOpen::UnknownGroup { .. })), "{refused}");
    scene.line.session.publish("some/other/topic", b"x").await;
    other.line.session.publish("fk/x", b"x").await;
    assert!(scene.agent.status().await.unwrap().is_connected);
}
