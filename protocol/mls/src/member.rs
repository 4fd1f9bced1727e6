//! A device's side of a cell.
//!
//! Every input is applied whole or not at all. Leaves to the caller what travels beside a commit (statement and
//! wrap), where the cell is stored, and what to do when it has fallen behind.

use std::fmt;

use fleetkey_wire::keys::Kek;
use fleetkey_wire::{CellEpoch, DeviceId, Psk, PskId, Suite};
use openmls::group::{MlsGroup, StagedCommit};
use openmls::prelude::{
    LeafNodeParameters, ProcessedMessageContent, Proposal, ProposalOrRefType, QueuedProposal, Sender,
};
use openmls_traits::OpenMlsProvider as _;
use zeroize::Zeroizing;

use crate::context::CellContext;
use crate::error::{LocalError, MlsError, Refused};
use crate::leaf::coordinator_credential;
use crate::message::{Content, MAX_COVERED_UPDATES, lacking, private_message, proposal_name, refusal};
use crate::provider::Provider;
use crate::psk;
use crate::signer::{LeafSigner, MlsSigner};
use crate::snapshot::{Reader, Writer};
use crate::state::{CellState, EpochKeys};

const VERSION: u8 = 1;

/// A cell, as one of its devices has it.
#[derive(Clone)]
pub struct MemberCell {
    pub(crate) state: CellState,
    pub(crate) device: DeviceId,
    /// The Update proposal that is outstanding in this epoch.
    pub(crate) outstanding_update: Option<Vec<u8>>,
}

/// What a commit did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processed {
    /// The cell is at a new epoch.
    Advanced {
        /// The epoch.
        epoch: CellEpoch,
        /// The pre-shared key that its keys depend on from here on, where the commit let somebody in with one.
        psk: Option<PskId>,
    },
    /// The device is no longer in the cell, which has not changed: it is good for nothing but to be deleted.
    Removed,
}

impl MemberCell {
    /// The cell that [`Self::snapshot`] has written.
    pub fn restore(bytes: &[u8]) -> Result<Self, LocalError> {
        let mut input = Reader::new("a member's cell", VERSION, bytes)?;
        let state = CellState::read(&mut input)?;
        let device = DeviceId::from_bytes(input.array()?);
        let outstanding_update = match input.bytes()? {
            [] => None,
            update => Some(update.to_vec()),
        };
        input.finish()?;
        Ok(Self { state, device, outstanding_update })
    }

    /// All of the cell, secrets included, to be stored encrypted.
    pub fn snapshot(&self) -> Zeroizing<Vec<u8>> {
        let update = self.outstanding_update.as_deref().unwrap_or_default();
        let mut out = Writer::new(VERSION, self.state.size() + update.len());
        self.state.write(&mut out);
        out.array(self.device.as_bytes());
        out.bytes(update);
        out.finish()
    }

    /// Follows a commit, with the Update proposals that came in its frame.
    ///
    /// Only a commit by a leaf whose signature key is one of `coordinator_keys` counts, and only one that adds,
    /// removes, and covers updates which keep their sender's identity. `psks` are the pre-shared keys held for the group:
    /// where there are any, a commit that adds must use one of them. On an error nothing has changed.
    pub fn process(
        &mut self,
        covered_updates: &[Vec<u8>],
        commit: &[u8],
        coordinator_keys: &[[u8; 32]],
        psks: &[Psk],
    ) -> Result<Processed, MlsError> {
        let message = private_message(Content::Commit, commit, self.state.context.cell, self.epoch())?;
        if covered_updates.len() > MAX_COVERED_UPDATES {
            let (got, max) = (covered_updates.len(), MAX_COVERED_UPDATES);
            return Err(Refused::TooManyUpdates { got, max }.into());
        }
        let provider = Provider::over(&self.state.slots);
        psk::hold(&provider, psks)?;
        let mut group = self.state.load(&provider)?;
        self.take_in_updates(&provider, &mut group, covered_updates)?;

        let processed = group.process_message(&provider, message).map_err(|error| {
            match refusal(Content::Commit, error) {
                MlsError::Refused(Refused::PreSharedKey) => lacking(&provider).into(),
                other @ (MlsError::Refused(_) | MlsError::Local(_)) => other,
            }
        })?;
        let sender = processed.sender().clone();
        let staged = match processed.into_content() {
            ProcessedMessageContent::StagedCommitMessage(staged) => *staged,
            ProcessedMessageContent::OwnPrivateMessage | ProcessedMessageContent::OwnPendingCommit => {
                return Err(Refused::OwnMessage.into());
            }
            ProcessedMessageContent::ApplicationMessage(_)
            | ProcessedMessageContent::ProposalMessage(_)
            | ProcessedMessageContent::ExternalJoinProposalMessage(_) => {
                let (expected, got) = (Content::Commit.name(), "another message");
                return Err(Refused::WrongKind { expected, got }.into());
            }
        };
        check_committer(&group, &sender, coordinator_keys)?;
        let asked = check_proposals(&staged, covered_updates.len())?;
        self.check_path(&staged, &sender, coordinator_keys)?;
        if staged.self_removed() {
            // Whoever is out computes no epoch, and so has used no pre-shared key.
            return Ok(Processed::Removed);
        }
        let psk = match asked {
            Some(asked) => {
                psk::check_used(Content::Commit.name(), asked, provider.storage().used_psk(), psks)?
            }
            None => None,
        };

        provider.storage().record();
        group.merge_staged_commit(&provider, staged).map_err(|error| failed("following a commit", &error))?;
        let keys = EpochKeys::of(&group, &provider, &self.state.context)?;
        let changes = provider.into_changes();
        self.state.slots.apply(changes);
        self.state.slots.forget_own_updates();
        self.state.keys = keys;
        self.outstanding_update = None;
        Ok(Processed::Advanced { epoch: self.epoch(), psk })
    }

