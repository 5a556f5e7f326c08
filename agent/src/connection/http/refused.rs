//! A request that is not served, or not to the end.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use h2::Reason;
use http::StatusCode;

use super::super::Failure;
use super::super::outbound::{flag as flag_of, flag_of_limit, is_of_target};
use crate::circuit::Refusal;
use crate::relay::RelayError;
use crate::relay::http::ExchangeError;
use crate::relay::http2;
use crate::telemetry::text::printable;
use crate::telemetry::{DenyReason, RequestRecord, ResponseFlag};
use crate::tunnel::TunnelError;
use crate::tunnel::http2::HandshakeError;

/// Bytes of the reason that a workload is told.
const MAX_TEXT: usize = 512;

/// Why a request was not served, or not to the end.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    flag: ResponseFlag,
    /// None: nobody is left to hear it.
    status: Option<StatusCode>,
    denied: Option<DenyReason>,
    text: String,
    /// What may be better the next time, if anything.
    fault: Option<Fault>,
    /// How a stream of HTTP/2 ends where no answer can be given.
    reset: Reason,
}

/// What went wrong on the way to the target and back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// The request was sent, and no answer has begun.
    NoAnswer,
    /// There is no connection to the target.
    NoConnection,
    /// There is no tunnel, and nothing says that it is because of the target.
    NoTunnel,
    /// The target has not looked at the request, of which the body is perhaps still as it came.
    NotTaken { is_untouched: bool },
    /// There is an answer which is to be asked for again.
    Unwanted,
}

impl Fault {
    /// Whether it is held against the target. Of an answer that is known already.
    pub(super) fn is_of_target(self) -> bool {
        match self {
            Self::NoAnswer | Self::NoConnection | Self::NotTaken { .. } => true,
            Self::NoTunnel | Self::Unwanted => false,
        }
    }
}

impl Refused {
    pub(super) fn new(
        flag: ResponseFlag,
        status: impl Into<Option<StatusCode>>,
        text: &dyn Display,
    ) -> Self {
        Self {
            flag,
            status: status.into(),
            denied: None,
            text: printable(text, MAX_TEXT),
            fault: None,
            reset: Reason::INTERNAL_ERROR,
        }
    }

    /// The same, for this reason.
    pub(super) fn because(self, fault: Fault) -> Self {
        Self {
            fault: Some(fault),
            ..self
        }
    }

    /// The same, having been tried as often as policy allows.
    pub(super) fn exhausted(self) -> Self {
        Self {
            flag: ResponseFlag::RetriesExhausted,
            ..self
        }
    }

    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Policy does not allow it at this target now.
    pub(super) fn limit(refusal: &Refusal) -> Self {
        let flag = flag_of_limit(refusal.limit);
        Self::new(flag, StatusCode::SERVICE_UNAVAILABLE, refusal)
    }

    /// `who` has not answered in the time of this field, which `policy` gives.
    pub(super) fn out_of_time(who: &str, field: &str, time: Duration, policy: &str) -> Self {
        let text = format!("{who}: no answer within {time:?} ({field} of {policy})");
        let status = StatusCode::GATEWAY_TIMEOUT;
        Self::new(ResponseFlag::UpstreamTimeout, status, &text)
    }

    /// The workload has broken its connection.
    pub(super) fn gone(error: &io::Error) -> Self {
        let text = format!("the workload's connection failed: {error}");
        Self::new(ResponseFlag::DownstreamClosed, None, &text)
    }

    /// Policy says no.
    pub(super) fn denied(reason: DenyReason, text: &dyn Display) -> Self {
        Self {
            denied: Some(reason),
            ..Self::new(ResponseFlag::Deny, StatusCode::FORBIDDEN, text)
        }
    }

