//! Requests and answers as they go in, and what comes out.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::body::Piece;
use super::write::{last_chunk, request_head};
use super::*;
use crate::inspect::InspectError;
use crate::relay::Progress;

mod malformed;
mod together;

const PATIENCE: Duration = Duration::from_secs(20);

/// What became of one exchange.
type Outcome = Result<Answered, ExchangeError>;

/// A client and a target, with an exchange between them.
struct Scene {
    client: DuplexStream,
    target: DuplexStream,
    outcome: JoinHandle<(Outcome, Progress)>,
}

impl Scene {
    /// Begins with the first request that is in `said`; the rest of it has been read as well.
    async fn new(said: &str) -> Self {
        Self::patient(said, PATIENCE).await
    }

    async fn patient(said: &str, patience: Duration) -> Self {
        let (client, near) = duplex(64 * 1024);
        let (target, mut upstream) = duplex(64 * 1024);
        let said = Bytes::copy_from_slice(said.as_bytes());
        let outcome = tokio::spawn(async move {
            let (from, mut output) = split(near);
            let mut input = Input::new(from, said);
            let request = next_request(&mut input, &QUICK).await.unwrap().unwrap();
            let progress = Progress::default();
            let client = Client {
                input: &mut input,
                output: &mut output,
            };
            let last = request.is_last();
            let early = Bytes::new();
            let outcome = exchange(
                &request,
                client,
                &mut upstream,
                early,
                last,
                patience,
                &progress,
            );
            (outcome.await, progress)
        });
        Self {
            client,
            target,
            outcome,
        }
    }

    /// Waits until the target has got just this, a line end for each line.
    async fn target_gets(&mut self, expected: &str) {
        assert_eq!(read(&mut self.target, expected).await, expected);
    }

    async fn client_gets(&mut self, expected: &str) {
        assert_eq!(read(&mut self.client, expected).await, expected);
    }

    async fn target_says(&mut self, text: &str) {
        self.target.write_all(text.as_bytes()).await.unwrap();
    }

    async fn client_says(&mut self, text: &str) {
        self.client.write_all(text.as_bytes()).await.unwrap();
    }

    async fn outcome(self) -> (Outcome, Progress) {
        timeout(PATIENCE, self.outcome).await.unwrap().unwrap()
    }

    /// What is left of both connections after an exchange that ended in order.
    async fn persists(self) -> (bool, bool) {
        let answered = self.outcome().await.0.unwrap();
        assert!(answered.switched.is_none());
        (answered.client_persists, answered.upstream_persists)
    }
}

const QUICK: Patience = Patience {
    idle: PATIENCE,
    head: PATIENCE,
};

/// Reads as much as is expected.
async fn read(from: &mut DuplexStream, expected: &str) -> String {
    let mut got = vec![0; expected.len()];
    let read = timeout(PATIENCE, from.read_exact(&mut got)).await;
    read.unwrap_or_else(|_| panic!("{expected:?} did not come"))
        .unwrap();
    String::from_utf8(got).unwrap()
}

#[tokio::test]
async fn a_request_and_its_answer_pass_as_they_were_sent() {
    let mut scene =
        Scene::new("GET /a?b HTTP/1.1\r\nHOST: x.test:80\r\nX-b: 1 \r\nx-A: \r\nx-b: 2\r\n\r\n")
            .await;
    scene
        .target_gets("GET /a?b HTTP/1.1\r\nHOST: x.test:80\r\nX-b: 1\r\nx-A: \r\nx-b: 2\r\n\r\n")
        .await;
    let answer = "HTTP/1.1 200 Fine\r\nX-Y: z\r\nContent-Length: 5\r\n\r\nhello";
    scene.target_says(answer).await;
    scene.client_gets(answer).await;
    assert_eq!(scene.persists().await, (true, true));
}

