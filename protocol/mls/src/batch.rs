//! What a commit may hold: each join and update checked by name, so that a bad one drops out alone.
//!
//! Leaves to `leaf` and `key_package` what holds for one alone; here they are held against the cell and each other.

use std::collections::{BTreeMap, BTreeSet};

use fleetkey_wire::DeviceId;
use openmls::group::{MlsGroup, QueuedProposal};
use openmls::prelude::{ProcessedMessageContent, Proposal, Sender};
use openmls_traits::OpenMlsProvider as _;

use crate::commit::{AddDevice, Changes, Dropped, failed};
use crate::error::{LocalError, MlsError, Refused};
use crate::key_package::{CheckedKeyPackage, check_key_package};
use crate::leaf::{check_device_leaf, encryption_key, parent_key, trial_seal};
use crate::manager::{ManagedCell, Seat};
use crate::message::{Content, MAX_COVERED_UPDATES, private_message, proposal_name, refusal};
use crate::provider::Provider;

/// What is left of [`Changes`], and what is not.
pub(crate) struct Batch {
    /// Where the members sit that are to be removed.
    pub(crate) leaving: BTreeMap<DeviceId, Seat>,
    /// The joins and updates. The updates are in the group's proposal store.
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) dropped: Vec<Dropped>,
}

/// A change that a device has a say in.
pub(crate) enum Candidate {
    Join { device: DeviceId, signature_key: [u8; 32], checked: Box<CheckedKeyPackage> },
    Update { device: DeviceId, proposal: Box<QueuedProposal>, bytes: Vec<u8> },
}

impl Candidate {
    pub(crate) const fn device(&self) -> DeviceId {
        match self {
            Self::Join { device, .. } | Self::Update { device, .. } => *device,
        }
    }
}

impl Batch {
    /// Checks `changes` against `cell`, whose group is `group`.
    pub(crate) fn of(
        cell: &ManagedCell,
        provider: &Provider<'_>,
        group: &mut MlsGroup,
        changes: &Changes,
    ) -> Result<Self, LocalError> {
        let mut batch = Self { leaving: BTreeMap::new(), candidates: Vec::new(), dropped: Vec::new() };
        for &device in &changes.remove {
            match cell.roster.get(&device) {
                Some(seat) => {
                    batch.leaving.insert(device, *seat);
                }
                None => batch.drop(device, Refused::NotAMember { device }),
            }
        }
        if changes.updates.is_empty() && changes.add.is_empty() {
            return Ok(batch);
        }
        let mut taken = Taken::by_all_but(group, &batch.leaving);
        for (device, bytes) in &changes.updates {
            batch.take_update(cell, provider, group, &mut taken, *device, bytes)?;
        }
        for add in &changes.add {
            batch.take_join(cell, provider, &mut taken, add);
        }
        Ok(batch)
    }

    fn drop(&mut self, device: DeviceId, why: Refused) {
        self.dropped.push(Dropped { device, why });
    }

    fn holds(&self, device: DeviceId) -> bool {
        self.candidates.iter().any(|candidate| candidate.device() == device)
    }

    fn take_update(
        &mut self,
        cell: &ManagedCell,
        provider: &Provider<'_>,
        group: &mut MlsGroup,
        taken: &mut Taken,
        device: DeviceId,
        bytes: &[u8],
    ) -> Result<(), LocalError> {
        let (got, max) = (self.candidates.len() + 1, MAX_COVERED_UPDATES);
        let checked = if self.leaving.contains_key(&device) {
            Err(Refused::Leaving { device }.into())
        } else if self.holds(device) {
            Err(Refused::Repeated { device }.into())
        } else if got > max {
            Err(Refused::TooManyUpdates { got, max }.into())
        } else {
            check_update(cell, provider, group, device, bytes)
                .and_then(|(proposal, key)| Ok(taken.claim_encryption_key(key).map(|()| proposal)?))
        };
        match checked {
            Ok(proposal) => {
                group
                    .store_pending_proposal(provider.storage(), proposal.clone())
                    .map_err(|error| failed(&error))?;
                let (proposal, bytes) = (Box::new(proposal), bytes.to_vec());
                self.candidates.push(Candidate::Update { device, proposal, bytes });
            }
            Err(MlsError::Refused(why)) => {
                self.drop(device, why);
                // What was refused may have moved on the ratchet of a member who has nothing to do with it.
                *group = self.reload(cell, provider)?;
            }
            Err(MlsError::Local(error)) => return Err(error),
        }
        Ok(())
    }

    /// The group as it was stored, with the updates that are taken so far.
    fn reload(&self, cell: &ManagedCell, provider: &Provider<'_>) -> Result<MlsGroup, LocalError> {
        let mut group = cell.state.load(provider)?;
        for candidate in &self.candidates {
            if let Candidate::Update { proposal, .. } = candidate {
                group
                    .store_pending_proposal(provider.storage(), (**proposal).clone())
                    .map_err(|error| failed(&error))?;
            }
        }
        Ok(group)
    }

