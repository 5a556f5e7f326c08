//! Over TCP on loopback.

use std::io::Read as _;
use std::net::Ipv4Addr;

use aws_lc_rs::digest::{Context as Digest, SHA256};
use proptest::prelude::*;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::sockets::reset_on_close;

struct Connected {
    client: TcpStream,
    server: TcpStream,
    traffic: Arc<Traffic>,
    relay: JoinHandle<Result<(), RelayError>>,
}

/// When the kernel is to move the bytes: never, always, and soon.
const WAYS: [usize; 3] = [usize::MAX, 0, 100_000];

/// A client and a server with a relay between them, which resets both when it fails.
async fn connected(bulk_after: usize) -> Connected {
    let (client, mut workload) = pair().await;
    let (mut upstream, server) = pair().await;
    let traffic = Arc::new(Traffic::default());
    let shared = Arc::clone(&traffic);
    let relay = tokio::spawn(async move {
        let timeouts = Timeouts::default();
        let (near, far) = (&mut workload, &mut upstream);
        let early = Default::default();
        let mut relay = Relay::new(near, far, early, bulk_after, &timeouts, &shared);
        let result = relay.run().await;
        if result.is_err() {
            reset_on_close(&workload);
            reset_on_close(&upstream);
        }
        result
    });
    Connected {
        client,
        server,
        traffic,
        relay,
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (connected, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (connected.unwrap(), accepted.unwrap().0)
}

const MIB: usize = 1024 * 1024;

/// Sends `mib` MiB and the end, and gives the digest of what it sent.
async fn send(mut to: impl AsyncWrite + Unpin, mib: usize, seed: u64) -> Vec<u8> {
    let mut digest = Digest::new(&SHA256);
    let block = pattern(MIB + 13, seed);
    for _ in 0..mib {
        digest.update(&block);
        to.write_all(&block).await.unwrap();
    }
    to.shutdown().await.unwrap();
    digest.finish().as_ref().to_vec()
}

async fn receive(mut from: impl AsyncRead + Unpin) -> (Vec<u8>, u64) {
    let mut digest = Digest::new(&SHA256);
    let mut buffer = vec![0; 100_000];
    let mut total = 0;
    loop {
        let n = from.read(&mut buffer).await.unwrap();
        if n == 0 {
            return (digest.finish().as_ref().to_vec(), total);
        }
        digest.update(&buffer[..n]);
        total += n as u64;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_mebibytes_arrive_both_ways_at_once() {
    for way in WAYS {
        let c = connected(way).await;
        let (client_read, client_write) = c.client.into_split();
        let (server_read, server_write) = c.server.into_split();
        let up = tokio::spawn(send(client_write, 100, 1));
        let down = tokio::spawn(send(server_write, 100, 2));
        let at_client = tokio::spawn(receive(client_read));
        let (at_server, sent) = receive(server_read).await;
        let (at_client, received) = at_client.await.unwrap();
        assert_eq!(up.await.unwrap(), at_server);
        assert_eq!(down.await.unwrap(), at_client);
        c.relay.await.unwrap().unwrap();
        assert_eq!((c.traffic.sent(), c.traffic.received()), (sent, received));
    }
}

/// Waits until the runtime knows that no more comes after what is there.
async fn all_has_come(stream: &TcpStream) {
    let readable = Interest::READABLE;
    while !stream.ready(readable).await.unwrap().is_read_closed() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_reset_right_behind_the_last_bytes_is_no_end() {
    let (mut client, mut workload) = pair().await;
    let (mut upstream, mut server) = pair().await;
    server.write_all(b"a part").await.unwrap();
    reset_on_close(&server);
    drop(server);
    all_has_come(&upstream).await;
    let (timeouts, traffic) = (Timeouts::default(), Traffic::default());
    let early = (Bytes::new(), Bytes::new());
    let (near, far) = (&mut workload, &mut upstream);
    let result = relay(near, far, early.0, early.1, &timeouts, &traffic).await;
    assert!(matches!(result, Err(RelayError::Upstream(_))), "{result:?}");
    let mut read = [0; 6];
    client.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"a part");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_bytes_and_the_end_arrive_together() {
    for _ in 0..50 {
        let (client, mut workload) = pair().await;
        let (mut upstream, mut server) = pair().await;
        server.write_all(b"all there is").await.unwrap();
        server.shutdown().await.unwrap();
        all_has_come(&upstream).await;
        let mut client = client.into_std().unwrap();
        client.set_nonblocking(false).unwrap();
        let client = std::thread::spawn(move || {
            let mut buffer = [0; 100];
            let len = client.read(&mut buffer).unwrap();
            client.set_nonblocking(true).unwrap();
            let then = client.read(&mut buffer[len..]);
            (buffer[..len].to_vec(), then.map_err(|error| error.kind()))
        });
        let (timeouts, traffic) = (Timeouts::default(), Traffic::default());
        let (none, first) = (Bytes::new(), Bytes::new());
        relay(
            &mut workload,
            &mut upstream,
            none,
            first,
            &timeouts,
            &traffic,
        )
        .await
        .unwrap();
        let (read, then) = client.join().unwrap();
        assert_eq!((read.as_slice(), then), (&b"all there is"[..], Ok(0)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_side_finishes_while_the_other_goes_on_sending() {
    for way in WAYS {
        for client_finishes in [true, false] {
            let c = connected(way).await;
            let (mut quiet, busy) = if client_finishes {
                (c.client, c.server)
            } else {
                (c.server, c.client)
            };
            let (mut busy_read, busy_write) = busy.into_split();
            let sending = tokio::spawn(send(busy_write, 10, 5));
            quiet.write_all(b"no more from me").await.unwrap();
            quiet.shutdown().await.unwrap();
            let mut text = String::new();
            busy_read.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "no more from me");
            let (digest, _) = receive(&mut quiet).await;
            assert_eq!(sending.await.unwrap(), digest);
            c.relay.await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn a_receiver_that_does_not_read_stops_the_sender() {
    for way in WAYS {
        let mut c = connected(way).await;
        let block = vec![1; MIB];
        let mut accepted = 0;
        // Stalled is when nothing more goes in for a while; the kernel's buffers take some MiB first.
        while let Ok(written) = timeout(Duration::from_millis(300), c.client.write(&block)).await {
            accepted += written.unwrap();
            assert!(accepted < 64 * MIB, "no end of it");
        }
        // Then all of it arrives.
        drop(c.client.shutdown().await);
        let (_, total) = receive(&mut c.server).await;
        assert_eq!(total, accepted as u64);
    }
}

#[tokio::test]
async fn a_reset_of_either_side_ends_both() {
    for way in WAYS {
        for client_resets in [true, false] {
            let c = connected(way).await;
            let (resetting, mut other) = if client_resets {
                (c.client, c.server)
            } else {
                (c.server, c.client)
            };
            reset_on_close(&resetting);
            drop(resetting);
            let seen = other.read(&mut [0; 1]).await.unwrap_err();
            assert_eq!(seen.kind(), io::ErrorKind::ConnectionReset);
            let error = c.relay.await.unwrap().unwrap_err();
            let named = match error {
                RelayError::Workload(_) => client_resets,
                RelayError::Upstream(_) => !client_resets,
                _ => false,
            };
            assert!(named, "{error:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_before_a_reset_is_still_passed_on() {
    for way in WAYS {
        let mut c = connected(way).await;
        // The server answers without reading all of the upload and closes, which makes its kernel reset.
        c.client.write_all(&pattern(100_000, 9)).await.unwrap();
        c.server.read_u8().await.unwrap();
        c.server.write_all(b"413 too large").await.unwrap();
        drop(c.server);
        let mut answer = [0; 13];
        c.client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"413 too large");
        let error = c.relay.await.unwrap().unwrap_err();
        assert!(matches!(error, RelayError::Upstream(_)), "{error:?}");
    }
}

#[tokio::test]
async fn what_is_not_taken_stays_in_a_pipe_and_no_pipe_stays_where_all_is() {
    let (mut client, mut workload) = pair().await;
    let (mut upstream, mut server) = pair().await;
    let (timeouts, traffic) = (Timeouts::default(), Traffic::default());
    let (near, far) = (&mut workload, &mut upstream);
    let mut relay = Relay::new(near, far, Default::default(), 0, &timeouts, &traffic);
    let mut timer = pin!(sleep(timeouts.idle));
    let block = vec![1; MIB];
    let mut accepted = 0;
    let write = |client: &mut TcpStream, cx: &mut Context<'_>| {
        Pin::new(client)
            .poll_write(cx, &block)
            .map(io::Result::unwrap)
    };
    let stalled = poll_fn(|cx| {
        while let Poll::Ready(len) = write(&mut client, cx) {
            accepted += len;
        }
        assert!(relay.poll(cx, timer.as_mut()).is_pending());
        if relay.up.has_pipe() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    timeout(Duration::from_secs(20), stalled).await.unwrap();
    let mut buffer = vec![0; MIB];
    let mut read = 0;
    while read < accepted {
        tokio::select! {
            len = server.read(&mut buffer) => read += len.unwrap(),
            () = poll_fn(|cx| {
                assert!(relay.poll(cx, timer.as_mut()).is_pending());
                Poll::Pending
            }) => {}
        }
    }
    assert_eq!(traffic.sent(), accepted as u64);
    assert!(!relay.up.has_pipe());
    assert!(!relay.down.has_pipe());
}

#[tokio::test]
async fn urgent_data_stops_nothing() {
    for way in WAYS {
        let mut c = connected(way).await;
        let before = pattern(300_000, 3);
        let after = pattern(300_000, 5);
        c.client.write_all(&before).await.unwrap();
        c.client.writable().await.unwrap();
        let urgent = SockRef::from(&c.client).send_out_of_band(b"!").unwrap();
        assert_eq!(urgent, 1);
        c.client.write_all(&after).await.unwrap();
        let mut got = vec![0; before.len() + after.len()];
        let reading = c.server.read_exact(&mut got);
        timeout(Duration::from_secs(20), reading)
            .await
            .unwrap()
            .unwrap();
        // As it ever was: the urgent byte itself is not passed on.
        assert!(got[..before.len()] == before);
        assert!(got[before.len()..] == after);
        c.client.shutdown().await.unwrap();
        assert_eq!(c.server.read(&mut [0; 1]).await.unwrap(), 0);
    }
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1..300_000_usize, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_the_pieces_the_bytes_arrive(
        way in prop::sample::select(vec![0, 100_000]),
        lengths in (0..4_000_000_usize, 0..4_000_000_usize),
        writes in (sizes(), sizes()),
        reads in (sizes(), sizes()),
    ) {
        let most = |length: usize, sizes: &[usize]| length.min(500 * sizes.iter().min().unwrap());
        let up = pattern(most(lengths.0, &writes.0).min(most(lengths.0, &reads.0)), 11);
        let down = pattern(most(lengths.1, &writes.1).min(most(lengths.1, &reads.1)), 13);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (at_server, at_client, counted) = runtime.block_on(async {
            let c = connected(way).await;
            let (client_read, client_write) = c.client.into_split();
            let (server_read, server_write) = c.server.into_split();
            let ((), (), at_server, at_client) = tokio::join!(
                write_in_pieces(client_write, &up, &writes.0),
                write_in_pieces(server_write, &down, &writes.1),
                read_in_pieces(server_read, &reads.0),
                read_in_pieces(client_read, &reads.1),
            );
            c.relay.await.unwrap().unwrap();
            (at_server, at_client, (c.traffic.sent(), c.traffic.received()))
        });
        prop_assert!(at_server == up);
        prop_assert!(at_client == down);
        prop_assert_eq!(counted, (up.len() as u64, down.len() as u64));
    }
}
