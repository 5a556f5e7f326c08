//! Why a tunnel is not there, in words for people and in words for programs.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::connect::{ExchangeError, Refusal};
use super::dial::{DialError, DialErrorKind};
use super::http2::{NoConnection, PoolError};
use super::{Attempt, NotMade, Request, Spoken, Timings};
use crate::dns::DnsError;
use crate::name::Target;
use crate::tls::TlsError;

/// How much of what the proxy wrote a message quotes.
const MAX_QUOTE: usize = 300;

/// Why a tunnel could not be opened. Its text names proxy, target and cause, and what to do.
#[derive(Debug)]
pub struct TunnelError(Box<Failed>);

#[derive(Debug)]
struct Failed {
    proxy: String,
    target: Target,
    authenticated: bool,
    attempt: Attempt,
    cause: Cause,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The proxy was there, and no tunnel came of it.
    #[error(transparent)]
    Connect(ExchangeError),
    /// No stream of an HTTP/2 connection.
    #[error(transparent)]
    Http2(Box<PoolError<NotMade>>),
    /// The proxy's name has no address.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// The deadline passed while the proxy's name was looked up.
    #[error("its name was not resolved in time")]
    DnsTimeout,
    /// Nothing is left to try; it is not the first error then.
    #[error("it has no endpoint")]
    NoEndpoint,
    /// It was asked whether it is well, and that took too long.
    #[error("it did not answer the check in time")]
    CheckTimeout,
    /// No connection to the proxy.
    #[error("cannot connect: {0}")]
    Tcp(#[from] DialError),
    /// No TLS with the proxy, or it ended TLS when the handshake was over.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// As many connections as policy allows are there.
    #[error(
        "there are as many connections to it as its DestinationRule allows \
         (connectionPool.tcp.maxConnections)"
    )]
    TooManyConnections,
    /// As many tunnels as policy allows are being opened.
    #[error(
        "as many tunnels are being opened through it as its DestinationRule allows \
         (connectionPool.http.http1MaxPendingRequests)"
    )]
    TooManyPending,
    /// The proxy chose HTTP/2, which was not offered.
    #[error("it chose HTTP/2 (ALPN), which was not offered")]
    UnwantedHttp2,
}

impl From<ExchangeError> for Cause {
    /// An answer that cannot be read because TLS has failed is a failure of TLS: what a proxy
    /// thinks of a client certificate comes only then.
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Read(error) => match error.downcast() {
                Ok(error) => Self::Tls(error),
                Err(error) => Self::Connect(ExchangeError::Read(error)),
            },
            error => Self::Connect(error),
        }
    }
}

/// Where a failure has to be looked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// On this node.
    Agent,
    /// At the proxy, or on the way there.
    Proxy,
    /// At the target, as the proxy says.
    Target,
}

impl Side {
    /// The value for a log field.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Proxy => "proxy",
            Self::Target => "target",
        }
    }
}

impl TunnelError {
    pub(super) fn new(request: &Request<'_>, attempt: Attempt, cause: Cause) -> Self {
        Self(Box::new(Failed {
            proxy: request.proxy.to_string(),
            target: request.target.clone(),
            authenticated: request.proxy.credentials.is_some(),
            attempt,
            cause,
        }))
    }

    /// What went wrong.
    pub fn cause(&self) -> &Cause {
        &self.0.cause
    }

    /// The address of the proxy, if a connection to it was made.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.attempt.address
    }

    /// The endpoint that was tried last, as policy has it.
    pub fn endpoint(&self) -> Option<&Arc<str>> {
        self.0.attempt.endpoint.as_ref()
    }

    /// How the proxy was spoken to.
    pub fn spoken(&self) -> Spoken {
        self.0.attempt.spoken
    }

    /// How long each phase took, up to the one that failed.
    pub fn timings(&self) -> Timings {
        self.0.attempt.timings
    }

    /// The proxy's refusal, if it said no.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.0.cause.refusal()
    }

    /// The proxy's status code, if it said no.
    pub fn code(&self) -> Option<u16> {
        self.refusal().map(|refusal| refusal.code)
    }

    /// Where to look.
    pub fn side(&self) -> Side {
        match self.0.cause.innermost() {
            Cause::Dns(DnsError::NoServers { .. })
            | Cause::TooManyConnections
            | Cause::TooManyPending => Side::Agent,
            Cause::Tcp(error) => match error.kind() {
                DialErrorKind::NoSocket | DialErrorKind::Denied => Side::Agent,
                _ => Side::Proxy,
            },
            _ if self.code().is_some_and(is_about_the_target) => Side::Target,
            _ => Side::Proxy,
        }
    }

    /// [`Cause::reason`] of it.
    pub fn reason(&self) -> &'static str {
        self.0.cause.reason()
    }

    /// Whether another endpoint of the proxy may do better.
    pub fn retryable(&self) -> bool {
        self.0.cause.retryable()
    }
}

