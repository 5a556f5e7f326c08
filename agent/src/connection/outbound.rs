//! From the decision to the end: through a proxy or direct, and the relay.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::{Arrived, Failure, StandsFor, Way};
use crate::circuit::{Circuit, Leads, Outcome, Place, Refusal};
use crate::dns::first_success;
use crate::name::OriginalDst;
use crate::policy::{
    self, Facts, Fallback, PlainHttp, Proxy, RankedProxy, TargetPolicy, TunnelDecision,
};
use crate::relay::{RelayError, Shared, Timeouts, Traffic, broken, relay};
use crate::sockets::Carrier;
use crate::telemetry::{
    self, ConnectionRecord, Label, ResponseFlag, TargetLimit, TunnelCode, TunnelLog,
};
use crate::tls::TlsError;
use crate::trace::{Kind, Span};
use crate::tunnel::{
    self, Line, Observer as _, Tunnel, TunnelError, Tunneler, originate, shuffled,
};

/// Stands for no bound at all.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// For TLS with the target, once the tunnel is open.
pub(super) const ORIGINATION_DEADLINE: Duration = Duration::from_secs(10);

impl Way {
    pub(super) async fn direct(
        &self,
        (dst, host): (OriginalDst, Option<StandsFor<'_>>),
        bytes: Bytes,
        target: Option<&Arc<TargetPolicy>>,
        record: &mut ConnectionRecord,
    ) -> Result<Open, Failure> {
        let circuit = self.circuits.of(target, Leads::Direct(dst.0));
        let attempt = circuit.attempt().map_err(refused)?;
        let place = circuit.connection().map_err(refused)?;
        let time = within(self.direct_deadline, &circuit);
        let connecting = timeout(time, self.dial(dst, host));
        let stream = match record.span().around("direct", connecting).await {
            Ok(Ok(stream)) => stream.into(),
            Ok(Err(error)) => {
                attempt.ended(Outcome::Failed);
                return Err(Failure::new(
                    ResponseFlag::UpstreamFailure,
                    format!("cannot connect directly to {dst}: {error}"),
                ));
            }
            Err(_) => {
                attempt.ended(Outcome::Failed);
                return Err(Failure::new(
                    ResponseFlag::UpstreamTimeout,
                    format!("no answer from {dst} within {time:?}"),
                ));
            }
        };
        attempt.ended(Outcome::Connected);
        Ok(Open {
            stream,
            early: (bytes, Bytes::new()),
            timeouts: self.patience_with(&circuit),
            _place: place,
        })
    }

    /// Connects past every proxy: to the address, or to where the host really is that it stands for.
    pub(super) async fn dial(
        &self,
        dst: OriginalDst,
        host: Option<StandsFor<'_>>,
    ) -> io::Result<TcpStream> {
        match host {
            None => self.sockets.connect(dst.0).await,
            // Seldom, so it takes no room in a connection.
            Some(stands_for) => Box::pin(self.dial_host(stands_for, dst.port())).await,
        }
    }

    async fn dial_host(
        &self,
        StandsFor { host, from }: StandsFor<'_>,
        port: u16,
    ) -> io::Result<TcpStream> {
        let found = self.resolver.lookup(host).await.map_err(io::Error::other)?;
        // The resolver's servers could say so of a name as well.
        let policy = self.policy.load_full();
        let addrs = found.addrs.into_iter();
        let addrs: Vec<_> = addrs.filter(|addr| !policy.is_virtual(*addr)).collect();
        let connect = |addr| {
            // Who owns the name says where it is. On the node, loopback and what is near it are not the
            // workload's.
            let sockets = match policy.is_internal(addr) {
                true => self.sockets_at(from),
                false => &self.sockets,
            };
            sockets.connect(SocketAddr::new(addr, port))
        };
        first_success(addrs, tunnel::HEAD_START, connect)
            .await
            .map_err(|errors| {
                let error = errors.into_iter().next();
                error.unwrap_or_else(|| io::Error::other(format!("`{host}` has no address")))
            })
    }

    pub(super) async fn tunnel(
        &self,
        arrived: Arrived,
        decision: &TunnelDecision,
        target: Option<&Arc<TargetPolicy>>,
        facts: &mut Facts,
        record: &mut ConnectionRecord,
    ) -> Result<Open, Failure> {
        record.target(decision.target.clone(), target_source(decision.source));
        let leads = Leads::Tunnel(decision.target.clone());
        let circuit = self.circuits.of(target, leads);
        let attempt = circuit.attempt().map_err(refused)?;
        let place = circuit.connection().map_err(refused)?;
        let pending = self
            .admission
            .begin_tunnel()
            .map_err(|refusal| self.over(refusal))?;
        let until = until(&circuit);
        let opened = Box::pin(self.open(&arrived, decision, until, record)).await;
        let tunnel = match opened {
            Ok(opened) => opened,
            Err(error) => {
                drop(pending);
                if is_of_target(&error) {
                    attempt.ended(Outcome::Failed);
                }
                // A refusal is the proxy's decision, not its failure.
                let may_pass = error.refusal().is_none() && self.may_pass(decision, facts).await;
                if !may_pass {
                    return Err(Failure::new(flag(&error), error));
                }
                tracing::warn!(%error, "failureMode is open: going direct");
                let by = Some(Label::shared(&decision.policy));
                let rule = Some(Label::fixed(
                    "the proxy cannot be reached: failureMode: open",
                ));
                record.decided(telemetry::Decision::Direct, by, rule);
                let host = StandsFor::new(arrived.host.as_ref(), arrived.from.as_ref());
                let to = (arrived.dst, host);
                let direct = self.direct(to, arrived.bytes, target, record);
                return Box::pin(direct).await;
            }
        };
        let Tunnel {
            mut stream,
            mut early,
            ..
        } = tunnel;
        if let Some(tls) = decision.tls.as_ref().filter(|_| !arrived.speaks_tls) {
            let deadline = Instant::now() + ORIGINATION_DEADLINE;
            let deadline = until.map_or(deadline, |until| until.min(deadline));
            let early = std::mem::take(&mut early);
            let originating = originate(stream, early, &tls.client, &tls.name, deadline);
            let originating = Box::pin(originating);
            let span = record.span();
            let originated = span.attempt("originate", originating, TlsError::reason);
            stream = match originated.await {
                Ok(stream) => stream,
                Err(error) => {
                    attempt.ended(Outcome::Failed);
                    let error = format!("TLS with {}: {error}", decision.target);
                    return Err(Failure::new(ResponseFlag::UpstreamFailure, error));
                }
            };
        }
        drop(pending);
        attempt.ended(Outcome::Connected);
        Ok(Open {
            stream,
            early: (arrived.bytes, early),
            timeouts: self.patience_with(&circuit),
            _place: place,
        })
    }

    /// Opens a tunnel through the first proxy that can, `until` then at the latest. Nothing of the
    /// workload has been sent to any before.
    pub(super) async fn open(
        &self,
        arrived: &Arrived,
        decision: &TunnelDecision,
        until: Option<Instant>,
        record: &mut impl TunnelLog,
    ) -> Result<Tunnel, TunnelError> {
        let tunneler = self.tunneler.from(arrived.from.as_ref());
        let mut turns = self.turns(&tunneler, decision, until);
        loop {
            let turn = turns.next(decision, record);
            match open_at(&tunneler, &turn, arrived, decision, record).await {
                Ok(tunnel) => return Ok(tunnel),
                Err(error) => turns.failed(turn, error, record)?,
            }
        }
    }

    /// As [`open`](Self::open), for a request that a proxy may get as it is: where policy has it
    /// so, the way ends at the proxy.
    pub(super) async fn open_or_connect(
        &self,
        arrived: &Arrived,
        decision: &TunnelDecision,
        until: Option<Instant>,
        record: &mut impl TunnelLog,
    ) -> Result<Opened, TunnelError> {
        let tunneler = self.tunneler.from(arrived.from.as_ref());
        let mut turns = self.turns(&tunneler, decision, until);
        loop {
            let turn = turns.next(decision, record);
            let proxy = turn.proxy;
            let opened = match proxy.plain_http {
                PlainHttp::Connect => open_at(&tunneler, &turn, arrived, decision, record)
                    .await
                    .map(Opened::Tunnel),
                PlainHttp::AbsoluteForm => {
                    let request = tunnel::Request {
                        proxy,
                        target: &decision.target,
                        headers: &[],
                        span: &turn.span,
                    };
                    let line = tunneler.connect(&request, turn.time).await;
                    line.map(|line| {
                        record.endpoint(endpoint(proxy, line.endpoint.as_ref()));
                        Opened::Line(Arc::clone(proxy), line)
                    })
                }
            };
            match opened {
                Ok(opened) => return Ok(opened),
                Err(error) => turns.failed(turn, error, record)?,
            }
        }
    }

    fn turns<'a>(
        &'a self,
        tunneler: &Tunneler,
        decision: &'a TunnelDecision,
        until: Option<Instant>,
    ) -> Turns<'a> {
        let deadline = tunneler.deadline();
        Turns {
            way: self,
            order: in_order(&decision.proxies, |proxy| tunneler.is_available(proxy)),
            tried: 0,
            deadline: until.map_or(deadline, |until| until.min(deadline)),
        }
    }

    /// Whether a connection without a tunnel may go to its original destination.
    pub(super) async fn may_pass(&self, decision: &TunnelDecision, facts: &mut Facts) -> bool {
        match decision.fallback {
            Fallback::Direct => true,
            Fallback::DirectIfVerified => Box::pin(self.verify(facts)).await,
            Fallback::Refuse => false,
        }
    }

    /// How long a connection may be idle, if policy says something else of its target.
    pub(super) fn patience_with(&self, circuit: &Circuit) -> Timeouts {
        let idle = circuit
            .settings()
            .and_then(|settings| settings.idle_timeout);
        match idle {
            None => self.relay,
            Some(idle) => {
                let idle = idle.unwrap_or(FOR_EVER);
                Timeouts {
                    idle,
                    half_closed: self.relay.half_closed.min(idle),
                }
            }
        }
    }
}

