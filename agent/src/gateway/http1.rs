//! Clients that speak HTTP/1.
//!
//! They are read as workloads are, by [`relay::http`](crate::relay::http): what two readers could
//! understand in two ways is refused, and is the last on its connection.

use std::future::pending;
use std::io;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue};
use http::{HeaderName, Request as Head, Response, StatusCode};
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::time::timeout;

use super::accept::Client;
use super::access::Record;
use super::metrics::Denial;
use super::refusal::Refusal;
use super::request::{Admission, Opened, Wish, open};
use super::stream::{ClientStream, End as _, Upstream};
use super::{Control, MAX_HEAD, Shared, tunnel};
use crate::inspect::InspectError;
use crate::name::Target;
use crate::relay::http::{
    Body, Client as ClientEnd, ExchangeError, Input, Patience, Request, exchange, next_request,
};
use crate::sockets::Carrier as _;

/// Serves a client until it goes or everything is to stop.
pub(super) async fn serve(
    stream: ClientStream,
    client: Client,
    admission: Admission,
    shared: &Shared,
    control: &Control,
) {
    let (from, output) = split(stream);
    let mut session = Session {
        input: Input::new(from, Bytes::new()),
        output,
        client,
        admission,
        shared,
        control,
    };
    let after = loop {
        let after = tokio::select! {
            biased;
            after = session.next() => after,
            () = control.stopped() => After::Abort,
        };
        if !matches!(after, After::Next) {
            break after;
        }
    };
    match after {
        After::Next => {}
        After::Close => session.close().await,
        After::Abort => session.into_stream().0.abort(),
        After::Tunnel(tunnel) => {
            let Tunnel {
                upstream,
                record,
                version,
            } = *tunnel;
            let (client, ahead) = session.into_stream();
            // The relay itself sees when the client's connection breaks.
            let broken = pending::<&str>();
            let rest = (shared, control);
            tunnel::run(client, ahead, upstream, record, version, broken, rest).await;
        }
    }
}

/// The connection of a client.
struct Session<'a> {
    input: Input<ReadHalf<ClientStream>>,
    output: WriteHalf<ClientStream>,
    client: Client,
    admission: Admission,
    shared: &'a Shared,
    control: &'a Control,
}

/// What comes after a request.
enum After {
    /// Another.
    Next,
    /// The end of the connection.
    Close,
    /// Its end by a reset: the client must not take what it has for the whole.
    Abort,
    /// Bytes both ways.
    Tunnel(Box<Tunnel>),
}

/// A tunnel of which the client has been told that it stands.
struct Tunnel {
    upstream: Upstream,
    record: Record,
    version: http::Version,
}

