//! The engine on a store that fails when it is told to, and with the test at the other end of every port.

use std::sync::{Arc, Mutex, MutexGuard};

use fleetkey_coordinator_core::records::{Outgoing as Stored, Record};
use fleetkey_coordinator_core::{
    Access, Coordinator, MemoryStore, OutboxRecord, Policy, Row, Standing, StoreError, Table, Timing, Write,
};
use fleetkey_identity::IdentityKey;
use fleetkey_policy::PolicyUpdate;
use fleetkey_wire::link::{DeviceLink, OpenedDown};
use fleetkey_wire::{DownBody, FleetId, Generation, Hello, Pairwise, Topic, UpBody};

use super::*;
use crate::fleet::Fleet;
use crate::handle::ServiceHandle;
use crate::service::{Wired, wire};

/// A store that outlives its coordinator, fails while it is told to, and waits while its rows are held.
#[derive(Clone, Default)]
struct Rows(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    rows: MemoryStore,
    commits_fail: bool,
    reads_fail: bool,
}

impl Rows {
    fn new() -> Self {
        let rows = Self::default();
        rows.hold().rows.commit(&Coordinator::initial_rows(1_800_000_000)).unwrap();
        rows
    }

    fn hold(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    fn of(&self, table: Table) -> Vec<Row> {
        self.hold().rows.rows(table).unwrap()
    }
}

impl Store for Rows {
    fn rows(&mut self, table: Table) -> Result<Vec<Row>, StoreError> {
        let mut inner = self.hold();
        if inner.reads_fail {
            return Err(StoreError::Failed { doing: "read a table", why: "unplugged".into() });
        }
        inner.rows.rows(table)
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let mut inner = self.hold();
        if inner.commits_fail {
            return Err(StoreError::Failed { doing: "commit a transaction", why: "disk full".into() });
        }
        inner.rows.commit(writes)
    }
}

/// A fleet, its rows, and what brokers were told.
struct Rig {
    fleet: Fleet,
    rows: Rows,
    told: Arc<Mutex<Vec<PolicyUpdate>>>,
}

struct TestDevice {
    id: DeviceId,
    key: IdentityKey,
}

impl Rig {
    fn new() -> Self {
        let id = FleetId::random(&mut OsRng);
        let fleet = Fleet::create(id, &[], 1_800_000_000, &mut OsRng).unwrap();
        Self { fleet, rows: Rows::new(), told: Arc::default() }
    }

    async fn start(&self) -> Wired {
        let feed = PolicyFeed::new();
        let told = self.told.clone();
        feed.listen(move |update| told.lock().unwrap().push(update.clone()));
        let setup = self.fleet.setup(Timing::default());
        let wired = wire(setup, Box::new(self.rows.clone()), feed).await.unwrap();
        wired.connected.send_replace(true);
        wired
    }

    fn was_told_of_a_revocation(&self) -> bool {
        self.told.lock().unwrap().iter().any(|update| matches!(update, PolicyUpdate::Revoked { .. }))
    }

