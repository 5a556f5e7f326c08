//! What must hold for any bytes that may begin with a ClientHello.

use rustls::server::Acceptor;
use underpass::inspect::client_hello::{Alpn, ClientHello, Incomplete, parse};
use underpass::name::HostName;

type Parsed = Result<Option<ClientHello>, Incomplete>;

/// Checks some first bytes of a connection.
pub(crate) fn check(bytes: &[u8]) {
    let whole = parse(bytes);
    check_prefixes(bytes, &whole);
    check_records(bytes, &whole);
    if let Ok(Some(hello)) = &whole {
        check_name(bytes, hello);
        check_against_rustls(bytes, hello);
    }
}

/// A decision stands whatever follows, and until it is made each attempt asks for more bytes than
/// it had, but never for more than a whole hello takes.
fn check_prefixes(bytes: &[u8], whole: &Parsed) {
    let mut length = 0;
    loop {
        match parse(&bytes[..length]) {
            Err(Incomplete { at_least }) => {
                assert!(at_least > length, "asked for {at_least} bytes of {length}");
                if at_least > bytes.len() {
                    // Wrong it may be already: a broken record in between is not looked for.
                    assert!(
                        !matches!(whole, Ok(Some(_))),
                        "a hello before it was promised"
                    );
                    break;
                }
                length = at_least;
            }
            decided => {
                assert_eq!(&decided, whole, "after {length} bytes");
                break;
            }
        }
    }
    // The same without keeping to what was asked for, as far as the time allows.
    let mut decided = false;
    for length in (0..bytes.len().min(512)).chain((512..bytes.len()).step_by(61)) {
        let part = parse(&bytes[..length]);
        assert!(part.is_ok() || !decided, "undecided again at {length}");
        decided = part.is_ok();
        if decided {
            assert_eq!(&part, whole, "after {length} bytes");
        }
    }
}

/// How a hello is cut into records makes no difference.
fn check_records(bytes: &[u8], whole: &Parsed) {
    let Some(message) = handshake_bytes(bytes) else {
        return;
    };
    if message.is_empty() {
        return;
    }
    for size in [1, 2, 5, 1 + message.len() / 2, 1 << 14] {
        let other = parse(&in_records(&message, size));
        match (whole, &other) {
            // Where the records end decides how much is asked for.
            (Err(_), Err(_)) => {}
            _ => assert_eq!(&other, whole, "in records of {size} bytes"),
        }
    }
}

/// Reads an accepted hello again, in the plainest way: it holds no second name that another reader
/// could take.
fn check_name(bytes: &[u8], hello: &ClientHello) {
    let Some(message) = handshake_bytes(bytes) else {
        return;
    };
    let number = |at: usize| usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
    // Behind the header, version and random stand session, cipher suites and compressions.
    let end = 4 + (usize::from(message[1]) << 16) + number(2);
    let mut at = 4 + 34;
    at += 1 + usize::from(message[at]);
    at += 2 + number(at);
    at += 1 + usize::from(message[at]) + 2;
    let mut names = Vec::new();
    let (mut lists, mut ech) = (0, 0);
    while at < end {
        let (kind, next) = (number(at), at + 4 + number(at + 2));
        if kind == 0 {
            lists += 1;
            let mut entry = at + 4 + 2;
            while entry < next {
                let after = entry + 3 + number(entry + 1);
                if message[entry] == 0 {
                    names.push(&message[entry + 3..after]);
                }
                entry = after;
            }
        }
        ech += usize::from(kind == 0xfe0d);
        at = next;
    }
    assert!(lists <= 1 && names.len() <= 1, "{} names", names.len());
    assert_eq!(hello.ech, ech > 0);
    if let Some(ours) = &hello.server_name {
        let name = names.first().expect("a name that stands there");
        let name = name.strip_suffix(b".").unwrap_or(name);
        assert!(name.eq_ignore_ascii_case(ours.as_str().as_bytes()));
    }
}

/// What a sequence of whole handshake records carries; `None` for anything else.
fn handshake_bytes(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = usize::from(u16::from_be_bytes([*rest.get(3)?, *rest.get(4)?]));
        if !rest.starts_with(&[22, 3]) || length == 0 || length > 1 << 14 {
            return None;
        }
        message.extend_from_slice(rest.get(5..5 + length)?);
        rest = &rest[5 + length..];
    }
    Some(message)
}

fn in_records(message: &[u8], size: usize) -> Vec<u8> {
    let mut records = Vec::new();
    for fragment in message.chunks(size) {
        records.extend_from_slice(&[22, 3, 1]);
        let length = u16::try_from(fragment.len()).expect("a fragment of at most 2^14 bytes");
        records.extend_from_slice(&length.to_be_bytes());
        records.extend_from_slice(fragment);
    }
    records
}

/// A server that takes this hello reads the same from it. Two readers with two names would be a
/// way past policy.
fn check_against_rustls(bytes: &[u8], ours: &ClientHello) {
    let mut acceptor = Acceptor::default();
    let mut unread = bytes;
    while !unread.is_empty() {
        if acceptor.read_tls(&mut unread).is_err() {
            return;
        }
    }
    let Ok(Some(accepted)) = acceptor.accept() else {
        return;
    };
    let theirs = accepted.client_hello();
    let name = theirs.server_name().map(|name| name.trim_end_matches('.'));
    let our_name = ours.server_name.as_ref().map(HostName::as_str);
    assert_eq!(
        our_name.map(str::to_owned),
        name.map(str::to_ascii_lowercase),
        "ours and the server's name"
    );
    let mut alpn = Alpn::default();
    for protocol in theirs.alpn().into_iter().flatten() {
        alpn.h2 |= protocol == b"h2";
        alpn.http1 |= protocol == b"http/1.1";
    }
    assert_eq!(ours.alpn, alpn);
}
