//! The way of one captured connection: inspect, decide, tunnel or go direct, relay, record.

use std::collections::HashSet;
use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::capture::Accepted;
use crate::dns::Resolver;
use crate::inspect::{self, InspectError, Inspected, Seen, Source, inspect};
use crate::limits::{Admission, Refusal};
use crate::name::{Host, OriginalDst};
use crate::policy::{self, Claim, Facts, Fallback, NameSource, Policy, TunnelDecision};
use crate::relay::{RelayError, Shared, Timeouts, Traffic, broken, relay};
use crate::sockets::{Carrier, SocketFactory, finish_on_close};
use crate::telemetry::{
    self, ConnectionRecord, Deduction, Destination, Inspection, Label, Metrics, Phase,
    ResponseFlag, TunnelCode, TunnelProtocol,
};
use crate::tunnel::{self, Tunnel, TunnelError, Tunneler};

/// How long a refused HTTP client may take to read why.
const REJECTION_DEADLINE: Duration = Duration::from_secs(1);

/// What every connection needs on its way.
pub(crate) struct Way {
    pub(crate) admission: Arc<Admission>,
    pub(crate) policy: ArcSwap<Policy>,
    /// Where the proxies are now. The programs leave them alone; this catches a connection made
    /// just before they learnt of an address.
    pub(crate) proxies: ArcSwap<HashSet<SocketAddr>>,
    pub(crate) resolver: Resolver,
    pub(crate) sockets: Arc<dyn SocketFactory>,
    pub(crate) tunneler: Tunneler,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) inspection: inspect::Limits,
    pub(crate) relay: Timeouts,
    /// For the TCP handshake of a direct connection.
    pub(crate) direct_deadline: Duration,
}

/// Why a connection ended before its time.
struct Failure {
    flag: ResponseFlag,
    error: Box<dyn Display + Send>,
}

impl Failure {
    fn new(flag: ResponseFlag, error: impl Display + Send + 'static) -> Self {
        Self {
            flag,
            error: Box::new(error),
        }
    }
}

impl Way {
    /// Carries a connection to its end. When `cut` is cancelled, it ends at once.
    pub(crate) async fn serve(&self, accepted: Accepted, cut: &CancellationToken) {
        let mut record = self.begin(&accepted);
        // It came to be reset when it is closed, whatever happens, a crash of the agent included:
        // only a relay that saw the end of both directions may let the workload believe that it
        // has all the data.
        let mut workload = accepted.stream;
        let result = tokio::select! {
            result = self.carry(&mut workload, accepted.original_dst, &mut record) => result,
            () = cut.cancelled() => Err(Failure::new(
                ResponseFlag::LocalReset,
                "the agent stops, and the connection outlived the drain",
            )),
        };
        match result {
            Ok(()) => {
                finish_on_close(&workload);
                record.finished();
            }
            Err(failure) => record.failed(failure.flag, &failure.error),
        }
    }

    /// Resets a connection that is one too many.
    pub(crate) fn refuse(&self, accepted: &Accepted, refusal: Refusal) {
        let mut record = self.begin(accepted);
        let failure = self.over(refusal);
        record.failed(failure.flag, &failure.error);
    }

    /// Counts a connection that is over a limit.
    fn over(&self, refusal: Refusal) -> Failure {
        self.metrics.limits.refused(refusal.limit);
        Failure::new(ResponseFlag::Overflow, refusal)
    }

    fn begin(&self, accepted: &Accepted) -> ConnectionRecord {
        let mut record = ConnectionRecord::begin(&self.metrics, accepted.client);
        record.captured(
            accepted.original_dst,
            Some(accepted.pid),
            Some(accepted.cgroup_id),
        );
        record
    }