/// A way to the target that stands.
pub(super) struct Open {
    pub(super) stream: tunnel::Stream,
    /// What has been read already, of the workload and of the target.
    pub(super) early: (Bytes, Bytes),
    pub(super) timeouts: Timeouts,
    /// Among the connections of the target, as long as it stands.
    pub(super) _place: Place,
}

/// Relays bytes until both sides have ended. Of an idle connection there is little more than this,
/// so it has no room for anything twice: it is no `async fn`, which has that for its arguments, and
/// `select!` is given what has been pinned before.
#[expect(
    clippy::manual_async_fn,
    reason = "an `async fn` holds its arguments twice"
)]
pub(super) fn relaying<'a>(
    workload: &'a TcpStream,
    mut open: Open,
    record: &'a mut ConnectionRecord,
) -> impl Future<Output = Result<(), Failure>> + Send + use<'a> {
    async move {
        open.stream.abort_on_drop();
        let traffic = Arc::new(Traffic::default());
        record.established(Arc::clone(&traffic) as _);
        let (to_upstream, to_workload) = std::mem::take(&mut open.early);
        let end = {
            let mut near = Shared(workload);
            let mut relaying = pin!(relay(
                &mut near,
                &mut open.stream,
                to_upstream,
                to_workload,
                &open.timeouts,
                &traffic,
            ));
            let mut broken = pin!(broken(workload));
            tokio::select! {
                biased;
                end = &mut relaying => end,
                error = &mut broken => Err(RelayError::Workload(error)),
            }
        };
        if end.is_ok() {
            open.stream.finish_on_drop();
        }
        drop(open);
        match end {
            Ok(()) => Ok(()),
            Err(error) => {
                let flag = match &error {
                    RelayError::HalfClosed | RelayError::Idle => ResponseFlag::Idle,
                    RelayError::Upstream(_) => ResponseFlag::UpstreamClosed,
                    RelayError::Workload(_) => ResponseFlag::DownstreamClosed,
                };
                Err(Failure::new(flag, error))
            }
        }
    }
}

