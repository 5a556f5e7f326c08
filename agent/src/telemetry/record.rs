//! The record of one connection.

use std::fmt::Display;
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tracing::Level;
use tracing::field;

use crate::name::{OriginalDst, Target};
use crate::telemetry::connections::{ByteCounts, Connection, Relay, State};
use crate::telemetry::label::{Destination, Label, Workload};
use crate::telemetry::metrics::{ActiveGuard, ByteSeries, Metrics, target_values};
use crate::telemetry::outcome::{
    Decision, Deduction, DenyReason, Inspection, ResponseFlag, TargetSource, TunnelCode,
    TunnelProtocol,
};
use crate::telemetry::text::printable;
use crate::telemetry::trail::{Told, Trail};
use crate::trace::{Span, Tracer};
use crate::workload;

/// The tracing target of the access log.
pub const ACCESS_LOG: &str = "underpass::access";

/// Bytes of an error in the log.
pub(super) const MAX_ERROR: usize = 512;

/// One accepted connection, from accept to its end.
///
/// It is filled on the way. While it lives it stands in the
/// [`ConnectionTable`](crate::telemetry::ConnectionTable); when it is dropped, in whatever way the
/// connection ended, it writes one line to the access log, counts the rest of its bytes, and
/// counts the connection as closed. Unless [`finished`](Self::finished), [`failed`](Self::failed)
/// or [`denied`](Self::denied) said how it ended, the agent itself ended it (a task that was
/// aborted or panicked), and that is what is recorded.
///
/// Drop it after the relay has counted its last byte.
pub struct ConnectionRecord {
    metrics: Arc<Metrics>,
    connection: Arc<Connection>,
    tunnel: Option<ActiveGuard>,
    /// Whether its requests are recorded, and not the connection.
    by_request: bool,
    trail: Trail,
}

/// What is told of the tries to open a tunnel.
pub trait TunnelLog {
    /// The proxy it goes through.
    fn proxy(&mut self, proxy: Label);

    /// The endpoint of the proxy that is tried, as it is configured.
    fn endpoint(&mut self, endpoint: Label);

    /// The proxy answered CONNECT, or did not. Counted at once, once per call, so that a refusal
    /// shows when it happens; the access log has the last one.
    fn answered(&mut self, protocol: TunnelProtocol, code: TunnelCode);

    /// The span below which the tries stand.
    fn span(&mut self) -> &Span;
}

