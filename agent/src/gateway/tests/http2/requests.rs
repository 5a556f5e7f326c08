//! Requests that get an answer.

use super::*;

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
        let text = async {
            let mut body = response.await?.into_body();
            let mut text = Vec::new();
            while let Some(data) = next(&mut body).await {
                text.extend(data?);
            }
            Ok::<_, h2::Error>(text)
        };
        match text.await {
            Ok(text) => assert!(whole && text == b"abc", "{text:?}"),
            // It may overtake what there was.
            Err(error) => assert!(!whole && error.is_reset(), "{error}"),
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