async fn open_at(
    tunneler: &Tunneler,
    turn: &Turn<'_>,
    arrived: &Arrived,
    decision: &TunnelDecision,
    record: &mut impl TunnelLog,
) -> Result<Tunnel, TunnelError> {
    let proxy = turn.proxy;
    let headers = proxy.headers_for(&arrived.context(decision));
    let request = tunnel::Request {
        proxy,
        target: &decision.target,
        headers: &headers,
        span: &turn.span,
    };
    let tunnel = tunneler.open(&request, turn.time).await?;
    record.endpoint(endpoint(proxy, tunnel.endpoint.as_ref()));
    record.answered(tunnel.spoken.into(), TunnelCode::Status(tunnel.code));
    Ok(tunnel)
}

/// A limit of the target was reached.
fn refused(refusal: Refusal) -> Failure {
    Failure::new(flag_of_limit(refusal.limit), refusal)
}

/// The flag of what policy does not allow at a target.
pub(super) fn flag_of_limit(limit: TargetLimit) -> ResponseFlag {
    match limit {
        TargetLimit::Ejected => ResponseFlag::Unhealthy,
        TargetLimit::Connections
        | TargetLimit::PendingRequests
        | TargetLimit::Requests
        | TargetLimit::Retries => ResponseFlag::Overflow,
    }
}

