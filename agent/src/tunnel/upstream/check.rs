//! Asking an endpoint for a tunnel now and then, so that one that fails is found out before a
//! workload needs it, and one that is back is used again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::{Turn, Upstream};
use crate::name::OriginalDst;
use crate::policy::{Check, HeaderContext, Proxy};
use crate::trace::Span;
use crate::tunnel::{Attempt, Cause, Request};
use crate::workload::Workload;

/// How long one may take.
const LONGEST: Duration = Duration::from_secs(10);

/// Checks each endpoint of `upstream`, as `proxy` has it, until the upstream is gone or policy has
/// another proxy in its place.
pub(super) fn start(upstream: &Arc<Upstream>, proxy: &Arc<Proxy>) {
    let Some(check) = &proxy.check else {
        return;
    };
    for index in 0..upstream.endpoints.len() {
        let (upstream, proxy) = (Arc::downgrade(upstream), Arc::clone(proxy));
        tokio::spawn(go_on(upstream, index, proxy, Arc::clone(check)));
    }
}

async fn go_on(upstream: Weak<Upstream>, index: usize, proxy: Arc<Proxy>, check: Arc<Check>) {
    // Agents that were started together do not all ask at once.
    sleep(check.interval.mul_f64(fastrand::f64())).await;
    while let Some(upstream) = upstream.upgrade() {
        let now = upstream.renewed.lock().clone();
        if now.is_none_or(|now| !Arc::ptr_eq(&now, &proxy)) {
            return;
        }
        let begin = Instant::now();
        once(upstream.visit(index), &proxy, &check).await;
        drop(upstream);
        sleep(check.interval.saturating_sub(begin.elapsed())).await;
    }
}

/// Asks the endpoint for a tunnel to the target of the check. Whatever opens one is well, and what
/// says that it cannot serve that target is not; one that will not let us in is well, too, and was
/// asked the wrong thing.
async fn once(turn: Turn, proxy: &Arc<Proxy>, check: &Check) {
    let context = HeaderContext {
        workload: &Workload::default(),
        target: &check.target,
        original_dst: OriginalDst(([192, 0, 0, 8], check.target.port).into()),
    };
    let headers = proxy.headers_for(&context);
    let request = Request {
        proxy,
        target: &check.target,
        headers: &headers,
        span: &Span::none(),
    };
    let deadline = Instant::now() + LONGEST.min(check.interval);
    let mut attempt = Attempt::default();
    let asking = turn.ask(&request, deadline, &mut attempt);
    let asked = match timeout_at(deadline, asking).await {
        Ok(asked) => asked,
        Err(_) => Err(Cause::CheckTimeout),
    };
    let endpoint = Arc::clone(turn.endpoint());
    let Err(cause) = asked else {
        endpoint.observer.checked(&endpoint.place, true);
        return turn.worked(attempt.address);
    };
    if cause.is_our_own() {
        return;
    }
    let will_not = cause.refusal().is_some() && !cause.retryable();
    endpoint.observer.checked(&endpoint.place, will_not);
    if will_not {
        let place = &endpoint.place;
        tracing::warn!(
            proxy = %place.proxy,
            endpoint = %place.endpoint,
            target = %check.target,
            error = %cause,
            "the endpoint answers, and refuses what it is checked with"
        );
        turn.worked(attempt.address);
    } else {
        turn.failed(&cause, attempt.address, &mut super::Tried::default());
    }
}