    fn link(&self, device: &TestDevice) -> DeviceLink {
        let coordinator = self.fleet.coordinator.key.public_key();
        let key = device.key.signing_key();
        let pairwise = Pairwise::agree(self.fleet.id(), device.id, key, &coordinator).unwrap();
        DeviceLink::connect(pairwise.link_key(), &mut OsRng)
    }
}

async fn enroll(service: &ServiceHandle, name: &str) -> TestDevice {
    let device = TestDevice { id: DeviceId::random(&mut OsRng), key: IdentityKey::generate(&mut OsRng) };
    service.enroll_device(device.id, name, device.key.public_key()).await.unwrap();
    device
}

async fn standing(service: &ServiceHandle, device: DeviceId) -> Option<Standing> {
    service
        .query(move |coordinator, _| coordinator.device(device).map(|device| device.standing.clone()))
        .await
        .unwrap()
}

async fn end(wired: Wired, how: Stop) {
    wired.stop.send_replace(how);
    let thread = wired.thread;
    tokio::task::spawn_blocking(move || thread.join()).await.unwrap().unwrap();
}

fn hello() -> UpBody {
    UpBody::Hello(Hello { generation: Generation(1), cells: Vec::new() })
}

#[tokio::test]
async fn a_failed_transaction_is_told_and_nothing_of_it_happens() {
    let rig = Rig::new();
    let mut wired = rig.start().await;
    let service = wired.handle.clone();
    let device = enroll(&service, "pump-1").await;
    let group = service.create_group("pumps", Policy::default()).await.unwrap();
    service.add_members(group, vec![device.id]).await.unwrap();
    while wired.outgoing.try_recv().is_ok() {}
    let mut events = service.events();

    rig.rows.hold().commits_fail = true;
    let refused = service.revoke(vec![device.id], "stolen").await.unwrap_err();
    assert!(matches!(&refused, CommandFailed::NotStored { why } if why.contains("disk full")), "{refused}");
    assert!(!service.is_loaded());

    rig.rows.hold().commits_fail = false;
    service.loaded().await;
    assert_eq!(standing(&service, device.id).await, Some(Standing::Enrolled));
    assert!(!rig.was_told_of_a_revocation());
    assert!(events.try_recv().is_err());
    let members = service.members(group).await.unwrap();
    assert_eq!(members.len(), 1, "the membership from before is still there");

    let groups = service.revoke(vec![device.id], "stolen").await.unwrap();
    assert_eq!(groups, [group]);
    assert!(matches!(standing(&service, device.id).await, Some(Standing::Revoked { .. })));
    assert!(rig.was_told_of_a_revocation());
    end(wired, Stop::Finish).await;
}

#[tokio::test]
async fn a_decision_that_panics_costs_its_batch_and_nothing_else() {
    let rig = Rig::new();
    let wired = rig.start().await;
    let service = wired.handle.clone();
    let kept = service.create_group("pumps", Policy::default()).await.unwrap();
    let lost = service
        .decide(|coordinator, now, rng| -> Result<(), CommandError> {
            coordinator.create_group("valves", Policy::default(), now, rng)?;
            panic!("on purpose")
        })
        .await;
    assert_eq!(lost, Err(CommandFailed::Unavailable));
    let groups = loop {
        match service.group_statuses().await {
            Ok(groups) => break groups,
            // Not loaded again yet, or just about to notice the panic.
            Err(CommandFailed::Unavailable) => service.loaded().await,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(groups.iter().map(|group| group.id).collect::<Vec<_>>(), [kept]);
    end(wired, Stop::Finish).await;
}

#[tokio::test]
async fn while_its_store_cannot_be_read_the_coordinator_says_so_and_tries_again() {
    let rig = Rig::new();
    let wired = rig.start().await;
    let service = wired.handle.clone();
    {
        let mut rows = rig.rows.hold();
        rows.commits_fail = true;
        rows.reads_fail = true;
    }
    let create = service.create_group("pumps", Policy::default()).await;
    assert!(matches!(create, Err(CommandFailed::NotStored { .. })));
    assert_eq!(service.group_statuses().await, Err(CommandFailed::Unavailable));
    {
        let mut rows = rig.rows.hold();
        rows.commits_fail = false;
        rows.reads_fail = false;
    }
    service.loaded().await;
    service.create_group("pumps", Policy::default()).await.unwrap();
    end(wired, Stop::Kill).await;
}

#[tokio::test]
async fn a_store_that_was_never_initialised_is_no_coordinator() {
    let rig = Rig::new();
    let feed = PolicyFeed::new();
    let empty = Box::new(MemoryStore::default());
    let refused = wire(rig.fleet.setup(Timing::default()), empty, feed).await.err().unwrap();
    assert!(refused.to_string().contains("fleetkey init"), "{refused}");
}

#[tokio::test]
async fn what_was_not_known_to_be_sent_is_published_again_after_a_crash() {
    let rig = Rig::new();
    let wired = rig.start().await;
    let device = enroll(&wired.handle, "pump-1").await;
    end(wired, Stop::Kill).await;
    let row = OutboxRecord { number: 7, outgoing: Stored::Device { device: device.id } };
    rig.rows.hold().rows.commit(&[row.put()]).unwrap();

    for crash in 0..2 {
        let mut wired = rig.start().await;
        let again = wired.outgoing.recv().await.unwrap();
        assert_eq!(again.topic, Topic::Down { fleet: rig.fleet.id(), device: device.id });
        assert_eq!(again.ticket.map(OutboxTicket::number), Some(7), "crash {crash}");
        assert_eq!(wired.handle.stats().await.unwrap().republished.messages, 1);
        end(wired, Stop::Kill).await;
        assert_eq!(rig.rows.of(Table::Outbox).len(), 1, "it was not known to be sent");
    }

    let mut wired = rig.start().await;
    let again = wired.outgoing.recv().await.unwrap();
    wired.sent.send(again.ticket.unwrap()).await.unwrap();
    end(wired, Stop::Finish).await;
    assert!(rig.rows.of(Table::Outbox).is_empty());
    let mut wired = rig.start().await;
    assert!(wired.outgoing.try_recv().is_err());
    end(wired, Stop::Kill).await;
}

#[tokio::test]
async fn a_ticket_of_an_earlier_life_settles_nothing() {
    let rig = Rig::new();
    let mut wired = rig.start().await;
    let service = wired.handle.clone();
    let device = enroll(&service, "pump-1").await;
    let row = OutboxRecord { number: 0, outgoing: Stored::Device { device: device.id } };
    rig.rows.hold().rows.commit(&[row.put()]).unwrap();
    let mut tickets = Vec::new();
    for _ in 0..2 {
        rig.rows.hold().commits_fail = true;
        service.create_group("pumps", Policy::default()).await.unwrap_err();
        rig.rows.hold().commits_fail = false;
        service.loaded().await;
        tickets.push(wired.outgoing.recv().await.unwrap().ticket.unwrap());
    }
    let [earlier, current] = tickets[..] else { panic!("{tickets:?}") };
    assert_eq!((earlier.number(), current.number()), (0, 0));

    wired.sent.send(earlier).await.unwrap();
    service.create_group("valves", Policy::default()).await.unwrap();
    assert_eq!(rig.rows.of(Table::Outbox).len(), 1);

    wired.sent.send(current).await.unwrap();
    end(wired, Stop::Finish).await;
    assert!(rig.rows.of(Table::Outbox).is_empty());
}

#[tokio::test]
async fn a_hello_is_answered_on_the_devices_topic() {
    let rig = Rig::new();
    let mut wired = rig.start().await;
    let device = enroll(&wired.handle, "pump-1").await;
    let mut link = rig.link(&device);

    let (payload, counter) = link.seal(&hello());
    wired.ups.send(Up { device: device.id, payload }).await.unwrap();

    let answer = wired.outgoing.recv().await.unwrap();
    assert_eq!(answer.topic, Topic::Down { fleet: rig.fleet.id(), device: device.id });
    let opened = link.open(&answer.payload).unwrap();
    let OpenedDown::Fresh(DownBody::Answer { hello, .. }) = opened else { panic!("{opened:?}") };
    assert_eq!(hello, counter);
    let stats = wired.handle.stats().await.unwrap();
    assert_eq!((stats.received.messages, stats.refused, stats.dropped), (1, 0, 0));
    assert!(stats.down_answers.messages >= 1);
    end(wired, Stop::Kill).await;
}

#[tokio::test]
async fn answers_are_dropped_while_there_is_no_connection() {
    let rig = Rig::new();
    let mut wired = rig.start().await;
    let service = wired.handle.clone();
    let device = enroll(&service, "pump-1").await;
    wired.connected.send_replace(false);
    let (payload, _) = rig.link(&device).seal(&hello());
    wired.ups.send(Up { device: device.id, payload }).await.unwrap();
    while service.stats().await.unwrap().received.messages == 0 {
        tokio::task::yield_now().await;
    }
    let stats = service.stats().await.unwrap();
    assert!(stats.dropped >= 1);
    assert_eq!(stats.dropped, stats.down_answers.messages);
    assert!(wired.outgoing.try_recv().is_err());
    end(wired, Stop::Kill).await;
}

#[tokio::test]
async fn bad_input_is_refused_by_name_and_changes_nothing() {
    let rig = Rig::new();
    let mut wired = rig.start().await;
    let service = wired.handle.clone();
    let device = enroll(&service, "pump-1").await;
    let before = service.stats().await.unwrap().transactions;
    let (genuine, _) = rig.link(&device).seal(&hello());
    let mut forged = genuine.clone();
    *forged.last_mut().unwrap() ^= 1;
    let stranger = DeviceId::random(&mut OsRng);
    let inputs = [
        (stranger, genuine.clone(), "unknown_device"),
        (device.id, Vec::new(), "empty"),
        (device.id, vec![0; 64 * 1024], "too_large"),
        (device.id, vec![9, 0x80], "unknown_version"),
        (device.id, genuine[..genuine.len() - 1].to_vec(), "not_cbor"),
        (device.id, forged, "wrong_mac"),
    ];
    for (device, payload, _) in &inputs {
        wired.ups.send(Up { device: *device, payload: payload.clone() }).await.unwrap();
    }
    while service.stats().await.unwrap().received.messages < inputs.len() as u64 {
        tokio::task::yield_now().await;
    }
    let refusals = service.status().await.unwrap().refusals;
    for (_, _, name) in &inputs {
        assert_eq!(refusals.get(name), Some(&1), "{name}: {refusals:?}");
    }
    let stats = service.stats().await.unwrap();
    assert_eq!(stats.refused, inputs.len() as u64);
    assert_eq!(stats.transactions, before, "nothing was stored");
    assert!(wired.outgoing.try_recv().is_err(), "nothing was said");
    end(wired, Stop::Kill).await;
}

#[tokio::test]
async fn a_storm_of_messages_delays_no_command() {
    let rig = Rig::new();
    let wired = rig.start().await;
    let service = wired.handle.clone();
    let device = enroll(&service, "pump-1").await;

    // The engine is kept busy with a decision while the storm gathers.
    let (entered, has_entered) = oneshot::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let busy = service.decide(move |_, _, _| {
        entered.send(()).unwrap();
        released.recv().unwrap();
        Ok(())
    });
    let storm = async {
        has_entered.await.unwrap();
        while wired.ups.try_send(Up { device: device.id, payload: vec![1] }).is_ok() {}
        assert_eq!(wired.ups.capacity(), 0);
        let command = service.decide({
            let counts = service.clone();
            move |_, _, _| Ok(counts.received())
        });
        let let_go = async {
            // Polled after the command, which is in its queue by now.
            assert_eq!(service.waiting_commands(), 1);
            release.send(()).unwrap();
        };
        tokio::join!(biased; command, let_go).0
    };
    let (busy, received_before) = tokio::join!(busy, storm);
    busy.unwrap();
    assert_eq!(received_before.unwrap(), 0, "messages went before the command");
    end(wired, Stop::Kill).await;
}

#[tokio::test]
async fn a_reload_tells_brokers_everything_again() {
    let rig = Rig::new();
    let wired = rig.start().await;
    let service = wired.handle.clone();
    let device = enroll(&service, "pump-1").await;
    service.revoke(vec![device.id], "stolen").await.unwrap();
    rig.rows.hold().commits_fail = true;
    service.create_group("pumps", Policy::default()).await.unwrap_err();
    rig.rows.hold().commits_fail = false;
    service.loaded().await;
    let last = rig.told.lock().unwrap().last().cloned().unwrap();
    let PolicyUpdate::Snapshot { revoked, .. } = last else { panic!("{last:?}") };
    assert!(revoked.contains(&device.id));
    let access = service.query(|coordinator, _| coordinator.access()).await.unwrap();
    assert_eq!(access, [Access::Revoked { device: device.id }]);
    end(wired, Stop::Kill).await;
}

#[tokio::test]
async fn a_stopped_coordinator_is_unavailable() {
    let rig = Rig::new();
    let wired = rig.start().await;
    let service = wired.handle.clone();
    end(wired, Stop::Finish).await;
    service.stopped().await;
    assert!(!service.is_loaded());
    assert_eq!(service.group_statuses().await, Err(CommandFailed::Unavailable));
}
