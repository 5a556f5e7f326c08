//! The connection of a client: its streams, its idle time, its end.

use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::answer::Client;
use crate::inspect::MAX_BYTES;

/// Streams at a time. Programs may keep hundreds of long calls open on one connection, and wait
/// without end for a place if there is none.
const MAX_STREAMS: u32 = 1024;

/// How much one stream may have waiting for its target, in bytes. A client is on the same machine,
/// so this much is more than is ever under way.
const STREAM_WINDOW: u32 = 64 * 1024;

/// How much all streams of a connection together may have waiting for their targets, in bytes. So
/// many that stall hold up no other: 64 whose windows are full, far more whose are not.
pub(super) const CONNECTION_WINDOW: u32 = 64 * STREAM_WINDOW;

/// What one stream may have waiting for its client, in bytes.
const SEND_BUFFER: usize = 128 * 1024;

/// For the preface and the first SETTINGS, of which the preface has come.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Streams that a client may reset within [`RESET_TIME`] before their answers, and more than it may
/// have at a time: each of them costs a decision, and none of them is paid for by its place.
const MAX_RESETS: u32 = 2 * MAX_STREAMS;
const RESET_TIME: Duration = Duration::from_secs(10);

/// A request, and where its answer goes.
#[derive(Debug)]
pub struct Incoming {
    /// The head.
    pub head: http::request::Parts,
    /// The rest of the stream.
    pub client: Client,
}

/// How a stream ended, as far as it matters to its connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// The client gave it up before there was an answer.
    GivenUp,
    /// In any other way.
    Other,
}

/// Serves a connection on which the client speaks HTTP/2: gives each request to `handle`, whose
/// futures run at the same time. Ends when the client goes, when it has been idle for
/// `keep_alive`, or after `closing` with its last stream. A client that does not answer GOAWAY has
/// `keep_alive` for it after that stream.
///
/// # Errors
/// The client broke the rules, or its connection failed.
pub async fn serve<T, H, F>(
    io: T,
    keep_alive: Duration,
    closing: &CancellationToken,
    mut handle: H,
) -> Result<(), h2::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
    H: FnMut(Incoming) -> F,
    F: Future<Output = End> + Send + 'static,
{
    let mut connection = match timeout(HANDSHAKE, builder().handshake::<_, Bytes>(io)).await {
        Ok(shaken) => shaken?,
        Err(_) => return Err(Reason::SETTINGS_TIMEOUT.into()),
    };
    let mut streams = JoinSet::new();
    let mut resets = Resets::default();
    let mut idle_since = Instant::now();
    let mut ending = false;
    let ended = loop {
        let accepted = tokio::select! {
            biased;
            Some(end) = streams.join_next() => {
                idle_since = Instant::now();
                if matches!(end, Ok(End::GivenUp)) && resets.are_too_many() {
                    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                }
                continue;
            }
            () = closing.cancelled(), if !ending => None,
            () = sleep_until(idle_since + keep_alive), if streams.is_empty() => {
                if ending {
                    break Ok(());
                }
                None
            }
            accepted = connection.accept() => match accepted {
                Some(Ok(accepted)) => Some(accepted),
                Some(Err(error)) => break Err(error),
                None => break Ok(()),
            },
        };
        let Some((request, respond)) = accepted else {
            ending = true;
            idle_since = Instant::now();
            connection.graceful_shutdown();
            continue;
        };
        let (head, body): (_, RecvStream) = Request::into_parts(request);
        let mut client = Client::new(body, respond);
        // What the client has reset may not have ended here yet.
        while streams.try_join_next().is_some() {}
        if streams.len() >= 2 * MAX_STREAMS as usize {
            client.abort(Reason::REFUSED_STREAM);
            continue;
        }
        streams.spawn(handle(Incoming { head, client }));
    };
    // They see that the connection is gone, and end.
    drop(connection);
    while streams.join_next().await.is_some() {}
    ended
}

fn builder() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_BYTES as u32)
        .max_send_buffer_size(SEND_BUFFER);
    builder
}

/// Counts what a client resets.
#[derive(Debug)]
struct Resets {
    since: Instant,
    count: u32,
}

impl Default for Resets {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            count: 0,
        }
    }
}

impl Resets {
    /// One more. Whether it is one too many.
    fn are_too_many(&mut self) -> bool {
        if self.since.elapsed() > RESET_TIME {
            *self = Self::default();
        }
        self.count += 1;
        self.count > MAX_RESETS
    }
}
