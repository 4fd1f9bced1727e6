//! `fleetkey serve`: everything that its configuration names, put together and kept running.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleetkey_coordinator_core::Restored;
use fleetkey_identity::{BadCertificate, BadPem, FleetCa, FleetRoots, IdentityKey, Role, chain_from_pem};
use fleetkey_mqtt::Options;
use fleetkey_vault::{MasterKey, MasterKeyError};
use fleetkey_wire::{FleetId, Generation};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

use crate::authority::Authority;
use crate::clock;
use crate::config::{Config, IdentityConfig, LogConfig, LogFormat, MASTER_KEY_VARIABLE};
use crate::feed::PolicyFeed;
use crate::files::{self, FileError};
use crate::fleet::{Party, setup};
use crate::handle::ServiceHandle;
use crate::http::{self, Api, BadToken, Keep, Token};
use crate::link::mqtt_options;
use crate::meter;
use crate::service::{Service, ServiceConfig, StartError};
use crate::shared_store::SharedStore;
use crate::store::{OpenError, SqliteStore};
use crate::when;

/// How long open connections to the API may finish.
const DRAIN_WITHIN: Duration = Duration::from_secs(2);
/// How often the recorder of metrics tidies up.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// Why the coordinator does not run, or runs no more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A file that is missing or cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The master key.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// A certificate or key that is none.
    #[error("{}: {why}", path.display())]
    Pem {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: BadPem,
    },
    /// A certificate that does not fit here.
    #[error("{}: {why}", path.display())]
    Certificate {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: BadCertificate,
    },
    /// A certificate of somebody else.
    #[error("{} is the certificate of {role}, not of a coordinator", path.display())]
    NotACoordinator {
        /// Its file.
        path: PathBuf,
        /// Whose it is.
        role: Role,
    },
    /// A key and a certificate that do not belong together.
    #[error("{} is not the key of {}", key.display(), certificate.display())]
    OtherKey {
        /// The key's file.
        key: PathBuf,
        /// The certificate's.
        certificate: PathBuf,
    },
    /// A CA of another fleet.
    #[error("{} is the CA of fleet {got}, not of fleet {expected}", path.display())]
    OtherFleet {
        /// Its file.
        path: PathBuf,
        /// Its fleet.
        got: FleetId,
        /// The coordinator's.
        expected: FleetId,
    },
    /// A token that is none.
    #[error("{}: {why}", path.display())]
    Token {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: BadToken,
    },
    /// The broker's address makes no sense.
    #[error("broker: {0}")]
    Broker(#[from] fleetkey_mqtt::BadBrokerUrl),
    /// TLS cannot be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A log filter that is none.
    #[error("log.filter {filter:?}: {why}")]
    LogFilter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        why: String,
    },
    /// The API's address is taken, or not this host's.
    #[error("listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's word on it.
        source: io::Error,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The coordinator cannot be loaded.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The system.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system's word on it.
        source: io::Error,
    },
    /// The deciding thread is gone.
    #[error("the coordinator's thread has ended: see the log")]
    Ended,
}

/// Runs the coordinator until it is told to end (SIGTERM, SIGINT).
///
/// # Errors
/// [`ServeError`]: one line that says what to mend.
pub async fn serve(config: Config) -> Result<(), ServeError> {
    start_log(&config.log)?;
    let metrics = start_metrics();
    let master_key = master_key(&config)?;
    let identity = Identity::read(&config.identity)?;
    let operator_token = token(&config.api.token)?;
    let broker_token = token(&config.api.broker_token)?;
    let authority = authority(&config, &identity)?;
    let mqtt = mqtt(&config, &identity)?;
    let mut terminate = on_signal(SignalKind::terminate())?;
    let mut interrupt = on_signal(SignalKind::interrupt())?;

    let listener = listen(config.api.listen).await?;
    let address =
        listener.local_addr().map_err(|source| ServeError::Io { doing: "read the API's address", source })?;
    let store = SharedStore::new(SqliteStore::open(&config.database, &master_key)?);
    let keep = Keep::new(store.reader(), &master_key, identity.fleet, &identity.roots, &identity.party);
    let setup = setup(identity.fleet, &identity.party, identity.generation, config.timing.timing());
    let service =
        Service::start(ServiceConfig { setup, store: Box::new(store), mqtt, policy_feed: PolicyFeed::new() })
            .await?;
    tell_of_restore(&service.handle()).await;
    let api = Api {
        service: service.handle(),
        authority,
        operator_token,
        broker_token,
        metrics: Some(metrics),
        keep: Some(keep),
    };
    let (draining, drain) = watch::channel(false);
    let mut server = tokio::spawn(run_api(listener, api, drain));
    announce(identity.fleet, address)?;

    let handle = service.handle();
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = handle.stopped() => Err(ServeError::Ended),
        ended = &mut server => Err(match ended {
            Ok(Err(source)) => ServeError::Io { doing: "serve the API", source },
            Ok(Ok(())) | Err(_) => ServeError::Ended,
        }),
    };
    info!("stopping");
    draining.send_replace(true);
    // Streams do not end by themselves.
    if tokio::time::timeout(DRAIN_WITHIN, &mut server).await.is_err() {
        server.abort();
    }
    service.shutdown().await;
    info!("stopped");
    ended
}

