//! Over in-memory streams: exact capacities, paused time, streams that misbehave on purpose.

use proptest::prelude::*;
use tokio::io::{DuplexStream, ReadBuf, duplex, split};

use super::*;

/// Runs a relay over two pipes of these capacities and gives the far ends to the test.
fn start(
    capacities: (usize, usize),
    early: (Bytes, Bytes),
    timeouts: Timeouts,
) -> (
    DuplexStream,
    DuplexStream,
    Arc<Traffic>,
    tokio::task::JoinHandle<Result<(), RelayError>>,
) {
    let (client, mut workload) = duplex(capacities.0);
    let (mut upstream, server) = duplex(capacities.1);
    let traffic = Arc::new(Traffic::default());
    let shared = Arc::clone(&traffic);
    let relay = tokio::spawn(async move {
        relay(
            &mut workload,
            &mut upstream,
            early.0,
            early.1,
            &timeouts,
            &shared,
        )
        .await
    });
    (client, server, traffic, relay)
}

async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn early_bytes_come_first_and_are_counted() {
    let early = (
        Bytes::from_static(b"hello "),
        Bytes::from_static(b"welcome "),
    );
    let (mut client, mut server, traffic, relay) = start((13, 15), early, Timeouts::default());
    let client_side = async {
        client.write_all(b"world").await.unwrap();
        client.shutdown().await.unwrap();
        read_all(&mut client).await
    };
    let server_side = async {
        server.write_all(b"friend").await.unwrap();
        server.shutdown().await.unwrap();
        read_all(&mut server).await
    };
    let (at_client, at_server) = tokio::join!(client_side, server_side);
    assert_eq!(at_client, b"welcome friend");
    assert_eq!(at_server, b"hello world");
    relay.await.unwrap().unwrap();
    assert_eq!((traffic.sent(), traffic.received()), (11, 14));
}

