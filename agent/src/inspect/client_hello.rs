//! The TLS ClientHello (RFC 8446 section 4.1.2), as far as routing needs it.
//!
//! This is no TLS server: it takes whatever some server might take and leaves the judging to that
//! server. It is strict only where two readers could otherwise see two different names.

use std::borrow::Cow;

use crate::name::HostName;

#[cfg(test)]
mod tests;

/// The record type of handshake messages, and so the first byte of a TLS connection.
pub const RECORD_TYPE: u8 = 22;

const RECORD_MAJOR: u8 = 3;
/// The most plaintext that a record carries, in bytes.
const MAX_FRAGMENT: usize = 1 << 14;

const CLIENT_HELLO: u8 = 1;
/// The type of a handshake message and its length.
const MESSAGE_HEADER: usize = 4;
const VERSION_AND_RANDOM: usize = 2 + 32;

// Extensions that are read.
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// The only type of server name there is.
const HOST_NAME: u8 = 0;

/// Reads the ClientHello that `bytes` begin with; what follows it is ignored. `None` says that
/// they begin with none, or with a malformed one.
///
/// # Errors
/// [`Incomplete`], when nothing was wrong so far but the end is missing. How large a hello may
/// become is for the caller to limit.
pub fn parse(bytes: &[u8]) -> Result<Option<ClientHello>, Incomplete> {
    let message = reassemble(bytes)?;
    Ok(message.and_then(|body| read_body(&body)))
}

/// What a ClientHello says about the connection.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientHello {
    /// The server name (RFC 6066 section 3). Addresses and texts that are no host names, which
    /// some clients send against that RFC, count as none.
    pub server_name: Option<HostName>,
    /// Whether there is an encrypted ClientHello (RFC 9849): `server_name` may then be the name
    /// of the provider in front of the real server. Clients also send it without meaning it
    /// (GREASE), so it proves nothing.
    pub ech: bool,
    /// What the client offers to speak (RFC 7301).
    pub alpn: Alpn,
}

/// The protocols that a client offers, as far as they matter here.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Alpn {
    /// `h2`.
    pub h2: bool,
    /// `http/1.1`.
    pub http1: bool,
}

/// The ClientHello goes on beyond the bytes given.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the ClientHello is not complete before byte {at_least}")]
pub struct Incomplete {
    /// With fewer bytes than this in all there is no whole hello, though there may be a broken one.
    pub at_least: usize,
}

/// Puts the body of the first handshake message together from as many records as it takes
/// (RFC 8446 section 5.1). `None`: this is no ClientHello.
fn reassemble(bytes: &[u8]) -> Result<Option<Cow<'_, [u8]>>, Incomplete> {
    let mut message = Cow::Borrowed(&[][..]);
    let mut records = bytes;
    loop {
        // One byte first: the client of some other protocol may be waiting for an answer already.
        let wanted = match *message {
            [] => 1,
            [CLIENT_HELLO, high, mid, low, ..] => {
                MESSAGE_HEADER + u32::from_be_bytes([0, high, mid, low]) as usize
            }
            [CLIENT_HELLO, ..] => MESSAGE_HEADER,
            _ => return Ok(None),
        };
        if message.len() >= wanted {
            return Ok(Some(match message {
                Cow::Borrowed(message) => Cow::Borrowed(&message[MESSAGE_HEADER..wanted]),
                Cow::Owned(message) => Cow::Owned(message[MESSAGE_HEADER..wanted].to_vec()),
            }));
        }
        // Asking for all that is missing keeps the work small for a hello in records of one byte.
        let incomplete = Incomplete {
            at_least: bytes.len() + (wanted - message.len()),
        };
        let (length, rest) = match records {
            [RECORD_TYPE, RECORD_MAJOR, _, high, low, rest @ ..] => {
                (usize::from(u16::from_be_bytes([*high, *low])), rest)
            }
            [] | [RECORD_TYPE] | [RECORD_TYPE, RECORD_MAJOR, ..] => return Err(incomplete),
            _ => return Ok(None),
        };
        if length == 0 || length > MAX_FRAGMENT {
            return Ok(None);
        }
        let (fragment, rest) = rest.split_at(length.min(rest.len()));
        if message.is_empty() {
            message = Cow::Borrowed(fragment);
        } else {
            message.to_mut().extend_from_slice(fragment);
        }
        records = rest;
    }
}

/// Reads the body of a ClientHello; `None` if it is malformed.
fn read_body(body: &[u8]) -> Option<ClientHello> {
    let mut hello = ClientHello::default();
    let mut body = Reader(body);
    body.take(VERSION_AND_RANDOM)?;
    let session_id = body.vec8()?;
    let cipher_suites = body.vec16()?;
    let compressions = body.vec8()?;
    if session_id.len() > 32
        || cipher_suites.is_empty()
        || !cipher_suites.len().is_multiple_of(2)
        || compressions.is_empty()
    {
        return None;
    }
    if body.is_empty() {
        // Extensions came with TLS 1.2; older clients have none.
        return Some(hello);
    }
    let mut extensions = Reader(body.vec16()?);
    if !body.is_empty() {
        return None;
    }
    // A second extension of a kind that is read here would leave the choice to the server.
    let (mut names_seen, mut alpn_seen) = (false, false);
    while !extensions.is_empty() {
        let kind = extensions.u16()?;
        let data = Reader(extensions.vec16()?);
        match kind {
            SERVER_NAME if names_seen => return None,
            SERVER_NAME => {
                names_seen = true;
                hello.server_name = read_server_name(data)?;
            }
            ALPN if alpn_seen => return None,
            ALPN => {
                alpn_seen = true;
                hello.alpn = read_alpn(data)?;
            }
            ENCRYPTED_CLIENT_HELLO if hello.ech => return None,
            ENCRYPTED_CLIENT_HELLO => hello.ech = true,
            _ => {}
        }
    }
    Some(hello)
}

/// RFC 6066 section 3: a list with at most one name of each type; types to come begin with a
/// length as host names do. The outer `None` is a malformed extension.
fn read_server_name(mut extension: Reader<'_>) -> Option<Option<HostName>> {
    let mut list = extension.non_empty_list()?;
    let mut host_name = None;
    while !list.is_empty() {
        let kind = list.u8()?;
        let name = list.vec16()?;
        if kind != HOST_NAME {
            continue;
        }
        if host_name.is_some() || name.is_empty() {
            return None;
        }
        host_name = Some(name);
    }
    let text = host_name.and_then(|name| str::from_utf8(name).ok());
    Some(text.and_then(|text| text.parse().ok()))
}

/// RFC 7301 section 3.1. `None` is a malformed extension.
fn read_alpn(mut extension: Reader<'_>) -> Option<Alpn> {
    let mut list = extension.non_empty_list()?;
    let mut alpn = Alpn::default();
    while !list.is_empty() {
        match list.vec8()? {
            b"" => return None,
            b"h2" => alpn.h2 = true,
            b"http/1.1" => alpn.http1 = true,
            _ => {}
        }
    }
    Some(alpn)
}

/// What is still unread of a slice. `None` says that it ended too early.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    fn vec8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length.into())
    }

    fn vec16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }

    /// A list with a length of two bytes that fills the rest and has at least one byte.
    fn non_empty_list(&mut self) -> Option<Reader<'a>> {
        let list = Reader(self.vec16()?);
        (self.is_empty() && !list.is_empty()).then_some(list)
    }
}
