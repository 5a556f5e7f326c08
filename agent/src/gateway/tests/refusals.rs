//! Requests that get no tunnel.

use super::*;

#[tokio::test]
async fn what_no_rule_covers_is_forbidden_and_the_connection_goes_on() {
    let server = Server::new().await;
    let port = server.port();
    let by_address = format!("127.0.0.1:{port}");
    let gateway = start(allow(&["unknown.example:1", &by_address])).await;
    let mut client = Client::new(&gateway).await;
    for target in [
        "unknown.example:2".to_owned(),
        "other.example:1".to_owned(),
        "here.example:1".to_owned(),
        "203.0.113.7:1".to_owned(),
        // It could have the address that is allowed, but has none.
        format!("other.example:{port}"),
        format!("empty.example:{port}"),
    ] {
        let answer = client.connect(&target).await;
        assert_eq!(answer.status(), "403", "{target}");
        assert_eq!(
            answer.field("content-type"),
            Some("text/plain; charset=utf-8")
        );
        let text = format!("{target}: no allow rule of this gateway covers it\n");
        assert_eq!(answer.body, text);
    }
    // Both by its address and by a name that has it.
    let answer = client.connect(&format!("here.example:{port}")).await;
    assert_eq!(answer.status(), "200");
    server.accept().await;
    let mut client = Client::new(&gateway).await;
    assert_eq!(client.connect(&by_address).await.status(), "200");
}

#[tokio::test]
async fn without_rules_only_https_is_allowed() {
    let gateway = start(GatewayConfig::default()).await;
    let mut client = Client::new(&gateway).await;
    assert_eq!(client.connect("here.example:80").await.status(), "403");
    // Loopback stays forbidden on any port.
    let answer = client.connect("here.example:443").await;
    assert_eq!(answer.status(), "403");
    assert!(answer.body.contains("loopback"), "{}", answer.body);
}

#[tokio::test]
async fn reserved_addresses_are_forbidden_by_any_name() {
    let gateway = start(allow(&["*:*"])).await;
    let mut client = Client::new(&gateway).await;
    for (target, kind) in [
        ("169.254.169.254:80", "link-local"),
        ("metadata.example:80", "link-local"),
        ("[fe80::1]:80", "link-local"),
        ("here.example:80", "loopback"),
        ("[::ffff:127.0.0.1]:80", "loopback"),
        ("0.0.0.0:80", "unspecified"),
        ("[::]:80", "unspecified"),
        ("224.0.0.1:80", "multicast"),
    ] {
        let answer = client.connect(target).await;
        assert_eq!(answer.status(), "403", "{target}");
        assert!(answer.body.contains(kind), "{target}: {}", answer.body);
    }
}

#[tokio::test]
async fn users_have_to_prove_themselves() {
    let gateway = start(GatewayConfig {
        users: only_for("ann:s3cret\n", Scheme::Basic),
        ..local()
    })
    .await;
    let server = Server::new().await;
    let target = format!("here.example:{}", server.port());
    let mut client = Client::new(&gateway).await;
    let answer = client.connect(&target).await;
    assert_eq!(answer.status(), "407");
    assert_eq!(
        answer.field("proxy-authenticate"),
        Some("Basic realm=\"underpass\", charset=\"UTF-8\"")
    );
    for wrong in [
        "Proxy-Authorization: Basic YW5uOndyb25n\r\n",
        "Proxy-Authorization: Bearer s3cret\r\n",
        "Authorization: Basic YW5uOnMzY3JldA==\r\n",
        "Proxy-Authorization: Basic YW5uOnMzY3JldA==\r\nProxy-Authorization: Basic eA==\r\n",
    ] {
        let request = format!("CONNECT {target} HTTP/1.1\r\n{wrong}\r\n");
        assert_eq!(client.ask(&request).await.status(), "407", "{wrong}");
    }
    gateway
        .wait_for_metric(
            "underpass_gateway_denied_total",
            &[("reason", "credentials")],
            5.0,
        )
        .await;
    // Whoever has not proved to be a user does not learn what the rules allow.
    let answer = client.connect("203.0.113.7:80").await;
    assert_eq!(answer.status(), "407");

    let right = "Proxy-Authorization: Basic YW5uOnMzY3JldA==\r\n";
    let request = format!("CONNECT {target} HTTP/1.1\r\n{right}\r\n");
    assert_eq!(client.ask(&request).await.status(), "200");
    server.accept().await;
}

