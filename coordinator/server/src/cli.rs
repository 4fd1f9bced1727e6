//! The command line: what can be said, and which part of it does what.

mod audit;
mod backup;
mod broker_config;
mod ca;
mod ca_roll;
mod claim;
mod client;
mod device;
mod doctor;
mod group;
mod operator;
mod provision_list;
mod psk;
mod show;
mod wait;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use fleetkey_coordinator::config::{
    Config, DEFAULT_API_ADDRESS, DEFAULT_BROKER_URL, LogFormat, MASTER_KEY_VARIABLE, Overrides,
};
use fleetkey_coordinator::pkcs11::Pkcs11Config;
use fleetkey_coordinator::{InitOptions, Initialised};
use fleetkey_mqtt::BrokerUrl;
use fleetkey_vault::MasterKey;

use client::{Client, ClientOptions};

const AFTER_HELP: &str = "\
A fleet from nothing:

  fleetkey init fleet                                  a CA, a coordinator, a broker, all in ./fleet
  fleetkey-broker --config fleet/broker/broker.toml &  the broker
  fleetkey serve --config fleet/fleetkey.toml &        the coordinator
  export FLEETKEY_CONFIG=fleet/fleetkey.toml           where the other commands find it

  fleetkey group create pumps                          a group of devices that share a key
  fleetkey device provision pump-1                     a device: ./pump-1 is all that it needs
  fleetkey-agent --config pump-1/agent.toml &          the device
  fleetkey group add pumps pump-1 --wait               wait until it holds the key

  fleetkey claim create --uses 40 --labels site=hamburg   a secret that lets 40 devices in over EST
  fleetkey group create hamburg --select site=hamburg     and the group that they come into

  fleetkey revoke pump-1 --reason stolen --wait        end it, and move everybody else to a new key
  fleetkey status

  fleetkey backup monday                               while it runs
  fleetkey restore monday --config fleet/fleetkey.toml --audit audit.jsonl
  fleetkey doctor                                      is the database sound?

Devices and groups are named by their name or their UUID. Every command takes --json.";

/// Distributes group keys to fleets of devices.
#[derive(Debug, Parser)]
#[command(name = "fleetkey", version, after_help = AFTER_HELP, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    client: ClientOptions,
    /// Print the API's JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(Init),
    Serve(Serve),
    /// Make devices, and look at them.
    #[command(subcommand)]
    Device(device::DeviceCommand),
    /// Make secrets that let devices in over EST.
    #[command(subcommand)]
    Claim(claim::ClaimCommand),
    /// Look after the fleet's CA and its revocation list.
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Make groups, put devices in and take them out.
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Make pre-shared keys for groups that ask for one.
    #[command(subcommand)]
    Psk(psk::PskCommand),
    Revoke(group::Revoke),
    Rotate(group::Rotate),
    /// How the coordinator is: devices, groups, who is behind, what it sent and refused.
    Status,
    Backup(backup::Backup),
    Restore(backup::Restore),
    Audit(audit::Audit),
    /// Say who may do what.
    #[command(subcommand)]
    Operator(operator::OperatorCommand),
    Doctor(doctor::Doctor),
    /// Settings for brokers that have rules of their own.
    #[command(subcommand)]
    BrokerConfig(broker_config::BrokerConfig),
}

/// Make a new fleet: CA, coordinator, broker, tokens, database, settings.
///
/// Everything goes into a new directory, readable by you alone. `DIR/broker` is all that fleetkey-broker needs and
/// can be moved to another host. The root's key goes into a file of its own, which no command reads but `fleetkey ca roll`:
/// put it away. It is encrypted when the environment variable FLEETKEY_ROOT_PASSPHRASE holds a passphrase. The database's master key is written to `DIR/master.key`, unless the environment
/// variable FLEETKEY_MASTER_KEY holds one (64 hexadecimal digits).
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey init fleet
  fleetkey init /srv/fleetkey --broker mqtts://broker.example:8883 --broker-name 10.0.0.7")]
struct Init {
    /// The directory to make. It must not exist yet, or be empty.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Where coordinator and devices find the broker: mqtts://HOST[:PORT], or mqtt:// without TLS.
    #[arg(long, value_name = "URL", default_value = DEFAULT_BROKER_URL)]
    broker: BrokerUrl,
    /// A further host name or address for the broker's certificate; may be repeated.
    #[arg(long, value_name = "NAME")]
    broker_name: Vec<String>,
    /// Where the coordinator's API will listen.
    #[arg(long, value_name = "ADDRESS", default_value = DEFAULT_API_ADDRESS)]
    listen: SocketAddr,
    /// Where the root's key is written, such as a medium that is then put away [default: DIR/root-ca.pem].
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
    #[command(flatten)]
    token: InitToken,
}

/// A PKCS #11 token for the key of the CA that issues. The PIN is in FLEETKEY_PKCS11_PIN, or in a file.
#[derive(Debug, Args)]
struct InitToken {
    /// Make the issuing CA's key in a token: the shared library of the token's maker.
    #[arg(long, value_name = "FILE", requires = "pkcs11_token")]
    pkcs11_module: Option<PathBuf>,
    /// The token's label.
    #[arg(long, value_name = "LABEL", requires = "pkcs11_module")]
    pkcs11_token: Option<String>,
    /// The key's label.
    #[arg(long, value_name = "LABEL", default_value = "fleetkey-ca")]
    pkcs11_key: String,
    /// The file of the PIN.
    #[arg(long, value_name = "FILE", requires = "pkcs11_module")]
    pkcs11_pin_file: Option<PathBuf>,
}

