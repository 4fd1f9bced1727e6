//! The external pre-shared keys that the device's operator has given it, and what they keep it from.
//!
//! One belongs to one group, by its id or its name; a group that has used one by name stays its group under whatever
//! name it goes later. While any is held for a group, the device joins that group, and lets
//! others join it, only with one of them. As soon as a group uses one, those given before it for the same group go: a
//! former key opens nothing any more. Leaves to `fleetkey-mls` how a key is mixed in and its use is checked.

use std::collections::BTreeMap;
use std::fmt;

use fleetkey_wire::limits::{MAX_GROUP_NAME_BYTES, MAX_PSKS_PER_DEVICE};
use fleetkey_wire::{GroupId, Psk, PskId};
use zeroize::Zeroizing;

use crate::agent::Agent;
use crate::effects::{Effects, Event};
use crate::refused::Refused;
use crate::store::Writes;
use crate::stored::{Bytes, EntryKey, StoredError, StoredPsk, decode, encode};

/// Which group a pre-shared key is for, as the operator has said it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PskGroup {
    /// The group of this id, whatever it is called.
    Id(GroupId),
    /// Every group of this name: known before the device has heard of any.
    Name(String),
}

impl PskGroup {
    /// An id where it is one, else a name.
    ///
    /// # Errors
    /// [`Refused::BadPskGroup`] for what no group can be called.
    pub fn parse(text: &str) -> Result<Self, Refused> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        if text.is_empty() || text.len() > MAX_GROUP_NAME_BYTES || text.chars().any(char::is_control) {
            return Err(Refused::BadPskGroup);
        }
        Ok(Self::Name(text.to_owned()))
    }

    fn is(&self, group: GroupId, names: &[&str]) -> bool {
        match self {
            Self::Id(id) => *id == group,
            Self::Name(name) => names.contains(&name.as_str()),
        }
    }
}

impl fmt::Display for PskGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

#[derive(Debug)]
struct Held {
    group: PskGroup,
    psk: Psk,
    /// The group that has used it.
    bound: Option<GroupId>,
}

impl Held {
    fn is_for(&self, group: GroupId, names: &[&str]) -> bool {
        self.bound == Some(group) || self.group.is(group, names)
    }

