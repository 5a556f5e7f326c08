//! Through further proxies, where a policy says so: the gateway as an egress gateway.

mod plan;
mod policy;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::access::{Record, Route};
use super::dial::{Asked, Dial, DialError, Dialing, Direct, allowed};
use super::followed::Followed;
use super::request::Wish;
use super::rules::{Forbidden, Rules};
use super::stream::Upstream;
use super::via::Pseudonym;
use crate::connection::in_order;
use crate::name::OriginalDst;
use crate::policy::{Fallback, HeaderContext, Policy, TargetSource, TunnelDecision};
use crate::tunnel::{Request, Time, Tunnel, Tunneler, originate};
use crate::workload::Workload;
use plan::{NOWHERE, Plan, Way};

pub use policy::follow_policy;

/// A policy that says which targets are reached through which proxies.
#[derive(Debug)]
pub struct Chain {
    /// The policy.
    pub policy: Arc<Followed<Policy>>,
    /// What opens its tunnels.
    pub tunneler: Tunneler,
}

/// Directly or through a proxy, as a policy says.
pub(super) struct Chained {
    pub(super) direct: Direct,
    pub(super) chain: Chain,
    /// Tells proxies, and so this gateway, who asked.
    pub(super) name: Pseudonym,
    /// The policy whose proxies the tunneler serves.
    served: Mutex<Option<Arc<Policy>>>,
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
    pub(super) fn new(direct: Direct, chain: Chain, name: Pseudonym) -> Self {
        Self {
            direct,
            chain,
            name,
            served: Mutex::default(),
        }
    }

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
        let plan = Plan::make(&self.policy(), asked.target, &addresses)?;
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
        let dst = OriginalDst(SocketAddr::new(addresses[0], asked.target.port));
        let ends_at_one = decision.source == TargetSource::OriginalDst;
        let may_pass = match unknown {
            None => {
                // The proxy resolves the name for itself.
                let ends = if ends_at_one { 1 } else { addresses.len() };
                for addr in &addresses[..ends] {
                    rules.judge_address(asked.permit, *addr, asked.target.port)?;
                }
                decision.fallback != Fallback::Refuse
            }
            Some(error) if ends_at_one => return Err(error),
            Some(_) if !asked.permit.by_host => return Err(Forbidden::NoRule.into()),
            Some(_) => false,
        };
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
        let tunneler = &self.chain.tunneler;
        let order = in_order(&decision.proxies, |proxy| tunneler.is_available(proxy));
        let mut left = order.len() as u32 + u32::from(may_pass);
        let mut failure = DialError::NoAddress;
        for proxy in order {
            let rendered = proxy
                .headers
                .iter()
                .filter_map(|field| field.render(&context));
            let mut fields = self.name.added_to(asked.fields, asked.version);
            fields.extend(rendered);
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            left -= 1;
            let request = Request {
                proxy,
                target: &decision.target,
                headers: &fields,
            };
            match self.open(&request, share, left > 0).await {
                Ok(tunnel) => {
                    record.proxy_said(proxy, Some(tunnel.code));
                    return self.finish(asked, decision, tunnel, deadline).await;
                }
                Err(error) => {
                    record.proxy_said(proxy, code(&error));
                    if !is_failure(&error) {
                        return Err(error);
                    }
                    tracing::info!(%error, "no tunnel through this proxy");
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    async fn open(
        &self,
        request: &Request<'_>,
        patience: Duration,
        has_others: bool,
    ) -> Result<Tunnel, DialError> {
        let time = Time {
            deadline: Instant::now() + patience,
            has_others,
        };
        let opening = self.chain.tunneler.open(request, time);
        match timeout(patience, opening).await {
            Ok(opened) => Ok(opened?),
            Err(_) => Err(DialError::ProxyTimeout {
                proxy: request.proxy.to_string(),
                time: patience,
            }),
        }
    }

    /// The policy in force. Its proxies are known from the first connection on that sees it.
    fn policy(&self) -> Arc<Policy> {
        let policy = self.chain.policy.current();
        let mut served = self.served.lock();
        if !served
            .as_ref()
            .is_some_and(|last| Arc::ptr_eq(last, &policy))
        {
            self.chain.tunneler.serve(policy.proxies());
            *served = Some(Arc::clone(&policy));
        }
        policy
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

/// What the proxy answered.
fn code(error: &DialError) -> Option<u16> {
    match error {
        DialError::Tunnel(error) => error.code(),
        _ => None,
    }
}

/// Whether the proxy could not, so that another may be asked. A refusal is its decision.
fn is_failure(error: &DialError) -> bool {
    match error {
        DialError::Tunnel(error) => error.refusal().is_none(),
        DialError::ProxyTimeout { .. } => true,
        _ => false,
    }
}