/// Says plainly what a database that was restored, or must be, means.
async fn tell_of_restore(service: &ServiceHandle) {
    // Without an answer it is stopping.
    let Ok(status) = service.status().await else { return };
    if let Some(Restored { backup_unix_seconds, unix_seconds, former_incarnation }) = status.restored {
        info!(
            backup_of = %when::show(backup_unix_seconds),
            restored_at = %when::show(unix_seconds),
            former_incarnation,
            incarnation = status.incarnation,
            back = status.members,
            to_come_in = status.wanted,
            "restored from a backup: members come in anew, devices enrolled after it are to be adopted"
        );
    }
    if let Some(by) = status.superseded_by {
        error!(
            since = %when::show(by.unix_seconds), device = %by.device, group = %by.group, key_epoch = %by.key_epoch,
            "superseded: it is a copy, or was rolled back, and issues nothing; end the other copy, stop this one, and run `fleetkey restore --in-place`"
        );
    }
}

async fn run_api(listener: TcpListener, api: Api, mut drain: watch::Receiver<bool>) -> io::Result<()> {
    let drained = async move {
        // An error means that the process is ending.
        let _ = drain.wait_for(|drain| *drain).await;
    };
    axum::serve(listener, http::router(api)).with_graceful_shutdown(drained).await
}

/// Tells whoever started this where the API is: the port may have been left to the system.
fn announce(fleet: FleetId, address: SocketAddr) -> Result<(), ServeError> {
    info!(%fleet, api = %address, version = env!("CARGO_PKG_VERSION"), "serving");
    let mut out = io::stdout().lock();
    writeln!(out, "fleet {fleet} at http://{address}")
        .and_then(|()| out.flush())
        .map_err(|source| ServeError::Io { doing: "write to standard output", source })
}

/// Who the coordinator is.
pub(crate) struct Identity {
    pub(crate) fleet: FleetId,
    pub(crate) generation: Generation,
    pub(crate) roots: FleetRoots,
    pub(crate) party: Party,
}

impl Identity {
    pub(crate) fn read(files: &IdentityConfig) -> Result<Self, ServeError> {
        let roots = FleetRoots::from_pem(&files::read(&files.roots)?).map_err(pem(&files.roots))?;
        let chain = chain_from_pem(&files::read(&files.certificate)?).map_err(pem(&files.certificate))?;
        let key = IdentityKey::from_pkcs8_pem(&files::read_secret(&files.key)?).map_err(pem(&files.key))?;
        let path = &files.certificate;
        let now = i64::try_from(clock::unix_seconds()).unwrap_or(i64::MAX);
        let identity = roots
            .verify(&chain, Some(now))
            .map_err(|why| ServeError::Certificate { path: path.clone(), why })?;
        let generation = match identity.role {
            Role::Coordinator { generation } => generation,
            role @ (Role::Broker | Role::Operator { .. } | Role::Device(_)) => {
                return Err(ServeError::NotACoordinator { path: path.clone(), role });
            }
        };
        if identity.public_key != key.public_key() {
            return Err(ServeError::OtherKey { key: files.key.clone(), certificate: path.clone() });
        }
        Ok(Self { fleet: identity.fleet, generation, roots, party: Party { key, chain } })
    }
}

fn authority(config: &Config, identity: &Identity) -> Result<Option<Authority>, ServeError> {
    let Some(path) = &config.identity.ca else { return Ok(None) };
    let ca = FleetCa::from_pem(&files::read_secret(path)?).map_err(pem(path))?;
    if ca.fleet() != identity.fleet {
        let (got, expected) = (ca.fleet(), identity.fleet);
        return Err(ServeError::OtherFleet { path: path.clone(), got, expected });
    }
    let broker = config.broker.device_url()?.to_string();
    Ok(Some(Authority::new(ca, identity.roots.clone(), identity.party.chain.clone(), broker)))
}

fn mqtt(config: &Config, identity: &Identity) -> Result<Options, ServeError> {
    let url = config.broker.url()?;
    let Party { key, chain } = &identity.party;
    let tls = if url.is_tls() {
        Some(fleetkey_identity::tls::client_config(chain, key, &identity.roots)?)
    } else {
        None
    };
    let mut options = mqtt_options(url, tls, identity.fleet);
    options.backoff.max = Duration::from_secs(config.broker.max_backoff_seconds.into());
    Ok(options)
}

pub(crate) fn master_key(config: &Config) -> Result<MasterKey, MasterKeyError> {
    if std::env::var_os(MASTER_KEY_VARIABLE).is_some() {
        MasterKey::from_env(MASTER_KEY_VARIABLE)
    } else {
        MasterKey::from_file(&config.master_key)
    }
}

fn token(path: &Path) -> Result<Token, ServeError> {
    Token::parse(&files::read_secret(path)?).map_err(|why| ServeError::Token { path: path.to_owned(), why })
}

fn pem(path: &Path) -> impl FnOnce(BadPem) -> ServeError {
    move |why| ServeError::Pem { path: path.to_owned(), why }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
}

fn on_signal(kind: SignalKind) -> Result<tokio::signal::unix::Signal, ServeError> {
    signal(kind).map_err(|source| ServeError::Io { doing: "listen for signals", source })
}

fn start_log(log: &LogConfig) -> Result<(), ServeError> {
    let filter = EnvFilter::builder()
        .parse(&log.filter)
        .map_err(|error| ServeError::LogFilter { filter: log.filter.clone(), why: error.to_string() })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // It would be said on standard error, which panics where that is what cannot be written.
        .log_internal_errors(false);
    // An error means that whoever uses this as a library logs already.
    let _ = match log.format {
        LogFormat::Text => lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    Ok(())
}

fn start_metrics() -> PrometheusHandle {
    let recorder = meter::recorder();
    let handle = recorder.handle();
    // An error means that whoever uses this as a library records already.
    let _ = metrics::set_global_recorder(recorder);
    meter::describe();
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(METRICS_UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    handle
}
