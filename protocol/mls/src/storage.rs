//! What openmls reads and writes during one operation: the slots of a group, and the changes to them.
//!
//! Nothing reaches the slots until the caller has the changes applied. Writes count only from
//! [`Storage::record`] on: merging a commit rewrites everything that staging it wrote, so what staging writes
//! (a whole pending tree among it) need not even be encoded.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use openmls_traits::storage::{CURRENT_VERSION, StorageProvider, traits};
use serde::Serialize;
use serde::de::DeserializeOwned;

use fleetkey_wire::PskId;

use crate::psk::id_of;
use crate::slots::{Changes, Key, Slot, SlotError, Slots, Value, decode, encode, key};

/// One operation's view of a group's slots.
pub(crate) struct Storage<'a> {
    slots: &'a Slots,
    changes: RefCell<Changes>,
    recording: Cell<bool>,
    /// Pre-shared keys: given to each operation anew, and part of no change.
    psks: RefCell<BTreeMap<Key, Value>>,
    lacked_psk: RefCell<Option<Key>>,
    used_psk: RefCell<Option<Key>>,
}

impl<'a> Storage<'a> {
    pub(crate) fn over(slots: &'a Slots) -> Self {
        Self {
            slots,
            changes: RefCell::default(),
            recording: Cell::new(false),
            psks: RefCell::default(),
            lacked_psk: RefCell::default(),
            used_psk: RefCell::default(),
        }
    }

    /// The external pre-shared key that openmls has asked for and that is not held.
    pub(crate) fn lacked_psk(&self) -> Option<PskId> {
        named_by(&self.lacked_psk)
    }

    /// The external pre-shared key that openmls has asked for last and been given.
    pub(crate) fn used_psk(&self) -> Option<PskId> {
        named_by(&self.used_psk)
    }

    /// From here on, writes count.
    pub(crate) fn record(&self) {
        self.recording.set(true);
    }

    /// What was written since [`Self::record`].
    pub(crate) fn into_changes(self) -> Changes {
        self.changes.into_inner()
    }

    fn put<T: Serialize>(&self, slot: Slot, key: Key, value: &T) -> Result<(), SlotError> {
        if self.recording.get() {
            self.changes.borrow_mut().insert(key, Some(encode(slot, value)?));
        }
        Ok(())
    }

    fn fetch<T: DeserializeOwned>(&self, slot: Slot, key: &[u8]) -> Result<Option<T>, SlotError> {
        match self.changes.borrow().get(key) {
            Some(Some(written)) => decode(slot, written).map(Some),
            Some(None) => Ok(None),
            None => self.slots.get(key).map(|stored| decode(slot, stored)).transpose(),
        }
    }

    fn forget(&self, key: Key) {
        if self.recording.get() {
            self.changes.borrow_mut().insert(key, None);
        }
    }

    fn drop_all(&self, slot: Slot) {
        let stored = self.slots.of_kind(slot).map(|(key, _)| key.clone());
        let written =
            self.changes.borrow().keys().filter(|k| k[0] == slot as u8).cloned().collect::<Vec<_>>();
        for key in stored.chain(written) {
            self.forget(key);
        }
    }

    fn all<T: DeserializeOwned>(&self, slot: Slot) -> Result<Vec<T>, SlotError> {
        let changes = self.changes.borrow();
        let stored = self.slots.of_kind(slot).filter(|(key, _)| !changes.contains_key(*key));
        let written = changes.iter().filter(|(key, _)| key[0] == slot as u8);
        stored
            .map(|(_, value)| value)
            .chain(written.filter_map(|(_, change)| change.as_ref()))
            .map(|value| decode(slot, value))
            .collect()
    }
}

fn named_by(key: &RefCell<Option<Key>>) -> Option<PskId> {
    let key = key.borrow();
    decode(Slot::Psk, key.as_ref()?.get(1..)?).ok().and_then(|psk| id_of(&psk))
}

/// The key of a slot that a group has one of. The group's id is left out: a [`Storage`] holds one group.
fn only(slot: Slot) -> Key {
    vec![slot as u8]
}

