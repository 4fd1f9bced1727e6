//! One commit of the coordinator: which changes go into it, and what comes out.
//!
//! Joins and updates come from devices, so each is checked by name first and drops out alone. Should openmls
//! still refuse the batch, they are tried one by one. Removals come from our own roster and wait for nothing.

use std::collections::{BTreeMap, BTreeSet};

use fleetkey_wire::{CellEpoch, DeviceId};
use openmls::group::{CreateCommitError, MlsGroup, QueuedProposal};
use openmls::prelude::{
    CommitBuilder, Complete, LeafNodeIndex, MlsMessageOut, ProcessedMessageContent, Proposal, Sender,
};
use openmls_traits::OpenMlsProvider as _;

use crate::error::{LocalError, MlsError, Refused};
use crate::key_package::{CheckedKeyPackage, check_key_package};
use crate::leaf::{check_device_leaf, encryption_key, trial_seal};
use crate::manager::{ManagedCell, Seat};
use crate::message::{Content, MAX_COVERED_UPDATES, private_message, refusal};
use crate::provider::Provider;
use crate::signer::{LeafSigner, MlsSigner};
use crate::state::EpochKeys;
use crate::welcome::split;

/// What the coordinator wants of a cell.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Devices to add. One that is in `remove` too joins afresh: its old leaf goes, a new one comes.
    pub add: Vec<AddDevice>,
    /// Devices to remove.
    pub remove: Vec<DeviceId>,
    /// Update proposals (MLSMessages), each with the device that it came from.
    pub updates: Vec<(DeviceId, Vec<u8>)>,
    /// Renew the coordinator's path even where nothing else asks for it. Removals and updates always do.
    pub force_path: bool,
}

/// A device to add.
#[derive(Debug, Clone)]
pub struct AddDevice {
    /// Its id, which must be its leaf's credential.
    pub device: DeviceId,
    /// The Ed25519 key it enrolled with, which must be its leaf's signature key.
    pub signature_key: [u8; 32],
    /// A key package of its own (an MLSMessage), never used before.
    pub key_package: Vec<u8>,
}

/// What became of [`Changes`].
#[derive(Debug, Clone)]
pub struct CommitOutcome {
    /// The commit; `None` when nothing was left to do, and the cell is where it was.
    pub committed: Option<Committed>,
    /// What dropped out, and why.
    pub dropped: Vec<Dropped>,
}

/// A change that is not in the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Whose it was.
    pub device: DeviceId,
    /// What is wrong with it.
    pub why: Refused,
}

/// A commit that the cell has already moved on with.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The commit: an MLSMessage with a PrivateMessage, for every member that stays or leaves.
    pub commit: Vec<u8>,
    /// The Update proposals it covers, as they came: they travel in the commit's frame.
    pub covered_updates: Vec<Vec<u8>>,
    /// For each device that joins its own Welcome (an MLSMessage), with the ratchet tree inside.
    pub welcomes: BTreeMap<DeviceId, Vec<u8>>,
    /// The epoch the commit applies to.
    pub epoch_before: CellEpoch,
    /// The epoch it leads to.
    pub epoch: CellEpoch,
}

/// A change that a device has a say in.
enum Candidate {
    Join { device: DeviceId, signature_key: [u8; 32], checked: Box<CheckedKeyPackage> },
    Update { device: DeviceId, proposal: Box<QueuedProposal>, bytes: Vec<u8> },
}

impl Candidate {
    const fn device(&self) -> DeviceId {
        match self {
            Self::Join { device, .. } | Self::Update { device, .. } => *device,
        }
    }
}

