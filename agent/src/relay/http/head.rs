//! The heads of messages, checked.

use std::mem::MaybeUninit;
use std::sync::Arc;

use bytes::Bytes;
use http::Version;
use http::header::{HeaderMap, HeaderName, HeaderValue, TRAILER};
use http::response::Parts;

use super::body::Body;
use crate::inspect::http_head::{MAX_FIELDS, RequestHead, parse_head};
use crate::inspect::{Form, InspectError};
use crate::name::Host;

/// How a body is delimited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// There is none.
    None,
    /// By its length.
    Length(u64),
    /// In chunks.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

/// One field as it was sent.
#[derive(Clone, Debug)]
pub(in crate::relay) struct Field {
    pub(in crate::relay) name: Bytes,
    pub(in crate::relay) value: Bytes,
}

impl Field {
    fn new(name: &'static str, value: &str) -> Self {
        Self {
            name: Bytes::from_static(name.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
        }
    }

    pub(in crate::relay) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

/// The fields of a head, in their order.
#[derive(Clone, Debug)]
pub(in crate::relay) struct Fields(Vec<Field>);

impl Fields {
    pub(in crate::relay) fn new(raw: &Bytes, fields: &[httparse::Header<'_>]) -> Self {
        let field = |field: &httparse::Header<'_>| Field {
            name: raw.slice_ref(field.name.as_bytes()),
            value: raw.slice_ref(field.value),
        };
        Self(fields.iter().map(field).collect())
    }

    fn of(map: &HeaderMap) -> Self {
        let field = |(name, value): (&HeaderName, &HeaderValue)| Field {
            name: Bytes::copy_from_slice(name.as_ref()),
            value: Bytes::copy_from_slice(value.as_bytes()),
        };
        Self(map.iter().map(field).collect())
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&Field) -> bool) {
        self.0.retain(keep);
    }

    /// Has `value` of this name stand first (RFC 9110 section 7.2 asks it of Host).
    pub(super) fn put_first(&mut self, name: &'static str, value: &str) {
        self.0.insert(0, Field::new(name, value));
    }

    /// Adds `value` behind what there is of this name.
    pub(super) fn append(&mut self, name: &'static str, value: &str) {
        self.0.push(Field::new(name, value));
    }

    /// Has one field of this name, with this value, or none.
    fn set(&mut self, name: &'static str, value: Option<&str>) {
        self.0.retain(|field| !field.is(name));
        self.0.extend(value.map(|value| Field::new(name, value)));
    }

    pub(in crate::relay) fn iter(&self) -> impl Iterator<Item = &Field> {
        self.0.iter()
    }

    /// The values of all fields of this name.
    pub(super) fn values(&self, name: &'static str) -> impl Iterator<Item = &[u8]> {
        let named = self.0.iter().filter(move |field| field.is(name));
        named.map(|field| &field.value[..])
    }

    /// What fields of this name list, separated by commas.
    pub(super) fn list(&self, name: &'static str) -> impl Iterator<Item = &[u8]> {
        self.values(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
    }

    pub(in crate::relay) fn lists(&self, name: &'static str, word: &str) -> bool {
        self.list(name)
            .any(|item| item.eq_ignore_ascii_case(word.as_bytes()))
    }

    /// The length that Content-Length gives. Several are one if they agree.
    fn length(&self) -> Result<Option<u64>, &'static str> {
        let mut length = None;
        for value in self.values("content-length") {
            if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                return Err("Content-Length is no number");
            }
            let text = str::from_utf8(value).unwrap_or_default();
            let Ok(this) = text.parse() else {
                return Err("Content-Length is no number");
            };
            if length.is_some_and(|other| other != this) {
                return Err("there are several values of Content-Length");
            }
            length = Some(this);
        }
        Ok(length)
    }

    /// The framing that the fields tell, of any message with a body (RFC 9112 section 6.3). `None`:
    /// they tell nothing.
    fn framing(&self, minor_version: u8) -> Result<Option<Framing>, &'static str> {
        let length = self.length()?;
        let mut codings = self.values("transfer-encoding");
        let Some(coding) = codings.next() else {
            return Ok(length.map(Framing::Length));
        };
        if length.is_some() {
            return Err("there is Content-Length beside Transfer-Encoding");
        }
        if minor_version == 0 {
            return Err("HTTP/1.0 has no Transfer-Encoding");
        }
        if codings.next().is_some() || !coding.eq_ignore_ascii_case(b"chunked") {
            return Err("Transfer-Encoding is something else than chunked, once");
        }
        Ok(Some(Framing::Chunked))
    }

    /// RFC 9110 section 7.6.1: a sender must not list what is meant for everybody. What frames or
    /// routes a message would be lost so.
    fn has_sound_connection(&self) -> bool {
        ["host", "content-length", "transfer-encoding"]
            .iter()
            .all(|name| !self.lists("connection", name))
    }
}

