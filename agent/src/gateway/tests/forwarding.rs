//! Plain HTTP in absolute form.

use super::*;

/// Reads the head of a request, and not a byte more.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Reads `text`, and not a byte more.
async fn expect(stream: &mut TcpStream, text: &str) {
    let mut bytes = vec![0; text.len()];
    let read = timeout(Duration::from_secs(5), stream.read_exact(&mut bytes)).await;
    read.unwrap().unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), text);
}

fn lines(head: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = head.trim_end().lines().collect();
    lines[1..].sort_unstable();
    lines
}

#[tokio::test]
async fn requests_go_in_origin_form_and_answers_come_back() {
    let gateway = start(GatewayConfig {
        users: only_for("ann:s3cret\n", Scheme::Basic),
        ..local()
    })
    .await;
    let mut client = Client::new(&gateway).await;
    // One connection of the client, two targets.
    for _ in 0..2 {
        let server = Server::new().await;
        let port = server.port();
        let request = format!(
            "GET http://here.example:{port}/path?query HTTP/1.1\r\n\
             Host: other.example\r\n\
             Proxy-Authorization: Basic YW5uOnMzY3JldA==\r\n\
             Proxy-Connection: keep-alive\r\n\
             Connection: keep-alive, X-Mine\r\n\
             X-Mine: 1\r\n\
             Authorization: Bearer for-the-target\r\n\r\n"
        );
        client.0.write_all(request.as_bytes()).await.unwrap();
        let mut upstream = server.accept().await;
        let host = format!("Host: here.example:{port}");
        let expected = [
            "GET /path?query HTTP/1.1",
            "Authorization: Bearer for-the-target",
            "Connection: close",
            &host,
            "Via: 1.1 underpass",
        ];
        assert_eq!(lines(&head(&mut upstream).await), expected);
        let answer = "HTTP/1.1 404 Nothing There\r\nContent-Length: 5\r\nKeep-Alive: x\r\n\
                      Connection: keep-alive\r\nX-Own: yes\r\n\r\nnope\n";
        upstream.write_all(answer.as_bytes()).await.unwrap();
        let answer = client.answer().await;
        assert_eq!((answer.status(), &*answer.body), ("404", "nope\n"));
        assert_eq!(answer.field("x-own"), Some("yes"));
        assert_eq!(answer.field("via"), Some("1.1 underpass"));
        assert_eq!(answer.field("keep-alive"), None);
    }
    let labels = [("method", "get"), ("protocol", "http1"), ("code", "404")];
    gateway
        .wait_for_metric("underpass_gateway_requests_total", &labels, 2.0)
        .await;
    gateway
        .wait_until("underpass_gateway_received_bytes_total", &[], |bytes| {
            bytes > 10.0
        })
        .await;
}