pub(crate) fn commit(
    cell: &mut ManagedCell,
    signer: &LeafSigner,
    changes: Changes,
) -> Result<CommitOutcome, LocalError> {
    let provider = Provider::over(&cell.state.slots);
    let mut group = cell.state.load(&provider)?;
    check_signer(&group, signer)?;
    let mut dropped = Vec::new();
    let leaving = leaving(cell, &changes.remove, &mut dropped);
    let mut candidates = updates(cell, &provider, &mut group, &leaving, changes.updates, &mut dropped)?;
    candidates.extend(joins(cell, &provider, &group, &leaving, changes.add, &candidates, &mut dropped));
    if leaving.is_empty() && candidates.is_empty() && !changes.force_path {
        return Ok(CommitOutcome { committed: None, dropped });
    }

    let removed: Vec<_> = leaving.values().map(|seat| LeafNodeIndex::new(seat.leaf)).collect();
    let mut attempt = Attempt { provider: &provider, group, signer, removed, force_path: changes.force_path };
    let refused = attempt.build(&candidates).err();
    if refused.is_some() {
        candidates = attempt.pick(candidates, &mut dropped);
    }
    if attempt.removed.is_empty() && candidates.is_empty() && !changes.force_path {
        return Ok(CommitOutcome { committed: None, dropped });
    }
    let bundle = attempt
        .build(&candidates)
        .map_err(|error| failed(&error))?
        .stage_commit(&provider)
        .map_err(|error| failed(&error))?;
    let mut group = attempt.group;
    provider.storage().record();
    group.merge_pending_commit(&provider).map_err(|error| failed(&error))?;

    let keys = EpochKeys::of(&group, &provider, &cell.state.context)?;
    let (commit, welcome, _) = bundle.into_messages();
    let commit = commit.to_bytes().map_err(|error| failed(&error))?;
    let welcomes =
        welcome.as_ref().map(|welcome| welcomes(welcome, &candidates)).transpose()?.unwrap_or_default();
    let seats = seats(&group, &candidates)?;
    let covered_updates = candidates.into_iter().filter_map(covered_bytes).collect();

    let written = provider.into_changes();
    let epoch_before = cell.state.keys.epoch;
    cell.state.slots.apply(written);
    cell.state.keys = keys;
    for device in leaving.keys() {
        cell.roster.remove(device);
    }
    cell.roster.extend(seats);
    let epoch = cell.state.keys.epoch;
    let committed = Committed { commit, covered_updates, welcomes, epoch_before, epoch };
    Ok(CommitOutcome { committed: Some(committed), dropped })
}

fn failed(error: &impl std::fmt::Display) -> LocalError {
    LocalError::Engine { doing: "committing", reason: error.to_string() }
}

fn check_signer(group: &MlsGroup, signer: &LeafSigner) -> Result<(), LocalError> {
    let own = group.own_leaf_node().ok_or(LocalError::WrongSigner)?;
    if own.signature_key().as_slice() == signer.public_key() { Ok(()) } else { Err(LocalError::WrongSigner) }
}

/// The members among `remove`, each once.
fn leaving(cell: &ManagedCell, remove: &[DeviceId], dropped: &mut Vec<Dropped>) -> BTreeMap<DeviceId, Seat> {
    let mut leaving = BTreeMap::new();
    for &device in remove {
        match cell.roster.get(&device) {
            Some(seat) => {
                leaving.insert(device, *seat);
            }
            None => dropped.push(Dropped { device, why: Refused::NotAMember { device } }),
        }
    }
    leaving
}

/// The updates that can be covered, put into the group's proposal store.
fn updates(
    cell: &ManagedCell,
    provider: &Provider<'_>,
    group: &mut MlsGroup,
    leaving: &BTreeMap<DeviceId, Seat>,
    updates: Vec<(DeviceId, Vec<u8>)>,
    dropped: &mut Vec<Dropped>,
) -> Result<Vec<Candidate>, LocalError> {
    if updates.is_empty() {
        return Ok(Vec::new());
    }
    let mut keys = encryption_keys(group, &BTreeMap::new());
    let mut seen = BTreeSet::new();
    let mut accepted: Vec<Candidate> = Vec::new();
    for (device, bytes) in updates {
        let mut drop = |why| dropped.push(Dropped { device, why });
        if leaving.contains_key(&device) {
            drop(Refused::Leaving { device });
            continue;
        }
        if seen.contains(&device) {
            drop(Refused::Repeated { device });
            continue;
        }
        if accepted.len() >= MAX_COVERED_UPDATES {
            drop(Refused::TooManyUpdates { got: accepted.len() + 1, max: MAX_COVERED_UPDATES });
            continue;
        }
        match check_update(cell, provider, group, device, &bytes) {
            Ok((_, key)) if keys.contains(&key) => drop(Refused::KeyInUse { key: "encryption" }),
            Ok((proposal, key)) => {
                keys.insert(key);
                group
                    .store_pending_proposal(provider.storage(), proposal.clone())
                    .map_err(|error| failed(&error))?;
                seen.insert(device);
                accepted.push(Candidate::Update { device, proposal: Box::new(proposal), bytes });
            }
            Err(MlsError::Refused(why)) => {
                drop(why);
                // What was refused may have moved on the ratchet of a member who has nothing to do with it.
                *group = reload(cell, provider, &accepted)?;
            }
            Err(MlsError::Local(error)) => return Err(error),
        }
    }
    Ok(accepted)
}

