//! With TLS on the upstream side.

use tokio::io::{DuplexStream, duplex};
use tokio::time::timeout_at;
use tokio_rustls::server::TlsStream as Served;

use super::*;
use crate::tls::testing::{Authority, client, patience, server};

/// Runs a relay between a pipe and a connection by TLS over another, and gives the far ends to the
/// test. The pipes hold this many bytes.
async fn start(
    capacity: usize,
) -> (
    DuplexStream,
    Served<DuplexStream>,
    tokio::task::JoinHandle<Result<(), RelayError>>,
) {
    let authority = Authority::new("a CA");
    let acceptor = server(&authority.issue(&["a.example"]), None);
    let tls = client(&authority.settings());
    let host = "a.example".parse().unwrap();
    let (client, mut workload) = duplex(capacity);
    let (near, far) = duplex(capacity);
    // Its last messages of the handshake are read by the relay only.
    let accepting = tokio::spawn(async move { acceptor.accept(far).await.unwrap() });
    let mut upstream = tls.connect(near, &host, patience()).await.unwrap();
    let relay = tokio::spawn(async move {
        let (timeouts, traffic) = (Timeouts::default(), Traffic::default());
        let none = Bytes::new;
        let (near, far) = (&mut workload, &mut upstream);
        relay(near, far, none(), none(), &timeouts, &traffic).await
    });
    (client, accepting.await.unwrap(), relay)
}

/// Reads to the end, no more than `most` at a time.
async fn sip(from: &mut (impl AsyncRead + Unpin), most: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sip = vec![0; most];
    loop {
        let n = from.read(&mut sip).await.unwrap();
        if n == 0 {
            return bytes;
        }
        bytes.extend_from_slice(&sip[..n]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_mebibytes_both_ways_arrive_however_small_the_reads() {
    const LEN: usize = 10 * 1024 * 1024;
    for capacity in [1_000, 100_000] {
        let (client, server, relay) = start(capacity).await;
        let (mut client_read, mut client_write) = tokio::io::split(client);
        let (mut server_read, mut server_write) = tokio::io::split(server);
        let up = tokio::spawn(async move {
            client_write.write_all(&pattern(LEN, 3)).await.unwrap();
            client_write.shutdown().await.unwrap();
        });
        let down = tokio::spawn(async move {
            server_write.write_all(&pattern(LEN, 5)).await.unwrap();
            server_write.shutdown().await.unwrap();
        });
        let at_client = tokio::spawn(async move { sip(&mut client_read, 777).await });
        let at_server = sip(&mut server_read, 1_313).await;
        assert!(at_server == pattern(LEN, 3));
        assert!(at_client.await.unwrap() == pattern(LEN, 5));
        up.await.unwrap();
        down.await.unwrap();
        relay.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_question_leaves_at_once_through_however_narrow_a_pipe() {
    for capacity in [50, 500, 50_000] {
        let (mut client, mut server, relay) = start(capacity).await;
        // Its records fit in no pipe but the last, and nothing comes after them.
        let question = pattern(20_000, 17);
        let mut got = vec![0; question.len()];
        let asking =
            async { tokio::join!(client.write_all(&question), server.read_exact(&mut got)) };
        let (sent, received) = timeout_at(patience(), asking).await.unwrap();
        sent.unwrap();
        received.unwrap();
        assert!(got == question);
        assert!(!relay.is_finished());
    }
}

#[tokio::test]
async fn each_side_may_finish_first() {
    let (mut client, mut server, relay) = start(64).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(sip(&mut server, 3).await, b"question");
    let answer = pattern(100_000, 7);
    let (read, ()) = tokio::join!(sip(&mut client, 1_000), async {
        server.write_all(&answer).await.unwrap();
        assert!(!relay.is_finished());
        server.shutdown().await.unwrap();
    });
    assert!(read == answer);
    relay.await.unwrap().unwrap();

    let (mut client, mut server, relay) = start(64).await;
    server.write_all(b"greeting").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(sip(&mut client, 3).await, b"greeting");
    let (read, ()) = tokio::join!(sip(&mut server, 1_000), async {
        client.write_all(&answer).await.unwrap();
        assert!(!relay.is_finished());
        client.shutdown().await.unwrap();
    });
    assert!(read == answer);
    relay.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_was_cut_off_is_an_error_of_upstream() {
    let (mut client, mut server, relay) = start(10_000).await;
    server.write_all(b"half of it").await.unwrap();
    server.flush().await.unwrap();
    drop(server);
    let mut half = [0; 10];
    client.read_exact(&mut half).await.unwrap();
    assert_eq!(&half, b"half of it");
    match relay.await.unwrap().unwrap_err() {
        RelayError::Upstream(error) => {
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            assert!(error.to_string().contains("close_notify"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}
