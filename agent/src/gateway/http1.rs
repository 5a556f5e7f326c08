//! Clients that speak HTTP/1.

use std::convert::Infallible;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::ext::ReasonPhrase;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;

use super::accept::Client;
use super::access::Record;
use super::forward::{Answer, AnswerError, forward};
use super::metrics::Denial;
use super::refusal::Refusal;
use super::request::{Admission, Opened, Wish, open};
use super::stream::{ClientStream, End, Upstream};
use super::{Control, MAX_HEAD, Shared, tunnel};
use crate::sockets::Carrier as _;

/// Serves a client until it goes or everything is to stop.
pub(super) async fn serve(
    stream: ClientStream,
    client: Client,
    admission: Admission,
    shared: &Arc<Shared>,
    control: &Control,
) {
    let tunnel = serve_requests(stream, client, admission, shared, control).await;
    if let Some(tunnel) = tunnel {
        run(tunnel, shared, control).await;
    }
}

/// A tunnel whose far end stands, and whose near end will once the answer is sent.
#[derive(Debug)]
struct Tunnel {
    client: OnUpgrade,
    version: http::Version,
    upstream: Upstream,
    record: Record,
}

/// Answers requests until one of them has opened a tunnel or the connection ends.
async fn serve_requests(
    stream: ClientStream,
    client: Client,
    admission: Admission,
    shared: &Arc<Shared>,
    control: &Control,
) -> Option<Tunnel> {
    let opened = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&opened);
    let for_requests = Arc::clone(shared);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&for_requests);
        let slot = Arc::clone(&slot);
        async move {
            let (response, tunnel) = answer(&shared, client, admission, request).await;
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
        result = connection.as_mut() => Some(result),
        () = control.drained() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = connection.as_mut() => Some(result),
                () = control.stopped() => None,
            }
        }
    };
    let broken = match result {
        Some(Ok(())) => false,
        Some(Err(error)) if error.is_parse() => {
            // Answered already.
            let mut record = Record::unreadable(&shared.metrics, client);
            record.code = Some(if error.is_parse_too_large() {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            } else {
                StatusCode::BAD_REQUEST
            });
            record.denied(Denial::Malformed);
            record.failed(error);
            false
        }
        Some(Err(error)) => {
            tracing::debug!(client = %client.addr, %error, "a client's connection ended early");
            // The time is for the head of a request, so no answer is under way.
            !error.is_timeout()
        }
        None => true,
    };
    if broken && let Some(parts) = Pin::into_inner(connection).into_parts() {
        // An answer that breaks off must not look complete to a client that is told the end of it
        // by the end of the connection.
        parts.io.into_inner().abort();
    }
    opened.lock().take()
}

/// Answers `request`: 200 to CONNECT comes with a tunnel, everything else is recorded with the
/// answer.
async fn answer(
    shared: &Shared,
    client: Client,
    admission: Admission,
    request: Request<Incoming>,
) -> (Response<Reply>, Option<Tunnel>) {
    let mut record = Record::new(&shared.metrics, client, &request);
    let body_ended = request.body().is_end_stream();
    let opened = open(shared, admission, &request, body_ended, &mut record).await;
    let refusal = match opened {
        Ok(Opened {
            wish: Wish::Tunnel,
            upstream,
            ..
        }) => {
            record.code = Some(StatusCode::OK);
            let mut response = Response::new(Reply::Own(Full::default()));
            response.extensions_mut().insert(ESTABLISHED);
            let tunnel = Tunnel {
                version: request.version(),
                client: hyper::upgrade::on(request),
                upstream,
                record,
            };
            return (response, Some(tunnel));
        }
        Ok(Opened {
            target, upstream, ..
        }) => {
            let patience = shared.exchange_timeout;
            match forward(request, &target, upstream, &mut record, patience).await {
                Ok(response) => {
                    record.code = Some(response.status());
                    let recorded =
                        |answer: Answer| Reply::Forwarded(Box::new(answer.recorded(record)));
                    return (response.map(recorded), None);
                }
                Err(refusal) => refusal,
            }
        }
        Err(refusal) => refusal,
    };
    (own(refusal, &mut record), None)
}

fn own(refusal: Refusal, record: &mut Record) -> Response<Reply> {
    refusal
        .into_response(record)
        .map(|text| Reply::Own(Full::new(text)))
}

/// Runs an opened tunnel to its end.
async fn run(tunnel: Tunnel, shared: &Shared, control: &Control) {
    let Tunnel {
        client,
        version,
        mut upstream,
        mut record,
    } = tunnel;
    let parts = match client.await {
        Ok(upgraded) => upgraded.downcast::<TokioIo<ClientStream>>(),
        Err(error) => {
            upstream.stream.abort_on_drop();
            return record.failed(format_args!(
                "the client went away before the tunnel stood: {error}"
            ));
        }
    };
    let Ok(parts) = parts else {
        return record.failed("the connection is not the one that was accepted");
    };
    let (client, ahead) = (parts.io.into_inner(), parts.read_buf);
    // The relay itself sees when the client's connection breaks.
    let broken = pending::<&str>();
    tunnel::run(
        client,
        ahead,
        upstream,
        record,
        version,
        broken,
        (shared, control),
    )
    .await;
}

/// The body of an answer.
enum Reply {
    /// The gateway's.
    Own(Full<Bytes>),
    /// The target's.
    Forwarded(Box<Answer>),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        match self.get_mut() {
            Self::Own(text) => Pin::new(text)
                .poll_frame(cx)
                .map_err(|never| match never {}),
            Self::Forwarded(answer) => Pin::new(answer).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(text) => text.is_end_stream(),
            Self::Forwarded(answer) => answer.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(text) => text.size_hint(),
            Self::Forwarded(answer) => answer.size_hint(),
        }
    }
}

const ESTABLISHED: ReasonPhrase = ReasonPhrase::from_static(b"Connection established");
