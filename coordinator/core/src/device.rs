//! One enrolled device, as the coordinator knows it: its record, its link, its key packages in stock.

use std::collections::{BTreeMap, BTreeSet};

use fleetkey_wire::keys::{BadPeerKey, LinkKey};
use fleetkey_wire::link::{BadLinkFrame, CoordinatorLink, OpenedUp};
use fleetkey_wire::{DeviceId, DownBody, GroupId, Millis, Now, Pairwise, PskId, Suite};

use crate::context::Context;
use crate::records::{CertificateRecord, DeviceRecord, KeyPackageRecord, Outgoing, Standing};

/// Key packages of one suite that are kept for a device.
pub(crate) const STOCK_TARGET: u8 = 2;
/// A device is asked for the same thing again after this long at the earliest.
const ASK_AGAIN_MILLISECONDS: u64 = 5_000;
/// "Hello again" and the like are said to one device at most this often.
const NUDGE_MILLISECONDS: u64 = 500;

/// Hellos of one device that are answered in a row, and how long until one more is.
const HELLOS_IN_A_ROW: u64 = 16;
const HELLO_MILLISECONDS: u64 = 500;

/// One enrolled device.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) record: DeviceRecord,
    /// The groups it is in, or wanted in.
    pub(crate) groups: BTreeSet<GroupId>,
    /// Groups whose state it has shown to have lost: it comes in afresh with its next key package.
    pub(crate) lost: BTreeSet<GroupId>,
    /// When it was last heard, since this start.
    pub(crate) heard: Option<Millis>,
    /// The external pre-shared keys that it has said to hold, since this start.
    pub(crate) psks: BTreeSet<PskId>,
    /// The certificates it holds, as far as they are known.
    pub(crate) certificates: Vec<CertificateRecord>,
    link: CoordinatorLink,
    /// Agreed at first need: an X25519 operation for each device at each start would be work for nothing.
    pairwise: Option<(Pairwise, LinkKey)>,
    stock: BTreeMap<Suite, BTreeMap<u64, Vec<u8>>>,
    asked: BTreeMap<Suite, Millis>,
    nudged: Option<Millis>,
    /// When the hellos answered so far will all be forgotten.
    hellos_until: Millis,
}

impl Device {
    pub(crate) fn new(record: DeviceRecord) -> Self {
        Self {
            record,
            groups: BTreeSet::new(),
            lost: BTreeSet::new(),
            heard: None,
            psks: BTreeSet::new(),
            certificates: Vec::new(),
            link: CoordinatorLink::default(),
            pairwise: None,
            stock: BTreeMap::new(),
            asked: BTreeMap::new(),
            nudged: None,
            hellos_until: Millis::default(),
        }
    }

    pub(crate) fn id(&self) -> DeviceId {
        self.record.id
    }

    pub(crate) fn is_revoked(&self) -> bool {
        matches!(self.record.standing, Standing::Revoked { .. })
    }

    pub(crate) fn may_join(&self) -> bool {
        matches!(self.record.standing, Standing::Enrolled)
    }

    /// Whether it was heard lately enough to be worth waiting for.
    pub(crate) fn is_online(&self, context: &Context, now: Now) -> bool {
        let longest = u64::from(context.setup.timing.hello_interval_seconds) * 2_500;
        !self.is_revoked() && self.heard.is_some_and(|heard| now.mono.since(heard) <= longest)
    }

    /// What only this device and the coordinator share.
    pub(crate) fn pairwise(&mut self, context: &Context) -> Result<&Pairwise, BadPeerKey> {
        self.agree(context).map(|(pairwise, _)| pairwise)
    }

    fn agree(&mut self, context: &Context) -> Result<&(Pairwise, LinkKey), BadPeerKey> {
        if self.pairwise.is_none() {
            let own = context.setup.identity.signing_key();
            let pairwise = Pairwise::agree(context.fleet(), self.record.id, own, &self.record.public_key)?;
            let link_key = pairwise.link_key();
            self.pairwise = Some((pairwise, link_key));
        }
        Ok(self.pairwise.as_ref().expect("agreed above"))
    }

    /// Opens a frame from `up`.
    pub(crate) fn open(
        &mut self,
        context: &Context,
        frame: &[u8],
        now: Now,
    ) -> Result<OpenedUp, BadLinkFrame> {
        let (id, mut link) = (self.record.id, std::mem::take(&mut self.link));
        let (_, key) = self.agree(context).expect("a key that agrees is a condition of enrolment");
        let opened = link.open(&context.start, id, key, frame);
        self.link = link;
        // Nobody waits for a device in quarantine.
        if opened.is_ok() && self.may_join() {
            self.heard = Some(now.mono);
        }
        opened
    }

