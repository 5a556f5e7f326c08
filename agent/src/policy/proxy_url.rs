//! A proxy from a URL, as `--proxy` and `HTTPS_PROXY` give it.

use std::sync::Arc;

use secrecy::SecretString;
use url::Url;

use super::problem::quotable;
use super::proxy::{Credentials, InvalidCredentials, Proxy};
use crate::tls::{ClientTls, SystemRoots, TlsSettings};

/// The port of a proxy whose URL has none: where Squid and most others listen, ...
const DEFAULT_PORT: u16 = 3128;

/// ... and where those with TLS do, as curl and other programs have it.
const DEFAULT_TLS_PORT: u16 = 443;

impl Proxy {
    /// Reads `http://[USER[:PASSWORD]@]HOST[:PORT]`, or the same with `https`, which is TLS to the
    /// proxy, verified by `roots`. Without a port it is 3128, or 443 with TLS. User name and password
    /// are percent-encoded (RFC 3986 section 3.2.1).
    ///
    /// # Errors
    /// Anything else. The error never shows the user name, the password, or a part that could be
    /// one of them.
    pub fn from_url(
        text: &str,
        roots: impl FnOnce() -> SystemRoots,
    ) -> Result<Self, ProxyUrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(ProxyUrlError::NoScheme)?;
        let wants_tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            "socks" | "socks4" | "socks4a" | "socks5" | "socks5h" => {
                return Err(ProxyUrlError::Socks);
            }
            _ => return Err(ProxyUrlError::unknown_scheme(scheme)),
        };
        // Under `http` the parser would drop an explicit port 80 and rewrite hosts such as 0x7f.1,
        // so it gets a scheme that has no rules of its own.
        let url = Url::parse(&format!("proxy://{rest}"))?;
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(ProxyUrlError::Path);
        }
        let host = url.host_str().unwrap_or_default();
        let host = host.parse().map_err(|_| ProxyUrlError::Host)?;
        let port = match url.port() {
            None if wants_tls => DEFAULT_TLS_PORT,
            None => DEFAULT_PORT,
            Some(0) => return Err(ProxyUrlError::Port),
            Some(port) => port,
        };
        let mut proxy = Self::plain(host, port);
        proxy.credentials = credentials(&url)?;
        if wants_tls {
            let tls = ClientTls::new(&TlsSettings::default(), &roots());
            let tls = tls.map_err(|error| ProxyUrlError::Tls(error.to_string()))?;
            proxy.tls = Some(Arc::new(tls));
        }
        Ok(proxy)
    }
}

/// Why a text is not the URL of a proxy. The text is not part of it, because it may hold a
/// password.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProxyUrlError {
    /// User name or password cannot be sent.
    #[error("the proxy URL has credentials that cannot be sent: {0}")]
    Credentials(#[from] InvalidCredentials),
    /// They are not UTF-8 when decoded.
    #[error("the proxy URL has a user name or a password that is not UTF-8 when percent-decoded")]
    Encoding,
    /// The host is not a name or an address.
    #[error("the proxy URL has no valid host; expected a name, an IPv4 address, or [IPv6]")]
    Host,
    /// There is no scheme.
    #[error(
        "the proxy URL has no scheme; write http://HOST:PORT, or https:// for TLS to the proxy"
    )]
    NoScheme,
    /// There is more than an authority.
    #[error(
        "only user name, password, host and port may stand in a proxy URL; in a password write / \
         as %2F, ? as %3F and # as %23"
    )]
    Path,
    /// The port is not one.
    #[error(
        "the proxy URL has no valid port; expected 1 to 65535 (in a password write / as %2F, ? \
         as %3F and # as %23)"
    )]
    Port,
    /// A SOCKS proxy.
    #[error(
        "SOCKS proxies are not supported; a proxy that takes HTTP CONNECT is needed (http:// or \
         https://)"
    )]
    Socks,
    /// There can be no TLS.
    #[error("no TLS to the proxy (https://) is possible: {0}")]
    Tls(String),
    /// Any other scheme.
    #[error(
        "`{0}` is not a scheme for proxies; write http://HOST:PORT, or https:// for TLS to the proxy"
    )]
    UnknownScheme(String),
}

impl ProxyUrlError {
    fn unknown_scheme(scheme: &str) -> Self {
        // Before `://` in a mangled URL anything can stand, a password included.
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
        if !scheme.is_empty() && scheme.bytes().all(plain) {
            Self::UnknownScheme(quotable(scheme))
        } else {
            Self::NoScheme
        }
    }
}

impl From<url::ParseError> for ProxyUrlError {
    fn from(err: url::ParseError) -> Self {
        match err {
            url::ParseError::InvalidPort => Self::Port,
            _ => Self::Host,
        }
    }
}

fn credentials(url: &Url) -> Result<Option<Credentials>, ProxyUrlError> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let username = percent_decoded(url.username())?;
    let password = SecretString::from(percent_decoded(url.password().unwrap_or_default())?);
    Ok(Some(Credentials::basic(&username, &password)?))
}

