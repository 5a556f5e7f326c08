//! The head of an HTTP/1 request (RFC 9112), as far as routing needs it.
//!
//! The bytes go on unchanged to a server that reads them once more. So a head that two readers
//! could understand in two ways is refused here; everything else is let through.

use std::mem::MaybeUninit;
use std::net::Ipv6Addr;

use super::InspectError;
use crate::name::Host;

#[cfg(test)]
mod tests;

/// How many fields a head may have.
pub const MAX_FIELDS: usize = 256;

/// Reads the head that `bytes` begin with; what follows it is ignored.
///
/// # Errors
/// [`InspectError::Malformed`] and [`InspectError::TooManyFields`]. How long a head may become is
/// for the caller to limit.
pub fn parse(bytes: &[u8]) -> Result<Found, InspectError> {
    Search::default().look(bytes)
}

/// What stands at the beginning of some bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Found {
    /// A whole request head.
    Head(RequestHead),
    /// What may become a request head with more bytes.
    Incomplete,
    /// No request of HTTP/1: another method, or a request line of another protocol (RTSP, SIP,
    /// ICAP and others share methods and the look of the line).
    OtherProtocol,
}

/// What a request head says about the connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestHead {
    /// The host that the request is for, from its Host field without the port. `None` if it is
    /// not there (HTTP/1.0), is empty or can be no host in DNS, and for a request to a proxy.
    pub host: Option<Host>,
    /// The form of the request target.
    pub form: Form,
}

/// The form of a request target (RFC 9112 section 3.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// `GET http://host/path`: a request to a proxy, which stands at the original destination.
    Absolute,
    /// `OPTIONS *`.
    Asterisk,
    /// `CONNECT host:port`: a request to a proxy, too.
    Authority,
    /// `GET /path`.
    Origin,
}

/// Looks for a head in a buffer that grows. Each byte is searched once, however many pieces a
/// hostile sender makes of them.
#[derive(Debug, Default)]
pub struct Search {
    stage: Stage,
    /// Up to where the buffer needs no second look.
    searched: usize,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Stage {
    #[default]
    Method,
    RequestLine,
    Fields,
}

impl Search {
    /// Looks at everything read so far; `bytes` begins as it did in the last call.
    ///
    /// # Errors
    /// As [`parse`].
    pub fn look(&mut self, bytes: &[u8]) -> Result<Found, InspectError> {
        if self.stage == Stage::Method {
            match begins_with_method(bytes) {
                Some(true) => self.stage = Stage::RequestLine,
                Some(false) => return Ok(Found::OtherProtocol),
                None => return Ok(Found::Incomplete),
            }
        }
        if self.stage == Stage::RequestLine {
            let unseen = &bytes[self.searched..];
            let Some(end) = unseen.iter().position(|byte| *byte == b'\n') else {
                self.searched = bytes.len();
                return Ok(Found::Incomplete);
            };
            self.searched += end;
            if !check_request_line(&bytes[..=self.searched])? {
                return Ok(Found::OtherProtocol);
            }
            self.stage = Stage::Fields;
        }
        match find_end(bytes, self.searched) {
            Some(end) => read_head(&bytes[..end]).map(Found::Head),
            None => {
                // The last line feed may be one byte back, before a CR.
                self.searched = self.searched.max(bytes.len().saturating_sub(2));
                Ok(Found::Incomplete)
            }
        }
    }

    /// Whether a method of HTTP and a space were seen: then it is HTTP, right or wrong.
    pub fn has_begun(&self) -> bool {
        self.stage != Stage::Method
    }
}

/// The methods of RFC 9110, PATCH (RFC 5789), and those of WebDAV (RFC 4918) and its extensions
/// (RFC 3253, 3648, 3744, 4437, 4791, 5323, 5842).
const METHODS: [&[u8]; 36] = [
    b"ACL",
    b"BASELINE-CONTROL",
    b"BIND",
    b"CHECKIN",
    b"CHECKOUT",
    b"CONNECT",
    b"COPY",
    b"DELETE",
    b"GET",
    b"HEAD",
    b"LABEL",
    b"LOCK",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MKREDIRECTREF",
    b"MKWORKSPACE",
    b"MOVE",
    b"OPTIONS",
    b"ORDERPATCH",
    b"PATCH",
    b"POST",
    b"PROPFIND",
    b"PROPPATCH",
    b"PUT",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"TRACE",
    b"UNBIND",
    b"UNCHECKOUT",
    b"UNLOCK",
    b"UPDATE",
    b"UPDATEREDIRECTREF",
    b"VERSION-CONTROL",
];

/// Whether a method and a space stand at the beginning; `None` if more bytes must tell.
fn begins_with_method(bytes: &[u8]) -> Option<bool> {
    let mut undecided = false;
    for method in METHODS {
        match bytes.strip_prefix(method) {
            Some([b' ', ..]) => return Some(true),
            Some([]) => undecided = true,
            Some(_) => {}
            None => undecided |= method.starts_with(bytes),
        }
    }
    if undecided { None } else { Some(false) }
}

/// Checks a request line, its end included. `false` if it names the version of another protocol.
fn check_request_line(line: &[u8]) -> Result<bool, InspectError> {
    let text = line.trim_ascii_end();
    let last = text.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    let has_target = text.iter().filter(|byte| **byte == b' ').count() >= 2;
    if has_target && is_foreign_version(last) {
        return Ok(false);
    }
    // Without fields this is never a whole head.
    httparse::Request::new(&mut [])
        .parse(line)
        .map(|_| true)
        .map_err(refuse)
}

/// Whether this is a protocol and its version as in `SIP/2.0`, and not HTTP.
fn is_foreign_version(token: &[u8]) -> bool {
    let Some(slash) = token.iter().position(|byte| *byte == b'/') else {
        return false;
    };
    let (protocol, version) = (&token[..slash], &token[slash + 1..]);
    !protocol.eq_ignore_ascii_case(b"HTTP")
        && protocol.first().is_some_and(u8::is_ascii_alphabetic)
        && protocol.iter().all(u8::is_ascii_alphanumeric)
        && version.first().is_some_and(u8::is_ascii_digit)
        && version
            .iter()
            .all(|byte| byte.is_ascii_digit() || *byte == b'.')
}

/// Where the head ends: behind the first empty line after a line whose LF stands at `from` or
/// later. A line may end with LF alone (RFC 9112 section 2.2).
pub(crate) fn find_end(bytes: &[u8], from: usize) -> Option<usize> {
    (from..bytes.len())
        .filter(|at| bytes[*at] == b'\n')
        .find_map(|at| match bytes[at + 1..] {
            [b'\n', ..] => Some(at + 2),
            [b'\r', b'\n', ..] => Some(at + 3),
            _ => None,
        })
}

/// Reads a head that ends with its empty line.
fn read_head(bytes: &[u8]) -> Result<RequestHead, InspectError> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    parse_head(bytes, &mut httparse::Request::new(&mut []), &mut fields)
}

