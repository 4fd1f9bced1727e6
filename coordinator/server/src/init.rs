//! `fleetkey init`: a new fleet in a new directory.
//!
//! ```text
//! DIR/fleetkey.toml       the coordinator's settings
//! DIR/fleetkey.db         its database
//! DIR/master.key          opens the secrets in the database (not written when FLEETKEY_MASTER_KEY is set)
//! DIR/root-ca.pem         the root CA, certificate and private key: put it away, nothing here reads it
//! DIR/ca.pem              the CA that issues, certificate and private key: guard it
//! DIR/fleet-roots.pem     what every party pins
//! DIR/coordinator.crt     DIR/coordinator.key
//! DIR/api.token           opens the HTTP API
//! DIR/broker.token        opens the policy stream
//! DIR/broker/             all that fleetkey-broker needs, to be moved to its host
//! ```

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use fleetkey_coordinator_core::Coordinator;
use fleetkey_identity::{FleetCa, IssueError, Validity, chain_to_pem};
use fleetkey_mqtt::BrokerUrl;
use fleetkey_vault::MasterKey;
use fleetkey_wire::FleetId;
use rand_core::OsRng;
use serde::Serialize;

use crate::clock;
use crate::fleet::{Fleet, Party};
use crate::http::Token;
use crate::pkcs11::{self, Pkcs11Config, TokenError};
use crate::store::{OpenError, SqliteStore};
use fleetkey_vault::files::{FileError, NewDirectory, write_private};
use zeroize::Zeroizing;

/// What the root's key is written to where nothing else is said.
const ROOT_KEY_FILE: &str = "root-ca.pem";
const IN_MEMORY: &str = "its key is in memory";

