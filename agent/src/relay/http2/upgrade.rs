//! A request of HTTP/1.1 to a target that speaks HTTP/2, and its answer back (RFC 9113 section 8,
//! RFC 9112).

use std::future::{pending, poll_fn};
use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::uri::Scheme;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::exchange::{
    Answered, Asked, ExchangeError, Fault, Head, Heads, both, has_said_all, takes,
};
use super::pump::{release, send};
use super::request::{Request, size_of};
use super::translate::{chunk, last_chunk, trailers};
use crate::relay::Progress;
use crate::relay::http::{
    Answer, Body, BodyError, Client, ExchangeError as Http1Error, Framing, Input, Manner, Piece,
    Request as Http1Request, answer_head, send as write,
};
use crate::tunnel::http2::{Connection, Sent};

/// Bytes of an answer that are written at once, more or less.
const MAX_WRITE: usize = 16 * 1024;

/// A request of HTTP/1.1 that HTTP/2 has words for.
#[derive(Debug)]
pub struct Upgrade<'a> {
    request: &'a Http1Request,
    stream: Request,
    /// The client was told to go on with its body, or has begun by itself.
    continued: AtomicBool,
    /// Some of the body has been read.
    touched: AtomicBool,
}

/// Why there is no answer, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// It is the client's doing, or nothing moved.
    #[error(transparent)]
    Exchange(Http1Error),
    /// It is the target's.
    #[error(transparent)]
    Stream(ExchangeError),
}

type Stopped = Fault<Answered, Http1Error>;

impl<'a> Upgrade<'a> {
    /// `None`: the request can only be made in HTTP/1.1. It changes to another protocol, is for a
    /// proxy, tells no host, or has characters that HTTP/2 does not.
    pub fn of(request: &'a Http1Request) -> Option<Self> {
        Some(Self {
            stream: Request::of(request)?,
            request,
            continued: AtomicBool::new(false),
            touched: AtomicBool::new(false),
        })
    }

    /// Whether nothing of the body has been read, so that the request can be sent once more.
    pub fn is_untouched(&self) -> bool {
        !self.touched.load(Relaxed)
    }

