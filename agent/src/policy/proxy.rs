//! A forward proxy as policy describes it.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretString};

use crate::name::Host;
use crate::tls::ClientTls;

/// A forward proxy and how to speak to it.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Where it is.
    pub host: Host,
    /// The TCP port it listens on.
    pub port: u16,
    /// What it wants in `Proxy-Authorization`.
    pub credentials: Option<Credentials>,
    /// How to speak TLS to it; `None`, it is spoken to in plain text.
    pub tls: Option<Arc<ClientTls>>,
}

impl fmt::Display for Proxy {
    /// `host:port`; the value of the `proxy` label and log field.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
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
}
