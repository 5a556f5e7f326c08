//! Tunnels that come to stand.

use super::*;

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways() {
    let gateway = start(local()).await;
    let server = Server::new().await;
    for target in [
        format!("here.example:{}", server.port()),
        format!("127.0.0.1:{}", server.port()),
        format!("[::ffff:127.0.0.1]:{}", server.port()),
        // The first address is refused, the second is not.
        format!("second.example:{}", server.port()),
    ] {
        let mut client = Client::new(&gateway).await;
        let answer = client.connect(&target).await;
        assert!(
            answer
                .head
                .starts_with("HTTP/1.1 200 Connection established\r\n"),
            "{}",
            answer.head
        );
        assert_eq!(answer.field("content-length"), None);
        assert_eq!(answer.field("transfer-encoding"), None);
        let mut upstream = server.accept().await;
        client.0.write_all(b"ping").await.unwrap();
        let mut bytes = [0; 4];
        upstream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
        upstream.write_all(b"pong").await.unwrap();
        client.0.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"pong");
    }
}

#[tokio::test]
async fn bytes_behind_the_request_belong_to_the_tunnel() {
    let gateway = start(local()).await;
    let server = Server::new().await;
    let early = "CONNECT evil.example:443 HTTP/1.1\r\n\r\n".repeat(200);
    let mut client = Client::new(&gateway).await;
    let request = format!(
        "CONNECT here.example:{} HTTP/1.1\r\n\r\n{early}",
        server.port()
    );
    client.0.write_all(request.as_bytes()).await.unwrap();
    // The client has finished before the tunnel stands.
    client.0.shutdown().await.unwrap();
    let mut upstream = server.accept().await;
    let mut received = String::new();
    upstream.read_to_string(&mut received).await.unwrap();
    assert!(received == early);
    assert_eq!(client.answer().await.status(), "200");
    upstream.write_all(b"the answer").await.unwrap();
    drop(upstream);
    assert_eq!(client.rest().await.unwrap(), b"the answer");
}

#[tokio::test]
async fn old_clients_and_those_that_want_to_close_get_their_tunnel() {
    let gateway = start(local()).await;
    let server = Server::new().await;
    for (version, field) in [("1.0", ""), ("1.1", "Connection: close\r\n")] {
        let mut client = Client::new(&gateway).await;
        let port = server.port();
        let request = format!("CONNECT here.example:{port} HTTP/{version}\r\n{field}\r\n");
        assert_eq!(client.ask(&request).await.status(), "200");
        let mut upstream = server.accept().await;
        client.0.write_all(b"x").await.unwrap();
        assert_eq!(upstream.read_u8().await.unwrap(), b'x');
        upstream.write_all(b"y").await.unwrap();
        assert_eq!(client.0.read_u8().await.unwrap(), b'y');
    }
}

#[tokio::test]
async fn half_closes_pass_through() {
    let gateway = start(local()).await;
    let server = Server::new().await;

    let (mut client, mut upstream) = Client::tunnel(&gateway, &server).await;
    client.0.write_all(b"request").await.unwrap();
    client.0.shutdown().await.unwrap();
    let mut request = String::new();
    upstream.read_to_string(&mut request).await.unwrap();
    assert_eq!(request, "request");
    upstream.write_all(b"response").await.unwrap();
    drop(upstream);
    assert_eq!(client.rest().await.unwrap(), b"response");

    let (mut client, mut upstream) = Client::tunnel(&gateway, &server).await;
    upstream.write_all(b"banner").await.unwrap();
    upstream.shutdown().await.unwrap();
    assert_eq!(client.rest().await.unwrap(), b"banner");
    client.0.write_all(b"thanks").await.unwrap();
    drop(client);
    let mut thanks = String::new();
    upstream.read_to_string(&mut thanks).await.unwrap();
    assert_eq!(thanks, "thanks");
}