    /// Sends the request on a stream of `target`, and its answer back; both bodies pass at the same
    /// time. `patience` is how long nothing may move. Says whether the client's connection can
    /// serve another. Dropped, it cancels the stream of the target.
    ///
    /// # Errors
    /// After one, [`Progress::status`] says whether the answer has begun to go to the client. If it
    /// has, its connection is to be reset; else another answer can be given, or the same request
    /// sent again if [`is_untouched`](Self::is_untouched).
    pub async fn exchange<R, W>(
        &self,
        client: Client<'_, R, W>,
        target: &Connection,
        scheme: &Scheme,
        patience: Duration,
        progress: &Progress,
    ) -> Result<bool, UpgradeError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let has_no_body = Body::new(self.request.framing()).is_over();
        let head = self.stream.forwarded(scheme);
        let size = size_of(head.headers()) + self.stream.size_of_target();
        let Sent {
            answer,
            body: mut to_target,
            open,
        } = target
            .send(head, has_no_body)
            .map_err(|error| UpgradeError::Stream(error.into()))?;
        progress.traffic.add_sent(size);
        let Client { input, output } = client;
        let is_over = CancellationToken::new();
        // The client does not send what is left of its body.
        let closes = CancellationToken::new();
        let up = async {
            if !has_no_body {
                let asking = self.ask(input, &mut to_target, progress);
                let asked = closes.run_until_cancelled(asking).await;
                if asked.unwrap_or(Ok(Asked::NoMore))? == Asked::NoMore {
                    return Ok(Asked::NoMore);
                }
            }
            match is_over.run_until_cancelled(gone(input)).await {
                Some(error) => Err(Fault::Client(Http1Error::Client(error))),
                None => Ok(Asked::All),
            }
        };
        let down = async {
            if self.answer(answer, output, progress).await? {
                closes.cancel();
            }
            is_over.cancel();
            Ok(())
        };
        let exchanged = tokio::select! {
            biased;
            asked = both(up, down) => asked,
            () = progress.silence(patience) => Err(Fault::Client(Http1Error::Silent(patience))),
        };
        match exchanged {
            Ok(asked) => Ok(asked == Asked::All && !closes.is_cancelled()),
            Err(Fault::Client(error)) => Err(UpgradeError::Exchange(error)),
            Err(Fault::Target(answered)) => Err(UpgradeError::Stream(answered.into_error(&open))),
        }
    }

    /// Sends the body of the request, as there is room for it.
    async fn ask<R: AsyncRead + Unpin>(
        &self,
        input: &mut Input<R>,
        to: &mut SendStream<Bytes>,
        progress: &Progress,
    ) -> Result<Asked, Stopped> {
        let traffic = &progress.traffic;
        let mut body = Body::new(self.request.framing());
        loop {
            let piece = body.next(input.buffered(), input.has_ended());
            let piece = piece.map_err(|error| Fault::Client(broken(error)))?;
            if !matches!(piece, Piece::More) {
                self.continued.store(true, Relaxed);
                self.touched.store(true, Relaxed);
            }
            let sent = match piece {
                Piece::Data(length) => {
                    let data = input.split_to(length);
                    let count = |taken| traffic.add_sent(taken);
                    let sent = send(to, data, body.is_over(), count).await;
                    if sent.is_ok() && !body.is_over() {
                        continue;
                    }
                    sent
                }
                Piece::Framing(length) => {
                    input.consume(length);
                    continue;
                }
                Piece::Trailers(length) => {
                    let trailers = trailers(&input.split_to(length))
                        .map_err(|_| Fault::Client(broken(BodyError::Trailers)))?;
                    if trailers.is_empty() {
                        continue;
                    }
                    traffic.add_sent(size_of(&trailers));
                    to.send_trailers(trailers)
                }
                Piece::More => {
                    tokio::select! {
                        biased;
                        _ = poll_fn(|cx| to.poll_reset(cx)) => return Ok(Asked::NoMore),
                        filled = input.fill() => {
                            filled.map_err(|error| Fault::Client(Http1Error::Client(error)))?;
                        }
                    }
                    continue;
                }
                Piece::End => to.send_data(Bytes::new(), true),
            };
            // What it has to say about that, if anything, comes the other way.
            return Ok(match sent {
                Ok(()) => Asked::All,
                Err(_) => Asked::NoMore,
            });
        }
    }

    /// Passes the answers on. Says whether the client's connection ends with the final one.
    async fn answer<W: AsyncWrite + Unpin>(
        &self,
        answer: ResponseFuture,
        output: &mut W,
        progress: &Progress,
    ) -> Result<bool, Stopped> {
        let request = self.request;
        let mut heads = Heads::new(answer);
        let (head, body) = loop {
            let head = poll_fn(|cx| heads.poll_next(cx, progress)).await;
            let head = match head.map_err(Fault::Target)? {
                Head::Final(answer) => break answer.into_parts(),
                Head::Interim(head) => head.into_parts().0,
            };
            if head.status.as_u16() == 100 {
                self.continued.store(true, Relaxed);
            }
            if request.minor_version > 0 {
                let head = answer_head(&Answer::of(&head, true), request, &Manner::INTERIM);
                to_client(output, &head, progress).await?;
            }
        };
        if !takes(&head, progress) {
            return Err(Fault::Target(Answered::Unwanted(head.status.as_u16())));
        }
        let answer = Answer::of(&head, body.is_end_stream());
        let framing = answer.framing(request.is_head());
        let manner = Manner::of(request, framing, self.continued.load(Relaxed));
        progress.begins(answer.status);
        let head_to_client = answer_head(&answer, request, &manner);
        if Body::new(framing).is_over() {
            to_client(output, &head_to_client, progress).await?;
        } else {
            let passing = Passing {
                body,
                length: head.headers.get(CONTENT_LENGTH),
                came: 0,
                out: head_to_client,
                chunked: manner.framing == Framing::Chunked,
            };
            passing.pass(output, progress).await?;
        }
        Ok(manner.close)
    }
}

