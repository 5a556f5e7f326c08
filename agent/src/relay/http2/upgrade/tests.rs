use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::{self, SendResponse};
use http::{HeaderMap, Request as HttpRequest, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::*;
use crate::relay::http::{Patience, next_request};
use crate::tunnel::http2::{Config, NotTaken};

const QUICK: Duration = Duration::from_secs(20);

/// What became of a request, and whether it could be sent once more.
type Outcome = (Result<bool, UpgradeError>, bool, Progress);

/// A client of HTTP/1.1 and a target that speaks HTTP/2.
struct Scene {
    client: DuplexStream,
    asked: HttpRequest<RecvStream>,
    respond: SendResponse<Bytes>,
    outcome: JoinHandle<Outcome>,
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(QUICK, future).await.expect("it comes soon")
}

fn parse(said: &str) -> Http1Request {
    let end = said.find("\r\n\r\n").unwrap() + 4;
    Http1Request::parse(&Bytes::copy_from_slice(&said.as_bytes()[..end])).unwrap()
}

impl Scene {
    /// Begins with the first request that is in `said`; the rest of it has been read as well.
    async fn new(said: &str) -> Self {
        Self::with_window(said, 65_535).await
    }

    /// The target takes so much of each body before it reads.
    async fn with_window(said: &str, window: u32) -> Self {
        let (client, near) = duplex(1024);
        let (far, upstream) = duplex(1024);
        let said = Bytes::copy_from_slice(said.as_bytes());
        let outcome = tokio::spawn(async move {
            let deadline = Instant::now() + QUICK;
            let config = Config::default();
            let target = Connection::handshake(upstream, &config, deadline).await;
            let (from, mut output) = split(near);
            let mut input = Input::new(from, said);
            let patience = Patience {
                idle: QUICK,
                head: QUICK,
            };
            let request = next_request(&mut input, &patience).await.unwrap().unwrap();
            let upgrade = Upgrade::of(&request).unwrap();
            let progress = Progress::default();
            let client = Client {
                input: &mut input,
                output: &mut output,
            };
            let target = target.unwrap();
            let exchanged = upgrade.exchange(client, &target, &Scheme::HTTP, QUICK, &progress);
            (exchanged.await, upgrade.is_untouched(), progress)
        });
        let mut target = server::Builder::new()
            .initial_window_size(window)
            .handshake::<_, Bytes>(far)
            .await
            .unwrap();
        let (asked, respond) = soon(target.accept()).await.unwrap().unwrap();
        tokio::spawn(async move { while target.accept().await.is_some() {} });
        Self {
            client,
            asked,
            respond,
            outcome,
        }
    }

    async fn client_gets(&mut self, expected: &str) {
        let mut got = vec![0; expected.len()];
        let read = soon(self.client.read_exact(&mut got)).await;
        assert!(read.is_ok(), "{:?}", String::from_utf8_lossy(&got));
        assert_eq!(String::from_utf8_lossy(&got), expected);
    }

    /// The body of the request, and its trailers.
    async fn body(&mut self) -> (String, Option<HeaderMap>) {
        let body = self.asked.body_mut();
        let mut all = Vec::new();
        while let Some(data) = soon(body.data()).await {
            let data = data.unwrap();
            all.extend_from_slice(&data);
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        let trailers = soon(body.trailers()).await.unwrap();
        (String::from_utf8(all).unwrap(), trailers)
    }

    fn answers(&mut self, head: Response<()>, ends: bool) -> SendStream<Bytes> {
        self.respond.send_response(head, ends).unwrap()
    }

    /// How the stream is reset.
    async fn reset(&mut self) -> Reason {
        soon(poll_fn(|cx| self.respond.poll_reset(cx)))
            .await
            .unwrap()
    }

    /// What became of it, and what else the client got.
    async fn ends(mut self) -> (Outcome, String) {
        let outcome = soon(self.outcome).await.unwrap();
        let mut rest = String::new();
        self.client.read_to_string(&mut rest).await.unwrap();
        (outcome, rest)
    }
}

fn head(status: u16, fields: &[(&'static str, &str)]) -> Response<()> {
    let mut head = Response::builder().status(status);
    for (name, value) in fields {
        head = head.header(*name, *value);
    }
    head.body(()).unwrap()
}

fn shown(fields: &HeaderMap) -> Vec<String> {
    let mut shown: Vec<_> = fields
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    shown.sort();
    shown
}

#[tokio::test]
async fn a_request_is_written_anew_and_its_answer_as_well() {
    let said = "POST /a?b=c HTTP/1.1\r\nHost: X.test:81\r\nX-Own: 1\r\nConnection: keep-alive, \
                X-Own, TE\r\nKeep-Alive: 5\r\nTE: trailers, gzip\r\nCookie: a=b; c=d\r\n\
                Content-Length: 3\r\nX-Other: yes\r\nX-Other: No\r\n\r\nabc";
    let mut scene = Scene::new(said).await;
    assert_eq!(scene.asked.method(), "POST");
    assert_eq!(scene.asked.uri(), "http://X.test:81/a?b=c");
    assert_eq!(
        shown(scene.asked.headers()),
        [
            "content-length: 3",
            "cookie: a=b; c=d",
            "te: trailers",
            "x-other: No",
            "x-other: yes",
        ]
    );
    assert_eq!(scene.body().await, ("abc".to_owned(), None));
    let answer = head(201, &[("content-length", "5"), ("x-a", "b")]);
    let mut body = scene.answers(answer, false);
    body.send_data(Bytes::from("hello"), true).unwrap();
    let expected = "HTTP/1.1 201 Created\r\nx-a: b\r\nContent-Length: 5\r\n\r\nhello";
    scene.client_gets(expected).await;
    let ((result, is_untouched, progress), rest) = scene.ends().await;
    assert!(result.unwrap(), "the client may go on");
    assert_eq!((is_untouched, rest.as_str()), (false, ""));
    assert_eq!(progress.status(), Some(201));
    assert_eq!(progress.traffic.received(), expected.len() as u64);
}

#[tokio::test]
async fn bodies_without_a_length_and_their_trailers_pass_both_ways() {
    let said = "PUT / HTTP/1.1\r\nHost: x.test\r\nTransfer-Encoding: chunked\r\n\r\n\
                2;x=y\r\nab\r\n1\r\nc\r\n0\r\nX-End: yes\r\nHost: no.test\r\n\r\n";
    let mut scene = Scene::new(said).await;
    assert_eq!(shown(scene.asked.headers()), [""; 0]);
    let (body, trailers) = scene.body().await;
    assert_eq!(body, "abc");
    assert_eq!(shown(&trailers.unwrap()), ["x-end: yes"]);
    let mut body = scene.answers(head(200, &[]), false);
    scene
        .client_gets("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    body.send_data(Bytes::from("hello world"), false).unwrap();
    scene.client_gets("b\r\nhello world\r\n").await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "1".parse().unwrap());
    trailers.insert("content-length", "7".parse().unwrap());
    body.send_trailers(trailers).unwrap();
    scene.client_gets("0\r\nx-sum: 1\r\n\r\n").await;
    let ((result, ..), rest) = scene.ends().await;
    assert!(result.unwrap() && rest.is_empty());
}

#[tokio::test]
async fn trailers_that_are_announced_have_a_place() {
    let mut scene = Scene::new("GET / HTTP/1.1\r\nHost: x.test\r\n\r\n").await;
    let fields = [("content-length", "1"), ("trailer", "x-sum")];
    let mut body = scene.answers(head(200, &fields), false);
    body.send_data(Bytes::from("a"), false).unwrap();
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())]);
    body.send_trailers(trailers).unwrap();
    scene
        .client_gets(
            "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\
             x-sum: 1\r\n\r\n",
        )
        .await;
    assert!(scene.ends().await.0.0.unwrap());
}

#[tokio::test]
async fn answers_are_framed_as_the_client_can_read_them() {
    let request = |line: &str| format!("{line}\r\nHost: x.test\r\n\r\n");
    let (get, close) = ("GET / HTTP/1.1", "GET / HTTP/1.1\r\nConnection: close");
    let old = "GET / HTTP/1.0\r\nConnection: keep-alive";
    let length = &[("content-length", "3")][..];
    for (line, status, fields, data, expected, persists) in [
        (
            get,
            200,
            length,
            "abc",
            "200 OK\r\nContent-Length: 3\r\n\r\nabc",
            true,
        ),
        (
            get,
            200,
            &[],
            "",
            "200 OK\r\nContent-Length: 0\r\n\r\n",
            true,
        ),
        (get, 204, &[], "", "204 No Content\r\n\r\n", true),
        // What nobody would take for a part of this answer.
        (get, 204, &[], "abc", "204 No Content\r\n\r\n", true),
        (
            get,
            304,
            length,
            "",
            "304 Not Modified\r\nContent-Length: 3\r\n\r\n",
            true,
        ),
        (
            get,
            299,
            length,
            "abc",
            "299 \r\nContent-Length: 3\r\n\r\nabc",
            true,
        ),
        (
            "HEAD / HTTP/1.1",
            200,
            length,
            "",
            "200 OK\r\nContent-Length: 3\r\n\r\n",
            true,
        ),
        ("HEAD / HTTP/1.1", 200, &[], "", "200 OK\r\n\r\n", true),
        (
            close,
            200,
            length,
            "abc",
            "200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
            false,
        ),
        (
            old,
            200,
            &[],
            "abc",
            "200 OK\r\nConnection: close\r\n\r\nabc",
            false,
        ),
    ] {
        let mut scene = Scene::new(&request(line)).await;
        let mut body = scene.answers(head(status, fields), data.is_empty());
        if !data.is_empty() {
            body.send_data(Bytes::from(data), true).unwrap();
        }
        let ((result, ..), got) = scene.ends().await;
        assert_eq!(got, format!("HTTP/1.1 {expected}"), "{line}");
        assert_eq!(result.unwrap(), persists, "{line}: {expected}");
    }
}

#[tokio::test]
async fn interim_answers_pass_except_to_who_does_not_know_them() {
    let expecting = "Host: x.test\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
    let mut scene = Scene::new(&format!("POST / HTTP/1.1\r\n{expecting}")).await;
    let fields = shown(scene.asked.headers());
    assert_eq!(fields, ["content-length: 3", "expect: 100-continue"]);
    scene.respond.send_informational(head(100, &[])).unwrap();
    scene.client_gets("HTTP/1.1 100 Continue\r\n\r\n").await;
    scene.client.write_all(b"abc").await.unwrap();
    assert_eq!(scene.body().await.0, "abc");
    let hints = head(103, &[("link", "</a>")]);
    scene.respond.send_informational(hints).unwrap();
    let early = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    scene.client_gets(early).await;
    scene.answers(head(200, &[]), true);
    let ((result, ..), rest) = scene.ends().await;
    assert_eq!(rest, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert!(result.unwrap());

    let mut scene = Scene::new("GET / HTTP/1.0\r\nHost: x.test\r\n\r\n").await;
    scene.respond.send_informational(head(103, &[])).unwrap();
    scene.answers(head(200, &[]), true);
    let (_, got) = scene.ends().await;
    let expected = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert_eq!(got, expected);
}

#[tokio::test]
async fn a_body_that_nobody_wants_is_not_waited_for() {
    let expecting = "POST / HTTP/1.1\r\nHost: x.test\r\nContent-Length: 3\r\nExpect: \
                     100-continue\r\n\r\n";
    let mut scene = Scene::new(expecting).await;
    scene.answers(head(417, &[]), true);
    assert_eq!(scene.reset().await, Reason::CANCEL);
    let ((result, is_untouched, _), got) = scene.ends().await;
    let expected = "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: \
                    close\r\n\r\n";
    assert_eq!((got.as_str(), is_untouched), (expected, true));
    assert!(!result.unwrap(), "nobody knows what the client sends next");
}

#[tokio::test]
async fn an_early_answer_passes_before_the_body_is_over() {
    let asking = "POST / HTTP/1.1\r\nHost: x.test\r\nContent-Length: 6\r\n\r\nabc";
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let mut scene = Scene::new(asking).await;
    scene.answers(head(200, &[]), true);
    scene.client_gets(answer).await;
    // The target reads on.
    scene.client.write_all(b"def").await.unwrap();
    assert_eq!(scene.body().await.0, "abcdef");
    assert!(scene.ends().await.0.0.unwrap());

    // The target does not.
    let mut scene = Scene::new(asking).await;
    scene.answers(head(200, &[]), true);
    scene.client_gets(answer).await;
    scene.respond.send_reset(Reason::NO_ERROR);
    let ((result, ..), _) = scene.ends().await;
    assert!(!result.unwrap(), "the rest of the body is in the way");
}

#[tokio::test]
async fn what_the_target_says_instead_of_an_answer_is_told() {
    let get = "GET / HTTP/1.1\r\nHost: x.test\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nHost: x.test\r\nContent-Length: 3\r\n\r\nabc";
    for (said, reason) in [
        (get, Reason::INTERNAL_ERROR),
        (get, Reason::HTTP_1_1_REQUIRED),
        (post, Reason::CANCEL),
    ] {
        let mut scene = Scene::new(said).await;
        if said == post {
            scene.body().await;
        }
        scene.respond.send_reset(reason);
        let ((result, is_untouched, progress), got) = scene.ends().await;
        match result {
            Err(UpgradeError::Stream(ExchangeError::Reset(told))) => assert_eq!(told, reason),
            other => panic!("{other:?}"),
        }
        assert_eq!((is_untouched, got.as_str()), (said == get, ""));
        assert_eq!(progress.status(), None, "another answer can be given");
    }
    let mut scene = Scene::new(get).await;
    scene.respond.send_reset(Reason::REFUSED_STREAM);
    let ((result, ..), _) = scene.ends().await;
    let refused = ExchangeError::NotTaken(NotTaken::RefusedStream);
    let expected = UpgradeError::Stream(refused).to_string();
    assert_eq!(result.unwrap_err().to_string(), expected);

    // An answer that has begun.
    let mut scene = Scene::new(get).await;
    let mut body = scene.answers(head(200, &[("content-length", "10")]), false);
    body.send_data(Bytes::from("abc"), false).unwrap();
    let begun = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc";
    scene.client_gets(begun).await;
    // It is not whole, whatever the code says.
    body.send_reset(Reason::NO_ERROR);
    let ((result, _, progress), rest) = scene.ends().await;
    assert!(matches!(
        result,
        Err(UpgradeError::Stream(ExchangeError::Reset(_)))
    ));
    assert_eq!((progress.status(), rest.as_str()), (Some(200), ""));

    let mut scene = Scene::new(get).await;
    scene.respond.send_informational(head(101, &[])).unwrap();
    let ((result, ..), _) = scene.ends().await;
    let is_bad =
        |error: &UpgradeError| matches!(error, UpgradeError::Stream(ExchangeError::BadAnswer(_)));
    assert!(is_bad(&result.unwrap_err()));
}

#[tokio::test]
async fn what_becomes_of_the_client_is_told_the_target() {
    let said = "POST / HTTP/1.1\r\nHost: x.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    // The body is wrong.
    let mut scene = Scene::new(said).await;
    scene.client.write_all(b"3\r\nabcd\r\n").await.unwrap();
    assert_eq!(scene.reset().await, Reason::CANCEL);
    let ((result, ..), got) = scene.ends().await;
    let is_broken = |error: &UpgradeError| {
        matches!(error, UpgradeError::Exchange(Http1Error::BrokenRequest(_)))
    };
    assert!(is_broken(&result.unwrap_err()) && got.is_empty());
    // So are the trailers.
    let mut scene = Scene::new(said).await;
    scene
        .client
        .write_all(b"0\r\nx y: z\r\n\r\n")
        .await
        .unwrap();
    let ((result, ..), _) = scene.ends().await;
    assert!(is_broken(&result.unwrap_err()));
    // It ends within the body.
    let mut scene = Scene::new(said).await;
    scene.client.shutdown().await.unwrap();
    assert_eq!(scene.reset().await, Reason::CANCEL);
    let ((result, ..), _) = scene.ends().await;
    let is_gone =
        |error: &UpgradeError| matches!(error, UpgradeError::Exchange(Http1Error::Client(_)));
    assert!(is_gone(&result.unwrap_err()));
    // It ends before the answer, and before the end of it.
    for begins in [false, true] {
        let mut scene = Scene::new("GET / HTTP/1.1\r\nHost: x.test\r\n\r\n").await;
        let body = begins.then(|| scene.answers(head(200, &[]), false));
        scene.client.shutdown().await.unwrap();
        match body {
            Some(mut body) => {
                let reset = soon(poll_fn(|cx| body.poll_reset(cx))).await;
                assert_eq!(reset.unwrap(), Reason::CANCEL);
            }
            None => assert_eq!(scene.reset().await, Reason::CANCEL),
        }
        let ((result, ..), _) = scene.ends().await;
        assert!(is_gone(&result.unwrap_err()));
    }
    // It is given up.
    let mut scene = Scene::new(said).await;
    scene.outcome.abort();
    assert_eq!(scene.reset().await, Reason::CANCEL);
}

#[tokio::test]
async fn no_side_gets_ahead_of_the_other() {
    let size = 1 << 20;
    let said = format!("PUT / HTTP/1.1\r\nHost: x.test\r\nContent-Length: {size}\r\n\r\n");
    let mut scene = Scene::with_window(&said, 1000).await;
    let (mut from, mut to) = split(scene.client);
    let sent = tokio::spawn(async move {
        let mut sent = 0;
        let stalls = Duration::from_millis(300);
        while let Ok(more) = timeout(stalls, to.write(&[b'x'; 1000])).await {
            sent += more.unwrap();
        }
        (to, sent)
    });
    let (mut to, sent) = sent.await.unwrap();
    assert!((1000..80_000).contains(&sent), "{sent}");
    let rest = tokio::spawn(async move {
        to.write_all(&vec![b'x'; size - sent]).await.unwrap();
        to
    });
    let mut body = scene.asked.into_body();
    let mut came = 0;
    while let Some(data) = soon(body.data()).await {
        came += data.as_ref().unwrap().len();
        body.flow_control()
            .release_capacity(data.unwrap().len())
            .unwrap();
    }
    assert_eq!(came, size);
    let _to = rest.await.unwrap();

    // The client does not read.
    let answer = head(200, &[("content-length", "10000000")]);
    let mut answer = scene.respond.send_response(answer, false).unwrap();
    let mut room = 0;
    answer.reserve_capacity(10_000_000);
    let stalls = Duration::from_millis(300);
    while let Ok(granted) = timeout(stalls, poll_fn(|cx| answer.poll_capacity(cx))).await {
        let granted = granted.unwrap().unwrap();
        answer
            .send_data(Bytes::from(vec![0; granted]), false)
            .unwrap();
        room += granted;
    }
    let window = Config::default().stream_window as usize;
    assert!((window..2 * window).contains(&room), "{room}");
    let mut read = vec![0; room];
    soon(from.read_exact(&mut read)).await.unwrap();
    let granted = soon(poll_fn(|cx| answer.poll_capacity(cx))).await;
    assert!(granted.unwrap().unwrap() > 0, "there is room again");
    scene.outcome.abort();
}

#[test]
fn some_requests_stay_what_they_are() {
    let fields = "Host: x.test\r\n\r\n";
    for line in [
        "GET / HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET /?a=%20{} HTTP/1.0",
        "PURGE / HTTP/1.1",
    ] {
        assert!(
            Upgrade::of(&parse(&format!("{line}\r\n{fields}"))).is_some(),
            "{line}"
        );
    }
    for said in [
        "CONNECT x.test:443 HTTP/1.1\r\n",
        "GET http://x.test/ HTTP/1.1\r\n",
        "GET /a#b HTTP/1.1\r\n",
        "GET /<a> HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n",
    ] {
        assert!(
            Upgrade::of(&parse(&format!("{said}{fields}"))).is_none(),
            "{said}"
        );
    }
    for said in ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nHost:\r\n\r\n"] {
        assert!(Upgrade::of(&parse(said)).is_none(), "{said}");
    }
    // HTTP/2 is what it gets anyway.
    let asks = "GET / HTTP/1.1\r\nConnection: upgrade, http2-settings\r\nUpgrade: \
                h2c\r\nHTTP2-Settings: AA\r\n";
    let request = parse(&format!("{asks}{fields}"));
    let upgrade = Upgrade::of(&request).unwrap();
    let head = upgrade.stream.forwarded(&Scheme::HTTPS);
    assert_eq!(head.uri(), "https://x.test/");
    assert_eq!(shown(head.headers()), [""; 0]);
}
