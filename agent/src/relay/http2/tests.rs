//! Clients that speak frame by frame (RFC 9113 section 6), also those that mean harm.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use h2::Reason;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::serve::CONNECTION_WINDOW;
use super::*;
use crate::relay::Progress;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

/// END_STREAM of DATA and HEADERS, ACK of SETTINGS and PING.
const END: u8 = 1;
const END_HEADERS: u8 = 4;

const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// POST, http, `/` by the static table of HPACK, and `:authority: x.test`.
const HEAD: &[u8] = b"\x83\x86\x84\x01\x06x.test";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A client, and what serves it. Requests are answered with 200 once they are let go; of their
/// bodies nothing is read.
struct Raw {
    io: DuplexStream,
    closing: CancellationToken,
    go: Arc<Semaphore>,
    begun: Arc<AtomicUsize>,
    served: JoinHandle<Result<(), h2::Error>>,
}

impl Raw {
    async fn begin() -> Self {
        let (near, io) = duplex(64 * 1024);
        let closing = CancellationToken::new();
        let go = Arc::new(Semaphore::new(0));
        let begun = Arc::new(AtomicUsize::new(0));
        let served = {
            let (closing, go, begun) = (closing.clone(), Arc::clone(&go), Arc::clone(&begun));
            tokio::spawn(async move {
                serve(near, KEEP_ALIVE, &closing, |incoming| {
                    begun.fetch_add(1, Ordering::Relaxed);
                    answer(incoming, Arc::clone(&go))
                })
                .await
            })
        };
        let mut raw = Self {
            io,
            closing,
            go,
            begun,
            served,
        };
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        raw.expect(SETTINGS).await;
        raw.send(&frame(SETTINGS, END, 0, &[])).await;
        raw
    }

    /// As far as the other side takes it.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        let sending = timeout(Duration::from_secs(5), self.io.write_all(bytes));
        matches!(sending.await, Ok(Ok(())))
    }

    /// Kind, flags, stream and payload; `None` at the end.
    async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.io.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.io.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], stream, payload))
    }

    /// The next frame of this kind; others are passed over.
    async fn expect(&mut self, kind: u8) -> (u8, u32, Vec<u8>) {
        let waiting = async {
            loop {
                let (is, flags, stream, payload) = self.next().await.expect("a frame");
                if is == kind {
                    return (flags, stream, payload);
                }
            }
        };
        timeout(Duration::from_secs(20), waiting).await.unwrap()
    }

    /// The last stream and the code of a GOAWAY.
    async fn goaway(&mut self) -> (u32, u32) {
        let (_, _, payload) = self.expect(GOAWAY).await;
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        (word(0), word(4))
    }

    async fn ask(&mut self, stream: u32, flags: u8) -> bool {
        self.send(&frame(HEADERS, END_HEADERS | flags, stream, HEAD))
            .await
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }
}

async fn answer(incoming: Incoming, go: Arc<Semaphore>) -> End {
    let mut client = incoming.client;
    tokio::select! {
        _ = client.reset() => return End::GivenUp,
        permit = go.acquire() => permit.unwrap().forget(),
    }
    let answer = OwnAnswer {
        status: StatusCode::OK,
        grpc: 0,
        reason: "well",
        id: "1",
    };
    let _ = client.answer(&answer, (false, false), &Progress::default());
    End::Other
}

#[tokio::test]
async fn a_connection_that_closes_says_so_and_finishes_what_it_has() {
    let mut raw = Raw::begin().await;
    raw.ask(1, END).await;
    while raw.begun() == 0 {
        tokio::task::yield_now().await;
    }
    raw.closing.cancel();
    assert_eq!(raw.goaway().await, ((1 << 31) - 1, 0));
    let (_, _, ping) = raw.expect(PING).await;
    raw.send(&frame(PING, END, 0, &ping)).await;
    assert_eq!(raw.goaway().await, (1, 0), "the last stream it serves");
    // Too late: nobody serves it.
    raw.ask(3, END).await;
    raw.go.add_permits(2);
    let (_, stream, head) = raw.expect(HEADERS).await;
    assert_eq!((stream, head[0]), (1, 0x88));
    raw.served.await.unwrap().unwrap();
    assert_eq!(raw.begun.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_given_up_also_if_its_client_does_not_answer() {
    let mut raw = Raw::begin().await;
    tokio::time::sleep(KEEP_ALIVE).await;
    assert_eq!(raw.goaway().await, ((1 << 31) - 1, 0));
    tokio::time::sleep(2 * KEEP_ALIVE).await;
    assert!(raw.served.is_finished());
}

#[tokio::test]
async fn many_resets_end_the_connection_in_bounded_work() {
    let mut raw = Raw::begin().await;
    for at in 0..20_000 {
        let stream = 2 * at + 1;
        let reset = frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
        if !raw.ask(stream, 0).await || !raw.send(&reset).await {
            break;
        }
    }
    let error = raw.served.await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
    assert!(raw.begun.load(Ordering::Relaxed) <= 2100);
}

/// Streams of which nobody reads the bodies hold so much together, and no more.
#[tokio::test(start_paused = true)]
async fn all_streams_together_hold_what_the_connection_may() {
    let full = frame(DATA, 0, 0, &[7; 16 * 1024]);
    let fill = |stream: u32| {
        let mut one = full.clone();
        one[5..9].copy_from_slice(&stream.to_be_bytes());
        one
    };
    let mut raw = Raw::begin().await;
    let streams = CONNECTION_WINDOW / (64 * 1024);
    for at in 0..streams {
        let stream = 2 * at + 1;
        raw.ask(stream, 0).await;
        for _ in 0..4 {
            assert!(raw.send(&fill(stream)).await);
        }
    }
    // A request without a body still passes.
    raw.ask(2 * streams + 1, END).await;
    while raw.begun() <= streams as usize {
        tokio::task::yield_now().await;
    }
    raw.ask(2 * streams + 3, 0).await;
    raw.send(&fill(2 * streams + 3)).await;
    let error = timeout(KEEP_ALIVE, raw.served).await.unwrap().unwrap();
    let reason = error.unwrap_err().reason();
    assert_eq!(reason, Some(Reason::FLOW_CONTROL_ERROR));
}

#[tokio::test]
async fn floods_of_what_costs_no_window_end_the_connection() {
    let fields = b"\x00\x01x\x01y".repeat(1000);
    for flood in [frame(DATA, 0, 1, &[]), frame(CONTINUATION, 0, 1, &fields)] {
        let mut raw = Raw::begin().await;
        let flags = if flood[3] == DATA { END_HEADERS } else { 0 };
        raw.send(&frame(HEADERS, flags, 1, HEAD)).await;
        let mut sent = 0;
        while sent < 64 << 20 && raw.send(&flood).await {
            sent += flood.len();
        }
        assert!(sent < 8 << 20, "{sent}");
        raw.served.await.unwrap().unwrap_err();
    }
}
