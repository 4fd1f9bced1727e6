//! Devices that lose their power, or only their connections.
//!
//! What a mere reconnect takes is measured on the same connections through the same broker: the devices' agents hear nothing of
//! it. Leaves to whoever asks what else happens meanwhile.

use std::time::{Duration, Instant};

use fleetkey_wire::DeviceId;

use super::{Field, done};
use crate::parts::{DevicesAnswer, DevicesOrder, Which};

/// Between the end of all connections and the return of the first: nobody is still busy with the end.
const REST: Duration = Duration::from_secs(2);
/// How often it is asked whether all are back: each answer says how long ago the last came.
const ASK: Duration = Duration::from_millis(20);

impl Field {
    /// Cuts these devices' power. Their agents are loaded from what they have stored when they are plugged in again.
    ///
    /// # Errors
    /// When a process has ended.
    pub async fn cut_power(&mut self, ids: &[DeviceId]) -> anyhow::Result<()> {
        for part in &mut self.devices {
            done(part.ask(&DevicesOrder::CutPower(Which::Ids(ids.to_vec()))).await?)?;
        }
        Ok(())
    }

    /// Cuts these devices' connections, all at once, and has them come back with nothing to do but connect and subscribe; so
    /// many times. How long it took each time, from the word to the last subscription that the broker granted.
    ///
    /// # Errors
    /// When a process has ended, or they do not come back.
    pub async fn reconnect(&mut self, ids: &[DeviceId], rounds: usize) -> anyhow::Result<Vec<Duration>> {
        self.bare(ids, true).await?;
        let mut took = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            self.plug(ids, false).await?;
            tokio::time::sleep(REST).await;
            took.push(self.come_back(ids).await?);
        }
        self.bare(ids, false).await?;
        Ok(took)
    }

    async fn come_back(&mut self, ids: &[DeviceId]) -> anyhow::Result<Duration> {
        let patience = Duration::from_secs(60) + Duration::from_millis(10) * u32::try_from(ids.len())?;
        let began = Instant::now();
        self.plug(ids, true).await?;
        loop {
            let (back, since) = self.subscribed().await?;
            let elapsed = began.elapsed();
            if back >= ids.len() {
                return Ok(elapsed.saturating_sub(since));
            }
            anyhow::ensure!(elapsed < patience, "{back} of {} devices have connected again", ids.len());
            tokio::time::sleep(ASK).await;
        }
    }

    /// Has these devices only connect and subscribe, without their agents hearing of it; or lets them be devices again.
    async fn bare(&mut self, ids: &[DeviceId], is_bare: bool) -> anyhow::Result<()> {
        for part in &mut self.devices {
            done(part.ask(&DevicesOrder::Bare(Which::Ids(ids.to_vec()), is_bare)).await?)?;
        }
        Ok(())
    }

    /// How many bare devices have all their subscriptions, and how long ago the last of them had.
    async fn subscribed(&mut self) -> anyhow::Result<(usize, Duration)> {
        let (mut all, mut since) = (0, Duration::MAX);
        for part in &mut self.devices {
            let DevicesAnswer::Subscribed { devices, microseconds_since_the_last } =
                part.ask(&DevicesOrder::HowManyAreSubscribed).await?
            else {
                anyhow::bail!("the devices answer something else");
            };
            all += devices;
            since = since.min(Duration::from_micros(microseconds_since_the_last));
        }
        Ok((all, since))
    }
}
