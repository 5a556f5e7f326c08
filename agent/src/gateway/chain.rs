//! Through further proxies, where a policy says so: the gateway as an egress gateway.

mod plan;
mod policy;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::access::{Record, Route};
use super::dial::{Asked, Dial, DialError, Dialing, Direct, allowed};
use super::followed::{Followed, Refresh};
use super::metrics::GatewayMetrics;
use super::request::Wish;
use super::rules::{Forbidden, Rules};
use super::stream::Upstream;
use super::via::Pseudonym;
use crate::connection::in_order;
use crate::dns::Resolver;
use crate::name::OriginalDst;
use crate::policy::{Fallback, HeaderContext, Policy, TargetSource, TunnelDecision};
use crate::sockets::PlainSockets;
use crate::telemetry::metrics::ProxyMetrics;
use crate::telemetry::{Label, Reload, TunnelCode};
use crate::trace::Span;
use crate::tunnel::{Observer as _, Request, Time, Tunnel, TunnelConfig, Tunneler, originate};
use crate::workload::Workload;
use plan::{NOWHERE, Plan, Way};

pub use policy::follow_policy;

/// A policy that says which targets are reached through which proxies.
#[derive(Debug)]
pub struct Chain {
    policy: Followed<Policy>,
    tunneler: Tunneler,
    metrics: ProxyMetrics,
}

impl Chain {
    /// Has what `policy` leads through proxies be counted in `metrics`; a tunnel has to be there
    /// within `limits`.
    pub fn new(
        policy: Followed<Policy>,
        resolver: Resolver,
        limits: TunnelConfig,
        metrics: &GatewayMetrics,
    ) -> Self {
        let metrics = metrics.proxies().clone();
        let observer = Arc::new(metrics.clone());
        Self {
            policy,
            tunneler: Tunneler::new(Arc::new(PlainSockets), resolver, limits, observer),
            metrics,
        }
    }
}

impl Refresh for Chain {
    fn what(&self) -> &'static str {
        self.policy.what()
    }

    fn refresh(&self, forced: bool) -> Option<Reload> {
        let result = self.policy.refresh(forced);
        if matches!(result, Some(Reload::Success | Reload::Partial)) {
            self.serve_proxies();
        }
        result
    }
}

impl Chain {
    /// Has what is learnt of the policy's proxies be remembered.
    pub(super) fn serve_proxies(&self) {
        let policy = self.policy.current();
        for proxy in policy.proxies() {
            self.metrics.announce(&Label::of(proxy));
        }
        self.tunneler.serve(policy.proxies());
    }
}

/// Directly or through a proxy, as a policy says.
pub(super) struct Chained {
    pub(super) direct: Direct,
    pub(super) chain: Arc<Chain>,
    /// Tells proxies, and so this gateway, who asked.
    pub(super) name: Pseudonym,
}

impl Dial for Chained {
    fn dial<'a>(
        &'a self,
        rules: &'a Rules,
        asked: Asked<'a>,
        record: &'a mut Record,
    ) -> Dialing<'a> {
        Box::pin(self.reach(rules, asked, record))
    }
}

impl Chained {
    async fn reach(
        &self,
        rules: &Rules,
        asked: Asked<'_>,
        record: &mut Record,
    ) -> Result<Upstream, DialError> {
        let deadline = Instant::now() + self.direct.timeout;
        // Most of the time is for the proxies: there may be names that only they can resolve.
        let resolved = self.direct.resolve(asked, self.direct.timeout / 3).await;
        let (addresses, unknown) = match resolved {
            Ok(addresses) => (addresses, None),
            Err(error @ DialError::Forbidden(_)) => return Err(error),
            Err(error) => (vec![NOWHERE], Some(error)),
        };
        let plan = Plan::make(&self.chain.policy.current(), asked.target, &addresses)?;
        let decision = match plan.way {
            Way::Direct(policy) => {
                record.goes(Route::Direct, policy);
                if let Some(error) = unknown {
                    return Err(error);
                }
                let allowed = allowed(rules, asked, &plan.direct)?;
                return self
                    .direct
                    .connect(&allowed, asked.target.port, deadline)
                    .await;
            }
            Way::Tunnel(decision) => decision,
        };
        record.goes(Route::Tunnel, Some(Arc::clone(&decision.policy)));
        let is_known = unknown.is_none();
        judge(rules, asked, &decision, &addresses, unknown)?;
        let may_pass = is_known && decision.fallback != Fallback::Refuse;
        // A tunnel that is decided on was decided on for the first.
        let dst = OriginalDst(SocketAddr::new(addresses[0], asked.target.port));
        match self
            .tunnel(asked, &decision, dst, deadline, may_pass, record)
            .await
        {
            Ok(upstream) => Ok(upstream),
            Err(error) if may_pass && is_failure(&error) => {
                tracing::warn!(%error, "failureMode is open: going direct");
                record.goes(Route::Direct, Some(Arc::clone(&decision.policy)));
                let allowed = allowed(rules, asked, &plan.direct)?;
                self.direct
                    .connect(&allowed, asked.target.port, deadline)
                    .await
            }
            Err(error) => Err(error),
        }
    }

