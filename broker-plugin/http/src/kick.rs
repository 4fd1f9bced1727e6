//! Ends sessions at brokers that decide only when somebody asks for something: a session that is there already asks for
//! nothing.
//!
//! A device that is revoked, or no longer in a cell, is thrown out through the broker's management API; one that may come
//! back does so by itself and subscribes to what is left to it. Tried until it works, and once more a little later: a
//! session may have been let in just before the change and have become visible just after. Leaves to `management` how a
//! broker is told.

mod management;

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fleetkey_policy::{Effects, PolicyHandle, Watch};
use fleetkey_wire::DeviceId;
use metrics::{counter, gauge};

pub use management::{Management, ManagementKind};

/// Between attempts, growing from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// After this long a session that was let in before a change can be seen by the management API.
const SETTLED: Duration = Duration::from_secs(2);

/// A thread that throws out whom the policy wants out, until it is dropped.
#[derive(Debug)]
pub struct Kicker {
    watch: Option<Watch>,
    thread: Option<JoinHandle<()>>,
}

/// What is left to do for one device.
#[derive(Debug, Clone, Copy)]
struct Due {
    /// When the policy said so.
    asked: Instant,
    /// When to try.
    at: Instant,
    /// How long to wait when that fails.
    pause: Duration,
    /// The next one is the second time.
    is_second: bool,
}

impl Kicker {
    /// Does at the broker what follows from each change of `policy`. Whoever is revoked when the policy becomes known is
    /// thrown out too: the change may have happened while nobody was watching.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(management: Management, policy: &PolicyHandle) -> io::Result<Self> {
        metrics::describe_counter!("fleetkey_gate_kicks_total", "Sessions ended at the broker, by outcome");
        metrics::describe_gauge!(
            "fleetkey_gate_kicks_pending",
            "Devices whose sessions are still to be ended"
        );
        let (sender, devices) = mpsc::channel();
        let watch = policy.watch(move |effects: &Effects| {
            let leavers = effects.drop.iter().map(|(_, device)| device);
            for device in effects.close.iter().chain(leavers) {
                // The thread ends with the kicker: then nobody is to be thrown out any more.
                let _ = sender.send(*device);
            }
        });
        let thread =
            thread::Builder::new().name("kicker".into()).spawn(move || run(&management, &devices))?;
        Ok(Self { watch: Some(watch), thread: Some(thread) })
    }
}

impl Drop for Kicker {
    fn drop(&mut self) {
        // The watch holds the sender: without it the thread ends.
        self.watch.take();
        if let Some(thread) = self.thread.take() {
            // It can only have panicked, and that has been reported.
            let _ = thread.join();
        }
    }
}

fn run(management: &Management, devices: &mpsc::Receiver<DeviceId>) {
    let mut due: BTreeMap<DeviceId, Due> = BTreeMap::new();
    loop {
        gauge!("fleetkey_gate_kicks_pending").set(due.len() as f64);
        let next = due.values().map(|due| due.at).min();
        let heard = match next {
            None => devices.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => devices.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        match heard {
            Ok(device) => {
                let now = Instant::now();
                for device in std::iter::once(device).chain(devices.try_iter()) {
                    due.insert(device, Due { asked: now, at: now, pause: FIRST_PAUSE, is_second: false });
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        // The newest change first: a whole history of revocations, told at the start, must not hold it up.
        let urgent = due.iter().filter(|(_, due)| due.at <= now).max_by_key(|(_, due)| due.asked);
        if let Some((device, was)) = urgent.map(|(device, due)| (*device, *due)) {
            match attempt(management, device, was) {
                Some(again) => due.insert(device, again),
                None => due.remove(&device),
            };
        }
    }
}

/// Tries for one device; answers with what is left to do for it.
fn attempt(management: &Management, device: DeviceId, was: Due) -> Option<Due> {
    match management.end_session(device) {
        Ok(found) => {
            let outcome = if found { "ended" } else { "absent" };
            counter!("fleetkey_gate_kicks_total", "outcome" => outcome).increment(1);
            tracing::debug!(%device, outcome, "session at the broker");
            (!was.is_second).then(|| Due {
                at: Instant::now() + SETTLED,
                pause: FIRST_PAUSE,
                is_second: true,
                ..was
            })
        }
        Err(error) => {
            counter!("fleetkey_gate_kicks_total", "outcome" => "failed").increment(1);
            let retry_ms = was.pause.as_millis();
            tracing::warn!(%device, %error, retry_ms, "cannot end a session at the broker");
            let pause = (was.pause * 2).min(LONGEST_PAUSE);
            Some(Due { at: Instant::now() + was.pause, pause, ..was })
        }
    }
}
