//! One HTTP/2 connection to a proxy.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::SendStream;
use h2::client::{Builder, ResponseFuture, SendRequest};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::driver::{Activity, Driver, Watched};
use super::error::{Ended, HandshakeError, NotTaken, OpenError};
use super::request::refusal;
use super::{Config, TunnelStream};
use crate::tunnel::answer::BodyLength;
use crate::tunnel::connect::{BODY_TIME, ExchangeError, MAX_INTERIM, body_text};

/// The largest frame that is taken: the smallest limit there is, so that frames of one stream do
/// not hold up those of others.
const MAX_FRAME: u32 = 16 * 1024;

/// Streams that we reset are remembered, so that what was on its way to them is passed over in
/// silence: up to this number and for this long. A frame for a stream that is forgotten counts as
/// a fault of the proxy, and workloads that hang up during a download make many.
const RESETS_KEPT: usize = 256;
const RESETS_KEPT_FOR: Duration = Duration::from_secs(30);

/// Faults of the proxy on single streams until the connection is given up. It counts over the
/// whole life of the connection.
const MAX_FAULTS: usize = 4096;

/// What no proxy says, so that its first SETTINGS, which may leave out the number of streams, are
/// seen to come.
pub(super) const NO_SETTINGS_YET: usize = usize::MAX - 1;

/// An HTTP/2 connection to a proxy. Clones are the same connection; it is closed when all of them
/// and all streams are gone.
#[derive(Clone)]
pub struct Connection {
    /// The driver asks it for GOAWAY, but must not keep it alive.
    requests: Arc<SendRequest<Bytes>>,
    shared: Arc<Shared>,
}

/// What is known of a connection.
#[derive(Clone, Debug)]
pub struct Status {
    /// How many streams there may be at a time, by the proxy's word
    /// (SETTINGS_MAX_CONCURRENT_STREAMS) and ours; `None` before the proxy has spoken. It may
    /// change at any time, and fall below the number of streams that are open.
    pub max_streams: Option<usize>,
    /// It takes no new streams (GOAWAY); those that it has go on.
    pub going_away: bool,
    /// It has ended, and its streams with it.
    pub ended: Option<Ended>,
}

/// What connection, driver and streams have in common.
pub(super) struct Shared {
    pub(super) status: watch::Sender<Status>,
    open: AtomicUsize,
    unanswered: AtomicUsize,
}

impl Shared {
    /// Streams that are open, those not answered yet included.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Requests for tunnels that wait for their answer.
    pub(super) fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Relaxed)
    }
}

/// Counts one request as unanswered.
struct Unanswered(Arc<Shared>);

impl Unanswered {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.unanswered.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.unanswered.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts one stream as open.
pub struct OpenStream(Arc<Shared>);

impl OpenStream {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }

    /// How the connection ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.0.status.borrow().ended.clone()
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a proxy says that opens a tunnel.
#[derive(Debug)]
pub struct Opened {
    /// The tunnel.
    pub stream: TunnelStream,
    /// The status code, 200 to 299.
    pub code: u16,
    /// From the request to the answer.
    pub took: Duration,
}

/// A request that is no tunnel, on its way.
pub struct Sent {
    /// The answer.
    pub answer: ResponseFuture,
    /// The body of the request.
    pub body: SendStream<Bytes>,
    /// To be dropped after all else that belongs to the stream.
    pub open: OpenStream,
}

impl Connection {
    /// Begins HTTP/2 on `transport`: with prior knowledge, or where ALPN has chosen it. The
    /// connection is there when the proxy's first SETTINGS are; they tell how many streams it
    /// takes. A task of its own reads and writes the transport from then on.
    ///
    /// # Errors
    /// See [`HandshakeError`]; the transport is closed.
    pub async fn handshake<S>(
        transport: S,
        config: &Config,
        deadline: Instant,
    ) -> Result<Self, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let begin = async {
            let activity = Arc::new(Activity::new());
            let transport = Watched::new(transport, Arc::clone(&activity));
            let handshake = builder(config).handshake(transport).await;
            let (requests, connection) =
                handshake.map_err(|error| HandshakeError::Ended(Ended::Failed(Arc::new(error))))?;
            let requests = Arc::new(requests);
            let (status, mut watched) = watch::channel(Status {
                max_streams: None,
                going_away: false,
                ended: None,
            });
            let shared = Arc::new(Shared {
                status,
                open: AtomicUsize::new(0),
                unanswered: AtomicUsize::new(0),
            });
            let driver = Driver::new(
                connection,
                Arc::downgrade(&requests),
                Arc::clone(&shared),
                activity,
                config,
            );
            tokio::spawn(driver.run());
            let known = |status: &Status| status.max_streams.is_some() || status.ended.is_some();
            // The sender is in `shared`, so it cannot be gone.
            if let Ok(status) = watched.wait_for(known).await
                && let Some(ended) = &status.ended
            {
                return Err(HandshakeError::Ended(ended.clone()));
            }
            Ok(Self { requests, shared })
        };
        match timeout_at(deadline, begin).await {
            Ok(result) => result,
            Err(_) => Err(HandshakeError::Timeout),
        }
    }

