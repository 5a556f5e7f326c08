//! The head of a request, checked.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TE, VIA};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Method, request::Parts};

use super::grpc;
use super::translate::headers;
use crate::inspect::http_head::{MAX_FIELDS, read_host};
use crate::inspect::{Form, InspectError};
use crate::name::{Host, Target};
use crate::relay::http::{Framing, PSEUDONYM, Request as Http1Request, host, is_for_proxies};

/// The head of a request (RFC 9113 section 8.3.1).
#[derive(Clone, Debug)]
pub struct Request {
    pub(super) method: Method,
    /// In origin form, or `*`. `None`: it is CONNECT, which has none (RFC 9113 section 8.5).
    pub(super) path: Option<PathAndQuery>,
    pub(super) authority: Authority,
    /// Without Host, TE and Content-Length.
    pub(super) fields: HeaderMap,
    pub(super) takes_trailers: bool,
    /// By Content-Length; the body is as long as that, or the stream is reset.
    pub(super) length: Option<u64>,
    host: Option<Host>,
    call: Option<Call>,
    /// Whether it goes on from a forward proxy ([`Request::for_target`]).
    pub(super) from_proxy: bool,
}

/// What is known of a call of gRPC.
#[derive(Clone, Copy, Debug)]
struct Call {
    timeout: Option<Duration>,
}

impl Request {
    /// Reads the head that the library has read.
    ///
    /// # Errors
    /// [`InspectError::Malformed`] and [`InspectError::TooManyFields`].
    pub fn check(head: Parts) -> Result<Self, InspectError> {
        let Parts {
            method,
            uri,
            headers: mut fields,
            ..
        } = head;
        if fields.len() > MAX_FIELDS {
            return Err(InspectError::TooManyFields);
        }
        let has_blanks = |value: &HeaderValue| {
            let value = value.as_bytes();
            value.trim_ascii().len() != value.len()
        };
        if fields.values().any(has_blanks) {
            return malformed("a field value begins or ends with a blank");
        }
        let uri = uri.into_parts();
        let scheme = uri.scheme.as_ref();
        if scheme.is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
            return malformed(":scheme is neither http nor https");
        }
        let is_connect = method == Method::CONNECT;
        let path = match uri.path_and_query {
            // The library has seen that CONNECT has neither path nor scheme.
            _ if is_connect => None,
            Some(path) if is_target(&method, &path) => Some(path),
            _ => return malformed(":path is no path"),
        };
        let (authority, mut host) = authority(uri.authority, &fields)?;
        if is_connect {
            if authority.port_u16().is_none() {
                return malformed(":authority of CONNECT has no port");
            }
            // It is whom the target is asked for, and not the target.
            host = None;
        }
        fields.remove(HOST);
        let length = match fields.remove(CONTENT_LENGTH) {
            // The library has seen that all of them agree.
            Some(_) if is_connect => return malformed("CONNECT has no length"),
            Some(length) => Some(number(&length)?),
            None => None,
        };
        let takes_trailers = fields.remove(TE).is_some();
        let call = grpc::is_call(&fields).then(|| Call {
            timeout: grpc::timeout(&fields),
        });
        Ok(Self {
            method,
            path,
            authority,
            fields,
            takes_trailers,
            length,
            host,
            call,
            from_proxy: false,
        })
    }

    /// What a request of HTTP/1.1 is in HTTP/2. `None`: it is none there, or not the same.
    pub(super) fn of(request: &Http1Request) -> Option<Self> {
        let is_for_target = matches!(request.form, Form::Origin | Form::Asterisk);
        if !is_for_target || request.upgrade().is_some() {
            return None;
        }
        let path = PathAndQuery::from_maybe_shared(request.target.clone()).ok()?;
        // What stands behind `#` would be lost.
        if *path.as_str().as_bytes() != *request.target {
            return None;
        }
        let mut fields = headers(&request.fields).ok()?;
        let authority = Authority::from_maybe_shared(fields.remove(HOST)?).ok()?;
        Some(Self {
            method: Method::from_bytes(&request.method).ok()?,
            path: Some(path),
            authority,
            fields,
            takes_trailers: request.fields.lists("te", "trailers"),
            length: match request.framing() {
                Framing::Length(length) => Some(length),
                _ => None,
            },
            host: request.host().cloned(),
            call: None,
            from_proxy: request.from_proxy,
        })
    }

    /// The method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The path, without a query; empty if it is CONNECT.
    pub fn path(&self) -> &str {
        self.path.as_ref().map_or("", PathAndQuery::path)
    }

    /// Whether it asks the target for a tunnel.
    pub fn is_connect(&self) -> bool {
        self.method == Method::CONNECT
    }

    /// How long the parts are that HTTP/1.1 has in its first line and Host.
    pub(super) fn size_of_target(&self) -> usize {
        let path = self.path.as_ref().map_or(0, |path| path.as_str().len());
        path + self.authority.as_str().len()
    }

    /// The host and port that it is for, as sent.
    pub fn authority(&self) -> &str {
        self.authority.as_str()
    }

    /// The host that it is for. `None`: it can be none in DNS, or nothing but the address says whom
    /// CONNECT is sent to.
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// Whether it is a call of gRPC.
    pub fn is_call(&self) -> bool {
        self.call.is_some()
    }

    /// How long the client waits for the end of the call, if it says so.
    pub fn timeout(&self) -> Option<Duration> {
        self.call?.timeout
    }

    /// Whether twice is the same as once (RFC 9110 section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }

    /// Has it say this of `name`, once, or nothing. Not for what frames or routes it, which has been
    /// read.
    pub fn set(&mut self, name: &'static str, value: Option<&str>) {
        let name = HeaderName::from_static(name);
        self.fields.remove(&name);
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            self.fields.insert(name, value);
        }
    }

    /// The request as `target` gets it from the forward proxy that it came to (RFC 9110 section
    /// 7.6): without what is said to proxies.
    #[must_use]
    pub fn for_target(mut self, target: &Target) -> Self {
        // Checked names and addresses have no character that it could not have.
        if let Ok(authority) = Authority::try_from(host(target)) {
            self.authority = authority;
        }
        let names = self.fields.keys();
        let for_proxies: Vec<HeaderName> = names
            .filter(|name| is_for_proxies(name.as_str().as_bytes()))
            .cloned()
            .collect();
        for name in for_proxies {
            self.fields.remove(name);
        }
        if let Ok(via) = HeaderValue::try_from(format!("2 {PSEUDONYM}")) {
            self.fields.append(VIA, via);
        }
        self.from_proxy = true;
        self
    }

    /// The request as it goes on in HTTP/2. `:authority` stands for Host.
    pub(super) fn forwarded(&self, scheme: &Scheme) -> http::Request<()> {
        let mut request = http::Request::new(());
        *request.method_mut() = self.method.clone();
        *request.version_mut() = http::Version::HTTP_2;
        let mut uri = http::uri::Parts::default();
        uri.scheme = self.path.is_some().then(|| scheme.clone());
        uri.authority = Some(self.authority.clone());
        uri.path_and_query.clone_from(&self.path);
        // All three are there, or the authority alone, so it is one.
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        let fields = request.headers_mut();
        fields.clone_from(&self.fields);
        if let Some(length) = self.length {
            fields.insert(CONTENT_LENGTH, length.into());
        }
        if self.takes_trailers {
            fields.insert(TE, HeaderValue::from_static("trailers"));
        }
        request
    }
}

