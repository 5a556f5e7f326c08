//! One request and its answer, over connections that may serve others before and after.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::mem;
use std::pin::pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::body::{Body, BodyError, Piece};
use super::forward::Challenge;
use super::head::{Answer, Framing, Request};
use super::input::Input;
use super::write::{Manner, answer_head, last_chunk, request_head};
use crate::inspect::http_head::find_end;
use crate::relay::{Progress, RelayError};

/// The longest head of an answer, in bytes.
const MAX_ANSWER_HEAD: usize = 64 * 1024;

/// How many interim answers there may be before the final one.
const MAX_INTERIM: usize = 64;

/// The client's connection: what it sends, and where its answers go.
#[derive(Debug)]
pub struct Client<'a, R, W> {
    /// From the client; the head of the request has been taken out.
    pub input: &'a mut Input<R>,
    /// To the client.
    pub output: &'a mut W,
}

/// What came of an exchange that ended in order.
#[derive(Debug)]
pub struct Answered {
    /// Whether the client's connection may serve another.
    pub client_persists: bool,
    /// Whether the target's connection may.
    pub upstream_persists: bool,
    /// What has come of the target already, if both connections are now a stream of bytes.
    pub switched: Option<Bytes>,
    /// What the proxy that was asked says went wrong, if the answer is its own.
    pub proxy_error: Option<Bytes>,
}