impl InitToken {
    fn read(self) -> anyhow::Result<Option<(Pkcs11Config, String)>> {
        let Self { pkcs11_module, pkcs11_token, pkcs11_key, pkcs11_pin_file } = self;
        let (Some(module), Some(token)) = (pkcs11_module, pkcs11_token) else { return Ok(None) };
        // The settings stand in another directory than the one where this is said.
        let pin_file = pkcs11_pin_file.map(std::path::absolute).transpose().context("find the PIN's file")?;
        Ok(Some((Pkcs11Config { module, token, pin_file }, pkcs11_key)))
    }
}

/// Run the coordinator.
///
/// Settings come from the file named by --config, then from variables such as FLEETKEY__API__LISTEN (`listen` under
/// `[api]`), then from these flags. It ends in order on SIGTERM and SIGINT. A broker that cannot be reached is tried
/// until it can be.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey serve --config fleet/fleetkey.toml
  FLEETKEY__LOG__FILTER=debug fleetkey serve --config fleet/fleetkey.toml --log-format json")]
struct Serve {
    /// Where the API listens, instead of `listen` under `[api]`; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where the broker is, instead of `url` under `[broker]`.
    #[arg(long, value_name = "URL")]
    broker: Option<BrokerUrl>,
    /// How logs look.
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
}

/// Does what was said.
pub(crate) fn run(arguments: Arguments, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let Arguments { command, client, json } = arguments;
    match command {
        Command::Doctor(doctor) => return doctor.run(&client, json, out),
        Command::Init(init) => init.run(json, out),
        Command::Serve(serve) => serve.run(&client),
        Command::Device(command) => command.run(&Client::connect(&client)?, json, out),
        Command::Claim(command) => command.run(&Client::connect(&client)?, json, out),
        Command::Ca(command) => command.run(&client, json, out),
        Command::Group(command) => command.run(&Client::connect(&client)?, json, out),
        Command::Psk(command) => command.run(json, out),
        Command::Revoke(command) => command.run(&Client::connect(&client)?, json, out),
        Command::Rotate(command) => command.run(&Client::connect(&client)?, json, out),
        Command::Status => {
            let status = Client::connect(&client)?.get("/v1/status")?;
            if json { show::json(out, &status) } else { show::status(out, &status) }
        }
        Command::Backup(command) => command.run(&Client::connect(&client)?, json, out),
        Command::Restore(command) => command.run(&client, json, out),
        Command::BrokerConfig(command) => command.run(&client, out),
        Command::Audit(command) => command.run(&client, json, out),
        Command::Operator(command) => command.run(&Client::connect(&client)?, json, out),
    }?;
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    /// What the process ends with when [`run`] fails.
    pub(crate) fn on_failure(&self) -> ExitCode {
        if matches!(self.command, Command::Doctor(_)) {
            ExitCode::from(doctor::COULD_NOT_LOOK)
        } else {
            ExitCode::FAILURE
        }
    }
}

impl Init {
    fn run(self, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
        let master_key = match std::env::var_os(MASTER_KEY_VARIABLE) {
            Some(_) => Some(MasterKey::from_env(MASTER_KEY_VARIABLE)?),
            None => None,
        };
        let made = fleetkey_coordinator::init(InitOptions {
            directory: self.directory,
            broker_url: self.broker,
            broker_names: self.broker_name,
            api_address: self.listen,
            master_key,
            root_key: self.root_key,
            root_passphrase: ca::root_passphrase()?,
            pkcs11: self.token.read()?,
        })?;
        if json {
            return show::json(out, &serde_json::to_value(&made)?);
        }
        let Initialised { fleet, directory, config, broker_config, root_key } = made;
        writeln!(out, "fleet {fleet} is in {}", directory.display())?;
        writeln!(out, "start its broker:      fleetkey-broker --config {}", broker_config.display())?;
        writeln!(out, "start its coordinator: fleetkey serve --config {}", config.display())?;
        writeln!(out, "ca.pem makes devices, and master.key opens the database: guard them")?;
        writeln!(
            out,
            "{} makes CAs, and is needed for that alone: put it away, off this host",
            root_key.display()
        )?;
        Ok(())
    }
}

impl Serve {
    fn run(self, client: &ClientOptions) -> anyhow::Result<()> {
        let path = client.config.as_deref().context("serve needs --config FILE (or FLEETKEY_CONFIG)")?;
        let config = Config::load(path, self.overrides())?;
        let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
        Ok(runtime.block_on(fleetkey_coordinator::serve(config))?)
    }

    fn overrides(&self) -> Overrides {
        let log_format = self.log_format.map(|format| match format {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        });
        [
            ("api.listen", self.listen.map(|address| address.to_string())),
            ("broker.url", self.broker.as_ref().map(ToString::to_string)),
            ("log.format", log_format),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect()
    }
}
