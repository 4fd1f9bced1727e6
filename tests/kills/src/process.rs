//! One process: started, killed, started again. It ends with the value that stands for it, whatever becomes of the
//! test.

use std::fs::OpenOptions;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// A process that is to run until it is killed. Its standard error goes to a file, across restarts.
#[derive(Debug)]
pub struct Process {
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// One that does not run yet.
    pub fn new(log: PathBuf) -> Self {
        Self { log, child: None }
    }

    /// Where its standard error goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Starts it, in the place of the one that runs, if one does.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, mut command: Command) -> Result<()> {
        self.kill();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open {}", self.log.display()))?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.child = Some(child.with_context(|| format!("start {:?}", command.get_program()))?);
        Ok(())
    }

    /// SIGKILL, and it is gone when this returns.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            _ = child.kill();
            _ = child.wait();
        }
    }

    /// Whether it was started, and has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// SIGSTOP: it stands still.
    ///
    /// # Errors
    /// When it does not run.
    pub fn stop(&self) -> Result<()> {
        self.signal("-STOP")
    }

    /// SIGCONT: it goes on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn go_on(&self) -> Result<()> {
        self.signal("-CONT")
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let id = self.id().context("it does not run")?;
        let status = Command::new("kill").args([signal, &id.to_string()]).status().context("run kill")?;
        ensure!(status.success(), "kill {signal} {id} failed");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a command to its end, which must come `within` that time.
///
/// # Errors
/// When it does not start, or does not end.
pub fn run(mut command: Command, within: Duration) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
    let stdout = drain(child.stdout.take().context("standard output")?);
    let stderr = drain(child.stderr.take().context("standard error")?);
    let end = Instant::now() + within;
    let status = loop {
        if let Some(status) = child.try_wait().context("wait for a command")? {
            break status;
        }
        if Instant::now() >= end {
            _ = child.kill();
            _ = child.wait();
            bail!("no end within {} s: {command:?}", within.as_secs());
        }
        thread::sleep(Duration::from_millis(2));
    };
    let collect = |reader: thread::JoinHandle<Vec<u8>>| reader.join().unwrap_or_default();
    Ok(Output { status, stdout: collect(stdout), stderr: collect(stderr) })
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before a failure is what there is.
        _ = from.read_to_end(&mut bytes);
        bytes
    })
}
