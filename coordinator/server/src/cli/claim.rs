//! `fleetkey claim`.

use std::io::Write;

use anyhow::Context;
use clap::{Args, Subcommand};
use fleetkey_coordinator::api::{ClaimList, ClaimView, NewClaim, NewClaimSecret};
use fleetkey_coordinator::when;

use super::client::{Client, segment};
use super::show;

#[derive(Debug, Subcommand)]
pub(crate) enum ClaimCommand {
    Create(Create),
    /// List the claims that have not ended, without their secrets, which nobody keeps.
    List,
    /// End a claim. Devices that it has let in stay.
    End {
        /// Its id: what stands before the colon.
        claim: String,
    },
}

/// Make a claim: a secret that lets devices in over EST, as user and password.
///
/// It is printed once, as ID:SECRET; what is kept is a digest. With it a device makes its own key and gets a certificate:
/// `fleetkey-agent enroll`, or any EST client.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey claim create --note \"hall 3\" --uses 40 --valid 7d --labels site=hamburg,type=meter
  fleetkey claim create --approve > claim; curl --user \"$(cat claim)\" ...")]
pub(crate) struct Create {
    /// For people: what it is for.
    #[arg(long, default_value = "")]
    note: String,
    /// How many devices it lets in.
    #[arg(long, value_name = "N", default_value_t = 1)]
    uses: u32,
    /// How long it is good for: 90s, 30m, 12h, 7d.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_seconds)]
    valid: u64,
    /// What those devices are labelled with: KEY=VALUE,KEY=VALUE.
    #[arg(long, value_name = "LABELS", default_value = "")]
    labels: String,
    /// Let each of them wait for `fleetkey device approve`.
    #[arg(long)]
    approve: bool,
}

/// A number with a unit: s, m, h or d.
pub(super) fn parse_seconds(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no time: say 90s, 30m, 12h or 7d");
    let unit = text.chars().last().ok_or_else(bad)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(bad()),
    };
    let number: u64 = text.strip_suffix(unit).and_then(|number| number.parse().ok()).ok_or_else(bad)?;
    number.checked_mul(seconds).ok_or_else(bad)
}

impl ClaimCommand {
    pub(crate) fn run(self, client: &Client, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        match self {
            Self::Create(create) => create.run(client, json, out),
            Self::List => list(&client.get("/v1/claims")?, json, out),
            Self::End { claim } => {
                let id = claim.split(':').next().unwrap_or(&claim);
                list(&client.post_nothing(&format!("/v1/claims/{}/end", segment(id)))?, json, out)
            }
        }
    }
}

impl Create {
    fn run(self, client: &Client, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        let Self { note, uses, valid, labels, approve } = self;
        let new = NewClaim { note, uses, valid_seconds: valid, labels, needs_approval: approve };
        let answer = client.post("/v1/claims", &new)?;
        if json {
            return show::json(out, &answer);
        }
        let made: NewClaimSecret = serde_json::from_value(answer).context("read the answer")?;
        // Alone on its line, so that a script can take it.
        writeln!(out, "{}", made.claim)?;
        Ok(())
    }
}

fn list(answer: &serde_json::Value, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    if json {
        return show::json(out, answer);
    }
    let ClaimList { claims } = serde_json::from_value(answer.clone()).context("read the answer")?;
    if claims.is_empty() {
        writeln!(out, "no claims: make one with `fleetkey claim create`")?;
    }
    for ClaimView { id, note, uses, used, expires_unix_seconds, labels, needs_approval, .. } in claims {
        let approval = if needs_approval { ", each waits for an operator" } else { "" };
        let until = when::show(expires_unix_seconds);
        writeln!(out, "{id}  {used} of {uses} used, until {until}{approval}  {labels}  {note}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        for (text, seconds) in [("90s", 90), ("30m", 1_800), ("12h", 43_200), ("7d", 604_800)] {
            assert_eq!(parse_seconds(text), Ok(seconds));
        }
        for bad in ["", "7", "d", "-1d", "7w", "1.5h", "99999999999999999999d", "7é"] {
            assert!(parse_seconds(bad).unwrap_err().contains("is no time"), "{bad}");
        }
    }
}
