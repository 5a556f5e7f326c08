use proptest::prelude::*;

use super::*;

fn head(bytes: &str) -> RequestHead {
    match parse(bytes.as_bytes()) {
        Ok(Found::Head(head)) => head,
        other => panic!("{bytes:?} gave {other:?}"),
    }
}

fn host_of(field: &str) -> Result<Option<Host>, InspectError> {
    let bytes = format!("GET / HTTP/1.1\r\nHost:{field}\r\n\r\n");
    match parse(bytes.as_bytes())? {
        Found::Head(head) => Ok(head.host),
        other => panic!("{field:?} gave {other:?}"),
    }
}

#[test]
fn the_host_of_a_request() {
    for (field, host) in [
        (" example.com", "example.com"),
        ("\t WWW.Example.COM. \t", "www.example.com"),
        ("example.com:8080", "example.com"),
        ("example.com:", "example.com"),
        ("203.0.113.7:80", "203.0.113.7"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[::ffff:203.0.113.7]", "203.0.113.7"),
    ] {
        let expected: Host = host.parse().unwrap();
        assert_eq!(host_of(field).unwrap(), Some(expected), "{field:?}");
    }
}

#[test]
fn a_host_that_dns_cannot_know_is_no_name() {
    for field in [
        "",
        " ",
        "127.1",
        "0x7f.1",
        "a..example",
        "-a.example",
        "%61.example",
        "a,b",
    ] {
        assert_eq!(host_of(field).unwrap(), None, "{field:?}");
    }
}

#[test]
fn a_host_with_a_wrong_syntax_is_refused() {
    for field in [
        "a b",
        "a.example, b.example",
        "user@a.example",
        "a.example/",
        "http://a.example",
        "a.example:port",
        "a.example:+80",
        "a.example:65536",
        "a.example:80:80",
        "2001:db8::1",
        "[2001:db8::1",
        "[2001:db8::1]80",
        "[fe80::1%25eth0]",
        "[a.example]",
        "[]",
        "a%2.example",
        "a%",
        "a\"b",
        "na\u{ef}ve.example",
    ] {
        let error = host_of(field).expect_err(field);
        assert!(
            error.to_string().contains("the Host field"),
            "{field:?}: {error}"
        );
    }
    let latin1 = b"GET / HTTP/1.1\r\nHost: na\xefve.example\r\n\r\n";
    assert!(matches!(parse(latin1), Err(InspectError::Malformed(_))));
}

#[test]
fn forms_of_the_target_and_whom_they_address() {
    let a = || Some("a.example".parse().unwrap());
    for (line, form, host) in [
        ("GET / HTTP/1.1", Form::Origin, a()),
        (
            "GET //b.example/http://c.example HTTP/1.1",
            Form::Origin,
            a(),
        ),
        ("PROPFIND /dav/ HTTP/1.1", Form::Origin, a()),
        ("OPTIONS * HTTP/1.1", Form::Asterisk, a()),
        ("GET http://b.example/ HTTP/1.1", Form::Absolute, None),
        ("GET HTTPS://b.example HTTP/1.0", Form::Absolute, None),
        ("CONNECT b.example:443 HTTP/1.1", Form::Authority, None),
    ] {
        let bytes = format!("{line}\r\nAccept: */*\r\nhOsT: a.example\r\n\r\nbody");
        assert_eq!(head(&bytes), RequestHead { host, form }, "{line}");
    }
}

#[test]
fn a_request_may_do_without_host_where_nothing_hangs_on_it() {
    for line in [
        "GET / HTTP/1.0",
        "GET http://b.example/ HTTP/1.1",
        "CONNECT b.example:443 HTTP/1.1",
    ] {
        assert_eq!(head(&format!("{line}\r\n\r\n")).host, None, "{line}");
    }
}

#[test]
fn lines_may_end_with_lf_alone() {
    for bytes in [
        "GET / HTTP/1.1\nHost: a.example\n\nGET",
        "GET / HTTP/1.1\r\nHost: a.example\n\r\n",
        "GET / HTTP/1.1\nHost: a.example\r\n\n\r\n",
    ] {
        assert_eq!(head(bytes).host, Some("a.example".parse().unwrap()));
    }
    assert_eq!(head("GET / HTTP/1.0\n\n").host, None);
}

#[test]
fn malformed_heads_are_refused() {
    for (bytes, reason) in [
        ("GET / HTTP/1.1\r\n\r\n", "demands a Host"),
        ("OPTIONS * HTTP/1.1\r\n\r\n", "demands a Host"),
        (
            "GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n",
            "more than one Host",
        ),
        (
            "GET / HTTP/1.0\r\nHost: a.example\r\nhost: b.example\r\n\r\n",
            "more than one Host",
        ),
        ("GET / HTTP/1.1\r\nHost : a.example\r\n\r\n", "field name"),
        ("GET / HTTP/1.1\r\n Host: a.example\r\n\r\n", "field name"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\n .example\r\n\r\n",
            "field name",
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", "field name"),
        ("GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", "field name"),
        (
            "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
            "control character",
        ),
        ("GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", "control character"),
        ("GET / HTTP/1.1\rHost: a\r\n\r\n", "a CR"),
        ("GET / HTTP/2.0\r\n", "the version"),
        ("GET / HTTP/1.2\r\n", "the version"),
        ("GET / http/1.1\r\n", "the version"),
        ("GET / \r\n", "the version"),
        ("GET /\r\n", "the request line"),
        ("GET key\r\n", "the request line"),
        ("GET a/2.0\r\n", "the request line"),
        ("GET  / HTTP/1.1\r\n", "the request line"),
        ("GET /  HTTP/1.1\r\n", "the version"),
        ("GET /a b HTTP/1.1\r\n", "the version"),
        ("GET / HTTP/1.1 \r\n", "a CR"),
        ("GET /\x01 HTTP/1.1\r\n", "the request line"),
        ("GET \r\n\r\n", "the request line"),
        (
            "GET a.example:80 HTTP/1.1\r\nHost: a\r\n\r\n",
            "the request target",
        ),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", "the request target"),
        ("GET ://a HTTP/1.1\r\nHost: a\r\n\r\n", "the request target"),
        (
            "CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\n",
            "the request target",
        ),
    ] {
        match parse(bytes.as_bytes()) {
            Err(InspectError::Malformed(is)) => assert!(is.contains(reason), "{bytes:?}: {is}"),
            other => panic!("{bytes:?} gave {other:?}"),
        }
    }
}

#[test]
fn the_number_of_fields_is_limited() {
    let with = |fields: usize| {
        let rest = "x: y\r\n".repeat(fields - 1);
        parse(format!("GET / HTTP/1.1\r\nHost: a\r\n{rest}\r\n").as_bytes())
    };
    assert!(matches!(with(MAX_FIELDS), Ok(Found::Head(_))));
    assert!(matches!(
        with(MAX_FIELDS + 1),
        Err(InspectError::TooManyFields)
    ));
}

#[test]
fn other_protocols_are_left_alone() {
    for bytes in [
        "OPTIONS sip:a@b.example SIP/2.0\r\n",
        "OPTIONS rtsp://a.example/x RTSP/1.0\r\nCSeq: 1\r\n\r\n",
        "OPTIONS icap://a.example/x ICAP/1.0\r\n",
        "PUT /mount ICE/1.0\n",
        "DESCRIBE rtsp://a.example/x RTSP/1.0\r\n",
        "INVITE sip:a@b.example SIP/2.0\r\n",
        "get / HTTP/1.1\r\n",
        "GETS / HTTP/1.1\r\n",
        "GET\t/ HTTP/1.1\r\n",
        "CONNECT\naccept-version:1.2\n\n\0",
        "\r\nGET / HTTP/1.1\r\n",
        "SSH-2.0-x\r\n",
        " ",
        "\0",
    ] {
        assert_eq!(
            parse(bytes.as_bytes()).unwrap(),
            Found::OtherProtocol,
            "{bytes:?}"
        );
    }
}

#[test]
fn every_prefix_is_incomplete() {
    let bytes = b"VERSION-CONTROL /x HTTP/1.1\r\nHost: a.example\r\nX: y\r\n\r\n";
    let mut search = Search::default();
    for length in 0..bytes.len() {
        assert_eq!(parse(&bytes[..length]).unwrap(), Found::Incomplete);
        assert_eq!(search.look(&bytes[..length]).unwrap(), Found::Incomplete);
        assert_eq!(search.has_begun(), length > "VERSION-CONTROL".len());
    }
    assert!(matches!(search.look(bytes), Ok(Found::Head(_))));
}

/// Pieces of which some heads are right and most are nearly so.
fn heads() -> impl Strategy<Value = Vec<u8>> {
    let line = prop::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.0\n",
        "CONNECT a:1 HTTP/1.1\r\n",
        "PRO",
    ]);
    let piece = prop::sample::select(vec![
        "\r\n",
        "\r\n\r\n",
        "\n",
        "\r",
        " ",
        ":",
        "Host: a.example\r\n",
        "Host: [::1]:80\r\n",
        "X: y\r\n",
        "OPTIONS * RTSP/1.0",
        "\0",
    ]);
    (line, prop::collection::vec(piece, 0..8)).prop_map(|(line, mut pieces)| {
        pieces.insert(0, line);
        pieces.concat().into_bytes()
    })
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in any::<Vec<u8>>()) {
        let _ = parse(&bytes);
        let _ = parse(&[b"GET ", &bytes[..]].concat());
        let _ = parse(&[b"GET / HTTP/1.1\r\nHost: ", &bytes[..], b"\r\n\r\n"].concat());
    }

    #[test]
    fn pieces_make_no_difference(
        bytes in heads(),
        cuts in prop::collection::vec(1usize..9, 1..20),
    ) {
        let mut search = Search::default();
        let mut length = 0;
        let mut cuts = cuts.into_iter().cycle();
        let in_pieces = loop {
            let found = search.look(&bytes[..length]);
            if length == bytes.len() || !matches!(found, Ok(Found::Incomplete)) {
                break found;
            }
            length = bytes.len().min(length + cuts.next().unwrap());
        };
        let at_once = parse(&bytes);
        prop_assert_eq!(format!("{in_pieces:?}"), format!("{at_once:?}"));
    }

    #[test]
    fn a_host_is_read_only_where_there_is_one_field(bytes in heads()) {
        if let Ok(Found::Head(RequestHead { host: Some(host), .. })) = parse(&bytes) {
            let text = String::from_utf8_lossy(&bytes);
            let fields = text.lines().take_while(|line| !line.is_empty());
            let hosts: Vec<_> = fields.filter(|line| line.starts_with("Host:")).collect();
            prop_assert_eq!(hosts.len(), 1, "{:?}", hosts);
            prop_assert!(hosts[0].contains(host.name().map_or("[::1]", |name| name.as_str())));
        }
    }
}
