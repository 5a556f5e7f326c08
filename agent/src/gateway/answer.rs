//! The answer to one request.

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::ext::ReasonPhrase;
use hyper::upgrade::OnUpgrade;
use tokio::net::TcpStream;

use super::Shared;
use super::access::Record;
use super::dial::{DialError, dial};
use super::rules::parse_port;
use crate::name::{Host, Target};

/// A tunnel whose far end stands, and whose near end will once the answer is sent.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) client: OnUpgrade,
    pub(super) upstream: TcpStream,
    pub(super) record: Record,
}

/// Whether a connection is within the limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Admission {
    Served,
    TooMany,
}

/// Answers `request` of `client`: 200 comes with a tunnel, everything else is logged here.
pub(super) async fn answer(
    shared: &Shared,
    admission: Admission,
    client: SocketAddr,
    request: Request<Incoming>,
) -> (Response<Full<Bytes>>, Option<Tunnel>) {
    let mut record = Record::new(client, &request);
    match connect(shared, admission, &request, &mut record).await {
        Ok(upstream) => {
            record.code = Some(StatusCode::OK);
            let mut response = Response::new(Full::default());
            response.extensions_mut().insert(ESTABLISHED);
            let tunnel = Tunnel {
                client: hyper::upgrade::on(request),
                upstream,
                record,
            };
            (response, Some(tunnel))
        }
        Err(refusal) => {
            record.code = Some(refusal.status);
            record.failed(&refusal.text);
            (refusal.into_response(), None)
        }
    }
}

async fn connect(
    shared: &Shared,
    admission: Admission,
    request: &Request<Incoming>,
    record: &mut Record,
) -> Result<TcpStream, Refusal> {
    if admission == Admission::TooMany {
        return Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "this gateway has as many connections as it takes; try again later",
        ));
    }
    if request.method() != Method::CONNECT {
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "this gateway only tunnels: ask it to CONNECT to a host:port",
        )
        .with(header::ALLOW, "CONNECT"));
    }
    let target = target(request).map_err(|reason| Refusal::new(StatusCode::BAD_REQUEST, reason))?;
    if !request.body().is_end_stream() {
        // RFC 9110 section 9.3.6: such a request has no content. Where it claimed some, it would
        // be unclear which bytes are the tunnel's.
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "a CONNECT request cannot have a body",
        )
        .with(header::CONNECTION, "close"));
    }
    record.user = authenticate(shared, request)?;
    let about = |status, reason| Refusal::new(status, format!("{target}: {reason}"));
    let permit = shared
        .rules
        .judge(&target)
        .map_err(|reason| about(StatusCode::FORBIDDEN, reason.to_string()))?;
    dial(shared, &target, permit).await.map_err(|error| {
        let status = match error {
            DialError::Forbidden(_) => StatusCode::FORBIDDEN,
            DialError::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            DialError::Connect(_) | DialError::NoAddress | DialError::Resolve(_) => {
                StatusCode::BAD_GATEWAY
            }
        };
        about(status, error.to_string())
    })
}

/// The target of a CONNECT request (RFC 9112 section 3.2.3). It alone counts; a `Host` field says
/// nothing that it does not, so neither is it missed nor compared.
fn target<B>(request: &Request<B>) -> Result<Target, String> {
    let uri = request.uri();
    let authority = match uri.authority() {
        Some(authority) if uri.scheme().is_none() && uri.path_and_query().is_none() => authority,
        _ => return Err("the target of CONNECT is host:port and nothing else".into()),
    };
    if authority.as_str().contains('@') {
        return Err("the target of CONNECT cannot have user information".into());
    }
    let (host, port) = authority
        .as_str()
        .rsplit_once(':')
        .ok_or("the target of CONNECT needs a port")?;
    let port = parse_port(port).ok_or("the port is not a number from 1 to 65535")?;
    if host.contains(':') && !host.starts_with('[') {
        return Err("an IPv6 address needs brackets".into());
    }
    match host.parse::<Host>() {
        Ok(host) => Ok(Target { host, port }),
        Err(error) => Err(error.to_string()),
    }
}

/// The user, where one is needed.
fn authenticate<B>(
    shared: &Shared,
    request: &Request<B>,
) -> Result<Option<std::sync::Arc<str>>, Refusal> {
    let Some(credentials) = &shared.credentials else {
        return Ok(None);
    };
    let mut given = request
        .headers()
        .get_all(header::PROXY_AUTHORIZATION)
        .iter();
    let user = match (given.next(), given.next()) {
        (Some(value), None) => credentials.user(value),
        _ => None,
    };
    if user.is_some() {
        return Ok(user);
    }
    Err(Refusal::new(
        StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        "this gateway wants a user name and password that it knows",
    )
    .with(
        header::PROXY_AUTHENTICATE,
        "Basic realm=\"underpass\", charset=\"UTF-8\"",
    ))
}

/// An answer other than a tunnel, with a line of text for whoever looks for the reason.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    text: String,
    field: Option<(HeaderName, &'static str)>,
}

impl Refusal {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
            field: None,
        }
    }

    fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.field = Some((name, value));
        self
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(format!("{}\n", self.text).into());
        *response.status_mut() = self.status;
        let fields = response.headers_mut();
        fields.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        if let Some((name, value)) = self.field {
            fields.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

const ESTABLISHED: ReasonPhrase = ReasonPhrase::from_static(b"Connection established");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_an_authority_with_a_port() {
        for (uri, target) in [
            ("example.com:443", Some("example.com:443")),
            ("EXAMPLE.com.:8443", Some("example.com:8443")),
            ("203.0.113.7:22", Some("203.0.113.7:22")),
            ("[2001:db8::1]:443", Some("[2001:db8::1]:443")),
            ("[::ffff:203.0.113.7]:443", Some("203.0.113.7:443")),
            ("example.com", None),
            ("example.com:0", None),
            ("user@example.com:443", None),
            ("127.1:443", None),
            ("http://example.com:443", None),
            ("http://example.com:443/", None),
            ("/", None),
            ("*", None),
        ] {
            let request = Request::connect(uri).body(()).unwrap();
            let found = super::target(&request).map(|target| target.to_string());
            assert_eq!(found.as_deref().ok(), target, "{uri}");
        }
    }
}
