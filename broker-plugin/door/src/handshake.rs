//! TLS handshakes: so many at once, and who says nothing takes nobody's place.
//!
//! Leaves to the caller how long one may take in all.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a handshake may keep others waiting.
const TURN: Duration = Duration::from_secs(1);

/// The TLS handshake, when its turn among `turns` comes.
///
/// # Errors
/// What TLS or the socket says.
pub async fn handshake(
    turns: &Semaphore,
    tls: &TlsAcceptor,
    stream: TcpStream,
) -> io::Result<TlsStream<TcpStream>> {
    stream.peek(&mut [0]).await?;
    // It is never closed.
    let turn = turns.acquire().await.map_err(io::Error::other)?;
    let mut handshake = Box::pin(tls.accept(stream));
    match tokio::time::timeout(TURN, &mut handshake).await {
        Ok(done) => done,
        Err(_) => {
            // A slow way is no reason to give up, only to let others have their turn.
            drop(turn);
            handshake.await
        }
    }
}
