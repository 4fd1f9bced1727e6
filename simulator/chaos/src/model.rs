//! The reference model: what must be true, said much more simply than the code says it.
//!
//! It knows which secrets were issued and by whom, who was a member from which key epoch to which, and what each
//! device was ever seen to hold. It knows nothing of MLS, frames, or how anything is done.

use std::collections::{BTreeMap, BTreeSet};

use fleetkey_wire::{Commitment, DeviceId, GroupId, KeyEpoch, SignedStatement};
use serde::Serialize;

/// What must always hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// 1: a device that was removed derives no group secret made since.
    RemovedLearnsNothing,
    /// 2: a joining device derives no group secret from before.
    JoinerLearnsNothingOlder,
    /// 3: every live, reachable member ends with the current keys, once faults stop.
    EveryoneEndsCurrent,
    /// 4: a key epoch names one secret, for ever; a copy is detected and stops.
    OneSecretPerKeyEpoch,
    /// 5: nobody but the coordinator moves anybody, and nobody moves anybody back.
    OnlyTheCoordinatorMoves,
    /// 6: a device is reported as confirmed only if it held the secret.
    ConfirmedMeansHeld,
    /// 7: bad input costs its sender, and changes nothing that is stored.
    BadInputCostsItsSender,
    /// Decided, stored, then spoken: nothing is said before it is stored, and all of it is said.
    StoredThenSpoken,
    /// Whoever is at the cell epoch that a frame of the coordinator's is for can open it: catch-up mends what was lost,
    /// and hides nothing that was made wrong.
    WhatIsSaidOpens,
    /// What is stored makes sense after every crash.
    StoreMakesSense,
    /// Queues, caches and logs stay within their limits.
    WithinLimits,
    /// No part of it panics, and no decision fails half-way.
    NothingBreaks,
}

impl Rule {
    /// Its number in the design where it has one, and its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RemovedLearnsNothing => "rule 1: a removed device learns nothing made since",
            Self::JoinerLearnsNothingOlder => "rule 2: a joining device learns nothing older",
            Self::EveryoneEndsCurrent => "rule 3: everyone ends current",
            Self::OneSecretPerKeyEpoch => "rule 4: one secret per key epoch",
            Self::OnlyTheCoordinatorMoves => "rule 5: only the coordinator moves",
            Self::ConfirmedMeansHeld => "rule 6: confirmed means held",
            Self::BadInputCostsItsSender => "rule 7: bad input costs its sender",
            Self::StoredThenSpoken => "stored, then spoken",
            Self::WhatIsSaidOpens => "what is said opens",
            Self::StoreMakesSense => "what is stored makes sense",
            Self::WithinLimits => "within limits",
            Self::NothingBreaks => "nothing breaks",
        }
    }
}

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// When, in milliseconds of simulated time.
    pub at_milliseconds: u64,
    /// By whom, and how.
    pub what: String,
}

/// Which coordinator said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Voice {
    /// The one that counts.
    Main,
    /// A copy of it.
    Copy,
}

/// From which key epoch on a device was a member, and up to which.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: KeyEpoch,
    until: Option<KeyEpoch>,
}

/// Where a running device was last seen in one group.
#[derive(Debug, Clone)]
struct Seen {
    send: KeyEpoch,
    oldest: KeyEpoch,
    held: BTreeMap<KeyEpoch, Commitment>,
}

/// What one running device shows of one group.
#[derive(Debug)]
pub(crate) struct Holding {
    pub(crate) group: GroupId,
    pub(crate) send: KeyEpoch,
    pub(crate) oldest: KeyEpoch,
    pub(crate) held: Vec<(KeyEpoch, Commitment)>,
}

pub(crate) type Broken = Result<(), (Rule, String)>;

/// Everything that must be known to judge.
#[derive(Debug, Default)]
pub(crate) struct Model {
    issued: BTreeMap<(GroupId, KeyEpoch), Commitment>,
    issued_by_copy: BTreeSet<(GroupId, KeyEpoch, [u8; 32])>,
    newest: BTreeMap<GroupId, KeyEpoch>,
    /// Digests of the statements heard: after a crash the outbox says some of them again.
    stated: BTreeSet<[u8; 32]>,
    last_removal: BTreeMap<GroupId, KeyEpoch>,
    spans: BTreeMap<(GroupId, DeviceId), Vec<Span>>,
    /// Whom a copy has let in: what it gave them is its own doing.
    let_in_by_copy: BTreeSet<(GroupId, DeviceId)>,
    /// By the number of the running device: two may run under one id.
    seen: BTreeMap<usize, BTreeMap<GroupId, Seen>>,
    held_ever: BTreeSet<(DeviceId, GroupId, KeyEpoch)>,
}

