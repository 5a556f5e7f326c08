use proptest::prelude::*;

use super::{Answer, BadAnswer, BodyLength, MAX_HEAD, parse};

fn complete(head: &str) -> Answer {
    let answer = parse(head.as_bytes()).unwrap().unwrap();
    assert_eq!(answer.len, head.len());
    answer
}

#[test]
fn what_proxies_send_is_read() {
    for (head, code, reason) in [
        (
            "HTTP/1.1 200 Connection established\r\n\r\n",
            200,
            "Connection established",
        ),
        ("HTTP/1.0 200 OK\r\nProxy-agent: old\r\n\r\n", 200, "OK"),
        ("HTTP/1.1 204 No Content\r\n\r\n", 204, "No Content"),
        // Without a reason phrase, with and without the space before it.
        ("HTTP/1.1 200 \r\n\r\n", 200, ""),
        ("HTTP/1.1 200\r\n\r\n", 200, ""),
        // Line feeds alone, also mixed with proper line ends.
        ("HTTP/1.1 200 OK\nA: b\n\n", 200, "OK"),
        ("HTTP/1.1 200 OK\nA: b\r\n\n", 200, "OK"),
        ("HTTP/1.1 200 OK\r\nA: b\n\r\n", 200, "OK"),
        // Folded and broken fields.
        ("HTTP/1.1 200 OK\r\nA: b\r\n  c\r\n\r\n", 200, "OK"),
        (
            "HTTP/1.1 200 OK\r\nno colon here\r\nA : b\r\n\r\n",
            200,
            "OK",
        ),
        ("HTTP/1.1 999 Whatever\r\n\r\n", 999, "Whatever"),
    ] {
        let answer = complete(head);
        assert_eq!((answer.code, &*answer.reason), (code, reason), "{head:?}");
        let longer = format!("{head}\r\nHTTP/1.1 500 X\r\n\r\n");
        assert_eq!(parse(longer.as_bytes()).unwrap(), Some(answer), "{head:?}");
        for cut in 0..head.len() {
            assert_eq!(
                parse(&head.as_bytes()[..cut]),
                Ok(None),
                "{head:?} at {cut}"
            );
        }
    }
}

#[test]
fn what_is_no_answer_is_told_at_once() {
    for (bytes, is_tls) in [
        (&b"SSH-2.0-OpenSSH_9.2\r\n"[..], false),
        (b"220 mail.example ESMTP\r\n", false),
        (b"HTTP/2 200\r\n\r\n", false),
        (b"\r\nHTTP/1.1 200 OK\r\n\r\n", false),
        (b"\x15\x03\x01\x00\x02\x02\x46", true),
        (b"\0", false),
    ] {
        let error = parse(bytes).unwrap_err();
        assert!(
            matches!(error, BadAnswer::NotHttp { is_tls: found, .. } if found == is_tls),
            "{error:?}"
        );
        assert!(error.to_string().is_ascii());
    }
    for head in [
        "HTTP/1.7 200 OK\r\n\r\n",
        "HTTP/1.1 2x0 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1\r\n\r\n",
        "HTTP/1.\n\n",
    ] {
        let error = parse(head.as_bytes()).unwrap_err();
        assert!(
            matches!(error, BadAnswer::Malformed { .. }),
            "{head:?}: {error:?}"
        );
    }
}

#[test]
fn samples_are_short_and_printable() {
    let mut bytes = b"\x1b[2J\xff\r\n".to_vec();
    bytes.extend([b'x'; 5000]);
    let text = parse(&bytes).unwrap_err().to_string();
    assert!(text.contains(r"`\x1b[2J\xff\r\nxxx"), "{text}");
    assert!(text.len() < 500);
}