impl Session<'_> {
    /// Serves the next request, if one comes.
    async fn next(&mut self) -> After {
        let time = self.shared.head_timeout;
        let patience = Patience {
            idle: time,
            head: time,
        };
        let request = tokio::select! {
            biased;
            () = self.control.drained() => return After::Close,
            request = timeout(time, next_request(&mut self.input, &patience)) => request,
        };
        match request {
            Err(_) | Ok(Ok(None) | Err(InspectError::HeadTimeout(_))) => After::Close,
            Ok(Ok(Some(request))) => Box::pin(self.serve(&request)).await,
            Ok(Err(error)) => self.reject(&error).await,
        }
    }

    /// Answers what is no request.
    async fn reject(&mut self, error: &InspectError) -> After {
        let Some(status) = error.status() else {
            tracing::debug!(client = %self.client.addr, %error, "a client's connection failed");
            return After::Close;
        };
        let mut record = Record::unreadable(&self.shared.metrics, self.client);
        let refusal = Refusal::new(status, error.to_string()).because(Denial::Malformed);
        self.refuse(refusal, &mut record, (true, false)).await
    }

    async fn serve(&mut self, request: &Request) -> After {
        let head = match head(request) {
            Ok(head) => head,
            Err(error) => return self.reject(&error).await,
        };
        let mut record = Record::new(&self.shared.metrics, self.client, &head);
        let gone = match self.open(request, &head, &mut record).await {
            Ok(Opened {
                wish: Wish::Tunnel,
                upstream,
                ..
            }) => return self.tunnel(upstream, record, request.version()).await,
            Ok(Opened {
                target, upstream, ..
            }) => match self.forward(request, &target, upstream, &mut record).await {
                Ok(after) => return after,
                Err(gone) => gone,
            },
            Err(gone) => gone,
        };
        match gone {
            Gone::Refused(refusal) => {
                let closes = request.is_last()
                    || !Body::new(request.framing()).is_over()
                    || refusal.is_of_malformed()
                    || self.admission == Admission::TooMany;
                let manner = (closes, request.method() == "HEAD");
                self.refuse(refusal, &mut record, manner).await
            }
            Gone::Broken(reason) => {
                record.failed(reason);
                After::Abort
            }
        }
    }

    /// Connects to what `request` is about. Nothing of a body that breaks the rules as far as it has
    /// come by then goes there.
    async fn open(
        &mut self,
        request: &Request,
        head: &Head<()>,
        record: &mut Record,
    ) -> Result<Opened, Gone> {
        self.check(request)?;
        let opened = tokio::select! {
            biased;
            opened = open(self.shared, self.admission, head, record) => opened?,
            error = broken(&mut self.input) => {
                return Err(Gone::client(&error));
            }
        };
        self.check(request)?;
        Ok(opened)
    }

    fn check(&self, request: &Request) -> Result<(), Refusal> {
        let body = Body::new(request.framing());
        let checked = body.check(self.input.buffered());
        checked.map_err(|error| Refusal::malformed(error.to_string()))
    }

    /// Tells the client that its tunnel stands.
    async fn tunnel(
        &mut self,
        mut upstream: Upstream,
        mut record: Record,
        version: http::Version,
    ) -> After {
        record.code = Some(StatusCode::OK);
        if let Err(error) = self.output.write_all(ESTABLISHED).await {
            upstream.stream.abort_on_drop();
            record.failed(format_args!(
                "the client went away before the tunnel stood: {error}"
            ));
            return After::Abort;
        }
        After::Tunnel(Box::new(Tunnel {
            upstream,
            record,
            version,
        }))
    }

    /// Sends `request` to `target`, over a connection that serves this one only, and its answer back.
    async fn forward(
        &mut self,
        request: &Request,
        target: &Target,
        mut upstream: Upstream,
        record: &mut Record,
    ) -> Result<After, Gone> {
        // Until the end has been seen.
        record.failed("the client went away before the end of the answer");
        let request = request.for_target(target);
        let client = ClientEnd {
            input: &mut self.input,
            output: &mut self.output,
        };
        let progress = &record.progress;
        // Whatever breaks it off must not look like the end of the request.
        upstream.stream.abort_on_drop();
        let exchanged = exchange(
            &request,
            client,
            &mut upstream.stream,
            upstream.early,
            true,
            self.shared.exchange_timeout,
            progress,
        );
        match exchanged.await {
            Ok(answered) => {
                record.succeeded();
                upstream.stream.finish_on_drop();
                Ok(if answered.client_persists {
                    After::Next
                } else {
                    After::Close
                })
            }
            Err(ExchangeError::Client(error)) => Err(Gone::client(&error)),
            Err(error) if progress.status().is_some() => Err(Gone::Broken(error.to_string())),
            Err(error) => Err(refusal(&error, target).into()),
        }
    }

    /// Gives an answer of the gateway's own. `closes`: it is the last; `head_only`: that to HEAD.
    async fn refuse(
        &mut self,
        refusal: Refusal,
        record: &mut Record,
        (closes, head_only): (bool, bool),
    ) -> After {
        let answer = written(refusal.into_response(record), closes, head_only);
        let said = async {
            self.output.write_all(&answer).await?;
            self.output.flush().await
        };
        match said.await {
            Ok(()) if !closes => After::Next,
            Ok(()) => After::Close,
            Err(_) => After::Abort,
        }
    }

    /// Ends the connection, and lets the client read what it was told: a reset, because it has sent
    /// more meanwhile, could overtake that.
    async fn close(mut self) {
        let closing = async {
            self.output.shutdown().await?;
            while self.input.fill().await? > 0 {
                self.input.take();
            }
            io::Result::Ok(())
        };
        // A client that does not listen has had its answer.
        let _ = timeout(LAST_WORDS, closing).await;
    }

    /// The connection, and what has been read of it.
    fn into_stream(self) -> (ClientStream, Bytes) {
        let (from, ahead) = self.input.into_parts();
        (from.unsplit(self.output), ahead)
    }
}

/// Why a request gets nothing of a target, or not all of it.
enum Gone {
    /// The client is told so.
    Refused(Refusal),
    /// There is nobody left to be told, or it is too late.
    Broken(String),
}

impl Gone {
    fn client(error: &io::Error) -> Self {
        Self::Broken(format!("the client's connection failed: {error}"))
    }
}

impl From<Refusal> for Gone {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Why there is no answer of `target`.
fn refusal(error: &ExchangeError, target: &Target) -> Refusal {
    let status = match error {
        ExchangeError::BrokenRequest(_) => return Refusal::malformed(error.to_string()),
        ExchangeError::Silent(_) => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    };
    Refusal::new(status, format!("{target}: {error}"))
}

/// Waits until the client's connection breaks, and reads ahead meanwhile, as far as there is room.
async fn broken(input: &mut Input<ReadHalf<ClientStream>>) -> io::Error {
    while input.buffered().len() < MAX_HEAD && !input.has_ended() {
        if let Err(error) = input.fill().await {
            return error;
        }
    }
    pending().await
}

/// The head of a request in the types that both versions of HTTP share.
fn head(request: &Request) -> Result<Head<()>, InspectError> {
    let builder = Head::builder()
        .method(request.method())
        .uri(request.target())
        .version(request.version());
    let Ok(mut head) = builder.body(()) else {
        return Err(InspectError::Malformed("the request target is no URI"));
    };
    for (name, value) in request.fields() {
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        else {
            return Err(InspectError::Malformed("a field is none"));
        };
        head.headers_mut().append(name, value);
    }
    Ok(head)
}

/// An answer of the gateway's own as HTTP/1.1 has it.
fn written(answer: Response<Bytes>, closes: bool, head_only: bool) -> BytesMut {
    let (mut head, text) = answer.into_parts();
    head.headers.insert(CONTENT_LENGTH, text.len().into());
    if closes {
        head.headers
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let mut written = BytesMut::from(format!("HTTP/1.1 {}\r\n", head.status).as_bytes());
    for (name, value) in &head.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            written.put_slice(part);
        }
    }
    written.put_slice(b"\r\n");
    if !head_only {
        written.put_slice(&text);
    }
    written
}

const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// How long a client may take to read the last answer.
const LAST_WORDS: Duration = Duration::from_secs(1);
