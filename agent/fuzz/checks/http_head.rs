//! What must hold for any bytes that may begin with the head of an HTTP/1 request.

use underpass::inspect::InspectError;
use underpass::inspect::http_head::{Form, Found, MAX_FIELDS, RequestHead, Search, parse};
use underpass::name::Host;

/// Methods that nobody may take for another protocol.
const METHODS: [&[u8]; 9] = [
    b"CONNECT ",
    b"DELETE ",
    b"GET ",
    b"HEAD ",
    b"OPTIONS ",
    b"PATCH ",
    b"POST ",
    b"PUT ",
    b"TRACE ",
];

/// Checks some first bytes of a connection.
pub(crate) fn check(bytes: &[u8]) {
    let whole = parse(bytes);
    check_pieces(bytes, &whole);
    check_method(bytes, &whole);
    match &whole {
        Ok(Found::Head(head)) => check_head(bytes, head),
        Err(error) => assert!(
            matches!(
                error,
                InspectError::Malformed(_) | InspectError::TooManyFields
            ) && error.status().is_some(),
            "{error}"
        ),
        Ok(_) => {}
    }
}

type Parsed = Result<Found, InspectError>;

fn same(one: &Parsed, other: &Parsed) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => one == other,
        (Err(one), Err(other)) => one.to_string() == other.to_string(),
        _ => false,
    }
}

/// However the bytes arrive the verdict is the same, is made as early as it can be, and what
/// follows does not change it.
fn check_pieces(bytes: &[u8], whole: &Parsed) {
    for size in [1, 2, 3, 7, 64] {
        let mut search = Search::default();
        let mut begun = false;
        let mut length = 0;
        loop {
            let found = search.look(&bytes[..length]);
            assert!(search.has_begun() || !begun, "a method was forgotten");
            begun = search.has_begun();
            if !matches!(found, Ok(Found::Incomplete)) || length == bytes.len() {
                assert!(
                    same(&found, whole),
                    "in pieces of {size}, after {length} bytes: {found:?}, at once: {whole:?}"
                );
                let again = parse(&bytes[..length]);
                assert!(same(&again, whole), "of {length} bytes alone: {again:?}");
                break;
            }
            length = bytes.len().min(length + size);
        }
    }
    let mut longer = bytes.to_vec();
    longer.extend_from_slice(b"\r\n\r\nGET / HTTP/1.1\r\nHost: later.example\r\n\r\n");
    if !matches!(whole, Ok(Found::Incomplete)) {
        let found = parse(&longer);
        assert!(same(&found, whole), "{found:?} with more after {whole:?}");
    }
}

/// After a method, wrong is wrong: only a request line that names another protocol makes these
/// bytes opaque. Without one they are never HTTP.
fn check_method(bytes: &[u8], whole: &Parsed) {
    let method = METHODS.iter().any(|method| bytes.starts_with(method));
    let mut search = Search::default();
    let _ = search.look(bytes);
    assert!(search.has_begun() || !method);
    if method && matches!(whole, Ok(Found::OtherProtocol)) {
        let line = bytes.split(|byte| *byte == b'\n').next();
        let line = line.unwrap_or_default().trim_ascii_end();
        let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
        assert!(
            version.contains(&b'/') && !version.to_ascii_uppercase().starts_with(b"HTTP/"),
            "a request became opaque"
        );
    }
    let upper = |byte: &u8| byte.is_ascii_uppercase() || *byte == b'-';
    let token = bytes.iter().take_while(|byte| upper(byte)).count();
    if matches!(bytes.get(token), Some(byte) if token == 0 || *byte != b' ') {
        assert!(matches!(whole, Ok(Found::OtherProtocol)), "{whole:?}");
    }
}

/// Reads an accepted head again, in the plainest way: another reader must not find another host.
fn check_head(bytes: &[u8], head: &RequestHead) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut line = || {
        let line = lines.next().expect("an empty line ends the head");
        line.strip_suffix(b"\r").unwrap_or(line)
    };
    let request: Vec<&[u8]> = line().split(|byte| *byte == b' ').collect();
    let [method, target, version] = request[..] else {
        panic!("a request line of {} words", request.len());
    };
    assert!(version == b"HTTP/1.1" || version == b"HTTP/1.0");
    let form = match target {
        _ if method == b"CONNECT" => Form::Authority,
        [b'/', ..] => Form::Origin,
        b"*" => Form::Asterisk,
        _ => Form::Absolute,
    };
    assert_eq!(head.form, form);

    let mut hosts = Vec::new();
    let mut count = 0;
    loop {
        let field = line();
        if field.is_empty() {
            break;
        }
        count += 1;
        assert!(!field.contains(&b'\r') && !field.contains(&0));
        let colon = field.iter().position(|byte| *byte == b':');
        let (name, value) = field.split_at(colon.expect("a colon in every field"));
        assert!(!name.is_empty() && name.iter().all(u8::is_ascii_graphic));
        if name.eq_ignore_ascii_case(b"host") {
            hosts.push(value[1..].trim_ascii());
        }
    }
    assert!(count <= MAX_FIELDS);
    assert!(
        hosts.len() <= 1,
        "{} Host fields were accepted",
        hosts.len()
    );
    let to_proxy = matches!(form, Form::Absolute | Form::Authority);
    assert!(hosts.len() == 1 || version == b"HTTP/1.0" || to_proxy);
    if to_proxy {
        assert_eq!(head.host, None, "it is not for whom the connection is");
    } else {
        assert_eq!(head.host, hosts.first().and_then(|field| named(field)));
    }
}

/// The host of a Host field that was accepted.
fn named(field: &[u8]) -> Option<Host> {
    let text = str::from_utf8(field).expect("an accepted host is ASCII");
    let host = match text.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => text,
    };
    let host = host.parse().ok()?;
    if let Host::Name(name) = &host {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        assert!(name.as_str().bytes().all(plain), "{name}");
    }
    Some(host)
}