#[test]
fn the_head_is_bounded() {
    let mut bytes = b"HTTP/1.1 200 OK\r\n".to_vec();
    bytes.resize(MAX_HEAD - 1, b'a');
    assert_eq!(parse(&bytes), Ok(None));
    bytes.push(b'a');
    assert_eq!(parse(&bytes), Err(BadAnswer::TooLong));

    // To the byte, wherever the rest of the stream begins.
    let padded = |len: usize| {
        let (start, end) = ("HTTP/1.1 200 OK\r\nA: ", "\r\n\r\n");
        let filling = "x".repeat(len - start.len() - end.len());
        format!("{start}{filling}{end}")
    };
    assert_eq!(complete(&padded(MAX_HEAD)).code, 200);
    assert_eq!(
        parse(padded(MAX_HEAD + 1).as_bytes()),
        Err(BadAnswer::TooLong)
    );

    let fields = |count: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(count));
    assert_eq!(complete(&fields(256)).code, 200);
    assert!(parse(fields(257).as_bytes()).is_err());
}

#[test]
fn schemes_are_found_among_their_parameters() {
    for (fields, schemes) in [
        ("", &[][..]),
        (
            "Proxy-Authenticate: Basic realm=\"a, Digest b\"\r\n",
            &["Basic"],
        ),
        (
            "proxy-authenticate: Negotiate\r\nPROXY-AUTHENTICATE: NTLM\r\n\
             Proxy-Authenticate: Basic realm = \"q\\\"uote, x\", charset=\"UTF-8\"\r\n",
            &["Negotiate", "NTLM", "Basic"],
        ),
        (
            "Proxy-Authenticate: Digest realm=\"r\", nonce=\"n\", qop=auth, Basic realm=r, \
             Negotiate abc==, Basic\r\n",
            &["Digest", "Basic", "Negotiate"],
        ),
        ("Proxy-Authenticate: , ,\"x\", \x01 y\r\n", &[]),
        ("WWW-Authenticate: Basic\r\n", &[]),
    ] {
        let head = format!("HTTP/1.1 407 Proxy Authentication Required\r\n{fields}\r\n");
        assert_eq!(complete(&head).schemes, schemes, "{fields:?}");
    }
    let many: String = (0..50).map(|n| format!("S{n}, ")).collect();
    let head = format!("HTTP/1.1 407 X\r\nProxy-Authenticate: {many}\r\n\r\n");
    assert_eq!(complete(&head).schemes.len(), 8);
}

#[test]
fn the_end_of_a_body_is_known() {
    for (fields, body) in [
        ("", BodyLength::UntilClose),
        ("Content-Length: 12\r\n", BodyLength::Known(12)),
        ("Content-Length: -1\r\n", BodyLength::UntilClose),
        (
            "Content-Length: 99999999999999999999\r\n",
            BodyLength::UntilClose,
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            BodyLength::Chunked,
        ),
    ] {
        let head = format!("HTTP/1.1 403 Forbidden\r\n{fields}\r\n");
        assert_eq!(complete(&head).body, body, "{fields:?}");
    }
}

/// Bytes that come near an answer, and some that do not.
fn answers() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"HTTP/1.1 200 OK\r\n".to_vec()),
        Just(b"HTTP/1.0 407".to_vec()),
        Just(b"Proxy-Authenticate: Basic realm=\"".to_vec()),
        Just(b"\r\n\r\n".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"A: b\r\n".to_vec()),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    (any::<bool>(), prop::collection::vec(piece, 0..8)).prop_map(|(begins_well, pieces)| {
        let start = if begins_well { &b"HTTP/1.1 "[..] } else { b"" };
        [start, &pieces.concat()].concat()
    })
}

proptest! {
    #[test]
    fn any_bytes_are_read_the_same_in_any_pieces(bytes in answers(), cut in any::<prop::sample::Index>()) {
        let whole = parse(&bytes);
        let mut scanner = super::Scanner::default();
        let cut = cut.index(bytes.len() + 1);
        let part = scanner.parse(&bytes[..cut]);
        match part {
            Ok(None) => prop_assert_eq!(scanner.parse(&bytes), whole),
            // Decided: more bytes change nothing.
            Ok(Some(answer)) => {
                prop_assert!(answer.len <= cut);
                prop_assert!(answer.reason.is_ascii() && answer.code >= 100);
                prop_assert_eq!(Ok(Some(answer)), whole);
            }
            Err(_) => prop_assert!(whole.is_err()),
        }
    }
}
