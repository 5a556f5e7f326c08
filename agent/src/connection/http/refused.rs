//! A request that is not served, or not to the end.

use std::fmt::Display;
use std::io;

use http::StatusCode;

use super::super::Failure;
use super::super::outbound::flag as flag_of;
use crate::relay::RelayError;
use crate::relay::http::ExchangeError;
use crate::telemetry::text::printable;
use crate::telemetry::{DenyReason, RequestRecord, ResponseFlag};
use crate::tunnel::TunnelError;

/// Bytes of the reason that a workload is told.
const MAX_TEXT: usize = 512;

/// Why a request was not served, or not to the end.
#[derive(Debug)]
pub(super) struct Refused {
    flag: ResponseFlag,
    /// None: nobody is left to hear it.
    status: Option<StatusCode>,
    denied: Option<DenyReason>,
    text: String,
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
        }
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
        Self::new(flag_of(error), status, error)
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
        };
        match error {
            ExchangeError::BrokenRequest(_) | ExchangeError::Client(_) => {
                Self::new(flag, status, error)
            }
            _ => Self::new(flag, status, &format_args!("{who}: {error}")),
        }
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
