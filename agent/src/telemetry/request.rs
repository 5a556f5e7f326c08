//! The record of one HTTP request.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tracing::{Level, field};

use crate::name::{OriginalDst, Target};
use crate::relay::{Progress, Traffic};
use crate::telemetry::label::{Destination, Label, Workload};
use crate::telemetry::metrics::{ActiveGuard, Ended, Metrics};
use crate::telemetry::outcome::{
    Decision, Deduction, DenyReason, ResponseFlag, TargetSource, TunnelCode, TunnelProtocol,
};
use crate::telemetry::record::{ACCESS_LOG, Live, MAX_ERROR, Moving, TunnelLog};
use crate::telemetry::text::printable;
use crate::telemetry::trail::{Told, host_and_port};
use crate::trace::Span;
use crate::workload;

/// Bytes of what a workload sent, in the log.
const MAX_QUOTE: usize = 260;

/// What the kernel side tells of the connection on which a request came.
#[derive(Clone, Copy, Debug)]
pub struct Captured {
    /// The workload's end as the listener saw it.
    pub src: SocketAddr,
    /// Where the workload was going.
    pub original_dst: OriginalDst,
    /// The process that connected.
    pub pid: u32,
    /// Its cgroup.
    pub cgroup: u64,
}

/// A way through a proxy that may serve several requests. If it is a tunnel, that counts as active
/// as long as this lives.
#[derive(Debug)]
pub struct OpenTunnel {
    proxy: Label,
    endpoint: Label,
    protocol: TunnelProtocol,
    _active: Option<ActiveGuard>,
}

impl OpenTunnel {
    /// The proxy through which it goes.
    pub fn proxy(&self) -> &Label {
        &self.proxy
    }
}

/// A try to open a tunnel.
#[derive(Clone, Debug)]
pub struct Attempt {
    proxy: Option<Label>,
    endpoint: Option<Label>,
    protocol: Option<TunnelProtocol>,
    code: Option<TunnelCode>,
}

/// One request, from its head to the end of its answer.
///
/// It is filled on the way. When it is dropped, in whatever way the request ended, it writes one
/// line to the access log and counts the request. Unless [`finished`](Self::finished),
/// [`failed`](Self::failed) or [`denied`](Self::denied) said how it ended, the agent itself ended
/// it, and that is what is recorded.
///
/// The log has no path: it may hold what only client and server should know.
pub struct RequestRecord {
    metrics: Arc<Metrics>,
    captured: Captured,
    started: Instant,
    id: String,
    method: Option<String>,
    authority: Option<String>,
    grpc: bool,
    workload: Arc<Workload>,
    who: Arc<workload::Workload>,
    destination: Destination,
    target: Option<(Target, TargetSource)>,
    decision: Option<Decision>,
    policy: Option<Label>,
    denied: Option<DenyReason>,
    proxy: Option<Label>,
    endpoint: Option<Label>,
    protocol: Option<TunnelProtocol>,
    code: Option<TunnelCode>,
    flag: Option<ResponseFlag>,
    error: Option<String>,
    refused: Option<String>,
    progress: Arc<Progress>,
    tunnel: Option<ActiveGuard>,
    retries: u32,
    is_exhausted: bool,
    span: Span,
}

