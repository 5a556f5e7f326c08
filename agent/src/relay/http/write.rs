//! The heads that go on, field by field (RFC 9110 section 7.6.1).

use bytes::{BufMut, Bytes, BytesMut};
use http::StatusCode;

use super::body::MAX_TRAILER_FIELDS;
use super::head::{Answer, Fields, Framing, Request};

/// What concerns two neighbours only, beside what Connection lists. Of those, what frames the body
/// is written anew.
pub(in crate::relay) const BETWEEN_NEIGHBOURS: [&str; 7] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// What a trailer section must not change (RFC 9110 section 6.5.1).
const NO_TRAILERS: [&str; 4] = ["authorization", "content-encoding", "host", "trailer"];

/// The head of `request` as the target gets it; `last`: there will be no other request on its
/// connection. Nothing is added that the workload has not said.
pub(super) fn request_head(request: &Request, last: bool) -> BytesMut {
    let mut head = BytesMut::with_capacity(1024);
    head.extend_from_slice(&request.method);
    head.put_u8(b' ');
    head.extend_from_slice(&request.target);
    // A proxy speaks for itself (RFC 9110 section 6.2).
    let is_old = request.minor_version == 0 && !request.from_proxy;
    head.extend_from_slice(if is_old {
        b" HTTP/1.0\r\n"
    } else {
        b" HTTP/1.1\r\n"
    });
    let fields = &request.fields;
    pass_on(&mut head, fields);
    for (name, value) in request.for_proxy.iter().flat_map(|fields| fields.iter()) {
        field(&mut head, name.as_ref(), value.as_bytes());
    }
    frame(&mut head, request.framing());
    let mut options: Vec<&[u8]> = Vec::new();
    if let Some(protocol) = request.upgrade() {
        field(&mut head, b"Upgrade", protocol);
        options.push(b"Upgrade");
    }
    if fields.lists("te", "trailers") {
        // Trailers pass, so whoever takes them may say so for both legs.
        field(&mut head, b"TE", b"trailers");
        options.push(b"TE");
    }
    if last && !is_old {
        options.push(b"close");
    }
    if !options.is_empty() {
        field(&mut head, b"Connection", &options.join(&b", "[..]));
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// How an answer goes on.
#[derive(Clone, Copy, Debug)]
pub(in crate::relay) struct Manner {
    /// How its body is delimited then.
    pub(in crate::relay) framing: Framing,
    /// Whether the connection ends with it.
    pub(in crate::relay) close: bool,
    /// Whether the connection becomes a stream of bytes.
    pub(super) switches: bool,
}

impl Manner {
    /// Of an answer that another follows.
    pub(in crate::relay) const INTERIM: Self = Self {
        framing: Framing::None,
        close: false,
        switches: false,
    };

    /// Of the answer to `request` that came with this framing. `continued`: the client was told to
    /// go on with its body, or has begun by itself.
    pub(in crate::relay) fn of(request: &Request, framing: Framing, continued: bool) -> Self {
        Self {
            framing: match framing {
                // A client of HTTP/1.0 knows no chunks.
                Framing::Chunked if request.minor_version == 0 => Framing::UntilClose,
                framing => framing,
            },
            close: request.is_last()
                || framing == Framing::UntilClose
                || (request.expects_continue() && !continued),
            switches: false,
        }
    }

    /// Of the answer after which both connections are a stream of bytes.
    pub(super) const SWITCHES: Self = Self {
        switches: true,
        ..Self::INTERIM
    };
}

/// The head of an answer as the workload gets it.
pub(in crate::relay) fn answer_head(
    answer: &Answer,
    request: &Request,
    manner: &Manner,
) -> BytesMut {
    let mut head = BytesMut::with_capacity(1024);
    head.extend_from_slice(format!("HTTP/1.1 {} ", answer.status).as_bytes());
    head.extend_from_slice(&answer.reason);
    head.extend_from_slice(b"\r\n");
    pass_on(&mut head, &answer.fields);
    match manner.framing {
        Framing::None if !manner.switches && (request.is_head() || answer.status == 304) => {
            // It tells how long the body would be.
            let length = answer.fields.values("content-length").next();
            if let Some(length) = length {
                field(&mut head, b"Content-Length", length);
            }
        }
        framing => frame(&mut head, framing),
    }
    let mut options: Vec<&[u8]> = Vec::new();
    if matches!(answer.status, 101 | 426) {
        for protocol in answer.fields.values("upgrade") {
            field(&mut head, b"Upgrade", protocol);
        }
        options.push(b"Upgrade");
    }
    if manner.close {
        options.push(b"close");
    }
    if !options.is_empty() {
        field(&mut head, b"Connection", &options.join(&b", "[..]));
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// The end of a chunked body with these trailers, which end with an empty line. `None`: they are
/// no fields.
pub(super) fn last_chunk(trailers: &Bytes) -> Option<BytesMut> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    let parsed = httparse::parse_headers(trailers, &mut fields);
    let Ok(httparse::Status::Complete((_, fields))) = parsed else {
        return None;
    };
    let mut end = BytesMut::from(&b"0\r\n"[..]);
    let fields = Fields::new(trailers, fields);
    for one in fields.iter() {
        if !BETWEEN_NEIGHBOURS
            .iter()
            .chain(&NO_TRAILERS)
            .any(|name| one.is(name))
        {
            field(&mut end, &one.name, &one.value);
        }
    }
    end.extend_from_slice(b"\r\n");
    Some(end)
}

/// An answer of our own, whole: `reason` for people, and the id under which the log has it.
pub fn own_answer(
    status: StatusCode,
    reason: &str,
    id: &str,
    head_only: bool,
    close: bool,
) -> Bytes {
    let body = format!("underpass: {reason}\nrequest id: {id}\n");
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n",
        body.len()
    );
    if close {
        answer.push_str("Connection: close\r\n");
    }
    answer.push_str("\r\n");
    if !head_only {
        answer.push_str(&body);
    }
    answer.into()
}

fn pass_on(head: &mut BytesMut, fields: &Fields) {
    for one in fields.iter() {
        let name = str::from_utf8(&one.name).unwrap_or_default();
        let stays =
            BETWEEN_NEIGHBOURS.iter().any(|own| one.is(own)) || fields.lists("connection", name);
        if !stays {
            field(head, &one.name, &one.value);
        }
    }
}

fn frame(head: &mut BytesMut, framing: Framing) {
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Length(length) => {
            field(head, b"Content-Length", length.to_string().as_bytes());
        }
        Framing::Chunked => field(head, b"Transfer-Encoding", b"chunked"),
    }
}

fn field(head: &mut BytesMut, name: &[u8], value: &[u8]) {
    head.extend_from_slice(name);
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}