impl ConnectionRecord {
    /// A connection from `src` was accepted now.
    pub fn begin(metrics: &Arc<Metrics>, src: SocketAddr) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            connection: metrics.connections().insert(src),
            tunnel: None,
            by_request: false,
            trail: Trail::default(),
        }
    }

    /// What it does is recorded by `tracer` as well; it was accepted then. To be called before
    /// anything else.
    pub fn traced(&mut self, tracer: &Tracer, accepted: Instant) {
        self.trail = Trail::new(tracer.clone(), accepted, self.src());
    }

    /// Its spans, for whoever records its requests.
    pub fn trail(&mut self) -> &mut Trail {
        &mut self.trail
    }

    /// Its first bytes were waited for since `start`, and are this.
    pub fn inspected(&mut self, start: Instant, what: Inspection) {
        self.metrics.policy.inspected(what);
        self.trail.inspected(start, what);
    }

    /// Identifies the connection in the life of the agent.
    pub fn id(&self) -> u64 {
        self.connection.id
    }

    /// The workload's end as the listener saw it.
    pub fn src(&self) -> SocketAddr {
        self.connection.src
    }

    /// Where the workload was going, and what the kernel side kept about it.
    pub fn captured(&mut self, original_dst: OriginalDst, pid: Option<u32>, cgroup: Option<u64>) {
        self.update(|state| {
            state.original_dst = Some(original_dst);
            state.pid = pid;
            state.cgroup = cgroup;
        });
        let (pid, cgroup) = (pid.unwrap_or_default(), cgroup.unwrap_or_default());
        self.trail.captured(original_dst, pid, cgroup);
    }

    /// Who the workload is; before [`established`](Self::established), or it comes too late for
    /// the labels.
    pub fn workload(&mut self, labels: Arc<Workload>, who: Arc<workload::Workload>) {
        self.update(|state| {
            state.workload = labels;
            state.who = who;
        });
    }

    /// The declared host that the connection goes to; before [`established`](Self::established),
    /// or it comes too late for the labels. Without it: `PassthroughCluster`.
    pub fn destination(&mut self, destination: Destination) {
        self.update(|state| state.destination = destination);
    }

    /// What was decided, by which policy object, and which rule in it.
    pub fn decided(&mut self, decision: Decision, policy: Option<Label>, rule: Option<Label>) {
        self.update(|state| {
            state.decision = Some(decision);
            state.policy = policy;
            state.rule = rule;
        });
    }

    /// What the tunnel is asked for, and where that was found.
    pub fn target(&mut self, target: Target, source: TargetSource) {
        self.metrics.policy.deduced(source, Deduction::Found);
        self.update(|state| {
            state.target = Some(target);
            state.target_source = Some(source);
        });
    }

    /// From now on the connection is served, and `bytes` counts. What failed before (another
    /// endpoint) is forgotten: the log tells how the connection ended.
    pub fn established(&mut self, bytes: Arc<dyn ByteCounts>) {
        let mut state = self.connection.state.lock();
        state.flag = None;
        state.error = None;
        let state = &mut *state;
        self.metrics.target.opened(&target_values(
            &state.workload,
            &state.destination,
            ResponseFlag::None,
        ));
        let series = self.series(state, ResponseFlag::None);
        state.relay = Some(Relay::new(bytes, series));
    }

    /// It was served and ended in order.
    pub fn finished(&mut self) {
        self.update(|state| state.flag = Some(ResponseFlag::None));
    }

    /// It failed, or ended out of order. The last call before the drop counts. `error` is escaped
    /// and cut, so it may hold what the network sent.
    pub fn failed(&mut self, flag: ResponseFlag, error: &dyn Display) {
        let error = printable(error, MAX_ERROR);
        self.update(|state| {
            state.flag = Some(flag);
            state.error = Some(error.into());
        });
    }

    /// Policy refuses it.
    pub fn denied(&mut self, reason: DenyReason, error: &dyn Display) {
        self.failed(ResponseFlag::Deny, error);
        self.update(|state| {
            state.decision = Some(Decision::Deny);
            state.denied = Some(reason);
        });
    }

    /// It carries HTTP, and each request has a [`RequestRecord`](super::RequestRecord): what
    /// becomes of the connection itself is neither logged nor counted.
    pub fn by_request(&mut self) {
        self.by_request = true;
    }

    /// Where its requests show what they do.
    pub fn live(&self) -> Live {
        Live {
            metrics: Arc::clone(&self.metrics),
            connection: Arc::clone(&self.connection),
        }
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.connection.state.lock());
    }

    fn series(&self, state: &State, flag: ResponseFlag) -> ByteSeries {
        self.metrics.bytes.series(
            &state.workload,
            &state.destination,
            flag,
            state.proxy.as_ref(),
        )
    }
}

impl TunnelLog for ConnectionRecord {
    fn proxy(&mut self, proxy: Label) {
        self.update(|state| state.proxy = Some(proxy));
    }

    fn endpoint(&mut self, endpoint: Label) {
        self.update(|state| state.endpoint = Some(endpoint));
    }

    fn answered(&mut self, protocol: TunnelProtocol, code: TunnelCode) {
        let mut state = self.connection.state.lock();
        state.protocol = Some(protocol);
        state.code = Some(code);
        let proxy = state.proxy.clone().unwrap_or_default();
        let policy = state.policy.clone().unwrap_or_default();
        drop(state);
        self.metrics.proxy.answered(&proxy, &policy, protocol, code);
        self.tunnel = code
            .is_success()
            .then(|| self.metrics.proxy.tunnel(&proxy, protocol));
    }

