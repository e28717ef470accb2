//! Connections: how many, how long, how much.
//!
//! Each limit bounds what a client can cost that says nothing, sends half a request, reads nothing or never leaves. hyper
//! ends a connection whose client has closed its side, half-closed ones too, and with it the job that streams over it.

mod stall;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::app;
use crate::state::AppState;
use stall::StallGuard;

/// Limits of [`serve`], for each connection and for all of them.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Connections at a time; more wait in the kernel until one ends. 512 stay below the usual limit of 1,024 open files.
    pub max_connections: usize,
    /// The time a request's head may take to arrive; also how long an idle connection is kept.
    pub header_read_timeout: Duration,
    /// The longest head of a request, and hyper's read buffer; longer ones get 431.
    pub max_head_bytes: usize,
    /// The longest a client may leave the connection full without reading. What it has not read by then is lost to it.
    pub write_stall_timeout: Duration,
    /// After the stop: the time to send what is left.
    pub flush_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            max_connections: 512,
            header_read_timeout: Duration::from_secs(20),
            max_head_bytes: 32 << 10,
            write_stall_timeout: Duration::from_secs(60),
            flush_timeout: Duration::from_secs(5),
        }
    }
}

/// A pause after the kernel had no connection to give, such as when the process is out of open files.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves [`app`] on `listener` until `stop` resolves, then sends what is left and returns.
///
/// New work is refused by [`AppState::begin_drain`], not by `stop`: until `stop`, a draining worker still tells anyone
/// who asks how it is.
pub async fn serve(listener: TcpListener, state: AppState, limits: ServerLimits, stop: impl Future<Output = ()>) {
    let service = TowerToHyperService::new(app(state));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header_read_timeout).max_buf_size(limits.max_head_bytes);
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &permits) => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                let io = TokioIo::new(StallGuard::new(stream, limits.write_stall_timeout));
                let connection = graceful.watch(http.serve_connection(io, service.clone()));
                connections.spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "connection ended early");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(limits.flush_timeout, graceful.shutdown()).await.is_err() {
        tracing::warn!(n_connections = connections.len(), "closing connections that did not finish");
    }
    connections.shutdown().await;
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // A token is a small write that must not wait for the next one.
    stream.set_nodelay(true)?;
    Ok((stream, permit))
}