impl Model {
    /// A coordinator has stored that a key epoch names a secret.
    pub(crate) fn named(
        &mut self,
        voice: Voice,
        group: GroupId,
        key_epoch: KeyEpoch,
        commitment: Commitment,
    ) -> Broken {
        let before = self.issued.get(&(group, key_epoch)).copied();
        if before == Some(commitment) {
            return Ok(());
        }
        if voice == Voice::Copy {
            self.issued_by_copy.insert((group, key_epoch, commitment.0));
            return Ok(());
        }
        self.issued.insert((group, key_epoch), commitment);
        if before.is_none() {
            return Ok(());
        }
        let what = format!("group {group} names two secrets by key epoch {key_epoch}");
        Err((Rule::OneSecretPerKeyEpoch, what))
    }

    /// A statement was stored by a coordinator, and will be sent to cells.
    pub(crate) fn stated(&mut self, voice: Voice, signed: &SignedStatement) -> Broken {
        let said = signed.statement();
        self.named(voice, said.group, said.key_epoch, said.commitment)?;
        if voice == Voice::Copy {
            return Ok(());
        }
        let newest = self.newest.get(&said.group).copied().unwrap_or_default();
        let is_again = self.stated.contains(&signed.digest().0);
        if is_again {
            return Ok(());
        }
        self.stated.insert(signed.digest().0);
        if said.key_epoch < newest {
            let what = format!(
                "group {} went from key epoch {newest} back to {} ({})",
                said.group, said.key_epoch, said.reason
            );
            return Err((Rule::OneSecretPerKeyEpoch, what));
        }
        self.newest.insert(said.group, said.key_epoch);
        let removal = self.last_removal.get(&said.group).copied().unwrap_or_default();
        if said.send < removal {
            let what = format!(
                "group {} seals with {}, which a removed device may hold: its removal led to {removal}",
                said.group, said.send
            );
            return Err((Rule::RemovedLearnsNothing, what));
        }
        Ok(())
    }

    /// Whether a copy has issued anything of its own.
    pub(crate) fn has_copy_issued(&self) -> bool {
        !self.issued_by_copy.is_empty()
    }

    /// A device came into a group, in a transaction after which the group seals with `send`.
    pub(crate) fn joined(&mut self, group: GroupId, device: DeviceId, send: KeyEpoch) {
        let spans = self.spans.entry((group, device)).or_default();
        if spans.last().is_none_or(|span| span.until.is_some()) {
            spans.push(Span { from: send, until: None });
        }
    }

    /// A copy has let a device in.
    pub(crate) fn joined_copy(&mut self, group: GroupId, device: DeviceId) {
        self.let_in_by_copy.insert((group, device));
    }

    /// A device is out of a group, in a transaction after which the group seals with `send`.
    pub(crate) fn left(&mut self, group: GroupId, device: DeviceId, send: KeyEpoch) {
        for span in self.spans.entry((group, device)).or_default() {
            span.until.get_or_insert(send);
        }
        self.last_removal.insert(group, send);
    }

    /// What a coordinator that was started again has stored of a group: who is in it, since which key epoch.
    pub(crate) fn reconcile(
        &mut self,
        group: GroupId,
        send: KeyEpoch,
        members: &BTreeMap<DeviceId, KeyEpoch>,
    ) {
        for (device, admitted) in members {
            self.joined(group, *device, *admitted);
        }
        let gone: Vec<DeviceId> = self
            .spans
            .iter()
            .filter(|((of, device), spans)| {
                let is_open = spans.last().is_some_and(|span| span.until.is_none());
                *of == group && is_open && !members.contains_key(device)
            })
            .map(|((_, device), _)| *device)
            .collect();
        for device in gone {
            self.left(group, device, send);
        }
    }

    /// The coordinator was restored: everybody comes in anew.
    pub(crate) fn restored(&mut self, incarnation: u32) {
        let until = KeyEpoch::new(incarnation, 0);
        for span in self.spans.values_mut().flatten() {
            span.until.get_or_insert(until);
        }
    }

    /// The newest key epoch of a group that was stated.
    pub(crate) fn newest(&self, group: GroupId) -> Option<KeyEpoch> {
        self.newest.get(&group).copied()
    }

    /// Whether a device is in a group, as far as the coordinator has stored.
    pub(crate) fn is_member(&self, group: GroupId, device: DeviceId) -> bool {
        let spans = self.spans.get(&(group, device));
        spans.and_then(|spans| spans.last()).is_some_and(|span| span.until.is_none())
    }

