//! `fleetkey serve`: everything that its configuration names, put together and kept running.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fleetkey_coordinator_core::{BadLabels, Labels, Restored};
use fleetkey_est::{BadManufacturer, EstServer, Limits, Manufacturer, Manufacturers};
use fleetkey_identity::tls::{OwnCertificate, renewable_client_config};
use fleetkey_identity::{
    BadCertificate, BadCrl, BadPem, FleetCa, FleetRoots, IdentityKey, IssueError, Role, chain_from_pem,
};
use fleetkey_mqtt::Options;
use fleetkey_vault::{MasterKey, MasterKeyError};
use fleetkey_wire::{FleetId, Generation};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;
use zeroize::Zeroizing;

use crate::authority::{Authority, Validities};
use crate::cas::{CaFiles, Cas};
use crate::clock;
use crate::config::{
    CA_PASSPHRASE_VARIABLE, Config, EnrolmentConfig, IdentityConfig, LogConfig, LogFormat,
    MASTER_KEY_VARIABLE, ManufacturerConfig,
};
use crate::feed::PolicyFeed;
use crate::fleet::{Party, setup};
use crate::handle::ServiceHandle;
use crate::http::{self, Api, BadToken, Keep, Token};
use crate::link::mqtt_options;
use crate::meter;
use crate::own_certificate::{self, Own};
use crate::pkcs11::{self, Pkcs11Config, TokenError};
use crate::registrar::EstRegistrar;
use crate::revocations::RevocationLists;
use crate::rules::Rules;
use crate::service::{Service, ServiceConfig, StartError};
use crate::shared_store::SharedStore;
use crate::store::{OpenError, SqliteStore};
use crate::when;
use fleetkey_vault::files::{self, FileError};

/// Files that may have to be open at once: the EST server's connections, and room for all else.
const OPEN_FILES: u64 = 4_096;
/// How long open connections to the API may finish.
const DRAIN_WITHIN: Duration = Duration::from_secs(2);
/// How long the EST server's certificate is valid, and how often it is made anew.
const REGISTRAR_DAYS: u32 = 7;
const REGISTRAR_RENEWED_EVERY_SECONDS: u64 = 2 * 86_400;
/// How often the clock is looked at: a machine that slept renews when it wakes.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(10);
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
    /// The passphrase of the CA's key.
    #[error("{why}: put the passphrase of {} into {CA_PASSPHRASE_VARIABLE}, or name its file under [identity] as ca_passphrase", path.display())]
    CaPassphrase {
        /// The CA's file.
        path: PathBuf,
        /// What is wrong with it.
        why: BadPem,
    },
    /// A revocation list that cannot be used.
    #[error("{}: {source}", path.display())]
    Crl {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        source: BadCrl,
    },
    /// The CA's key, in a PKCS #11 token.
    #[error("{}: {why}", path.display())]
    CaToken {
        /// The CA's file.
        path: PathBuf,
        /// What is wrong.
        why: TokenError,
    },
    /// A manufacturer that cannot be trusted like this.
    #[error(transparent)]
    Manufacturer(#[from] BadManufacturer),
    /// Labels that are none.
    #[error("manufacturers: {name}: labels: {why}")]
    Labels {
        /// The manufacturer.
        name: String,
        /// What is wrong with them.
        why: BadLabels,
    },
    /// The EST server.
    #[error(transparent)]
    Est(#[from] fleetkey_est::ServerError),
    /// The EST server's certificate.
    #[error("certificate of the EST server: {0}")]
    Issue(#[from] IssueError),
    /// There is no CA to enrol with.
    #[error(
        "enrolment.listen is set, and identity.ca is not: without the CA's key nobody can be enrolled here"
    )]
    NoAuthority,
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
    raise_file_limit();
    let metrics = start_metrics();
    let master_key = master_key(&config)?;
    if let Err(error) = own_certificate::renew_at_start(&config.identity) {
        // It may do all the same; what is wrong with it is told when it does not.
        error!(%error, "the coordinator's certificate was not renewed");
    }
    // Before the first of them is read: what changes from here on is taken.
    let cas_known = CaFiles(&config.identity).stamp();
    let identity = Identity::read(&config.identity)?;
    let operator_token = token(&config.api.token)?;
    let broker_token = token(&config.api.broker_token)?;
    let authority = authority(&config, &identity)?.map(Arc::new);
    let Party { key, chain } = &identity.party;
    let shown = OwnCertificate::new(chain, key)?;
    let mqtt = mqtt(&config, &identity, &shown)?;
    let mut terminate = on_signal(SignalKind::terminate())?;
    let mut interrupt = on_signal(SignalKind::interrupt())?;

    let listener = listen(config.api.listen).await?;
    let address =
        listener.local_addr().map_err(|source| ServeError::Io { doing: "read the API's address", source })?;
    let store = SharedStore::new(SqliteStore::open(&config.database, &master_key)?);
    let keep = Keep::new(store.reader(), &master_key, identity.fleet, &identity.roots, &identity.party);
    let setup = setup(identity.fleet, &identity.party, identity.generation, config.timing.timing());
    let policy_feed = PolicyFeed::new();
    let service_config =
        ServiceConfig { setup, store: Box::new(store), mqtt, policy_feed: policy_feed.clone() };
    let service = Service::start(service_config).await?;
    tell_of_restore(&service.handle()).await;
    let stop = CancellationToken::new();
    let lists = authority.clone().map(|authority| {
        let lists =
            RevocationLists::new(service.handle(), authority.clone(), Some(config.enrolment.crl.clone()));
        tokio::spawn(lists.clone().keep(policy_feed, stop.clone()));
        tokio::spawn(authority.follow(cas_known, stop.clone()));
        lists
    });
    let own = Own {
        path: config.identity.certificate.clone(),
        key: identity.party.key.clone(),
        chain: identity.party.chain.clone(),
        roots: identity.roots.clone(),
        shown,
        authority: authority.clone(),
    };
    tokio::spawn(own.keep(stop.clone()));
    let est = start_est(&config, &identity, &service.handle(), &authority, &lists, &stop).await?;
    let api = Api {
        service: service.handle(),
        authority,
        lists,
        operator_token,
        broker_token,
        metrics: Some(metrics),
        keep: Some(keep),
    };
    let (draining, drain) = watch::channel(false);
    let mut server = tokio::spawn(run_api(listener, api, drain));
    announce(identity.fleet, address, est.as_ref().map(|(address, _)| *address))?;

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
    stop.cancel();
    if let Some((_, mut serving)) = est
        && tokio::time::timeout(DRAIN_WITHIN, &mut serving).await.is_err()
    {
        serving.abort();
    }
    // Streams do not end by themselves.
    if tokio::time::timeout(DRAIN_WITHIN, &mut server).await.is_err() {
        server.abort();
    }
    service.shutdown().await;
    info!("stopped");
    ended
}