/// Write, read and delete a value that a group has one of.
macro_rules! one_per_group {
    ($($slot:ident: $bound:ident, $write:ident, $read:ident, $delete:ident;)*) => {$(
        fn $write<GroupId: traits::GroupId<CURRENT_VERSION>, Value: traits::$bound<CURRENT_VERSION>>(
            &self,
            _: &GroupId,
            value: &Value,
        ) -> Result<(), SlotError> {
            self.put(Slot::$slot, only(Slot::$slot), value)
        }

        fn $read<GroupId: traits::GroupId<CURRENT_VERSION>, Value: traits::$bound<CURRENT_VERSION>>(
            &self,
            _: &GroupId,
        ) -> Result<Option<Value>, SlotError> {
            self.fetch(Slot::$slot, &only(Slot::$slot))
        }

        fn $delete<GroupId: traits::GroupId<CURRENT_VERSION>>(&self, _: &GroupId) -> Result<(), SlotError> {
            self.forget(only(Slot::$slot));
            Ok(())
        }
    )*};
}

impl StorageProvider<CURRENT_VERSION> for Storage<'_> {
    type Error = SlotError;

    one_per_group! {
        JoinConfig: MlsGroupJoinConfig, write_mls_join_config, mls_group_join_config, delete_group_config;
        Tree: TreeSync, write_tree, tree, delete_tree;
        GroupContext: GroupContext, write_context, group_context, delete_context;
        InterimTranscriptHash: InterimTranscriptHash,
            write_interim_transcript_hash, interim_transcript_hash, delete_interim_transcript_hash;
        ConfirmationTag: ConfirmationTag, write_confirmation_tag, confirmation_tag, delete_confirmation_tag;
        MessageSecrets: MessageSecrets, write_message_secrets, message_secrets, delete_message_secrets;
        ResumptionPsks: ResumptionPskStore,
            write_resumption_psk_store, resumption_psk_store, delete_all_resumption_psk_secrets;
        OwnLeafIndex: LeafNodeIndex, write_own_leaf_index, own_leaf_index, delete_own_leaf_index;
        EpochSecrets: GroupEpochSecrets,
            write_group_epoch_secrets, group_epoch_secrets, delete_group_epoch_secrets;
    }

    fn write_group_state<State: traits::GroupState<CURRENT_VERSION>, Id: traits::GroupId<CURRENT_VERSION>>(
        &self,
        _: &Id,
        state: &State,
    ) -> Result<(), SlotError> {
        self.put(Slot::GroupState, only(Slot::GroupState), state)
    }

    fn group_state<State: traits::GroupState<CURRENT_VERSION>, Id: traits::GroupId<CURRENT_VERSION>>(
        &self,
        _: &Id,
    ) -> Result<Option<State>, SlotError> {
        self.fetch(Slot::GroupState, &only(Slot::GroupState))
    }

    fn delete_group_state<Id: traits::GroupId<CURRENT_VERSION>>(&self, _: &Id) -> Result<(), SlotError> {
        self.forget(only(Slot::GroupState));
        Ok(())
    }

    fn append_own_leaf_node<Id: traits::GroupId<CURRENT_VERSION>, Leaf: traits::LeafNode<CURRENT_VERSION>>(
        &self,
        _: &Id,
        leaf: &Leaf,
    ) -> Result<(), SlotError> {
        let count = self.all::<Leaf>(Slot::OwnLeafNodes)?.len();
        self.put(Slot::OwnLeafNodes, key(Slot::OwnLeafNodes, &count)?, leaf)
    }

    fn own_leaf_nodes<Id: traits::GroupId<CURRENT_VERSION>, Leaf: traits::LeafNode<CURRENT_VERSION>>(
        &self,
        _: &Id,
    ) -> Result<Vec<Leaf>, SlotError> {
        self.all(Slot::OwnLeafNodes)
    }

    fn delete_own_leaf_nodes<Id: traits::GroupId<CURRENT_VERSION>>(&self, _: &Id) -> Result<(), SlotError> {
        self.drop_all(Slot::OwnLeafNodes);
        Ok(())
    }

    fn queue_proposal<
        Id: traits::GroupId<CURRENT_VERSION>,
        Reference: traits::ProposalRef<CURRENT_VERSION>,
        Proposal: traits::QueuedProposal<CURRENT_VERSION>,
    >(
        &self,
        _: &Id,
        reference: &Reference,
        proposal: &Proposal,
    ) -> Result<(), SlotError> {
        self.put(Slot::QueuedProposal, key(Slot::QueuedProposal, reference)?, &(reference, proposal))
    }

    fn queued_proposal_refs<
        Id: traits::GroupId<CURRENT_VERSION>,
        Reference: traits::ProposalRef<CURRENT_VERSION>,
    >(
        &self,
        _: &Id,
    ) -> Result<Vec<Reference>, SlotError> {
        let all = self.all::<(Reference, serde::de::IgnoredAny)>(Slot::QueuedProposal)?;
        Ok(all.into_iter().map(|(reference, _)| reference).collect())
    }

    fn queued_proposals<
        Id: traits::GroupId<CURRENT_VERSION>,
        Reference: traits::ProposalRef<CURRENT_VERSION>,
        Proposal: traits::QueuedProposal<CURRENT_VERSION>,
    >(
        &self,
        _: &Id,
    ) -> Result<Vec<(Reference, Proposal)>, SlotError> {
        self.all(Slot::QueuedProposal)
    }

    fn remove_proposal<
        Id: traits::GroupId<CURRENT_VERSION>,
        Reference: traits::ProposalRef<CURRENT_VERSION>,
    >(
        &self,
        _: &Id,
        reference: &Reference,
    ) -> Result<(), SlotError> {
        self.forget(key(Slot::QueuedProposal, reference)?);
        Ok(())
    }

    fn clear_proposal_queue<
        Id: traits::GroupId<CURRENT_VERSION>,
        Reference: traits::ProposalRef<CURRENT_VERSION>,
    >(
        &self,
        _: &Id,
    ) -> Result<(), SlotError> {
        self.drop_all(Slot::QueuedProposal);
        Ok(())
    }

    fn write_encryption_key_pair<
        Public: traits::EncryptionKey<CURRENT_VERSION>,
        Pair: traits::HpkeKeyPair<CURRENT_VERSION>,
    >(
        &self,
        public: &Public,
        pair: &Pair,
    ) -> Result<(), SlotError> {
        self.put(Slot::EncryptionKeyPair, key(Slot::EncryptionKeyPair, public)?, pair)
    }

    fn encryption_key_pair<
        Pair: traits::HpkeKeyPair<CURRENT_VERSION>,
        Public: traits::EncryptionKey<CURRENT_VERSION>,
    >(
        &self,
        public: &Public,
    ) -> Result<Option<Pair>, SlotError> {
        self.fetch(Slot::EncryptionKeyPair, &key(Slot::EncryptionKeyPair, public)?)
    }

    fn delete_encryption_key_pair<Public: traits::EncryptionKey<CURRENT_VERSION>>(
        &self,
        public: &Public,
    ) -> Result<(), SlotError> {
        self.forget(key(Slot::EncryptionKeyPair, public)?);
        Ok(())
    }

    fn write_encryption_epoch_key_pairs<
        Id: traits::GroupId<CURRENT_VERSION>,
        Epoch: traits::EpochKey<CURRENT_VERSION>,
        Pair: traits::HpkeKeyPair<CURRENT_VERSION>,
    >(
        &self,
        _: &Id,
        epoch: &Epoch,
        leaf_index: u32,
        pairs: &[Pair],
    ) -> Result<(), SlotError> {
        self.put(Slot::EpochKeyPairs, key(Slot::EpochKeyPairs, &(epoch, leaf_index))?, &pairs)
    }

    fn encryption_epoch_key_pairs<
        Id: traits::GroupId<CURRENT_VERSION>,
        Epoch: traits::EpochKey<CURRENT_VERSION>,
        Pair: traits::HpkeKeyPair<CURRENT_VERSION>,
    >(
        &self,
        _: &Id,
        epoch: &Epoch,
        leaf_index: u32,
    ) -> Result<Vec<Pair>, SlotError> {
        let key = key(Slot::EpochKeyPairs, &(epoch, leaf_index))?;
        Ok(self.fetch(Slot::EpochKeyPairs, &key)?.unwrap_or_default())
    }

    fn delete_encryption_epoch_key_pairs<
        Id: traits::GroupId<CURRENT_VERSION>,
        Epoch: traits::EpochKey<CURRENT_VERSION>,
    >(
        &self,
        _: &Id,
        epoch: &Epoch,
        leaf_index: u32,
    ) -> Result<(), SlotError> {
        self.forget(key(Slot::EpochKeyPairs, &(epoch, leaf_index))?);
        Ok(())
    }

    fn write_key_package<
        Reference: traits::HashReference<CURRENT_VERSION>,
        Bundle: traits::KeyPackage<CURRENT_VERSION>,
    >(
        &self,
        reference: &Reference,
        bundle: &Bundle,
    ) -> Result<(), SlotError> {
        self.put(Slot::KeyPackage, key(Slot::KeyPackage, reference)?, bundle)
    }

    fn key_package<
        Reference: traits::HashReference<CURRENT_VERSION>,
        Bundle: traits::KeyPackage<CURRENT_VERSION>,
    >(
        &self,
        reference: &Reference,
    ) -> Result<Option<Bundle>, SlotError> {
        self.fetch(Slot::KeyPackage, &key(Slot::KeyPackage, reference)?)
    }

    fn delete_key_package<Reference: traits::HashReference<CURRENT_VERSION>>(
        &self,
        reference: &Reference,
    ) -> Result<(), SlotError> {
        self.forget(key(Slot::KeyPackage, reference)?);
        Ok(())
    }

    // Signature keys stay with their owner, and are never stored here.

    fn write_signature_key_pair<
        Public: traits::SignaturePublicKey<CURRENT_VERSION>,
        Pair: traits::SignatureKeyPair<CURRENT_VERSION>,
    >(
        &self,
        _: &Public,
        _: &Pair,
    ) -> Result<(), SlotError> {
        Ok(())
    }

    fn signature_key_pair<
        Public: traits::SignaturePublicKey<CURRENT_VERSION>,
        Pair: traits::SignatureKeyPair<CURRENT_VERSION>,
    >(
        &self,
        _: &Public,
    ) -> Result<Option<Pair>, SlotError> {
        Ok(None)
    }

    fn delete_signature_key_pair<Public: traits::SignaturePublicKey<CURRENT_VERSION>>(
        &self,
        _: &Public,
    ) -> Result<(), SlotError> {
        Ok(())
    }

    fn write_psk<Id: traits::PskId<CURRENT_VERSION>, Bundle: traits::PskBundle<CURRENT_VERSION>>(
        &self,
        id: &Id,
        bundle: &Bundle,
    ) -> Result<(), SlotError> {
        self.psks.borrow_mut().insert(key(Slot::Psk, id)?, encode(Slot::Psk, bundle)?);
        Ok(())
    }

    fn psk<Bundle: traits::PskBundle<CURRENT_VERSION>, Id: traits::PskId<CURRENT_VERSION>>(
        &self,
        id: &Id,
    ) -> Result<Option<Bundle>, SlotError> {
        let key = key(Slot::Psk, id)?;
        match self.psks.borrow().get(&key) {
            Some(held) => {
                self.used_psk.replace(Some(key.clone()));
                decode(Slot::Psk, held).map(Some)
            }
            None => {
                self.lacked_psk.replace(Some(key));
                Ok(None)
            }
        }
    }

    fn delete_psk<Id: traits::PskId<CURRENT_VERSION>>(&self, id: &Id) -> Result<(), SlotError> {
        self.psks.borrow_mut().remove(&key(Slot::Psk, id)?);
        Ok(())
    }
}