/// The group as it was stored, with the updates that are accepted so far.
fn reload(
    cell: &ManagedCell,
    provider: &Provider<'_>,
    accepted: &[Candidate],
) -> Result<MlsGroup, LocalError> {
    let mut group = cell.state.load(provider)?;
    for candidate in accepted {
        if let Candidate::Update { proposal, .. } = candidate {
            group
                .store_pending_proposal(provider.storage(), (**proposal).clone())
                .map_err(|error| failed(&error))?;
        }
    }
    Ok(group)
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

/// The joins that can be done.
fn joins(
    cell: &ManagedCell,
    provider: &Provider<'_>,
    group: &MlsGroup,
    leaving: &BTreeMap<DeviceId, Seat>,
    add: Vec<AddDevice>,
    updates: &[Candidate],
    dropped: &mut Vec<Dropped>,
) -> Vec<Candidate> {
    if add.is_empty() {
        return Vec::new();
    }
    let mut taken = Taken::new(group, leaving, updates);
    let mut accepted = Vec::new();
    let mut seen = BTreeSet::new();
    for AddDevice { device, signature_key, key_package } in add {
        let checked = if seen.contains(&device) {
            Err(Refused::Repeated { device })
        } else if cell.roster.contains_key(&device) && !leaving.contains_key(&device) {
            Err(Refused::AlreadyMember { device })
        } else {
            check_key_package(provider, device, &signature_key, cell.state.suite, &key_package)
                .and_then(|checked| taken.claim(&signature_key, &checked).map(|()| checked))
        };
        match checked {
            Ok(checked) => {
                seen.insert(device);
                accepted.push(Candidate::Join { device, signature_key, checked: Box::new(checked) });
            }
            Err(why) => dropped.push(Dropped { device, why }),
        }
    }
    accepted
}

/// The public keys that no joiner may bring again (RFC 9420 §12.2).
struct Taken {
    signature_keys: BTreeSet<Vec<u8>>,
    encryption_keys: BTreeSet<Vec<u8>>,
    init_keys: BTreeSet<Vec<u8>>,
}

impl Taken {
    fn new(group: &MlsGroup, leaving: &BTreeMap<DeviceId, Seat>, updates: &[Candidate]) -> Self {
        let gone = gone(leaving);
        let staying = group.members().filter(|member| !gone.contains(&member.index.u32()));
        let mut encryption_keys = encryption_keys(group, leaving);
        for update in updates {
            if let Candidate::Update { proposal, .. } = update
                && let Proposal::Update(update) = proposal.proposal()
                && let Ok(key) = encryption_key(update.leaf_node())
            {
                encryption_keys.insert(key);
            }
        }
        Self {
            signature_keys: staying.map(|member| member.signature_key).collect(),
            encryption_keys,
            init_keys: BTreeSet::new(),
        }
    }

    fn claim(&mut self, signature_key: &[u8; 32], package: &CheckedKeyPackage) -> Result<(), Refused> {
        let CheckedKeyPackage { encryption_key, init_key, .. } = package;
        if self.signature_keys.contains(signature_key.as_slice()) {
            return Err(Refused::KeyInUse { key: "signature" });
        }
        if self.encryption_keys.contains(encryption_key) || self.init_keys.contains(encryption_key) {
            return Err(Refused::KeyInUse { key: "encryption" });
        }
        if self.init_keys.contains(init_key) || self.encryption_keys.contains(init_key) {
            return Err(Refused::KeyInUse { key: "init" });
        }
        self.signature_keys.insert(signature_key.to_vec());
        self.encryption_keys.insert(encryption_key.clone());
        self.init_keys.insert(init_key.clone());
        Ok(())
    }
}

fn gone(leaving: &BTreeMap<DeviceId, Seat>) -> BTreeSet<u32> {
    leaving.values().map(|seat| seat.leaf).collect()
}

fn encryption_keys(group: &MlsGroup, leaving: &BTreeMap<DeviceId, Seat>) -> BTreeSet<Vec<u8>> {
    let gone = gone(leaving);
    group
        .members()
        .filter(|member| !gone.contains(&member.index.u32()))
        .map(|member| member.encryption_key)
        .collect()
}

/// A commit in the making.
struct Attempt<'a> {
    provider: &'a Provider<'a>,
    group: MlsGroup,
    signer: &'a LeafSigner,
    removed: Vec<LeafNodeIndex>,
    force_path: bool,
}