impl Cause {
    /// The proxy's refusal, if it said no.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Connect(ExchangeError::Refused(refusal)) => Some(refusal),
            Self::Http2(error) => match &**error {
                PoolError::Open(error) => error.refusal(),
                _ => None,
            },
            _ => None,
        }
    }

    /// What kept the connection from being there on which HTTP/2 would have been spoken; else
    /// itself.
    fn innermost(&self) -> &Self {
        if let Self::Http2(error) = self
            && let PoolError::Connect(NoConnection::Dial(not_made)) = &**error
            && let Some(cause) = &not_made.cause
        {
            return cause;
        }
        self
    }

    /// The failure as a metric label: one word out of a fixed list.
    pub fn reason(&self) -> &'static str {
        match self.innermost() {
            Self::Dns(_) | Self::DnsTimeout => "dns",
            Self::Tcp(error) => match error.kind() {
                DialErrorKind::NoSocket => "no_socket",
                DialErrorKind::Refused => "tcp_refused",
                DialErrorKind::Reset => "tcp_reset",
                DialErrorKind::Timeout => "tcp_timeout",
                DialErrorKind::Denied => "tcp_denied",
                DialErrorKind::Failed => "tcp_failed",
                DialErrorKind::Unreachable => "tcp_unreachable",
            },
            Self::Connect(error) => match error {
                ExchangeError::BadAnswer(_) | ExchangeError::TooManyInterim => "malformed",
                ExchangeError::ClosedEarly { .. } => "closed_early",
                ExchangeError::Read(error) | ExchangeError::Write(error) => match error.kind() {
                    io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "reset",
                    _ => "broken",
                },
                ExchangeError::Refused(refusal) if refusal.wants_credentials() => "auth_required",
                ExchangeError::Refused(_) => "refused",
                ExchangeError::Timeout { .. } => "connect_timeout",
            },
            Self::Http2(error) => match &**error {
                PoolError::Connect(NoConnection::Dial(_)) => "no_http2",
                error => error.reason(),
            },
            Self::NoEndpoint => "no_endpoint",
            Self::Tls(error) => error.reason(),
            Self::TooManyConnections => "too_many_connections",
            Self::TooManyPending => "too_many_pending",
            Self::CheckTimeout => "connect_timeout",
            Self::UnwantedHttp2 => "malformed",
        }
    }

    /// Whether another endpoint of the proxy may do better.
    pub fn retryable(&self) -> bool {
        match self.innermost() {
            Self::Dns(_) | Self::DnsTimeout => true,
            Self::Tcp(error) => error.kind() != DialErrorKind::NoSocket,
            Self::Connect(ExchangeError::Refused(refusal)) => is_about_the_target(refusal.code),
            Self::Http2(error) => error.retryable(),
            Self::NoEndpoint | Self::TooManyConnections | Self::TooManyPending => false,
            Self::CheckTimeout | Self::Connect(_) | Self::Tls(_) | Self::UnwantedHttp2 => true,
        }
    }

    /// Whether policy allows no further connection.
    pub(super) fn is_over_max_connections(&self) -> bool {
        matches!(self.innermost(), Self::TooManyConnections)
    }

    /// Whether it says nothing of the endpoint that was tried.
    pub(super) fn is_our_own(&self) -> bool {
        match self.innermost() {
            Self::Dns(DnsError::NoServers { .. })
            | Self::NoEndpoint
            | Self::TooManyConnections
            | Self::TooManyPending => true,
            Self::Tcp(error) => error.kind() == DialErrorKind::NoSocket,
            Self::Http2(error) => {
                matches!(**error, PoolError::Request(_) | PoolError::Busy { .. })
            }
            _ => false,
        }
    }
}

/// Codes by which a gateway says that it could not serve, not that it would not.
fn is_about_the_target(code: u16) -> bool {
    matches!(code, 502..=504)
}

impl fmt::Display for TunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failed {
            proxy,
            target,
            cause,
            ..
        } = &*self.0;
        let what = match self.spoken() {
            Spoken::Http1Absolute => "way",
            _ => "tunnel",
        };
        write!(f, "no {what} to {target} through proxy {proxy}")?;
        // The address says more than the name, unless the proxy was given by address.
        if let Some(address) = self.address().filter(|at| at.to_string() != *proxy) {
            write!(f, " ({address})")?;
        }
        write!(f, ": {cause}")?;
        if let Some(refusal) = self.refusal() {
            self.explain(refusal, f)?;
        }
        Ok(())
    }
}

impl TunnelError {
    fn explain(&self, refusal: &Refusal, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match refusal.code {
            403 => write!(f, ": its access rules do not allow {}", self.0.target)?,
            401 | 407 => self.explain_authentication(&refusal.schemes, f)?,
            _ => {}
        }
        if !refusal.body.is_empty() {
            let quote: String = refusal.body.chars().take(MAX_QUOTE).collect();
            write!(f, "; it says: {quote}")?;
        }
        Ok(())
    }

    fn explain_authentication(
        &self,
        schemes: &[String],
        f: &mut fmt::Formatter<'_>,
    ) -> fmt::Result {
        let has = |name: &str| {
            let mut schemes = schemes.iter();
            schemes.any(|scheme| scheme.eq_ignore_ascii_case(name))
        };
        if self.0.authenticated {
            f.write_str(": it does not accept the credentials configured for it")?;
        } else {
            f.write_str(": it wants credentials and none are configured for it")?;
        }
        if schemes.is_empty() {
            return f.write_str(" (it names no scheme)");
        }
        let hint = if has("basic") || has("bearer") {
            ""
        } else if has("negotiate") || has("ntlm") {
            // They prove a connection and not a request, and take several rounds.
            ", none of which is supported: let it offer Basic or Bearer to this client, know it by \
             a client certificate, or run an agent for these schemes (such as cntlm) and name that \
             as the proxy"
        } else {
            ", none of which is supported: let it offer Basic or Bearer"
        };
        write!(f, " (it offers {}{hint})", schemes.join(", "))
    }
}

// The cause is part of the text, so it is not a `source` as well: it would be told twice.
impl std::error::Error for TunnelError {}
