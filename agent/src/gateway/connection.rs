//! One client of the gateway, from accept to close.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::access::Record;
use super::answer::{Admission, Tunnel, answer};
use crate::relay::relay;
use crate::sockets::reset_on_close;

/// Tells connections to end.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop {
    gracefully: CancellationToken,
    now: CancellationToken,
}

impl Stop {
    /// No new connection or request; what has begun may finish.
    pub(super) fn gracefully(&self) {
        self.gracefully.cancel();
    }

    /// Everything ends.
    pub(super) fn now(&self) {
        self.now.cancel();
    }
}

/// Serves the clients of one listener until it is told to stop and all of them have gone.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: Stop) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.gracefully.cancelled() => break,
            // Ends are collected as they come, else the set would grow for ever.
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                if let Some((admission, permit)) = admit(&shared) {
                    let shared = Arc::clone(&shared);
                    let stop = stop.clone();
                    connections.spawn(async move {
                        serve(stream, client, admission, &shared, &stop).await;
                        drop(permit);
                    });
                } else {
                    reset_on_close(&stream);
                }
            }
            Err(error) => {
                // Out of file descriptors, mostly; trying again at once would only burn CPU.
                tracing::warn!(%error, "cannot accept a connection; waiting a moment");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// `None` is for clients for whom not even a refusal can be spared.
fn admit(shared: &Shared) -> Option<(Admission, OwnedSemaphorePermit)> {
    if let Ok(permit) = Arc::clone(&shared.slots).try_acquire_owned() {
        return Some((Admission::Served, permit));
    }
    let permit = Arc::clone(&shared.refusals).try_acquire_owned().ok()?;
    Some((Admission::TooMany, permit))
}

async fn serve(
    stream: TcpStream,
    client: SocketAddr,
    admission: Admission,
    shared: &Arc<Shared>,
    stop: &Stop,
) {
    // Without it small pieces wait for acknowledgements: slower, nothing worse.
    let _ = stream.set_nodelay(true);
    let tunnel = tokio::select! {
        tunnel = serve_http(stream, client, admission, shared, stop) => tunnel,
        () = stop.now.cancelled() => None,
    };
    if let Some(tunnel) = tunnel {
        run(tunnel, shared, stop).await;
    }
}

/// Answers requests until one of them has opened a tunnel or the connection ends.
async fn serve_http(
    stream: TcpStream,
    client: SocketAddr,
    admission: Admission,
    shared: &Arc<Shared>,
    stop: &Stop,
) -> Option<Tunnel> {
    let opened = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&opened);
    let for_requests = Arc::clone(shared);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&for_requests);
        let slot = Arc::clone(&slot);
        async move {
            let (response, tunnel) = answer(&shared, admission, client, request).await;
            *slot.lock() = tunnel;
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.head_timeout)
        .max_buf_size(MAX_HEAD)
        .keep_alive(admission == Admission::Served)
        // A client may finish sending before the tunnel stands.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // On the heap, so that a tunnel does not keep the room for it.
    let mut connection = Box::pin(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.gracefully.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    if let Err(error) = result {
        if error.is_parse() {
            // Answered already.
            let mut record = Record::unreadable(client);
            record.code = Some(if error.is_parse_too_large() {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            } else {
                StatusCode::BAD_REQUEST
            });
            record.failed(error);
        } else {
            tracing::debug!(%client, %error, "a client's connection ended early");
        }
    }
    opened.lock().take()
}

/// Runs an opened tunnel to its end.
async fn run(tunnel: Tunnel, shared: &Shared, stop: &Stop) {
    let Tunnel {
        client,
        mut upstream,
        mut record,
    } = tunnel;
    let parts = match client.await {
        Ok(upgraded) => upgraded.downcast::<TokioIo<TcpStream>>(),
        Err(error) => {
            reset_on_close(&upstream);
            return record.failed(format_args!(
                "the client went away before the tunnel stood: {error}"
            ));
        }
    };
    let Ok(parts) = parts else {
        return record.failed("the connection is not the one that was accepted");
    };
    let mut client = parts.io.into_inner();
    let failure = tokio::select! {
        result = relay(
            &mut client,
            &mut upstream,
            parts.read_buf,
            Bytes::new(),
            &shared.relay,
            &record.traffic,
        ) => result.err().map(|error| error.to_string()),
        () = stop.now.cancelled() => Some("the gateway was stopped".to_owned()),
    };
    if let Some(failure) = failure {
        reset_on_close(&client);
        reset_on_close(&upstream);
        record.failed(failure);
    }
}

/// The longest head of a request, and the most that is read ahead of a tunnel.
const MAX_HEAD: usize = 16 * 1024;

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
