//! What a run has shown: stages with their figures, and checks.

use std::fmt;

use serde::Serialize;

use fleetkey_report::Check;
use fleetkey_report::Distribution;

/// What one stage took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    /// What was done.
    pub name: String,
    /// From the beginning of the stage to the moment at which the coordinator knew of each device, in milliseconds.
    pub milliseconds: Distribution,
    /// Payload bytes that a device received.
    pub bytes_per_device: Distribution,
    /// Messages that the coordinator published first-hand.
    pub published: u64,
    /// Their payloads, in bytes.
    pub published_bytes: u64,
    /// Answers and requests to single devices, catch-up and re-sends.
    pub answered: u64,
    /// Of those, statements sent again to devices that had not confirmed.
    pub resent: u64,
    /// Messages that the coordinator received.
    pub received: u64,
    /// Statements that the coordinator signed.
    pub signatures: u64,
    /// CPU time of the coordinator's deciding thread, in milliseconds.
    pub coordinator_cpu_milliseconds: f64,
}

/// What a revocation put on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct RevocationFigures {
    /// Devices revoked.
    pub revoked: usize,
    /// Devices that remained.
    pub remaining: usize,
    /// Cells.
    pub cells: u64,
    /// Frames with a statement alone: one for each cell without a revoked device.
    pub statement_frames: u64,
    /// The largest of them, in bytes of MQTT payload.
    pub statement_frame_max_bytes: u64,
    /// Frames with a commit: one for each cell that lost a device.
    pub commit_frames: u64,
    /// The largest of them, in bytes of MQTT payload.
    pub commit_frame_max_bytes: u64,
    /// First-hand publishes of the coordinator.
    pub published: u64,
    /// Statements sent again, apart from those.
    pub resent: u64,
    /// Signatures that the coordinator made outside MLS.
    pub signatures: u64,
    /// Statements that they are on.
    pub statements: u64,
}

/// The whole of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The version of this format.
    pub version: u32,
    /// Devices at the beginning.
    pub devices: usize,
    /// The broker.
    pub broker: String,
    /// Each stage, in order.
    pub stages: Vec<Stage>,
    /// The revocation's figures.
    pub revocation: RevocationFigures,
    /// Each check, in order.
    pub checks: Vec<Check>,
    /// From start to end, in seconds.
    pub seconds: f64,
}

impl Report {
    /// Whether every check held.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.held)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{} devices, each with its own connection, through {}\n", self.devices, self.broker)?;
        writeln!(
            f,
            "{:<30} {:>8} {:>9} {:>9} {:>9}  {:>13} {:>9} {:>7} {:>6} {:>8}",
            "stage",
            "devices",
            "p50 ms",
            "p99 ms",
            "max ms",
            "bytes/device",
            "published",
            "resent",
            "signed",
            "cpu ms"
        )?;
        for stage in &self.stages {
            let (times, bytes) = (&stage.milliseconds, &stage.bytes_per_device);
            writeln!(
                f,
                "{:<30} {:>8} {:>9.1} {:>9.1} {:>9.1}  {:>13} {:>9} {:>7} {:>6} {:>8.1}",
                stage.name,
                times.count,
                times.p50,
                times.p99,
                times.max,
                format!("{:.0} / {:.0}", bytes.p50, bytes.max),
                stage.published,
                stage.resent,
                stage.signatures,
                stage.coordinator_cpu_milliseconds,
            )?;
        }
        let at = &self.revocation;
        writeln!(
            f,
            "\nms: from the command to the coordinator's knowledge of each device; bytes/device: median / largest;\n\
             published: by the coordinator, first-hand; cpu: of the coordinator's deciding thread\n\n\
             revocation of {}: {} frames of at most {} bytes outside the revoked devices' cells, {} of at most {} inside",
            at.revoked,
            at.statement_frames,
            at.statement_frame_max_bytes,
            at.commit_frames,
            at.commit_frame_max_bytes
        )?;
        writeln!(f)?;
        for check in &self.checks {
            writeln!(f, "{} {}: {}", if check.held { "  ok  " } else { "FAILED" }, check.claim, check.seen)?;
        }
        let failed = self.checks.iter().filter(|check| !check.held).count();
        if failed == 0 {
            writeln!(f, "\nall {} checks held, in {:.1} s", self.checks.len(), self.seconds)
        } else {
            writeln!(f, "\n{failed} of {} checks FAILED, in {:.1} s", self.checks.len(), self.seconds)
        }
    }
}
