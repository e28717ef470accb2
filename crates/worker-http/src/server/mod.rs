//! Connections: how many, how long, how much.
//!
//! Each limit bounds what a client can cost that says nothing, sends half a request, reads nothing or never leaves. A
//! connection ends whose client has closed its side, half-closed ones too, and with it the job that it waits for: hyper sees
//! to it, and where the client has sent more than its request, which hides its leaving from hyper, `socket.rs` does.

mod seats;
mod socket;
mod stall;

use std::io;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::app;
use crate::state::AppState;
use seats::{BusyBody, Seat, Seats};
use stall::StallGuard;

/// Limits of [`serve`], for each connection and for all of them.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Connections at a time. One more takes the place of the one that has been without a whole request longest; where all are
    /// being answered, it waits for the first to end. 512 stay below the usual limit of 1,024 open files.
    pub max_connections: usize,
    /// The time a request's head may take to arrive; also how long an idle connection is kept.
    pub header_read_timeout: Duration,
    /// The longest head of a request, and hyper's read buffer; longer ones get 431.
    pub max_head_bytes: usize,
    /// The most headers of a request; more get 431.
    pub max_headers: usize,
    /// The longest a client may leave the connection full without reading. What it has not read by then is lost to it.
    pub write_stall_timeout: Duration,
    /// After the stop: the time to send what is left.
    pub flush_timeout: Duration,
}

/// Connections at a time, where the jobs do not need more.
const MIN_CONNECTIONS: usize = 512;
/// Connections beside those of the jobs: for a 429, `/health`, `/cancel` and `/shutdown` while all jobs hold theirs.
const SPARE_CONNECTIONS: usize = 64;

impl ServerLimits {
    /// The default, with connections for so many live jobs (as many as run and as many as wait) and some to spare. Above
    /// 512, the process wants a limit of open files that allows for them.
    pub fn for_jobs(n_jobs: usize) -> Self {
        let max_connections = n_jobs.saturating_add(SPARE_CONNECTIONS).max(MIN_CONNECTIONS);
        Self { max_connections, ..Self::default() }
    }
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            max_connections: MIN_CONNECTIONS,
            header_read_timeout: Duration::from_secs(20),
            max_head_bytes: 32 << 10,
            max_headers: 100,
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
    let app = app(state);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        .max_buf_size(limits.max_head_bytes)
        .max_headers(limits.max_headers);
    let seats = Seats::new(limits.max_connections);
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener) => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let seat = tokio::select! {
            biased;
            () = &mut stop => break,
            seat = seats.take() => seat,
        };
        let (socket, far_side) = socket::watched(stream);
        let guarded = StallGuard::new(socket, limits.write_stall_timeout);
        let (unsent, flush_timeout) = (guarded.unsent(), limits.flush_timeout);
        let (app, of_service) = (app.clone(), seat.clone());
        let service = service_fn(move |request| answer(app.clone(), of_service.clone(), request));
        let connection = graceful.watch(http.serve_connection(TokioIo::new(guarded), service));
        connections.spawn(async move {
            tokio::pin!(connection);
            tokio::select! {
                biased;
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection ended early");
                    }
                }
                // What hyper can still do for its client, it has just done.
                () = async { far_side.closed().await; seat.under_way().await } => {
                    tracing::debug!("connection ended: the client has closed its side");
                }
                () = seat.closed() => {
                    tracing::debug!("idle connection closed: another one needed its place");
                    // The end of an answer, of which the client has not read enough.
                    if unsent.is_any() {
                        let _ = tokio::time::timeout(flush_timeout, connection).await;
                    }
                }
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.flush_timeout, graceful.shutdown()).await.is_err() {
        tracing::warn!(n_connections = connections.len(), "closing connections that did not finish");
    }
    connections.shutdown().await;
}

/// Has the request answered, with its connection busy from the end of its body until the whole answer is sent.
///
/// # Errors
/// The connection's place is another's already; this ends it.
async fn answer(app: Router, seat: Seat, request: Request<Incoming>) -> io::Result<Response<BusyBody<Body>>> {
    let (head, body) = request.into_parts();
    let (body, of_request) = seat.request(body).ok_or(io::ErrorKind::ConnectionAborted)?;
    let request = Request::from_parts(head, Body::new(body));
    let response = app.oneshot(request).await.unwrap_or_else(|never| match never {});
    Ok(response.map(|body| BusyBody::new(body, of_request)))
}

async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    // A token is a small write that must not wait for the next one.
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_leave_connections_for_others() {
        let connections = |n_jobs| ServerLimits::for_jobs(n_jobs).max_connections;
        assert_eq!([connections(72), connections(448), connections(449)], [512, 512, 513]);
        assert_eq!(connections(65_536 + 256), 65_536 + 256 + 64);
    }
}
