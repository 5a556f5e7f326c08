//! A forward proxy as policy describes it.

mod settings;

use std::fmt;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::header::{HeaderContext, HeaderTemplate};
use crate::name::Host;
use crate::tls::ClientTls;

pub use settings::{Balance, Check, DialFrom, Ejection, ProxySettings};

/// A forward proxy and how to speak to it.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// What it is called.
    pub host: Host,
    /// The TCP port it listens on.
    pub port: u16,
    /// Where it is; at least one place.
    pub endpoints: Vec<Endpoint>,
    /// How a tunnel is asked for.
    pub protocol: TunnelProtocol,
    /// TLS to the proxy, if it is spoken.
    pub tls: Option<Arc<ClientTls>>,
    /// What it wants in `Proxy-Authorization`.
    pub credentials: Option<Credentials>,
    /// Fields that the request for a tunnel carries besides.
    pub headers: Vec<HeaderTemplate>,
    /// How requests of plain HTTP go to it.
    pub plain_http: PlainHttp,
    /// How its endpoints are checked, if they are.
    pub check: Option<Arc<Check>>,
    /// How connections to it are made and spread.
    pub settings: ProxySettings,
    /// Its [label](Self::label), once it has been asked for.
    pub(crate) label: OnceText,
}

/// Made when it is first asked for, of each clone anew.
#[derive(Debug, Default)]
pub(crate) struct OnceText(OnceLock<Arc<str>>);

impl Clone for OnceText {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Proxy {
    /// A proxy that is at its host, speaks HTTP/1.1 without TLS, and asks nothing.
    pub fn plain(host: Host, port: u16) -> Self {
        Self {
            endpoints: vec![Endpoint {
                host: host.clone(),
                port,
                weight: 1,
            }],
            host,
            port,
            protocol: TunnelProtocol::Http1Connect,
            tls: None,
            credentials: None,
            headers: Vec::new(),
            plain_http: PlainHttp::Connect,
            check: None,
            settings: ProxySettings::default(),
            label: OnceText::default(),
        }
    }

    /// `host:port`, as metrics and the log have it. Everybody has the same text.
    pub fn label(&self) -> &Arc<str> {
        self.label.0.get_or_init(|| self.to_string().into())
    }

    /// The fields that it gets besides, for one connection. Of which something is not known is left
    /// out.
    pub fn headers_for(&self, context: &HeaderContext<'_>) -> Vec<(HeaderName, HeaderValue)> {
        let rendered = self.headers.iter();
        rendered.filter_map(|field| field.render(context)).collect()
    }

    /// Whether these tell it where the workload connected to.
    pub fn is_told_original_dst(&self) -> bool {
        self.headers.iter().any(HeaderTemplate::tells_original_dst)
    }
}

impl fmt::Display for Proxy {
    /// `host:port`; the value of the `proxy` label and log field.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A place where a proxy listens.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Endpoint {
    /// A name, of which every address is meant, or an address.
    pub host: Host,
    /// The TCP port.
    pub port: u16,
    /// Its share among the endpoints of the proxy, from 1.
    pub weight: u16,
}

impl fmt::Display for Endpoint {
    /// `host:port`; the value of the `endpoint` label.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// How a tunnel is asked for.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Serialize)]
pub enum TunnelProtocol {
    /// CONNECT over HTTP/1.1 (RFC 9110 section 9.3.6).
    #[default]
    #[serde(rename = "HTTP-CONNECT")]
    Http1Connect,
    /// CONNECT over HTTP/2 (RFC 9113 section 8.5).
    #[serde(rename = "HTTP2-CONNECT")]
    Http2Connect,
    /// POST over HTTP/2, whose two bodies are the stream.
    #[serde(rename = "HTTP2-POST")]
    Http2Post,
}

impl TunnelProtocol {
    /// As documents write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http1Connect => "HTTP-CONNECT",
            Self::Http2Connect => "HTTP2-CONNECT",
            Self::Http2Post => "HTTP2-POST",
        }
    }
}

/// How a request of plain HTTP/1.1 goes to a proxy, where both ways lead to the same.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Serialize)]
pub enum PlainHttp {
    /// Through a tunnel, as everything else.
    #[default]
    #[serde(rename = "CONNECT")]
    Connect,
    /// As a request to the proxy itself, with a whole URI (RFC 9112 section 3.2.2).
    #[serde(rename = "ABSOLUTE_FORM")]
    AbsoluteForm,
}