/// Each connection to the EST server and the API is a file to the system, and the usual limit is low.
fn raise_file_limit() {
    match rlimit::increase_nofile_limit(OPEN_FILES) {
        Ok(limit) if limit >= OPEN_FILES => {}
        Ok(limit) => warn!(limit, wanted = OPEN_FILES, "the system allows few open files"),
        Err(error) => warn!(%error, "cannot raise the limit of open files"),
    }
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

/// The EST server, where one is set up, and its task.
async fn start_est(
    config: &Config,
    identity: &Identity,
    service: &ServiceHandle,
    authority: &Option<Arc<Authority>>,
    lists: &Option<RevocationLists>,
    stop: &CancellationToken,
) -> Result<Option<(SocketAddr, JoinHandle<()>)>, ServeError> {
    let Some(listen) = config.enrolment.listen else { return Ok(None) };
    let (Some(authority), Some(lists)) = (authority.clone(), lists.clone()) else {
        return Err(ServeError::NoAuthority);
    };
    let (manufacturers, rules) = manufacturers(config, identity.fleet)?;
    let names = config.enrolment.names.clone();
    let mut behind = authority.shown_behind();
    let Party { key, chain } = authority.registrar(&names, REGISTRAR_DAYS)?;
    let (roots, limits) = (identity.roots.clone(), Limits::default());
    let server = EstServer::bind(listen, &chain, &key, roots.clone(), manufacturers.clone(), limits).await?;
    let (address, renew) = (server.address(), server.renewer());
    let ask_again = Duration::from_secs(config.enrolment.ask_again_seconds.into());
    let registrar =
        EstRegistrar { service: service.clone(), authority: authority.clone(), lists, rules, ask_again };
    let router = fleetkey_est::router(Arc::new(registrar), roots, manufacturers);
    let renewing = stop.clone();
    tokio::spawn(async move {
        let mut made = clock::unix_seconds();
        while renewing.run_until_cancelled(tokio::time::sleep(LOOK_AT_CLOCK)).await.is_some() {
            let (now, of_now) = (clock::unix_seconds(), authority.shown_behind());
            // A clock that was set back makes a certificate that is not yet valid.
            let is_good = made <= now && now - made < REGISTRAR_RENEWED_EVERY_SECONDS;
            if is_good && of_now == behind {
                continue;
            }
            let party = authority.registrar(&names, REGISTRAR_DAYS).map_err(|error| error.to_string());
            let renewed =
                party.and_then(|Party { key, chain }| renew(&chain, &key).map_err(|error| error.to_string()));
            match renewed {
                Ok(()) => (made, behind) = (now, of_now),
                Err(error) => {
                    error!(%error, "the EST server keeps its certificate: no new one could be made")
                }
            }
        }
    });
    Ok(Some((address, tokio::spawn(server.run(router, stop.clone())))))
}

fn manufacturers(config: &Config, fleet: FleetId) -> Result<(Manufacturers, Rules), ServeError> {
    let mut rules = Rules { claims: config.enrolment.claims.into(), ..Rules::default() };
    let mut all = Vec::new();
    for ManufacturerConfig { name, roots, device_from, approval, labels } in &config.manufacturers {
        let ders = fleetkey_identity::certificates_from_pem(&files::read(roots)?).map_err(pem(roots))?;
        if rules.manufacturers.contains_key(name) {
            let why = "it is there twice, and its devices' ids are made of its name".to_owned();
            return Err(BadManufacturer { name: name.clone(), why }.into());
        }
        all.push(Manufacturer::new(name, &ders, *device_from)?);
        let labels: Labels = labels.parse().map_err(|why| ServeError::Labels { name: name.clone(), why })?;
        rules.manufacturers.insert(name.clone(), ((*approval).into(), labels));
    }
    Ok((Manufacturers::new(fleet, all), rules))
}

/// Tells whoever started this where the API is, and enrolment: the ports may have been left to the system.
fn announce(fleet: FleetId, address: SocketAddr, est: Option<SocketAddr>) -> Result<(), ServeError> {
    info!(%fleet, api = %address, est = est.map(tracing::field::display), version = env!("CARGO_PKG_VERSION"), "serving");
    let mut out = io::stdout().lock();
    let enrolment =
        est.map_or_else(String::new, |est| format!(", enrolment at https://{est}/.well-known/est"));
    writeln!(out, "fleet {fleet} at http://{address}{enrolment}")
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
            role @ (Role::Broker | Role::Registrar | Role::Operator { .. } | Role::Device(_)) => {
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
    let (Some(path), Some(cas)) = (&config.identity.ca, Cas::read(&config.identity)?) else {
        return Ok(None);
    };
    if let Some(other) = cas.signing().find(|ca| ca.fleet() != identity.fleet) {
        let (got, expected) = (other.fleet(), identity.fleet);
        return Err(ServeError::OtherFleet { path: path.clone(), got, expected });
    }
    let broker = config.broker.device_url()?.to_string();
    let EnrolmentConfig { device_days, crl_hours, .. } = config.enrolment;
    let (roots, chain) = (identity.roots.clone(), identity.party.chain.clone());
    let authority = Authority::of_cas(cas, config.identity.clone(), roots, chain, broker);
    Ok(Some(authority.with_validities(Validities { device_days, crl_hours })))
}

/// Reads the CA, with the passphrase that opens its key where it needs one.
pub fn read_ca(path: &Path, config: &IdentityConfig) -> Result<FleetCa, ServeError> {
    let text = files::read_secret(path)?;
    read_ca_text(path, &text, ca_passphrase(config)?, config.pkcs11.as_ref())
}

/// The passphrase of the CA's key, where one is set.
pub fn ca_passphrase(config: &IdentityConfig) -> Result<Option<Zeroizing<String>>, ServeError> {
    Ok(match (std::env::var(CA_PASSPHRASE_VARIABLE), &config.ca_passphrase) {
        (Ok(passphrase), _) => Some(Zeroizing::new(passphrase)),
        (Err(_), Some(file)) => Some(files::read_secret(file)?),
        (Err(_), None) => None,
    })
}

/// Reads a CA that stands in the file at `path`.
pub fn read_ca_text(
    path: &Path,
    text: &str,
    passphrase: Option<Zeroizing<String>>,
    token: Option<&Pkcs11Config>,
) -> Result<FleetCa, ServeError> {
    if let Some(label) = pkcs11::label_in(text) {
        let opened = token.ok_or(TokenError::NotConfigured).and_then(|token| pkcs11::open(token, label));
        let key = opened.map_err(|why| ServeError::CaToken { path: path.to_owned(), why })?;
        return FleetCa::from_pem_over(text, key).map_err(pem(path));
    }
    let ca = match FleetCa::from_pem(text) {
        Err(BadPem::NeedsPassphrase) => match passphrase {
            Some(passphrase) => FleetCa::from_encrypted_pem(text, passphrase.trim_end_matches(['\r', '\n'])),
            None => Err(BadPem::NeedsPassphrase),
        },
        read => read,
    };
    ca.map_err(|why| {
        if matches!(why, BadPem::NeedsPassphrase | BadPem::WrongPassphrase) {
            ServeError::CaPassphrase { path: path.to_owned(), why }
        } else {
            pem(path)(why)
        }
    })
}

fn mqtt(config: &Config, identity: &Identity, shown: &OwnCertificate) -> Result<Options, ServeError> {
    let url = config.broker.url()?;
    let tls = if url.is_tls() { Some(renewable_client_config(shown, &identity.roots)?) } else { None };
    let mut options = mqtt_options(url, tls, identity.fleet);
    options.others = config.broker.others()?;
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
