//! `fleetkey operator`.

use std::io::Write;

use anyhow::Context;
use clap::{Args, Subcommand};
use fleetkey_coordinator::api::{
    NewOperator, NewOperatorToken, OperatorList, OperatorView, ScopeGroup, Whoami,
};
use fleetkey_coordinator::when;
use fleetkey_coordinator_core::records::OperatorRole;

use super::client::{Client, segment};
use super::show;

#[derive(Debug, Subcommand)]
pub(crate) enum OperatorCommand {
    Create(Create),
    /// List all operators there ever were, without their tokens, which nobody keeps.
    List,
    /// End an operator: the token opens nothing from now on, and the name is given to nobody else.
    End {
        /// The name.
        name: String,
    },
    /// Say as whom the API takes the token that is used here.
    Whoami,
}

/// Make somebody an operator: what they do, the audit log tells by their name.
///
/// The token is printed once, alone on its line; what is kept is its digest. It is used as FLEETKEY_TOKEN or with
/// --token-file. With --group an operator sees and acts on those groups alone, and on devices as their members.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey operator create ops1 --role admin > ops1.token
  fleetkey operator create ops2 --role operator --group pumps --group meters --expires 90d > ops2.token
  FLEETKEY_TOKEN=$(cat ops2.token) fleetkey --api http://127.0.0.1:7600 operator whoami")]
pub(crate) struct Create {
    /// The name: a-z 0-9 . _ -
    name: String,
    /// viewer: may look. operator: may run devices and groups. admin: may do everything.
    #[arg(long, value_parser = parse_role)]
    role: OperatorRole,
    /// A group that it is about; may be repeated. Without one it is about the whole fleet.
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// How long the token is good for: 90s, 30m, 12h, 90d. Without it until the operator is ended.
    #[arg(long, value_name = "TIME", value_parser = when::parse_span)]
    expires: Option<u64>,
}

fn parse_role(text: &str) -> Result<OperatorRole, String> {
    let found = OperatorRole::ALL.into_iter().find(|role| role.name() == text);
    found.ok_or_else(|| "a role is viewer, operator or admin".to_owned())
}

impl OperatorCommand {
    pub(crate) fn run(self, client: &Client, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        match self {
            Self::Create(create) => create.run(client, json, out),
            Self::List => list(&client.get("/v1/operators")?, json, out),
            Self::End { name } => {
                list(&client.post_nothing(&format!("/v1/operators/{}/end", segment(&name)))?, json, out)
            }
            Self::Whoami => whoami(&client.get("/v1/whoami")?, json, out),
        }
    }
}

impl Create {
    fn run(self, client: &Client, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        let Self { name, role, groups, expires } = self;
        let answer =
            client.post("/v1/operators", &NewOperator { name, role, groups, valid_seconds: expires })?;
        if json {
            return show::json(out, &answer);
        }
        let made: NewOperatorToken = serde_json::from_value(answer).context("read the answer")?;
        // Alone on its line, so that a script can take it.
        writeln!(out, "{}", made.token)?;
        Ok(())
    }
}

fn list(answer: &serde_json::Value, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    if json {
        return show::json(out, answer);
    }
    let OperatorList { operators } = serde_json::from_value(answer.clone()).context("read the answer")?;
    if operators.is_empty() {
        writeln!(out, "no operators but root: make one with `fleetkey operator create`")?;
    }
    for OperatorView { name, role, groups, expires_unix_seconds, ended_unix_seconds, .. } in operators {
        let until = match (ended_unix_seconds, expires_unix_seconds) {
            (Some(ended), _) => format!("ended {}", when::show(ended)),
            (None, Some(last)) => format!("until {}", when::show(last)),
            (None, None) => "without end".to_owned(),
        };
        writeln!(out, "{name}  {role} of {}, {until}", scope(groups.as_deref()))?;
    }
    Ok(())
}

fn whoami(answer: &serde_json::Value, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    if json {
        return show::json(out, answer);
    }
    let Whoami { name, role, groups, expires_unix_seconds } =
        serde_json::from_value(answer.clone()).context("read the answer")?;
    let until = expires_unix_seconds.map(|last| format!(", until {}", when::show(last))).unwrap_or_default();
    writeln!(out, "{name}, {role} of {}{until}", scope(groups.as_deref()))?;
    Ok(())
}

fn scope(groups: Option<&[ScopeGroup]>) -> String {
    match groups {
        None => "the fleet".to_owned(),
        Some(groups) => groups.iter().map(|group| group.name.as_str()).collect::<Vec<_>>().join(", "),
    }
}
