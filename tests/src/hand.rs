//! A device played by hand: it has a real identity and a real link, and says whatever a test wants it to say.

use fleetkey_coordinator_core::UpRefused;
use fleetkey_identity::IdentityKey;
use fleetkey_wire::link::{DeviceLink, OpenedDown};
use fleetkey_wire::{DeviceId, DownBody, Generation, GroupId, Hello, Pairwise, Topic, UpBody};

use crate::World;
use crate::forge::{self, Place, Way};

/// A device played by hand.
#[derive(Debug)]
pub struct Hand {
    /// Its id.
    pub id: DeviceId,
    /// Its key.
    pub identity: IdentityKey,
    /// What only it and the coordinator share.
    pub pairwise: Pairwise,
    link: DeviceLink,
}

impl Hand {
    /// A new device, enrolled, that has said nothing yet.
    pub fn enroll(world: &mut World) -> Self {
        let id = DeviceId::random(&mut world.rng);
        let identity = IdentityKey::generate(&mut world.rng);
        let name = format!("hand-{id}").chars().take(20).collect::<String>();
        world
            .coordinator
            .enroll_device(id, &name, identity.public_key(), world.now)
            .expect("a new device enrolls");
        world.perform();
        Self::with(world, id, &identity)
    }

    /// A second link of a device that an agent plays: what a thief of its key could say.
    pub fn of(world: &mut World, id: DeviceId) -> Self {
        let identity = world.peer(id).config.identity.clone();
        Self::with(world, id, &identity)
    }

    fn with(world: &mut World, id: DeviceId, identity: &IdentityKey) -> Self {
        let coordinator = world.coordinator_public_key();
        let pairwise = Pairwise::agree(world.fleet, id, identity.signing_key(), &coordinator)
            .expect("both keys are good");
        let link = DeviceLink::connect(pairwise.link_key(), &mut world.rng);
        Self { id, identity: identity.clone(), pairwise, link }
    }

    /// Connects anew, and says a hello that shows nothing, until the coordinator has answered.
    pub fn connect(&mut self, world: &mut World) {
        self.link.restart(&mut world.rng);
        self.say(world, &UpBody::Hello(Hello { generation: Generation(1), cells: Vec::new() }))
            .expect("a first hello is heard");
        assert!(self.link.is_answered(), "the coordinator answers a first hello");
    }

    /// The frame that says `body`.
    pub fn frame(&mut self, body: &UpBody) -> Vec<u8> {
        self.link.seal(body).0
    }

    /// A frame whose body is any bytes, under a good MAC.
    pub fn frame_of(&mut self, body: &[u8]) -> Vec<u8> {
        let like = self.frame(&UpBody::Leave { group: GroupId::from_bytes([0; 16]) });
        let place = Place::of(&like).expect("a frame of our own can be read");
        forge::link_frame(&self.pairwise.link_key(), Way::Up, &place, body)
    }

    /// What the coordinator has said to it since it had published `since` messages.
    pub fn hear(&mut self, world: &World, since: usize) -> Vec<DownBody> {
        let down = Topic::Down { fleet: world.fleet, device: self.id };
        let mut heard = Vec::new();
        for (_, payload) in world.published[since..].iter().filter(|(topic, _)| *topic == down) {
            match self.link.open(payload) {
                Ok(OpenedDown::Fresh(body)) => heard.push(body),
                Ok(OpenedDown::Poke) | Err(_) => {}
            }
        }
        heard
    }

    /// Says something, and hears what is answered.
    ///
    /// # Errors
    /// The coordinator's refusal.
    pub fn say(&mut self, world: &mut World, body: &UpBody) -> Result<Vec<DownBody>, UpRefused> {
        let frame = self.frame(body);
        self.send(world, &frame)
    }

    /// Sends a frame as it is, and hears what is answered.
    ///
    /// # Errors
    /// The coordinator's refusal.
    pub fn send(&mut self, world: &mut World, frame: &[u8]) -> Result<Vec<DownBody>, UpRefused> {
        let before = world.published.len();
        let now = world.now;
        let said = world.coordinator.handle_up(self.id, frame, now, &mut world.rng);
        world.perform();
        let heard = self.hear(world, before);
        said.map(|()| heard)
    }
}
