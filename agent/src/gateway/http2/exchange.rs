//! One stream: a request, and its answer or tunnel.

use std::fmt;
use std::future::{pending, poll_fn};
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use parking_lot::Mutex;

use super::stream::Stream;
use crate::gateway::accept::Client;
use crate::gateway::access::Record;
use crate::gateway::refusal::Refusal;
use crate::gateway::request::{Admission, Opened, Wish, open};
use crate::gateway::stream::Upstream;
use crate::gateway::{Control, Shared, tunnel};
use crate::name::Target;
use crate::relay::http2::{self, Client as ClientEnd, ExchangeError, translate};
use crate::sockets::Carrier as _;

/// What a stream needs besides itself.
pub(super) struct Exchange {
    pub(super) client: Client,
    pub(super) admission: Admission,
    pub(super) shared: Arc<Shared>,
    pub(super) control: Control,
}

impl Exchange {
    /// Answers `request`, and runs the tunnel if it opens one.
    pub(super) async fn serve(self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let shared = &*self.shared;
        let (head, body) = request.into_parts();
        let head = Request::from_parts(head, ());
        let mut client = ClientEnd::new(body, respond);
        let mut record = Record::new(&shared.metrics, self.client, &head);
        // A stream costs what a connection does.
        let place = Arc::clone(&shared.slots).try_acquire_owned().ok();
        let admission = match place {
            Some(_) => self.admission,
            None => Admission::TooMany,
        };
        let head_only = *head.method() == Method::HEAD;
        let opened = tokio::select! {
            opened = open(shared, admission, &head, &mut record) => opened.map_err(Gone::Refused),
            error = client.reset() => Err(Gone::client(&ExchangeError::waiting(error))),
        };
        let done = match opened {
            Ok(Opened {
                wish: Wish::Tunnel,
                upstream,
                ..
            }) => return self.tunnel(client, upstream, record).await,
            Ok(Opened {
                target, upstream, ..
            }) => {
                let (head, ()) = head.into_parts();
                self.forward(head, &mut client, &target, upstream, &mut record)
                    .await
            }
            Err(gone) => Err(gone),
        };
        if let Err(gone) = done {
            gone.end(record, client, head_only);
        }
    }

    async fn tunnel(&self, client: ClientEnd, upstream: Upstream, mut record: Record) {
        let (body, mut respond) = client.into_parts();
        let answer = match respond.send_response(Response::new(()), false) {
            Ok(answer) => Arc::new(Mutex::new(answer)),
            Err(error) => return record.failed(error),
        };
        record.code = Some(StatusCode::OK);
        // A relay that waits for the target to take more does not read, and would not notice.
        let broken = broken(Arc::clone(&answer));
        let client = Stream::new(body, answer);
        let rest = (&*self.shared, &self.control);
        let (ahead, version) = (Bytes::new(), Version::HTTP_2);
        tunnel::run(client, ahead, upstream, record, version, broken, rest).await;
    }

    /// Sends the request to `target`, over a connection that serves this one only, and its answer
    /// back.
    async fn forward(
        &self,
        head: Parts,
        client: &mut ClientEnd,
        target: &Target,
        mut upstream: Upstream,
        record: &mut Record,
    ) -> Result<(), Gone> {
        let checked = http2::Request::check(head);
        let request = checked.map_err(|error| Refusal::malformed(error.to_string()))?;
        let request = request.for_target(target);
        // Until the end has been seen.
        record.failed("the client went away before the end of the answer");
        let progress = &record.progress;
        let patience = self.shared.exchange_timeout;
        let Upstream { stream, early } = &mut upstream;
        let early = std::mem::take(early);
        // Whatever breaks it off must not look like the end of the request.
        stream.abort_on_drop();
        let exchanged = tokio::select! {
            biased;
            exchanged = translate(&request, client, stream, early, progress) => exchanged,
            () = progress.silence(patience) => {
                let reason = format!("no byte in either direction for {patience:?}");
                let status = StatusCode::GATEWAY_TIMEOUT;
                return Err(match progress.status() {
                    None => Refusal::new(status, format!("{target}: {reason}")).into(),
                    Some(_) => Gone::Reset(Reason::CANCEL, reason),
                });
            }
        };
        match exchanged {
            Ok(_) => {
                record.succeeded();
                stream.finish_on_drop();
                Ok(())
            }
            Err(
                error @ (ExchangeError::BrokenRequest(_)
                | ExchangeError::Client(_)
                | ExchangeError::ClientReset(_)),
            ) => Err(Gone::client(&error)),
            Err(error) if progress.status().is_some() => {
                Err(Gone::Reset(error.reset(), error.to_string()))
            }
            Err(error) => {
                let text = format!("{target}: {error}");
                Err(Refusal::new(StatusCode::BAD_GATEWAY, text).into())
            }
        }
    }
}

/// Why a request gets nothing of a target, or not all of it.
enum Gone {
    /// The client is told so.
    Refused(Refusal),
    /// There is nobody left to be told, or it is too late.
    Reset(Reason, String),
}

impl From<Refusal> for Gone {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Gone {
    fn client(error: &ExchangeError) -> Self {
        let reason = match error {
            ExchangeError::ClientReset(reason) => Broken(*reason).to_string(),
            ExchangeError::Client(error) => format!("the client's connection failed: {error}"),
            error => error.to_string(),
        };
        Self::Reset(error.reset(), reason)
    }

    fn end(self, mut record: Record, mut client: ClientEnd, head_only: bool) {
        let refusal = match self {
            Self::Refused(refusal) => refusal,
            Self::Reset(code, reason) => {
                client.abort(code);
                return record.failed(reason);
            }
        };
        let mut answer = refusal.into_response(&mut record);
        if head_only {
            answer.body_mut().clear();
        }
        if let Err(error) = client.give(answer) {
            tracing::debug!(%error, "a refusal was not sent");
        }
    }
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
