//! Bytes in both directions, and how they end.

use std::future::poll_fn;
use std::task::Poll;

use super::raw::*;
use super::*;

async fn echoing(config: &Config) -> Connection {
    connected(config, h2::server::Builder::new(), echo).await
}

async fn tunnel(connection: &Connection) -> TunnelStream {
    let opened = connection.open(request(), patience()).await;
    opened.unwrap().stream
}

async fn read_all(stream: &mut TunnelStream) -> io::Result<Vec<u8>> {
    let mut read = Vec::new();
    soon(stream.read_to_end(&mut read)).await?;
    Ok(read)
}

#[tokio::test]
async fn ten_mebibytes_pass_both_ways() {
    let connection = echoing(&Config::default()).await;
    let data = pattern(10 * 1024 * 1024);
    soon(expect_echo(tunnel(&connection).await, &data)).await;
    assert_eq!(connection.open_streams(), 0);
}

#[tokio::test]
async fn each_direction_ends_on_its_own() {
    let (connection, mut raw) = Raw::connected(&Config::default(), &[]).await;
    // Ours first.
    let (mut stream, id) = opened(&connection, &mut raw).await;
    stream.write_all(b"question").await.unwrap();
    stream.shutdown().await.unwrap();
    stream.shutdown().await.unwrap();
    let error = stream.write_all(b"more").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    let mut asked = Vec::new();
    loop {
        let data = raw.expect(DATA).await;
        asked.extend(data.payload);
        if data.flags & END != 0 {
            break;
        }
    }
    assert_eq!(asked, b"question");
    raw.data(0, id, b"").await;
    raw.data(0, id, b"ans").await;
    raw.data(END, id, b"wer").await;
    assert_eq!(read_all(&mut stream).await.unwrap(), b"answer");
    drop(stream);
    // The target's first.
    let (mut stream, id) = opened(&connection, &mut raw).await;
    raw.data(END, id, b"greeting").await;
    assert_eq!(read_all(&mut stream).await.unwrap(), b"greeting");
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    stream.write_all(b"late").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(raw.expect(DATA).await.payload, b"late");
    drop(stream);
    // Nothing of all that was a reset.
    let (stream, _) = tokio::join!(opened(&connection, &mut raw), async {});
    drop(stream);
    let reset = raw.expect(RST_STREAM).await;
    assert_eq!(reset.stream, 5);
}

#[tokio::test]
async fn trailers_are_an_end_like_any_other() {
    let (connection, mut raw) = Raw::connected(&Config::default(), &[]).await;
    let (mut stream, id) = opened(&connection, &mut raw).await;
    raw.data(0, id, b"all").await;
    // `x: y`, literal, not indexed.
    let trailer = [0, 1, b'x', 1, b'y'];
    raw.send(&frame(HEADERS, END | END_HEADERS, id, &trailer))
        .await;
    assert_eq!(read_all(&mut stream).await.unwrap(), b"all");
}

#[tokio::test]
async fn a_reset_after_the_end_takes_nothing_from_the_data() {
    for (code, first) in [(NO_ERROR, 0), (CANCEL, 0), (CANCEL, 1), (CANCEL, 2)] {
        let (connection, mut raw) = Raw::connected(&Config::default(), &[]).await;
        let (mut stream, id) = opened(&connection, &mut raw).await;
        let data = pattern(100_000);
        for chunk in data.chunks(10_000) {
            raw.data(0, id, chunk).await;
        }
        raw.data(END, id, b"").await;
        raw.reset(id, code).await;
        raw.send(&frame(PING, 0, 0, b"all seen")).await;
        while raw.next().await.unwrap().kind != PING {}

        // Whichever of these is the first to meet the reset.
        for step in [first, 0, 1, 2] {
            match step {
                0 => {
                    let noticed = poll_fn(|cx| Poll::Ready(stream.poll_broken(cx))).await;
                    assert!(noticed.is_pending(), "{noticed:?}");
                }
                1 => {
                    let error = stream.write_all(b"late").await.unwrap_err();
                    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
                }
                _ => stream.shutdown().await.unwrap(),
            }
        }
        assert!(read_all(&mut stream).await.unwrap() == data);
    }
}