/// Why there is no answer, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The target's answer breaks the rules.
    #[error("its answer cannot be read: {0}")]
    BadAnswer(&'static str),
    /// The body of the answer broke off.
    #[error("its answer broke off: {0}")]
    BrokeOff(#[source] io::Error),
    /// The body of the answer breaks the rules.
    #[error("its answer cannot be read: {0}")]
    BrokenAnswer(#[source] BodyError),
    /// The body of the request breaks the rules.
    #[error("the HTTP request is malformed: {0}")]
    BrokenRequest(#[source] BodyError),
    /// The client's connection failed.
    #[error("the workload's connection failed: {0}")]
    Client(#[source] io::Error),
    /// The proxy that was asked wants credentials, or others.
    #[error("the proxy wants credentials")]
    Challenged(Challenge),
    /// The target closed or broke the connection where its answer should have begun.
    #[error("it gave no answer: {0}")]
    NoAnswer(#[source] io::Error),
    /// The connections had become a stream of bytes, which failed.
    #[error(transparent)]
    Switched(RelayError),
    /// Nothing moved in either direction.
    #[error("no byte in either direction for {0:?}")]
    Silent(Duration),
    /// The answer has this status, and is not to go to the client ([`Progress::judge`]).
    #[error("it answered {0}")]
    Unwanted(u16),
}

/// Sends `request`, whose head was read from `client`, to `upstream`, and its answer back; both
/// bodies pass through at the same time. `last`: `upstream` will not be used again. `patience` is
/// how long nothing may move.
///
/// # Errors
/// After one, [`Progress::status`] says whether the answer has begun to go to the client. If it
/// has, both connections are to be reset; else another answer can be given. `upstream` is of no
/// use in either case.
pub async fn exchange<R, W, U>(
    request: &Request,
    client: Client<'_, R, W>,
    upstream: &mut U,
    early: Bytes,
    last: bool,
    patience: Duration,
    progress: &Progress,
) -> Result<Answered, ExchangeError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let state = State::default();
    let (from_upstream, mut to_upstream) = tokio::io::split(upstream);
    let mut from_upstream = Input::new(from_upstream, early);
    let up = ask(
        request,
        last,
        client.input,
        &mut to_upstream,
        &state,
        progress,
    );
    let down = answer(request, &mut from_upstream, client.output, &state, progress);
    let mut up = pin!(up);
    let exchanging = async {
        let mut down = pin!(down);
        let mut up_is_over = false;
        let manner = loop {
            tokio::select! {
                biased;
                answered = down.as_mut() => break answered?,
                asked = up.as_mut(), if !up_is_over => {
                    asked?;
                    up_is_over = true;
                }
            }
        };
        if !manner.close && !manner.switches && !up_is_over {
            // The answer came early; the target still takes the rest of the request.
            poll_fn(|cx| match up.as_mut().poll(cx) {
                Poll::Ready(result) => Poll::Ready(result),
                Poll::Pending if state.sent.load(Relaxed) => Poll::Ready(Ok(())),
                Poll::Pending => Poll::Pending,
            })
            .await?;
        }
        Ok(manner)
    };
    let exchanged = tokio::select! {
        biased;
        result = exchanging => result,
        () = progress.silence(patience) => Err(ExchangeError::Silent(patience)),
    };
    let manner = exchanged.map_err(|error| match error {
        // It was told that the client has gone, and did what most do then.
        ExchangeError::NoAnswer(_) | ExchangeError::BrokeOff(_) if state.shut.load(Relaxed) => {
            let kind = io::ErrorKind::UnexpectedEof;
            ExchangeError::Client(io::Error::new(kind, "it ended before the answer"))
        }
        error => error,
    })?;
    let sent = state.sent.load(Relaxed);
    let early = from_upstream.take();
    if manner.switches {
        return Ok(Answered {
            client_persists: false,
            upstream_persists: false,
            switched: Some(early),
            proxy_error: None,
        });
    }
    Ok(Answered {
        client_persists: sent && !manner.close,
        upstream_persists: sent
            && !last
            && !state.shut.load(Relaxed)
            && !state.upstream_closes.load(Relaxed)
            // Nobody has asked for more.
            && early.is_empty(),
        switched: None,
        proxy_error: state.proxy_error.get().cloned(),
    })
}

/// What both directions know of each other.
#[derive(Debug, Default)]
struct State {
    /// The client was told to go on with its body, or has begun by itself.
    continued: AtomicBool,
    /// All of the request has been sent.
    sent: AtomicBool,
    /// The end of the client's data has been passed on.
    shut: AtomicBool,
    /// The target takes no other request.
    upstream_closes: AtomicBool,
    proxy_error: OnceLock<Bytes>,
}

/// Sends the request. Ends only if the target takes no more, or with the client's connection.
async fn ask<R, W>(
    request: &Request,
    last: bool,
    input: &mut Input<R>,
    to: &mut W,
    state: &State,
    progress: &Progress,
) -> Result<(), ExchangeError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let traffic = &progress.traffic;
    let mut pass = Passing {
        head: request_head(request, last),
        body: Body::new(request.framing()),
        chunked: request.framing() == Framing::Chunked,
        count: |bytes| traffic.add_sent(bytes),
    };
    if !input.buffered().is_empty() && !pass.body.is_over() {
        state.continued.store(true, Relaxed);
    }
    loop {
        match pass.on(input, to).await {
            Ok(true) => break,
            Ok(false) => {
                input.fill().await.map_err(ExchangeError::Client)?;
                state.continued.store(true, Relaxed);
            }
            Err(Stop::Read(BodyError::CutShort)) => {
                let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(ExchangeError::Client(error));
            }
            Err(Stop::Read(error)) => return Err(ExchangeError::BrokenRequest(error)),
            // What it has to say about that, if anything, comes the other way.
            Err(Stop::Write) => return Ok(()),
        }
    }
    state.sent.store(true, Relaxed);
    if request.may_switch() {
        // What follows is not ours to read, unless the answer is no.
        return pending().await;
    }
    while input.buffered().is_empty() {
        if input.fill().await.map_err(ExchangeError::Client)? == 0 {
            state.shut.store(true, Relaxed);
            // A target that does not care will answer all the same.
            let _ = to.shutdown().await;
            break;
        }
    }
    pending().await
}

/// Passes on the answers, up to the final one.
async fn answer<R, W>(
    request: &Request,
    from: &mut Input<R>,
    output: &mut W,
    state: &State,
    progress: &Progress,
) -> Result<Manner, ExchangeError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let traffic = &progress.traffic;
    let count = |bytes| traffic.add_received(bytes);
    let mut interim = 0;
    let (answer, manner) = loop {
        let mut answer = read_answer(from, progress).await?;
        if request.for_proxy.is_some() {
            if answer.status == 407 {
                return Err(ExchangeError::Challenged(Challenge::of(&answer)));
            }
            answer.forget_proxy();
            if let Some(error) = answer.proxy_error() {
                // There is one final answer.
                let _ = state.proxy_error.set(error);
            }
        }
        if request.from_proxy {
            answer.leaves_proxy();
        }
        let switches = match answer.status {
            101 if request.upgrade().is_none() => {
                let reason = "it changes to another protocol, which nobody asked for";
                return Err(ExchangeError::BadAnswer(reason));
            }
            101 => true,
            200..=299 => request.is_connect(),
            _ => false,
        };
        if switches {
            break (answer, Manner::SWITCHES);
        }
        if answer.status >= 200 {
            let framing = answer.framing(request.is_head());
            let mut manner = Manner::of(request, framing, state.continued.load(Relaxed));
            // It has heard enough, and the client should know.
            manner.close |= answer.is_last() && !state.sent.load(Relaxed);
            break (answer, manner);
        }
        if answer.status == 100 {
            state.continued.store(true, Relaxed);
        }
        interim += 1;
        if interim > MAX_INTERIM {
            let reason = "there are too many interim answers";
            return Err(ExchangeError::BadAnswer(reason));
        }
        if request.minor_version > 0 {
            let head = answer_head(&answer, request, &Manner::INTERIM);
            send(output, &head, &count)
                .await
                .map_err(ExchangeError::Client)?;
        }
    };
    let framing = answer.framing(request.is_head());
    if answer.is_last() || framing == Framing::UntilClose {
        state.upstream_closes.store(true, Relaxed);
    }
    // As of a request: what cannot be read should not begin to go on.
    Body::new(framing)
        .check(from.buffered())
        .map_err(ExchangeError::BrokenAnswer)?;
    if !progress.takes(answer.status, None) {
        return Err(ExchangeError::Unwanted(answer.status));
    }
    progress.begins(answer.status);
    let head = answer_head(&answer, request, &manner);
    if manner.switches {
        send(output, &head, &count)
            .await
            .map_err(ExchangeError::Client)?;
        return Ok(manner);
    }
    let mut pass = Passing {
        head,
        body: Body::new(framing),
        chunked: manner.framing == Framing::Chunked,
        count,
    };
    loop {
        match pass.on(from, output).await {
            Ok(true) => return Ok(manner),
            Ok(false) => {
                from.fill().await.map_err(ExchangeError::BrokeOff)?;
            }
            Err(Stop::Read(BodyError::CutShort)) => {
                let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(ExchangeError::BrokeOff(error));
            }
            Err(Stop::Read(error)) => return Err(ExchangeError::BrokenAnswer(error)),
            Err(Stop::Write) => {
                let error = io::Error::from(io::ErrorKind::BrokenPipe);
                return Err(ExchangeError::Client(error));
            }
        }
    }
}

pub(in crate::relay) async fn read_answer<R: AsyncRead + Unpin>(
    from: &mut Input<R>,
    progress: &Progress,
) -> Result<Answer, ExchangeError> {
    let mut searched = 0;
    loop {
        if !from.buffered().is_empty() {
            progress.hears();
        }
        if let Some(end) = find_end(from.buffered(), searched) {
            let head = from.split_to(end);
            return Answer::parse(&head).map_err(ExchangeError::BadAnswer);
        }
        if from.buffered().len() > MAX_ANSWER_HEAD {
            return Err(ExchangeError::BadAnswer("its head is too long"));
        }
        searched = from.buffered().len().saturating_sub(2);
        match from.fill().await {
            Ok(0) => {
                let error =
                    io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection");
                return Err(ExchangeError::NoAnswer(error));
            }
            Ok(_) => {}
            Err(error) => return Err(ExchangeError::NoAnswer(error)),
        }
    }
}

/// A message on its way.
struct Passing<C> {
    /// Its head, which goes with the first of its body: to send them one by one would wake who
    /// waits for them twice.
    head: BytesMut,
    body: Body,
    /// Whether it goes out in chunks.
    chunked: bool,
    count: C,
}

/// Why a body goes no further.
enum Stop {
    Read(BodyError),
    /// The receiver takes no more.
    Write,
}

impl<C: Fn(usize)> Passing<C> {
    /// Passes on all that has been read. Gives whether that was the end of it.
    async fn on<R, W>(&mut self, input: &mut Input<R>, to: &mut W) -> Result<bool, Stop>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut framed = mem::take(&mut self.head);
        let is_over = loop {
            let ended = input.has_ended();
            match self
                .body
                .next(input.buffered(), ended)
                .map_err(Stop::Read)?
            {
                Piece::Data(length) => {
                    if self.chunked {
                        framed.extend_from_slice(format!("{length:x}\r\n").as_bytes());
                        framed.extend_from_slice(&input.buffered()[..length]);
                        framed.extend_from_slice(b"\r\n");
                    } else if framed.is_empty() {
                        let written = to.write_all(&input.buffered()[..length]).await;
                        written.map_err(|_| Stop::Write)?;
                        (self.count)(length);
                    } else {
                        framed.extend_from_slice(&input.buffered()[..length]);
                    }
                    input.consume(length);
                }
                Piece::Framing(length) => input.consume(length),
                Piece::Trailers(length) => {
                    let trailers = input.split_to(length);
                    let end = last_chunk(&trailers).ok_or(Stop::Read(BodyError::Trailers))?;
                    if self.chunked {
                        framed.extend_from_slice(&end);
                    }
                }
                Piece::More => break false,
                Piece::End => break true,
            }
        };
        send(to, &framed, &self.count)
            .await
            .map_err(|_| Stop::Write)?;
        Ok(is_over)
    }
}

pub(in crate::relay) async fn send<W>(
    to: &mut W,
    bytes: &[u8],
    count: &impl Fn(usize),
) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    to.write_all(bytes).await?;
    count(bytes.len());
    to.flush().await
}