    /// Asks for a tunnel: sends `request` on a stream of its own and awaits the answer. The
    /// caller heeds [`Status::max_streams`]; a request too many waits, until `deadline` as well.
    ///
    /// # Errors
    /// See [`OpenError`]. The stream is gone then; the connection may serve others.
    pub async fn open(&self, request: Request<()>, deadline: Instant) -> Result<Opened, OpenError> {
        let begin = Instant::now();
        // Before it is sent, which wakes the driver.
        let unanswered = Unanswered::new(&self.shared);
        let Sent {
            mut answer,
            body: send,
            open,
        } = self.send(request, false)?;
        let Ok(answer) = timeout_at(deadline, final_answer(&mut answer)).await else {
            return Err(ExchangeError::Timeout { received: 0 }.into());
        };
        let answer = answer.map_err(|error| match error {
            Some(error) => OpenError::awaiting(error, open.ended()),
            None => ExchangeError::TooManyInterim.into(),
        })?;
        drop(unanswered);
        let (head, recv) = answer.into_parts();
        let mut stream = TunnelStream::new(send, recv, open);
        if head.status.is_success() {
            return Ok(Opened {
                stream,
                code: head.status.as_u16(),
                took: begin.elapsed(),
            });
        }
        let deadline = deadline.min(Instant::now() + BODY_TIME);
        let until_end = BodyLength::UntilClose;
        let body = body_text(&mut stream, BytesMut::new(), until_end, deadline).await;
        let refusal = refusal(head.status, &head.headers, body);
        Err(ExchangeError::Refused(Box::new(refusal)).into())
    }

    /// Sends a request on a stream of its own; `ended`: it has no body. What comes of it is the
    /// caller's. A request too many waits until there is room for its stream.
    ///
    /// # Errors
    /// It was not sent.
    pub fn send(&self, request: Request<()>, ended: bool) -> Result<Sent, NotTaken> {
        let open = OpenStream::new(&self.shared);
        let mut requests = SendRequest::clone(&self.requests);
        let (answer, body) = requests
            .send_request(request, ended)
            .map_err(NotTaken::unsent)?;
        Ok(Sent { answer, body, open })
    }

    /// What is known of it now, and whenever that changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// Streams that are open, those not answered yet included.
    pub fn open_streams(&self) -> usize {
        self.shared.open()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("open", &self.open_streams())
            .field("status", &*self.shared.status.borrow())
            .finish_non_exhaustive()
    }
}

fn builder(config: &Config) -> Builder {
    let all_streams = config.stream_window.saturating_mul(config.max_streams);
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(config.max_header_list)
        .initial_window_size(config.stream_window)
        // As much as all streams together may hold, so that those whose workloads do not read
        // leave the window of each other one as it is. It bounds small frames as well: their
        // overhead, while they lie here, may be half of it.
        .initial_connection_window_size(all_streams.min(MAX_WINDOW))
        .max_send_buffer_size(config.send_buffer)
        .initial_max_send_streams(NO_SETTINGS_YET)
        .max_concurrent_reset_streams(RESETS_KEPT)
        .reset_stream_duration(RESETS_KEPT_FOR)
        .max_local_error_reset_streams(Some(MAX_FAULTS));
    builder
}

/// The largest window there is (RFC 9113 section 6.9.1).
const MAX_WINDOW: u32 = (1 << 31) - 1;

/// The answer after interim ones; `Err(None)` if those do not end.
async fn final_answer(
    answer: &mut ResponseFuture,
) -> Result<Response<h2::RecvStream>, Option<h2::Error>> {
    let mut interim = 0;
    poll_fn(|cx| {
        while let Poll::Ready(Some(passed_over)) = answer.poll_informational(cx) {
            passed_over.map_err(Some)?;
            interim += 1;
            if interim > MAX_INTERIM {
                return Poll::Ready(Err(None));
            }
        }
        Poll::Ready(ready!(Pin::new(&mut *answer).poll(cx)).map_err(Some))
    })
    .await
}