    fn take_join(&mut self, cell: &ManagedCell, provider: &Provider<'_>, taken: &mut Taken, add: &AddDevice) {
        let device = add.device;
        let checked = if self.holds(device) {
            Err(Refused::Repeated { device })
        } else if cell.contains(device) && !self.leaving.contains_key(&device) {
            Err(Refused::AlreadyMember { device })
        } else {
            check_join(cell, provider, add).and_then(|join| taken.claim(&join).map(|()| join))
        };
        match checked {
            Ok(join) => self.candidates.push(join),
            Err(why) => self.drop(device, why),
        }
    }
}

/// The join in `add`, if the device may be added with it to some cell like this.
pub(crate) fn check_join(
    cell: &ManagedCell,
    provider: &Provider<'_>,
    add: &AddDevice,
) -> Result<Candidate, Refused> {
    let AddDevice { device, signature_key, key_package } = add;
    let checked = check_key_package(provider, *device, signature_key, cell.state.suite, key_package)?;
    Ok(Candidate::Join { device: *device, signature_key: *signature_key, checked: Box::new(checked) })
}

/// The proposal in `bytes` if `device` may have it covered, with the encryption key it brings. Moves on the
/// sender's ratchet in `group`, and nothing else.
pub(crate) fn check_update(
    cell: &ManagedCell,
    provider: &Provider<'_>,
    group: &mut MlsGroup,
    device: DeviceId,
    bytes: &[u8],
) -> Result<(QueuedProposal, Vec<u8>), MlsError> {
    let seat = cell.roster.get(&device).ok_or(Refused::NotAMember { device })?;
    let message = private_message(Content::Update, bytes, cell.state.context.cell, cell.state.keys.epoch)?;
    let processed =
        group.process_message(provider, message).map_err(|error| refusal(Content::Update, error))?;
    match processed.sender() {
        Sender::Member(leaf) if leaf.u32() == seat.leaf => {}
        Sender::Member(leaf) => return Err(Refused::WrongSender { device, leaf: leaf.u32() }.into()),
        Sender::External(_) | Sender::NewMemberProposal | Sender::NewMemberCommit => {
            return Err(Refused::UnknownSender.into());
        }
    }
    let proposal = match processed.into_content() {
        ProcessedMessageContent::ProposalMessage(proposal) => *proposal,
        ProcessedMessageContent::OwnPrivateMessage => return Err(Refused::OwnMessage.into()),
        ProcessedMessageContent::ApplicationMessage(_)
        | ProcessedMessageContent::ExternalJoinProposalMessage(_)
        | ProcessedMessageContent::StagedCommitMessage(_)
        | ProcessedMessageContent::OwnPendingCommit => {
            return Err(
                Refused::WrongKind { expected: Content::Update.name(), got: "another message" }.into()
            );
        }
    };
    let Proposal::Update(update) = proposal.proposal() else {
        return Err(Refused::ForbiddenProposal { proposal: proposal_name(proposal.proposal()) }.into());
    };
    check_device_leaf(update.leaf_node(), device, &seat.signature_key, cell.state.suite)?;
    let key = encryption_key(update.leaf_node())?;
    trial_seal(provider.crypto(), cell.state.suite, "encryption", &key)?;
    Ok((proposal, key))
}

/// The public keys that nobody may bring again. RFC 9420 §12.2 asks it of leaves; openmls asks it of parents too,
/// but only when somebody joins, which would then fail for a stranger's fault.
struct Taken {
    signature_keys: BTreeSet<Vec<u8>>,
    encryption_keys: BTreeSet<Vec<u8>>,
    init_keys: BTreeSet<Vec<u8>>,
}

impl Taken {
    fn by_all_but(group: &MlsGroup, leaving: &BTreeMap<DeviceId, Seat>) -> Self {
        let gone: BTreeSet<_> = leaving.values().map(|seat| seat.leaf).collect();
        let (signature_keys, encryption_keys) = group
            .members()
            .filter(|member| !gone.contains(&member.index.u32()))
            .map(|member| (member.signature_key, member.encryption_key))
            .unzip();
        let mut taken = Self { signature_keys, encryption_keys, init_keys: BTreeSet::new() };
        taken
            .encryption_keys
            .extend(group.treesync().full_parents().filter_map(|(_, parent)| parent_key(parent)));
        taken
    }

    fn claim_encryption_key(&mut self, key: Vec<u8>) -> Result<(), Refused> {
        if self.init_keys.contains(&key) || !self.encryption_keys.insert(key) {
            return Err(Refused::KeyInUse { key: "encryption" });
        }
        Ok(())
    }

    fn claim(&mut self, join: &Candidate) -> Result<(), Refused> {
        let Candidate::Join { signature_key, checked, .. } = join else { return Ok(()) };
        let CheckedKeyPackage { encryption_key, init_key, .. } = &**checked;
        if self.signature_keys.contains(signature_key.as_slice()) {
            return Err(Refused::KeyInUse { key: "signature" });
        }
        if self.init_keys.contains(init_key) || self.encryption_keys.contains(init_key) {
            return Err(Refused::KeyInUse { key: "init" });
        }
        self.claim_encryption_key(encryption_key.clone())?;
        self.signature_keys.insert(signature_key.to_vec());
        self.init_keys.insert(init_key.clone());
        Ok(())
    }
}
