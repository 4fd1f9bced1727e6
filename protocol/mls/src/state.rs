//! What both sides keep of a cell: its name, the keys of its epoch, and the slots of its MLS group.

use fleetkey_wire::keys::Kek;
use fleetkey_wire::{CellEpoch, Suite};
use openmls::group::MlsGroup;
use zeroize::Zeroizing;

use crate::context::CellContext;
use crate::error::LocalError;
use crate::message::group_id;
use crate::provider::Provider;
use crate::slots::Slots;
use crate::snapshot::{Reader, Writer};
use openmls_traits::OpenMlsProvider as _;

const WHAT: &str = "a cell's state";

/// The exporter's label for [`Kek`]s.
const KEK_LABEL: &str = "fleetkey kek";

/// A cell between two operations.
#[derive(Clone)]
pub(crate) struct CellState {
    pub(crate) context: CellContext,
    pub(crate) suite: Suite,
    pub(crate) slots: Slots,
    pub(crate) keys: EpochKeys,
}

/// What a cell epoch is used for, kept at hand so that the group need not be loaded for it.
#[derive(Clone)]
pub(crate) struct EpochKeys {
    pub(crate) epoch: CellEpoch,
    pub(crate) kek: Kek,
    pub(crate) authenticator8: [u8; 8],
}

impl EpochKeys {
    /// Those of the epoch that `group` is at.
    pub(crate) fn of(
        group: &MlsGroup,
        provider: &Provider<'_>,
        context: &CellContext,
    ) -> Result<Self, LocalError> {
        let failed = |reason: String| LocalError::Engine { doing: "exporting the KEK", reason };
        let secret = group
            .export_secret(provider.crypto(), KEK_LABEL, &context.exporter_context(), 32)
            .map(Zeroizing::new)
            .map_err(|error| failed(error.to_string()))?;
        let kek = <[u8; 32]>::try_from(secret.as_slice())
            .map_err(|_| failed("it has another length".to_owned()))?;
        let authenticator8 = group
            .epoch_authenticator()
            .as_slice()
            .first_chunk()
            .ok_or_else(|| failed("the epoch authenticator is too short".to_owned()))?;
        Ok(Self {
            epoch: CellEpoch(group.epoch().as_u64()),
            kek: Kek::from_bytes(kek),
            authenticator8: *authenticator8,
        })
    }
}

impl CellState {
    /// The group, loaded over `provider`.
    pub(crate) fn load(&self, provider: &Provider<'_>) -> Result<MlsGroup, LocalError> {
        let damaged = |reason: String| LocalError::Damaged { what: WHAT, reason };
        MlsGroup::load(provider.storage(), &group_id(self.context.cell))
            .map_err(|error| damaged(error.to_string()))?
            .ok_or_else(|| damaged("part of it is missing".to_owned()))
    }

    /// How many bytes [`Self::write`] will take, roughly.
    pub(crate) fn size(&self) -> usize {
        self.slots.iter().map(|(key, value)| key.len() + value.len() + 8).sum::<usize>() + 128
    }

    pub(crate) fn write(&self, out: &mut Writer) {
        out.suite(self.suite);
        out.context(&self.context);
        out.array(&self.keys.epoch.0.to_be_bytes());
        out.array(self.keys.kek.as_bytes());
        out.array(&self.keys.authenticator8);
        out.slots(&self.slots);
    }

    pub(crate) fn read(input: &mut Reader<'_>) -> Result<Self, LocalError> {
        Ok(Self {
            suite: input.suite()?,
            context: input.context()?,
            keys: EpochKeys {
                epoch: input.epoch()?,
                kek: Kek::from_bytes(input.array()?),
                authenticator8: input.array()?,
            },
            slots: input.slots()?,
        })
    }
}
