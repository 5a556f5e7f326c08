//! The beginning of a connection, the request and its answer.

use http::header::{HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::raw::*;
use super::*;
use crate::policy::Credentials;
use crate::tunnel::connect::{ExchangeError, Refusal};

/// The request that a proxy sees of `method` for `target`.
async fn seen(method: &Method, target: &str, port: u16) -> Request<()> {
    let (tell, seen) = oneshot::channel();
    let tell = Mutex::new(Some(tell));
    let connection = connected(
        &Config::default(),
        h2::server::Builder::new(),
        move |(request, respond)| {
            let (head, _) = request.into_parts();
            let request = Request::from_parts(head, ());
            tell.lock().take().unwrap().send(request).unwrap();
            drop(respond);
        },
    )
    .await;
    let target = Target {
        host: target.parse().unwrap(),
        port,
    };
    let credentials = Credentials::basic("user", &"secret".into()).unwrap();
    let headers = [(
        HeaderName::from_static("x-tenant"),
        HeaderValue::from_static("blue"),
    )];
    let request = TunnelRequest {
        target: &target,
        method,
        headers: &headers,
        authorization: Some(&credentials),
    };
    let request = request.build().unwrap();
    assert!(request.headers()["proxy-authorization"].is_sensitive());
    assert!(!format!("{request:?}").contains("dXNlcjpz"));
    let (_, seen) = tokio::join!(connection.open(request, patience()), seen);
    seen.unwrap()
}

fn fields(request: &Request<()>) -> Vec<(&str, &str)> {
    let each = request.headers().iter();
    each.map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect()
}

const FIELDS: [(&str, &str); 3] = [
    (
        "user-agent",
        concat!("underpass/", env!("CARGO_PKG_VERSION")),
    ),
    ("x-tenant", "blue"),
    ("proxy-authorization", "Basic dXNlcjpzZWNyZXQ="),
];

#[tokio::test]
async fn connect_has_an_authority_and_neither_scheme_nor_path() {
    for (host, authority) in [
        ("www.example.com", "www.example.com:8443"),
        ("192.0.2.1", "192.0.2.1:8443"),
        ("2001:db8::1", "[2001:db8::1]:8443"),
        ("under_score.example", "under_score.example:8443"),
    ] {
        let request = seen(&Method::Connect, host, 8443).await;
        assert_eq!(request.method(), http::Method::CONNECT);
        assert_eq!(request.uri().authority().unwrap(), authority);
        assert_eq!(request.uri().scheme(), None);
        assert_eq!(request.uri().path_and_query(), None);
        assert_eq!(fields(&request), FIELDS);
    }
}

#[tokio::test]
async fn post_names_the_target_as_its_authority() {
    let method = Method::Post {
        scheme: Scheme::HTTPS,
        path: PathAndQuery::from_static("/tunnel"),
    };
    let request = seen(&method, "www.example.com", 443).await;
    assert_eq!(request.method(), http::Method::POST);
    assert_eq!(request.uri(), "https://www.example.com:443/tunnel");
    assert_eq!(fields(&request), FIELDS);
}

/// A connection to a proxy that answers everything in the same way.
async fn refusing(
    answer: impl FnMut(&mut h2::server::SendResponse<Bytes>) + Send + 'static,
) -> Connection {
    let mut answer = answer;
    let server = h2::server::Builder::new();
    connected(&Config::default(), server, move |(_, mut respond)| {
        answer(&mut respond);
    })
    .await
}

async fn refusal(connection: &Connection) -> Refusal {
    match soon(connection.open(request(), patience())).await {
        Err(OpenError::Exchange(ExchangeError::Refused(refusal))) => *refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_refusal_reads_as_over_http_1() {
    let connection = refusing(|respond| {
        let answer = Response::builder()
            .status(407)
            .header("proxy-authenticate", "Negotiate, Basic realm=\"a, b\"")
            .header("proxy-authenticate", "Bearer");
        let answer = answer.body(()).unwrap();
        let mut body = respond.send_response(answer, false).unwrap();
        let page = Bytes::from_static(b"<html><h1>Who</h1>\r\nare you?</html>");
        body.send_data(page, true).unwrap();
    })
    .await;
    assert_eq!(
        refusal(&connection).await,
        Refusal {
            code: 407,
            reason: "Proxy Authentication Required".into(),
            schemes: vec!["Negotiate".into(), "Basic".into(), "Bearer".into()],
            body: "Who are you?".into(),
        }
    );
    let error = connection.open(request(), patience()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "it answered 407 Proxy Authentication Required"
    );
    assert_eq!(
        (error.reason(), error.retryable()),
        ("auth_required", false)
    );
    assert_eq!(connection.open_streams(), 0);
}

#[tokio::test]
async fn other_codes_do_not_open_either() {
    for (code, retryable) in [(301, false), (403, false), (502, true)] {
        let connection = refusing(move |respond| {
            respond.send_response(status(code), true).unwrap();
        })
        .await;
        let error = connection.open(request(), patience()).await.unwrap_err();
        assert_eq!(error.refusal().unwrap().code, code);
        assert_eq!(error.retryable(), retryable, "{code}");
    }
    let connection = refusing(|respond| {
        respond.send_response(status(204), true).unwrap();
    })
    .await;
    let opened = connection.open(request(), patience()).await.unwrap();
    assert_eq!(opened.code, 204);
}

#[tokio::test(start_paused = true)]
async fn the_body_of_a_refusal_is_bounded_in_time_and_size() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&kept);
    let connection = refusing(move |respond| {
        let mut body = respond.send_response(status(503), false).unwrap();
        body.send_data(Bytes::from_static(b"in a moment"), false)
            .unwrap();
        keep.lock().push(body);
    })
    .await;
    let begin = Instant::now();
    assert_eq!(refusal(&connection).await.body, "in a moment");
    assert!(begin.elapsed() <= Duration::from_secs(2));

    let connection = refusing(|respond| {
        let mut body = respond.send_response(status(503), false).unwrap();
        tokio::spawn(async move {
            let page = Bytes::from(vec![b'x'; 1024]);
            while send_all(&mut body, page.clone()).await.is_ok() {}
        });
    })
    .await;
    assert_eq!(refusal(&connection).await.body.len(), 1024);
}

#[tokio::test]
async fn interim_answers_are_passed_over_up_to_a_number() {
    for (interim, opens) in [(16, true), (17, false)] {
        let connection = refusing(move |respond| {
            for _ in 0..interim {
                respond.send_informational(status(103)).unwrap();
            }
            respond.send_response(status(200), true).unwrap();
        })
        .await;
        match connection.open(request(), patience()).await {
            Ok(opened) => assert!(opens && opened.code == 200),
            Err(error) => {
                assert!(!opens, "{error}");
                assert_eq!(error.reason(), "malformed");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_without_answer_is_given_up_at_the_deadline() {
    let (connection, mut raw) = Raw::connected(&Config::default(), &[]).await;
    let deadline = Instant::now() + Duration::from_secs(7);
    let open = async {
        let error = connection.open(request(), deadline).await.unwrap_err();
        assert_eq!(error.reason(), "connect_timeout");
        assert_eq!(Instant::now(), deadline);
    };
    let proxy = async {
        let asked = raw.expect(HEADERS).await.stream;
        let reset = raw.expect(RST_STREAM).await;
        assert_eq!(
            (reset.stream, &reset.payload[..]),
            (asked, &[0, 0, 0, 8][..])
        );
    };
    tokio::join!(open, proxy);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_http_2_is_told_by_kind() {
    let attempt = async |answer: &'static [u8], closes: bool| {
        let (near, mut far) = duplex(PIPE);
        tokio::spawn(async move {
            far.write_all(answer).await.unwrap();
            if !closes {
                std::future::pending::<()>().await;
            }
        });
        let deadline = Instant::now() + Duration::from_secs(5);
        let config = Config::default();
        let handshake = Connection::handshake(near, &config, deadline);
        handshake.await.unwrap_err()
    };
    let error = attempt(b"HTTP/1.1 400 Bad Request\r\n\r\n", false).await;
    let HandshakeError::Ended(ended) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(ended.reason(), "malformed", "{error}");
    assert!(matches!(attempt(b"", true).await, HandshakeError::Ended(_)));
    assert!(matches!(attempt(b"", false).await, HandshakeError::Timeout));
}

#[tokio::test(start_paused = true)]
async fn the_number_of_streams_is_known_from_the_first_settings_on() {
    let config = Config::default();
    for (settings, expected) in [
        (&[][..], 1024),
        (&[(MAX_CONCURRENT_STREAMS, 0)][..], 0),
        (&[(MAX_CONCURRENT_STREAMS, 100)][..], 100),
        (&[(MAX_CONCURRENT_STREAMS, u32::MAX)][..], 1024),
    ] {
        let (connection, mut raw) = Raw::connected(&config, settings).await;
        let mut status = connection.status();
        assert_eq!(status.borrow().max_streams, Some(expected));
        raw.send(&raw::settings(&[(MAX_CONCURRENT_STREAMS, 7)]))
            .await;
        let known = soon(status.wait_for(|status| status.max_streams == Some(7))).await;
        assert!(!known.unwrap().going_away);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_asked_and_ends_if_it_stays_silent() {
    let config = Config::default();
    let (connection, mut raw) = Raw::connected(&config, &[]).await;
    let (mut stream, _) = opened(&connection, &mut raw).await;
    let begin = Instant::now();
    // As long as it answers, nothing happens.
    for _ in 0..3 {
        let ping = raw.expect(PING).await;
        raw.send(&frame(PING, END, 0, &ping.payload)).await;
    }
    assert!(begin.elapsed() >= config.ping_after * 2);
    raw.expect(PING).await;
    let asked = Instant::now();
    let error = soon(stream.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(error.to_string().contains("silent"), "{error}");
    assert!(asked.elapsed() <= config.ping_timeout + Duration::from_millis(10));
    let ended = connection.status().borrow().ended.clone().unwrap();
    assert_eq!(ended.reason(), "ping_timeout");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_its_answer_has_the_connection_asked_sooner() {
    let config = Config::default();
    let (connection, mut raw) = Raw::connected(&config, &[]).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let begin = Instant::now();
    let proxy = async {
        raw.expect(HEADERS).await;
        // It lives, and takes its time.
        for _ in 0..3 {
            let ping = raw.expect(PING).await;
            raw.send(&frame(PING, END, 0, &ping.payload)).await;
        }
        raw.expect(PING).await;
    };
    let (result, ()) = tokio::join!(connection.open(request(), patience()), proxy);
    let error = result.unwrap_err();
    assert_eq!(error.reason(), "ping_timeout", "{error:?}");
    // The first is due at once, after such a silence.
    let due = config.ping_request_after * 3 + config.ping_timeout;
    let took = begin.elapsed();
    assert!(took.abs_diff(due) < Duration::from_millis(100), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn data_is_a_sign_of_life_and_no_streams_need_none() {
    let config = Config::default();
    let (connection, mut raw) = Raw::connected(&config, &[]).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(connection.status().borrow().ended.is_none());
    let (mut stream, id) = opened(&connection, &mut raw).await;
    // No PING is ever answered.
    for _ in 0..30 {
        tokio::time::sleep(config.ping_timeout - Duration::from_secs(1)).await;
        raw.data(0, id, b"x").await;
        assert_eq!(soon(stream.read_u8()).await.unwrap(), b'x');
    }
    assert!(connection.status().borrow().ended.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_nobody_wants_is_closed_also_when_the_proxy_does_not_read() {
    let (connection, mut raw) = Raw::connected(&Config::default(), &[]).await;
    let mut status = connection.status();
    drop(connection);
    assert_eq!(raw.end().await, Some(NO_ERROR));
    assert!(
        status
            .wait_for(|status| status.ended.is_some())
            .await
            .is_ok()
    );

    let (connection, mut raw) = Raw::connected(&Config::default(), &[]).await;
    let mut status = connection.status();
    raw.flood(&frame(PING, 0, 0, &[0; 8]), usize::MAX).await;
    drop(connection);
    let ended = soon(status.wait_for(|status| status.ended.is_some())).await;
    assert!(ended.is_ok());
}
