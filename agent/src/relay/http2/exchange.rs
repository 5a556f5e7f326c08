//! One request and its answer, as a stream of a connection to a target that speaks HTTP/2.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use http::response::Parts;
use http::uri::Scheme;
use http::{Response, StatusCode};

use super::answer::Client;
use super::grpc;
use super::messages::Messages;
use super::pump::{Stop, pump};
use super::request::{Request, size_of};
use crate::relay::Progress;
use crate::relay::http::BodyError;
use crate::tunnel::http2::{Connection, Ended, NotTaken, OpenStream, Sent};

/// How many interim answers there may be before the final one.
pub(super) const MAX_INTERIM: usize = 64;

/// Why there is no answer, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The target's answer breaks the rules.
    #[error("its answer cannot be read: {0}")]
    BadAnswer(String),
    /// The body of the answer breaks the rules of HTTP/1.1.
    #[error("its answer cannot be read: {0}")]
    BrokenAnswer(#[source] BodyError),
    /// The body of the answer broke off.
    #[error("its answer broke off: {0}")]
    BrokeOff(#[source] io::Error),
    /// The client broke the rules of HTTP/2 on the stream.
    #[error("the HTTP request is malformed: {0}")]
    BrokenRequest(Reason),
    /// The client gave the stream up.
    #[error("the workload reset the stream: {0}")]
    ClientReset(Reason),
    /// The client's connection failed.
    #[error("the workload's connection failed: {0}")]
    Client(#[source] h2::Error),
    /// The connection to the target ended.
    #[error("its connection failed: {}", why(.0))]
    Lost(Ended),
    /// The target closed or broke the connection where its answer should have begun.
    #[error("it gave no answer: {0}")]
    NoAnswer(#[source] io::Error),
    /// The target has not looked at the request.
    #[error("it did not take the request: {0}")]
    NotTaken(#[from] NotTaken),
    /// The target reset the stream.
    #[error("it reset the stream: {0}")]
    Reset(Reason),
    /// The answer has this status, and is not to go to the client ([`Progress::judge`]).
    #[error("it answered {0}")]
    Unwanted(u16),
}

/// How the connection to a target ended.
pub(crate) fn why(ended: &Ended) -> String {
    match ended {
        Ended::Closed => "it closed the connection".to_owned(),
        Ended::Failed(error) => error.to_string(),
        Ended::Silent { after } => format!("no answer to a PING within {after:?}"),
    }
}

/// What a reset says about a stream only; what is wrong with one leg is no matter of the other.
pub(super) fn passed_on(reason: Reason) -> Reason {
    match reason {
        Reason::CANCEL | Reason::NO_ERROR | Reason::ENHANCE_YOUR_CALM | Reason::REFUSED_STREAM => {
            reason
        }
        _ => Reason::INTERNAL_ERROR,
    }
}

impl ExchangeError {
    /// The client's stream, or its connection, failed.
    pub(super) fn client(error: h2::Error) -> Self {
        match reset_by(&error) {
            Some(
                reason @ (Reason::PROTOCOL_ERROR
                | Reason::FLOW_CONTROL_ERROR
                | Reason::FRAME_SIZE_ERROR
                | Reason::STREAM_CLOSED),
            ) => Self::BrokenRequest(reason),
            Some(reason) => Self::ClientReset(reason),
            None => Self::Client(error),
        }
    }

    /// The target's stream, or its connection, failed.
    fn target(error: h2::Error, ended: Option<Ended>) -> Self {
        if error.is_go_away() && error.is_remote() {
            // Of streams that it leaves alone the end is another.
            return NotTaken::GoAway(error.reason().unwrap_or(Reason::NO_ERROR)).into();
        }
        match reset_by(&error) {
            Some(reason) if error.is_library() => Self::BadAnswer(reason.to_string()),
            Some(Reason::REFUSED_STREAM) => NotTaken::RefusedStream.into(),
            Some(reason) => Self::Reset(reason),
            None => Self::Lost(ended.unwrap_or_else(|| Ended::Failed(error.into()))),
        }
    }

    /// The client's stream, or its connection, failed while it waited for the answer.
    pub fn waiting(error: h2::Error) -> Self {
        Self::client(error)
    }

    /// How the client's stream ends where the answer has begun, or none can be given.
    pub fn reset(&self) -> Reason {
        match self {
            Self::Reset(reason) => passed_on(*reason),
            _ => Reason::INTERNAL_ERROR,
        }
    }
}

/// Why a stream was reset, by either side; `None` if it is the connection that failed.
pub(super) fn reset_by(error: &h2::Error) -> Option<Reason> {
    error.reason().filter(|_| !error.is_go_away())
}

/// Which side ended an exchange.
#[derive(Debug)]
pub(super) enum Fault<E, C = h2::Error> {
    Client(C),
    Target(E),
}

/// What became of the body of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Asked {
    /// All of it has been sent.
    All,
    /// The target takes no more; what it has to say about that comes the other way.
    NoMore,
}

/// Sends `request` on a stream of `target`, and its answer back; both bodies pass at the same
/// time. Dropped, it cancels the stream of the target.
///
/// # Errors
/// After one, [`Progress::status`] says whether the answer has begun to go to the client. If it
/// has not, another can be given, or the same request sent again if [`Client::is_untouched`].
pub async fn exchange(
    request: &Request,
    client: &mut Client,
    target: &Connection,
    scheme: &Scheme,
    progress: &Progress,
) -> Result<(), ExchangeError> {
    let has_no_body = client.has_no_body();
    let head = request.forwarded(scheme);
    let size = size_of(head.headers()) + request.size_of_target();
    let Sent {
        answer,
        body: mut to_target,
        open,
    } = target.send(head, has_no_body)?;
    progress.traffic.add_sent(size);
    let Client {
        body,
        respond,
        answer: begun,
        touched,
    } = client;
    let up = async {
        if has_no_body {
            return Ok(Asked::All);
        }
        let mut messages = Messages::of(request);
        let passed = |data: &[u8]| {
            *touched = true;
            progress.traffic.add_sent(data.len());
            progress.add_sent_messages(messages.pass(data));
        };
        let ends_with = |trailers: &HeaderMap| progress.traffic.add_sent(size_of(trailers));
        match pump(body, &mut to_target, passed, ends_with).await {
            Ok(()) => Ok(Asked::All),
            Err(Stop::From(error)) => Err(Fault::Client(error)),
            Err(Stop::To(_)) => Ok(Asked::NoMore),
        }
    };
    let down = async {
        let (head, mut from_target) = final_head(answer, respond, progress).await?.into_parts();
        let length = head.headers.get(CONTENT_LENGTH).cloned();
        let ends = from_target.is_end_stream();
        if !takes(&head, progress) {
            return Err(Fault::Target(Answered::Unwanted(head.status.as_u16())));
        }
        begins(&head, progress);
        let sent = respond.send_response(Response::from_parts(head, ()), ends);
        let to_client = begun.insert(sent.map_err(Fault::Client)?);
        if ends {
            return Ok(());
        }
        let mut messages = Messages::of(request);
        let mut came = 0;
        let passed = |data: &[u8]| {
            came += data.len();
            progress.traffic.add_received(data.len());
            progress.add_received_messages(messages.pass(data));
        };
        match pump(&mut from_target, to_client, passed, |trailers| {
            ended(trailers, progress);
        })
        .await
        {
            Ok(()) => Ok(()),
            Err(Stop::From(error)) if has_said_all(&error, length.as_ref(), came) => {
                let ended = to_client.send_data(Bytes::new(), true);
                ended.map_err(Fault::Client)
            }
            Err(Stop::From(error)) => Err(Fault::Target(Answered::Failed(error))),
            Err(Stop::To(error)) => Err(Fault::Client(error)),
        }
    };
    match both(up, down).await {
        Ok(Asked::All) => Ok(()),
        // The library tells the client when it has sent the answer: a reset would take the place of
        // what it has not.
        Ok(Asked::NoMore) => Ok(()),
        Err(Fault::Client(error)) => {
            let error = ExchangeError::client(error);
            if let ExchangeError::ClientReset(reason) = &error {
                to_target.send_reset(passed_on(*reason));
            }
            Err(error)
        }
        Err(Fault::Target(answered)) => Err(answered.into_error(&open)),
    }
}

/// Whether a target whose answer ends so, after so many bytes, has said all, and wants to hear no
/// more (RFC 9113 section 8.1).
pub(super) fn has_said_all(error: &h2::Error, length: Option<&HeaderValue>, came: usize) -> bool {
    let is_whole = |length: &HeaderValue| *length.as_bytes() == *came.to_string().as_bytes();
    reset_by(error) == Some(Reason::NO_ERROR) && length.is_none_or(is_whole)
}

/// Runs both directions to the end of the answer, and then the request to its end or as far as the
/// target takes it. A client that has the answer may leave.
pub(super) async fn both<E, C>(
    up: impl Future<Output = Result<Asked, Fault<E, C>>>,
    down: impl Future<Output = Result<(), Fault<E, C>>>,
) -> Result<Asked, Fault<E, C>> {
    let mut up = pin!(up);
    let mut down = pin!(down);
    let mut asked = None;
    loop {
        tokio::select! {
            biased;
            answered = down.as_mut() => {
                answered?;
                break;
            }
            ended = up.as_mut(), if asked.is_none() => asked = Some(ended?),
        }
    }
    match asked {
        Some(asked) => Ok(asked),
        None => Ok(up.await.unwrap_or(Asked::NoMore)),
    }
}

/// Why there is no answer of the target, or no more of it.
#[derive(Debug)]
pub(super) enum Answered {
    Badly(&'static str),
    Failed(h2::Error),
    Unwanted(u16),
}

impl Answered {
    /// The same of the stream that counts as `open`.
    pub(super) fn into_error(self, open: &OpenStream) -> ExchangeError {
        match self {
            Self::Badly(reason) => ExchangeError::BadAnswer(reason.to_owned()),
            Self::Failed(error) => ExchangeError::target(error, open.ended()),
            Self::Unwanted(status) => ExchangeError::Unwanted(status),
        }
    }
}

/// The heads of an answer, those of interim ones before it.
#[derive(Debug)]
pub(super) struct Heads {
    answer: ResponseFuture,
    interim: usize,
}

/// One of them.
#[derive(Debug)]
pub(super) enum Head {
    Interim(Response<()>),
    Final(Response<RecvStream>),
}

impl Heads {
    pub(super) fn new(answer: ResponseFuture) -> Self {
        Self { answer, interim: 0 }
    }

    /// The next one; the final one is the last.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        progress: &Progress,
    ) -> Poll<Result<Head, Answered>> {
        if let Poll::Ready(Some(head)) = self.answer.poll_informational(cx) {
            let head = head.map_err(Answered::Failed)?;
            progress.hears();
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Poll::Ready(Err(Answered::Badly("there are too many interim answers")));
            }
            if head.status() == StatusCode::SWITCHING_PROTOCOLS {
                let reason = "it changes to another protocol, which HTTP/2 cannot";
                return Poll::Ready(Err(Answered::Badly(reason)));
            }
            return Poll::Ready(Ok(Head::Interim(head)));
        }
        let answered = ready!(Pin::new(&mut self.answer).poll(cx));
        progress.hears();
        Poll::Ready(answered.map(Head::Final).map_err(Answered::Failed))
    }
}

/// The head of the final answer. Interim ones go to the client.
async fn final_head(
    answer: ResponseFuture,
    respond: &mut SendResponse<Bytes>,
    progress: &Progress,
) -> Result<Response<RecvStream>, Fault<Answered>> {
    let mut heads = Heads::new(answer);
    poll_fn(|cx| {
        if let Poll::Ready(reset) = respond.poll_reset(cx) {
            let error = reset.map_or_else(|error| error, h2::Error::from);
            return Poll::Ready(Err(Fault::Client(error)));
        }
        loop {
            let head = ready!(heads.poll_next(cx, progress)).map_err(Fault::Target)?;
            match head {
                Head::Interim(head) => {
                    progress.traffic.add_received(size_of(head.headers()));
                    respond.send_informational(head).map_err(Fault::Client)?;
                }
                Head::Final(head) => return Poll::Ready(Ok(head)),
            }
        }
    })
    .await
}

/// Whether an answer is to go to the client.
pub(super) fn takes(head: &Parts, progress: &Progress) -> bool {
    progress.takes(head.status.as_u16(), grpc::status(&head.headers))
}

/// The head of an answer begins to go to the client.
pub(super) fn begins(head: &Parts, progress: &Progress) {
    progress.begins(head.status.as_u16());
    progress.traffic.add_received(size_of(&head.headers));
    if let Some(status) = grpc::status(&head.headers) {
        progress.ends(status);
    }
}

/// An answer ends with these trailers.
pub(super) fn ended(trailers: &HeaderMap, progress: &Progress) {
    progress.traffic.add_received(size_of(trailers));
    if let Some(status) = grpc::status(trailers) {
        progress.ends(status);
    }
}
