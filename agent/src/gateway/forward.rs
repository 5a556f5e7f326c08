//! Plain HTTP, forwarded: a request in absolute form becomes one in origin form at the target, and
//! its answer goes back (RFC 9110 section 7.6, RFC 9112 section 3.2).

mod fields;

use std::error::Error;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::access::Record;
use super::metrics::Progress;
use super::refusal::Refusal;
use super::stream::Upstream;
use crate::name::Target;

/// Sends `request` to `target` over `upstream`, which serves this one request only, and gives its
/// answer. `patience` is how long neither side may say anything.
///
/// # Errors
/// The answer to give instead.
pub(super) async fn forward<B>(
    request: Request<B>,
    target: &Target,
    upstream: Upstream,
    record: &mut Record,
    patience: Duration,
) -> Result<Response<Answer>, Refusal>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let failed = |status, reason: &dyn std::fmt::Display| {
        Refusal::new(status, format!("{target}: {reason}"))
    };
    let version = request.version();
    if !upstream.early.is_empty() {
        let reason = "it spoke before it was asked, as no server of HTTP does";
        return Err(failed(StatusCode::BAD_GATEWAY, &reason));
    }
    let (mut parts, body) = request.into_parts();
    parts.uri = origin_form(&parts.uri);
    parts.version = Version::HTTP_11;
    fields::for_target(&mut parts.headers, target, version);
    let body = Asked {
        body,
        progress: Arc::clone(&record.progress),
    };

    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(upstream.stream))
        .await
        .map_err(|error| failed(StatusCode::BAD_GATEWAY, &error))?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a target ended early");
        }
    }));
    let mut answer = pin!(sender.send_request(Request::from_parts(parts, body)));
    let response = loop {
        let sent = record.progress.sent();
        tokio::select! {
            response = answer.as_mut() => break response,
            () = sleep(patience) => {
                // A long upload is no silence.
                if record.progress.sent() == sent {
                    let reason = format!("no answer within {patience:?}");
                    return Err(failed(StatusCode::GATEWAY_TIMEOUT, &reason));
                }
            }
        }
    };
    let response = response.map_err(|error| {
        let reason = format!("it gave no answer: {}", innermost(&error));
        failed(StatusCode::BAD_GATEWAY, &reason)
    })?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let reason = "it changes to another protocol, which nobody asked for";
        return Err(failed(StatusCode::BAD_GATEWAY, &reason));
    }
    let (mut parts, body) = response.into_parts();
    fields::for_client(&mut parts.headers, parts.version);
    parts.version = Version::HTTP_11;
    let answer = Answer {
        body,
        patience,
        silence: Box::pin(sleep(patience)),
        record: None,
        _connection: connection,
    };
    Ok(Response::from_parts(parts, answer))
}

/// RFC 9112 section 3.2.1.
fn origin_form(uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned();
    Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")))
}

/// Of errors that wrap each other, the one that says most.
fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

/// The body of a request, counted.
struct Asked<B> {
    body: B,
    progress: Arc<Progress>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Asked<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.progress.add_sent(data.len());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer. The connection it comes from ends with it.
#[derive(Debug)]
pub(super) struct Answer {
    body: Incoming,
    patience: Duration,
    silence: Pin<Box<Sleep>>,
    record: Option<Record>,
    _connection: AbortOnDropHandle<()>,
}

impl Answer {
    /// Ends `record` when this body ends.
    pub(super) fn recorded(mut self, mut record: Record) -> Self {
        if !self.body.is_end_stream() {
            // Until the end has been seen.
            record.failed("the client went away before the end of the answer");
        }
        self.record = Some(record);
        self
    }

    fn note(&mut self, polled: &Polled) {
        let Some(record) = &mut self.record else {
            return;
        };
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    record.progress.add_received(data.len());
                }
                if self.body.is_end_stream() {
                    record.succeeded();
                }
            }
            Poll::Ready(Some(Err(error))) => record.failed(error),
            Poll::Ready(None) => record.succeeded(),
            Poll::Pending => {}
        }
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, AnswerError>>>;

impl Body for Answer {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let polled = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                let next = Instant::now() + self.patience;
                self.silence.as_mut().reset(next);
                Poll::Ready(frame.map(|frame| frame.map_err(AnswerError::Broken)))
            }
            Poll::Pending => self
                .silence
                .as_mut()
                .poll(cx)
                .map(|()| Some(Err(AnswerError::Silent(self.patience)))),
        };
        self.note(&polled);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Why an answer is not whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    #[error("the answer broke off: {0}")]
    Broken(#[source] hyper::Error),
    #[error("the answer stopped for {0:?}")]
    Silent(Duration),
}

/// The longest head of an answer.
const MAX_HEAD: usize = 64 * 1024;
