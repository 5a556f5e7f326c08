//! Clients that speak HTTP/2, with prior knowledge.

mod hostile;

use bytes::Bytes;
use h2::client::{SendRequest, handshake};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode, Version};

use super::*;

/// An HTTP/2 client of a gateway.
pub(super) struct Client {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

/// A tunnel as the client has it.
struct Tunnel {
    send: SendStream<Bytes>,
    recv: RecvStream,
}

impl Client {
    pub(super) async fn new(gateway: &Running) -> Self {
        let stream = TcpStream::connect(gateway.address).await.unwrap();
        let (requests, connection) = handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        Self {
            requests,
            connection,
        }
    }

    fn request(method: &str, uri: &str) -> Request<()> {
        let builder = Request::builder().method(method).uri(uri);
        builder.version(Version::HTTP_2).body(()).unwrap()
    }

    async fn send(
        &mut self,
        request: Request<()>,
        end: bool,
    ) -> Result<(Response<RecvStream>, SendStream<Bytes>), h2::Error> {
        let mut requests = self.requests.clone().ready().await?;
        let (response, send) = requests.send_request(request, end)?;
        let response = timeout(Duration::from_secs(5), response).await;
        Ok((response.expect("an answer")?, send))
    }

    /// The answer to a request of which no more is sent than its head, the connection kept.
    pub(super) async fn ask(&mut self, method: &str, uri: &str) -> Response<RecvStream> {
        let end = method == "GET";
        let (response, _) = self.send(Self::request(method, uri), end).await.unwrap();
        response
    }

    async fn tunnel_by(&mut self, method: &str, uri: &str) -> Tunnel {
        let (response, send) = self.send(Self::request(method, uri), false).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        Tunnel {
            send,
            recv: response.into_body(),
        }
    }

    /// A tunnel to `server`, by CONNECT.
    async fn tunnel(&mut self, server: &Server) -> (Tunnel, TcpStream) {
        let target = format!("here.example:{}", server.port());
        let tunnel = self.tunnel_by("CONNECT", &target).await;
        (tunnel, server.accept().await)
    }
}

impl Tunnel {
    fn say(&mut self, bytes: &'static [u8], end: bool) {
        self.send.send_data(Bytes::from_static(bytes), end).unwrap();
    }

    /// The next bytes, if there are more.
    async fn data(&mut self) -> Option<Result<Bytes, h2::Error>> {
        let data = timeout(Duration::from_secs(5), next(&mut self.recv)).await;
        data.expect("data, or their end")
    }

    /// Reads exactly `length` bytes.
    async fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            bytes.extend(self.data().await.unwrap().unwrap());
        }
        assert_eq!(bytes.len(), length);
        bytes
    }

    /// How the stream was reset.
    async fn reset(&mut self) -> Reason {
        loop {
            match self.data().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return error.reason().unwrap(),
                None => panic!("it ended in order"),
            }
        }
    }
}

/// The next bytes, if there are more; the end may come with a frame that has none.
async fn next(recv: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    loop {
        match recv.data().await? {
            Ok(data) if data.is_empty() => {}
            Ok(data) => {
                recv.flow_control().release_capacity(data.len()).unwrap();
                return Some(Ok(data));
            }
            Err(error) => return Some(Err(error)),
        }
    }
}

async fn text(response: Response<RecvStream>) -> String {
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(data) = next(&mut body).await {
        text.extend(data.unwrap());
    }
    String::from_utf8(text).unwrap()
}

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