#[tokio::test]
async fn what_is_between_neighbours_stays_there() {
    let mut scene = Scene::new(
        "GET / HTTP/1.1\r\nHost: x.test\r\nConnection: keep-alive, X-Own\r\nX-Own: 1\r\n\
         Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: trailers, deflate\r\n\
         Proxy-Authorization: Basic Zm9y\r\n\r\n",
    )
    .await;
    // Credentials for a proxy are for one that the workload knows: not for us.
    scene
        .target_gets(
            "GET / HTTP/1.1\r\nHost: x.test\r\nProxy-Authorization: Basic Zm9y\r\n\
             TE: trailers\r\nConnection: TE\r\n\r\n",
        )
        .await;
    scene
        .target_says(
            "HTTP/1.1 204 No Content\r\nConnection: X-Z, close\r\nX-Z: 1\r\nUpgrade: h2\r\n\
             Server: s\r\n\r\n",
        )
        .await;
    scene
        .client_gets("HTTP/1.1 204 No Content\r\nServer: s\r\n\r\n")
        .await;
    assert_eq!(scene.persists().await, (true, false));
}

#[tokio::test]
async fn chunked_bodies_and_trailers_pass_both_ways() {
    let mut scene = Scene::new(
        "POST / HTTP/1.1\r\nHost: x.test\r\nTransfer-Encoding: Chunked\r\nTrailer: a\r\n\r\n\
         3;ext=1\r\nabc\r\n",
    )
    .await;
    scene
        .target_gets(
            "POST / HTTP/1.1\r\nHost: x.test\r\nTrailer: a\r\nTransfer-Encoding: chunked\r\n\r\n\
             3\r\nabc\r\n",
        )
        .await;
    scene
        .client_says("2\r\nde\r\n0\r\na: 1\r\nHost: evil\r\n\r\n")
        .await;
    scene.target_gets("2\r\nde\r\n0\r\na: 1\r\n\r\n").await;
    scene
        .target_says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        .await;
    scene
        .client_gets("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        .await;
    scene.target_says("0\r\nb: 2\r\n\r\n").await;
    scene.client_gets("0\r\nb: 2\r\n\r\n").await;
    assert_eq!(scene.persists().await, (true, true));
}

#[tokio::test]
async fn a_client_that_waits_for_leave_gets_that_of_the_target() {
    let mut scene = Scene::new(
        "PUT / HTTP/1.1\r\nHost: x.test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
    )
    .await;
    scene
        .target_gets(
            "PUT / HTTP/1.1\r\nHost: x.test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
        )
        .await;
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
    scene.target_says(interim).await;
    scene.client_gets(interim).await;
    scene.client_says("abc").await;
    scene.target_gets("abc").await;
    scene
        .target_says("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        .await;
    assert_eq!(scene.persists().await, (true, true));
}

#[tokio::test]
async fn a_client_that_gets_no_leave_is_told_that_its_connection_ends() {
    let mut scene = Scene::new(
        "PUT / HTTP/1.1\r\nHost: x.test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
    )
    .await;
    scene
        .target_says("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
        .await;
    scene
        .client_gets(
            "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        )
        .await;
    assert_eq!(scene.persists().await, (false, false));
}

#[tokio::test]
async fn an_early_answer_passes_and_the_request_goes_on() {
    let mut scene =
        Scene::new("POST / HTTP/1.1\r\nHost: x.test\r\nContent-Length: 4\r\n\r\nab").await;
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    scene.target_says(answer).await;
    scene.client_gets(answer).await;
    scene.client_says("cd").await;
    scene
        .target_gets("POST / HTTP/1.1\r\nHost: x.test\r\nContent-Length: 4\r\n\r\nabcd")
        .await;
    assert_eq!(scene.persists().await, (true, true));
}

#[tokio::test]
async fn a_target_that_has_heard_enough_gets_no_more() {
    let mut scene =
        Scene::new("POST / HTTP/1.1\r\nHost: x.test\r\nContent-Length: 4\r\n\r\nab").await;
    let answer = "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno";
    scene.target_says(answer).await;
    scene.client_gets(answer).await;
    assert_eq!(scene.persists().await, (false, false));
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    for (method, answer) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n",
        ),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
    ] {
        let mut scene = Scene::new(&format!("{method} / HTTP/1.1\r\nHost: x.test\r\n\r\n")).await;
        scene.target_says(answer).await;
        scene.client_gets(answer).await;
        assert_eq!(scene.persists().await, (true, true), "{method} {answer}");
    }
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_ends_with_the_clients() {
    let mut scene = Scene::new("GET / HTTP/1.1\r\nHost: x.test\r\n\r\n").await;
    scene.target_says("HTTP/1.1 200 OK\r\n\r\nall of it").await;
    scene.target.shutdown().await.unwrap();
    scene
        .client_gets("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")
        .await;
    assert_eq!(scene.persists().await, (false, false));
}

#[tokio::test]
async fn http_1_0_stays_what_it_is() {
    let mut scene = Scene::new("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    scene.target_gets("GET / HTTP/1.0\r\n\r\n").await;
    scene
        .target_says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        .await;
    scene
        .client_gets("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc")
        .await;
    assert_eq!(scene.persists().await, (false, false));
}

#[tokio::test]
async fn an_upgrade_makes_it_a_stream_of_bytes() {
    let mut scene = Scene::new(
        "GET /chat HTTP/1.1\r\nHost: x.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    )
    .await;
    scene
        .target_gets(
            "GET /chat HTTP/1.1\r\nHost: x.test\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\n\r\n",
        )
        .await;
    scene
        .target_says(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             \r\nfirst",
        )
        .await;
    scene
        .client_gets(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             \r\n",
        )
        .await;
    let (outcome, progress) = scene.outcome().await;
    assert_eq!(outcome.unwrap().switched.unwrap(), "first");
    assert_eq!(progress.status(), Some(101));
}

#[tokio::test]
async fn a_tunnel_that_the_client_asks_for_is_a_stream_of_bytes() {
    let head = "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n";
    let mut scene = Scene::new(&format!("{head}hello")).await;
    scene.target_gets(head).await;
    // It may say how long that is, and it means nothing (RFC 9110 section 9.3.6).
    scene
        .target_says("HTTP/1.1 200 Go\r\nContent-Length: 2\r\n\r\nfirst")
        .await;
    scene.client_gets("HTTP/1.1 200 Go\r\n\r\n").await;
    let (outcome, progress) = scene.outcome().await;
    assert_eq!(outcome.unwrap().switched.unwrap(), "first");
    assert_eq!(progress.status(), Some(200));
    assert_eq!(progress.traffic.sent(), head.len() as u64);
}

#[tokio::test]
async fn a_tunnel_that_is_refused_is_a_request_as_any_other() {
    let head = "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n";
    let mut scene = Scene::new(&format!("{head}GET / HTTP/1.1\r\n")).await;
    // What stands behind it is for the proxy only once there is a tunnel.
    scene.target_gets(head).await;
    let answer = "HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno";
    scene.target_says(answer).await;
    scene.client_gets(answer).await;
    assert_eq!(scene.persists().await, (true, true));
}

#[tokio::test]
async fn no_upgrade_leads_to_requests_that_nobody_reads() {
    let mut scene = Scene::new(
        "GET / HTTP/1.1\r\nHost: x.test\r\nConnection: Upgrade, HTTP2-Settings\r\n\
         Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    )
    .await;
    scene
        .target_gets("GET / HTTP/1.1\r\nHost: x.test\r\n\r\n")
        .await;
    scene
        .target_says("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n")
        .await;
    let (outcome, progress) = scene.outcome().await;
    assert!(
        matches!(outcome, Err(ExchangeError::BadAnswer(_))),
        "{outcome:?}"
    );
    assert_eq!(progress.status(), None, "another answer can be given");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error() {
    for (said, begun) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", true),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
            true,
        ),
        ("HTTP/1.1 200 OK\r\nContent-", false),
        ("", false),
    ] {
        let mut scene = Scene::new("GET / HTTP/1.1\r\nHost: x.test\r\n\r\n").await;
        scene.target_says(said).await;
        scene.target.shutdown().await.unwrap();
        let (outcome, progress) = scene.outcome().await;
        assert!(outcome.is_err(), "{said:?}");
        assert_eq!(progress.status().is_some(), begun, "{said:?}");
        assert_eq!(progress.heard(), !said.is_empty(), "{said:?}");
    }
}

#[tokio::test]
async fn answers_that_could_be_understood_in_two_ways_go_no_further() {
    for said in [
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 099 No\r\n\r\n",
    ] {
        let mut scene = Scene::new("GET / HTTP/1.1\r\nHost: x.test\r\n\r\n").await;
        scene.target_says(said).await;
        let (outcome, progress) = scene.outcome().await;
        assert!(
            matches!(outcome, Err(ExchangeError::BadAnswer(_))),
            "{said:?}: {outcome:?}"
        );
        assert_eq!(progress.status(), None, "{said:?}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_the_rules_later_goes_no_further() {
    let head = "POST / HTTP/1.1\r\nHost: x.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    for wrong in ["4\n", "g\r\n", "1\r\nab\r\n", "0\r\nno trailer\r\n\r\n"] {
        let mut scene = Scene::new(&format!("{head}3\r\nabc\r\n")).await;
        scene.target_gets(&format!("{head}3\r\nabc\r\n")).await;
        scene.client_says(wrong).await;
        let (outcome, progress) = timeout(PATIENCE, scene.outcome).await.unwrap().unwrap();
        assert!(
            matches!(outcome, Err(ExchangeError::BrokenRequest(_))),
            "{wrong:?}: {outcome:?}"
        );
        assert_eq!(progress.status(), None, "another answer can be given");
        let mut rest = String::new();
        scene.target.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest.find("0\r\n"), None, "{rest:?} looks complete");
    }
}

#[tokio::test]
async fn a_client_that_leaves_within_its_request_ends_it() {
    let mut scene =
        Scene::new("POST / HTTP/1.1\r\nHost: x.test\r\nContent-Length: 4\r\n\r\nab").await;
    scene.client.shutdown().await.unwrap();
    let (outcome, _) = scene.outcome().await;
    assert!(
        matches!(outcome, Err(ExchangeError::Client(_))),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_client_that_says_no_more_is_still_answered_and_the_target_knows() {
    let mut scene = Scene::new("GET / HTTP/1.1\r\nHost: x.test\r\n\r\n").await;
    scene.client.shutdown().await.unwrap();
    let mut all = String::new();
    timeout(PATIENCE, scene.target.read_to_string(&mut all))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(all, "GET / HTTP/1.1\r\nHost: x.test\r\n\r\n");
    scene
        .target_says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await;
    scene
        .client_gets("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await;
    assert_eq!(scene.persists().await, (true, false));
}

#[tokio::test]
async fn a_target_that_gives_up_when_the_client_does_is_not_to_blame() {
    let mut scene = Scene::new("GET / HTTP/1.1\r\nHost: x.test\r\n\r\n").await;
    scene.client.shutdown().await.unwrap();
    let mut all = String::new();
    scene.target.read_to_string(&mut all).await.unwrap();
    scene.target.shutdown().await.unwrap();
    let (outcome, _) = scene.outcome().await;
    assert!(
        matches!(outcome, Err(ExchangeError::Client(_))),
        "{outcome:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn silence_has_an_end() {
    let scene = Scene::patient("GET / HTTP/1.1\r\nHost: x.test\r\n\r\n", PATIENCE / 4).await;
    let (outcome, _) = scene.outcome().await;
    assert!(
        matches!(outcome, Err(ExchangeError::Silent(_))),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn requests_are_read_one_after_the_other() {
    let (mut client, near) = duplex(1024);
    let mut input = Input::new(near, Bytes::new());
    let said = "GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n\r\nGET /2 HTTP/1.1\nHost: b.test\n\n";
    for byte in said.bytes() {
        client.write_all(&[byte]).await.unwrap();
    }
    client.shutdown().await.unwrap();
    for (path, host) in [("/1", "a.test"), ("/2", "b.test")] {
        let request = next_request(&mut input, &QUICK).await.unwrap().unwrap();
        assert_eq!(request.target, path);
        assert_eq!(request.host().unwrap().to_string(), host);
    }
    assert!(next_request(&mut input, &QUICK).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_client_has_its_time_for_a_head_and_between_two() {
    let (mut client, near) = duplex(1024);
    let mut input = Input::new(near, Bytes::new());
    assert!(next_request(&mut input, &QUICK).await.unwrap().is_none());
    client.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
    let error = next_request(&mut input, &QUICK).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::REQUEST_TIMEOUT));
}

proptest! {
    /// Whatever comes, however it is cut: no panic, and never more is taken than is there.
    #[test]
    fn any_body_is_read_or_refused(
        pieces in vec(prop_oneof![
            Just("0\r\n"), Just("\r\n"), Just("3\r\nabc\r\n"), Just("a;b=c"), Just("x: y"),
            Just("\r"), Just("\n"), Just("\0"), Just("ffffffffffffffff\r\n"), Just("7"),
        ], 0..12),
    ) {
        let bytes = pieces.concat().into_bytes();
        let mut body = Body::new(Framing::Chunked);
        let mut rest = &bytes[..];
        let mut data = 0;
        while let Ok(piece) = body.next(rest, true) {
            match piece {
                Piece::Data(length) => {
                    data += length;
                    rest = &rest[length..];
                }
                Piece::Framing(length) => rest = &rest[length..],
                Piece::Trailers(length) => {
                    last_chunk(&Bytes::copy_from_slice(&rest[..length]));
                    rest = &rest[length..];
                }
                Piece::End => break,
                Piece::More => panic!("nothing more comes"),
            }
        }
        prop_assert!(data <= bytes.len());
    }

    /// A request that is taken goes on as one that is taken for the same.
    #[test]
    fn what_goes_on_is_understood_as_it_was(
        lines in vec(prop_oneof![
            Just("Content-Length: 3\r\n"), Just("Transfer-Encoding: chunked\r\n"),
            Just("Connection: close, x\r\n"), Just("x: y\r\n"), Just("X : y\r\n"),
            Just("Connection: upgrade\r\n"), Just("Upgrade: websocket\r\n"), Just("TE: trailers\r\n"),
            Just("a:\tb \n"), Just(" c\r\n"), Just("Host: y.test\r\n"),
        ], 0..6),
        last: bool,
    ) {
        let text = format!("POST / HTTP/1.1\r\nHost: x.test\r\n{}\r\n", lines.concat());
        if let Ok(request) = Request::parse(&text.into()) {
            let again = Request::parse(&request_head(&request, last).freeze()).unwrap();
            prop_assert_eq!(again.framing(), request.framing());
            prop_assert_eq!(again.host(), request.host());
            prop_assert_eq!(again.upgrade(), request.upgrade());
            prop_assert_eq!(again.method(), request.method());
        }
    }
}

#[test]
fn what_may_be_sent_twice() {
    let replayable = |text: &'static str| {
        let request = Request::parse(&Bytes::from_static(text.as_bytes())).unwrap();
        request.is_replayable()
    };
    assert!(replayable("GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert!(replayable(
        "DELETE / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    ));
    assert!(!replayable(
        "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n"
    ));
    assert!(!replayable("POST / HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert!(!replayable("PATCH / HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert!(!replayable(
        "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    ));
}

#[test]
fn an_answer_of_ours_says_why_and_which() {
    let status = StatusCode::BAD_GATEWAY;
    let text = "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain; charset=utf-8\r\n\
                Content-Length: 34\r\nConnection: close\r\n\r\n";
    let body = "underpass: because\nrequest id: 1f\n";
    assert_eq!(own_answer(status, "because", "1f", true, true), text);
    assert_eq!(
        own_answer(status, "because", "1f", false, true),
        format!("{text}{body}")
    );
    assert_eq!(body.len(), 34);
}