/// Reads a head that ends with its empty line into `request`.
///
/// # Errors
/// As [`parse`].
pub(crate) fn parse_head<'h, 'b>(
    bytes: &'b [u8],
    request: &mut httparse::Request<'h, 'b>,
    fields: &'h mut [MaybeUninit<httparse::Header<'b>>],
) -> Result<RequestHead, InspectError> {
    let status = request
        .parse_with_uninit_headers(bytes, fields)
        .map_err(refuse)?;
    let (Some(method), Some(target), Some(version), true) = (
        request.method,
        request.path,
        request.version,
        status.is_complete(),
    ) else {
        return Err(InspectError::Malformed("the head ends too early"));
    };
    let form = form_of(method, target).ok_or(InspectError::Malformed(
        "the request target has none of the forms allowed for its method",
    ))?;
    let mut hosts = request
        .headers
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case("host"));
    let host = hosts
        .next()
        .map(|field| read_host(field.value))
        .transpose()?;
    if hosts.next().is_some() {
        return Err(InspectError::Malformed("there is more than one Host field"));
    }
    let to_proxy = matches!(form, Form::Absolute | Form::Authority);
    if host.is_none() && version > 0 && !to_proxy {
        return Err(InspectError::Malformed(
            "HTTP/1.1 demands a Host field, and there is none",
        ));
    }
    Ok(RequestHead {
        host: if to_proxy { None } else { host.flatten() },
        form,
    })
}

fn refuse(error: httparse::Error) -> InspectError {
    use httparse::Error;
    InspectError::Malformed(match error {
        Error::HeaderName => "a field name is invalid, folded or followed by a space",
        Error::HeaderValue => "a field value holds a control character",
        Error::NewLine => "a CR stands without its LF",
        Error::Status | Error::Token => "the request line is not method, target and version",
        Error::Version => "the version is neither HTTP/1.0 nor HTTP/1.1",
        Error::TooManyHeaders => return InspectError::TooManyFields,
    })
}

/// RFC 9112 section 3.2; `None` if the target has none of the forms.
fn form_of(method: &str, target: &str) -> Option<Form> {
    if method == "CONNECT" {
        return (!target.contains('/')).then_some(Form::Authority);
    }
    if target.starts_with('/') {
        return Some(Form::Origin);
    }
    if target == "*" && method == "OPTIONS" {
        return Some(Form::Asterisk);
    }
    let (scheme, _) = target.split_once("://")?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
    is_scheme.then_some(Form::Absolute)
}

/// Reads `Host = uri-host [ ":" port ]` (RFC 9110 section 7.2). `None`: the syntax is right, but
/// it is neither an address nor a name that DNS could know.
pub(crate) fn read_host(value: &[u8]) -> Result<Option<Host>, InspectError> {
    let invalid = InspectError::Malformed("the Host field is not a host with or without a port");
    let Ok(text) = str::from_utf8(value) else {
        return Err(invalid);
    };
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return Err(invalid);
        };
        let Ok(address) = address.parse::<Ipv6Addr>() else {
            return Err(invalid);
        };
        (Some(Host::Addr(address.to_canonical())), port)
    } else {
        let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
        if !is_reg_name(name.as_bytes()) {
            return Err(invalid);
        }
        (name.parse().ok(), port)
    };
    let port_is_right = match port.strip_prefix(':') {
        Some(digits) => {
            digits.bytes().all(|byte| byte.is_ascii_digit())
                && (digits.is_empty() || digits.parse::<u16>().is_ok())
        }
        None => port.is_empty(),
    };
    if port_is_right {
        Ok(host)
    } else {
        Err(invalid)
    }
}

/// RFC 3986 section 3.2.2; IPv4 addresses have the same syntax.
fn is_reg_name(mut name: &[u8]) -> bool {
    while let [first, rest @ ..] = name {
        name = match (first, rest) {
            (b'%', [high, low, rest @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                rest
            }
            (byte, rest) if byte.is_ascii_alphanumeric() => rest,
            (byte, rest) if b"-._~!$&'()*+,;=".contains(byte) => rest,
            _ => return false,
        };
    }
    true
}