/// The head of a request.
#[derive(Clone, Debug)]
pub struct Request {
    pub(in crate::relay) method: Bytes,
    pub(in crate::relay) target: Bytes,
    pub(in crate::relay) minor_version: u8,
    pub(in crate::relay) fields: Fields,
    framing: Framing,
    host: Option<Host>,
    pub(in crate::relay) form: Form,
    /// What a proxy gets besides, if it is for one.
    pub(super) for_proxy: Option<Arc<[(HeaderName, HeaderValue)]>>,
    /// Whether it goes on from a forward proxy ([`Request::for_target`]).
    pub(in crate::relay) from_proxy: bool,
}

impl Request {
    /// Reads a head that ends with its empty line.
    ///
    /// # Errors
    /// [`InspectError::Malformed`] and [`InspectError::TooManyFields`].
    pub fn parse(raw: &Bytes) -> Result<Self, InspectError> {
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut parsed = httparse::Request::new(&mut []);
        let RequestHead { host, form } = parse_head(raw, &mut parsed, &mut fields)?;
        let (Some(method), Some(target), Some(minor_version)) =
            (parsed.method, parsed.path, parsed.version)
        else {
            return Err(InspectError::Malformed("the head ends too early"));
        };
        let fields = Fields::new(raw, parsed.headers);
        if !fields.has_sound_connection() {
            let reason = "Connection lists what is not for the next hop only";
            return Err(InspectError::Malformed(reason));
        }
        let framing = fields
            .framing(minor_version)
            .map_err(InspectError::Malformed)?;
        if form == Form::Authority && framing.is_some_and(|framing| framing != Framing::Length(0)) {
            return Err(InspectError::Malformed("CONNECT has no body"));
        }
        Ok(Self {
            method: raw.slice_ref(method.as_bytes()),
            target: raw.slice_ref(target.as_bytes()),
            minor_version,
            framing: framing.unwrap_or(Framing::None),
            fields,
            host,
            form,
            for_proxy: None,
            from_proxy: false,
        })
    }

    /// The method.
    pub fn method(&self) -> &str {
        // It was one when it was parsed.
        str::from_utf8(&self.method).unwrap_or_default()
    }

    /// The host that it is for, as [`RequestHead::host`].
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// The path that it asks for, without a query; of a target in absolute form what stands behind
    /// its authority (RFC 9112 section 3.2.2).
    pub fn path(&self) -> &str {
        let target = self.target();
        let path = match target.split_once("://") {
            Some((_, rest)) if !target.starts_with('/') => {
                rest.find(['/', '?']).map_or("/", |at| &rest[at..])
            }
            _ => target,
        };
        match path.split(['?', '#']).next() {
            None | Some("") => "/",
            Some(path) => path,
        }
    }

    /// The target as it was sent.
    pub fn target(&self) -> &str {
        str::from_utf8(&self.target).unwrap_or_default()
    }

    /// The version that the client speaks.
    pub fn version(&self) -> Version {
        match self.minor_version {
            0 => Version::HTTP_10,
            _ => Version::HTTP_11,
        }
    }

