//! Follows the coordinator's policy stream: JSON lines that do not end, begun anew after every break.
//!
//! Before the first snapshot nobody is let in; during a break the last known state stands. A thread of its own reads,
//! for reading blocks. Leaves to the policy what the updates mean.

mod heard;

use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader};
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fleetkey_policy::{OutOfStep, PolicyHandle, PolicyUpdate};
use metrics::{counter, gauge};
use zeroize::Zeroizing;

pub use heard::LastHeard;

/// The longest line: a snapshot of a fleet of two million devices.
pub const MAX_UPDATE_BYTES: usize = 128 * 1024 * 1024;

/// The coordinator says something at least every few seconds; after this long without a byte the way is broken.
const SILENCE: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between attempts, growing from the first to the last; each with up to a half on top, so that brokers do not all
/// come back at once.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// A stream that held this long deserves a quick retry.
const STABLE: Duration = Duration::from_secs(15);

/// Where the stream is, and the token to show there.
#[derive(Clone)]
pub struct PolicySource {
    /// `http://host:port/v1/policy`.
    pub url: String,
    /// The bearer token.
    pub token: Zeroizing<String>,
    /// Longest wait between two attempts, half as much on top.
    pub longest_pause: Duration,
}

/// A thread that keeps a policy up to date, until it is dropped.
#[derive(Debug)]
pub struct Follower {
    heard: LastHeard,
    agent: Option<ureq::Agent>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Why the stream ended.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// There is none.
    #[error("{0}")]
    Http(#[from] ureq::Error),
    /// The connection broke.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// It ended.
    #[error("the coordinator closed the stream")]
    Closed,
    /// Nothing of it was read on.
    #[error("line of more than {MAX_UPDATE_BYTES} bytes")]
    TooLong,
    /// A line that says nothing we know.
    #[error("not a policy update: {0}")]
    NotAnUpdate(#[from] serde_json::Error),
    /// Something was missed.
    #[error(transparent)]
    OutOfStep(#[from] OutOfStep),
    /// A fault of our own.
    #[error("reading it panicked: see standard error")]
    Panicked,
}

/// Keeps `policy` as the coordinator says.
///
/// # Errors
/// When the system gives no thread.
pub fn follow(source: PolicySource, policy: PolicyHandle) -> io::Result<Follower> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .max_redirects(0)
        .build()
        .into();
    let (stop, stopped) = mpsc::channel();
    let heard = LastHeard::default();
    let thread = thread::Builder::new().name("policy".into()).spawn({
        let (agent, heard) = (agent.clone(), heard.clone());
        move || run(&agent, &source, &policy, &heard, &stopped)
    })?;
    Ok(Follower { heard, agent: Some(agent), stop: Some(stop), thread: Some(thread) })
}

impl Follower {
    /// When the coordinator was last heard.
    pub fn last_heard(&self) -> LastHeard {
        self.heard.clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(agent) = self.agent.take() {
            agent.shutdown();
        }
        if let Some(thread) = self.thread.take() {
            // It can only have panicked, and that has been reported.
            let _ = thread.join();
        }
    }
}

fn run(
    agent: &ureq::Agent,
    source: &PolicySource,
    policy: &PolicyHandle,
    heard: &LastHeard,
    stopped: &mpsc::Receiver<()>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        // Whatever happens to one stream, another is begun: a broker that hears of no revocation must not go on unnoticed.
        let broken = match panic::catch_unwind(AssertUnwindSafe(|| read_stream(agent, source, policy, heard)))
        {
            Ok(Err(broken)) => broken,
            Ok(Ok(never)) => match never {},
            Err(_) => Broken::Panicked,
        };
        gauge!("fleetkey_broker_policy_connected").set(0.0);
        if !matches!(stopped.try_recv(), Err(mpsc::TryRecvError::Empty)) {
            return;
        }
        counter!("fleetkey_broker_policy_breaks_total").increment(1);
        if started.elapsed() > STABLE {
            pause = FIRST_PAUSE;
        }
        let this_pause = pause + jitter(pause / 2);
        let known = policy.read().sequence();
        tracing::warn!(url = %source.url, error = %broken, known, retry_ms = this_pause.as_millis(), "policy stream broken");
        match stopped.recv_timeout(this_pause) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
        pause = (pause * 2).min(source.longest_pause).max(FIRST_PAUSE);
    }
}

fn read_stream(
    agent: &ureq::Agent,
    source: &PolicySource,
    policy: &PolicyHandle,
    heard: &LastHeard,
) -> Result<std::convert::Infallible, Broken> {
    let authorization = Zeroizing::new(format!("Bearer {}", *source.token));
    let response = agent.get(&source.url).header("Authorization", authorization.as_str()).call()?;
    let lines = BufReader::new(response.into_body().into_reader());
    apply_stream(lines, &source.url, policy, heard)
}

/// Keeps `policy` as the lines of one stream say, until it ends, which it always does with an error.
///
/// # Errors
/// [`Broken`]. What was applied before stays.
pub fn apply_stream(
    mut lines: impl BufRead,
    url: &str,
    policy: &PolicyHandle,
    heard: &LastHeard,
) -> Result<std::convert::Infallible, Broken> {
    let mut line = Vec::new();
    // A stream begins with a snapshot, whatever was known before.
    let mut has_begun = false;
    loop {
        read_line(&mut lines, &mut line)?;
        if line.is_empty() {
            if has_begun {
                heard.hear();
            }
            continue;
        }
        let update: PolicyUpdate = serde_json::from_slice(&line)?;
        if !has_begun && !matches!(update, PolicyUpdate::Snapshot { .. }) {
            return Err(OutOfStep::NoSnapshot { got: update.sequence() }.into());
        }
        let sequence = update.sequence();
        policy.apply(update)?;
        heard.hear();
        gauge!("fleetkey_broker_policy_sequence").set(sequence as f64);
        if !has_begun {
            has_begun = true;
            gauge!("fleetkey_broker_policy_connected").set(1.0);
            tracing::info!(%url, sequence, cells = policy.read().cell_count(), "policy known");
        }
        if line.capacity() > 1024 * 1024 {
            line = Vec::new();
        }
    }
}

/// Reads up to the next line feed, which is not kept.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> Result<(), Broken> {
    line.clear();
    loop {
        let bytes = input.fill_buf()?;
        if bytes.is_empty() {
            return Err(Broken::Closed);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(bytes.len());
        if line.len() + taken > MAX_UPDATE_BYTES {
            return Err(Broken::TooLong);
        }
        line.extend_from_slice(&bytes[..taken]);
        input.consume(taken + usize::from(end.is_some()));
        if end.is_some() {
            return Ok(());
        }
    }
}

/// Somewhere between nothing and `most`. Not secret, only different from one broker to the next.
fn jitter(most: Duration) -> Duration {
    let random = RandomState::new().hash_one(0);
    most.mul_f64(random as f64 / u64::MAX as f64)
}

impl std::fmt::Debug for PolicySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicySource").field("url", &self.url).field("token", &"(redacted)").finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_wherever_reads_end() {
        let text = b"one\n\ntwo\nthree".as_slice();
        for capacity in 1..text.len() + 1 {
            let mut input = BufReader::with_capacity(capacity, text);
            let mut line = Vec::new();
            for expected in [b"one".as_slice(), b"", b"two"] {
                read_line(&mut input, &mut line).unwrap();
                assert_eq!(line, expected, "capacity {capacity}");
            }
            assert!(matches!(read_line(&mut input, &mut line), Err(Broken::Closed)));
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        struct Endless;
        impl io::Read for Endless {
            fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
                bytes.fill(b'x');
                Ok(bytes.len())
            }
        }
        let mut input = BufReader::with_capacity(1024 * 1024, Endless);
        assert!(matches!(read_line(&mut input, &mut Vec::new()), Err(Broken::TooLong)));
    }

    #[test]
    fn the_token_is_not_printed() {
        let token = Zeroizing::new("hunter2".into());
        let source = PolicySource { url: "http://x".into(), token, longest_pause: STABLE };
        assert!(!format!("{source:?}").contains("hunter2"));
    }
}