    /// An Update proposal (an MLSMessage) that renews this device's leaf once a commit covers it. One is
    /// outstanding at a time: until the epoch ends, this returns the same bytes again.
    pub fn propose_update(&mut self, signer: &LeafSigner) -> Result<Vec<u8>, LocalError> {
        const DOING: &str = "proposing an update";
        if let Some(update) = &self.outstanding_update {
            return Ok(update.clone());
        }
        let provider = Provider::over(&self.state.slots);
        let mut group = self.state.load(&provider)?;
        let own = group.own_leaf_node().ok_or(LocalError::WrongSigner)?;
        if own.signature_key().as_slice() != signer.public_key() {
            return Err(LocalError::WrongSigner);
        }
        provider.storage().record();
        let (proposal, _) = group
            .propose_self_update(&provider, &MlsSigner(signer), LeafNodeParameters::default())
            .map_err(|error| failed(DOING, &error))?;
        let bytes = proposal.to_bytes().map_err(|error| failed(DOING, &error))?;
        let changes = provider.into_changes();
        self.state.slots.apply(changes);
        self.outstanding_update = Some(bytes.clone());
        Ok(bytes)
    }

    /// Which cell it is.
    pub const fn context(&self) -> &CellContext {
        &self.state.context
    }

    /// Its cipher suite.
    pub const fn suite(&self) -> Suite {
        self.state.suite
    }

    /// The device whose side this is.
    pub const fn device(&self) -> DeviceId {
        self.device
    }

    /// Its epoch.
    pub const fn epoch(&self) -> CellEpoch {
        self.state.keys.epoch
    }

    /// The key-encryption key of its epoch.
    pub fn kek(&self) -> Kek {
        self.state.keys.kek.clone()
    }

    /// The first bytes of its epoch authenticator (RFC 9420 §8.7): equal on both sides exactly when they are
    /// in the same epoch of the same history.
    pub const fn epoch_authenticator8(&self) -> [u8; 8] {
        self.state.keys.authenticator8
    }

    /// Whether an Update proposal is outstanding in this epoch.
    pub fn has_outstanding_update(&self) -> bool {
        self.outstanding_update.is_some()
    }

    /// Puts the updates that came with a commit into the group's proposal store, and nothing else.
    fn take_in_updates(
        &self,
        provider: &Provider<'_>,
        group: &mut MlsGroup,
        updates: &[Vec<u8>],
    ) -> Result<(), MlsError> {
        let own = self.outstanding_update.as_ref();
        if !updates.iter().any(|update| Some(update) == own) {
            // Loading brought our own outstanding proposal back: it does not count unless it came along.
            group
                .clear_pending_proposals(provider.storage())
                .map_err(|error| failed("clearing proposals", &error))?;
        }
        for update in updates.iter().filter(|update| Some(*update) != own) {
            let message = private_message(Content::Update, update, self.state.context.cell, self.epoch())?;
            let processed =
                group.process_message(provider, message).map_err(|error| refusal(Content::Update, error))?;
            let proposal = match processed.into_content() {
                ProcessedMessageContent::ProposalMessage(proposal) => *proposal,
                ProcessedMessageContent::OwnPrivateMessage => return Err(Refused::OwnMessage.into()),
                ProcessedMessageContent::ApplicationMessage(_)
                | ProcessedMessageContent::ExternalJoinProposalMessage(_)
                | ProcessedMessageContent::StagedCommitMessage(_)
                | ProcessedMessageContent::OwnPendingCommit => {
                    let (expected, got) = (Content::Update.name(), "another message");
                    return Err(Refused::WrongKind { expected, got }.into());
                }
            };
            check_update(group, &proposal)?;
            group
                .store_pending_proposal(provider.storage(), proposal)
                .map_err(|error| failed("taking in an update", &error))?;
        }
        Ok(())
    }

