//! The network and the broker between: loss, doubling, delay, partitions; and a broker that forgets.
//!
//! The broker lets everybody publish and subscribe to anything: what keeps devices apart must not be the broker.

use std::rc::Rc;

use fleetkey_wire::Topic;

use crate::world::{Due, Runner, World};

impl World {
    fn roll(&mut self) -> bool {
        let lost = self.weather.lost_per_mille;
        self.weather_dice.happens(lost)
    }

    fn delay(&mut self) -> u64 {
        let longest = self.weather.delay_milliseconds;
        1 + self.weather_dice.below(longest)
    }

    fn is_broker_up(&self) -> bool {
        self.time >= self.broker_back_at
    }

    pub(crate) fn device_publishes(&mut self, runner: Runner, topic: Topic, payload: Rc<[u8]>) {
        if self.time >= self.devices[runner].cut_off_until {
            self.publish(topic, payload);
        }
    }

    /// A message leaves for the broker.
    pub(crate) fn publish(&mut self, topic: Topic, payload: Rc<[u8]>) {
        self.figures.published += 1;
        if !self.is_broker_up() || self.roll() {
            return;
        }
        let wait = self.delay() / 2;
        self.after(wait, Due::AtBroker { topic, payload });
    }

    /// The broker has a message, and passes it on.
    pub(crate) fn at_broker(&mut self, topic: Topic, payload: &Rc<[u8]>) {
        if !self.is_broker_up() {
            return;
        }
        self.recorder.record(topic, payload, &mut self.hostile_dice);
        self.edit_new(topic, payload);
        self.pass_on(topic, payload);
    }

    /// Everybody who listens on `topic` is sent `payload`.
    pub(crate) fn pass_on(&mut self, topic: Topic, payload: &Rc<[u8]>) {
        match topic {
            Topic::Up { device, .. } => {
                for host in 0..self.hosts.len() {
                    if self.hosts[host].is_connected {
                        let life = self.hosts[host].life;
                        let payload = Rc::clone(payload);
                        let due = || Due::AtHost { host, life, device, payload: Rc::clone(&payload) };
                        self.deliver(0, due);
                    }
                }
            }
            Topic::Cell { .. } | Topic::Down { .. } => {
                let listeners: Vec<Runner> =
                    self.subscribers.get(&topic).into_iter().flatten().copied().collect();
                for runner in listeners {
                    let device = &self.devices[runner];
                    if self.time < device.cut_off_until || self.time < device.withheld_until {
                        continue;
                    }
                    let session = device.session;
                    let payload = Rc::clone(payload);
                    let before = device.last_arrival;
                    let arrival = self.deliver(before, || Due::AtDevice {
                        runner,
                        session,
                        topic,
                        payload: Rc::clone(&payload),
                    });
                    self.devices[runner].last_arrival = arrival;
                }
            }
        }
    }

    /// A message is on its way to one listener, whose last one arrives at `before`. Most arrive in order, as on a
    /// connection; some overtake, as with a broker that means ill. When the last one arrives now.
    fn deliver(&mut self, before: u64, due: impl Fn() -> Due) -> u64 {
        if self.roll() {
            return before;
        }
        let doubled = self.weather.doubled_per_mille;
        let copies = 1 + u32::from(self.weather_dice.happens(doubled));
        let mut last = before;
        for _ in 0..copies {
            let overtakes = self.weather_dice.happens(doubled / 10);
            let arrival = self.time + self.delay();
            let arrival = if overtakes { arrival } else { arrival.max(last) };
            self.after(arrival - self.time, due());
            last = last.max(arrival);
        }
        last
    }

    /// The broker ends and forgets every session; it is back after so many milliseconds.
    pub(crate) fn restart_broker(&mut self, milliseconds: u64) {
        self.broker_back_at = self.time + milliseconds;
        for host in 0..self.hosts.len() {
            self.disconnect_host(host);
        }
        for runner in 0..self.devices.len() {
            self.disconnect(runner);
        }
    }

    /// Everybody's connection is lost, and made again at once.
    pub(crate) fn storm(&mut self) {
        for runner in 0..self.devices.len() {
            self.disconnect(runner);
        }
    }
}