/// What a fleet is made with.
#[derive(Debug)]
pub struct InitOptions {
    /// The directory to make.
    pub directory: PathBuf,
    /// Where coordinator and devices will find the broker.
    pub broker_url: BrokerUrl,
    /// Further host names and addresses that the broker is reached by.
    pub broker_names: Vec<String>,
    /// Where the API will listen.
    pub api_address: SocketAddr,
    /// A master key that is kept elsewhere; without it one is made, in a file.
    pub master_key: Option<MasterKey>,
    /// Where the root's key is written, if not to the directory.
    pub root_key: Option<PathBuf>,
    /// What the root's key is encrypted under; without it it is not.
    pub root_passphrase: Option<Zeroizing<String>>,
    /// The token that the issuing CA's key is made in, and its label there; without it the key is in a file.
    pub pkcs11: Option<(Pkcs11Config, String)>,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Initialised {
    /// The new fleet.
    pub fleet: FleetId,
    /// Its directory.
    pub directory: PathBuf,
    /// The coordinator's settings.
    pub config: PathBuf,
    /// The broker's.
    pub broker_config: PathBuf,
    /// The root's key, which is to be put away.
    pub root_key: PathBuf,
}

/// Why no fleet was made. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The directory.
    #[error(transparent)]
    File(#[from] FileError),
    /// The database.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The token that was to make a key.
    #[error(transparent)]
    Pkcs11(#[from] TokenError),
    /// A name of the broker that no certificate can carry.
    #[error("broker certificate: {0}")]
    Name(#[from] IssueError),
}

/// Makes a fleet.
///
/// # Errors
/// [`InitError`]; a directory with something in it is left as it is.
pub fn init(options: InitOptions) -> Result<Initialised, InitError> {
    let InitOptions {
        directory,
        broker_url,
        broker_names,
        api_address,
        master_key,
        root_key,
        root_passphrase,
        pkcs11,
    } = options;
    let new = NewDirectory::begin(&directory)?;
    let now = clock::unix_seconds();
    let names = names_of_broker(&broker_url, broker_names);
    let id = FleetId::random(&mut OsRng);
    let fleet = match &pkcs11 {
        None => Fleet::create(id, &names, now, &mut OsRng)?,
        Some((token, label)) => {
            let always = Validity::without_end(i64::try_from(now).unwrap_or(i64::MAX));
            let root = FleetCa::create(id, &mut OsRng, always)?;
            let issuing = root.create_intermediate_over(pkcs11::generate(token, label)?, always)?;
            Fleet::below(root, issuing, &names, now, &mut OsRng)?
        }
    };

    let master_key = match master_key {
        Some(kept_elsewhere) => kept_elsewhere,
        None => {
            let made = MasterKey::generate(&mut OsRng);
            new.write("master.key", &made.to_hex())?;
            made
        }
    };
    drop(SqliteStore::create(&new.draft("fleetkey.db"), &master_key, &Coordinator::initial_rows(now))?);

    let root = match &root_passphrase {
        Some(passphrase) => {
            Zeroizing::new(fleet.root().to_encrypted_pem(passphrase, &mut OsRng).expect(IN_MEMORY))
        }
        None => fleet.root().to_pem().expect(IN_MEMORY),
    };
    let ca = match &pkcs11 {
        None => fleet.ca().to_pem().expect(IN_MEMORY),
        Some((_, label)) => {
            Zeroizing::new(format!("{}{}", pkcs11::reference_to(label)?, fleet.ca().certificate_pem()))
        }
    };
    new.write("ca.pem", &ca)?;
    new.write("fleet-roots.pem", &fleet.roots().to_pem())?;
    write_party(&new, "coordinator", &fleet.coordinator)?;
    let broker_token = Token::generate(&mut OsRng);
    write_token(&new, "api.token", &Token::generate(&mut OsRng))?;
    write_token(&new, "broker.token", &broker_token)?;
    new.write("fleetkey.toml", &coordinator_toml(fleet.id(), &broker_url, api_address, pkcs11.as_ref()))?;

    new.directory("broker")?;
    new.write("broker/fleet-roots.pem", &fleet.roots().to_pem())?;
    write_party(&new, "broker/broker", &fleet.broker)?;
    write_token(&new, "broker/broker.token", &broker_token)?;
    new.write("broker/broker.toml", &broker_toml(fleet.id(), &broker_url, api_address))?;
    match &root_key {
        Some(elsewhere) => write_private(elsewhere, root.as_bytes(), false)?,
        None => new.write(ROOT_KEY_FILE, &root)?,
    }
    if let Err(error) = new.complete() {
        // It would be in the way when this is given again.
        if let Some(elsewhere) = &root_key {
            let _ = std::fs::remove_file(elsewhere);
        }
        return Err(error.into());
    }

    Ok(Initialised {
        root_key: root_key.unwrap_or_else(|| directory.join(ROOT_KEY_FILE)),
        fleet: fleet.id(),
        config: directory.join("fleetkey.toml"),
        broker_config: directory.join(Path::new("broker").join("broker.toml")),
        directory,
    })
}

fn names_of_broker(url: &BrokerUrl, further: Vec<String>) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    for name in [url.host().to_owned()].into_iter().chain(further) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn write_party(new: &NewDirectory, name: &str, party: &Party) -> Result<(), FileError> {
    new.write(&format!("{name}.crt"), &chain_to_pem(&party.chain))?;
    new.write(&format!("{name}.key"), &party.key.to_pkcs8_pem())
}

fn write_token(new: &NewDirectory, name: &str, token: &Token) -> Result<(), FileError> {
    new.write(name, &zeroize::Zeroizing::new(format!("{}\n", token.reveal())))
}

fn coordinator_toml(
    fleet: FleetId,
    broker_url: &BrokerUrl,
    api_address: SocketAddr,
    pkcs11: Option<&(Pkcs11Config, String)>,
) -> String {
    let token = pkcs11.map_or_else(String::new, |(Pkcs11Config { module, token, pin_file }, _)| {
        let pin = pin_file.as_ref().map_or_else(
            || "# pin_file = \"token.pin\"".to_owned(),
            |file| format!("pin_file = {:?}", file.display().to_string()),
        );
        format!(
            "\n[identity.pkcs11]\n# Where the CA's key is. The PIN is in a file that is yours alone, or in FLEETKEY_PKCS11_PIN.\n\
             module = {:?}\ntoken = {token:?}\n{pin}\n",
            module.display().to_string(),
        )
    });
    format!(
        r#"# The coordinator of fleet {fleet}. Start it with: fleetkey serve --config THIS-FILE
# Paths are relative to this file. Each setting can come from the environment instead:
# FLEETKEY__API__LISTEN=127.0.0.1:7601 is `listen` under [api].

database = "fleetkey.db"
# Opens the secrets in the database. Keep it out of backups of the database. FLEETKEY_MASTER_KEY goes before it.
master_key = "master.key"

[identity]
roots = "fleet-roots.pem"
certificate = "coordinator.crt"
key = "coordinator.key"
# The CA that issues: for devices and for the revocation list. `fleetkey ca protect` encrypts its key.
ca = "ca.pem"
# ca_passphrase = "ca.passphrase"
# Where `fleetkey ca roll` puts the CAs that issued before.
former_cas = "former-cas"
{token}
[api]
listen = "{api_address}"
token = "api.token"
broker_token = "broker.token"

[broker]
url = "{broker_url}"
# Where devices find the broker, if by another name:
# device_url = "mqtts://broker.example:8883"

[enrolment]
# Where devices ask for certificates over EST (RFC 7030), and the names that they reach it by:
# listen = "127.0.0.1:7601"
names = ["localhost", "127.0.0.1"]
# Devices' certificates; they renew them when two thirds are over.
device_days = 365
# The revocation list, for brokers that read files.
crl = "fleet.crl"

[timing]
# How often a device says hello, and after how long a silence it stops sealing.
# hello_interval_seconds = 1800
# max_silence_seconds = 86400

[log]
format = "text"
filter = "info"
"#
    )
}

fn broker_toml(fleet: FleetId, broker_url: &BrokerUrl, api_address: SocketAddr) -> String {
    let (host, port) = (broker_url.host(), broker_url.port());
    let is_local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let address = if is_local { "127.0.0.1" } else { "0.0.0.0" };
    let listen = if broker_url.is_tls() {
        format!("tls = [\"{address}:{port}\"]")
    } else {
        format!(
            "# Without TLS clients are whoever they say they are.\ninsecure_loopback = [\"127.0.0.1:{port}\"]"
        )
    };
    format!(
        r#"# A broker of fleet {fleet}. Start it with: fleetkey-broker --config THIS-FILE
# Paths are relative to this file; this directory is all that the broker needs.

fleet = "{fleet}"

[listen]
{listen}

[tls]
roots = "fleet-roots.pem"
certificate = "broker.crt"
key = "broker.key"

[policy]
# The coordinator tells who may be where.
url = "http://{api_address}/v1/policy"
token = "broker.token"
"#
    )
}