impl RequestRecord {
    /// A request begins now.
    pub fn begin(metrics: &Arc<Metrics>, captured: Captured) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            captured,
            started: Instant::now(),
            id: format!("{:016x}", fastrand::u64(..)),
            method: None,
            authority: None,
            grpc: false,
            workload: Arc::default(),
            who: Arc::default(),
            destination: Destination::default(),
            target: None,
            decision: None,
            policy: None,
            denied: None,
            proxy: None,
            endpoint: None,
            protocol: None,
            code: None,
            flag: None,
            error: None,
            refused: None,
            progress: Arc::default(),
            tunnel: None,
            retries: 0,
            is_exhausted: false,
            span: Span::none(),
        }
    }

    /// It is recorded as this span as well.
    pub fn traced(&mut self, span: Span) {
        self.span = span;
    }

    /// Identifies the request in the log, and for whoever gets an answer of ours.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How far it has come; its status and bytes are taken from there.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// The bytes it has moved.
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.progress.traffic)
    }

    /// What the head says; both are escaped and cut, since they are what the network sent.
    pub fn head(&mut self, method: &str, authority: &[u8]) {
        self.method = Some(printable(&method, MAX_QUOTE));
        let authority = String::from_utf8_lossy(authority);
        self.authority = Some(printable(&authority, MAX_QUOTE));
    }

    /// Who the workload is.
    pub fn workload(&mut self, labels: Arc<Workload>, who: Arc<workload::Workload>) {
        self.workload = labels;
        self.who = who;
    }

    /// The declared host that it goes to. Without it: `PassthroughCluster`.
    pub fn destination(&mut self, destination: Destination) {
        self.destination = destination;
    }

    /// It speaks gRPC: so it is counted, and so are its messages.
    pub fn grpc(&mut self) {
        self.grpc = true;
    }

    /// From now on it moves bytes, through a proxy if there is one, until what is given back is
    /// dropped.
    pub fn moves(&self, connection: &Live, proxy: Option<&Label>) -> Moving {
        let grpc = self.grpc.then_some((&*self.workload, &self.destination));
        connection.moves(Arc::clone(&self.progress) as _, proxy, grpc)
    }

    /// Shows on the connection what is known of this request.
    pub fn show_on(&self, connection: &Live) {
        if let Some(decision) = self.decision {
            connection.serves(decision, self.policy.clone(), self.target.clone());
        }
    }

    /// What was decided, and by which policy object.
    pub fn decided(&mut self, decision: Decision, policy: Option<Label>) {
        self.decision = Some(decision);
        self.policy = policy;
    }

    /// What the tunnel is asked for, and where that was found.
    pub fn target(&mut self, target: Target, source: TargetSource) {
        self.metrics.policy.deduced(source, Deduction::Found);
        self.target = Some((target, source));
    }

    /// It uses a tunnel that is there already.
    pub fn reuses(&mut self, tunnel: &OpenTunnel) {
        self.proxy = Some(tunnel.proxy.clone());
        self.endpoint = Some(tunnel.endpoint.clone());
        self.protocol = Some(tunnel.protocol);
    }

    /// What came of its last try to open a tunnel, for others that waited for the same.
    pub fn attempt(&self) -> Attempt {
        Attempt {
            proxy: self.proxy.clone(),
            endpoint: self.endpoint.clone(),
            protocol: self.protocol,
            code: self.code,
        }
    }

    /// It waited for this try, which was another's; that has counted it.
    pub fn shares(&mut self, attempt: &Attempt) {
        self.proxy.clone_from(&attempt.proxy);
        self.endpoint.clone_from(&attempt.endpoint);
        self.protocol = attempt.protocol;
        self.code = attempt.code;
    }

    /// The proxy gets it as it is.
    pub fn is_forwarded(&mut self) {
        self.protocol = Some(TunnelProtocol::Http1Absolute);
    }

    /// The answer is the proxy's own, as the proxy says.
    pub fn refused_by_proxy(&mut self, error: &dyn Display) {
        self.refused = Some(printable(error, MAX_ERROR));
    }

    /// The way that was opened for it.
    pub fn take_tunnel(&mut self) -> Option<OpenTunnel> {
        Some(OpenTunnel {
            _active: self.tunnel.take(),
            proxy: self.proxy.clone().unwrap_or_default(),
            endpoint: self.endpoint.clone().unwrap_or_default(),
            protocol: self.protocol?,
        })
    }

    /// It was served and ended in order, if perhaps by the proxy itself.
    pub fn finished(&mut self) {
        self.error = self.refused.take();
        self.flag = Some(match self.error {
            Some(_) => ResponseFlag::Connect,
            None => ResponseFlag::None,
        });
        if self.is_exhausted {
            let text = "the answer would have been asked for again, but for the number of tries";
            self.failed(ResponseFlag::RetriesExhausted, &text);
        }
    }

    /// It is tried again.
    pub fn tried_again(&mut self) {
        self.retries += 1;
    }

    /// It has been tried as often as policy allows, each time in vain.
    pub fn exhausted(&mut self) {
        self.is_exhausted = true;
    }

    /// Where it is counted.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// It failed, or ended out of order. The last call before the drop counts. `error` is escaped
    /// and cut, so it may hold what the network sent.
    pub fn failed(&mut self, flag: ResponseFlag, error: &dyn Display) {
        self.flag = Some(flag);
        self.error = Some(printable(error, MAX_ERROR));
    }

    /// Policy refuses it.
    pub fn denied(&mut self, reason: DenyReason, error: &dyn Display) {
        self.failed(ResponseFlag::Deny, error);
        self.decision = Some(Decision::Deny);
        self.denied = Some(reason);
    }
}