/// The body of an answer on its way.
struct Passing<'a> {
    body: RecvStream,
    /// As the target says.
    length: Option<&'a http::HeaderValue>,
    /// Bytes of it so far.
    came: usize,
    /// What is to be written next.
    out: BytesMut,
    /// Whether it goes out in chunks.
    chunked: bool,
}

/// What there is of a body.
enum Next {
    Data(Bytes),
    End,
    /// Nothing at the moment.
    Later,
}

impl Passing<'_> {
    /// Passes it on to its end. Room is made for more only when what came has been written.
    async fn pass<W: AsyncWrite + Unpin>(
        mut self,
        output: &mut W,
        progress: &Progress,
    ) -> Result<(), Stopped> {
        let mut taken = 0;
        loop {
            let next = self.next().await?;
            if let Next::Data(data) = &next {
                taken += data.len();
                self.came += data.len();
                if self.chunked && !data.is_empty() {
                    chunk(&mut self.out, data);
                } else {
                    self.out.extend_from_slice(data);
                }
                if self.out.len() < MAX_WRITE {
                    continue;
                }
            }
            if matches!(next, Next::End) {
                let trailers = poll_fn(|cx| self.body.poll_trailers(cx)).await;
                let trailers = trailers.or_else(|error| self.end_of(error).map(|()| None))?;
                if self.chunked {
                    self.out.unsplit(last_chunk(trailers.unwrap_or_default()));
                }
            }
            to_client(output, &mem::take(&mut self.out), progress).await?;
            release(&mut self.body, mem::take(&mut taken));
            if matches!(next, Next::End) {
                return Ok(());
            }
        }
    }

    /// What comes next. Waits only while nothing is to be written.
    async fn next(&mut self) -> Result<Next, Stopped> {
        let has_more = !self.out.is_empty();
        let body = &mut self.body;
        let next = poll_fn(|cx| match body.poll_data(cx) {
            Poll::Pending if has_more => Poll::Ready(Ok(Next::Later)),
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(Ok(Next::End)),
            Poll::Ready(Some(data)) => Poll::Ready(data.map(Next::Data)),
        });
        match next.await {
            Ok(next) => Ok(next),
            Err(error) => self.end_of(error).map(|()| Next::End),
        }
    }

    /// Whether a body that ends so has come whole.
    fn end_of(&self, error: h2::Error) -> Result<(), Stopped> {
        if has_said_all(&error, self.length, self.came) {
            Ok(())
        } else {
            Err(Fault::Target(Answered::Failed(error)))
        }
    }
}

/// Waits until a client that has said all ends its connection: a stream cannot be ended any further,
/// so this means the same as a reset.
async fn gone<R: AsyncRead + Unpin>(input: &mut Input<R>) -> io::Error {
    while input.buffered().is_empty() {
        match input.fill().await {
            Ok(0) => {
                let kind = io::ErrorKind::UnexpectedEof;
                return io::Error::new(kind, "it ended before the answer");
            }
            Ok(_) => {}
            Err(error) => return error,
        }
    }
    // The next request is there.
    pending().await
}

fn broken(error: BodyError) -> Http1Error {
    match error {
        BodyError::CutShort => Http1Error::Client(io::ErrorKind::UnexpectedEof.into()),
        error => Http1Error::BrokenRequest(error),
    }
}

async fn to_client<W: AsyncWrite + Unpin>(
    output: &mut W,
    bytes: &[u8],
    progress: &Progress,
) -> Result<(), Stopped> {
    let written = write(output, bytes, &|bytes| progress.traffic.add_received(bytes)).await;
    written.map_err(|error| Fault::Client(Http1Error::Client(error)))
}

#[cfg(test)]
mod tests;