    /// Whether the committer's new leaf is still a coordinator's.
    fn check_path(
        &self,
        staged: &StagedCommit,
        sender: &Sender,
        coordinator_keys: &[[u8; 32]],
    ) -> Result<(), Refused> {
        let Some(leaf) = staged.update_path_leaf_node() else { return Ok(()) };
        let fleet = self.state.context.fleet;
        if is_coordinator(leaf.signature_key().as_slice(), coordinator_keys)
            && *leaf.credential() == coordinator_credential(fleet)
        {
            return Ok(());
        }
        let Sender::Member(index) = sender else { return Err(Refused::UnknownSender) };
        Err(Refused::IdentityChanged { leaf: index.u32() })
    }
}

impl fmt::Debug for MemberCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemberCell")
            .field("cell", &self.context().cell)
            .field("device", &self.device)
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}

/// Whether the commit does nothing but add, remove, and cover the updates that came with it; and asks for no pre-shared key
/// where it adds nobody. Where it does add, for how many it asks.
fn check_proposals(staged: &StagedCommit, updates: usize) -> Result<Option<usize>, Refused> {
    let (mut covered, mut adds, mut asked) = (0, 0, 0);
    for queued in staged.queued_proposals() {
        match (queued.proposal(), queued.proposal_or_ref_type()) {
            (Proposal::Add(_), ProposalOrRefType::Proposal) => adds += 1,
            (Proposal::Remove(_), ProposalOrRefType::Proposal) => {}
            (Proposal::Update(_), ProposalOrRefType::Reference) => covered += 1,
            (Proposal::PreSharedKey(_), ProposalOrRefType::Proposal) => asked += 1,
            (
                other @ (Proposal::Add(_)
                | Proposal::Remove(_)
                | Proposal::Update(_)
                | Proposal::PreSharedKey(_)
                | Proposal::ReInit(_)
                | Proposal::ExternalInit(_)
                | Proposal::GroupContextExtensions(_)
                | Proposal::SelfRemove
                | Proposal::Custom(_)),
                _,
            ) => return Err(Refused::ForbiddenProposal { proposal: proposal_name(other) }),
        }
    }
    if covered != updates {
        return Err(Refused::UncoveredUpdate { got: updates, covered });
    }
    match (adds, asked) {
        (0, 0) => Ok(None),
        (0, _) => Err(Refused::ForbiddenProposal { proposal: "psk" }),
        (_, _) => Ok(Some(asked)),
    }
}

/// Whether a leaf's signature key is one of a coordinator.
pub(crate) fn is_coordinator(signature_key: &[u8], coordinator_keys: &[[u8; 32]]) -> bool {
    coordinator_keys.iter().any(|key| signature_key == key)
}

fn check_committer(group: &MlsGroup, sender: &Sender, coordinator_keys: &[[u8; 32]]) -> Result<(), Refused> {
    let Sender::Member(index) = sender else { return Err(Refused::UnknownSender) };
    let member = group.member_at(*index).ok_or(Refused::UnknownSender)?;
    if is_coordinator(&member.signature_key, coordinator_keys) {
        return Ok(());
    }
    Err(Refused::NotTheCoordinator { what: Content::Commit.name(), leaf: index.u32() })
}

/// Whether `proposal` is an Update that leaves its sender who it was. openmls does not ask.
fn check_update(group: &MlsGroup, proposal: &QueuedProposal) -> Result<(), Refused> {
    let Proposal::Update(update) = proposal.proposal() else {
        return Err(Refused::ForbiddenProposal { proposal: proposal_name(proposal.proposal()) });
    };
    let Sender::Member(index) = proposal.sender() else { return Err(Refused::UnknownSender) };
    let now = group.member_at(*index).ok_or(Refused::UnknownSender)?;
    let leaf = update.leaf_node();
    if leaf.signature_key().as_slice() == now.signature_key && *leaf.credential() == now.credential {
        return Ok(());
    }
    Err(Refused::IdentityChanged { leaf: index.u32() })
}

fn failed(doing: &'static str, error: &impl fmt::Display) -> LocalError {
    LocalError::Engine { doing, reason: error.to_string() }
}