    /// Opens a tunnel through the first proxy that can, all within `deadline`: each has an equal
    /// share of the time that is left, and so has what comes after them.
    async fn tunnel(
        &self,
        asked: Asked<'_>,
        decision: &TunnelDecision,
        dst: OriginalDst,
        deadline: Instant,
        may_pass: bool,
        record: &mut Record,
    ) -> Result<Upstream, DialError> {
        let context = HeaderContext {
            workload: &Workload::default(),
            target: &decision.target,
            original_dst: dst,
        };
        let Chain {
            tunneler, metrics, ..
        } = &*self.chain;
        let order = in_order(&decision.proxies, |proxy| tunneler.is_available(proxy));
        let mut left = order.len() as u32 + u32::from(may_pass);
        let mut failure = DialError::NoAddress;
        let mut order = order.into_iter().peekable();
        while let Some(proxy) = order.next() {
            let mut fields = self.name.added_to(asked.fields, asked.version);
            fields.extend(proxy.headers_for(&context));
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            left -= 1;
            let request = Request {
                proxy,
                target: &decision.target,
                headers: &fields,
                span: &Span::none(),
            };
            let time = Time {
                deadline: Instant::now() + share,
                // They have theirs.
                has_others: false,
            };
            match tunneler.open(&request, time).await {
                Ok(tunnel) => {
                    record.proxy_said(proxy, tunnel.spoken, TunnelCode::Status(tunnel.code));
                    return self.finish(asked, decision, tunnel, deadline).await;
                }
                Err(error) => {
                    let code = error.code().map_or(TunnelCode::None, TunnelCode::Status);
                    record.proxy_said(proxy, error.spoken(), code);
                    tracing::info!(%error, "no tunnel through this proxy");
                    let (is_refused, reason) = (error.refusal().is_some(), error.reason());
                    failure = error.into();
                    if is_refused {
                        break;
                    }
                    if order.peek().is_some() {
                        metrics.retried(&proxy.to_string(), reason);
                    }
                }
            }
        }
        Err(failure)
    }

    /// Adds TLS with the target where the policy wants it and the client speaks none: what it asks
    /// to be forwarded is plain HTTP. What goes through a tunnel of its own is not looked at.
    async fn finish(
        &self,
        asked: Asked<'_>,
        decision: &TunnelDecision,
        tunnel: Tunnel,
        deadline: Instant,
    ) -> Result<Upstream, DialError> {
        let Tunnel { stream, early, .. } = tunnel;
        let (Wish::Forward, Some(tls)) = (asked.wish, &decision.tls) else {
            return Ok(Upstream { stream, early });
        };
        let stream = originate(stream, early, &tls.client, &tls.name, deadline).await?;
        let early = Bytes::new();
        Ok(Upstream { stream, early })
    }
}

/// Whether a tunnel may be asked for. What is not known here is the proxy's to judge, but not what
/// is; and it resolves a name for itself.
fn judge(
    rules: &Rules,
    asked: Asked<'_>,
    decision: &TunnelDecision,
    addresses: &[IpAddr],
    unknown: Option<DialError>,
) -> Result<(), DialError> {
    let is_to_address = decision.source == TargetSource::OriginalDst;
    match unknown {
        Some(error) if is_to_address => return Err(error),
        Some(_) if !asked.permit.by_host => return Err(Forbidden::NoRule.into()),
        Some(_) => return Ok(()),
        None => {}
    }
    let ends = if is_to_address { 1 } else { addresses.len() };
    for addr in &addresses[..ends] {
        rules.judge_address(asked.permit, *addr, asked.target.port)?;
    }
    Ok(())
}

/// Whether no proxy could be reached. A refusal is its decision.
fn is_failure(error: &DialError) -> bool {
    matches!(error, DialError::Tunnel(error) if error.refusal().is_none())
}
