//! What a broker's process asks of the system: where its logs go, and how many files it may open.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::settings::{LogFormat, LogSettings};

/// Logs of this process go to standard error from here on.
///
/// # Errors
/// When `log.filter` is not a filter.
pub fn start_log(settings: &LogSettings) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::try_new(&settings.filter)?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would be said on standard error, which panics where that is what cannot be written.
        .log_internal_errors(false);
    match settings.format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// Each connection is `per_connection` files to the system, and the usual limit is low.
pub fn raise_file_limit(max_connections: usize, per_connection: u64) {
    let wanted = max_connections as u64 * per_connection + 256;
    match rlimit::increase_nofile_limit(wanted.max(4_096)) {
        Ok(limit) if limit >= wanted => {}
        Ok(limit) => {
            tracing::warn!(limit, wanted, "the system allows fewer open files than limits.max_connections")
        }
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}
