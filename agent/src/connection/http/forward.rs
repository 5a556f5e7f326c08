//! Requests that a proxy gets as they are, and no tunnel is asked for.

use std::sync::Arc;

use http::HeaderValue;
use http::header::PROXY_AUTHORIZATION;

use super::refused::Refused;
use crate::connection::Arrived;
use crate::policy::{PlainHttp, Proxy, TunnelDecision};
use crate::relay::http::{Challenge, ExchangeError, Request};
use crate::telemetry::{RequestRecord, TunnelCode, TunnelLog as _, TunnelProtocol};
use crate::trace::Span;
use crate::tunnel::connect::Refusal;
use crate::tunnel::{self, Trial, TunnelError};

/// Whether a proxy may get `request` as it is: it is for the target in plain, and says where.
pub(super) fn can_forward(request: &Request, decision: &TunnelDecision) -> bool {
    let mut proxies = decision.proxies.iter();
    decision.tls.is_none()
        && proxies.any(|ranked| ranked.proxy.plain_http == PlainHttp::AbsoluteForm)
        && request.can_be_forwarded_to(&decision.target)
}

/// What is at the other end of a connection to a proxy.
#[derive(Debug)]
pub(super) struct Forwarder {
    proxy: Arc<Proxy>,
    endpoint: Option<Arc<str>>,
    /// Of the first request.
    trial: Option<Trial>,
}

impl Forwarder {
    pub(super) fn new(proxy: &Arc<Proxy>, endpoint: Option<Arc<str>>, trial: Trial) -> Self {
        Self {
            proxy: Arc::clone(proxy),
            endpoint,
            trial: Some(trial),
        }
    }

    /// `request` as the proxy gets it.
    pub(super) fn write(
        &self,
        request: &Request,
        arrived: &Arrived,
        decision: &TunnelDecision,
    ) -> Request {
        let mut fields = self.proxy.headers_for(&arrived.context(decision));
        let credentials = self.proxy.credentials.as_ref();
        let value = credentials.and_then(|own| HeaderValue::from_str(own.header()).ok());
        if let Some(mut value) = value {
            value.set_sensitive(true);
            fields.push((PROXY_AUTHORIZATION, value));
        }
        request.for_proxy(fields)
    }

    /// Takes note of the answer that has come, or of what came instead.
    pub(super) fn note(&mut self, error: Option<&ExchangeError>, record: &mut RequestRecord) {
        let code = match (record.progress().status(), error) {
            (Some(status), _) => TunnelCode::Status(status),
            (None, Some(ExchangeError::Challenged(_))) => TunnelCode::Status(407),
            (None, Some(ExchangeError::Unwanted(status))) => TunnelCode::Status(*status),
            (None, _) => TunnelCode::None,
        };
        record.answered(TunnelProtocol::Http1Absolute, code);
        let Some(trial) = self.trial.take() else {
            return;
        };
        match error {
            Some(error @ ExchangeError::NoAnswer(_)) => trial.failed(error, "closed_early"),
            Some(error @ ExchangeError::BadAnswer(_)) => trial.failed(error, "malformed"),
            // It may be the workload that has gone, or the target that is slow.
            _ if code == TunnelCode::None => {}
            _ => trial.answered(),
        }
    }

    /// Why there is no answer of the target's.
    pub(super) fn refused(&self, error: &ExchangeError, decision: &TunnelDecision) -> Refused {
        let ExchangeError::Challenged(Challenge { reason, offers }) = error else {
            let who = format!("proxy {}, asked for {}", self.proxy, decision.target);
            return Refused::exchange(error, &who);
        };
        let refusal = Refusal::challenge(reason, offers.iter().map(AsRef::as_ref));
        let request = tunnel::Request {
            proxy: &self.proxy,
            target: &decision.target,
            headers: &[],
            span: &Span::none(),
        };
        Refused::tunnel(&TunnelError::not_forwarded(
            &request,
            self.endpoint.clone(),
            refusal,
        ))
    }
}