/// Until when there must be a connection, if policy says so.
pub(super) fn until(circuit: &Circuit) -> Option<Instant> {
    let time = circuit.settings()?.connect_timeout?;
    Some(Instant::now() + time)
}

/// How long connecting may take, if policy does not say less.
pub(super) fn within(time: Duration, circuit: &Circuit) -> Duration {
    let settings = circuit.settings();
    let own = settings.and_then(|settings| settings.connect_timeout);
    own.map_or(time, |own| own.min(time))
}

/// Whether the target is to blame for a tunnel that could not be opened, as far as can be told: the
/// proxy says that it cannot reach it, or does not answer in time.
pub(super) fn is_of_target(error: &TunnelError) -> bool {
    matches!(error.code(), Some(502..=504)) || error.reason() == "connect_timeout"
}

pub(super) fn target_source(source: policy::TargetSource) -> telemetry::TargetSource {
    match source {
        policy::TargetSource::Dns => telemetry::TargetSource::Dns,
        policy::TargetSource::Explicit => telemetry::TargetSource::Explicit,
        policy::TargetSource::HttpHost => telemetry::TargetSource::HttpHost,
        policy::TargetSource::OriginalDst => telemetry::TargetSource::OriginalDst,
        policy::TargetSource::ServiceEntry => telemetry::TargetSource::Declared,
        policy::TargetSource::Sni => telemetry::TargetSource::Sni,
        policy::TargetSource::VirtualAddress => telemetry::TargetSource::VirtualAddress,
    }
}

/// What a request goes on.
pub(super) enum Opened {
    /// To a proxy that gets the request itself.
    Line(Arc<Proxy>, Line),
    /// To the target.
    Tunnel(Tunnel),
}

/// The proxies of a decision, one after the other, within one deadline.
struct Turns<'a> {
    way: &'a Way,
    order: Vec<&'a Arc<Proxy>>,
    tried: usize,
    deadline: Instant,
}

/// A proxy that is tried.
struct Turn<'a> {
    proxy: &'a Arc<Proxy>,
    time: tunnel::Time,
    span: Span,
}

