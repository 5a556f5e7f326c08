use std::collections::VecDeque;
use std::task::Context;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::{Instant, sleep};

use super::sample::{HandBuilt, in_records, rustls_hello, server_name, without_records};
use super::*;

/// Gives one segment per read, then what `end` says.
struct Segments {
    segments: VecDeque<Vec<u8>>,
    end: Option<io::ErrorKind>,
}

impl Segments {
    fn new<B: AsRef<[u8]>>(segments: &[B]) -> Self {
        Self {
            segments: segments.iter().map(|s| s.as_ref().to_vec()).collect(),
            end: None,
        }
    }

    fn cut(bytes: &[u8], sizes: &[usize]) -> Self {
        let mut sizes = sizes.iter().cycle();
        let mut rest = bytes;
        let mut segments = Vec::new();
        while !rest.is_empty() {
            let size = sizes
                .next()
                .map_or(rest.len(), |size| rest.len().min(*size));
            let (segment, after) = rest.split_at(size);
            segments.push(segment);
            rest = after;
        }
        Self::new(&segments)
    }
}

impl AsyncRead for Segments {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(mut segment) = self.segments.pop_front() {
            let rest = segment.split_off(segment.len().min(buf.remaining()));
            buf.put_slice(&segment);
            if !rest.is_empty() {
                self.segments.push_front(rest);
            }
        } else if let Some(kind) = self.end {
            return Poll::Ready(Err(kind.into()));
        }
        Poll::Ready(Ok(()))
    }
}

async fn seen<B: AsRef<[u8]>>(segments: &[B]) -> Result<Inspected, InspectError> {
    inspect(&mut Segments::new(segments), &Limits::default()).await
}

const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn what_ended_connections_were() {
    let hello = HandBuilt::with(&[server_name(b"a.example")]).bytes();
    let cut = &hello[..hello.len() - 1];
    for (segments, expected) in [
        (&[][..], Seen::Closed),
        (&[cut], Seen::Opaque),
        (&[b"\x16"], Seen::Opaque),
        (&[b"\x16\x03\x01\x00\x05\x02"], Seen::Opaque),
        (&[b"SSH-2.0-x\r\n"], Seen::Opaque),
        (&[b"\x80\x2e\x01\x03\x01"], Seen::Opaque),
        (&[b"GET"], Seen::Opaque),
        (
            &[b"OPTI", b"ONS sip:a@b ", b"SIP/2.0\r", b"\n"],
            Seen::Opaque,
        ),
        (&[b"PRI * HTTP/1.1\r\n\r\n"], Seen::Opaque),
        (&[&PREFACE.as_bytes()[..23]], Seen::Opaque),
        (
            &[&PREFACE.as_bytes()[..2], &PREFACE.as_bytes()[2..], b"more"],
            Seen::Http2,
        ),
    ] {
        let inspected = seen(segments).await.unwrap();
        assert_eq!(inspected.seen, expected, "{segments:x?}");
        // Of the last one the decision needs no more than two segments.
        let bytes = segments.concat();
        assert!(bytes.starts_with(&inspected.bytes));
        assert!(inspected.bytes.len() == bytes.len() || expected == Seen::Http2);
    }
}