    async fn carry(
        &self,
        workload: &mut TcpStream,
        dst: OriginalDst,
        record: &mut ConnectionRecord,
    ) -> Result<(), Failure> {
        let policy = self.policy.load_full();
        if self.proxies.load().contains(&dst.0) {
            record.decided(
                telemetry::Decision::Direct,
                None,
                Some(Label::fixed("the destination is the proxy itself")),
            );
            return self.direct(workload, dst, Bytes::new(), record).await;
        }
        let view = Arc::clone(policy.view_of_stranger());
        let (bytes, claimed) = if policy.wants_inspection(dst, &view) {
            let inspected = self.inspect(workload).await?;
            let claimed = inspected.claimed_host().map(claim);
            (inspected.bytes, claimed)
        } else {
            self.metrics.policy.inspected(Inspection::Skipped);
            (Bytes::new(), None)
        };
        let mut facts = Facts {
            original_dst: dst,
            claimed,
            claimed_is_verified: false,
        };
        let mut verdict = policy.decide(&facts, &view);
        if verdict.note.is_some()
            && let Some(name) = facts.claimed.as_ref().and_then(|claim| claim.host.name())
        {
            facts.claimed_is_verified = self.resolver.maps(name, dst.ip()).await;
            verdict = policy.decide(&facts, &view);
        }
        match verdict.decision {
            policy::Decision::Deny { policy, reason } => {
                let by = Some(Label::of(&policy));
                record.decided(telemetry::Decision::Deny, by, None);
                self.metrics
                    .policy
                    .deduced(telemetry::TargetSource::Sni, Deduction::Missing);
                let label = match reason {
                    policy::DenyReason::NoName => telemetry::DenyReason::NoName,
                    policy::DenyReason::Rule => telemetry::DenyReason::Rule,
                };
                record.denied(label, &reason);
                Err(Failure::new(ResponseFlag::Deny, reason))
            }
            policy::Decision::Direct(rule) => {
                let by = rule.policy().map(|policy| Label::of(policy));
                record.decided(telemetry::Decision::Direct, by, Some(Label::of(&rule)));
                self.direct(workload, dst, bytes, record).await
            }
            policy::Decision::Tunnel(decision) => {
                self.tunnel(workload, dst, &decision, verdict.note, bytes, record)
                    .await
            }
        }
    }

    /// Reads the first bytes. A malformed HTTP request is answered as an HTTP server would.
    async fn inspect(&self, workload: &mut TcpStream) -> Result<Inspected, Failure> {
        match inspect(workload, &self.inspection).await {
            Ok(inspected) => {
                self.metrics.policy.inspected(inspection(&inspected.seen));
                Ok(inspected)
            }
            Err(error) => {
                self.metrics.policy.inspected(match error {
                    InspectError::HeadTimeout(_) => Inspection::Timeout,
                    InspectError::Read(_) => Inspection::Closed,
                    _ => Inspection::Malformed,
                });
                let flag = match error.status() {
                    Some(status) => {
                        reject(workload, status, error.to_string()).await;
                        ResponseFlag::DownstreamProtocol
                    }
                    None => ResponseFlag::DownstreamClosed,
                };
                Err(Failure::new(flag, error))
            }
        }
    }

    async fn direct(
        &self,
        workload: &mut TcpStream,
        dst: OriginalDst,
        bytes: Bytes,
        record: &mut ConnectionRecord,
    ) -> Result<(), Failure> {
        let connecting = timeout(self.direct_deadline, self.sockets.connect(dst.0));
        let mut upstream = match connecting.await {
            Ok(Ok(stream)) => stream.into(),
            Ok(Err(error)) => {
                return Err(Failure::new(
                    ResponseFlag::UpstreamFailure,
                    format!("cannot connect directly to {dst}: {error}"),
                ));
            }
            Err(_) => {
                return Err(Failure::new(
                    ResponseFlag::UpstreamTimeout,
                    format!("no answer from {dst} within {:?}", self.direct_deadline),
                ));
            }
        };
        self.relay(workload, &mut upstream, bytes, Bytes::new(), record)
            .await
    }

    async fn tunnel(
        &self,
        workload: &mut TcpStream,
        dst: OriginalDst,
        decision: &TunnelDecision,
        note: Option<policy::Note>,
        bytes: Bytes,
        record: &mut ConnectionRecord,
    ) -> Result<(), Failure> {
        let protocol = TunnelProtocol::Http1Connect;
        let chosen = &decision.proxies[0].proxy;
        let proxy = Label::of(chosen);
        let policy = Label::of(&decision.policy);
        record.decided(
            telemetry::Decision::Tunnel,
            Some(policy),
            note.map(|note| Label::of(&note)),
        );
        record.target(decision.target.clone(), target_source(decision.source));
        record.proxy(proxy.clone());
        if let Some(service) = &decision.destination_service {
            record.destination(Destination::declared(Label::of(service), Label::default()));
        }
        // A proxy is one endpoint as it is configured, whatever addresses its name has.
        let endpoint = proxy.clone();
        record.endpoint(endpoint.clone());

        let pending = self
            .admission
            .begin_tunnel()
            .map_err(|refusal| self.over(refusal))?;
        let opened = self.tunneler.open(chosen, &decision.target, &[]).await;
        drop(pending);
        let timings = match &opened {
            Ok(tunnel) => tunnel.timings,
            Err(error) => error.timings(),
        };
        for (phase, took) in [
            (Phase::Dns, timings.dns),
            (Phase::Tcp, timings.tcp),
            (Phase::Tls, timings.tls),
            (Phase::Connect, timings.connect),
        ] {
            if let Some(took) = took {
                self.metrics.proxy.phase_took(&proxy, protocol, phase, took);
            }
        }
        let Tunnel {
            mut stream,
            early,
            code,
            ..
        } = match opened {
            Ok(tunnel) => tunnel,
            Err(error) => {
                let code = error.code().map_or(TunnelCode::None, TunnelCode::Status);
                record.answered(protocol, code);
                if error.refusal().is_none() {
                    let reason = error.reason();
                    self.metrics.proxy.connect_failed(&proxy, &endpoint, reason);
                }
                // A refusal is the proxy's decision, not its failure.
                if decision.fallback == Fallback::Direct && error.refusal().is_none() {
                    tracing::warn!(%error, "failureMode is open: going direct");
                    let by = Some(Label::of(&decision.policy));
                    let rule = Some(Label::fixed(
                        "the proxy cannot be reached: failureMode: open",
                    ));
                    record.decided(telemetry::Decision::Direct, by, rule);
                    return self.direct(workload, dst, bytes, record).await;
                }
                return Err(Failure::new(flag(&error), error));
            }
        };
        let _active = self.metrics.proxy.connected(&proxy, &endpoint);
        record.answered(protocol, TunnelCode::Status(code));
        self.relay(workload, &mut stream, bytes, early, record)
            .await
    }