impl<'a> Turns<'a> {
    /// The proxy whose turn it is; there is one, unless the last one [failed](Self::failed).
    fn next(&mut self, decision: &TunnelDecision, record: &mut impl TunnelLog) -> Turn<'a> {
        let proxy = self.order[self.tried];
        self.tried += 1;
        record.proxy(Label::shared(proxy.label()));
        let time = tunnel::Time {
            deadline: self.deadline,
            has_others: self.tried < self.order.len(),
        };
        let mut span = record.span().child("tunnel", Kind::Internal);
        span.text("underpass.proxy", Some(proxy));
        span.text("underpass.target", Some(&decision.target));
        Turn { proxy, time, span }
    }

    /// The proxy that was tried gave nothing. Gives the error back if no other is to be tried.
    fn failed(
        &self,
        turn: Turn<'_>,
        error: TunnelError,
        record: &mut impl TunnelLog,
    ) -> Result<(), TunnelError> {
        let Turn {
            proxy, mut span, ..
        } = turn;
        span.failed(error.reason(), &error);
        record.endpoint(endpoint(proxy, error.endpoint()));
        let code = error.code().map_or(TunnelCode::None, TunnelCode::Status);
        record.answered(error.spoken().into(), code);
        if self.tried == self.order.len() || error.refusal().is_some() {
            return Err(error);
        }
        let metrics = &self.way.metrics;
        metrics.proxy.retried(proxy.label(), error.reason());
        tracing::info!(%error, "trying the next proxy");
        Ok(())
    }
}

/// The flag of a tunnel that could not be opened.
pub(super) fn flag(error: &TunnelError) -> ResponseFlag {
    match error.reason() {
        "auth_required" | "refused" => ResponseFlag::Connect,
        "connect_timeout" | "dial_timeout" | "ping_timeout" | "pool_timeout"
        | "settings_timeout" | "tcp_timeout" | "tls_timeout" => ResponseFlag::UpstreamTimeout,
        "malformed" | "no_http2" => ResponseFlag::UpstreamProtocol,
        "pool_busy" | "too_many_connections" | "too_many_pending" => ResponseFlag::Overflow,
        _ => ResponseFlag::UpstreamFailure,
    }
}

/// The label of the endpoint that was tried; the proxy itself where it came to none.
fn endpoint(proxy: &Proxy, endpoint: Option<&Arc<str>>) -> Label {
    match endpoint {
        Some(endpoint) => Label::shared(endpoint),
        None => Label::shared(proxy.label()),
    }
}

/// The proxies in the order in which they are to be tried: by priority, and among those of one
/// priority by chance, according to their weights; those last that keep failing.
pub(crate) fn in_order(
    proxies: &[RankedProxy],
    is_available: impl Fn(&Arc<Proxy>) -> bool,
) -> Vec<&Arc<Proxy>> {
    if let [only] = proxies {
        return vec![&only.proxy];
    }
    let groups = proxies.chunk_by(|a, b| a.priority == b.priority);
    let order = groups.flat_map(|group| shuffled(group, |ranked| ranked.weight));
    let (mut order, failing): (Vec<_>, Vec<_>) = order
        .map(|ranked| &ranked.proxy)
        .partition(|proxy| is_available(proxy));
    order.extend(failing);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_tried_by_priority_then_by_weight() {
        let ranked = |name: &str, priority, weight| RankedProxy {
            proxy: Arc::new(Proxy::plain(name.parse().unwrap(), 3128)),
            priority,
            weight,
        };
        let proxies = [
            ranked("a.test", 0, 3),
            ranked("b.test", 0, 1),
            ranked("last.test", 7, 60000),
        ];
        let mut first = 0;
        for _ in 0..4000 {
            let order = in_order(&proxies, |_| true);
            let names: Vec<_> = order.iter().map(|proxy| proxy.host.to_string()).collect();
            assert_eq!(names.len(), 3);
            assert_eq!(names[2], "last.test");
            assert_ne!(names[0], names[1]);
            first += u32::from(names[0] == "a.test");
        }
        // Three quarters, give or take more than chance ever will.
        assert!((2700..3300).contains(&first), "{first}");

        let order = in_order(&proxies, |proxy| proxy.host.to_string() != "a.test");
        let names: Vec<_> = order.iter().map(|proxy| proxy.host.to_string()).collect();
        assert_eq!(names, ["b.test", "last.test", "a.test"]);
    }
}
