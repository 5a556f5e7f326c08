//! Clients that speak HTTP/2: many requests and tunnels on one connection.
//!
//! Of the two libraries for this the lower one is used, because a tunnel that fails has to end in
//! RST_STREAM and not in END_STREAM, in either direction (RFC 9113 section 8.5).

mod exchange;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::{Ping, PingPong, Reason};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::accept::Client;
use super::metrics::Denial;
use super::request::Admission;
use super::stream::ClientStream;
use super::{Control, MAX_HEAD, Shared};
use exchange::Exchange;

/// Serves a client until it goes or everything is to stop.
pub(super) async fn serve(
    io: ClientStream,
    client: Client,
    admission: Admission,
    shared: &Arc<Shared>,
    control: &Control,
) {
    let limit = shared.max_streams;
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(limit)
        .initial_window_size(STREAM_WINDOW)
        // Room for all streams at once: those whose targets do not read hold up no other.
        .initial_connection_window_size(STREAM_WINDOW.saturating_mul(limit).min(MAX_WINDOW))
        .max_header_list_size(MAX_HEAD as u32)
        .max_send_buffer_size(SEND_BUFFER);
    let shaken = timeout(shared.head_timeout, builder.handshake::<_, Bytes>(io)).await;
    let mut connection = match shaken {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(client = %client.addr, %error, "no HTTP/2"),
        Err(_) => return tracing::debug!(client = %client.addr, "no HTTP/2 in time"),
    };
    let mut gone = Box::pin(unanswered(connection.ping_pong()));
    let mut streams = JoinSet::new();
    let mut silent_until = Instant::now() + shared.head_timeout;
    let mut silent_before = true;
    let mut ending = false;
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            Some(_) = streams.join_next() => {
                silent_until = Instant::now() + IDLE;
                continue;
            }
            () = control.drained(), if !ending => {
                ending = true;
                connection.graceful_shutdown();
                continue;
            }
            () = sleep_until(silent_until), if streams.is_empty() && !ending => {
                if silent_before {
                    return tracing::debug!(client = %client.addr, "no request in time");
                }
                ending = true;
                connection.graceful_shutdown();
                continue;
            }
            () = control.stopped() => break,
            () = gone.as_mut() => {
                tracing::debug!(client = %client.addr, "a client does not answer any more");
                break;
            }
        };
        let (request, mut respond) = match accepted {
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => {
                tracing::debug!(client = %client.addr, %error, "a client's connection ended early");
                break;
            }
            None => break,
        };
        silent_before = false;
        // What the client has reset may not have ended here yet; more of that than there may be
        // streams is no accident.
        while streams.try_join_next().is_some() {}
        if streams.len() >= 2 * limit as usize {
            shared.metrics.denied(Denial::Limit);
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        let exchange = Exchange {
            client,
            admission,
            shared: Arc::clone(shared),
            control: control.clone(),
        };
        streams.spawn(exchange.serve(request, respond));
        if admission == Admission::TooMany && !ending {
            // It was told so, or will be, and others are to hear it as well.
            ending = true;
            connection.graceful_shutdown();
        }
    }
    // The streams see that the connection is gone, and end what they have with a reset.
    drop(connection);
    while streams.join_next().await.is_some() {}
}

/// Ends when the client does not answer pings any more.
async fn unanswered(pings: Option<PingPong>) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        sleep(PING_INTERVAL).await;
        match timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            _ => return,
        }
    }
}

/// What one stream may have waiting for its target; a multiple of the usual 64 KiB, so that
/// uploads are fast over some distance too.
const STREAM_WINDOW: u32 = 256 * 1024;

/// RFC 9113 section 6.9.1.
const MAX_WINDOW: u32 = (1 << 31) - 1;

/// What one stream may have waiting for its client.
const SEND_BUFFER: usize = 128 * 1024;

/// A connection without a stream is closed after this time.
const IDLE: Duration = Duration::from_secs(5 * 60);

/// How often clients are asked whether they are still there, and for how long.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