#[tokio::test]
async fn bodies_pass_both_ways_by_length_and_in_chunks() {
    let gateway = start(local()).await;
    let server = Server::new().await;
    let mut client = Client::new(&gateway).await;
    let begin = format!(
        "POST http://127.0.0.1:{}/ HTTP/1.1\r\nHost: x\r\n",
        server.port()
    );
    let by_length = format!("{begin}Content-Length: 5\r\n\r\nhello");
    client.0.write_all(by_length.as_bytes()).await.unwrap();
    let mut upstream = server.accept().await;
    let asked = head(&mut upstream).await;
    assert!(asked.contains("\r\nContent-Length: 5\r\n"), "{asked}");
    expect(&mut upstream, "hello").await;
    let answer =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    upstream.write_all(answer.as_bytes()).await.unwrap();
    let answer = client.answer().await;
    assert_eq!(answer.field("transfer-encoding"), Some("chunked"));
    // The chunks of the gateway may be others.
    let mut body = String::new();
    while !body.ends_with("0\r\n\r\n") {
        body.push(client.0.read_u8().await.unwrap().into());
    }
    let data: String = body.lines().skip(1).step_by(2).collect();
    assert_eq!(data, "abcde");

    let chunked = format!("{begin}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
    client.0.write_all(chunked.as_bytes()).await.unwrap();
    let mut upstream = server.accept().await;
    let asked = head(&mut upstream).await;
    assert!(
        asked.contains("\r\nTransfer-Encoding: chunked\r\n"),
        "{asked}"
    );
    // It does not wait for the end.
    expect(&mut upstream, "5\r\nhello\r\n").await;
    client.0.write_all(b"1\r\n!\r\n0\r\n\r\n").await.unwrap();
    expect(&mut upstream, "1\r\n!\r\n0\r\n\r\n").await;
    upstream
        .write_all(b"HTTP/1.1 204 OK\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(client.answer().await.status(), "204");

    let asked = begin.replace("POST", "HEAD") + "\r\n";
    client.0.write_all(asked.as_bytes()).await.unwrap();
    let mut upstream = server.accept().await;
    head(&mut upstream).await;
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
    upstream.write_all(answer).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.0.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.contains("Content-Length: 1000\r\n"), "{head}");
}

#[tokio::test]
async fn requests_whose_end_is_in_doubt_do_not_go_on() {
    let gateway = start(local()).await;
    let server = Server::new().await;
    let begin = format!(
        "POST http://127.0.0.1:{}/ HTTP/1.1\r\nHost: x\r\n",
        server.port()
    );
    let chunked = "Transfer-Encoding: chunked\r\n";
    for (fields, body) in [
        ("Content-Length: 5\r\nContent-Length: 6\r\n", "0\r\n\r\n"),
        ("Content-Length: +5\r\n", "0\r\n\r\n"),
        ("Content-Length: 5, 6\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
        (&chunked.repeat(2), "0\r\n\r\n"),
        ("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        ("Host: y\r\n", ""),
        (" folded: x\r\n", ""),
        (&format!("{chunked}Content-Length: 5\r\n"), "0\r\n\r\n"),
        (&format!("Content-Length: 5\r\n{chunked}"), "0\r\n\r\n"),
        (chunked, "1\r\nab\r\n0\r\n\r\n"),
        (chunked, "x\r\n"),
    ] {
        let mut client = Client::new(&gateway).await;
        let next = "GET http://127.0.0.1/ HTTP/1.1\r\nHost: x\r\n\r\n";
        let answer = client
            .ask(&format!("{begin}{fields}\r\n{body}{next}"))
            .await;
        assert_eq!(answer.status(), "400", "{fields}{body}");
        // What follows is not taken for another request.
        assert_eq!(answer.field("connection"), Some("close"), "{fields}");
        assert!(client.rest().await.unwrap().is_empty());
    }
    let old = begin.replace("1.1", "1.0") + chunked + "\r\n0\r\n\r\n";
    assert_eq!(Client::new(&gateway).await.ask(&old).await.status(), "400");
    // Not even a connection.
    let came = timeout(Duration::from_millis(100), server.accept()).await;
    assert!(came.is_err());

    // A chunk that is wrong when the others have gone already: it does not look like the end.
    let mut client = Client::new(&gateway).await;
    let part = format!("{begin}{chunked}\r\n1\r\na\r\n");
    client.0.write_all(part.as_bytes()).await.unwrap();
    let mut upstream = server.accept().await;
    head(&mut upstream).await;
    expect(&mut upstream, "1\r\na\r\n").await;
    assert_eq!(client.ask("x\r\n").await.status(), "400");
    let error = upstream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn servers_that_do_not_answer_well_are_told_apart() {
    let gateway = start(GatewayConfig {
        exchange_timeout: Duration::from_millis(300),
        ..local()
    })
    .await;
    let server = Server::new().await;
    let request = format!(
        "GET http://127.0.0.1:{}/ HTTP/1.1\r\nHost: x\r\n\r\n",
        server.port()
    );
    for (said, status) in [
        (Some(""), "502"),
        (Some("SSH-2.0-x\r\n\r\n"), "502"),
        (
            Some("HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
            "502",
        ),
        (None, "504"),
    ] {
        let mut client = Client::new(&gateway).await;
        client.0.write_all(request.as_bytes()).await.unwrap();
        let mut upstream = server.accept().await;
        head(&mut upstream).await;
        let kept = match said {
            Some(said) => {
                upstream.write_all(said.as_bytes()).await.unwrap();
                drop(upstream);
                None
            }
            None => Some(upstream),
        };
        let answer = client.answer().await;
        assert_eq!(answer.status(), status, "{said:?}");
        drop(kept);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_complete() {
    let gateway = start(GatewayConfig {
        exchange_timeout: Duration::from_millis(300),
        ..local()
    })
    .await;
    let server = Server::new().await;
    // An old client is told the end of an answer by the end of the connection.
    for version in ["1.0", "1.1"] {
        for silent in [false, true] {
            let mut client = Client::new(&gateway).await;
            let port = server.port();
            let request = format!("GET http://127.0.0.1:{port}/ HTTP/{version}\r\nHost: x\r\n\r\n");
            client.0.write_all(request.as_bytes()).await.unwrap();
            let mut upstream = server.accept().await;
            head(&mut upstream).await;
            let begin = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
            upstream.write_all(begin).await.unwrap();
            let kept = silent.then_some(upstream);
            let error = client.rest().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            drop(kept);
        }
    }
}

#[tokio::test]
async fn an_old_client_gets_a_whole_answer_and_then_the_end() {
    let gateway = start(local()).await;
    let server = Server::new().await;
    let mut client = Client::new(&gateway).await;
    let port = server.port();
    let request = format!("GET http://127.0.0.1:{port}/ HTTP/1.0\r\n\r\n");
    client.0.write_all(request.as_bytes()).await.unwrap();
    let mut upstream = server.accept().await;
    assert!(head(&mut upstream).await.contains("Via: 1.0 underpass\r\n"));
    let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    upstream.write_all(answer).await.unwrap();
    let answer = String::from_utf8(client.rest().await.unwrap()).unwrap();
    assert!(answer.ends_with("\r\n\r\nabc"), "{answer}");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_connection_to_the_target() {
    let gateway = start(local()).await;
    let server = Server::new().await;
    let mut client = Client::new(&gateway).await;
    let port = server.port();
    let request = format!("GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n");
    client.0.write_all(request.as_bytes()).await.unwrap();
    let mut upstream = server.accept().await;
    head(&mut upstream).await;
    let begin = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc";
    upstream.write_all(begin).await.unwrap();
    client.ask_nothing_more().await;
    let ended = timeout(Duration::from_secs(5), upstream.read_u8()).await;
    ended.unwrap().unwrap_err();
}

impl Client {
    async fn ask_nothing_more(self) {
        crate::sockets::reset_on_close(&self.0);
    }
}
