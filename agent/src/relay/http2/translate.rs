//! A request of HTTP/2 to a target that speaks HTTP/1.1, and its answer back (RFC 9113 section 8,
//! RFC 9112).

use std::future::poll_fn;
use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, COOKIE, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::answer::Client;
use super::exchange::{Asked, ExchangeError, Fault, MAX_INTERIM, begins, both, ended, takes};
use super::messages::Messages;
use super::pump::{clean, release, send};
use super::request::{Request, size_of};
use crate::relay::Progress;
use crate::relay::http::{
    Answer, BETWEEN_NEIGHBOURS, Body, BodyError, ExchangeError as Http1Error, Fields, Framing,
    Input, Piece, read_answer,
};

/// How the body of a request goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Manner {
    /// There is none.
    None,
    /// As long as Content-Length says, to which the library holds the client.
    Length(u64),
    Chunked,
}

impl Manner {
    fn of(request: &Request, client: &Client) -> Self {
        match request.length {
            Some(length) => Self::Length(length),
            None if client.has_no_body() => match *request.method() {
                // Whoever gets one of these may wait for a body (RFC 9110 section 8.6).
                Method::POST | Method::PUT | Method::PATCH => Self::Length(0),
                _ => Self::None,
            },
            None => Self::Chunked,
        }
    }
}

/// Sends `request`, which is not CONNECT, to `upstream`, of which `early` has been read, and its answer back; both bodies
/// pass at the same time. Says whether `upstream` can serve another.
///
/// # Errors
/// As of [`exchange`](super::exchange()). `upstream` is of no use then.
pub async fn translate<U>(
    request: &Request,
    client: &mut Client,
    upstream: &mut U,
    early: Bytes,
    progress: &Progress,
) -> Result<bool, ExchangeError>
where
    U: AsyncRead + AsyncWrite + Unpin,
{
    let manner = Manner::of(request, client);
    let (from_target, mut to_target) = tokio::io::split(upstream);
    let mut from_target = Input::new(from_target, early);
    let Client {
        body,
        respond,
        answer: begun,
        touched,
    } = client;
    let mut persists = false;
    let up = ask(request, manner, (body, touched), &mut to_target, progress);
    let down = async {
        let (answer, framing) = head(request, &mut from_target, respond, progress).await?;
        persists = !answer.is_last() && framing != Framing::UntilClose;
        let ends = Body::new(framing).is_over();
        let head = answer_head(request, &answer, framing).map_err(Fault::Target)?;
        let (head, ()) = head.into_parts();
        if !takes(&head, progress) {
            return Err(Fault::Target(ExchangeError::Unwanted(answer.status)));
        }
        begins(&head, progress);
        let sent = respond.send_response(Response::from_parts(head, ()), ends);
        let to_client = begun.insert(sent.map_err(Fault::Client)?);
        if ends {
            return Ok(());
        }
        let messages = Messages::of(request);
        pass(
            Body::new(framing),
            messages,
            &mut from_target,
            to_client,
            progress,
        )
        .await
    };
    let asked = match both(up, down).await {
        Ok(asked) => asked,
        Err(Fault::Client(error)) => return Err(ExchangeError::client(error)),
        Err(Fault::Target(error)) => return Err(error),
    };
    // Nobody has asked for more.
    Ok(persists && asked == Asked::All && from_target.buffered().is_empty())
}

/// Sends the request.
async fn ask<W>(
    request: &Request,
    manner: Manner,
    (body, touched): (&mut RecvStream, &mut bool),
    to: &mut W,
    progress: &Progress,
) -> Result<Asked, Fault<ExchangeError>>
where
    W: AsyncWrite + Unpin,
{
    let head = request_head(request, manner);
    if write(to, &head, progress).await.is_err() {
        return Ok(Asked::NoMore);
    }
    if manner == Manner::None {
        return Ok(Asked::All);
    }
    let mut messages = Messages::of(request);
    while let Some(data) = poll_fn(|cx| body.poll_data(cx)).await {
        let data = data.map_err(Fault::Client)?;
        *touched = true;
        let length = data.len();
        let written = match manner {
            _ if data.is_empty() => Ok(()),
            Manner::Chunked => {
                let mut framed = BytesMut::with_capacity(length + 16);
                chunk(&mut framed, &data);
                write(to, &framed, progress).await
            }
            Manner::None | Manner::Length(_) => write(to, &data, progress).await,
        };
        if written.is_err() {
            return Ok(Asked::NoMore);
        }
        progress.add_sent_messages(messages.pass(&data));
        release(body, length);
    }
    let trailers = poll_fn(|cx| body.poll_trailers(cx)).await;
    let trailers = trailers.map_err(Fault::Client)?;
    if manner == Manner::Chunked {
        let end = last_chunk(trailers.unwrap_or_default());
        if write(to, &end, progress).await.is_err() {
            return Ok(Asked::NoMore);
        }
    }
    Ok(Asked::All)
}

