//! The head of a proxy's answer to CONNECT, read from bytes that nobody vouches for.

use std::fmt;

use httparse::{EMPTY_HEADER, ParserConfig, Response};

/// The longest head that is read, interim answers before it included.
pub const MAX_HEAD: usize = 64 * 1024;

/// More header fields than any proxy sends.
const MAX_FIELDS: usize = 256;

/// How much of what a proxy sent is shown in a message.
const MAX_SHOWN: usize = 80;

/// More authentication schemes than a proxy offers.
const MAX_SCHEMES: usize = 8;

/// The head of an answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// The status code, 100 to 999.
    pub code: u16,
    /// The reason phrase, shortened; printable ASCII.
    pub reason: String,
    /// The schemes of `Proxy-Authenticate`, in the order offered (RFC 9110 section 11.7.1).
    pub schemes: Vec<String>,
    /// Where a body ends, if the answer is one with a body.
    pub body: BodyLength,
    /// How many bytes the head takes, its empty line included.
    pub len: usize,
}

/// Where the body of an answer ends (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BodyLength {
    /// With its last chunk.
    Chunked,
    /// After this many bytes.
    Known(u64),
    /// When the proxy closes the connection.
    UntilClose,
}

/// Reads the head at the beginning of `bytes`; `None` as long as it is not complete.
///
/// It takes what proxies really send: HTTP/1.0, a missing reason phrase, bare line feeds, folded
/// and broken header fields.
///
/// # Errors
/// Bytes that cannot become such a head, whatever may follow them.
pub fn parse(bytes: &[u8]) -> Result<Option<Answer>, BadAnswer> {
    Scanner::default().parse(bytes)
}

/// Reads a head that grows, without looking at its bytes over and over.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    /// No line that ends before this place is followed by an empty one.
    seen: usize,
}

impl Scanner {
    /// As [`parse`]; `bytes` begins with those of the call before.
    pub(super) fn parse(&mut self, bytes: &[u8]) -> Result<Option<Answer>, BadAnswer> {
        const START: &[u8] = b"HTTP/1.";
        let common = START.len().min(bytes.len());
        if bytes[..common] != START[..common] {
            return Err(BadAnswer::NotHttp {
                sample: shown(bytes),
                is_tls: is_tls(bytes),
            });
        }
        match end_of_head(bytes, self.seen) {
            Some(end) if end <= MAX_HEAD => parse_head(&bytes[..end]).map(Some),
            None if bytes.len() < MAX_HEAD => {
                // A line feed, and half of an empty line, may stand last.
                self.seen = bytes.len().saturating_sub(2);
                Ok(None)
            }
            _ => Err(BadAnswer::TooLong),
        }
    }
}

/// Whether this begins an alert of TLS, of whatever version (RFC 8446 section 5.1): the answer of
/// a TLS server to a request in plain text.
fn is_tls(bytes: &[u8]) -> bool {
    let start = [0x15, 0x03];
    let common = start.len().min(bytes.len());
    common > 0 && bytes[..common] == start[..common]
}

/// The place after the first empty line whose preceding line feed stands at `from` or later.
fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(step) = bytes.get(at..)?.iter().position(|&byte| byte == b'\n') {
        at += step + 1;
        match bytes[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

fn parse_head(head: &[u8]) -> Result<Answer, BadAnswer> {
    let malformed = |why| BadAnswer::Malformed {
        why,
        sample: shown(head),
    };
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut response = Response::new(&mut fields);
    let status = ParserConfig::default()
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .ignore_invalid_headers_in_responses(true)
        .parse_response(&mut response, head)
        .map_err(|error| {
            malformed(match error {
                httparse::Error::Status => "the status code is no number of three digits",
                httparse::Error::TooManyHeaders => "it has more than 256 header fields",
                httparse::Error::Version => "its HTTP version is neither 1.0 nor 1.1",
                _ => "it does not follow the grammar of HTTP/1",
            })
        })?;
    let Some(code) = response.code.filter(|code| *code >= 100) else {
        return Err(malformed("the status code is below 100"));
    };
    if !status.is_complete() {
        return Err(malformed("it ends within a header field"));
    }
    let mut answer = Answer {
        code,
        reason: shown(response.reason.unwrap_or_default().as_bytes()),
        schemes: Vec::new(),
        body: BodyLength::UntilClose,
        len: head.len(),
    };
    for field in response.headers.iter() {
        let name = field.name;
        if name.eq_ignore_ascii_case("proxy-authenticate") {
            add_schemes(&mut answer.schemes, field.value);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            answer.body = BodyLength::Chunked;
        } else if name.eq_ignore_ascii_case("content-length")
            && answer.body == BodyLength::UntilClose
            && let Some(length) = str::from_utf8(field.value)
                .ok()
                .and_then(|v| v.parse().ok())
        {
            answer.body = BodyLength::Known(length);
        }
    }
    Ok(answer)
}

/// Adds the schemes of one `Proxy-Authenticate` field, which may list several challenges with
/// parameters, all set apart by commas (RFC 9110 section 11.6.1).
pub(super) fn add_schemes(schemes: &mut Vec<String>, value: &[u8]) {
    for element in outside_quotes(value) {
        let element = element.trim_ascii();
        let is_token =
            |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        let len = element.iter().take_while(|byte| is_token(byte)).count();
        let (token, rest) = element.split_at(len);
        // `realm="x"` belongs to the scheme before it.
        let is_parameter = rest.trim_ascii_start().first() == Some(&b'=');
        let ends = rest.first().is_none_or(u8::is_ascii_whitespace);
        if token.is_empty() || is_parameter || !ends || schemes.len() == MAX_SCHEMES {
            continue;
        }
        let scheme = shown(token);
        if !schemes.contains(&scheme) {
            schemes.push(scheme);
        }
    }
}

/// The parts between commas that stand outside of quoted strings.
fn outside_quotes(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    value.split(move |&byte| {
        let separates = byte == b',' && !quoted;
        if escaped {
            escaped = false;
        } else if byte == b'\\' && quoted {
            escaped = true;
        } else if byte == b'"' {
            quoted = !quoted;
        }
        separates
    })
}

/// The beginning of `bytes`, in printable ASCII.
pub(super) fn shown(bytes: &[u8]) -> String {
    let short = &bytes[..bytes.len().min(MAX_SHOWN)];
    short.escape_ascii().to_string()
}

/// Why bytes are not the head of an answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum BadAnswer {
    /// It begins like HTTP/1 and goes wrong then.
    Malformed {
        /// What is wrong.
        why: &'static str,
        /// How it begins, escaped.
        sample: String,
    },
    /// Another protocol.
    NotHttp {
        /// How it begins, escaped.
        sample: String,
        /// Whether it begins as an alert of TLS does.
        is_tls: bool,
    },
    /// The head has no end within [`MAX_HEAD`].
    TooLong,
}

impl fmt::Display for BadAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { why, sample } => {
                write!(f, "its answer is malformed: {why}; it begins `{sample}`")
            }
            Self::NotHttp { sample, is_tls } => {
                write!(f, "its answer is not HTTP/1, it begins `{sample}`: ")?;
                f.write_str(if *is_tls {
                    "this looks like TLS, which the port wants and which is not configured for this proxy"
                } else {
                    "is this the port of an HTTP proxy?"
                })
            }
            Self::TooLong => write!(f, "the head of its answer is longer than {MAX_HEAD} bytes"),
        }
    }
}

impl std::error::Error for BadAnswer {}

#[cfg(test)]
mod tests;
