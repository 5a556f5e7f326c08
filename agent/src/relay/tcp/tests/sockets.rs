//! Over TCP on loopback.

use std::net::Ipv4Addr;

use aws_lc_rs::digest::{Context as Digest, SHA256};
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

/// A client and a server with a relay between them, which resets both when it fails.
async fn connected() -> Connected {
    let (client, mut workload) = pair().await;
    let (mut upstream, server) = pair().await;
    let traffic = Arc::new(Traffic::default());
    let shared = Arc::clone(&traffic);
    let relay = tokio::spawn(async move {
        let timeouts = Timeouts::default();
        let none = Bytes::new;
        let result = relay(
            &mut workload,
            &mut upstream,
            none(),
            none(),
            &timeouts,
            &shared,
        )
        .await;
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
    let c = connected().await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_side_finishes_while_the_other_goes_on_sending() {
    for client_finishes in [true, false] {
        let c = connected().await;
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

#[tokio::test]
async fn a_receiver_that_does_not_read_stops_the_sender() {
    let mut c = connected().await;
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

#[tokio::test]
async fn a_reset_of_either_side_ends_both() {
    for client_resets in [true, false] {
        let c = connected().await;
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

#[tokio::test]
async fn an_answer_before_a_reset_is_still_passed_on() {
    let mut c = connected().await;
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
