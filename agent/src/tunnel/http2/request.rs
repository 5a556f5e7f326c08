//! The request for a tunnel, and what an answer says that opens none.

use http::header::{HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Request, StatusCode, Uri};

use crate::name::Target;
use crate::policy::Credentials;
use crate::tunnel::answer;
use crate::tunnel::connect::Refusal;

/// How a proxy is asked for a tunnel.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Method {
    /// CONNECT with `:method` and `:authority` alone (RFC 9113 section 8.5).
    #[default]
    Connect,
    /// POST, whose bodies are the tunnel, as Envoy's `use_post` has it: the target is the
    /// `:authority`. It needs a server that knows of it.
    Post {
        /// The `:scheme`: Envoy sends `https` on a connection inside TLS, and `http` elsewhere.
        scheme: Scheme,
        /// The `:path`; Envoy's `post_path`, `/` unless set.
        path: PathAndQuery,
    },
}

/// What to ask a proxy for.
#[derive(Clone, Copy, Debug)]
pub struct TunnelRequest<'a> {
    /// Where the tunnel shall lead.
    pub target: &'a Target,
    /// How to ask.
    pub method: &'a Method,
    /// Fields that policy adds.
    pub headers: &'a [(HeaderName, HeaderValue)],
    /// For `Proxy-Authorization`.
    pub authorization: Option<&'a Credentials>,
}

/// Why a request cannot be put into HTTP/2.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The credentials contain what no field may.
    #[error("the credentials of the proxy contain characters that no header field may")]
    Credentials,
    /// The target is no `:authority`.
    #[error("the target cannot stand in an HTTP/2 request")]
    Target,
}

impl TunnelRequest<'_> {
    /// The request for [`Connection::open`](super::Connection::open).
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn build(&self) -> Result<Request<()>, RequestError> {
        let authority = Authority::try_from(self.target.to_string());
        let mut uri = Uri::builder().authority(authority.map_err(|_| RequestError::Target)?);
        let method = match self.method {
            Method::Connect => http::Method::CONNECT,
            Method::Post { scheme, path } => {
                uri = uri.scheme(scheme.clone()).path_and_query(path.clone());
                http::Method::POST
            }
        };
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = uri.build().map_err(|_| RequestError::Target)?;
        let fields = request.headers_mut();
        let agent = concat!("underpass/", env!("CARGO_PKG_VERSION"));
        fields.insert(USER_AGENT, HeaderValue::from_static(agent));
        for (name, value) in self.headers {
            fields.append(name, value.clone());
        }
        if let Some(credentials) = self.authorization {
            let mut value = HeaderValue::from_bytes(credentials.header().as_bytes())
                .map_err(|_| RequestError::Credentials)?;
            // Hides it from `Debug`, and keeps it out of the tables of HPACK (RFC 7541 section
            // 7.1.3).
            value.set_sensitive(true);
            fields.insert(PROXY_AUTHORIZATION, value);
        }
        Ok(request)
    }
}

/// A refusal by `status`, whose body says `body`.
pub(super) fn refusal(status: StatusCode, fields: &HeaderMap, body: String) -> Refusal {
    let mut schemes = Vec::new();
    for value in fields.get_all(PROXY_AUTHENTICATE) {
        answer::add_schemes(&mut schemes, value.as_bytes());
    }
    Refusal {
        code: status.as_u16(),
        // HTTP/2 has no reason phrases (RFC 9113 section 8.3.2).
        reason: status.canonical_reason().unwrap_or_default().to_owned(),
        schemes,
        body,
    }
}
