//! What a request asks for, whether it gets that, and the way there.

use std::sync::Arc;

use http::header;
use http::uri::{Authority, Scheme as UriScheme};
use http::{Method, Request, StatusCode, Version};

use super::Shared;
use super::access::Record;
use super::dial::{Asked, DialError};
use super::metrics::Denial;
use super::refusal::Refusal;
use super::rules::parse_port;
use super::stream::Upstream;
use crate::name::{Host, Target};
use crate::tunnel::TunnelError;

/// Whether a client or stream is within the limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Admission {
    Served,
    TooMany,
}

/// What may be had of a proxy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wish {
    /// Bytes both ways.
    Tunnel,
    /// The answer of a server to this very request.
    Forward,
}

/// A wish that is granted, and the connection to the target.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) wish: Wish,
    pub(super) target: Target,
    pub(super) upstream: Upstream,
}

/// Judges `request` and connects to its target.
pub(super) async fn open<B>(
    shared: &Shared,
    admission: Admission,
    request: &Request<B>,
    record: &mut Record,
) -> Result<Opened, Refusal> {
    if admission == Admission::TooMany {
        return Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "this gateway has as many connections as it takes; try again later",
        )
        .because(Denial::Limit));
    }
    let (wish, target) = wish(request, shared.post_tunnels)?;
    record.target = Some(target.clone());
    record.user = authenticate(shared, request)?;
    let about = |status, reason: &dyn std::fmt::Display| {
        Refusal::new(status, format!("{target}: {reason}"))
    };
    if shared.name.is_in(request.headers()) {
        let reason = "the request has been here before: a policy leads in a circle";
        return Err(about(StatusCode::LOOP_DETECTED, &reason).because(Denial::Loop));
    }
    let permit = shared
        .rules
        .judge(&target)
        .map_err(|forbidden| about(StatusCode::FORBIDDEN, &forbidden).because(forbidden.into()))?;
    let asked = Asked {
        wish,
        target: &target,
        permit,
        version: request.version(),
        fields: request.headers(),
    };
    let dialed = shared.way.dial(&shared.rules, asked, record).await;
    let upstream = dialed.map_err(|error| match error {
        DialError::Forbidden(forbidden) => {
            about(StatusCode::FORBIDDEN, &error).because(forbidden.into())
        }
        DialError::Policy { .. } => about(StatusCode::FORBIDDEN, &error).because(Denial::Policy),
        DialError::Tunnel(error) => Refusal::new(status(&error), error.to_string()),
        DialError::Timeout(_) | DialError::Unresolved(_) => {
            about(StatusCode::GATEWAY_TIMEOUT, &error)
        }
        DialError::Connect(_)
        | DialError::NoAddress
        | DialError::Resolve(_)
        | DialError::Tls(_) => about(StatusCode::BAD_GATEWAY, &error),
    })?;
    if wish == Wish::Forward && !upstream.early.is_empty() {
        let reason = "it spoke before it was asked, as no server of HTTP does";
        return Err(about(StatusCode::BAD_GATEWAY, &reason));
    }
    Ok(Opened {
        wish,
        target,
        upstream,
    })
}

/// The answer to a client whose tunnel ended at a proxy of the policy. That this gateway has no
/// credentials there is its own affair, and not the client's.
fn status(error: &TunnelError) -> StatusCode {
    match error.code() {
        Some(403) => StatusCode::FORBIDDEN,
        Some(504) => StatusCode::GATEWAY_TIMEOUT,
        Some(508) => StatusCode::LOOP_DETECTED,
        None if error.reason().ends_with("timeout") => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    }
}