#[tokio::test]
async fn resets_pass_through() {
    let gateway = start(local()).await;
    let server = Server::new().await;
    let (mut client, upstream) = Client::tunnel(&gateway, &server).await;
    crate::sockets::reset_on_close(&upstream);
    drop(upstream);
    let error = client.rest().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    let (client, mut upstream) = Client::tunnel(&gateway, &server).await;
    crate::sockets::reset_on_close(&client.0);
    drop(client);
    let error = upstream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn silent_tunnels_are_reset() {
    let gateway = start(GatewayConfig {
        relay: Timeouts {
            idle: Duration::from_millis(200),
            ..Timeouts::default()
        },
        ..local()
    })
    .await;
    let server = Server::new().await;
    let (mut client, _upstream) = Client::tunnel(&gateway, &server).await;
    let error = client.rest().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn stopping_waits_for_tunnels_but_accepts_no_more() {
    let gateway = start(local()).await;
    let server = Server::new().await;
    let (mut client, mut upstream) = Client::tunnel(&gateway, &server).await;
    let mut idle = Client::new(&gateway).await;
    assert_eq!(idle.ask("GET / HTTP/1.1\r\n\r\n").await.status(), "400");

    gateway.control.drain();
    assert!(idle.rest().await.unwrap().is_empty());
    // The listener may outlive idle clients by a moment.
    let refused = async {
        loop {
            match TcpStream::connect(gateway.address).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => break,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    timeout(Duration::from_secs(5), refused).await.unwrap();
    client.0.write_all(b"still here").await.unwrap();
    let mut bytes = [0; 10];
    upstream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"still here");
    assert!(!gateway.serving.is_finished());

    drop((client, upstream));
    let stopped = timeout(Duration::from_secs(5), gateway.serving).await;
    stopped.unwrap().unwrap();
}

#[tokio::test]
async fn stopping_resets_what_goes_on_for_too_long() {
    let gateway = start(GatewayConfig {
        drain: Duration::from_millis(200),
        ..local()
    })
    .await;
    let server = Server::new().await;
    let (mut client, mut upstream) = Client::tunnel(&gateway, &server).await;
    gateway.control.drain();
    let stopped = timeout(Duration::from_secs(5), gateway.serving).await;
    stopped.unwrap().unwrap();
    for error in [
        client.rest().await.unwrap_err(),
        upstream.read_u8().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_second_order_stops_at_once() {
    let gateway = start(GatewayConfig {
        drain: Duration::from_secs(3600),
        ..local()
    })
    .await;
    let server = Server::new().await;
    let (mut client, _upstream) = Client::tunnel(&gateway, &server).await;
    gateway.control.drain();
    gateway.control.stop();
    let stopped = timeout(Duration::from_secs(5), gateway.serving).await;
    stopped.unwrap().unwrap();
    let error = client.rest().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn tunnels_and_their_bytes_are_counted_while_they_stand() {
    let gateway = start(local()).await;
    let server = Server::new().await;
    let (mut client, mut upstream) = Client::tunnel(&gateway, &server).await;
    client.0.write_all(b"abc").await.unwrap();
    upstream.read_exact(&mut [0; 3]).await.unwrap();
    let active = "underpass_gateway_tunnels_active";
    gateway
        .wait_for_metric(active, &[("protocol", "http1")], 1.0)
        .await;
    gateway
        .wait_for_metric("underpass_gateway_sent_bytes_total", &[], 3.0)
        .await;
    drop((client, upstream));
    gateway
        .wait_for_metric(active, &[("protocol", "http1")], 0.0)
        .await;
    let requests = [
        ("method", "connect"),
        ("protocol", "http1"),
        ("code", "200"),
    ];
    gateway
        .wait_for_metric("underpass_gateway_requests_total", &requests, 1.0)
        .await;
    gateway
        .wait_for_metric(
            "underpass_gateway_connections_active",
            &[("transport", "plain")],
            0.0,
        )
        .await;
}
