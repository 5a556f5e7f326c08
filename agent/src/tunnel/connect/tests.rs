mod wire;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use wire::{End, Wire};

const REQUEST: &[u8] = b"CONNECT a:1 HTTP/1.1\r\n\r\n";

fn in_15_seconds() -> Instant {
    Instant::now() + Duration::from_secs(15)
}

/// What an exchange comes to when the proxy sends `pieces` and closes; for a tunnel, its code
/// and all that came through it.
async fn outcome<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<(u16, Vec<u8>), ExchangeError> {
    let mut wire = Wire::new(pieces, End::Closed);
    let opened = exchange(&mut wire, REQUEST, in_15_seconds()).await?;
    let mut through = opened.early.to_vec();
    wire.read_to_end(&mut through).await.unwrap();
    Ok((opened.code, through))
}

async fn refusal(answer: &str) -> Refusal {
    match outcome([answer.as_bytes()]).await {
        Err(ExchangeError::Refused(refusal)) => *refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_are_exact() {
    let target = |host: &str, port| Target {
        host: host.parse().unwrap(),
        port,
    };
    let agent = concat!("underpass/", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        String::from_utf8(request(&target("example.com", 443), &[], None)).unwrap(),
        format!(
            "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\
             User-Agent: {agent}\r\n\r\n"
        )
    );
    let credentials = Credentials::basic("Aladdin", &"open sesame".into()).unwrap();
    assert_eq!(
        String::from_utf8(request(
            &target("2001:db8::1", 8443),
            &[],
            Some(&credentials)
        ))
        .unwrap(),
        format!(
            "CONNECT [2001:db8::1]:8443 HTTP/1.1\r\nHost: [2001:db8::1]:8443\r\n\
             User-Agent: {agent}\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\
             \r\n"
        )
    );
    assert!(
        request(&target("192.0.2.1", 25), &[], None)
            .starts_with(b"CONNECT 192.0.2.1:25 HTTP/1.1\r\n")
    );
}

#[tokio::test]
async fn the_request_goes_out_in_one_write() {
    let mut wire = Wire::new([&b"HTTP/1.1 200 OK\r\n\r\n"[..]], End::Closed);
    exchange(&mut wire, REQUEST, in_15_seconds()).await.unwrap();
    assert_eq!(wire.written, [REQUEST]);
}

#[tokio::test]
async fn any_2xx_opens_and_its_framing_means_nothing() {
    for (answer, code, through) in [
        ("HTTP/1.1 200 Connection established\r\n\r\n", 200, ""),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n220 hi\r\n",
            200,
            "220 hi\r\n",
        ),
        ("HTTP/1.1 204 No Content\r\n\r\nearly", 204, "early"),
        (
            "HTTP/1.1 299 X\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
            299,
            "5\r\n",
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n\
             HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 500 of the target\r\n\r\n",
            200,
            "HTTP/1.1 500 of the target\r\n\r\n",
        ),
    ] {
        let answer = answer.as_bytes();
        let expected = (code, through.as_bytes().to_vec());
        assert_eq!(outcome([answer]).await.unwrap(), expected);
        assert_eq!(outcome(answer.chunks(1)).await.unwrap(), expected);
        for cut in 0..answer.len() {
            let (start, end) = answer.split_at(cut);
            assert_eq!(
                outcome([start, end]).await.unwrap(),
                expected,
                "cut at {cut}"
            );
        }
    }
}

#[tokio::test]
async fn early_bytes_of_any_length_are_kept() {
    let head = b"HTTP/1.1 200 OK\r\n\r\n";
    for early in [1, 1000, 1024 - head.len(), 100_000] {
        let bytes = [&head[..], &vec![7; early]].concat();
        assert_eq!(outcome([&bytes[..]]).await.unwrap().1.len(), early);
    }
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let endless = [
        b"HTTP/1.1 200 OK\r\n".to_vec(),
        b"A: b\r\n".repeat(1_000_000),
    ]
    .concat();
    let mut wire = Wire::new([&endless[..]], End::Silent);
    let error = exchange(&mut wire, REQUEST, in_15_seconds())
        .await
        .unwrap_err();
    assert!(
        matches!(error, ExchangeError::BadAnswer(BadAnswer::TooLong)),
        "{error:?}"
    );
    assert!(wire.read < 3 * MAX_HEAD, "{} bytes were read", wire.read);

    // Interim answers, many and large.
    let interim = "HTTP/1.1 100 Continue\r\n\r\n";
    let many = format!("{}HTTP/1.1 200 OK\r\n\r\n", interim.repeat(16));
    assert_eq!(outcome([many.as_bytes()]).await.unwrap().0, 200);
    let error = outcome([interim.repeat(17).as_bytes()]).await.unwrap_err();
    assert!(matches!(error, ExchangeError::TooManyInterim), "{error:?}");
    let large = format!("HTTP/1.1 100 X\r\nA: {}\r\n\r\n", "x".repeat(40_000)).repeat(2);
    let error = outcome([large.as_bytes()]).await.unwrap_err();
    assert!(
        matches!(error, ExchangeError::BadAnswer(BadAnswer::TooLong)),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_connection_that_ends_says_how_far_it_came() {
    let error = outcome([]).await.unwrap_err();
    assert!(
        matches!(error, ExchangeError::ClosedEarly { received: 0 }),
        "{error:?}"
    );
    let error = outcome([&b"HTTP/1.1 100 X\r\n\r\nHTTP/1.1 2"[..]])
        .await
        .unwrap_err();
    assert!(
        matches!(error, ExchangeError::ClosedEarly { received: 28 }),
        "{error:?}"
    );
    let mut wire = Wire::new([&b"HTTP"[..]], End::Reset);
    let error = exchange(&mut wire, REQUEST, in_15_seconds())
        .await
        .unwrap_err();
    assert!(matches!(error, ExchangeError::Read(_)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_holds_against_silence_and_slow_drips() {
    let start = Instant::now();
    let mut wire = Wire::new([], End::Silent);
    let error = exchange(&mut wire, REQUEST, in_15_seconds())
        .await
        .unwrap_err();
    assert!(
        matches!(error, ExchangeError::Timeout { received: 0 }),
        "{error:?}"
    );
    assert_eq!(start.elapsed().as_secs(), 15);

    let (mut near, mut far) = tokio::io::duplex(1024);
    let drip = tokio::spawn(async move {
        far.write_all(b"HTTP/1.1 200 OK\r\nA: ").await.unwrap();
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if far.write_all(b"x").await.is_err() {
                return;
            }
        }
    });
    let start = Instant::now();
    let deadline = start + Duration::from_millis(14_500);
    let error = exchange(&mut near, REQUEST, deadline).await.unwrap_err();
    assert!(
        matches!(error, ExchangeError::Timeout { received: 34 }),
        "{error:?}"
    );
    assert_eq!(start.elapsed().as_millis(), 14_500);
    drop(near);
    drip.await.unwrap();

    // A proxy that does not even read.
    let (mut near, _far) = tokio::io::duplex(8);
    let error = exchange(&mut near, REQUEST, in_15_seconds())
        .await
        .unwrap_err();
    assert!(
        matches!(error, ExchangeError::Timeout { received: 0 }),
        "{error:?}"
    );
}

#[tokio::test]
async fn refusals_tell_code_schemes_and_the_text_of_the_body() {
    let answer = "HTTP/1.1 407 Proxy Authentication Required\r\n\
                  Proxy-Authenticate: Basic realm=\"corp\"\r\nProxy-Authenticate: Negotiate\r\n\
                  Content-Length: 14\r\n\r\nlog\u{202e} in\t \n\nfirst, and more";
    let expected = Refusal {
        code: 407,
        reason: "Proxy Authentication Required".into(),
        schemes: vec!["Basic".into(), "Negotiate".into()],
        body: "log\\u{202e} in f".into(),
    };
    assert_eq!(refusal(answer).await, expected);
    assert_eq!(expected.status(), "407 Proxy Authentication Required");

    let bare = refusal("HTTP/1.1 407\r\n\r\n").await;
    assert_eq!(
        (bare.status(), bare.schemes.len(), &*bare.body),
        ("407".into(), 0, "")
    );
    assert_eq!(
        refusal("HTTP/1.1 403 No\r\n\r\nuntil close").await.body,
        "until close"
    );
    assert_eq!(
        refusal("HTTP/1.1 502 X\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nno r\r\n5\r\noute!\r\n0\r\n\r\n").await.body,
        "no route!"
    );
    assert_eq!(
        refusal("HTTP/1.1 502 X\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nno")
            .await
            .body,
        "no"
    );
    assert_eq!(
        refusal("HTTP/1.1 502 X\r\nTransfer-Encoding: chunked\r\n\r\nplain")
            .await
            .body,
        "plain"
    );
    let long = format!(
        "HTTP/1.1 503 Busy\r\nContent-Length: 9999\r\n\r\n{}",
        "y".repeat(9999)
    );
    assert_eq!(refusal(&long).await.body.len(), 1024);
    assert_eq!(
        refusal("HTTP/1.1 101 Switching Protocols\r\n\r\n")
            .await
            .code,
        101
    );
    assert_eq!(
        refusal("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n")
            .await
            .code,
        302
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_is_waited_for_one_second_and_never_past_the_deadline() {
    let answer = &b"HTTP/1.1 403 Forbidden\r\nContent-Length: 100\r\n\r\nhalf of"[..];
    for (left, waited) in [(15_000, 1_000), (400, 400)] {
        let start = Instant::now();
        let mut wire = Wire::new([answer], End::Silent);
        let deadline = start + Duration::from_millis(left);
        let error = exchange(&mut wire, REQUEST, deadline).await.unwrap_err();
        let ExchangeError::Refused(refusal) = error else {
            panic!("{error:?}");
        };
        assert_eq!((refusal.code, &*refusal.body), (403, "half of"));
        assert_eq!(start.elapsed().as_millis(), waited);
    }
    // No waiting where the end is known.
    for answer in [
        "HTTP/1.1 403 X\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 403 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
    ] {
        let start = Instant::now();
        let mut wire = Wire::new([answer.as_bytes()], End::Silent);
        exchange(&mut wire, REQUEST, in_15_seconds())
            .await
            .unwrap_err();
        assert_eq!(start.elapsed(), Duration::ZERO, "{answer:?}");
    }
}

/// Answers that are near the grammar, with whatever may follow.
fn answers() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        Just(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()),
        Just(b"HTTP/1.0 403 Forbidden\r\n".to_vec()),
        Just(b"HTTP/1.1 407 X\r\nProxy-Authenticate: Basic\r\n".to_vec()),
        Just(b"Content-Length: 7\r\n".to_vec()),
        Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\n3\r\nabc\r\n0\r\n\r\n".to_vec()),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_answer_panics_and_segments_do_not_matter(
        bytes in answers(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts.into_iter().chain([bytes.len()]) {
            pieces.push(&bytes[from..cut]);
            from = cut;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (whole, cut) = runtime.block_on(async {
            (outcome([&bytes[..]]).await, outcome(pieces).await)
        });
        match (whole, cut) {
            (Ok(whole), Ok(cut)) => prop_assert_eq!(whole, cut),
            (Err(ExchangeError::Refused(whole)), Err(ExchangeError::Refused(cut))) => {
                prop_assert_eq!(whole, cut);
            }
            (Err(whole), Err(cut)) => prop_assert_eq!(
                std::mem::discriminant(&whole),
                std::mem::discriminant(&cut)
            ),
            (whole, cut) => prop_assert!(false, "{:?} and {:?}", whole, cut),
        }
    }
}