/// Sends until the gateway takes no more.
async fn fill(send: &mut SendStream<Bytes>) {
    let chunk = Bytes::from(vec![0; 64 * 1024]);
    loop {
        send.reserve_capacity(chunk.len());
        while send.capacity() < chunk.len() {
            let capacity = std::future::poll_fn(|cx| send.poll_capacity(cx));
            match timeout(Duration::from_millis(300), capacity).await {
                Ok(granted) => {
                    granted.unwrap().unwrap();
                }
                Err(_) => return,
            }
        }
        send.send_data(chunk.clone(), false).unwrap();
    }
}

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
async fn refusals_are_answers_and_the_connection_goes_on() {
    let gateway = start(GatewayConfig {
        users: only_for("ann:s3cret\n", Scheme::Basic),
        ..allow(&["127.0.0.0/8:*"])
    })
    .await;
    let server = Server::new().await;
    let mut client = Client::new(&gateway).await;
    let target = format!("here.example:{}", server.port());
    let answer = client.ask("CONNECT", &target).await;
    assert_eq!(answer.status(), StatusCode::PROXY_AUTHENTICATION_REQUIRED);
    let offer = answer.headers()["proxy-authenticate"].to_str().unwrap();
    assert!(offer.starts_with("Basic "));
    for (target, length, status) in [
        (&*target, None, 200),
        ("203.0.113.7:443", None, 403),
        ("here.example", None, 400),
        (&*target, Some("5"), 400),
    ] {
        let mut request = Client::request("CONNECT", target);
        let fields = request.headers_mut();
        let value = "Basic YW5uOnMzY3JldA==";
        fields.insert("proxy-authorization", value.parse().unwrap());
        if let Some(length) = length {
            fields.insert("content-length", length.parse().unwrap());
        }
        let (answer, _) = client.send(request, false).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{target}");
    }
    // A POST is an ordinary request unless it was said to be a tunnel.
    let gateway = start(local()).await;
    let mut client = Client::new(&gateway).await;
    let answer = client.ask("POST", &format!("https://{target}/")).await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn plain_http_is_forwarded_with_bodies_and_trailers() {
    let gateway = start(local()).await;
    let server = Server::new().await;
    let client = Client::new(&gateway).await;
    let uri = format!("http://here.example:{}/path?q", server.port());
    let mut request = Client::request("POST", &uri);
    for cookie in ["a=1", "b=2"] {
        request
            .headers_mut()
            .append("cookie", cookie.parse().unwrap());
    }
    let mut requests = client.requests.clone().ready().await.unwrap();
    let (response, mut send) = requests.send_request(request, false).unwrap();
    send.send_data(Bytes::from_static(b"hello"), true).unwrap();
    let mut upstream = server.accept().await;
    let mut asked = Vec::new();
    while !asked.ends_with(b"0\r\n\r\n") {
        asked.push(upstream.read_u8().await.unwrap());
    }
    let asked = String::from_utf8(asked).unwrap();
    assert!(asked.starts_with("POST /path?q HTTP/1.1\r\n"), "{asked}");
    for line in [
        format!("host: here.example:{}", server.port()),
        "cookie: a=1; b=2".into(),
        "via: 2 underpass".into(),
        "transfer-encoding: chunked\r\n\r\n5\r\nhello".into(),
    ] {
        assert!(asked.contains(&format!("\r\n{line}\r\n")), "{asked}");
    }
    let answer = "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\
                  Trailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n";
    upstream.write_all(answer.as_bytes()).await.unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.headers()["via"], "1.1 underpass");
    assert!(!response.headers().contains_key("connection"));
    let mut body = response.into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "abc");
    assert!(next(&mut body).await.is_none());
    let trailers: HeaderMap = body.trailers().await.unwrap().unwrap();
    assert_eq!(trailers["x-sum"], "6");

    // One without a body, and one whose answer breaks off.
    for whole in [true, false] {
        let mut requests = client.requests.clone().ready().await.unwrap();
        let request = Client::request("GET", &uri);
        let (response, _) = requests.send_request(request, true).unwrap();
        let mut upstream = server.accept().await;
        let mut bytes = [0; 4096];
        let length = upstream.read(&mut bytes).await.unwrap();
        let asked = String::from_utf8_lossy(&bytes[..length]).into_owned();
        assert!(!asked.contains("transfer-encoding"), "{asked}");
        let length = if whole { 3 } else { 4 };
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nabc");
        upstream.write_all(answer.as_bytes()).await.unwrap();
        drop(upstream);
        let mut body = response.await.unwrap().into_body();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), "abc");
        match next(&mut body).await {
            None => assert!(whole),
            Some(Err(error)) => assert!(!whole && error.is_reset(), "{error}"),
            Some(Ok(data)) => panic!("{data:?}"),
        }
    }
}

#[tokio::test]
async fn an_answer_that_the_client_does_not_take_is_given_up() {
    let gateway = start(GatewayConfig {
        exchange_timeout: Duration::from_millis(300),
        ..local()
    })
    .await;
    let server = Server::new().await;
    let client = Client::new(&gateway).await;
    let uri = format!("http://here.example:{}/", server.port());
    let mut requests = client.requests.clone().ready().await.unwrap();
    let request = Client::request("GET", &uri);
    let (response, _) = requests.send_request(request, true).unwrap();
    let mut upstream = server.accept().await;
    let length = 1 << 20;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    upstream.write_all(answer.as_bytes()).await.unwrap();
    let more = tokio::spawn(async move { upstream.write_all(&vec![0; length]).await });
    let mut body = response.await.unwrap().into_body();
    // No room is given back, so the window of the stream fills.
    let error = loop {
        match timeout(Duration::from_secs(5), body.data()).await.unwrap() {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("it ended in order"),
        }
    };
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    // Nor is the target held.
    let _ = timeout(Duration::from_secs(5), more).await.unwrap();
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