impl Attempt<'_> {
    /// The commit of the removals and `candidates`. Until it is staged the group is as it was.
    fn build(
        &mut self,
        candidates: &[Candidate],
    ) -> Result<CommitBuilder<'_, Complete, &mut MlsGroup>, CreateCommitError> {
        let mut covered = Vec::new();
        let mut packages = Vec::new();
        for candidate in candidates {
            match candidate {
                Candidate::Join { checked, .. } => packages.push(checked.key_package.clone()),
                Candidate::Update { proposal, .. } => covered.push(proposal.proposal_reference_ref().clone()),
            }
        }
        self.group
            .commit_builder()
            .consume_proposal_store(true)
            .force_self_update(self.force_path)
            .propose_removals(self.removed.iter().copied())
            .propose_adds(packages)
            .load_psks(self.provider.storage())?
            .create_group_info(false)
            .use_ratchet_tree_extension(true)
            .build(self.provider.rand(), self.provider.crypto(), &MlsSigner(self.signer), |queued| {
                !matches!(queued.proposal(), Proposal::Update(_))
                    || covered.contains(queued.proposal_reference_ref())
            })
    }

    /// As many of `candidates` as go together, each tried on top of those before it.
    fn pick(&mut self, candidates: Vec<Candidate>, dropped: &mut Vec<Dropped>) -> Vec<Candidate> {
        let mut kept = Vec::new();
        for candidate in candidates {
            let device = candidate.device();
            kept.push(candidate);
            if let Err(error) = self.build(&kept) {
                let why = Refused::Invalid { what: "the change", reason: error.to_string() };
                dropped.push(Dropped { device, why });
                kept.pop();
            }
        }
        kept
    }
}

fn welcomes(
    welcome: &MlsMessageOut,
    candidates: &[Candidate],
) -> Result<BTreeMap<DeviceId, Vec<u8>>, LocalError> {
    let welcome = welcome.to_bytes().map_err(|error| failed(&error))?;
    let mut by_reference = split(&welcome).map_err(|error| failed(&error))?;
    let mut welcomes = BTreeMap::new();
    for candidate in candidates {
        if let Candidate::Join { device, checked, .. } = candidate {
            let own =
                by_reference.remove(&checked.reference).ok_or_else(|| failed(&"a device has no Welcome"))?;
            welcomes.insert(*device, own);
        }
    }
    Ok(welcomes)
}

/// Where the devices that joined sit. A fresh encryption key is in one leaf only.
fn seats(group: &MlsGroup, candidates: &[Candidate]) -> Result<Vec<(DeviceId, Seat)>, LocalError> {
    let leaves: BTreeMap<_, _> =
        group.members().map(|member| (member.encryption_key, member.index.u32())).collect();
    let mut seats = Vec::new();
    for candidate in candidates {
        if let Candidate::Join { device, signature_key, checked } = candidate {
            let leaf = leaves.get(&checked.encryption_key).ok_or_else(|| failed(&"a device has no leaf"))?;
            seats.push((*device, Seat { leaf: *leaf, signature_key: *signature_key }));
        }
    }
    Ok(seats)
}

fn covered_bytes(candidate: Candidate) -> Option<Vec<u8>> {
    match candidate {
        Candidate::Join { .. } => None,
        Candidate::Update { bytes, .. } => Some(bytes),
    }
}

/// A proposal's type, for refusals.
pub(crate) const fn proposal_name(proposal: &Proposal) -> &'static str {
    match proposal {
        Proposal::Add(_) => "add",
        Proposal::Update(_) => "update",
        Proposal::Remove(_) => "remove",
        Proposal::PreSharedKey(_) => "psk",
        Proposal::ReInit(_) => "reinit",
        Proposal::ExternalInit(_) => "external_init",
        Proposal::GroupContextExtensions(_) => "group_context_extensions",
        Proposal::SelfRemove => "self_remove",
        Proposal::Custom(_) => "custom",
    }
}