    /// There is no tunnel.
    pub(super) fn tunnel(error: &TunnelError) -> Self {
        let status = match error.code() {
            // What the proxy says of the target is as good as what we could.
            Some(503) => StatusCode::SERVICE_UNAVAILABLE,
            Some(504) => StatusCode::GATEWAY_TIMEOUT,
            Some(_) => StatusCode::BAD_GATEWAY,
            None => match flag_of(error) {
                ResponseFlag::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
                ResponseFlag::UpstreamProtocol => StatusCode::BAD_GATEWAY,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            },
        };
        let refused = Self::new(flag_of(error), status, error);
        if is_of_target(error) {
            refused.because(Fault::NoConnection)
        } else if error.refusal().is_some() {
            // It would say the same again.
            refused
        } else {
            refused.because(Fault::NoTunnel)
        }
    }

    /// There was no answer of `who`, or not all of it.
    pub(super) fn exchange(error: &ExchangeError, who: &str) -> Self {
        let (flag, status) = match error {
            ExchangeError::BadAnswer(_) | ExchangeError::BrokenAnswer(_) => (
                ResponseFlag::UpstreamProtocol,
                Some(StatusCode::BAD_GATEWAY),
            ),
            ExchangeError::Challenged(_) => (ResponseFlag::Connect, Some(StatusCode::BAD_GATEWAY)),
            ExchangeError::BrokeOff(_) | ExchangeError::NoAnswer(_) => {
                (ResponseFlag::UpstreamClosed, Some(StatusCode::BAD_GATEWAY))
            }
            ExchangeError::BrokenRequest(_) => (
                ResponseFlag::DownstreamProtocol,
                Some(StatusCode::BAD_REQUEST),
            ),
            ExchangeError::Client(_) | ExchangeError::Switched(RelayError::Workload(_)) => {
                (ResponseFlag::DownstreamClosed, None)
            }
            ExchangeError::Silent(_) => (
                ResponseFlag::UpstreamTimeout,
                Some(StatusCode::GATEWAY_TIMEOUT),
            ),
            ExchangeError::Switched(RelayError::Upstream(_)) => {
                (ResponseFlag::UpstreamClosed, None)
            }
            ExchangeError::Switched(_) => (ResponseFlag::Idle, None),
            // It is asked for again; nobody hears of it.
            ExchangeError::Unwanted(_) => {
                (ResponseFlag::UpstreamClosed, Some(StatusCode::BAD_GATEWAY))
            }
        };
        let fault = match error {
            ExchangeError::BrokenRequest(_) | ExchangeError::Client(_) => {
                return Self::new(flag, status, error);
            }
            ExchangeError::Challenged(_) | ExchangeError::Switched(_) => None,
            ExchangeError::Unwanted(_) => Some(Fault::Unwanted),
            ExchangeError::BadAnswer(_)
            | ExchangeError::BrokenAnswer(_)
            | ExchangeError::BrokeOff(_)
            | ExchangeError::NoAnswer(_)
            | ExchangeError::Silent(_) => Some(Fault::NoAnswer),
        };
        Self {
            fault,
            ..Self::new(flag, status, &format_args!("{who}: {error}"))
        }
    }

    /// There was no answer of `who`, or not all of it, on a stream.
    pub(super) fn stream(error: &http2::ExchangeError, who: &str, is_untouched: bool) -> Self {
        use http2::ExchangeError as Error;
        let (flag, status) = match error {
            Error::BadAnswer(_) | Error::BrokenAnswer(_) => (
                ResponseFlag::UpstreamProtocol,
                Some(StatusCode::BAD_GATEWAY),
            ),
            Error::BrokeOff(_) | Error::Lost(_) | Error::NoAnswer(_) => {
                (ResponseFlag::UpstreamClosed, Some(StatusCode::BAD_GATEWAY))
            }
            Error::NotTaken(_) => (
                ResponseFlag::UpstreamClosed,
                Some(StatusCode::SERVICE_UNAVAILABLE),
            ),
            // The workload hears from the target itself.
            Error::Reset(_) => (ResponseFlag::UpstreamClosed, None),
            Error::BrokenRequest(_) => (ResponseFlag::DownstreamProtocol, None),
            Error::ClientReset(_) | Error::Client(_) => (ResponseFlag::DownstreamClosed, None),
            // It is asked for again; nobody hears of it.
            Error::Unwanted(_) => (ResponseFlag::UpstreamClosed, Some(StatusCode::BAD_GATEWAY)),
        };
        let fault = match error {
            Error::BrokenRequest(_) | Error::ClientReset(_) | Error::Client(_) => None,
            Error::NotTaken(_) => Some(Fault::NotTaken { is_untouched }),
            Error::Unwanted(_) => Some(Fault::Unwanted),
            Error::BadAnswer(_)
            | Error::BrokenAnswer(_)
            | Error::BrokeOff(_)
            | Error::Lost(_)
            | Error::NoAnswer(_)
            | Error::Reset(_) => Some(Fault::NoAnswer),
        };
        let refused = match error {
            Error::BrokenRequest(_) | Error::ClientReset(_) | Error::Client(_) => {
                Self::new(flag, status, error)
            }
            _ => Self::new(flag, status, &format_args!("{who}: {error}")),
        };
        Self {
            reset: error.reset(),
            fault,
            ..refused
        }
    }

