//! What must hold for any bytes that a workload sends as requests of HTTP/1.1, and any that a target
//! answers with: what goes on is one message for each that came, and a second reader, who knows
//! nothing of ours, understands it just so.
//!
//! The first byte says whose bytes they are (bit 0: the target's), and in what pieces they come; of an
//! answer also what it answers.

use std::cell::LazyCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;
use underpass::relay::Progress;
use underpass::relay::http::{
    Answered, Client, ExchangeError, Framing, Input, Patience, Request, exchange, next_request,
};

/// Nothing here waits, so this is never over.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Sizes of the pieces.
const PIECES: [usize; 4] = [usize::MAX, 1, 7, 100];

/// More requests than an input has.
const MAX_REQUESTS: usize = 4096;

/// Checks the bytes of a workload or a target.
pub(crate) fn check(bytes: &[u8]) {
    thread_local! {
        static RUNTIME: LazyCell<Runtime> = const {
            LazyCell::new(|| {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                runtime.enable_time().build().expect("a runtime")
            })
        };
    }
    let Some((mode, bytes)) = bytes.split_first() else {
        return;
    };
    let piece = PIECES[usize::from(mode >> 1 & 3)];
    RUNTIME.with(|runtime| {
        if mode & 1 == 0 {
            runtime.block_on(requests(bytes, piece));
        } else {
            runtime.block_on(answer(bytes, piece, QUESTIONS[usize::from(mode >> 3 & 3)]));
        }
    });
}

/// What a second reader makes of a message.
#[derive(Debug, Eq, PartialEq)]
struct Message {
    start: String,
    body: Vec<u8>,
}

/// Reads a message as the plainest server would, the strictest way. `None`: it is not whole.
/// `has_body`: as the request or the status has it, whatever the fields say.
fn read(bytes: &[u8], has_body: bool, at_end: bool) -> Option<(Message, Vec<String>, usize)> {
    let head = bytes.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head - 4]).into_owned();
    let mut lines = text.split("\r\n").map(str::to_owned);
    let start = lines.next()?;
    let fields: Vec<String> = lines.collect();
    let values = |name: &str| -> Vec<String> {
        let lines = fields.iter().filter_map(|line| line.split_once(':'));
        let named = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.trim().to_owned()).collect()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "two framings: {text}");
    let rest = &bytes[head..];
    let (body, length) = match (lengths.first(), codings.first()) {
        _ if !has_body => (Vec::new(), 0),
        (Some(length), _) => {
            let length: usize = length.parse().expect("a length");
            (rest.get(..length)?.to_vec(), length)
        }
        (_, Some(coding)) => {
            assert_eq!(coding, "chunked");
            dechunked(rest)?
        }
        // A request without framing has no body; an answer goes up to the end.
        _ if start.starts_with("HTTP/") => {
            if !at_end {
                return None;
            }
            (rest.to_vec(), rest.len())
        }
        _ => (Vec::new(), 0),
    };
    Some((Message { start, body }, fields, head + length))
}

fn dechunked(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let line = bytes[at..].windows(2).position(|end| end == b"\r\n")?;
        let size = str::from_utf8(&bytes[at..at + line]).expect("a size");
        let size = usize::from_str_radix(size, 16).expect("a size, and no extension");
        at += line + 2;
        if size == 0 {
            break;
        }
        body.extend_from_slice(bytes.get(at..at + size)?);
        assert_eq!(bytes.get(at + size..at + size + 2)?, b"\r\n");
        at += size + 2;
    }
    loop {
        let line = bytes[at..].windows(2).position(|end| end == b"\r\n")?;
        at += line + 2;
        if line == 0 {
            return Some((body, at));
        }
    }
}

/// Requests, one after the other, to a target that answers each when it has it.
async fn requests(bytes: &[u8], piece: usize) {
    let mut input = Input::new(Stream::new(bytes, piece), Default::default());
    let patience = Patience {
        idle: PATIENCE,
        head: PATIENCE,
    };
    for _ in 0..MAX_REQUESTS {
        let request = match next_request(&mut input, &patience).await {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => return check_message(&error.to_string()),
        };
        let mut target = Target::default();
        let mut output = Vec::new();
        let outcome = run(&request, &mut input, &mut target, &mut output).await;
        if target.got.is_empty() {
            // It was the workload's end.
            assert!(outcome.is_err());
            return;
        }
        let Some((message, fields, length)) = read(&target.got, true, true) else {
            // Its body broke off, or breaks the rules, and the target never takes it for whole.
            let error = outcome.expect_err("a request that is not whole was answered");
            return check_message(&error.to_string());
        };
        assert_eq!(length, target.got.len(), "more than one request");
        let mut words = message.start.split(' ');
        assert_eq!(words.next(), Some(request.method()));
        assert!(
            words
                .nth(1)
                .is_some_and(|version| version.starts_with("HTTP/1."))
        );
        assert!(words.next().is_none(), "{}", message.start);
        for field in &fields {
            check_field(field);
        }
        match request.framing() {
            Framing::Length(length) => assert_eq!(message.body.len() as u64, length),
            Framing::Chunked => {}
            Framing::None | Framing::UntilClose => assert!(message.body.is_empty()),
        }
        if !outcome.is_ok_and(|answered| answered.client_persists) {
            return;
        }
    }
    panic!("more requests than bytes");
}

