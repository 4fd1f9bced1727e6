//! Link frames, both ways: any bytes in place of one, and any body under a good MAC.

use fleetkey_tests::forge::{self, Place, Way};
use fleetkey_wire::link::{CoordinatorLink, DeviceLink, OpenedDown, StartSecret};
use fleetkey_wire::{
    DismissReason, DownBody, Generation, Hello, HelloCell, ShortAuthenticator, ShortDigest, UpBody, Welcome,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use crate::parties::{CELL, CELL_EPOCH, DEVICE, GROUP, KEY_EPOCH, SUITE, pairwise, rekey};
use crate::steps::choose;

/// Two ends that have proved themselves to each other.
struct Link {
    start: StartSecret,
    coordinator: CoordinatorLink,
    device: DeviceLink,
}

impl Link {
    fn proven() -> Self {
        let mut rng = ChaCha20Rng::from_seed([4; 32]);
        let start = StartSecret::random(&mut rng);
        let key = pairwise().link_key();
        let mut link = Self {
            start,
            coordinator: CoordinatorLink::default(),
            device: DeviceLink::connect(key, &mut rng),
        };
        for _ in 0..2 {
            let said = link.device.seal(&hello()).0;
            link.up(&said).expect("a hello is heard");
            let answer = link.say(&DownBody::RequestHello);
            link.device.open(&answer).expect("it is answered");
        }
        link
    }

    fn up(&mut self, frame: &[u8]) -> Option<UpBody> {
        let key = pairwise().link_key();
        self.coordinator.open(&self.start, DEVICE, &key, frame).ok().map(|opened| opened.body)
    }

    fn down(&mut self, frame: &[u8]) -> Option<DownBody> {
        match self.device.open(frame).ok()? {
            OpenedDown::Fresh(body) => Some(body),
            OpenedDown::Poke => None,
        }
    }

    fn say(&mut self, body: &DownBody) -> Vec<u8> {
        self.coordinator.seal(&self.start, DEVICE, &pairwise().link_key(), body)
    }
}

/// A frame that nobody made is heard by nobody, and a body that is read is written back as it can be read again.
pub fn run(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 4) else { return };
    let mut link = Link::proven();
    let key = pairwise().link_key();
    match choice {
        0 => assert_eq!(link.up(rest), None, "the coordinator hears what nobody said"),
        1 => assert_eq!(link.down(rest), None, "a device hears what nobody said"),
        2 => {
            let place = Place::of(&link.device.seal(&hello()).0).expect("our own");
            let heard = link.up(&forge::link_frame(&key, Way::Up, &place, rest));
            if let Some(body) = heard {
                assert_eq!(UpBody::decode(&body.encode()), Ok(body));
            }
        }
        _ => {
            let place = Place::of(&link.say(&DownBody::RequestHello)).expect("our own");
            let heard = link.down(&forge::link_frame(&key, Way::Down, &place, rest));
            if let Some(body) = heard {
                assert_eq!(DownBody::decode(&body.encode()), Ok(body));
            }
        }
    }
}

fn hello() -> UpBody {
    UpBody::Hello(Hello { generation: Generation(1), cells: Vec::new() })
}

/// What a device may say.
pub(crate) fn up_bodies() -> Vec<UpBody> {
    let cell = HelloCell {
        cell: CELL,
        cell_epoch: CELL_EPOCH,
        authenticator: ShortAuthenticator([1; 8]),
        statement: ShortDigest([2; 8]),
        key_epoch: KEY_EPOCH,
        send: KEY_EPOCH,
        oldest: KEY_EPOCH,
    };
    vec![
        UpBody::Hello(Hello { generation: Generation(1), cells: vec![cell] }),
        UpBody::KeyPackages { suite: SUITE, packages: vec![vec![7; 30], vec![8; 40]] },
        UpBody::Confirm {
            group: GROUP,
            key_epoch: KEY_EPOCH,
            statement: ShortDigest([3; 8]),
            proof: [4; 32],
        },
        UpBody::Update { cell: CELL, cell_epoch: CELL_EPOCH, proposal: vec![9; 50] },
        UpBody::Leave { group: GROUP },
        UpBody::Evidence { statement: rekey().statement },
    ]
}

/// What a device may be told.
pub(crate) fn down_bodies() -> Vec<DownBody> {
    let welcome = Welcome {
        group: GROUP,
        group_name: "meters".to_owned(),
        cell: CELL,
        suite: SUITE,
        cell_epoch: CELL_EPOCH,
        welcome: vec![5; 60],
        statements: vec![rekey()],
    };
    vec![
        DownBody::HelloAgain,
        DownBody::Answer { hello: 2, hello_interval_seconds: 1_800, max_silence_seconds: 86_400 },
        DownBody::CellFrame { cell: CELL, frame: crate::cell_frames::seeds().remove(0) },
        DownBody::Welcome(welcome),
        DownBody::RequestKeyPackages { suite: SUITE, count: 2 },
        DownBody::RequestUpdate { cell: CELL },
        DownBody::Dismiss { group: GROUP, cell: CELL, reason: DismissReason::Evicted },
        DownBody::Certificate { chain: vec![vec![0x30, 0x00]] },
        DownBody::RequestEvidence { group: GROUP },
        DownBody::RequestHello,
    ]
}

/// Every body, and frames of another pair.
pub fn seeds() -> Vec<Vec<u8>> {
    let up = up_bodies().into_iter().map(|body| [&[2], &body.encode()[..]].concat());
    let down = down_bodies().into_iter().map(|body| [&[3], &body.encode()[..]].concat());
    let place = Place { device_nonce: vec![1; 8], coordinator_nonce: vec![2; 8], counter: 9 };
    let key = pairwise().link_key();
    let stale = forge::link_frame(&key, Way::Up, &place, &UpBody::Leave { group: GROUP }.encode());
    let other = forge::link_frame(&key, Way::Down, &place, &DownBody::RequestHello.encode());
    up.chain(down).chain([[&[0], &stale[..]].concat(), [&[1], &other[..]].concat()]).collect()
}
