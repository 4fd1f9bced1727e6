//! One commit of the coordinator: which changes go into it, and what comes out.
//!
//! `batch` has checked every change that a device has a say in. Should openmls still refuse the lot, they are
//! tried one by one. Removals come from our own roster and wait for nothing.

use std::collections::BTreeMap;
use std::fmt;

use fleetkey_wire::{CellEpoch, DeviceId, Psk};
use openmls::group::{CreateCommitError, MlsGroup};
use openmls::prelude::{CommitBuilder, Complete, LeafNodeIndex, MlsMessageOut, Proposal};
use openmls_traits::OpenMlsProvider as _;

use crate::batch::{Batch, Candidate};
use crate::error::{LocalError, Refused};
use crate::manager::{ManagedCell, Seat};
use crate::provider::Provider;
use crate::psk;
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
    /// The group's pre-shared key: mixed into the keys of the epoch whenever anybody is added.
    pub psk: Option<Psk>,
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

pub(crate) fn commit(
    cell: &mut ManagedCell,
    signer: &LeafSigner,
    changes: Changes,
) -> Result<CommitOutcome, LocalError> {
    let provider = Provider::over(&cell.state.slots);
    psk::hold(&provider, changes.psk.as_slice())?;
    let mut group = cell.state.load(&provider)?;
    check_signer(&group, signer)?;
    let Batch { leaving, mut candidates, mut dropped } = Batch::of(cell, &provider, &mut group, &changes)?;
    if leaving.is_empty() && candidates.is_empty() && !changes.force_path {
        return Ok(CommitOutcome { committed: None, dropped });
    }

    let removed = leaving.values().map(|seat| LeafNodeIndex::new(seat.leaf)).collect();
    let suite = cell.state.suite;
    let psk = changes.psk.as_ref().map(|psk| psk::proposal(&provider, psk, suite)).transpose()?;
    let mut attempt =
        Attempt { provider: &provider, group, signer, removed, force_path: changes.force_path, psk };
    let bundle = match attempt.build(&candidates) {
        Ok(complete) => complete.stage_commit(&provider),
        Err(_) => {
            candidates = attempt.pick(candidates, &mut dropped);
            if leaving.is_empty() && candidates.is_empty() && !changes.force_path {
                return Ok(CommitOutcome { committed: None, dropped });
            }
            attempt.build(&candidates).map_err(|error| failed(&error))?.stage_commit(&provider)
        }
    };
    let bundle = bundle.map_err(|error| failed(&error))?;
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
    let (epoch_before, epoch) = (cell.state.keys.epoch, keys.epoch);
    cell.state.slots.apply(written);
    cell.state.keys = keys;
    for device in leaving.keys() {
        cell.roster.remove(device);
    }
    cell.roster.extend(seats);
    let committed = Committed { commit, covered_updates, welcomes, epoch_before, epoch };
    Ok(CommitOutcome { committed: Some(committed), dropped })
}

pub(crate) fn failed(error: &impl fmt::Display) -> LocalError {
    LocalError::Engine { doing: "committing", reason: error.to_string() }
}

fn check_signer(group: &MlsGroup, signer: &LeafSigner) -> Result<(), LocalError> {
    let own = group.own_leaf_node().ok_or(LocalError::WrongSigner)?;
    if own.signature_key().as_slice() == signer.public_key() { Ok(()) } else { Err(LocalError::WrongSigner) }
}

/// A commit in the making.
struct Attempt<'a> {
    provider: &'a Provider<'a>,
    group: MlsGroup,
    signer: &'a LeafSigner,
    removed: Vec<LeafNodeIndex>,
    force_path: bool,
    psk: Option<Proposal>,
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
        let psk = self.psk.clone().filter(|_| !packages.is_empty());
        self.group
            .commit_builder()
            .consume_proposal_store(true)
            .force_self_update(self.force_path)
            .propose_removals(self.removed.iter().copied())
            .propose_adds(packages)
            .add_proposals(psk)
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

#[cfg(test)]
mod tests {
    use fleetkey_wire::{CellId, FleetId, GroupId, Suite};

    use super::*;
    use crate::batch::check_join;
    use crate::{CellContext, make_key_package};

    /// A join as the checks leave it, of a device with `key` as its id and its seed.
    fn join(cell: &ManagedCell, key: u8) -> Candidate {
        let signer = LeafSigner::new(&[key; 32]);
        let device = DeviceId::from_bytes([key; 16]);
        let (key_package, _) = make_key_package(device, cell.suite(), &signer).unwrap();
        let provider = Provider::over(&cell.state.slots);
        let add = AddDevice { device, signature_key: signer.public_key(), key_package };
        check_join(cell, &provider, &add).unwrap()
    }

    #[test]
    fn what_only_openmls_refuses_drops_out_alone() {
        let context = CellContext {
            fleet: FleetId::from_bytes([1; 16]),
            group: GroupId::from_bytes([2; 16]),
            cell: CellId::from_bytes([3; 16]),
        };
        let signer = LeafSigner::new(&[9; 32]);
        let cell = ManagedCell::create(context, Suite::Aes128Gcm, &signer).unwrap();
        let provider = Provider::over(&cell.state.slots);
        let group = cell.state.load(&provider).unwrap();
        let mut attempt = Attempt {
            provider: &provider,
            group,
            signer: &signer,
            removed: Vec::new(),
            force_path: false,
            psk: None,
        };
        // Two key packages under one signature key, which the checks of a batch would have seen.
        let candidates = vec![join(&cell, 1), join(&cell, 2), join(&cell, 1), join(&cell, 3)];
        assert!(attempt.build(&candidates).is_err());

        let mut dropped = Vec::new();
        let kept = attempt.pick(candidates, &mut dropped);

        let of = |key| DeviceId::from_bytes([key; 16]);
        assert_eq!(kept.iter().map(Candidate::device).collect::<Vec<_>>(), [of(1), of(2), of(3)]);
        let [Dropped { device, why: Refused::Invalid { .. } }] = &dropped[..] else { panic!("{dropped:?}") };
        assert_eq!(*device, of(1));
        assert!(attempt.build(&kept).is_ok());
    }
}