/// A `%` without two hexadecimal digits behind it stands for itself, as browsers have it.
fn percent_decoded(text: &str) -> Result<String, ProxyUrlError> {
    let digit = |byte: Option<u8>| byte.and_then(|b| char::from(b).to_digit(16));
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let mut ahead = bytes.clone();
        match (byte, digit(ahead.next()), digit(ahead.next())) {
            (b'%', Some(high), Some(low)) => {
                decoded.extend(u8::try_from(high * 16 + low));
                bytes = ahead;
            }
            _ => decoded.push(byte),
        }
    }
    String::from_utf8(decoded).map_err(|_| ProxyUrlError::Encoding)
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use rustls_native_certs::CertificateResult;

    use super::*;
    use crate::tls::testing::Authority;

    fn header(proxy: &Proxy) -> Option<&str> {
        proxy.credentials.as_ref().map(Credentials::header)
    }

    #[test]
    fn urls_of_proxies_are_read() {
        for (text, shown, expected) in [
            ("http://proxy.example", "proxy.example:3128", None),
            ("HTTP://Proxy.Example:80/", "proxy.example:80", None),
            ("http://203.0.113.7:8080", "203.0.113.7:8080", None),
            ("http://[2001:db8::1]:8080", "[2001:db8::1]:8080", None),
            ("http://@proxy", "proxy:3128", None),
            // Aladdin:open sesame, the example of RFC 7617.
            (
                "http://Aladdin:open%20sesame@proxy:3128",
                "proxy:3128",
                Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
            ),
            // user:p@:/% with and without encoding.
            (
                "http://user:p%40%3a%2F%25@proxy",
                "proxy:3128",
                Some("Basic dXNlcjpwQDovJQ=="),
            ),
            (
                "http://user:p@:%2F%@proxy",
                "proxy:3128",
                Some("Basic dXNlcjpwQDovJQ=="),
            ),
            ("http://user@proxy", "proxy:3128", Some("Basic dXNlcjo=")),
        ] {
            let proxy = Proxy::from_url(text, SystemRoots::none).unwrap();
            assert_eq!(proxy.to_string(), shown, "{text}");
            assert_eq!(header(&proxy), expected, "{text}");
        }
    }

    #[test]
    fn https_is_tls_to_the_proxy() {
        let roots = || {
            let mut found = CertificateResult::default();
            let pem = Authority::new("a root").pem();
            let root = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            found.certs.push(root);
            SystemRoots::from(found)
        };
        for (text, shown) in [
            ("https://proxy.example", "proxy.example:443"),
            (
                "HTTPS://user:hunter2@proxy.example:3129",
                "proxy.example:3129",
            ),
            ("https://[2001:db8::1]:8443/", "[2001:db8::1]:8443"),
        ] {
            let proxy = Proxy::from_url(text, roots).unwrap();
            assert_eq!(proxy.to_string(), shown);
            assert_eq!(header(&proxy).is_some(), text.contains('@'));
            let tls = proxy.tls.unwrap();
            assert_eq!(*tls.settings(), TlsSettings::default());
        }
        // Nobody to trust.
        let err = Proxy::from_url("https://user:hunter2@proxy", SystemRoots::none).unwrap_err();
        assert!(err.to_string().contains("SSL_CERT_FILE"), "{err}");
        assert!(!format!("{err} {err:?}").contains("hunter2"));
        // In the clear nobody looks.
        let unread = || panic!("no roots are needed");
        assert!(
            Proxy::from_url("http://proxy", unread)
                .unwrap()
                .tls
                .is_none()
        );
    }

    #[test]
    fn what_is_no_proxy_url_says_why_and_keeps_the_password() {
        use ProxyUrlError as E;
        for (text, expected) in [
            ("", E::NoScheme),
            ("proxy:3128", E::NoScheme),
            ("user:hunter2@proxy:3128", E::NoScheme),
            ("user:hunter2://proxy", E::NoScheme),
            ("https://user:hunter2@pro xy", E::Host),
            ("socks5h://user:hunter2@proxy", E::Socks),
            ("ftp://user:hunter2@proxy", E::UnknownScheme("ftp".into())),
            ("http://", E::Host),
            ("http://user:hunter2@", E::Host),
            ("http://user:hunter2@:3128", E::Host),
            ("http://user:hunter2@pro xy", E::Host),
            ("http://user:hunter2@127.1", E::Host),
            ("http://user:hunter2@*.example", E::Host),
            ("http://user:hunter2@[::1", E::Host),
            ("http://user:hunter2@proxy:0", E::Port),
            ("http://user:hunter2@proxy:65536", E::Port),
            ("http://user:hunter2/x@proxy", E::Port),
            ("http://user:hunter2#x@proxy", E::Port),
            ("http://user:2/hunter2@proxy", E::Path),
            ("http://user:hunter2@proxy/path", E::Path),
            ("http://user:hunter2@proxy?query", E::Path),
            ("http://user:hunter2@proxy#fragment", E::Path),
            ("http://user:hunter2%ff@proxy", E::Encoding),
        ] {
            let err = Proxy::from_url(text, SystemRoots::none).unwrap_err();
            assert_eq!(err, expected, "{text}");
            assert!(!format!("{err} {err:?}").contains("hunter2"), "{text}");
        }
        let err = Proxy::from_url("http://us%3Aer:hunter2@proxy", SystemRoots::none).unwrap_err();
        assert!(matches!(err, E::Credentials(_)));
        let err =
            Proxy::from_url("http://user:hunter2%0d%0aX@proxy", SystemRoots::none).unwrap_err();
        assert!(matches!(err, E::Credentials(_)));
        assert!(!err.to_string().contains("hunter2"));
    }
}