    /// The same of a request of HTTP/1.1 on a stream: a reset means nothing to the workload.
    pub(super) fn upgraded(error: &http2::UpgradeError, who: &str, is_untouched: bool) -> Self {
        match error {
            http2::UpgradeError::Exchange(error) => Self::exchange(error, who),
            http2::UpgradeError::Stream(error) => {
                let refused = Self::stream(error, who, is_untouched);
                let status = refused.status.unwrap_or(StatusCode::BAD_GATEWAY);
                Self {
                    status: Some(status),
                    ..refused
                }
            }
        }
    }

    /// `who` was reached, but does not speak HTTP/2.
    pub(super) fn greeting(error: &HandshakeError, who: &str) -> Self {
        let (flag, status) = match error {
            HandshakeError::Timeout => (ResponseFlag::UpstreamTimeout, StatusCode::GATEWAY_TIMEOUT),
            _ => (ResponseFlag::UpstreamProtocol, StatusCode::BAD_GATEWAY),
        };
        let text = match error {
            HandshakeError::Ended(ended) => http2::why(ended),
            error => error.to_string(),
        };
        Self::new(
            flag,
            status,
            &format_args!("{who} does not speak HTTP/2: {text}"),
        )
        .because(Fault::NoConnection)
    }

    /// Nothing moved for too long.
    pub(super) fn silent(patience: Duration) -> Self {
        let text = format!("no byte in either direction for {patience:?}");
        let status = StatusCode::GATEWAY_TIMEOUT;
        Self::new(ResponseFlag::UpstreamTimeout, status, &text)
    }

    /// The workload has waited for as long as it said it would.
    pub(super) fn late(timeout: Duration) -> Self {
        let text = format!("no answer within the {timeout:?} of the call (grpc-timeout)");
        let status = StatusCode::GATEWAY_TIMEOUT;
        Self::new(ResponseFlag::UpstreamTimeout, status, &text)
    }

    /// What gRPC has for it.
    pub(super) fn grpc_status(&self) -> u16 {
        if self.denied.is_some() {
            return 7;
        }
        match self.status {
            Some(StatusCode::GATEWAY_TIMEOUT) => 4,
            Some(StatusCode::BAD_REQUEST) => 13,
            Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE) => 8,
            Some(StatusCode::NOT_IMPLEMENTED) => 12,
            _ => 14,
        }
    }

    /// How a stream ends where no answer can be given.
    pub(super) fn reset(&self) -> Reason {
        self.reset
    }

    /// Whether the workload itself gave the request up.
    pub(super) fn is_given_up(&self) -> bool {
        matches!(
            self.flag,
            ResponseFlag::DownstreamClosed | ResponseFlag::DownstreamProtocol
        ) && self.status.is_none()
    }

    pub(super) fn status(&self) -> Option<StatusCode> {
        self.status
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Writes it down.
    pub(super) fn note(&self, record: &mut RequestRecord) {
        match self.denied {
            Some(reason) => record.denied(reason, &self.text),
            None => record.failed(self.flag, &self.text),
        }
    }

    pub(super) fn to_failure(&self) -> Failure {
        Failure::new(self.flag, self.text.clone())
    }

    pub(super) fn into_failure(self) -> Failure {
        Failure::new(self.flag, self.text)
    }
}
