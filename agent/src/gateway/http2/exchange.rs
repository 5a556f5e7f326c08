//! One stream: a request, and its answer or tunnel.

use std::fmt;
use std::future::{pending, poll_fn};
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response, StatusCode, header};
use parking_lot::Mutex;

use super::body::{Asked, send};
use super::stream::Stream;
use crate::gateway::accept::Client;
use crate::gateway::access::Record;
use crate::gateway::forward::forward;
use crate::gateway::refusal::Refusal;
use crate::gateway::request::{Admission, Opened, Wish, open};
use crate::gateway::stream::Upstream;
use crate::gateway::{Control, Shared, tunnel};
use crate::name::Target;

/// What a stream needs besides itself.
pub(super) struct Exchange {
    pub(super) client: Client,
    pub(super) admission: Admission,
    pub(super) shared: Arc<Shared>,
    pub(super) control: Control,
}

impl Exchange {
    /// Answers `request`, and runs the tunnel if it opens one.
    pub(super) async fn serve(
        self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        let shared = &*self.shared;
        let mut record = Record::new(&shared.metrics, self.client, &request);
        // A stream costs what a connection does.
        let place = Arc::clone(&shared.slots).try_acquire_owned().ok();
        let admission = match place {
            Some(_) => self.admission,
            None => Admission::TooMany,
        };
        let body_ended = request.body().is_end_stream();
        let opened = tokio::select! {
            opened = open(shared, admission, &request, body_ended, &mut record) => {
                opened.map_err(Gone::Refused)
            }
            gone = reset(&mut respond) => Err(gone),
        };
        match opened {
            Ok(Opened {
                wish: Wish::Tunnel,
                upstream,
                ..
            }) => self.tunnel(request, respond, upstream, record).await,
            Ok(Opened {
                target, upstream, ..
            }) => {
                self.forward(request, respond, &target, upstream, record)
                    .await;
            }
            Err(gone) => gone.end(record, respond),
        }
    }

    async fn tunnel(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        upstream: Upstream,
        mut record: Record,
    ) {
        let version = request.version();
        let answer = match respond.send_response(Response::new(()), false) {
            Ok(answer) => Arc::new(Mutex::new(answer)),
            Err(error) => return record.failed(error),
        };
        record.code = Some(StatusCode::OK);
        // A relay that waits for the target to take more does not read, and would not notice.
        let broken = broken(Arc::clone(&answer));
        let client = Stream::new(request.into_body(), answer);
        let rest = (&*self.shared, &self.control);
        let ahead = Bytes::new();
        tunnel::run(client, ahead, upstream, record, version, broken, rest).await;
    }

    async fn forward(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        target: &Target,
        upstream: Upstream,
        mut record: Record,
    ) {
        let patience = self.shared.exchange_timeout;
        let request = request.map(Asked::new);
        let answered = tokio::select! {
            answered = forward(request, target, upstream, &mut record, patience) => {
                answered.map_err(Gone::Refused)
            }
            gone = reset(&mut respond) => Err(gone),
        };
        match answered {
            Ok(response) => {
                record.code = Some(response.status());
                let response = response.map(|answer| answer.recorded(record));
                send(response, respond, patience).await;
            }
            Err(gone) => gone.end(record, respond),
        }
    }
}

/// Why a request gets nothing of a target.
enum Gone {
    Refused(Refusal),
    Reset(String),
}

impl Gone {
    fn end(self, mut record: Record, mut respond: SendResponse<Bytes>) {
        let refusal = match self {
            Self::Refused(refusal) => refusal,
            Self::Reset(reason) => return record.failed(reason),
        };
        let (mut parts, text) = refusal.into_response(&mut record).into_parts();
        // It is about the connection, and HTTP/2 has other means for that.
        parts.headers.remove(header::CONNECTION);
        let sent = respond
            .send_response(Response::from_parts(parts, ()), false)
            .and_then(|mut stream| stream.send_data(text, true));
        if let Err(error) = sent {
            tracing::debug!(%error, "a refusal was not sent");
        }
    }
}

/// Waits until the client gives the request up.
async fn reset(respond: &mut SendResponse<Bytes>) -> Gone {
    Gone::Reset(match poll_fn(|cx| respond.poll_reset(cx)).await {
        Ok(reason) => Broken(reason).to_string(),
        Err(error) => format!("the client's connection failed: {error}"),
    })
}

/// Waits until the client resets its stream. Whether NO_ERROR is one depends on what was sent
/// before, which the stream itself knows.
async fn broken(answer: Arc<Mutex<SendStream<Bytes>>>) -> String {
    match poll_fn(|cx| answer.lock().poll_reset(cx)).await {
        Ok(Reason::NO_ERROR) => pending().await,
        Ok(reason) => Broken(reason).to_string(),
        Err(error) => format!("the client's connection failed: {error}"),
    }
}

/// RST_STREAM from the client.
struct Broken(Reason);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the client reset the stream: {}", self.0.description())
    }
}