#[tokio::test(start_paused = true)]
async fn the_claimed_host_and_its_source() {
    let tls = rustls_hello("www.example.com", |_| {});
    let no_name = HandBuilt::default().bytes();
    let name = |text: &str| text.parse::<Host>().unwrap();
    for (bytes, claimed) in [
        (&tls[..], Some((name("www.example.com"), Source::Sni))),
        (&no_name, None),
        (
            b"POST / HTTP/1.1\r\nHost: a.example:80\r\nContent-Length: 4\r\n\r\nbody",
            Some((name("a.example"), Source::HttpHost)),
        ),
        (
            b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
            Some((name("192.0.2.1"), Source::HttpHost)),
        ),
        (
            b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
            None,
        ),
        (
            b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
            None,
        ),
        (b"GET / HTTP/1.0\r\n\r\n", None),
        (PREFACE.as_bytes(), None),
        (b"EHLO a.example\r\n", None),
        (b"", None),
    ] {
        let inspected = seen(&[bytes]).await.unwrap();
        assert_eq!(inspected.claimed_host(), claimed);
        assert_eq!(inspected.bytes, bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_request_gets_the_status_it_deserves() {
    let long = vec![b'a'; MAX_BYTES];
    let many = "x: y\r\n".repeat(http_head::MAX_FIELDS + 1);
    for (segments, status) in [
        (&[&b"GET nonsense\r\n"[..]][..], 400),
        (&[b"GET / HTTP/1.1\r\n\r\n"], 400),
        (&[b"GET / HTTP/1.1\r\nHost: a"], 400),
        (&[b"GET "], 400),
        (&[b"GET /", &long], 431),
        (&[b"GET / HTTP/1.1\r\nHost: a\r\nX: ", &long], 431),
        (
            &[b"GET / HTTP/1.1\r\nHost: a\r\n", many.as_bytes(), b"\r\n"],
            431,
        ),
    ] {
        let error = seen(segments).await.unwrap_err();
        assert_eq!(error.status().map(|s| s.as_u16()), Some(status), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_may_be_as_long_as_the_buffer() {
    let frame = "GET / HTTP/1.1\r\nHost: a.example\r\nX: \r\n\r\n".len();
    let with = |length: usize| {
        let filler = "y".repeat(length - frame);
        format!("GET / HTTP/1.1\r\nHost: a.example\r\nX: {filler}\r\n\r\n")
    };
    let inspected = seen(&[with(MAX_BYTES)]).await.unwrap();
    assert!(matches!(inspected.seen, Seen::Http(_)));
    assert_eq!(inspected.bytes.len(), MAX_BYTES);
    let longest = with(MAX_BYTES);
    let inspected = seen(&[&longest[..MAX_BYTES - 1], &longest[MAX_BYTES - 1..]]).await;
    assert!(matches!(inspected.unwrap().seen, Seen::Http(_)));
    let error = seen(&[with(MAX_BYTES + 1)]).await.unwrap_err();
    assert!(matches!(error, InspectError::HeadTooLong));
}

#[tokio::test(start_paused = true)]
async fn a_hello_may_be_as_long_as_the_buffer() {
    let padded = |padding: usize| {
        let hello = HandBuilt::with(&[server_name(b"a.example"), (21, vec![0; padding])]);
        in_records(&hello.message(), &[4096])
    };
    let frame = padded(0).len();
    // Four records instead of one.
    let longest = padded(MAX_BYTES - frame - 3 * 5);
    assert_eq!(longest.len(), MAX_BYTES);
    let inspected = seen(&[&longest]).await.unwrap();
    assert!(inspected.claimed_host().is_some());
    assert_eq!(inspected.bytes, longest);

    let too_long = padded(MAX_BYTES - frame - 3 * 5 + 1);
    let inspected = seen(&[&too_long]).await.unwrap();
    assert_eq!(inspected.seen, Seen::Opaque);
    assert!(!inspected.bytes.is_empty() && too_long.starts_with(&inspected.bytes));
}

#[tokio::test(start_paused = true)]
async fn a_reset_is_an_error_without_an_answer() {
    for segments in [&[][..], &["GET / HTTP/1.1\r\n"], &["\x16\x03"]] {
        let mut stream = Segments::new(segments);
        stream.end = Some(io::ErrorKind::ConnectionReset);
        let error = inspect(&mut stream, &Limits::default()).await.unwrap_err();
        assert!(
            matches!(&error, InspectError::Read(e) if e.kind() == io::ErrorKind::ConnectionReset)
        );
        assert_eq!(error.status(), None);
    }
}

/// Inspects a connection that stays open after `bytes`; says how long that took, too.
async fn left_open(bytes: &[u8]) -> (Result<Inspected, InspectError>, Duration) {
    let (mut workload, mut agent) = duplex(MAX_BYTES);
    workload.write_all(bytes).await.unwrap();
    let start = Instant::now();
    let result = inspect(&mut agent, &Limits::default()).await;
    (result, start.elapsed())
}

fn about(limit: Duration, took: Duration) -> bool {
    // tokio's timers fire on the next whole millisecond.
    took >= limit && took <= limit + Duration::from_millis(2)
}

#[tokio::test(start_paused = true)]
async fn what_is_decided_waits_for_nothing() {
    let hello = rustls_hello("www.example.com", |_| {});
    for bytes in [
        &hello[..],
        b"GET / HTTP/1.0\r\n\r\n",
        PREFACE.as_bytes(),
        b"SSH-2.0-x",
        b"\x00",
        b"\x16\x01",
        b"\x16\x03\x01\x40\x00\x01\x01\x00\x00", // a hello of 64 KiB
        b"GE ",
        b"PRI / ",
    ] {
        let (result, took) = left_open(bytes).await;
        assert_eq!(result.unwrap().bytes, bytes);
        assert_eq!(took, Duration::ZERO, "{bytes:x?}");
    }
    let (result, took) = left_open(b"GET nonsense\r\n").await;
    assert!(matches!(result, Err(InspectError::Malformed(_))));
    assert_eq!(took, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn one_more_byte_may_decide() {
    for bytes in [
        &b"\x16\x01"[..],
        b"\x16\x03\x01\x00\x05\x02",
        b"GETS",
        b"PRI *\0",
    ] {
        let (mut workload, mut agent) = duplex(64);
        let (last, first) = bytes.split_last().unwrap();
        workload.write_all(first).await.unwrap();
        let start = Instant::now();
        let later = async {
            sleep(Duration::from_millis(20)).await;
            workload.write_all(&[*last]).await.unwrap();
        };
        let limits = Limits::default();
        let (result, ()) = tokio::join!(inspect(&mut agent, &limits), later);
        assert_eq!(result.unwrap().seen, Seen::Opaque);
        assert!(
            about(Duration::from_millis(20), start.elapsed()),
            "{bytes:x?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_waited_for_briefly() {
    let (result, took) = left_open(b"").await;
    let inspected = result.unwrap();
    assert_eq!(inspected.seen, Seen::Silent);
    assert!(inspected.bytes.is_empty());
    assert!(about(Limits::default().first_byte, took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn without_time_for_the_first_byte_the_stream_is_not_touched() {
    let (mut workload, mut agent) = duplex(64);
    workload.write_all(b"EHLO").await.unwrap();
    let limits = Limits {
        first_byte: Duration::ZERO,
        ..Limits::default()
    };
    let inspected = inspect(&mut agent, &limits).await.unwrap();
    assert_eq!(inspected.seen, Seen::Silent);
    assert!(inspected.bytes.is_empty());
    let mut kept = [0; 4];
    agent.read_exact(&mut kept).await.unwrap();
    assert_eq!(&kept, b"EHLO");
}

#[tokio::test(start_paused = true)]
async fn what_never_ends_is_opaque_or_late() {
    let rest = Limits::default().rest;
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"\x16",
        b"POS",
        b"PRI * HTTP",
    ] {
        let (result, took) = left_open(bytes).await;
        let inspected = result.unwrap();
        assert_eq!(inspected.seen, Seen::Opaque);
        assert_eq!(inspected.bytes, bytes);
        assert!(about(rest, took), "{took:?}");
    }
    for bytes in [&b"POST "[..], b"POST / HTTP/1.1\r\nHost: a\r\n"] {
        let (result, took) = left_open(bytes).await;
        let error = result.unwrap_err();
        assert!(matches!(error, InspectError::HeadTimeout(limit) if limit == rest));
        assert_eq!(error.status(), Some(StatusCode::REQUEST_TIMEOUT));
        assert!(about(rest, took), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_trickle_does_not_prolong_the_wait() {
    let (mut workload, mut agent) = duplex(64);
    let trickle = tokio::spawn(async move {
        sleep(Duration::from_millis(299)).await;
        for byte in b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaa" {
            // An error ends the trickle when the inspection is over.
            if workload.write_all(&[*byte]).await.is_err() {
                return;
            }
            sleep(Duration::from_secs(1)).await;
        }
    });
    let start = Instant::now();
    let error = inspect(&mut agent, &Limits::default()).await.unwrap_err();
    assert!(matches!(error, InspectError::HeadTimeout(_)));
    assert!(about(Duration::from_millis(5299), start.elapsed()));
    trickle.abort();
}

#[tokio::test(start_paused = true)]
async fn the_future_is_small() {
    let (_workload, mut agent) = duplex(1);
    let limits = Limits::default();
    let size = size_of_val(&inspect(&mut agent, &limits));
    assert!(size <= 1024, "{size} bytes per waiting connection");
}

/// Runs an inspection of `stream` to its end.
fn run(stream: &mut Segments) -> Result<Inspected, InspectError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(inspect(stream, &Limits::default()))
}

proptest! {
    #[test]
    fn nothing_is_lost_and_nothing_panics(
        start in prop::sample::select(vec![
            &b""[..], b"\x16", b"\x16\x03\x01", b"GET ", b"P", b"GET / HTTP/1.1\r\nHost: a\r\n",
        ]),
        rest in any::<Vec<u8>>(),
        sizes in prop::collection::vec(1usize..50, 1..9),
    ) {
        let bytes = [start, &rest].concat();
        let mut stream = Segments::cut(&bytes, &sizes);
        if let Ok(inspected) = run(&mut stream) {
            let unread: Vec<u8> = stream.segments.into_iter().flatten().collect();
            prop_assert_eq!([&inspected.bytes[..], &unread].concat(), bytes);
        }
    }

    #[test]
    fn records_and_segments_make_no_difference(
        records in prop::collection::vec(1usize..2000, 1..9),
        segments in prop::collection::vec(1usize..2000, 1..9),
    ) {
        let hello = rustls_hello("www.example.com", |_| {});
        let bytes = in_records(&without_records(&hello), &records);
        let inspected = run(&mut Segments::cut(&bytes, &segments)).unwrap();
        let name = Host::Name("www.example.com".parse().unwrap());
        prop_assert_eq!(inspected.claimed_host(), Some((name, Source::Sni)));
        prop_assert_eq!(inspected.bytes, bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_http_is_not_taken_for_it() {
    let hello = HandBuilt::with(&[server_name(b"a.example")]).bytes();
    let inspected = inspect_for_tls(&mut Segments::new(&[&hello]), &Limits::default()).await;
    assert!(matches!(inspected.unwrap().seen, Seen::Tls(_)));
    for text in [
        "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nno field\r\n\r\n",
        "GET / HTTP/9.9\r\n",
        PREFACE,
        "P",
    ] {
        let mut stream = Segments::new(&[text.as_bytes()]);
        let inspected = inspect_for_tls(&mut stream, &Limits::default()).await;
        let inspected = inspected.unwrap();
        assert_eq!(inspected.seen, Seen::Opaque, "{text}");
        assert_eq!(inspected.bytes, text.as_bytes());
    }
}