/// The head of the request as HTTP/1.1 has it. Names are in small letters, as they came.
fn request_head(request: &Request, manner: Manner) -> BytesMut {
    let mut head = BytesMut::with_capacity(1024);
    head.extend_from_slice(request.method.as_str().as_bytes());
    head.put_u8(b' ');
    let path = request.path.as_ref().map_or("", PathAndQuery::as_str);
    head.extend_from_slice(path.as_bytes());
    head.extend_from_slice(b" HTTP/1.1\r\n");
    field(&mut head, b"host", request.authority().as_bytes());
    for (name, value) in &request.fields {
        if *name != COOKIE {
            field(&mut head, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    // A client may have cut it into pieces, for compression (RFC 9113 section 8.2.3).
    let cookies: Vec<&[u8]> = request
        .fields
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if !cookies.is_empty() {
        field(&mut head, b"cookie", &cookies.join(&b"; "[..]));
    }
    match manner {
        Manner::None => {}
        Manner::Length(length) => {
            field(&mut head, b"content-length", length.to_string().as_bytes());
        }
        Manner::Chunked => field(&mut head, b"transfer-encoding", b"chunked"),
    }
    if request.takes_trailers {
        field(&mut head, b"te", b"trailers");
        field(&mut head, b"connection", b"TE");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// One chunk of a body.
pub(super) fn chunk(framed: &mut BytesMut, data: &[u8]) {
    framed.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
    framed.extend_from_slice(data);
    framed.extend_from_slice(b"\r\n");
}

/// The end of a chunked body with these trailers.
pub(super) fn last_chunk(mut trailers: HeaderMap) -> BytesMut {
    clean(&mut trailers);
    let mut end = BytesMut::from(&b"0\r\n"[..]);
    for (name, value) in &trailers {
        field(&mut end, name.as_str().as_bytes(), value.as_bytes());
    }
    end.extend_from_slice(b"\r\n");
    end
}

fn field(head: &mut BytesMut, name: &[u8], value: &[u8]) {
    head.extend_from_slice(name);
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

async fn write<W: AsyncWrite + Unpin>(
    to: &mut W,
    bytes: &[u8],
    progress: &Progress,
) -> io::Result<()> {
    to.write_all(bytes).await?;
    progress.traffic.add_sent(bytes.len());
    to.flush().await
}

/// The head of the final answer, and how its body is delimited. Interim ones go to the client.
async fn head<R: AsyncRead + Unpin>(
    request: &Request,
    from: &mut Input<R>,
    respond: &mut SendResponse<Bytes>,
    progress: &Progress,
) -> Result<(Answer, Framing), Fault<ExchangeError>> {
    let to_head = *request.method() == Method::HEAD;
    for _ in 0..=MAX_INTERIM {
        let mut answer = tokio::select! {
            biased;
            answer = read_answer(from, progress) => answer.map_err(|error| {
                Fault::Target(match error {
                    Http1Error::BadAnswer(reason) => bad(reason),
                    Http1Error::NoAnswer(error) => ExchangeError::NoAnswer(error),
                    error => ExchangeError::BadAnswer(error.to_string()),
                })
            })?,
            reset = poll_fn(|cx| respond.poll_reset(cx)) => {
                let error = reset.map_or_else(|error| error, h2::Error::from);
                return Err(Fault::Client(error));
            }
        };
        if request.from_proxy {
            answer.leaves_proxy();
        }
        match answer.status {
            101 => {
                let reason = "it changes to another protocol, which nobody asked for";
                return Err(Fault::Target(bad(reason)));
            }
            100..=199 => {
                let head = answer_head(request, &answer, Framing::None).map_err(Fault::Target)?;
                let size = size_of(head.headers());
                progress.traffic.add_received(size);
                respond.send_informational(head).map_err(Fault::Client)?;
            }
            _ => {
                let framing = answer.framing(to_head);
                return Ok((answer, framing));
            }
        }
    }
    Err(Fault::Target(bad("there are too many interim answers")))
}

fn bad(reason: &str) -> ExchangeError {
    ExchangeError::BadAnswer(reason.to_owned())
}

/// The head of an answer as HTTP/2 has it.
fn answer_head(
    request: &Request,
    answer: &Answer,
    framing: Framing,
) -> Result<Response<()>, ExchangeError> {
    let mut head = Response::new(());
    *head.status_mut() =
        StatusCode::from_u16(answer.status).map_err(|_| bad("its status is none"))?;
    let fields = headers(&answer.fields)?;
    *head.headers_mut() = fields;
    let has_no_body = *request.method() == Method::HEAD || answer.status == 304;
    match framing {
        Framing::Length(length) => {
            head.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        Framing::None if has_no_body => {
            // It tells how long the body would be.
            let mut lengths = answer
                .fields
                .iter()
                .filter(|field| field.is("content-length"));
            if let Some(length) = lengths.next() {
                let length = HeaderValue::from_bytes(&length.value)
                    .map_err(|_| bad("Content-Length is no number"))?;
                head.headers_mut().insert(CONTENT_LENGTH, length);
            }
        }
        _ => {}
    }
    Ok(head)
}

/// What of these fields is for everybody (RFC 9110 section 7.6.1).
pub(super) fn headers(fields: &Fields) -> Result<HeaderMap, ExchangeError> {
    let mut headers = HeaderMap::new();
    for one in fields.iter() {
        let name = str::from_utf8(&one.name).unwrap_or_default();
        let stays =
            BETWEEN_NEIGHBOURS.iter().any(|own| one.is(own)) || fields.lists("connection", name);
        if !stays {
            let name =
                HeaderName::from_bytes(&one.name).map_err(|_| bad("a field name is none"))?;
            let value = HeaderValue::from_maybe_shared(one.value.clone())
                .map_err(|_| bad("a field value holds a control character"))?;
            headers.append(name, value);
        }
    }
    Ok(headers)
}

/// Passes the body of an answer on.
async fn pass<R: AsyncRead + Unpin>(
    mut body: Body,
    mut messages: Messages,
    from: &mut Input<R>,
    to: &mut SendStream<Bytes>,
    progress: &Progress,
) -> Result<(), Fault<ExchangeError>> {
    loop {
        let has_ended = from.has_ended();
        let piece = body.next(from.buffered(), has_ended).map_err(|error| {
            Fault::Target(match error {
                BodyError::CutShort => ExchangeError::BrokeOff(io::ErrorKind::UnexpectedEof.into()),
                error => ExchangeError::BrokenAnswer(error),
            })
        })?;
        match piece {
            Piece::Data(length) => {
                let data = from.split_to(length);
                progress.add_received_messages(messages.pass(&data));
                progress.traffic.add_received(length);
                let ends = body.is_over();
                send(to, data, ends, |_| {}).await.map_err(Fault::Client)?;
                if ends {
                    return Ok(());
                }
            }
            Piece::Framing(length) => from.consume(length),
            Piece::Trailers(length) => {
                let trailers = trailers(&from.split_to(length)).map_err(Fault::Target)?;
                if !trailers.is_empty() {
                    ended(&trailers, progress);
                    return to.send_trailers(trailers).map_err(Fault::Client);
                }
            }
            Piece::More => fill(from, to).await?,
            Piece::End => return to.send_data(Bytes::new(), true).map_err(Fault::Client),
        }
    }
}

/// Reads more of the answer, unless the client wants no more.
async fn fill<R: AsyncRead + Unpin>(
    from: &mut Input<R>,
    to: &mut SendStream<Bytes>,
) -> Result<(), Fault<ExchangeError>> {
    tokio::select! {
        biased;
        filled = from.fill() => match filled {
            Ok(_) => Ok(()),
            Err(error) => Err(Fault::Target(ExchangeError::BrokeOff(error))),
        },
        reset = poll_fn(|cx| to.poll_reset(cx)) => {
            let error = reset.map_or_else(|error| error, h2::Error::from);
            Err(Fault::Client(error))
        }
    }
}

/// Trailers of HTTP/1.1, with their empty line, as HTTP/2 has them.
pub(super) fn trailers(raw: &Bytes) -> Result<HeaderMap, ExchangeError> {
    let wrong = || ExchangeError::BrokenAnswer(BodyError::Trailers);
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(raw, &mut fields)
    else {
        return Err(wrong());
    };
    let mut trailers = headers(&Fields::new(raw, fields)).map_err(|_| wrong())?;
    clean(&mut trailers);
    Ok(trailers)
}
