//! Many streams on one connection, and what they leave to each other.

use super::*;

#[tokio::test]
async fn streams_that_are_stuck_hold_up_no_other() {
    let gateway = start(local()).await;
    let server = Server::new().await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    // The client has room for all streams too.
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(16 << 20);
    let (requests, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = Client {
        requests,
        connection,
    };
    let mut stuck = Vec::new();
    // These targets do not read, ...
    for _ in 0..4 {
        let (mut tunnel, upstream) = client.tunnel(&server).await;
        fill(&mut tunnel.send).await;
        stuck.push((tunnel, upstream));
    }
    // ... and of these the client does not.
    for _ in 0..4 {
        let (tunnel, mut upstream) = client.tunnel(&server).await;
        let chunk = [0; 64 * 1024];
        let full = Duration::from_millis(300);
        while timeout(full, upstream.write_all(&chunk)).await.is_ok() {}
        stuck.push((tunnel, upstream));
    }
    let (mut tunnel, mut upstream) = client.tunnel(&server).await;
    const LENGTH: usize = 4 << 20;
    let echo = tokio::spawn(async move {
        let (mut read, mut write) = upstream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut sender = tunnel.send;
    let sending = tokio::spawn(async move {
        let mut left = LENGTH;
        while left > 0 {
            sender.reserve_capacity(left);
            let granted = std::future::poll_fn(|cx| sender.poll_capacity(cx)).await;
            let length = granted.unwrap().unwrap().min(left);
            sender
                .send_data(Bytes::from(vec![7; length]), false)
                .unwrap();
            left -= length;
        }
        sender.send_data(Bytes::new(), true).unwrap();
    });
    let mut received = 0;
    while let Some(data) = timeout(Duration::from_secs(20), tunnel.recv.data())
        .await
        .unwrap()
    {
        let data = data.unwrap();
        received += data.len();
        tunnel
            .recv
            .flow_control()
            .release_capacity(data.len())
            .unwrap();
    }
    assert_eq!(received, LENGTH);
    sending.await.unwrap();
    echo.await.unwrap();
    drop(stuck);
}

#[tokio::test]
async fn many_tunnels_share_a_connection_up_to_the_limit() {
    let gateway = start(GatewayConfig {
        max_streams: 50,
        ..local()
    })
    .await;
    let server = Server::new().await;
    let mut client = Client::new(&gateway).await;
    let mut tunnels = Vec::new();
    for _ in 0..50 {
        tunnels.push(client.tunnel(&server).await);
    }
    for (number, (tunnel, upstream)) in tunnels.iter_mut().enumerate() {
        let byte = [number as u8];
        tunnel
            .send
            .send_data(Bytes::copy_from_slice(&byte), false)
            .unwrap();
        assert_eq!(upstream.read_u8().await.unwrap(), byte[0]);
        upstream.write_all(&byte).await.unwrap();
        assert_eq!(tunnel.read(1).await, byte);
    }
    let labels = [("protocol", "http2")];
    let name = "underpass_gateway_tunnels_active";
    gateway.wait_for_metric(name, &labels, 50.0).await;
    // The client was told of the limit, and keeps the next request back.
    let target = format!("here.example:{}", server.port());
    let mut waiting = client.requests.clone().ready().await.unwrap();
    let (response, _send) = waiting
        .send_request(Client::request("CONNECT", &target), false)
        .unwrap();
    let mut response = std::pin::pin!(response);
    let early = timeout(Duration::from_millis(200), response.as_mut()).await;
    assert!(early.is_err());
    drop(tunnels.pop());
    let late = timeout(Duration::from_secs(5), response).await;
    assert_eq!(late.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn streams_count_as_connections() {
    let gateway = start(GatewayConfig {
        max_connections: 3,
        ..local()
    })
    .await;
    let server = Server::new().await;
    let mut client = Client::new(&gateway).await;
    let first = client.tunnel(&server).await;
    let _second = client.tunnel(&server).await;
    let target = format!("here.example:{}", server.port());
    let answer = client.ask("CONNECT", &target).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(text(answer).await.contains("as many connections"));
    drop(first);
    let name = "underpass_gateway_tunnels_active";
    let labels = [("protocol", "http2")];
    gateway.wait_for_metric(name, &labels, 1.0).await;
    client.tunnel(&server).await;
}

#[tokio::test]
async fn a_connection_above_the_limit_is_told_so_and_closed() {
    let gateway = start(GatewayConfig {
        max_connections: 0,
        ..local()
    })
    .await;
    let mut client = Client::new(&gateway).await;
    let answer = client.ask("CONNECT", "here.example:443").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let ended = timeout(Duration::from_secs(5), client.connection).await;
    ended.expect("GOAWAY, and the end").unwrap().unwrap();
}

#[tokio::test]
async fn what_nobody_reads_takes_no_room_for_ever() {
    let gateway = start(GatewayConfig {
        max_streams: 8,
        ..local()
    })
    .await;
    let server = Server::new().await;
    let mut client = Client::new(&gateway).await;
    let chunk = Bytes::from(vec![0; 60_000]);
    // Twice what the connection has room for.
    for _ in 0..(2 * 8 * 256 * 1024 / chunk.len()) {
        let mut requests = client.requests.clone().ready().await.unwrap();
        let request = Client::request("CONNECT", "unknown.example:443");
        let (response, mut send) = requests.send_request(request, false).unwrap();
        send.send_data(chunk.clone(), false).unwrap();
        let answer = timeout(Duration::from_secs(5), response).await;
        let answer = answer.expect("room for more").unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    }
    let (mut tunnel, mut upstream) = client.tunnel(&server).await;
    tunnel.send.send_data(chunk.clone(), true).unwrap();
    let mut received = Vec::new();
    let reading = upstream.read_to_end(&mut received);
    timeout(Duration::from_secs(5), reading)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(received.len(), chunk.len());
}