#[tokio::test]
async fn a_reset_before_the_end_is_an_error() {
    for code in [NO_ERROR, CANCEL, 10] {
        let (connection, mut raw) = Raw::connected(&Config::default(), &[]).await;
        let (mut stream, id) = opened(&connection, &mut raw).await;
        raw.data(0, id, b"half").await;
        raw.reset(id, code).await;
        let error = soon(poll_fn(|cx| stream.poll_broken(cx))).await;
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let mut half = [0; 4];
        stream.read_exact(&mut half).await.unwrap();
        assert_eq!(&half, b"half");
        for error in [
            stream.read_u8().await.unwrap_err(),
            stream.write_all(b"x").await.unwrap_err(),
            stream.shutdown().await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
            assert!(error.to_string().contains("proxy reset"), "{error}");
        }
        // The connection is as good as before.
        opened(&connection, &mut raw).await;
    }
}

#[tokio::test]
async fn a_stream_that_is_dropped_or_aborted_is_reset() {
    let (connection, mut raw) = Raw::connected(&Config::default(), &[]).await;
    for aborts in [false, true] {
        let (mut stream, id) = opened(&connection, &mut raw).await;
        if aborts {
            stream.abort();
            assert!(stream.write_all(b"x").await.is_err());
            assert!(read_all(&mut stream).await.is_err());
        } else {
            // A half-close is not enough to be at the end.
            stream.shutdown().await.unwrap();
            drop(stream);
        }
        let reset = raw.expect(RST_STREAM).await;
        assert_eq!(reset.stream, id);
        assert_eq!(reset.payload, CANCEL.to_be_bytes());
    }
}

#[tokio::test]
async fn the_end_of_the_connection_is_an_error() {
    let (connection, mut raw) = Raw::connected(&Config::default(), &[]).await;
    let (mut stream, id) = opened(&connection, &mut raw).await;
    raw.data(0, id, b"half").await;
    drop(raw);
    let error = read_all(&mut stream).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let error = stream.write_all(b"x").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let error = connection.open(request(), patience()).await.unwrap_err();
    assert!(matches!(error, OpenError::NotTaken(_)), "{error:?}");
}

/// Ten streams that are sent 2 MiB each; the first one's reader reads nothing.
#[tokio::test]
async fn a_reader_that_does_not_read_leaves_the_others_alone() {
    let data = Bytes::from(pattern(2 * 1024 * 1024));
    let sent = data.clone();
    let answer = move |(_, mut respond): Asked| {
        let data = sent.clone();
        tokio::spawn(async move {
            let mut send = respond.send_response(status(200), false).unwrap();
            let _ = send_all(&mut send, data).await;
            let _ = send.send_data(Bytes::new(), true);
        });
    };
    let connection = connected(&Config::default(), h2::server::Builder::new(), answer).await;
    let mut stalled = Vec::new();
    for _ in 0..5 {
        stalled.push(tunnel(&connection).await);
    }
    for _ in 0..9 {
        let mut stream = tunnel(&connection).await;
        assert!(read_all(&mut stream).await.unwrap() == data);
    }
    // Nothing is lost to those that were slow.
    for mut stream in stalled {
        assert!(read_all(&mut stream).await.unwrap() == data);
    }
}

/// The other direction: a target that takes nothing.
#[tokio::test]
async fn a_target_that_does_not_read_leaves_the_others_alone() {
    let mut server = h2::server::Builder::new();
    server
        .initial_window_size(64 * 1024)
        .initial_connection_window_size(1024 * 1024);
    let mut first = None;
    let answer = move |(request, mut respond): Asked| {
        if first.is_none() {
            let send = respond.send_response(status(200), false).unwrap();
            first = Some((request, send));
        } else {
            echo((request, respond));
        }
    };
    let connection = connected(&Config::default(), server, answer).await;
    let mut stalled = tunnel(&connection).await;
    let blocked = tokio::spawn(async move { stalled.write_all(&pattern(4 * 1024 * 1024)).await });
    let data = pattern(2 * 1024 * 1024);
    for _ in 0..9 {
        soon(expect_echo(tunnel(&connection).await, &data)).await;
    }
    assert!(!blocked.is_finished());
    blocked.abort();
}

#[tokio::test(start_paused = true)]
async fn what_may_wait_to_be_sent_is_bounded() {
    let config = Config::default();
    let window = 1 << 30;
    let (connection, mut raw) = Raw::connected(&config, &[(INITIAL_WINDOW_SIZE, window)]).await;
    let (mut stream, _) = opened(&connection, &mut raw).await;
    let grant = (window - 65_535).to_be_bytes();
    raw.send(&frame(WINDOW_UPDATE, 0, 0, &grant)).await;
    // The proxy allows a gibibyte and reads nothing.
    let mut wrote = 0;
    while let Ok(written) = timeout(Duration::from_secs(1), stream.write(&[0; 50_000])).await {
        wrote += written.unwrap();
    }
    assert!(wrote <= config.send_buffer + 2 * PIPE, "{wrote}");
}
