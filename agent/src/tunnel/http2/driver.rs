//! What keeps a connection going: its frames, what is known of it, and whether it lives.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::ahead::ReadAhead;
use super::connection::{NO_SETTINGS_YET, Shared};
use super::{Config, Ended};

/// How long a connection that nobody wants any more may take to send its last frames.
const LINGER: Duration = Duration::from_secs(5);

/// Reads and writes one connection until it ends.
pub(super) struct Driver<S> {
    connection: h2::client::Connection<Watched<S>, Bytes>,
    requests: Weak<SendRequest<Bytes>>,
    shared: Arc<Shared>,
    max_streams: usize,
    going_away: bool,
    life: Life,
}

impl<S> Driver<S>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    pub(super) fn new(
        mut connection: h2::client::Connection<Watched<S>, Bytes>,
        requests: Weak<SendRequest<Bytes>>,
        shared: Arc<Shared>,
        activity: Arc<Activity>,
        config: &Config,
    ) -> Self {
        Self {
            life: Life {
                pings: connection.ping_pong(),
                activity,
                ping_after: config.ping_after,
                ping_request_after: config.ping_request_after,
                ping_timeout: config.ping_timeout,
                asked: None,
                unanswered: false,
                requested: None,
                unwanted: None,
                timer: Box::pin(sleep(config.ping_after)),
            },
            connection,
            requests,
            shared,
            max_streams: config.max_streams as usize,
            going_away: false,
        }
    }

    /// Ends with the connection. How it ended is known before its streams are told that it did.
    pub(super) async fn run(mut self) {
        let ended = poll_fn(|cx| self.poll(cx)).await;
        self.shared.status.send_modify(|status| {
            status.going_away = true;
            status.ended = Some(ended);
        });
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        if let Poll::Ready(result) = Pin::new(&mut self.connection).poll(cx) {
            return Poll::Ready(match result {
                Ok(()) => Ended::Closed,
                Err(error) => Ended::Failed(Arc::new(error)),
            });
        }
        self.publish(cx);
        let wanted = self.requests.strong_count() > 0;
        self.life.poll(&self.shared, wanted, cx)
    }

    /// Tells of the number of streams and of GOAWAY, where they have changed.
    fn publish(&mut self, cx: &mut Context<'_>) {
        let max = match self.connection.max_concurrent_send_streams() {
            NO_SETTINGS_YET => None,
            max => Some(max.min(self.max_streams)),
        };
        // After GOAWAY there is an error for whoever would send a request.
        self.going_away = self.going_away
            || self.requests.upgrade().is_none_or(|requests| {
                let mut requests = SendRequest::clone(&requests);
                matches!(requests.poll_ready(cx), Poll::Ready(Err(_)))
            });
        let going_away = self.going_away;
        self.shared.status.send_if_modified(|status| {
            let changed = status.max_streams != max || status.going_away != going_away;
            status.max_streams = max;
            status.going_away = going_away;
            changed
        });
    }
}

/// Finds out whether a silent peer is still there. Whatever comes from it is a sign of life, so
/// an answer that is stuck behind other data does no harm.
struct Life {
    /// `None` if there is none to be had, which does not happen.
    pings: Option<PingPong>,
    activity: Arc<Activity>,
    ping_after: Duration,
    ping_request_after: Duration,
    ping_timeout: Duration,
    /// Since when an answer is awaited.
    asked: Option<Instant>,
    /// There is a PING whose answer has not come; no other can be sent meanwhile.
    unanswered: bool,
    /// Since when some request waits for its answer.
    requested: Option<Instant>,
    /// Since when nobody will open a stream any more, and none is open.
    unwanted: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl Life {
    fn poll(&mut self, shared: &Shared, wanted: bool, cx: &mut Context<'_>) -> Poll<Ended> {
        if self.unanswered
            && let Some(pings) = &mut self.pings
            && pings.poll_pong(cx).is_ready()
        {
            self.unanswered = false;
        }
        if shared.open() == 0 {
            self.asked = None;
            self.requested = None;
            return self.poll_unused(wanted, cx);
        }
        if shared.unanswered() == 0 {
            self.requested = None;
        } else {
            self.requested.get_or_insert_with(Instant::now);
        }
        loop {
            let last = self.activity.last();
            self.asked = self.asked.filter(|asked| *asked > last);
            let due = match self.asked {
                Some(asked) => asked + self.ping_timeout,
                None => self.question(last),
            };
            if !self.is_past(due, cx) {
                return Poll::Pending;
            }
            if self.asked.is_some() {
                let after = self.ping_timeout;
                return Poll::Ready(Ended::Silent { after });
            }
            self.asked = Some(Instant::now());
            if !self.unanswered
                && let Some(pings) = &mut self.pings
            {
                self.unanswered = pings.send_ping(Ping::opaque()).is_ok();
                // Only to be woken by the answer.
                let _ = pings.poll_pong(cx);
            }
        }
    }

    /// When the peer is to be asked if nothing more comes from it.
    fn question(&self, last: Instant) -> Instant {
        let due = last + self.ping_after;
        self.requested.map_or(due, |requested| {
            due.min(requested.max(last) + self.ping_request_after)
        })
    }

    /// A connection without streams is left in peace. If nobody will use it again it waits for
    /// its last frames to go out, and no longer than [`LINGER`].
    fn poll_unused(&mut self, wanted: bool, cx: &mut Context<'_>) -> Poll<Ended> {
        if wanted {
            return Poll::Pending;
        }
        let since = *self.unwanted.get_or_insert_with(Instant::now);
        if self.is_past(since + LINGER, cx) {
            return Poll::Ready(Ended::Closed);
        }
        Poll::Pending
    }

    fn is_past(&mut self, due: Instant, cx: &mut Context<'_>) -> bool {
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
        self.timer.as_mut().poll(cx).is_ready()
    }
}

/// When something came last.
#[derive(Debug)]
pub(super) struct Activity {
    start: Instant,
    /// Nanoseconds since `start`.
    last: AtomicU64,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    fn note(&self) {
        let nanos = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last.store(nanos, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_nanos(self.last.load(Ordering::Relaxed))
    }
}

/// A transport that is read far at a time, and whose reads are noted.
pub(super) struct Watched<S> {
    transport: S,
    ahead: ReadAhead,
    activity: Arc<Activity>,
}

impl<S> Watched<S> {
    pub(super) fn new(transport: S, activity: Arc<Activity>) -> Self {
        Self {
            transport,
            ahead: ReadAhead::default(),
            activity,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = this.ahead.poll_read(&mut this.transport, cx, buf);
        if buf.filled().len() > before {
            this.activity.note();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().transport).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().transport).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().transport).poll_shutdown(cx)
    }
}