    /// A running device has stored something, and shows this of every group it is in.
    pub(crate) fn holds(&mut self, runner: usize, device: DeviceId, holdings: Vec<Holding>) -> Broken {
        let before = self.seen.remove(&runner).unwrap_or_default();
        let mut after = BTreeMap::new();
        let mut broken = Ok(());
        for Holding { group, send, oldest, held } in holdings {
            let held: BTreeMap<KeyEpoch, Commitment> = held.into_iter().collect();
            let former = before.get(&group);
            let judged = self.judge(device, group, &held).and_then(|()| {
                former.map_or(Ok(()), |former| judge_course(device, group, former, send, oldest, &held))
            });
            broken = broken.and(judged);
            after.insert(group, Seen { send, oldest, held });
        }
        self.seen.insert(runner, after);
        broken
    }

    fn judge(&mut self, device: DeviceId, group: GroupId, held: &BTreeMap<KeyEpoch, Commitment>) -> Broken {
        for (key_epoch, commitment) in held {
            self.held_ever.insert((device, group, *key_epoch));
            if self.issued.get(&(group, *key_epoch)) != Some(commitment) {
                if self.issued_by_copy.contains(&(group, *key_epoch, commitment.0)) {
                    continue;
                }
                let what = format!("{device} holds a secret for {key_epoch} of {group} that nobody issued");
                return Err((Rule::OnlyTheCoordinatorMoves, what));
            }
            let spans = self.spans.get(&(group, device)).map(Vec::as_slice).unwrap_or_default();
            let is_due =
                |span: &Span| span.from <= *key_epoch && span.until.is_none_or(|until| *key_epoch < until);
            if spans.iter().any(is_due) || self.let_in_by_copy.contains(&(group, device)) {
                continue;
            }
            let removed = spans.iter().filter_map(|span| span.until).any(|until| *key_epoch >= until);
            let rule = if removed { Rule::RemovedLearnsNothing } else { Rule::JoinerLearnsNothingOlder };
            let spans: Vec<String> = spans
                .iter()
                .map(|span| match span.until {
                    Some(until) => format!("{}..{until}", span.from),
                    None => format!("{}..", span.from),
                })
                .collect();
            let what = format!(
                "{device} holds key epoch {key_epoch} of {group}, and was a member for {}",
                if spans.is_empty() { "none".to_owned() } else { spans.join(", ") }
            );
            return Err((rule, what));
        }
        Ok(())
    }

    /// A running device begins from other contents: what it showed before binds it no more.
    pub(crate) fn forget_runner(&mut self, runner: usize) {
        self.seen.remove(&runner);
    }

    /// A coordinator takes a device to have confirmed.
    pub(crate) fn confirmed(&self, device: DeviceId, group: GroupId, key_epoch: KeyEpoch) -> Broken {
        if self.held_ever.contains(&(device, group, key_epoch)) {
            return Ok(());
        }
        let what = format!("{device} counts as confirmed for {key_epoch} of {group}, and never stored it");
        Err((Rule::ConfirmedMeansHeld, what))
    }
}

