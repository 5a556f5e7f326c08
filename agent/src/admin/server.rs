//! Serving the listeners.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::AdminState;
use super::routes::Room;

/// Connections that one listener serves at a time. One more ends the oldest: who asks in earnest
/// has the answer long before, and so a crowd of idlers cannot keep a health check waiting.
const MAX_CONNECTIONS: usize = 64;

/// For the head of a request to be there.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// For a connection as a whole: `/connections` of a full table takes a while on a slow link.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Header fields of a request, and bytes of its head.
const MAX_HEADERS: usize = 64;
const MAX_HEAD: usize = 16 * 1024;

/// After accept failed, which is mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves all `listeners` until `shutdown`.
pub(super) async fn serve(
    listeners: Vec<(Room, StdListener)>,
    state: Arc<AdminState>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    // Dropping the sets at the end ends what they serve.
    let mut rooms = JoinSet::new();
    for (room, listener) in listeners {
        let listener = TcpListener::from_std(listener)?;
        rooms.spawn(accept(room, listener, Arc::clone(&state)));
    }
    shutdown.await;
    Ok(())
}

async fn accept(room: Room, listener: TcpListener, state: Arc<AdminState>) {
    let mut connections = JoinSet::new();
    let mut by_age: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => {
                while connections.try_join_next().is_some() {}
                by_age.retain(|connection| !connection.is_finished());
                if by_age.len() >= MAX_CONNECTIONS
                    && let Some(oldest) = by_age.pop_front()
                {
                    oldest.abort();
                }
                let state = Arc::clone(&state);
                by_age.push_back(connections.spawn(async move {
                    // How a client misbehaved, or that it was too slow, is its own affair.
                    let _ = timeout(CONNECTION_TIMEOUT, connection(room, stream, &state)).await;
                }));
            }
            Err(error) => {
                tracing::debug!(%error, "accepting for {} failed", room.name());
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(room: Room, stream: TcpStream, state: &AdminState) -> hyper::Result<()> {
    let service = service_fn(async |request: hyper::Request<hyper::body::Incoming>| {
        Ok::<_, Infallible>(room.answer(state, &request))
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}
