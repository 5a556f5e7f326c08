//! Connections that are kept: warm ones, and those that tunnels share.

use super::*;

/// Waits until `condition` holds.
async fn until(condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it does not come to that");
}

#[tokio::test]
async fn warm_connections_are_used_and_never_one_that_the_proxy_has_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let proxy = proxy(
        &[port],
        ProxySettings {
            warm: true,
            ..ProxySettings::default()
        },
    );
    let world = World::serving(&proxy);
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    // From the eighth on connections are closed as soon as they are there, unless a request is.
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let number = count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                if number >= 7 {
                    let patience = Duration::from_millis(50);
                    let mut byte = [0];
                    let asked = tokio::time::timeout(patience, stream.peek(&mut byte)).await;
                    if asked.is_err() {
                        return Ok(());
                    }
                }
                serve(stream, OK).await
            });
        }
    });
    let mut warm = 0;
    for _ in 0..7 {
        let tunnel = world.open(&proxy).await.unwrap();
        warm += usize::from(tunnel.timings.tcp.is_none());
        let made = accepted.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(accepted.load(Ordering::Relaxed) <= made + 2);
    }
    assert!(warm >= 2, "{warm} of the last were there before");
    until(|| accepted.load(Ordering::Relaxed) > 7).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.open(&proxy).await.unwrap();
    }
    assert_eq!(world.notes.take(), [""; 0], "nobody saw a failure");
}

/// A proxy in HTTP/2 without TLS; it tells each stream's end: `None`, or the reason of its reset.
async fn http2() -> (
    u16,
    tokio::sync::mpsc::UnboundedReceiver<Option<h2::Reason>>,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let tell = tell.clone();
                    tokio::spawn(async move {
                        let mut send = respond
                            .send_response(http::Response::new(()), false)
                            .unwrap();
                        let mut body = request.into_body();
                        while let Some(data) = body.data().await {
                            match data {
                                Ok(data) => {
                                    let _ = body.flow_control().release_capacity(data.len());
                                }
                                Err(error) => {
                                    let _ = tell.send(error.reason());
                                    return;
                                }
                            }
                        }
                        let _ = send.send_data(bytes::Bytes::new(), true);
                        let _ = tell.send(None);
                    });
                }
            });
        }
    });
    (port, told)
}

#[tokio::test]
async fn tunnels_over_http2_share_a_connection_and_end_each_by_itself() {
    use crate::sockets::Carrier as _;

    let (port, mut ends) = http2().await;
    let proxy = Arc::new(Proxy {
        protocol: TunnelProtocol::Http2Connect,
        ..(*proxy(&[port], ProxySettings::default())).clone()
    });
    let world = World::serving(&proxy);
    let mut first = world.open(&proxy).await.unwrap();
    let mut second = world.open(&proxy).await.unwrap();
    let mut third = world.open(&proxy).await.unwrap();
    assert_eq!(first.address, second.address);
    assert_eq!(first.spoken, Spoken::Http2Connect);
    assert!(first.timings.tcp.is_some());
    let own = Timings {
        connect: second.timings.connect,
        ..Timings::default()
    };
    assert_eq!(second.timings, own, "the connection was there");

    first.stream.abort_on_drop();
    drop(first);
    assert_eq!(ends.recv().await.unwrap(), Some(h2::Reason::CANCEL));

    // In order, and with all that was written.
    second.stream.abort_on_drop();
    second.stream.write_all(&[7; 30_000]).await.unwrap();
    second.stream.shutdown().await.unwrap();
    second.stream.read_to_end(&mut Vec::new()).await.unwrap();
    second.stream.finish_on_drop();
    drop(second);
    assert_eq!(ends.recv().await.unwrap(), None);

    // Aborted although its own direction has ended.
    third.stream.abort_on_drop();
    third.stream.write_all(b"x").await.unwrap();
    drop(third);
    assert_eq!(ends.recv().await.unwrap(), Some(h2::Reason::CANCEL));
    assert_eq!(world.notes.take(), [""; 0]);
}

#[tokio::test]
async fn a_warm_connection_that_dies_under_the_request_costs_a_fresh_one_and_no_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let proxy = proxy(
        &[port],
        ProxySettings {
            warm: true,
            ..ProxySettings::default()
        },
    );
    let world = World::serving(&proxy);
    let accepted = Arc::new(AtomicUsize::new(0));
    // Connections before this one are closed when their request comes.
    let stale = Arc::new(AtomicUsize::new(0));
    let (count, closed) = (Arc::clone(&accepted), Arc::clone(&stale));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let number = count.fetch_add(1, Ordering::Relaxed);
            let closed = Arc::clone(&closed);
            tokio::spawn(async move {
                let mut byte = [0];
                stream.peek(&mut byte).await?;
                let is_stale = number < closed.load(Ordering::Relaxed);
                serve(stream, if is_stale { b"" } else { OK }).await
            });
        }
    });
    let mut opened = 0;
    while accepted.load(Ordering::Relaxed) <= opened {
        world.open(&proxy).await.unwrap();
        opened += 1;
        assert!(opened < 50, "no connection is made ahead");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stale.store(accepted.load(Ordering::Relaxed), Ordering::Relaxed);
    let tunnel = world.open(&proxy).await.unwrap();
    assert!(tunnel.timings.tcp.is_some(), "a fresh one");
    assert_eq!(world.notes.take(), [""; 0]);
}