#[tokio::test]
async fn each_side_may_finish_first() {
    for workload_first in [true, false] {
        let none = (Bytes::new(), Bytes::new());
        let (client, server, _, relay) = start((16, 16), none, Timeouts::default());
        let (mut first, mut second) = if workload_first {
            (client, server)
        } else {
            (server, client)
        };
        first.write_all(b"that is all").await.unwrap();
        first.shutdown().await.unwrap();
        assert_eq!(read_all(&mut second).await, b"that is all");
        let answer = pattern(100_000, 7);
        let (read, ()) = tokio::join!(read_all(&mut first), async {
            second.write_all(&answer).await.unwrap();
            assert!(!relay.is_finished());
            second.shutdown().await.unwrap();
        });
        assert!(read == answer);
        relay.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_slow_reader_stops_the_sender() {
    let (mut client, mut workload) = duplex(1000);
    let (mut upstream, mut server) = duplex(700);
    let (timeouts, traffic) = (Timeouts::default(), Traffic::default());
    let none = Bytes::new;
    let mut relay = Relay::new(
        &mut workload,
        &mut upstream,
        (none(), none()),
        BULK_AFTER,
        &timeouts,
        &traffic,
    );
    let mut timer = pin!(sleep(timeouts.idle));
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut cx = Context::from_waker(&waker);

    let mut accepted = 0;
    let chunk = pattern(1000, 3);
    for _ in 0..10_000 {
        if let Poll::Ready(written) = Pin::new(&mut client).poll_write(&mut cx, &chunk) {
            accepted += written.unwrap();
        }
        assert!(relay.poll(&mut cx, timer.as_mut()).is_pending());
    }
    // One pipe full, one read's unsent rest, the other pipe full.
    assert!((1700..=2700).contains(&accepted), "{accepted}");
    assert_eq!(traffic.sent(), 700);

    let mut read = 0;
    let mut bytes = [0; 300];
    while read < accepted {
        read += server.read(&mut bytes).await.unwrap();
        assert!(relay.poll(&mut cx, timer.as_mut()).is_pending());
    }
    assert_eq!(traffic.sent(), accepted as u64);
}

#[tokio::test]
async fn a_busy_connection_yields() {
    let (timeouts, traffic) = (Timeouts::default(), Traffic::default());
    // Endless bytes, taken at once.
    let mut workload = tokio::io::join(tokio::io::repeat(7), tokio::io::sink());
    let mut upstream = tokio::io::join(tokio::io::empty(), tokio::io::sink());
    let none = Bytes::new;
    let mut future = pin!(relay(
        &mut workload,
        &mut upstream,
        none(),
        none(),
        &timeouts,
        &traffic
    ));
    let wakes = Arc::new(Wakes::default());
    for round in 1..=4 {
        assert!(poll_once(future.as_mut(), &wakes).is_pending());
        assert!(wakes.count() >= round, "nobody would poll it again");
        assert!(traffic.sent() <= (round * 8 * BUFFER_SIZE) as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn silence_ends_it_after_the_idle_timeout() {
    let timeouts = Timeouts {
        idle: Duration::from_secs(100),
        half_closed: Duration::from_secs(10),
    };
    let (mut client, mut server, _, relay) = start((64, 64), Default::default(), timeouts);
    let begin = Instant::now();
    for _ in 0..5 {
        sleep(Duration::from_secs(60)).await;
        client.write_all(b"x").await.unwrap();
        server.read_u8().await.unwrap();
    }
    let error = relay.await.unwrap().unwrap_err();
    assert!(matches!(error, RelayError::Idle), "{error:?}");
    let took = begin.elapsed().as_secs();
    assert!((400..=401).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn silence_ends_it_sooner_when_half_closed() {
    let timeouts = Timeouts {
        idle: Duration::from_secs(1000),
        half_closed: Duration::from_secs(10),
    };
    let (mut client, mut server, _, relay) = start((64, 64), Default::default(), timeouts);
    sleep(Duration::from_secs(500)).await;
    let begin = Instant::now();
    client.shutdown().await.unwrap();
    for _ in 0..4 {
        sleep(Duration::from_secs(8)).await;
        server.write_all(b"x").await.unwrap();
        client.read_u8().await.unwrap();
    }
    let error = relay.await.unwrap().unwrap_err();
    assert!(matches!(error, RelayError::HalfClosed), "{error:?}");
    let took = begin.elapsed().as_secs();
    assert!((42..=43).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_without_end_is_none() {
    let timeouts = Timeouts {
        idle: Duration::MAX,
        half_closed: Duration::MAX,
    };
    let (mut client, mut server, _, relay) = start((64, 64), Default::default(), timeouts);
    sleep(Duration::from_secs(1_000_000)).await;
    client.write_all(b"x").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'x');
    assert!(!relay.is_finished());
}

/// Keeps what it is given until it is flushed, as TLS may.
struct Held {
    kept: Vec<u8>,
    inner: DuplexStream,
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl Side for Held {
    fn socket(&self) -> Option<&tokio::net::TcpStream> {
        None
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.kept.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.kept.is_empty() {
            let this = &mut *self;
            let written = std::task::ready!(Pin::new(&mut this.inner).poll_write(cx, &this.kept))?;
            this.kept.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_stream_that_buffers_is_flushed_before_waiting() {
    let (mut client, mut workload) = duplex(64);
    let (inner, mut server) = duplex(4);
    let mut upstream = Held {
        kept: Vec::new(),
        inner,
    };
    let (timeouts, traffic) = (Timeouts::default(), Traffic::default());
    let none = Bytes::new;
    let relay = relay(
        &mut workload,
        &mut upstream,
        none(),
        none(),
        &timeouts,
        &traffic,
    );
    let talk = async {
        client.write_all(b"a question").await.unwrap();
        let mut question = [0; 10];
        server.read_exact(&mut question).await.unwrap();
        question
    };
    tokio::select! {
        question = talk => assert_eq!(&question, b"a question"),
        result = relay => panic!("ended: {result:?}"),
    }
}

/// A stream whose read polls a whole relay of its own.
struct Nested<F>(Pin<Box<F>>);

impl<F: Future<Output = Result<(), RelayError>>> AsyncRead for Nested<F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::task::ready!(self.0.as_mut().poll(cx)).unwrap();
        if buf.initialized().contains(&b'n') {
            return Poll::Ready(Err(io::Error::other("the inner relay used this buffer")));
        }
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn relays_may_be_nested() {
    let timeouts = Timeouts::default();
    let (inner_traffic, traffic) = (Traffic::default(), Traffic::default());
    let text = vec![b'n'; 1000];
    let mut inner_workload = tokio::io::join(&text[..], tokio::io::sink());
    let mut inner_upstream = tokio::io::join(tokio::io::empty(), tokio::io::sink());
    let inner = relay(
        &mut inner_workload,
        &mut inner_upstream,
        Bytes::new(),
        Bytes::new(),
        &timeouts,
        &inner_traffic,
    );
    let mut workload = tokio::io::join(Nested(Box::pin(inner)), tokio::io::sink());
    let mut upstream = tokio::io::join(tokio::io::empty(), tokio::io::sink());
    relay(
        &mut workload,
        &mut upstream,
        Bytes::new(),
        Bytes::new(),
        &timeouts,
        &traffic,
    )
    .await
    .unwrap();
    assert_eq!((inner_traffic.sent(), traffic.sent()), (1000, 0));
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1..20_000_usize, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_the_pieces_the_bytes_arrive(
        capacities in (1..100_000_usize, 1..100_000_usize),
        lengths in (0..300_000_usize, 0..300_000_usize),
        early in (0..5_000_usize, 0..5_000_usize),
        writes in (sizes(), sizes()),
        reads in (sizes(), sizes()),
    ) {
        // Pipes of some bytes move megabytes too slowly for a test.
        let most = 2_000 * capacities.0.min(capacities.1);
        let up = pattern(lengths.0.min(most), 11);
        let down = pattern(lengths.1.min(most), 13);
        let (up_early, up_rest) = up.split_at(early.0.min(up.len()));
        let (down_early, down_rest) = down.split_at(early.1.min(down.len()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (at_server, at_client, counted) = runtime.block_on(async {
            let first = (Bytes::copy_from_slice(up_early), Bytes::copy_from_slice(down_early));
            let (client, server, traffic, relay) = start(capacities, first, Timeouts::default());
            let (client_read, client_write) = split(client);
            let (server_read, server_write) = split(server);
            let ((), (), at_server, at_client) = tokio::join!(
                write_in_pieces(client_write, up_rest, &writes.0),
                write_in_pieces(server_write, down_rest, &writes.1),
                read_in_pieces(server_read, &reads.0),
                read_in_pieces(client_read, &reads.1),
            );
            relay.await.unwrap().unwrap();
            (at_server, at_client, (traffic.sent(), traffic.received()))
        });
        prop_assert!(at_server == up);
        prop_assert!(at_client == down);
        prop_assert_eq!(counted, (up.len() as u64, down.len() as u64));
    }
}
