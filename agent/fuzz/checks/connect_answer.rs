//! What must hold for any bytes that a proxy may answer CONNECT with.

use std::cell::LazyCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;
use tokio::time::Instant;
use underpass::tunnel::answer::{Answer, BadAnswer, BodyLength, MAX_HEAD, parse};
use underpass::tunnel::connect::{ExchangeError, Refusal, exchange};

/// Checks what a proxy sends before it closes the connection.
pub(crate) fn check(bytes: &[u8]) {
    let whole = parse(bytes);
    match &whole {
        Ok(Some(answer)) => check_answer(bytes, answer),
        Ok(None) => assert!(end_of_head(bytes).is_none() && bytes.len() < MAX_HEAD),
        Err(error) => check_message(&error.to_string()),
    }
    if !matches!(whole, Ok(None)) {
        let longer = [bytes, b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"].concat();
        let more = parse(&longer);
        assert_eq!(without_sample(more), without_sample(whole), "with more");
    }
    check_pieces(bytes);
}

fn check_answer(bytes: &[u8], answer: &Answer) {
    assert_eq!(Some(answer.len), end_of_head(bytes));
    let head = &bytes[..answer.len];
    assert!(head.starts_with(b"HTTP/1.1 ") || head.starts_with(b"HTTP/1.0 "));
    assert_eq!(
        str::from_utf8(&head[9..12])
            .ok()
            .and_then(|code| code.parse().ok()),
        Some(answer.code)
    );
    assert!((100..1000).contains(&answer.code));
    check_message(&answer.reason);
    assert!(answer.schemes.len() <= 8);
    for scheme in &answer.schemes {
        check_message(scheme);
        assert!(
            !scheme.is_empty() && !scheme.contains([' ', ',', '=']),
            "{scheme}"
        );
    }
    let says = |name: &[u8]| {
        let mut lines = head.split(|byte| *byte == b'\n');
        lines.any(|line| line.len() >= name.len() && line[..name.len()].eq_ignore_ascii_case(name))
    };
    match answer.body {
        BodyLength::Chunked => assert!(says(b"transfer-encoding")),
        BodyLength::Known(_) => assert!(says(b"content-length")),
        BodyLength::UntilClose => {}
    }
    // The end is found as soon as it is there, and not before.
    for length in (0..answer.len).rev().take(64).chain(0..answer.len.min(64)) {
        assert_eq!(parse(&bytes[..length]), Ok(None), "after {length} bytes");
    }
    assert_eq!(parse(head), Ok(Some(answer.clone())));
}

/// Where the first empty line ends, found in the plainest way.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let ends = [&b"\n\n"[..], b"\n\r\n"];
    let end_at = |at: usize| ends.iter().find(|end| bytes[at..].starts_with(end));
    (0..bytes.len()).find_map(|at| Some(at + end_at(at)?.len()))
}

/// What goes to logs and to operators is short, printable, and stays on one line.
fn check_message(text: &str) {
    assert!(text.len() <= 500, "{} bytes: {text}", text.len());
    assert!(
        text.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
        "{text:?}"
    );
}

/// How the answer is cut into segments makes no difference to the exchange.
fn check_pieces(bytes: &[u8]) {
    let at_once = run(bytes, usize::MAX);
    if let Outcome::Opened { code, rest } = &at_once {
        assert!((200..300).contains(code));
        assert!(bytes.ends_with(rest), "the target's first bytes changed");
        let head = &bytes[..bytes.len() - rest.len()];
        assert!(head.ends_with(b"\n\n") || head.ends_with(b"\n\r\n"));
    }
    for size in [1, 2, 7, 100] {
        assert_eq!(run(bytes, size), at_once, "in segments of {size} bytes");
    }
}

/// What came of an exchange, but for what hangs on where the segments ended.
#[derive(Debug, Eq, PartialEq)]
enum Outcome {
    Opened { code: u16, rest: Vec<u8> },
    Refused(Refusal),
    Bad(BadAnswer),
    ClosedEarly(usize),
    TooManyInterim,
}

fn run(bytes: &[u8], segment: usize) -> Outcome {
    thread_local! {
        static RUNTIME: LazyCell<Runtime> = const {
            LazyCell::new(|| {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                runtime.enable_time().build().expect("a runtime")
            })
        };
    }
    const REQUEST: &[u8] = b"CONNECT a.example:443 HTTP/1.1\r\n\r\n";
    let mut proxy = Proxy {
        received: Vec::new(),
        unsent: bytes,
        segment,
    };
    // Never waits, so no time passes that a deadline could see.
    let result = RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let deadline = Instant::now() + Duration::from_secs(3600);
            exchange(&mut proxy, REQUEST, deadline).await
        })
    });
    assert_eq!(proxy.received, REQUEST);
    match result {
        Ok(opened) => Outcome::Opened {
            code: opened.code,
            rest: [&opened.early[..], proxy.unsent].concat(),
        },
        Err(ExchangeError::Refused(refusal)) => {
            assert!(!(200..300).contains(&refusal.code));
            check_message(&refusal.status());
            assert!(
                refusal.body.len() <= 16 * 1024 && !refusal.body.contains(['\n', '\r', '\x1b'])
            );
            Outcome::Refused(*refusal)
        }
        Err(ExchangeError::BadAnswer(error)) => {
            check_message(&error.to_string());
            Outcome::Bad(without_sample(Err(error)).expect_err("an error"))
        }
        Err(ExchangeError::ClosedEarly { received }) => Outcome::ClosedEarly(received),
        Err(ExchangeError::TooManyInterim) => Outcome::TooManyInterim,
        Err(error) => panic!("impossible here: {error}"),
    }
}

/// What is not HTTP is known by its first bytes, and shown, and taken for something, as far as it
/// had come.
fn without_sample(
    mut parsed: Result<Option<Answer>, BadAnswer>,
) -> Result<Option<Answer>, BadAnswer> {
    if let Err(BadAnswer::NotHttp { sample, is_tls }) = &mut parsed {
        sample.clear();
        *is_tls = false;
    }
    parsed
}

/// Takes what is sent, and answers in segments of a size.
struct Proxy<'a> {
    received: Vec<u8>,
    unsent: &'a [u8],
    segment: usize,
}

impl AsyncRead for Proxy<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.segment.min(buf.remaining()).min(self.unsent.len());
        let (segment, rest) = self.unsent.split_at(length);
        buf.put_slice(segment);
        self.unsent = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Proxy<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.received.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