/// What is asked for, and about which target.
fn wish<B>(request: &Request<B>, post_tunnels: bool) -> Result<(Wish, Target), Refusal> {
    let http2 = request.version() == Version::HTTP_2;
    match *request.method() {
        Method::CONNECT => {
            // RFC 9110 section 9.3.6: such a request has no content. Where it claimed some, it
            // would be unclear which bytes are the tunnel's. Of HTTP/1 none comes here.
            if http2 && request.headers().contains_key(header::CONTENT_LENGTH) {
                return Err(Refusal::malformed("a CONNECT request cannot have a body"));
            }
            Ok((Wish::Tunnel, tunnel_target(request)?))
        }
        Method::POST if http2 && post_tunnels => {
            let authority = request.uri().authority().ok_or_else(|| {
                Refusal::malformed("a POST tunnel needs host:port as its :authority")
            })?;
            let target = target(authority, None).map_err(Refusal::malformed)?;
            Ok((Wish::Tunnel, target))
        }
        // It would show what other proxies on the way add, credentials included.
        Method::TRACE => Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "this gateway does not forward TRACE",
        )
        .because(Denial::Malformed)
        .with(
            header::ALLOW,
            "CONNECT, DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT",
        )),
        _ => Ok((Wish::Forward, forward_target(request)?)),
    }
}

/// The target of a CONNECT request (RFC 9112 section 3.2.3, RFC 9113 section 8.5). It alone
/// counts; a `Host` field says nothing that it does not, so neither is it missed nor compared.
fn tunnel_target<B>(request: &Request<B>) -> Result<Target, Refusal> {
    let uri = request.uri();
    match uri.authority() {
        Some(authority) if uri.scheme().is_none() && uri.path_and_query().is_none() => {
            target(authority, None).map_err(Refusal::malformed)
        }
        _ => Err(Refusal::malformed(
            "the target of CONNECT is host:port and nothing else",
        )),
    }
}

/// The target of a request in absolute form (RFC 9112 section 3.2.2).
fn forward_target<B>(request: &Request<B>) -> Result<Target, Refusal> {
    let uri = request.uri();
    let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err(Refusal::malformed(
            "this is a forward proxy: ask it for http://HOST/PATH, or to CONNECT to HOST:PORT",
        ));
    };
    if *scheme != UriScheme::HTTP {
        return Err(Refusal::malformed(
            "this gateway forwards http:// only; for everything else ask it to CONNECT",
        ));
    }
    // RFC 9112 section 3.2. What it says does not matter: the target replaces it. There is one at
    // most.
    if request.version() == Version::HTTP_11 && !request.headers().contains_key(header::HOST) {
        return Err(Refusal::malformed("a request of HTTP/1.1 has a Host field"));
    }
    target(authority, Some(HTTP)).map_err(Refusal::malformed)
}

/// A host, and the port that it names or else `port`.
fn target(authority: &Authority, port: Option<u16>) -> Result<Target, String> {
    let text = authority.as_str();
    if text.contains('@') {
        return Err("the target cannot have user information".into());
    }
    let (host, digits) = match text.rsplit_once(':') {
        // A colon inside brackets is the address's own.
        Some((_, tail)) if tail.ends_with(']') => (text, None),
        Some((host, digits)) => (host, Some(digits)),
        None => (text, None),
    };
    let port = match (digits, port) {
        // RFC 3986 section 3.2.3: an empty port is the default one.
        (None | Some(""), Some(default)) => default,
        (None, None) => return Err("the target needs a port".into()),
        (Some(digits), _) => {
            parse_port(digits).ok_or("the port is not a number from 1 to 65535")?
        }
    };
    if host.contains(':') && !host.starts_with('[') {
        return Err("an IPv6 address needs brackets".into());
    }
    match host.parse::<Host>() {
        Ok(host) => Ok(Target { host, port }),
        Err(error) => Err(error.to_string()),
    }
}

/// The user, where one is needed.
fn authenticate<B>(shared: &Shared, request: &Request<B>) -> Result<Option<Arc<str>>, Refusal> {
    if shared.users.is_empty() {
        return Ok(None);
    }
    let mut given = request
        .headers()
        .get_all(header::PROXY_AUTHORIZATION)
        .iter();
    let user = match (given.next(), given.next()) {
        (Some(value), None) => shared
            .users
            .iter()
            .find_map(|users| users.current().user(value)),
        _ => None,
    };
    if user.is_some() {
        return Ok(user);
    }
    let mut refusal = Refusal::new(
        StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        "this gateway wants credentials that it knows",
    )
    .because(Denial::Credentials);
    for users in &shared.users {
        let challenge = users.current().scheme().challenge();
        refusal = refusal.with(header::PROXY_AUTHENTICATE, challenge);
    }
    Err(refusal)
}

const HTTP: u16 = 80;

#[cfg(test)]
mod tests;
