//! Requests that could be understood in two ways, and others that are none: nothing of any of them
//! goes on.

use super::*;

/// A POST with these lines between the first and the empty one.
fn post(lines: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: x.test\r\n{lines}\r\n\r\nabcdef")
}

/// A chunked POST with this body.
fn chunked(body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: x.test\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

fn shapes() -> Vec<String> {
    let mut shapes: Vec<String> = [
        // Two lengths.
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 6",
        "Content-Length: 6\r\nContent-Length: 5",
        "Content-Length: 6, 6",
        "Content-Length: 6, 5",
        // Lengths that are none.
        "Content-Length: +6",
        "Content-Length: -6",
        "Content-Length: 0x6",
        "Content-Length: 6 6",
        "Content-Length: 6;",
        "Content-Length:",
        "Content-Length: 18446744073709551616",
        // Codings.
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding:\x0bchunked",
        "Transfer-Encoding:",
        // Names and lines.
        "Transfer-Encoding : chunked",
        "Content-Length : 6",
        " Content-Length: 6",
        "X: a\r\n b",
        "X: a\r\n\tTransfer-Encoding: chunked",
        "X: a\rContent-Length: 6",
        "X: a\r\rb",
        "X: a\0b",
        "X\0: a",
        "X(y): a",
        "X y: a",
        ": a",
        "no colon",
        // What routes and frames is for everybody.
        "Connection: Content-Length\r\nContent-Length: 6",
        "Connection: close, host",
        "Connection: transfer-encoding\r\nTransfer-Encoding: chunked",
        // Hosts.
        "Host: y.test",
        "Host: x.test",
    ]
    .map(post)
    .into();
    shapes.extend(
        [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x.test@y.test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x.test:port\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: x.test\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: x.test\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: x.test\r\n\r\n",
            "GET /\0 HTTP/1.1\r\nHost: x.test\r\n\r\n",
            "GET x HTTP/1.1\r\nHost: x.test\r\n\r\n",
            "GET / HTTP/1.2\r\nHost: x.test\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: x.test\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: x.test\r\n\r\n",
            "GET /\r\n\r\n",
            "G(T / HTTP/1.1\r\nHost: x.test\r\n\r\n",
            "CONNECT x.test:1 HTTP/1.1\r\nHost: x.test:1\r\nContent-Length: 6\r\n\r\nabcdef",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ]
        .map(String::from),
    );
    shapes.extend(
        [
            "zz\r\n",
            "-1\r\n",
            "+1\r\na\r\n0\r\n\r\n",
            "0x1\r\na\r\n0\r\n\r\n",
            "1 \r\na\r\n0\r\n\r\n",
            "1\na\r\n0\r\n\r\n",
            "1\r\nab\r\n0\r\n\r\n",
            "10000000000000001\r\na\r\n",
            "1;a\rb\r\na\r\n0\r\n\r\n",
            "1\r\na\n0\r\n\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\nX : a\r\n\r\n",
        ]
        .map(chunked),
    );
    shapes
}

#[tokio::test]
async fn none_goes_on() {
    for shape in shapes() {
        let said = Bytes::copy_from_slice(shape.as_bytes());
        let mut input = Input::new(tokio::io::empty(), said);
        match next_request(&mut input, &QUICK).await {
            Err(error) => {
                assert_eq!(
                    error.status(),
                    Some(StatusCode::BAD_REQUEST),
                    "{shape:?}: {error}"
                );
            }
            Ok(Some(request)) => {
                let body = Body::new(request.framing()).check(input.buffered());
                assert!(body.is_err(), "{shape:?} is taken as {request:?}");
            }
            Ok(None) => panic!("{shape:?} is not looked at"),
        }
    }
}

#[tokio::test]
async fn a_head_has_its_limits() {
    let long = format!(
        "GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "y".repeat(16 * 1024)
    );
    let many = format!(
        "GET / HTTP/1.1\r\nHost: x\r\n{}\r\n",
        "X: y\r\n".repeat(300)
    );
    for said in [long, many] {
        let mut input = Input::new(tokio::io::empty(), said.into());
        let error = next_request(&mut input, &QUICK).await.unwrap_err();
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        assert_eq!(error.status(), Some(status), "{error}");
    }
    let mut input = Input::new(tokio::io::empty(), "GET / HTTP/1.1\r\nHost".into());
    let error = next_request(&mut input, &QUICK).await.unwrap_err();
    assert!(matches!(error, InspectError::HeadCutShort), "{error}");
}