impl TunnelLog for RequestRecord {
    fn proxy(&mut self, proxy: Label) {
        self.proxy = Some(proxy);
    }

    fn endpoint(&mut self, endpoint: Label) {
        self.endpoint = Some(endpoint);
    }

    fn answered(&mut self, protocol: TunnelProtocol, code: TunnelCode) {
        self.protocol = Some(protocol);
        self.code = Some(code);
        let proxy = self.proxy.clone().unwrap_or_default();
        let policy = self.policy.clone().unwrap_or_default();
        self.metrics.proxy.answered(&proxy, &policy, protocol, code);
        let stands = code.is_success() && protocol != TunnelProtocol::Http1Absolute;
        self.tunnel = stands.then(|| self.metrics.proxy.tunnel(&proxy, protocol));
    }

    fn span(&mut self) -> &Span {
        &self.span
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let flag = self.flag.unwrap_or_else(|| {
            self.error = Some("ended by the agent".to_owned());
            ResponseFlag::LocalReset
        });
        let traffic = &self.progress.traffic;
        let ended = Ended {
            status: self.progress.status(),
            grpc: self.grpc.then(|| self.grpc_status()),
            flag,
            milliseconds: self.started.elapsed().as_secs_f64() * 1000.0,
            request_bytes: traffic.sent(),
            response_bytes: traffic.received(),
        };
        self.metrics
            .http
            .ended(&self.workload, &self.destination, &ended);
        if let Some(reason) = self.denied {
            let policy = self.policy.clone().unwrap_or_default();
            self.metrics.policy.denied(&policy, reason);
        }
        self.log_access(&ended);
        self.describe(&ended);
    }
}

impl RequestRecord {
    /// `grpc-status`, or what stands for it where an answer has none, as gRPC's clients have it.
    fn grpc_status(&self) -> Option<u16> {
        self.progress.grpc_status().or_else(|| {
            Some(match self.progress.status()? {
                400 => 13,
                401 => 16,
                403 => 7,
                404 => 12,
                429 | 502..=504 => 14,
                _ => 2,
            })
        })
    }

    /// Tells the span what is known in the end.
    fn describe(&mut self, ended: &Ended) {
        let mut span = std::mem::take(&mut self.span);
        if !span.is_recorded() {
            return;
        }
        let method = self.method.as_deref().and_then(known);
        if let Some(method) = method {
            span.rename(method);
        }
        let asked = self.method.as_ref().map(|_| method.unwrap_or("_OTHER"));
        span.word("http.request.method", asked);
        if let Some(authority) = &self.authority {
            let (host, port) = host_and_port(authority);
            span.text("server.address", Some(host));
            span.number("server.port", i64::from(port.unwrap_or(80)));
        }
        span.word("url.scheme", "http");
        let status = ended.status.filter(|status| *status >= 400);
        if status.is_some() {
            span.text("error.type", status);
            span.is_an_error();
        }
        let answered = ended.status.map(i64::from);
        span.number("http.response.status_code", answered);
        span.text("underpass.request.id", Some(&self.id));
        let told = Told {
            target: self.target.as_ref().map(|(target, from)| (target, *from)),
            decision: self.decision,
            policy: self.policy.as_ref(),
            proxy: self.proxy.as_ref(),
            endpoint: self.endpoint.as_ref(),
            protocol: self.protocol,
            code: self.code.and_then(TunnelCode::status),
            flag: ended.flag,
            error: self.error.as_deref(),
            sent: ended.request_bytes,
            received: ended.response_bytes,
        };
        told.to(&mut span);
    }

