//! Tunnels that are streams.

use super::*;

#[tokio::test]
async fn tunnels_carry_bytes_and_half_closes_both_ways() {
    let gateway = start(GatewayConfig {
        post_tunnels: true,
        ..local()
    })
    .await;
    let server = Server::new().await;
    let mut client = Client::new(&gateway).await;
    let target = format!("here.example:{}", server.port());
    for (method, uri) in [
        ("CONNECT", target.clone()),
        ("POST", format!("http://{target}/")),
        ("POST", format!("https://{target}/any/path")),
    ] {
        let mut tunnel = client.tunnel_by(method, &uri).await;
        let mut upstream = server.accept().await;
        tunnel.say(b"question", true);
        let mut question = String::new();
        upstream.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        upstream.write_all(b"answer").await.unwrap();
        assert_eq!(tunnel.read(6).await, b"answer");
        drop(upstream);
        assert!(tunnel.data().await.is_none());

        let mut tunnel = client.tunnel_by(method, &uri).await;
        let mut upstream = server.accept().await;
        upstream.write_all(b"banner").await.unwrap();
        upstream.shutdown().await.unwrap();
        assert_eq!(tunnel.read(6).await, b"banner");
        assert!(tunnel.data().await.is_none());
        tunnel.say(b"thanks", true);
        let mut thanks = String::new();
        upstream.read_to_string(&mut thanks).await.unwrap();
        assert_eq!(thanks, "thanks");
    }
    for method in ["connect", "post"] {
        let labels = [("method", method), ("protocol", "http2"), ("code", "200")];
        let count = if method == "post" { 4.0 } else { 2.0 };
        let name = "underpass_gateway_requests_total";
        gateway.wait_for_metric(name, &labels, count).await;
    }
}

#[tokio::test]
async fn failures_pass_as_resets_both_ways() {
    let gateway = start(local()).await;
    let server = Server::new().await;
    let mut client = Client::new(&gateway).await;

    let (mut tunnel, upstream) = client.tunnel(&server).await;
    crate::sockets::reset_on_close(&upstream);
    drop(upstream);
    assert_eq!(tunnel.reset().await, Reason::CONNECT_ERROR);

    for reason in [Reason::CANCEL, Reason::INTERNAL_ERROR, Reason::NO_ERROR] {
        let (mut tunnel, mut upstream) = client.tunnel(&server).await;
        tunnel.send.send_reset(reason);
        let read = timeout(Duration::from_secs(5), upstream.read_u8()).await;
        let error = read.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{reason:?}");
    }

    // Also where the target does not read, so that nobody reads the stream either.
    let (mut tunnel, mut upstream) = client.tunnel(&server).await;
    fill(&mut tunnel.send).await;
    tunnel.send.send_reset(Reason::CANCEL);
    let mut sink = Vec::new();
    let read = timeout(Duration::from_secs(5), upstream.read_to_end(&mut sink)).await;
    let error = read.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    // The client's connection goes, and all tunnels with it.
    let (_tunnel, mut upstream) = client.tunnel(&server).await;
    client.connection.abort();
    let read = timeout(Duration::from_secs(5), upstream.read_u8()).await;
    assert!(read.unwrap().is_err());
}

#[tokio::test]
async fn draining_takes_no_new_streams_and_lets_tunnels_end() {
    let gateway = start(local()).await;
    let server = Server::new().await;
    let mut client = Client::new(&gateway).await;
    let (mut tunnel, mut upstream) = client.tunnel(&server).await;
    let mut idle = Client::new(&gateway).await;
    assert_eq!(
        idle.ask("CONNECT", "x:0").await.status(),
        StatusCode::BAD_REQUEST
    );
    gateway.control.drain();
    let ended = timeout(Duration::from_secs(5), &mut idle.connection).await;
    ended.expect("GOAWAY, and the end").unwrap().unwrap();

    // What was begun goes on; what is new fails, and can be tried elsewhere.
    let target = format!("here.example:{}", server.port());
    let refused = async {
        loop {
            let request = Client::request("CONNECT", &target);
            match client.send(request, false).await {
                Err(error) => return error,
                // Sent before GOAWAY had come.
                Ok(_) => drop(server.accept().await),
            }
        }
    };
    let error = timeout(Duration::from_secs(5), refused).await.unwrap();
    assert!(error.is_go_away() || error.is_reset(), "{error}");
    tunnel.say(b"still here", false);
    let mut bytes = [0; 10];
    upstream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"still here");
    assert!(!gateway.serving.is_finished());
    tunnel.say(b"", true);
    drop(upstream);
    assert!(tunnel.data().await.is_none());
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
    let mut client = Client::new(&gateway).await;
    let (mut tunnel, mut upstream) = client.tunnel(&server).await;
    gateway.control.drain();
    let stopped = timeout(Duration::from_secs(5), gateway.serving).await;
    stopped.unwrap().unwrap();
    assert!(tunnel.data().await.unwrap().is_err());
    let error = upstream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}