    /// Its fields as they were sent, name and value.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let fields = self.fields.iter();
        fields.map(|field| (&field.name[..], &field.value[..]))
    }

    /// The value of Host as it was sent, empty if there is none.
    pub fn authority(&self) -> &[u8] {
        self.fields.values("host").next().unwrap_or_default()
    }

    /// The values of all fields of this name.
    pub fn values(&self, name: &'static str) -> impl Iterator<Item = &[u8]> {
        self.fields.values(name)
    }

    /// Has it say this of `name`, once, or nothing. Not for what frames or routes it, which has been
    /// read.
    pub fn set(&mut self, name: &'static str, value: Option<&str>) {
        self.fields.set(name, value);
    }

    /// How its body is delimited.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether it may be sent again where nobody can tell whether it was received: it has no body,
    /// and twice is the same as once (RFC 9110 section 9.2.2).
    pub fn is_replayable(&self) -> bool {
        let method: &[u8] = &self.method;
        let idempotent: [&[u8]; 6] = [b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"];
        Body::new(self.framing).is_over()
            && idempotent.contains(&method)
            && self.upgrade().is_none()
    }

    /// Whether the client sends no other on this connection.
    pub fn is_last(&self) -> bool {
        self.minor_version == 0 || self.fields.lists("connection", "close")
    }

    /// Whether it asks for a stream of bytes from a proxy.
    pub(super) fn is_connect(&self) -> bool {
        self.form == Form::Authority
    }

    /// Whether its connection may become a stream of bytes, and serve no other.
    pub fn may_switch(&self) -> bool {
        self.is_connect() || self.upgrade().is_some()
    }

    pub(in crate::relay) fn is_head(&self) -> bool {
        *self.method == *b"HEAD"
    }

    /// Whether the client waits for leave to send the body.
    pub(in crate::relay) fn expects_continue(&self) -> bool {
        self.minor_version > 0
            && !Body::new(self.framing).is_over()
            && self.fields.lists("expect", "100-continue")
    }

    /// The protocol it would change to. Not HTTP/2: its requests could not be told apart any more,
    /// and a server may always stay with HTTP/1.1.
    pub(in crate::relay) fn upgrade(&self) -> Option<&[u8]> {
        let mut values = self.fields.values("upgrade");
        let value = values.next().filter(|_| values.next().is_none())?;
        let is_http = |protocol: &[u8]| {
            let protocol = protocol.trim_ascii();
            let name = protocol.split(|byte| *byte == b'/').next();
            name.is_some_and(|name| name.eq_ignore_ascii_case(b"http"))
                || protocol.eq_ignore_ascii_case(b"h2c")
                || protocol.eq_ignore_ascii_case(b"h2")
        };
        let asked = self.minor_version > 0 && self.fields.lists("connection", "upgrade");
        (asked && !value.split(|byte| *byte == b',').any(is_http)).then_some(value)
    }
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub(in crate::relay) struct Answer {
    pub(in crate::relay) status: u16,
    pub(super) reason: Bytes,
    pub(super) minor_version: u8,
    pub(in crate::relay) fields: Fields,
    told: Option<Framing>,
}

impl Answer {
    /// Reads a head that ends with its empty line.
    pub(super) fn parse(raw: &Bytes) -> Result<Self, &'static str> {
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut parsed = httparse::Response::new(&mut []);
        let status = httparse::ParserConfig::default()
            .allow_spaces_after_header_name_in_responses(true)
            .parse_response_with_uninit_headers(&mut parsed, raw, &mut fields)
            .map_err(|_| "it is not what an HTTP/1 server writes")?;
        let (Some(code), Some(minor_version), true) =
            (parsed.code, parsed.version, status.is_complete())
        else {
            return Err("it ends too early");
        };
        if !(100..=999).contains(&code) {
            return Err("its status is none");
        }
        let fields = Fields::new(raw, parsed.headers);
        Ok(Self {
            status: code,
            reason: match parsed.reason {
                Some(reason) if !reason.is_empty() => raw.slice_ref(reason.as_bytes()),
                _ => Bytes::new(),
            },
            minor_version,
            told: fields.framing(minor_version)?,
            fields,
        })
    }

    /// One that came in HTTP/2, of which no field is about the connection; `ends`: with its head.
    pub(in crate::relay) fn of(head: &Parts, ends: bool) -> Self {
        let fields = Fields::of(&head.headers);
        let told = match fields.length() {
            // Trailers have a place behind chunks only.
            Ok(Some(length)) if !head.headers.contains_key(TRAILER) => Framing::Length(length),
            _ if ends => Framing::Length(0),
            _ => Framing::Chunked,
        };
        let reason = head.status.canonical_reason().unwrap_or_default();
        Self {
            status: head.status.as_u16(),
            reason: Bytes::from_static(reason.as_bytes()),
            minor_version: 1,
            fields,
            told: Some(told),
        }
    }

    /// How the body of this answer is delimited (RFC 9112 section 6.3); `to_head`: the request was
    /// HEAD.
    pub(in crate::relay) fn framing(&self, to_head: bool) -> Framing {
        if to_head || matches!(self.status, 100..=199 | 204 | 304) {
            return Framing::None;
        }
        self.told.unwrap_or(Framing::UntilClose)
    }

    /// Whether the server takes no other request on this connection.
    pub(in crate::relay) fn is_last(&self) -> bool {
        self.minor_version == 0 || self.fields.lists("connection", "close")
    }
}