    /// Writes the line, as that of a connection is written.
    fn log_access(&self, ended: &Ended) {
        let captured = &self.captured;
        macro_rules! line {
            ($level:expr) => {
                tracing::event!(
                    target: ACCESS_LOG,
                    $level,
                    src.addr = field::display(captured.src),
                    src.pid = captured.pid,
                    src.cgroup = captured.cgroup,
                    src.namespace = self.who.namespace.as_deref(),
                    src.pod = self.who.name.as_deref(),
                    src.container = self.who.container_id(),
                    original_dst = field::display(captured.original_dst),
                    request_id = self.id.as_str(),
                    method = self.method.as_deref(),
                    authority = self.authority.as_deref(),
                    status = ended.status,
                    grpc.status = ended.grpc.flatten(),
                    target = self.target.as_ref().map(|(target, _)| field::display(target)),
                    target.source = self.target.as_ref().map(|(_, from)| field::display(from)),
                    proxy = self.proxy.as_ref().map(Label::as_str),
                    proxy.endpoint = self.endpoint.as_ref().map(Label::as_str),
                    tunnel.protocol = self.protocol.map(field::display),
                    tunnel.code = self.code.and_then(TunnelCode::status),
                    retries = (self.retries > 0).then_some(self.retries),
                    decision = self.decision.map(field::display),
                    policy = self.policy.as_ref().map(Label::as_str),
                    bytes_sent = ended.request_bytes,
                    bytes_received = ended.response_bytes,
                    // The log has whole numbers, as for connections.
                    duration_ms = ended.milliseconds as u64,
                    flags = (ended.flag != ResponseFlag::None).then_some(field::display(ended.flag)),
                    error = self.error.as_deref(),
                    "request complete"
                )
            };
        }
        if ended.flag == ResponseFlag::None {
            line!(Level::INFO);
        } else {
            line!(Level::WARN);
        }
    }
}

/// A method that others know, too (RFC 9110 section 9, RFC 5789): spans are named by it.
fn known(method: &str) -> Option<&'static str> {
    const KNOWN: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
    ];
    KNOWN.into_iter().find(|known| *known == method)
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;
    use crate::telemetry::scrape::Scrape;

    fn begin(metrics: &Arc<Metrics>) -> RequestRecord {
        let captured = Captured {
            src: "10.0.0.1:4000".parse().unwrap(),
            original_dst: OriginalDst("192.0.2.7:80".parse().unwrap()),
            pid: 1,
            cgroup: 2,
        };
        let mut record = RequestRecord::begin(metrics, captured);
        record.head("GET", b"x.test");
        record
    }

    #[test]
    fn however_it_ends_it_is_counted_once() {
        let registry = Registry::new();
        let metrics = Arc::new(Metrics::new(&registry).unwrap());
        let mut served = begin(&metrics);
        served.destination(Destination::declared(
            Label::fixed("*.test"),
            Label::default(),
        ));
        served.progress().answered(404, 100);
        served.finished();
        drop(served);
        let mut denied = begin(&metrics);
        denied.decided(Decision::Deny, Some(Label::fixed("Tunnel/no")));
        denied.denied(DenyReason::Rule, &"no");
        denied.progress().answered(403, 50);
        drop(denied);
        let mut gone = begin(&metrics);
        gone.failed(ResponseFlag::DownstreamClosed, &"gone");
        drop(gone);
        drop(begin(&metrics));

        let scrape = Scrape::of(&registry);
        let requests = "istio_requests_total";
        for (code, flag, service) in [
            ("404", "-", "*.test"),
            ("403", "DENY", "PassthroughCluster"),
            ("0", "DC", "PassthroughCluster"),
            ("0", "LR", "PassthroughCluster"),
        ] {
            let labels = [
                ("response_code", code),
                ("response_flags", flag),
                ("destination_service", service),
                ("request_protocol", "http"),
            ];
            assert_eq!(scrape.value(requests, &labels), Some(1.0), "{labels:?}");
        }
        let code = [("response_code", "404")];
        let size = scrape.value("istio_response_bytes_sum", &code);
        assert_eq!(size, Some(100.0));
        let by = [("policy", "Tunnel/no"), ("reason", "rule")];
        let denied = scrape.value("underpass_policy_denied_total", &by);
        assert_eq!(denied, Some(1.0));
        assert_eq!(
            scrape.value("istio_tcp_connections_opened_total", &[]),
            None
        );
    }

    #[test]
    fn a_tunnel_is_active_as_long_as_its_connection() {
        let registry = Registry::new();
        let metrics = Arc::new(Metrics::new(&registry).unwrap());
        let active = || Scrape::of(&registry).value("underpass_tunnels_active", &PROTOCOL);
        let mut record = begin(&metrics);
        record.proxy(Label::fixed("proxy.test:3128"));
        let protocol = TunnelProtocol::Http1Connect;
        record.answered(protocol, TunnelCode::Status(200));
        let tunnel = record.take_tunnel();
        drop(record);
        assert_eq!(active(), Some(1.0));
        drop(tunnel);
        assert_eq!(active(), Some(0.0));
    }

    const PROTOCOL: [(&str, &str); 1] = [("protocol", "http1-connect")];
}
