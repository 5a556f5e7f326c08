//! The client of the collector: one connection, on a socket of our own, kept while it lasts.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::message::ExportTraceServiceResponse;
use super::settings::{Collector, Settings};
use crate::dns::{DnsError, Resolver, first_success};
use crate::sockets::SocketFactory;
use crate::telemetry::text::printable;
use crate::tls::{ClientTls, TlsError};

/// How much of an answer is read, head and body each.
const MAX_ANSWER: usize = 64 * 1024;

/// Addresses tried at most, and the head start of each before the next (RFC 8305 section 8).
const MAX_ADDRESSES: usize = 8;
const HEAD_START: Duration = Duration::from_millis(250);

/// Bytes of what a collector says, in the log.
const MAX_QUOTE: usize = 200;

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");
const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("underpass/", env!("CARGO_PKG_VERSION")));

pub(super) struct Client {
    collector: Collector,
    label: String,
    headers: HeaderMap,
    tls: Option<ClientTls>,
    sockets: Arc<dyn SocketFactory>,
    resolver: Resolver,
    time: Duration,
    open: Option<Open>,
}

/// A connection; what drives it ends with it.
struct Open {
    requests: SendRequest<Full<Bytes>>,
    _driver: JoinSet<()>,
}

impl Client {
    pub(super) fn new(
        settings: Settings,
        sockets: Arc<dyn SocketFactory>,
        resolver: Resolver,
        time: Duration,
    ) -> Self {
        let mut headers = settings.headers;
        headers.insert(HOST, settings.collector.authority.clone());
        headers.insert(CONTENT_TYPE, PROTOBUF);
        headers.entry(USER_AGENT).or_insert(AGENT);
        Self {
            label: settings.collector.to_string(),
            collector: settings.collector,
            headers,
            tls: settings.tls,
            sockets,
            resolver,
            time,
            open: None,
        }
    }

    /// Who it is, for the log.
    pub(super) fn collector(&self) -> &str {
        &self.label
    }

    /// Sends a message, and says how many spans of it were rejected.
    pub(super) async fn send(&mut self, message: Bytes) -> Result<usize, SendError> {
        let deadline = Instant::now() + self.time;
        // Whatever goes wrong, the connection is of no use any more.
        let open = self.open.take().filter(|open| open.requests.is_ready());
        let exchange = async {
            let mut open = match open {
                Some(open) => open,
                None => self.connect(deadline).await?,
            };
            let rejected = self.exchange(&mut open, message).await?;
            Ok::<_, SendError>((open, rejected))
        };
        let exchanged = timeout_at(deadline, exchange).await;
        let (open, rejected) = exchanged.map_err(|_| SendError::Timeout(self.time))??;
        self.open = Some(open);
        Ok(rejected)
    }

    async fn exchange(&self, open: &mut Open, message: Bytes) -> Result<usize, SendError> {
        let mut request = Request::new(Full::new(message));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.collector.path.clone();
        *request.headers_mut() = self.headers.clone();
        open.requests.ready().await?;
        let answer = open.requests.send_request(request).await?;
        let status = answer.status();
        let retry_after = answer.headers().get(RETRY_AFTER).and_then(seconds);
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        if status != StatusCode::OK {
            return Err(SendError::Status {
                status,
                retry_after,
            });
        }
        let body = match body {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(SendError::TooLong),
            Err(error) => return Err(SendError::Body(error)),
        };
        // It has taken them, whatever else it says.
        let answer = ExportTraceServiceResponse::decode(body).unwrap_or_default();
        let partial = answer.partial_success.unwrap_or_default();
        let rejected = usize::try_from(partial.rejected_spans).unwrap_or_default();
        if rejected > 0 {
            let says = printable(&partial.error_message, MAX_QUOTE);
            tracing::debug!(rejected, says, "the collector rejected spans");
        }
        Ok(rejected)
    }

    async fn connect(&self, deadline: Instant) -> Result<Open, SendError> {
        let Collector { host, port, .. } = &self.collector;
        let mut addrs = self.resolver.resolve(host).await?;
        addrs.truncate(MAX_ADDRESSES);
        let connecting = first_success(addrs, HEAD_START, |ip| async move {
            let addr = SocketAddr::new(ip, *port);
            let connected = self.sockets.connect(addr).await;
            connected.map_err(|error| (addr, error))
        });
        let stream = connecting.await.map_err(SendError::Connect)?;
        match &self.tls {
            None => open(stream).await,
            Some(tls) => open(tls.connect(stream, host, deadline).await?).await,
        }
    }
}

async fn open<S>(stream: S) -> Result<Open, SendError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (requests, connection) = http1::Builder::new()
        .max_buf_size(MAX_ANSWER)
        .handshake(TokioIo::new(stream))
        .await?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // Whoever waits for an answer is told why there is none.
        let _ = connection.await;
    });
    Ok(Open {
        requests,
        _driver: driver,
    })
}

/// Of Retry-After as a number (RFC 9110 section 10.2.3).
fn seconds(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// Why a message did not reach the collector, or was of no use to it.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// The answer broke off.
    #[error("its answer broke off: {0}")]
    Body(Box<dyn Error + Send + Sync>),
    /// No address answers.
    #[error("cannot connect: {}", Attempts(.0))]
    Connect(Vec<(SocketAddr, io::Error)>),
    /// Its name has no address.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// What came is no answer.
    #[error("no answer that can be read: {0}")]
    Http(#[from] hyper::Error),
    /// It said no.
    #[error("it answered {status}")]
    Status {
        status: StatusCode,
        retry_after: Option<Duration>,
    },
    /// All together took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// There is no TLS.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// The answer is too long.
    #[error("its answer is longer than {MAX_ANSWER} bytes")]
    TooLong,
}

impl SendError {
    /// Whether sending the same again is of no use (OTLP specification, "OTLP/HTTP Response").
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Status { status, .. } => !matches!(status.as_u16(), 429 | 502 | 503 | 504),
            Self::TooLong => true,
            _ => false,
        }
    }

    /// When the collector wants it again.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

struct Attempts<'a>(&'a [(SocketAddr, io::Error)]);

impl fmt::Display for Attempts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("it has no address");
        }
        for (n, (addr, error)) in self.0.iter().enumerate() {
            let link = if n == 0 { "" } else { "; " };
            write!(f, "{link}{addr}: {error}")?;
        }
        Ok(())
    }
}