/// Nobody moves a device back, or under its feet.
fn judge_course(
    device: DeviceId,
    group: GroupId,
    former: &Seen,
    send: KeyEpoch,
    oldest: KeyEpoch,
    held: &BTreeMap<KeyEpoch, Commitment>,
) -> Broken {
    if send < former.send || oldest < former.oldest {
        let what = format!(
            "{device} went back in {group}: send {} to {send}, oldest {} to {oldest}",
            former.send, former.oldest
        );
        return Err((Rule::OnlyTheCoordinatorMoves, what));
    }
    for (key_epoch, commitment) in held {
        if former.held.get(key_epoch).is_some_and(|before| before != commitment) {
            let what = format!("{device} held another secret for {key_epoch} of {group} before");
            return Err((Rule::OneSecretPerKeyEpoch, what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use fleetkey_identity::IdentityKey;
    use fleetkey_wire::{FleetId, KeyId, Reason, Statement};

    use super::*;
    use crate::dice::Dice;

    const GROUP: GroupId = GroupId::from_bytes([1; 16]);
    const DEVICE: DeviceId = DeviceId::from_bytes([2; 16]);

    fn key_epoch(counter: u32) -> KeyEpoch {
        KeyEpoch::new(7, counter)
    }

    fn secret_of(counter: u32) -> Commitment {
        Commitment([counter as u8; 32])
    }

    fn statement(counter: u32, send: u32) -> SignedStatement {
        let key = IdentityKey::generate(Dice::of(1, "model", 0).rng());
        Statement {
            group: GROUP,
            key_epoch: key_epoch(counter),
            commitment: secret_of(counter),
            reason: Reason::Manual,
            send: key_epoch(send),
            oldest: key_epoch(send),
            overlap_seconds: 0,
            issued_unix_seconds: u64::from(counter) * 100 + u64::from(send),
        }
        .sign(FleetId::from_bytes([3; 16]), KeyId([4; 8]), key.signing_key())
    }

    fn holding(counters: &[u32]) -> Vec<Holding> {
        let newest = counters.last().copied().unwrap_or_default();
        vec![Holding {
            group: GROUP,
            send: key_epoch(newest),
            oldest: key_epoch(newest),
            held: counters.iter().map(|counter| (key_epoch(*counter), secret_of(*counter))).collect(),
        }]
    }

    /// A device that came in with key epoch 2 of 3 that were issued.
    fn joined() -> Model {
        let mut model = Model::default();
        for counter in 1..=3 {
            model.stated(Voice::Main, &statement(counter, counter)).expect("issued in order");
        }
        model.joined(GROUP, DEVICE, key_epoch(2));
        model
    }

    fn rule(broken: Broken) -> Option<Rule> {
        broken.err().map(|(rule, _)| rule)
    }

    #[test]
    fn a_member_may_hold_what_was_issued_since_it_joined_and_nothing_older() {
        assert_eq!(rule(joined().holds(0, DEVICE, holding(&[2, 3]))), None);
        let older = joined().holds(0, DEVICE, holding(&[1, 2]));
        assert_eq!(rule(older), Some(Rule::JoinerLearnsNothingOlder));
        let stranger = DeviceId::from_bytes([9; 16]);
        assert_eq!(rule(joined().holds(0, stranger, holding(&[2]))), Some(Rule::JoinerLearnsNothingOlder));
    }

    #[test]
    fn a_removed_device_may_keep_what_it_has_and_get_nothing_more() {
        let mut model = joined();
        model.left(GROUP, DEVICE, key_epoch(3));
        assert_eq!(rule(model.holds(0, DEVICE, holding(&[2]))), None);
        assert_eq!(rule(model.holds(0, DEVICE, holding(&[2, 3]))), Some(Rule::RemovedLearnsNothing));
    }

    #[test]
    fn a_key_that_a_removed_device_may_hold_is_never_used() {
        let mut model = joined();
        model.left(GROUP, DEVICE, key_epoch(4));
        assert_eq!(rule(model.stated(Voice::Main, &statement(4, 4))), None);
        assert_eq!(rule(model.stated(Voice::Main, &statement(5, 3))), Some(Rule::RemovedLearnsNothing));
    }

    #[test]
    fn a_key_epoch_names_one_secret_and_they_only_grow() {
        let mut model = joined();
        let other = model.named(Voice::Main, GROUP, key_epoch(3), secret_of(9));
        assert_eq!(rule(other), Some(Rule::OneSecretPerKeyEpoch));
        assert_eq!(rule(joined().stated(Voice::Main, &statement(2, 3))), Some(Rule::OneSecretPerKeyEpoch));
        assert_eq!(rule(joined().named(Voice::Copy, GROUP, key_epoch(3), secret_of(9))), None);
    }

    #[test]
    fn a_secret_that_nobody_issued_is_nobodys_to_hold() {
        assert_eq!(rule(joined().holds(0, DEVICE, holding(&[2, 8]))), Some(Rule::OnlyTheCoordinatorMoves));
    }

    #[test]
    fn nobody_is_moved_back_unless_it_begins_from_other_contents() {
        let mut model = joined();
        model.holds(0, DEVICE, holding(&[2, 3])).expect("it is current");
        assert_eq!(rule(model.holds(0, DEVICE, holding(&[2]))), Some(Rule::OnlyTheCoordinatorMoves));
        model.forget_runner(0);
        assert_eq!(rule(model.holds(0, DEVICE, holding(&[2]))), None);
    }

    #[test]
    fn only_what_was_stored_once_may_be_confirmed() {
        let mut model = joined();
        assert_eq!(rule(model.confirmed(DEVICE, GROUP, key_epoch(3))), Some(Rule::ConfirmedMeansHeld));
        model.holds(0, DEVICE, holding(&[3])).expect("it is due");
        assert_eq!(rule(model.confirmed(DEVICE, GROUP, key_epoch(3))), None);
    }
}