#[tokio::test]
async fn targets_out_of_reach_are_a_bad_gateway() {
    let gateway = start(local()).await;
    let closed = Server::new().await.port();
    let mut client = Client::new(&gateway).await;
    for (target, reason) in [
        (format!("here.example:{closed}"), "refused"),
        ("unknown.example:443".into(), "no such name"),
        ("empty.example:443".into(), "no address"),
    ] {
        let answer = client.connect(&target).await;
        assert_eq!(answer.status(), "502", "{target}");
        assert!(answer.body.contains(reason), "{target}: {}", answer.body);
    }
}

#[tokio::test]
async fn targets_that_do_not_answer_are_a_gateway_timeout() {
    let gateway = start(GatewayConfig {
        connect_timeout: Duration::from_millis(300),
        ..local()
    })
    .await;
    let mut client = Client::new(&gateway).await;
    assert_eq!(client.connect("slow.example:443").await.status(), "504");

    // A server whose queue is full takes no further connection.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let full = socket.listen(0).unwrap();
    let address = full.local_addr().unwrap();
    let connect = || timeout(Duration::from_millis(100), TcpStream::connect(address));
    let mut queued = Vec::new();
    while let Ok(stream) = connect().await {
        queued.push(stream);
    }
    assert_eq!(client.connect(&address.to_string()).await.status(), "504");
}

#[tokio::test]
async fn requests_to_a_server_are_told_what_this_is() {
    let gateway = start(local()).await;
    for request in [
        "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET https://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhi",
        "OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n",
    ] {
        let mut client = Client::new(&gateway).await;
        let answer = client.ask(request).await;
        assert_eq!(answer.status(), "400");
        assert!(answer.body.contains("CONNECT"), "{}", answer.body);
    }
    let mut client = Client::new(&gateway).await;
    let trace = "TRACE http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let answer = client.ask(trace).await;
    assert_eq!(answer.status(), "405");
    assert!(answer.field("allow").unwrap().contains("CONNECT"));
}

#[tokio::test]
async fn requests_that_make_no_sense_are_bad() {
    let gateway = start(local()).await;
    for request in [
        "CONNECT here.example HTTP/1.1\r\n\r\n",
        "CONNECT here.example:0 HTTP/1.1\r\n\r\n",
        "CONNECT here.example:99999 HTTP/1.1\r\n\r\n",
        "CONNECT ::1:443 HTTP/1.1\r\n\r\n",
        "CONNECT user@here.example:443 HTTP/1.1\r\n\r\n",
        "CONNECT http://here.example:443/ HTTP/1.1\r\n\r\n",
        "CONNECT / HTTP/1.1\r\n\r\n",
        "CONNECT 127.1:443 HTTP/1.1\r\n\r\n",
        "CONNECT here.example:443 HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        "CONNECT here.example:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "CONNECT here.example:443 HTTP/1.1\r\nbad name: x\r\n\r\n",
        "CONNECT here.example:443\r\n\r\n",
        "\u{16}\u{3}\u{1} this is not HTTP\r\n\r\n",
    ] {
        let mut client = Client::new(&gateway).await;
        let answer = client.ask(request).await;
        assert_eq!(answer.status(), "400", "{request:?}");
    }
    let mut client = Client::new(&gateway).await;
    let huge = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    assert_eq!(client.ask(&huge).await.status(), "431");
}