/// What an answer answers.
const QUESTIONS: [&str; 4] = [
    "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    "HEAD / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    "GET / HTTP/1.0\r\nHost: a.example\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhi",
];

/// An answer, and whatever follows it.
async fn answer(bytes: &[u8], piece: usize, question: &str) {
    let mut input = Input::new(Stream::endless(question.as_bytes()), Default::default());
    let patience = Patience {
        idle: PATIENCE,
        head: PATIENCE,
    };
    let request = next_request(&mut input, &patience).await;
    let request = request.expect("a request").expect("a request");
    let mut target = Target {
        answer: Some(Stream::new(bytes, piece)),
        got: Vec::new(),
    };
    let mut output = Vec::new();
    let outcome = run(&request, &mut input, &mut target, &mut output).await;
    let answered = match outcome {
        Ok(answered) => answered,
        Err(error) => {
            check_message(&error.to_string());
            return;
        }
    };
    assert!(answered.switched.is_none(), "nobody asked for that");
    let mut rest = &output[..];
    loop {
        let status = rest
            .get(9..12)
            .and_then(|status| str::from_utf8(status).ok());
        let status: u16 = status.expect("a status").parse().expect("a number");
        assert!(rest.starts_with(b"HTTP/1.1 "));
        let has_body = request.method() != "HEAD" && !matches!(status, 100..=199 | 204 | 304);
        let read = read(rest, has_body, !answered.client_persists);
        let (_, fields, length) = read.expect("a whole answer");
        for field in &fields {
            check_field(field);
        }
        rest = &rest[length..];
        if status >= 200 {
            break;
        }
        assert!(
            !question.contains("HTTP/1.0"),
            "interim answers to HTTP/1.0"
        );
    }
    assert!(rest.is_empty(), "more than one answer");
}

/// A field has a name that is a token, and stays on its line.
fn check_field(field: &str) {
    let (name, value) = field.split_once(':').expect("a field");
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    assert!(!name.is_empty() && name.chars().all(is_token), "{field:?}");
    assert!(!value.contains(['\r', '\n', '\0']), "{field:?}");
}

/// What goes to logs and to workloads is short, and one line.
fn check_message(text: &str) {
    assert!(text.len() <= 500, "{} bytes: {text}", text.len());
    assert!(!text.contains(['\n', '\r', '\x1b']), "{text:?}");
}

async fn run(
    request: &Request,
    input: &mut Input<Stream>,
    target: &mut Target,
    output: &mut Vec<u8>,
) -> Result<Answered, ExchangeError> {
    let client = Client { input, output };
    let early = Default::default();
    let progress = Progress::default();
    let last = request.is_last();
    exchange(request, client, target, early, last, PATIENCE, &progress).await
}

/// Bytes in pieces, and their end.
#[derive(Debug)]
struct Stream {
    unsent: Vec<u8>,
    at: usize,
    piece: usize,
    ends: bool,
}

impl Stream {
    fn new(bytes: &[u8], piece: usize) -> Self {
        Self {
            unsent: bytes.to_vec(),
            at: 0,
            piece,
            ends: true,
        }
    }

    /// It has no end.
    fn endless(bytes: &[u8]) -> Self {
        Self {
            ends: false,
            ..Self::new(bytes, usize::MAX)
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = self.unsent.len() - self.at;
        let length = left.min(self.piece).min(buf.remaining());
        if left == 0 && !self.ends {
            // Nobody wakes it: what matters is the other direction.
            return Poll::Pending;
        }
        buf.put_slice(&self.unsent[self.at..self.at + length]);
        self.at += length;
        Poll::Ready(Ok(()))
    }
}

/// Takes what is sent. Its answer is there from the beginning, or comes when a request is whole.
#[derive(Debug, Default)]
struct Target {
    answer: Option<Stream>,
    got: Vec<u8>,
}

impl AsyncRead for Target {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(answer) = &mut self.answer {
            return Pin::new(answer).poll_read(cx, buf);
        }
        if self.got.is_empty() || read(&self.got, true, true).is_none() {
            // It is asked again whenever something moves.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        self.answer = Some(Stream::endless(answer));
        self.poll_read(cx, buf)
    }
}

impl AsyncWrite for Target {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.got.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