    /// Whether one more hello may be answered: a device that says it without end is left unheard now and then.
    pub(crate) fn may_hello(&mut self, now: Now) -> bool {
        let until = self.hellos_until.max(now.mono).plus(HELLO_MILLISECONDS);
        let may = until.since(now.mono) <= HELLOS_IN_A_ROW * HELLO_MILLISECONDS;
        if may {
            self.hellos_until = until;
        }
        may
    }

    /// Says something to the device that need not survive a crash.
    pub(crate) fn say(&mut self, context: &mut Context, body: &DownBody) {
        self.send(context, body, None);
    }

    /// Says something to the device that follows from a stored decision: should the process die first, the device
    /// is asked to say hello after the restart.
    pub(crate) fn say_durably(&mut self, context: &mut Context, body: &DownBody) {
        let outbox = context.outbox(Outgoing::Device { device: self.record.id });
        self.send(context, body, Some(outbox));
    }

    /// Asks for a hello, under the nonce it used last or, before it was heard, under none. Not too often.
    pub(crate) fn nudge(&mut self, context: &mut Context, body: &DownBody, now: Now) {
        if self.nudged.is_some_and(|last| now.mono.since(last) < NUDGE_MILLISECONDS) {
            return;
        }
        self.nudged = Some(now.mono);
        self.say(context, body);
    }

    /// Settles a row of the outbox from before the restart.
    pub(crate) fn resume(&mut self, context: &mut Context, outbox: u64) {
        self.send(context, &DownBody::HelloAgain, Some(outbox));
    }

    fn send(&mut self, context: &mut Context, body: &DownBody, outbox: Option<u64>) {
        // Whatever it is, a device that was not heard since the start can only be asked to say hello.
        let body = if self.link.is_known() { body } else { &DownBody::HelloAgain };
        let (id, mut link) = (self.record.id, std::mem::take(&mut self.link));
        let (_, key) = self.agree(context).expect("a key that agrees is a condition of enrolment");
        let payload = link.seal(&context.start, id, key, body);
        self.link = link;
        context.publish_down(id, payload, outbox);
    }

    /// Asks for key packages where the stock of `suite` is low.
    pub(crate) fn refill(&mut self, context: &mut Context, suite: Suite, now: Now) {
        if !self.may_join() || !self.link.is_known() || self.stock_of(suite) > 0 {
            return;
        }
        if self.asked.get(&suite).is_some_and(|asked| now.mono.since(*asked) < ASK_AGAIN_MILLISECONDS) {
            return;
        }
        self.asked.insert(suite, now.mono);
        self.say(context, &DownBody::RequestKeyPackages { suite, count: STOCK_TARGET });
    }

    /// Whether key packages of `suite` were asked for and have not come. Coming, they are asked for no more.
    pub(crate) fn take_asked(&mut self, suite: Suite) -> bool {
        self.asked.remove(&suite).is_some()
    }

    pub(crate) fn stock_of(&self, suite: Suite) -> usize {
        self.stock.get(&suite).map_or(0, BTreeMap::len)
    }

    /// Puts a stored key package into memory.
    pub(crate) fn restock(&mut self, record: KeyPackageRecord) {
        self.stock.entry(record.suite).or_default().insert(record.number, record.key_package);
    }

    /// Takes key packages in, up to the target.
    pub(crate) fn stock(&mut self, context: &mut Context, suite: Suite, packages: Vec<Vec<u8>>) {
        let mut number =
            self.stock.values().filter_map(|stock| stock.last_key_value()).map(|(n, _)| n + 1).max();
        for key_package in packages {
            if self.stock_of(suite) >= usize::from(STOCK_TARGET) {
                break;
            }
            let record =
                KeyPackageRecord { device: self.id(), number: number.unwrap_or(0), suite, key_package };
            number = Some(record.number + 1);
            context.put(&record);
            self.restock(record);
        }
    }

    /// Takes one key package out: it is never used again, whatever becomes of it.
    pub(crate) fn take_key_package(&mut self, context: &mut Context, suite: Suite) -> Option<Vec<u8>> {
        let (number, key_package) = self.stock.get_mut(&suite)?.pop_first()?;
        let record = KeyPackageRecord { device: self.id(), number, suite, key_package };
        context.delete(&record);
        Some(record.key_package)
    }

    /// Throws the stock away: a device that lost its state lost the private halves too.
    pub(crate) fn discard_stock(&mut self, context: &mut Context, suite: Suite) {
        while self.take_key_package(context, suite).is_some() {}
        self.asked.remove(&suite);
    }
}