#[tokio::test]
async fn clients_above_the_limit_are_turned_away() {
    let gateway = start(GatewayConfig {
        max_connections: 1,
        ..local()
    })
    .await;
    let server = Server::new().await;
    let (first, upstream) = Client::tunnel(&gateway, &server).await;
    let target = format!("here.example:{}", server.port());
    let mut second = Client::new(&gateway).await;
    let answer = second.connect(&target).await;
    assert_eq!(answer.status(), "503");
    assert_eq!(answer.field("connection"), Some("close"));
    assert!(second.rest().await.unwrap().is_empty());
    drop(second);
    let active = "underpass_gateway_connections_active";
    gateway.wait_for_metric(active, &[], 1.0).await;

    // Those that say nothing cannot pile up either.
    let mut silent = Vec::new();
    for _ in 0..MAX_REFUSALS {
        silent.push(Client::new(&gateway).await);
    }
    let mut beyond = Client::new(&gateway).await;
    let error = beyond.rest().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    // The place is free again when the tunnel has ended.
    drop((first, upstream));
    let request = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n";
    for _ in 0..250 {
        let mut next = Client::new(&gateway).await;
        // Until then it is reset, perhaps while it writes.
        let _ = next.0.write_all(request).await;
        match next.rest().await {
            Ok(answer) => return assert!(answer.starts_with(b"HTTP/1.1 400")),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("the place was never free again");
}

#[tokio::test]
async fn clients_have_a_time_for_their_request() {
    let gateway = start(GatewayConfig {
        head_timeout: Duration::from_millis(200),
        ..local()
    })
    .await;
    for begin in ["", "CONNECT here.exa", "GET / HTTP/1.1\r\n\r\n"] {
        let mut client = Client::new(&gateway).await;
        client.0.write_all(begin.as_bytes()).await.unwrap();
        // The last of them has an answer, and then time for another request.
        let rest = client.rest().await.unwrap();
        assert_eq!(rest.starts_with(b"HTTP/1.1 400"), begin.starts_with("GET"));
    }
}

#[tokio::test]
async fn tokens_prove_it_too_and_both_may_be_offered() {
    let mut users = only_for("ann:s3cret\n", Scheme::Basic);
    users.extend(only_for("ci:abc.DEF\n", Scheme::Bearer));
    let gateway = start(GatewayConfig { users, ..local() }).await;
    let server = Server::new().await;
    let target = format!("here.example:{}", server.port());
    let mut client = Client::new(&gateway).await;
    let answer = client.connect(&target).await;
    let offers: Vec<&str> = answer
        .head
        .lines()
        .filter_map(|line| line.strip_prefix("proxy-authenticate: "))
        .collect();
    let [basic, bearer] = offers[..] else {
        panic!("{offers:?}");
    };
    assert!(basic.starts_with("Basic ") && bearer.starts_with("Bearer "));
    for (value, status) in [
        ("Bearer abc.DEF=", "407"),
        ("Bearer s3cret", "407"),
        ("Basic Y2k6YWJjLkRFRg==", "407"),
        ("Basic YW5uOnMzY3JldA==", "200"),
        ("Bearer abc.DEF", "200"),
    ] {
        let mut client = Client::new(&gateway).await;
        let request = format!("CONNECT {target} HTTP/1.1\r\nProxy-Authorization: {value}\r\n\r\n");
        assert_eq!(client.ask(&request).await.status(), status, "{value}");
    }
}

#[tokio::test]
async fn credentials_are_followed_and_tunnels_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users");
    fs::write(&file, "ann:s3cret\n").unwrap();
    let gateway = start(GatewayConfig {
        users: vec![CredentialFile::follow(&file, Scheme::Basic).unwrap()],
        ..local()
    })
    .await;
    let server = Server::new().await;
    let request = |user: &str| {
        let port = server.port();
        format!("CONNECT here.example:{port} HTTP/1.1\r\nProxy-Authorization: Basic {user}\r\n\r\n")
    };
    let (ann, bob) = (request("YW5uOnMzY3JldA=="), request("Ym9iOm90aGVy"));
    let mut tunnel = Client::new(&gateway).await;
    assert_eq!(tunnel.ask(&ann).await.status(), "200");
    let mut upstream = server.accept().await;

    fs::write(&file, "bob:other\n").unwrap();
    gateway.control.reload();
    gateway.wait_for_reload("credentials", "success").await;
    let mut client = Client::new(&gateway).await;
    assert_eq!(client.ask(&ann).await.status(), "407");
    assert_eq!(client.ask(&bob).await.status(), "200");
    tunnel.0.write_all(b"x").await.unwrap();
    assert_eq!(upstream.read_u8().await.unwrap(), b'x');

    // Nobody is told to: it is seen that the file is another. What cannot be used changes nothing.
    fs::write(&file, "no colon\n").unwrap();
    gateway.wait_for_reload("credentials", "failure").await;
    let mut client = Client::new(&gateway).await;
    assert_eq!(client.ask(&bob).await.status(), "200");
}