    fn span(&mut self) -> &Span {
        self.trail.span()
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        self.tunnel = None;
        self.metrics.connections().remove(self.connection.id);
        if self.by_request {
            return;
        }
        // Taken out whole: a scrape that still holds the connection finds nothing left to count,
        // and no lock is held while the line is written.
        let mut state = mem::take(&mut *self.connection.state.lock());
        let flag = state.flag.unwrap_or_else(|| {
            state.error = Some("ended by the agent".into());
            ResponseFlag::LocalReset
        });
        let values = target_values(&state.workload, &state.destination, flag);
        let (sent, received) = match state.relay.take() {
            Some(relay) if flag == ResponseFlag::None => relay.finish(None),
            Some(relay) => relay.finish(Some(self.series(&state, flag))),
            None => {
                self.metrics.target.opened(&values);
                (0, 0)
            }
        };
        self.metrics.target.closed(&values);
        if let Some(reason) = state.denied {
            let policy = state.policy.clone().unwrap_or_default();
            self.metrics.policy.denied(&policy, reason);
        }
        log_access(&self.connection, &state, flag, sent, received);
        let told = Told {
            target: state.target.as_ref().zip(state.target_source),
            decision: state.decision,
            policy: state.policy.as_ref(),
            proxy: state.proxy.as_ref(),
            endpoint: state.endpoint.as_ref(),
            protocol: state.protocol,
            code: state.status(),
            flag,
            error: state.error.as_deref(),
            sent,
            received,
        };
        let span = self.trail.span();
        if let Some(target) = &state.target {
            span.text("server.address", Some(&target.host));
            span.number("server.port", i64::from(target.port));
        }
        told.to(span);
    }
}

/// Shows on a connection that carries HTTP what its requests do, for the
/// [`ConnectionTable`](crate::telemetry::ConnectionTable). Clones show on the same.
#[derive(Clone)]
pub struct Live {
    metrics: Arc<Metrics>,
    connection: Arc<Connection>,
}

impl Live {
    /// What was decided about a request; that about the last one is shown.
    pub fn serves(
        &self,
        decision: Decision,
        policy: Option<Label>,
        target: Option<(Target, TargetSource)>,
    ) {
        let (target, source) = target.unzip();
        let mut state = self.connection.state.lock();
        state.decision = Some(decision);
        state.policy = policy;
        state.target = target;
        state.target_source = source;
    }

    /// From now on a request moves these bytes, through a proxy if there is one; `grpc` is where
    /// its messages are counted. It is over when what is given back is dropped.
    pub(super) fn moves(
        &self,
        bytes: Arc<dyn ByteCounts>,
        proxy: Option<&Label>,
        grpc: Option<(&Workload, &Destination)>,
    ) -> Moving {
        let series = self.metrics.bytes.of_requests(proxy, grpc);
        let mut state = self.connection.state.lock();
        state.proxy = proxy.cloned();
        let number = state.moves(Relay::from_now(bytes, series));
        drop(state);
        Moving {
            connection: Arc::clone(&self.connection),
            number,
        }
    }
}

/// A request that moves bytes.
#[must_use = "it counts as over when this is dropped"]
pub struct Moving {
    connection: Arc<Connection>,
    number: u64,
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.connection.state.lock().rests(self.number);
    }
}

/// Writes the line; fields that are not known are absent. What configuration or the network gave
/// is a string, which the text format quotes; the rest cannot hold a blank and stands bare.
fn log_access(
    connection: &Connection,
    state: &State,
    flag: ResponseFlag,
    sent: u64,
    received: u64,
) {
    macro_rules! line {
        ($level:expr) => {
            tracing::event!(
                target: ACCESS_LOG,
                $level,
                src.addr = field::display(connection.src),
                src.pid = state.pid,
                src.cgroup = state.cgroup,
                src.namespace = state.who.namespace.as_deref(),
                src.pod = state.who.name.as_deref(),
                src.container = state.who.container_id(),
                original_dst = state.original_dst.map(field::display),
                target = state.target.as_ref().map(field::display),
                target.source = state.target_source.map(field::display),
                proxy = state.proxy.as_ref().map(Label::as_str),
                proxy.endpoint = state.endpoint.as_ref().map(Label::as_str),
                tunnel.protocol = state.protocol.map(field::display),
                tunnel.code = state.status(),
                decision = state.decision.map(field::display),
                policy = state.policy.as_ref().map(Label::as_str),
                bytes_sent = sent,
                bytes_received = received,
                duration_ms = connection.age_ms(),
                flags = (flag != ResponseFlag::None).then_some(field::display(flag)),
                error = state.error.as_deref(),
                "connection complete"
            )
        };
    }
    if flag == ResponseFlag::None {
        line!(Level::INFO);
    } else {
        line!(Level::WARN);
    }
}

#[cfg(test)]
mod tests;