    async fn relay(
        &self,
        workload: &mut TcpStream,
        upstream: &mut tunnel::Stream,
        to_upstream: Bytes,
        to_workload: Bytes,
        record: &mut ConnectionRecord,
    ) -> Result<(), Failure> {
        upstream.abort_on_drop();
        let traffic = Arc::new(Traffic::default());
        record.established(Arc::clone(&traffic) as _);
        let relaying = async {
            let mut near = Shared(workload);
            relay(
                &mut near,
                &mut *upstream,
                to_upstream,
                to_workload,
                &self.relay,
                &traffic,
            )
            .await
        };
        let end = tokio::select! {
            biased;
            end = relaying => end,
            error = broken(workload) => Err(RelayError::Workload(error)),
        };
        match end {
            Ok(()) => {
                upstream.finish_on_drop();
                Ok(())
            }
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

fn claim((host, source): (Host, Source)) -> Claim {
    Claim {
        host,
        source: match source {
            Source::HttpHost => NameSource::HttpHost,
            Source::Sni => NameSource::Sni,
        },
    }
}

/// Answers a request that cannot be served and lets the client read the answer: a reset right
/// after it could overtake it.
async fn reject(workload: &mut TcpStream, status: StatusCode, reason: String) {
    let body = format!("underpass: {reason}\n");
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    let answering = async {
        workload.write_all(answer.as_bytes()).await?;
        workload.shutdown().await?;
        finish_on_close(workload);
        let mut rest = [0u8; 4096];
        while workload.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // A client that does not listen has had its answer.
    let _ = timeout(REJECTION_DEADLINE, answering).await;
}

fn inspection(seen: &Seen) -> Inspection {
    match seen {
        Seen::Tls(hello) => match (&hello.server_name, hello.ech) {
            (Some(_), true) => Inspection::TlsEch,
            (Some(_), false) => Inspection::Tls,
            (None, _) => Inspection::TlsNoName,
        },
        Seen::Http(head) => match head.host.as_ref().and_then(Host::name) {
            Some(_) => Inspection::Http,
            None => Inspection::HttpNoName,
        },
        Seen::Http2 | Seen::Opaque => Inspection::Opaque,
        Seen::Silent => Inspection::Silent,
        Seen::Closed => Inspection::Closed,
    }
}

fn target_source(source: policy::TargetSource) -> telemetry::TargetSource {
    match source {
        policy::TargetSource::Explicit => telemetry::TargetSource::Explicit,
        policy::TargetSource::HttpHost => telemetry::TargetSource::HttpHost,
        policy::TargetSource::OriginalDst => telemetry::TargetSource::OriginalDst,
        policy::TargetSource::ServiceEntry => telemetry::TargetSource::Declared,
        policy::TargetSource::Sni => telemetry::TargetSource::Sni,
    }
}

/// The flag of a tunnel that could not be opened.
fn flag(error: &TunnelError) -> ResponseFlag {
    match error.reason() {
        "auth_required" | "refused" => ResponseFlag::Connect,
        "connect_timeout" | "tcp_timeout" | "tls_timeout" => ResponseFlag::UpstreamTimeout,
        "malformed" => ResponseFlag::UpstreamProtocol,
        _ => ResponseFlag::UpstreamFailure,
    }
}
