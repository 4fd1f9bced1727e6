//! A device's way into a cell: from a Welcome and the private half of its key package.

use fleetkey_wire::{Psk, PskId};
use openmls::group::{JoinBuilder, ProcessedWelcome, StagedWelcome, WelcomeError};
use openmls::messages::GroupSecretsError;
use openmls::prelude::{MlsMessageBodyIn, Welcome};
use openmls_traits::OpenMlsProvider as _;

use crate::context::CellContext;
use crate::error::{MlsError, Refused};
use crate::key_package::PrivateKeyPackage;
use crate::leaf::coordinator_credential;
use crate::member::{MemberCell, is_coordinator};
use crate::message::{MAX_WELCOME_BYTES, body, check_group_id, check_suite, damaged, kind, lacking};
use crate::provider::{Provider, join_config};
use crate::psk;
use crate::slots::{SlotError, Slots};
use crate::state::{CellState, EpochKeys};
use crate::welcome::welcome_key_package_ref;

const WHAT: &str = "a Welcome";

impl MemberCell {
    /// Joins the cell `context` with a Welcome that was made for `private`.
    ///
    /// It counts when its signer is a leaf of the coordinator (one of `coordinator_keys`, under the fleet's id),
    /// the group is the cell, and our own leaf is the one of the key package. The key package is used up when
    /// the caller stores the cell and deletes it; a failed join leaves it as good as before.
    ///
    /// `psks` are the pre-shared keys held for the group. Where there are any, the Welcome must use one of them: which
    /// one is returned beside the cell.
    pub fn join(
        context: &CellContext,
        private: &PrivateKeyPackage,
        welcome: &[u8],
        coordinator_keys: &[[u8; 32]],
        psks: &[Psk],
    ) -> Result<(Self, Option<PskId>), MlsError> {
        let suite = private.suite();
        if welcome_key_package_ref(welcome)? != private.reference() {
            return Err(Refused::OtherKeyPackage.into());
        }
        let welcome = decode(welcome)?;
        check_suite(welcome.ciphersuite().into(), suite)?;

        // openmls deletes the key package before it opens the Welcome: from a copy.
        let slots = private.slots();
        let provider = Provider::over(&slots);
        psk::hold(&provider, psks)?;
        let processed = ProcessedWelcome::new_from_welcome(&provider, &join_config(), welcome)
            .map_err(|error| refusal(error, &provider))?;
        let psk = psk::check_used(WHAT, processed.psks().len(), provider.storage().used_psk(), psks)?;
        check_group_id(processed.unverified_group_info().group_id(), context.cell)?;
        let own = processed.own_key_package().ok_or(Refused::OtherKeyPackage)?.leaf_node().clone();
        let staged = JoinBuilder::new(&provider, processed)
            .skip_lifetime_validation()
            .build()
            .map_err(|error| refusal(error, &provider))?;
        check_suite(staged.group_context().ciphersuite().into(), suite)?;
        check_signer(&staged, context, coordinator_keys)?;
        if staged.group_context().extensions().iter().next().is_some() {
            return Err(Refused::GroupContextExtensions.into());
        }
        if staged.own_leaf_node() != Some(&own) {
            return Err(Refused::WrongOwnLeaf.into());
        }

        provider.storage().record();
        let group = staged.into_group(&provider).map_err(|error| refusal(error, &provider))?;
        let keys = EpochKeys::of(&group, &provider, context)?;
        let mut slots = Slots::default();
        slots.apply(provider.into_changes());
        let state = CellState { context: *context, suite, slots, keys };
        Ok((Self { state, device: private.device(), outstanding_update: None }, psk))
    }
}

fn decode(welcome: &[u8]) -> Result<Welcome, Refused> {
    match body(WHAT, welcome, MAX_WELCOME_BYTES)? {
        MlsMessageBodyIn::Welcome(welcome) => Ok(welcome),
        other @ (MlsMessageBodyIn::PublicMessage(_)
        | MlsMessageBodyIn::PrivateMessage(_)
        | MlsMessageBodyIn::GroupInfo(_)
        | MlsMessageBodyIn::KeyPackage(_)) => Err(Refused::WrongKind { expected: WHAT, got: kind(&other) }),
    }
}

fn check_signer(
    staged: &StagedWelcome,
    context: &CellContext,
    coordinator_keys: &[[u8; 32]],
) -> Result<(), Refused> {
    let leaf = staged.welcome_sender().map_err(|_| Refused::UnknownSender)?;
    if is_coordinator(leaf.signature_key().as_slice(), coordinator_keys)
        && *leaf.credential() == coordinator_credential(context.fleet)
    {
        return Ok(());
    }
    Err(Refused::NotTheCoordinator { what: WHAT, leaf: staged.welcome_sender_index().u32() })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "openmls's other refusals share one name, and keep their words"
)]
fn refusal(error: WelcomeError<SlotError>, provider: &Provider<'_>) -> MlsError {
    match error {
        WelcomeError::StorageError(error) => damaged(&error).into(),
        WelcomeError::Psk(_) => lacking(provider).into(),
        WelcomeError::GroupInfo(_) => match provider.storage().used_psk() {
            Some(psk) => Refused::PskWrong { psk }.into(),
            None => Refused::Invalid { what: WHAT, reason: error.to_string() }.into(),
        },
        WelcomeError::MissingRatchetTree => Refused::MissingTree.into(),
        WelcomeError::NoMatchingKeyPackage | WelcomeError::JoinerSecretNotFound => {
            Refused::OtherKeyPackage.into()
        }
        WelcomeError::ConfirmationTagMismatch => Refused::WrongConfirmationTag.into(),
        WelcomeError::GroupSecrets(GroupSecretsError::DecryptionFailed) => {
            Refused::Undecryptable { reason: error.to_string() }.into()
        }
        other => Refused::Invalid { what: WHAT, reason: other.to_string() }.into(),
    }
}
