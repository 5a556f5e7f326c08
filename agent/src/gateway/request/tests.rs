use super::*;

/// What a request is taken for: the target, or the status that it is refused with.
fn read(builder: http::request::Builder) -> Result<(Wish, String), StatusCode> {
    let request = builder.body(()).unwrap();
    match wish(&request, true) {
        Ok((wish, target)) => Ok((wish, target.to_string())),
        Err(refusal) => Err(refusal.status()),
    }
}

#[test]
fn the_target_of_connect_is_an_authority_with_a_port() {
    for (uri, target) in [
        ("example.com:443", Some("example.com:443")),
        ("EXAMPLE.com.:8443", Some("example.com:8443")),
        ("203.0.113.7:22", Some("203.0.113.7:22")),
        ("[2001:db8::1]:443", Some("[2001:db8::1]:443")),
        ("[::ffff:203.0.113.7]:443", Some("203.0.113.7:443")),
        ("example.com", None),
        ("[2001:db8::1]", None),
        ("example.com:0", None),
        ("user@example.com:443", None),
        ("127.1:443", None),
        ("http://example.com:443", None),
        ("http://example.com:443/", None),
        ("/", None),
        ("*", None),
    ] {
        let found = read(Request::connect(uri));
        match target {
            Some(target) => assert_eq!(found, Ok((Wish::Tunnel, target.into()))),
            None => assert_eq!(found, Err(StatusCode::BAD_REQUEST), "{uri}"),
        }
    }
}

#[test]
fn the_target_of_other_requests_is_that_of_their_uri() {
    for (uri, target) in [
        ("http://example.com/", Some("example.com:80")),
        ("http://example.com", Some("example.com:80")),
        ("HTTP://EXAMPLE.com.:8080/x?y", Some("example.com:8080")),
        ("http://example.com:/", Some("example.com:80")),
        ("http://[2001:db8::1]/", Some("[2001:db8::1]:80")),
        ("http://[2001:db8::1]:81/", Some("[2001:db8::1]:81")),
        ("http://[::ffff:127.0.0.1]/", Some("127.0.0.1:80")),
        ("http://good@127.0.0.1/", None),
        ("http://good:pw@example.com/", None),
        ("http://127.1/", None),
        ("http://2130706433/", None),
        ("http://0x7f.0.0.1/", None),
        ("https://example.com/", None),
        ("ftp://example.com/", None),
        ("/", None),
        ("*", None),
        ("example.com:80", None),
    ] {
        let request = Request::get(uri).header("host", "other.example");
        let found = read(request);
        match target {
            Some(target) => assert_eq!(found, Ok((Wish::Forward, target.into()))),
            None => assert_eq!(found, Err(StatusCode::BAD_REQUEST), "{uri}"),
        }
    }
}

#[test]
fn what_no_proxy_forwards_is_refused() {
    let request = || Request::post("http://a.example/");
    assert!(read(request().header("host", "a")).is_ok());
    for (builder, status) in [
        (request(), 400),
        (request().method("TRACE").header("host", "a"), 405),
    ] {
        assert_eq!(read(builder).unwrap_err().as_u16(), status);
    }
    // HTTP/1.0 and HTTP/2 need no Host.
    for version in [Version::HTTP_10, Version::HTTP_2] {
        assert!(read(Request::get("http://a.example/").version(version)).is_ok());
    }
}

#[test]
fn post_is_a_tunnel_only_over_http2_and_only_where_that_is_wanted() {
    let post = |uri: &str, version| {
        let request = Request::post(uri).version(version).header("host", "a");
        request.body(()).unwrap()
    };
    let found = |uri, version, wanted| {
        let found = wish(&post(uri, version), wanted);
        found.map(|(wish, target)| (wish, target.port)).ok()
    };
    let uri = "http://a.example:81/";
    assert_eq!(found(uri, Version::HTTP_2, true), Some((Wish::Tunnel, 81)));
    assert_eq!(
        found(uri, Version::HTTP_2, false),
        Some((Wish::Forward, 81))
    );
    assert_eq!(
        found(uri, Version::HTTP_11, true),
        Some((Wish::Forward, 81))
    );
    assert_eq!(found("http://a.example/", Version::HTTP_2, true), None);
    let tls = "https://a.example:81/";
    assert_eq!(found(tls, Version::HTTP_2, true), Some((Wish::Tunnel, 81)));
}
