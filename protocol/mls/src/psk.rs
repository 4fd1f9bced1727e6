//! External pre-shared keys (RFC 9420 §8.4) in a cell: how they reach openmls, and which of them a device accepts.
//!
//! A commit that adds anybody mixes the group's pre-shared key into the key schedule, so every secret from its epoch on
//! depends on it: who joins without it has the tree, and can compute nothing. Members that do not hold it cannot follow
//! either. Leaves to the caller which keys belong to which group, and where they are kept.

use fleetkey_wire::{Psk, PskId, Suite};
use openmls::prelude::{PreSharedKeyProposal, Proposal};
use openmls::schedule::{ExternalPsk, PreSharedKeyId, Psk as MlsPsk};
use openmls_traits::OpenMlsProvider as _;

use crate::error::{LocalError, Refused};
use crate::provider::{Provider, ciphersuite};

/// Hands `psks` to openmls, for the length of one operation.
pub(crate) fn hold(provider: &Provider<'_>, psks: &[Psk]) -> Result<(), LocalError> {
    for psk in psks {
        // The nonce belongs to each use; openmls keeps the key under its name alone.
        PreSharedKeyId::external(name_of(psk), Vec::new()).store(provider, psk.as_bytes()).map_err(
            |error| LocalError::Engine { doing: "holding a pre-shared key", reason: error.to_string() },
        )?;
    }
    Ok(())
}

/// Proposes `psk`, under a nonce of its own.
pub(crate) fn proposal(provider: &Provider<'_>, psk: &Psk, suite: Suite) -> Result<Proposal, LocalError> {
    let failed = |reason: String| LocalError::Engine { doing: "proposing a pre-shared key", reason };
    let named = MlsPsk::External(ExternalPsk::new(name_of(psk)));
    let id = PreSharedKeyId::new(ciphersuite(suite), provider.rand(), named)
        .map_err(|error| failed(error.to_string()))?;
    Ok(Proposal::PreSharedKey(Box::new(PreSharedKeyProposal::new(id))))
}

/// The name of an external pre-shared key of ours.
pub(crate) fn id_of(psk: &MlsPsk) -> Option<PskId> {
    match psk {
        MlsPsk::External(external) => external.psk_id().try_into().map(PskId::from_bytes).ok(),
        MlsPsk::Resumption(_) => None,
    }
}

/// Whether what lets somebody in asks for `asked` pre-shared keys as it may: for one that is held, which openmls has
/// `used`; and for none only where none is held. Which one it is.
pub(crate) fn check_used(
    what: &'static str,
    asked: usize,
    used: Option<PskId>,
    held: &[Psk],
) -> Result<Option<PskId>, Refused> {
    match (asked, used) {
        (0, _) if held.is_empty() => Ok(None),
        (0, _) => Err(Refused::PskNotUsed { what }),
        (1, Some(_)) => Ok(used),
        (_, _) => Err(Refused::PreSharedKey),
    }
}

fn name_of(psk: &Psk) -> Vec<u8> {
    psk.id().as_bytes().to_vec()
}