/// RFC 9113 section 8.3.1: a path, or `*` for OPTIONS.
fn is_target(method: &Method, path: &PathAndQuery) -> bool {
    let text = path.as_str().as_bytes();
    let is_plain = text.iter().all(|byte| matches!(byte, b'!'..=b'~' | 0x80..));
    match text {
        [b'/', ..] => is_plain,
        b"*" => *method == Method::OPTIONS,
        _ => false,
    }
}

/// What the request is for: `:authority`, or Host where that is absent. Who sends both has to mean
/// the same.
fn authority(
    pseudo: Option<Authority>,
    fields: &HeaderMap,
) -> Result<(Authority, Option<Host>), InspectError> {
    let mut hosts = fields.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return malformed("there is more than one Host field");
    }
    let authority = match (pseudo, host) {
        (Some(authority), Some(host)) => {
            if !host
                .as_bytes()
                .eq_ignore_ascii_case(authority.as_str().as_bytes())
            {
                return malformed("Host is not the same as :authority");
            }
            authority
        }
        (Some(authority), None) => authority,
        (None, Some(host)) => {
            let bytes = Bytes::copy_from_slice(host.as_bytes());
            match Authority::from_maybe_shared(bytes) {
                Ok(authority) => authority,
                Err(_) => return malformed("the Host field is not a host with or without a port"),
            }
        }
        (None, None) => return malformed("there is neither :authority nor Host"),
    };
    // Among others a user and a password have no place in it.
    let Ok(host) = read_host(authority.as_str().as_bytes()) else {
        return malformed(":authority is not a host with or without a port");
    };
    Ok((authority, host))
}

fn number(value: &HeaderValue) -> Result<u64, InspectError> {
    let text = value.to_str().unwrap_or_default();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if is_number => Ok(number),
        _ => malformed("Content-Length is no number"),
    }
}

fn malformed<T>(reason: &'static str) -> Result<T, InspectError> {
    Err(InspectError::Malformed(reason))
}

/// How long a head is, written out: what HTTP/2 compresses it to depends on what went before.
pub(super) fn size_of(fields: &HeaderMap) -> usize {
    let size = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    fields.iter().map(size).sum()
}
