//! A device whose agent runs elsewhere, and its coordinator, at the two ends of a broker.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod broker;
#[path = "../../../core/tests/common/mod.rs"]
pub(crate) mod fleet;

use broker::{Broker, Session};
use fleet::{Device, Fleet, Group};
use fleetkey_wire::{DownBody, UpBody};

/// The coordinator's end of one device's connection.
pub(crate) struct Line {
    pub(crate) session: Session,
}

impl Line {
    /// Accepts the agent's connection and answers its first hello.
    pub(crate) async fn accept(broker: &Broker, fleet: &Fleet, device: &mut Device) -> Self {
        let mut line = Self { session: broker.accept().await };
        assert_eq!(line.session.client_id, device.id.to_string());
        line.answer_hello(fleet, device).await;
        line
    }

    pub(crate) async fn answer_hello(&mut self, fleet: &Fleet, device: &mut Device) {
        loop {
            let heard = self.hear(fleet, device).await;
            if let (UpBody::Hello(_), counter) = heard {
                self.say(fleet, device, &fleet::answer(counter)).await;
                return;
            }
        }
    }

    /// The next thing the agent says, and its counter.
    pub(crate) async fn hear(&mut self, fleet: &Fleet, device: &mut Device) -> (UpBody, u64) {
        let (topic, payload) = self.session.published().await.expect("the agent is connected");
        assert!(topic.ends_with(&format!("{}/up", device.id)), "{topic}");
        let opened = device.link.open(&fleet.start, device.id, &device.link_key, &payload).unwrap();
        (opened.body, opened.counter)
    }

    pub(crate) async fn say(&mut self, fleet: &Fleet, device: &mut Device, body: &DownBody) {
        let frame = fleet.down(device, body);
        self.session.publish(&device.down_topic().to_string(), &frame).await;
    }

    /// Brings the agent into a group and waits for its confirmation.
    pub(crate) async fn admit(&mut self, fleet: &mut Fleet, device: &mut Device, group: &mut Group) {
        let request = DownBody::RequestKeyPackages { suite: group.suite, count: 1 };
        self.say(fleet, device, &request).await;
        let key_package = loop {
            if let (UpBody::KeyPackages { mut packages, .. }, _) = self.hear(fleet, device).await {
                break packages.remove(0);
            }
        };
        let (welcome, _) = fleet.invite_with(group, device, key_package);
        self.say(fleet, device, &DownBody::Welcome(welcome)).await;
        self.until_confirmed(fleet, device, group).await;
    }

    pub(crate) async fn until_confirmed(&mut self, fleet: &Fleet, device: &mut Device, group: &Group) {
        loop {
            match self.hear(fleet, device).await {
                (UpBody::Confirm { key_epoch, .. }, _) if key_epoch == group.send => return,
                (UpBody::Hello(_), counter) => self.say(fleet, device, &fleet::answer(counter)).await,
                _ => {}
            }
        }
    }
}