    fn to_stored(&self, number: u64) -> StoredPsk {
        let (group, secret) = (self.group.to_string(), Bytes::of(self.psk.as_bytes()));
        StoredPsk { number, group, secret, bound: self.bound }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Psks {
    /// In the order they were given.
    held: BTreeMap<u64, Held>,
    /// Groups that ask for one that is not held, since this start.
    lacking: BTreeMap<GroupId, PskId>,
    /// Whether the coordinator is told which are held although none is: it had reason to think otherwise.
    is_asked: bool,
}

impl Psks {
    pub(crate) fn restore(&mut self, id: PskId, bytes: &[u8]) -> Result<(), StoredError> {
        let key = EntryKey::Psk(id);
        let StoredPsk { number, group, secret, bound } = decode(&key, bytes)?;
        let secret = <[u8; 32]>::try_from(secret.0.as_slice()).map(Zeroizing::new);
        let secret = secret.map_err(|_| key.damaged("a pre-shared key has another length"))?;
        let psk = Psk::from_bytes(*secret);
        if psk.id() != id {
            return Err(key.damaged("it is another pre-shared key"));
        }
        let group = PskGroup::parse(&group).map_err(|refused| key.damaged(refused))?;
        self.held.insert(number, Held { group, psk, bound });
        Ok(())
    }

    fn add(&mut self, group: PskGroup, psk: &Psk, writes: &mut Writes) -> Result<bool, Refused> {
        let id = psk.id();
        if let Some(held) = self.held.values().find(|held| held.psk.id() == id) {
            return if held.group == group {
                Ok(false)
            } else {
                Err(Refused::PskOfAnotherGroup { psk: id, group: held.group.to_string() })
            };
        }
        if self.held.len() >= MAX_PSKS_PER_DEVICE {
            return Err(Refused::TooManyPsks { held: self.held.len() });
        }
        let number = self.held.last_key_value().map_or(0, |(number, _)| number + 1);
        let held = Held { group, psk: psk.clone(), bound: None };
        writes.put(EntryKey::Psk(id).to_string(), encode(&held.to_stored(number)));
        self.held.insert(number, held);
        Ok(true)
    }

    fn remove(&mut self, id: PskId, writes: &mut Writes) -> Result<(), Refused> {
        let number = self.held.iter().find(|(_, held)| held.psk.id() == id).map(|(number, _)| *number);
        self.held.remove(&number.ok_or(Refused::UnknownPsk { psk: id })?);
        writes.delete(EntryKey::Psk(id).to_string());
        Ok(())
    }

    /// Those for a group that goes, or went, by these names.
    fn of(&self, group: GroupId, names: &[&str]) -> Vec<Psk> {
        let held = self.held.values().filter(|held| held.is_for(group, names));
        held.map(|held| held.psk.clone()).collect()
    }

    /// The group, by these names, uses `used`: it is bound to the group, and those that were given before it for the same
    /// group go.
    fn settle(&mut self, group: GroupId, names: &[&str], used: PskId, writes: &mut Writes) {
        self.lacking.remove(&group);
        let Some((newest, held)) = self.held.iter_mut().find(|(_, held)| held.psk.id() == used) else {
            return;
        };
        let newest = *newest;
        if held.bound.is_none() {
            held.bound = Some(group);
            writes.put(EntryKey::Psk(used).to_string(), encode(&held.to_stored(newest)));
        }
        let former = |number: &u64, held: &Held| *number < newest && held.is_for(group, names);
        for (_, gone) in self.held.extract_if(.., |number, held| former(number, held)) {
            writes.delete(EntryKey::Psk(gone.psk.id()).to_string());
        }
    }

    /// Whether it was not known that a group asks for a pre-shared key that is not held.
    fn is_news(&mut self, group: GroupId, psk: PskId) -> bool {
        if self.lacking.len() >= MAX_PSKS_PER_DEVICE && !self.lacking.contains_key(&group) {
            return false;
        }
        self.lacking.insert(group, psk) != Some(psk)
    }

    /// What to tell the coordinator; nothing where none is held and it has no reason to think otherwise.
    pub(crate) fn to_tell(&self) -> Option<Vec<PskId>> {
        (self.is_asked || !self.held.is_empty())
            .then(|| self.held.values().map(|held| held.psk.id()).collect())
    }

    pub(crate) fn held(&self) -> impl Iterator<Item = (PskId, &PskGroup)> {
        self.held.values().map(|held| (held.psk.id(), &held.group))
    }

    pub(crate) const fn lacking(&self) -> &BTreeMap<GroupId, PskId> {
        &self.lacking
    }
}

impl Agent {
    /// Those that are held for a group, by any name that it has or says it has.
    pub(crate) fn psks_of(&self, group: GroupId, said: &str) -> Vec<Psk> {
        let known = self.groups.get(&group).map_or(said, |group| group.keys.name.as_str());
        self.psks.of(group, &[said, known])
    }

    pub(crate) fn add_psk(&mut self, group: &str, psk: &Psk, effects: &mut Effects) -> Result<(), Refused> {
        if self.psks.add(PskGroup::parse(group)?, psk, &mut effects.writes)? {
            self.psks.lacking.retain(|_, lacked| *lacked != psk.id());
            self.tell_psks();
        }
        Ok(())
    }

    pub(crate) fn remove_psk(&mut self, psk: PskId, effects: &mut Effects) -> Result<(), Refused> {
        self.psks.remove(psk, &mut effects.writes)?;
        self.tell_psks();
        Ok(())
    }

    /// A Welcome or a commit was refused. Where it asks for a pre-shared key that is not held, the coordinator is told
    /// which are: once for each, however often it comes.
    pub(crate) fn mind_lack(&mut self, group: GroupId, refused: Refused, effects: &mut Effects) -> Refused {
        if let Refused::Mls(fleetkey_mls::Refused::PskMissing { psk }) = refused
            && self.psks.is_news(group, psk)
        {
            effects.event(Event::PskLacking { group, psk });
            self.tell_psks();
        }
        refused
    }

    /// The keys of a group, which goes by the name `said` or the one that is known, depend on `used` from now on.
    pub(crate) fn settle_psk(
        &mut self,
        group: GroupId,
        said: &str,
        used: Option<PskId>,
        effects: &mut Effects,
    ) {
        if let Some(used) = used {
            let known = self.groups.get(&group).map_or(said, |group| group.keys.name.as_str());
            self.psks.settle(group, &[said, known], used, &mut effects.writes);
        }
    }

    fn tell_psks(&mut self) {
        self.psks.is_asked = true;
        if let Some(connection) = &mut self.connection {
            connection.are_psks_told = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn psk(byte: u8) -> Psk {
        let mut bytes = [byte; 32];
        bytes[0] = 0xff;
        Psk::from_bytes(bytes)
    }

    fn named(name: &str) -> PskGroup {
        PskGroup::parse(name).unwrap()
    }

    fn ids(psks: &Psks) -> Vec<PskId> {
        psks.held().map(|(id, _)| id).collect()
    }

    const GROUP: GroupId = GroupId::from_bytes([7; 16]);

    #[test]
    fn one_is_held_for_its_group_by_id_and_by_every_name() {
        let (mut psks, mut writes) = (Psks::default(), Writes::default());
        assert_eq!(psks.add(named("pumps"), &psk(1), &mut writes), Ok(true));
        assert_eq!(psks.add(PskGroup::Id(GROUP), &psk(2), &mut writes), Ok(true));
        assert_eq!(psks.add(named("pumps"), &psk(1), &mut writes), Ok(false), "it is held already");
        let refused = Refused::PskOfAnotherGroup { psk: psk(1).id(), group: "pumps".into() };
        assert_eq!(psks.add(named("valves"), &psk(1), &mut writes), Err(refused));

        assert_eq!(psks.of(GROUP, &["valves", "valves"]), [psk(2)]);
        assert_eq!(psks.of(GROUP, &["valves", "pumps"]), [psk(1), psk(2)]);
        assert_eq!(psks.of(GroupId::from_bytes([8; 16]), &["pumps", "x"]), [psk(1)]);
        assert_eq!(psks.of(GroupId::from_bytes([8; 16]), &["valves"]), []);
    }

    #[test]
    fn the_former_one_goes_when_the_next_is_used_and_not_before() {
        let (mut psks, mut writes) = (Psks::default(), Writes::default());
        for (name, byte) in [("pumps", 1), ("valves", 2), ("pumps", 3), ("pumps", 4)] {
            psks.add(named(name), &psk(byte), &mut writes).unwrap();
        }
        psks.settle(GROUP, &["pumps"], psk(1).id(), &mut writes);
        assert_eq!(ids(&psks).len(), 4);
        let mut writes = Writes::default();
        psks.settle(GROUP, &["pumps"], psk(3).id(), &mut writes);
        assert_eq!(ids(&psks), [psk(2).id(), psk(3).id(), psk(4).id()]);
        assert_eq!(writes.iter().count(), 2, "one is bound, and one goes");
    }

    #[test]
    fn the_former_one_goes_also_where_it_was_given_by_name_and_the_next_by_id() {
        let (mut psks, mut writes) = (Psks::default(), Writes::default());
        psks.add(named("pumps"), &psk(1), &mut writes).unwrap();
        psks.add(PskGroup::Id(GROUP), &psk(2), &mut writes).unwrap();
        psks.settle(GROUP, &["pumps"], psk(2).id(), &mut writes);
        assert_eq!(ids(&psks), [psk(2).id()]);
    }

    #[test]
    fn a_group_that_has_used_one_by_name_is_held_to_it_under_any_other_name() {
        let (mut psks, mut writes) = (Psks::default(), Writes::default());
        psks.add(named("pumps"), &psk(1), &mut writes).unwrap();
        assert_eq!(psks.of(GROUP, &["x"]), []);
        psks.settle(GROUP, &["pumps"], psk(1).id(), &mut writes);
        assert_eq!(psks.of(GROUP, &["x"]), [psk(1)]);

        let mut entries = crate::store::Entries::new();
        writes.apply_to(&mut entries);
        let mut loaded = Psks::default();
        loaded.restore(psk(1).id(), &entries[&format!("psk/{}", psk(1).id())]).unwrap();
        assert_eq!(loaded.of(GROUP, &["x"]), [psk(1)], "after a restart, too");
        assert_eq!(
            loaded.of(GroupId::from_bytes([8; 16]), &["pumps"]),
            [psk(1)],
            "and whoever takes its name"
        );
    }

    #[test]
    fn what_is_stored_comes_back_and_damage_does_not() {
        let (mut psks, mut writes) = (Psks::default(), Writes::default());
        psks.add(named("pumps"), &psk(1), &mut writes).unwrap();
        let mut entries = crate::store::Entries::new();
        writes.apply_to(&mut entries);
        let (key, value) = entries.pop_first().unwrap();
        assert_eq!(key, format!("psk/{}", psk(1).id()));
        let mut loaded = Psks::default();
        loaded.restore(psk(1).id(), &value).unwrap();
        assert_eq!(loaded.of(GROUP, &["pumps"]), [psk(1)]);
        assert!(matches!(loaded.restore(psk(2).id(), &value), Err(StoredError::Damaged { .. })));

        let mut writes = Writes::default();
        loaded.remove(psk(1).id(), &mut writes).unwrap();
        assert_eq!(loaded.remove(psk(1).id(), &mut writes), Err(Refused::UnknownPsk { psk: psk(1).id() }));
        writes.apply_to(&mut entries);
        assert!(entries.is_empty() && ids(&loaded).is_empty());
    }

    #[test]
    fn no_more_are_held_than_can_be_named() {
        let (mut psks, mut writes) = (Psks::default(), Writes::default());
        for byte in 0..u8::try_from(MAX_PSKS_PER_DEVICE).unwrap() {
            psks.add(named("pumps"), &psk(byte), &mut writes).unwrap();
        }
        let refused = psks.add(named("pumps"), &psk(0xee), &mut writes);
        assert_eq!(refused, Err(Refused::TooManyPsks { held: MAX_PSKS_PER_DEVICE }));
    }

    #[test]
    fn a_name_that_no_group_can_have_is_refused() {
        for text in ["", "a\nb", &"x".repeat(65)] {
            assert_eq!(PskGroup::parse(text), Err(Refused::BadPskGroup), "{text:?}");
        }
    }
}
