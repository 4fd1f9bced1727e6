//! `--wait`: until a group's devices have proved that they are where the command wanted them.

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use fleetkey_coordinator::api::MemberList;
use serde_json::Value;

use super::client::{Client, segment};
use super::show::number;

/// How often the coordinator is asked.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long, when nothing else is said.
const TIMEOUT_SECONDS: u64 = 120;
/// Stragglers that are named when time is up.
const MAX_NAMED: usize = 5;

#[derive(Debug, Args)]
pub(crate) struct WaitOptions {
    /// Wait until every device of the group has confirmed.
    #[arg(long)]
    wait: bool,
    /// How long to wait, in seconds; then fail, and name who is missing [default: 120].
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    timeout: Option<u64>,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Every member has applied the newest statement.
    Confirmed,
    /// And every device that is to come in is in.
    AllIn,
    /// And no rotation is under way any more.
    Rotated,
}

impl Goal {
    fn is_reached(self, group: &Value) -> bool {
        number(group, "stragglers") == 0
            && match self {
                Self::Confirmed => true,
                Self::AllIn => number(group, "wanted") == 0,
                Self::Rotated => group["rotation"].is_null(),
            }
    }

    fn progress(self, group: &Value) -> String {
        let (confirmed, members) = (number(group, "confirmed"), number(group, "members"));
        let name = group["name"].as_str().unwrap_or_default();
        let mut line = format!("{name}: {confirmed} of {members} confirmed");
        match self {
            Self::Confirmed => {}
            Self::AllIn => line.push_str(&format!(", {} to come in", number(group, "wanted"))),
            Self::Rotated => {
                let phase = match &group["rotation"] {
                    Value::Object(rotation) => rotation.keys().next().cloned(),
                    Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                        None
                    }
                };
                line.push_str(&format!(", {}", phase.as_deref().unwrap_or("rotated")));
            }
        }
        line
    }
}

impl WaitOptions {
    /// Waits for a deadline, if nothing was said of how long.
    pub(crate) fn or_timeout(&mut self, seconds: Option<u64>) {
        self.timeout = self.timeout.or(seconds);
    }

    /// Waits if that was asked for. `group` is the group as the command left it; it is brought up to date.
    pub(crate) fn until(&self, client: &Client, goal: Goal, group: &mut Value) -> anyhow::Result<()> {
        if !self.wait {
            return Ok(());
        }
        let id = group["id"].as_str().context("the answer names no group")?.to_owned();
        let seconds = self.timeout.unwrap_or(TIMEOUT_SECONDS);
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut progress = Progress::default();
        loop {
            *group = client.get(&format!("/v1/groups/{}", segment(&id)))?;
            progress.show(&goal.progress(group));
            if goal.is_reached(group) {
                progress.end();
                return Ok(());
            }
            if Instant::now() >= end {
                progress.end();
                bail!("{}", missing(client, &id, group, seconds)?);
            }
            thread::sleep(ASK_EVERY);
        }
    }
}

fn missing(client: &Client, id: &str, group: &Value, seconds: u64) -> anyhow::Result<String> {
    let list = client.get(&format!("/v1/groups/{}/members", segment(id)))?;
    let list: MemberList = serde_json::from_value(list).context("read the answer")?;
    let missing: Vec<_> =
        list.members.iter().filter(|member| member.cell.is_none() || !member.holds_newest).collect();
    let named: Vec<String> = missing
        .iter()
        .take(MAX_NAMED)
        .map(|member| {
            format!("{} ({})", member.device_name, if member.online { "online" } else { "offline" })
        })
        .collect();
    let more = missing.len().saturating_sub(MAX_NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let name = group["name"].as_str().unwrap_or_default();
    Ok(format!("{name}: not everybody has confirmed after {seconds} s: {}{more}", named.join(", ")))
}

/// One line on standard error: rewritten on a terminal, else printed when it changes.
#[derive(Default)]
struct Progress {
    last: String,
}

impl Progress {
    fn show(&mut self, line: &str) {
        if self.last == line {
            return;
        }
        let mut err = io::stderr();
        // Nobody is the worse for progress that cannot be shown.
        let _ = if err.is_terminal() {
            write!(err, "\r\x1b[K{line}").and_then(|()| err.flush())
        } else {
            writeln!(err, "{line}")
        };
        line.clone_into(&mut self.last);
    }

    fn end(&self) {
        if io::stderr().is_terminal() && !self.last.is_empty() {
            let _ = writeln!(io::stderr());
        }
    }
}