/// A proxy among several.
#[derive(Clone, Debug)]
pub struct RankedProxy {
    /// The proxy.
    pub proxy: Arc<Proxy>,
    /// It is used only while none with a lower number can be.
    pub priority: u16,
    /// Its share among the proxies of its priority, from 1.
    pub weight: u16,
}

/// A value of `Proxy-Authorization` (RFC 9110 section 11.7.2). It never shows in `Debug`.
#[derive(Clone, Debug)]
pub struct Credentials(SecretString);

impl Credentials {
    /// The Basic scheme (RFC 7617).
    ///
    /// # Errors
    /// A user name with a colon, and control characters in either part, cannot be sent.
    pub fn basic(username: &str, password: &SecretString) -> Result<Self, InvalidCredentials> {
        let password = password.expose_secret();
        if username.contains(':') {
            return Err(InvalidCredentials("the user name contains a colon"));
        }
        if username
            .chars()
            .chain(password.chars())
            .any(char::is_control)
        {
            return Err(InvalidCredentials(
                "the user name or the password contains a control character",
            ));
        }
        let pair = BASE64_STANDARD.encode(format!("{username}:{password}"));
        Ok(Self(format!("Basic {pair}").into()))
    }

    /// The Bearer scheme (RFC 6750 section 2.1).
    ///
    /// # Errors
    /// A token has letters, digits and `-._~+/`, and `=` only at its end.
    pub fn bearer(token: &SecretString) -> Result<Self, InvalidCredentials> {
        let text = token.expose_secret();
        let inner = text.trim_end_matches('=');
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b);
        if inner.is_empty() || !inner.bytes().all(allowed) {
            return Err(InvalidCredentials(
                "the token is empty or has characters that no bearer token has",
            ));
        }
        Ok(Self(format!("Bearer {text}").into()))
    }

    /// A value as it is.
    ///
    /// # Errors
    /// It is empty, or has characters that may not stand in a header.
    pub fn verbatim(value: &SecretString) -> Result<Self, InvalidCredentials> {
        let text = value.expose_secret();
        let printable = |b: u8| (b' '..=b'~').contains(&b);
        if text.trim().is_empty() || !text.bytes().all(printable) {
            return Err(InvalidCredentials(
                "the header is empty or has characters that may not stand in one",
            ));
        }
        Ok(Self(text.to_owned().into()))
    }

    /// The value of the header; for the one place that writes it to the proxy.
    pub fn header(&self) -> &str {
        self.0.expose_secret()
    }
}

/// Why credentials cannot be used. The credentials themselves are never part of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidCredentials(&'static str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_is_as_in_rfc_7617_and_never_shown() {
        let credentials = Credentials::basic("Aladdin", &"open sesame".into()).unwrap();
        assert_eq!(credentials.header(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert!(!format!("{credentials:?}").contains("QWxh"));
        assert!(Credentials::basic("a:b", &"c".into()).is_err());
        assert!(Credentials::basic("a", &"c\r\nX: y".into()).is_err());
    }

    #[test]
    fn bearer_tokens_are_those_of_rfc_6750() {
        let credentials = Credentials::bearer(&"mF_9.B5f-4.1JqM==".into()).unwrap();
        assert_eq!(credentials.header(), "Bearer mF_9.B5f-4.1JqM==");
        for bad in ["", "=", "a b", "a\r\nX: y", "a=b"] {
            assert!(Credentials::bearer(&bad.into()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_header_is_sent_as_it_is_and_is_one_line() {
        let credentials = Credentials::verbatim(&"Negotiate abc".into()).unwrap();
        assert_eq!(credentials.header(), "Negotiate abc");
        for bad in ["", " ", "a\r\nX: y", "a\0"] {
            assert!(Credentials::verbatim(&bad.into()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_label_of_a_proxy_is_its_own() {
        let proxy = Proxy::plain("a.test".parse().unwrap(), 3128);
        assert_eq!(&**proxy.label(), "a.test:3128");
        assert!(Arc::ptr_eq(proxy.label(), proxy.label()));
        let other = Proxy {
            port: 8080,
            ..proxy.clone()
        };
        assert_eq!(&**other.label(), "a.test:8080");
    }
}
