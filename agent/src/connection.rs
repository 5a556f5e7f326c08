//! The way of one captured connection: inspect, decide, tunnel or go direct, relay, record.

mod first_bytes;
mod http;
mod in_force;
mod outbound;
mod queries;

use std::collections::HashSet;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::capture::{Accepted, Workloads};
use crate::circuit::Circuits;
use crate::dns::{Forwarder, Knowledge, PORT_DNS, Resolver, Virtuals};
use crate::inspect::{self, Form, Seen};
use crate::limits::{Admission, Admitted, Refusal};
use crate::name::{Host, HostName, OriginalDst};
use crate::policy::{self, Claim, Facts, HeaderContext, NameSource, Policy, Verdict, View};
use crate::relay::Timeouts;
use crate::sockets::{SocketFactory, Vantage, finish_on_close};
use crate::telemetry::{
    self, ConnectionRecord, Deduction, Destination, Inspection, Label, Metrics, ResponseFlag,
    TunnelLog as _,
};
use crate::trace::Tracer;
use crate::tunnel::Tunneler;
use crate::workload::Workload;

pub(crate) use http::SharedTargets;
use http::Version;
pub(crate) use in_force::InForce;
pub(crate) use outbound::in_order;
use outbound::relaying;

/// What every connection needs on its way.
pub(crate) struct Way {
    pub(crate) admission: Arc<Admission>,
    pub(crate) policy: ArcSwap<InForce>,
    /// Where the proxies are now. The programs leave them alone; this catches a connection made
    /// just before they learnt of an address.
    pub(crate) proxies: ArcSwap<HashSet<SocketAddr>>,
    pub(crate) resolver: Resolver,
    /// What workloads have resolved.
    pub(crate) knowledge: Arc<Knowledge>,
    /// What hosts have been given on demand.
    pub(crate) virtuals: Virtuals,
    /// Passes on queries for which policy has no answer.
    pub(crate) forwarder: Forwarder,
    pub(crate) workloads: Arc<Workloads>,
    /// Whether what is on the agent's own network is captured only where policy names it.
    pub(crate) spares_node: bool,
    pub(crate) sockets: Arc<dyn SocketFactory>,
    pub(crate) tunneler: Tunneler,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) circuits: Circuits,
    pub(crate) shared_targets: Arc<SharedTargets>,
    pub(crate) tracer: Tracer,
    pub(crate) inspection: inspect::Limits,
    pub(crate) relay: Timeouts,
    /// For the TCP handshake of a direct connection.
    pub(crate) direct_deadline: Duration,
    /// Cancelled when connections should come to their end.
    pub(crate) closing: CancellationToken,
}

/// What is said to a pod of which nothing is known.
const OBSCURE: &str =
    "the API server has not told of this pod, so it is not known which policy is for it";

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

/// What a connection does when all is decided, and its way is open.
type Rest<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

impl Way {
    /// Carries a connection to its end, of a workload that is there, or where the agent is; it has
    /// its place among all until then. When `cut` is cancelled, it ends at once.
    ///
    /// This is what is held of each connection that is idle, so it has no room for anything twice:
    /// it is no `async fn`, which has that for its arguments, and `select!` is given what has been
    /// pinned before.
    pub(crate) fn serve(
        self: Arc<Self>,
        accepted: Accepted,
        from: Option<Arc<Vantage>>,
        cut: CancellationToken,
        admitted: Admitted,
    ) -> impl Future<Output = ()> + Send + use<> {
        let mut record = self.begin(&accepted);
        let mut origin = Origin {
            dst: accepted.original_dst,
            cgroup_id: accepted.cgroup_id,
            pid: accepted.pid,
            from,
            host: None,
        };
        // It came to be reset when it is closed, whatever happens, a crash of the agent included:
        // only a relay that saw the end of both directions may let the workload believe that it
        // has all the data.
        let mut workload = accepted.stream;
        async move {
            let result = {
                let mut carrying = pin!(self.carry(&mut workload, &mut origin, &mut record));
                let mut cut = pin!(cut.cancelled());
                tokio::select! {
                    biased;
                    result = &mut carrying => result,
                    () = &mut cut => Err(Failure::new(
                        ResponseFlag::LocalReset,
                        "the agent stops, and the connection outlived the drain",
                    )),
                }
            };
            match result {
                Ok(()) => {
                    finish_on_close(&workload);
                    record.finished();
                }
                Err(failure) => record.failed(failure.flag, &failure.error),
            }
            drop(workload);
            drop(record);
            drop(admitted);
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
        record.traced(&self.tracer, accepted.at);
        record.captured(
            accepted.original_dst,
            Some(accepted.pid),
            Some(accepted.cgroup_id),
        );
        record
    }

    /// What decides about a connection and opens its way is large, and over before bytes flow: so
    /// it is a future on the heap, which gives another one.
    async fn carry(
        self: &Arc<Self>,
        workload: &mut TcpStream,
        origin: &mut Origin,
        record: &mut ConnectionRecord,
    ) -> Result<(), Failure> {
        let rest = Box::pin(self.prepare(workload, origin, record)).await?;
        rest.await
    }

    /// Decides about a connection, and opens the way that it goes.
    async fn prepare<'a>(
        self: &'a Arc<Self>,
        workload: &'a mut TcpStream,
        origin: &'a mut Origin,
        record: &'a mut ConnectionRecord,
    ) -> Result<Rest<'a>, Failure> {
        let dst = origin.dst;
        let policy = self.policy.load_full();
        origin.host = self.stands_for(&policy, dst.ip());
        let origin = &*origin;
        if self.proxies.load().contains(&dst.0) {
            record.decided(
                telemetry::Decision::Direct,
                None,
                Some(Label::fixed(
                    "the destination is a proxy, or never captured",
                )),
            );
            let open = self.direct((dst, None), Bytes::new(), None, record).await?;
            return Ok(Box::pin(relaying(workload, open, record)));
        }
        let (who, view) = self.look_from(&policy, origin).await;
        record.workload(self.metrics.sources.of(&who), Arc::clone(&who));
        if self.is_obscure(&policy, &who) {
            record.denied(telemetry::DenyReason::UnknownWorkload, &OBSCURE);
            return Err(Failure::new(ResponseFlag::Deny, OBSCURE));
        }
        let mut arrived = Arrived {
            dst,
            host: origin.host.clone(),
            who,
            from: origin.from.clone(),
            bytes: Bytes::new(),
            speaks_tls: false,
        };
        if dst.port() == PORT_DNS && policy.takes_queries() {
            let queries = self.queries_over_tcp(workload, arrived, origin, policy, view, record);
            return Ok(Box::pin(queries));
        }
        let mut facts = origin.facts();
        if let Some(look) = policy.look_at(&facts, &view) {
            let inspecting = self.inspect(workload, look, origin, record);
            let inspected = inspecting.await?;
            if origin.host.is_none() {
                facts.claimed = inspected.claimed_host().map(first_bytes::claim);
                self.see_through_ech(&inspected.seen, origin, (&policy, &view), &mut facts);
            }
            arrived.speaks_tls = matches!(inspected.seen, Seen::Tls(_));
            let version = match &inspected.seen {
                Seen::Http(head) if head.form != Form::Authority => Some(Version::Http1),
                Seen::Http2 => Some(Version::Http2),
                _ => None,
            };
            arrived.bytes = inspected.bytes;
            let served = version.filter(|_| policy.serves_requests(&facts, &view));
            if let Some(version) = served {
                let seen = (policy, view);
                return Ok(self.requests(workload, arrived, origin, seen, version, record));
            }
        } else {
            self.metrics.policy.inspected(Inspection::Skipped);
        }
        if facts.claimed.is_none() {
            facts.claimed = self.resolved(origin, &view).into_iter().next();
        }
        let judging = self.judge(&policy, &mut facts, &view, origin);
        let verdict = record.span().around("policy", judging).await;
        if let Some(service) = &verdict.destination_service {
            record.destination(Destination::declared(
                Label::shared(service),
                Label::default(),
            ));
        }
        let open = match verdict.decision {
            policy::Decision::Deny { policy, reason } => {
                let by = Some(Label::shared(&policy));
                record.decided(telemetry::Decision::Deny, by, None);
                let label = self.denied(reason, telemetry::TargetSource::Sni);
                record.denied(label, &reason);
                return Err(Failure::new(ResponseFlag::Deny, reason));
            }
            policy::Decision::Direct(rule) => {
                let by = rule.policy().map(Label::shared);
                record.decided(telemetry::Decision::Direct, by, Some(Label::of(&rule)));
                let target = verdict.target.as_ref();
                let host = StandsFor::new(arrived.host.as_ref(), arrived.from.as_ref());
                let to = (dst, host);
                self.direct(to, arrived.bytes, target, record).await?
            }
            policy::Decision::Tunnel(decision) => {
                let note = verdict.note.as_ref().map(|note| Label::of(note));
                let by = Some(Label::shared(&decision.policy));
                record.decided(telemetry::Decision::Tunnel, by, note);
                let target = verdict.target.as_ref();
                self.tunnel(arrived, &decision, target, &mut facts, record)
                    .await?
            }
        };
        Ok(Box::pin(relaying(workload, open, record)))
    }

    /// Why policy refuses a connection, as a label. A name, where that is missing, is one of `from`.
    fn denied(
        &self,
        reason: policy::DenyReason,
        from: telemetry::TargetSource,
    ) -> telemetry::DenyReason {
        match reason {
            policy::DenyReason::HiddenName => telemetry::DenyReason::HiddenName,
            policy::DenyReason::Mismatch => telemetry::DenyReason::Mismatch,
            policy::DenyReason::NoName => {
                self.metrics.policy.deduced(from, Deduction::Missing);
                telemetry::DenyReason::NoName
            }
            policy::DenyReason::Rule => telemetry::DenyReason::Rule,
            policy::DenyReason::UnknownAddress => telemetry::DenyReason::UnknownAddress,
        }
    }

    /// The host that a virtual address stands for.
    fn stands_for(&self, policy: &Policy, addr: IpAddr) -> Option<HostName> {
        let (slot, host) = policy.virtual_slot(addr)?;
        host.cloned()
            .or_else(|| self.virtuals.host(slot, Instant::now()))
    }

    /// Who connects, and what policy looks like from there.
    async fn look_from(&self, policy: &InForce, origin: &Origin) -> (Arc<Workload>, Arc<View>) {
        let who = self.workloads.of(origin.cgroup_id, origin.pid).await;
        let host_network = self.spares_node && origin.from.is_none();
        let view = policy.view_from(origin.cgroup_id, &who, host_network);
        (who, view)
    }

    /// Whether it cannot be told what the policy looks like from there: not everybody sees the same,
    /// and this is a pod of which nothing is known.
    fn is_obscure(&self, policy: &Policy, who: &Workload) -> bool {
        policy.wants_workload() && self.workloads.is_obscure(who)
    }

    /// The names under which the workload has resolved the address, if they are to count.
    fn resolved(&self, origin: &Origin, view: &View) -> Vec<Claim> {
        if !view.observes_dns() {
            return Vec::new();
        }
        let names = self.knowledge.names(origin.cgroup_id, origin.dst.ip());
        let claim = |name| Claim {
            host: Host::Name(name),
            source: NameSource::Dns,
        };
        names.into_iter().map(claim).collect()
    }

    /// Where the ClientHello is encrypted, its server name may be that of a provider: then the name
    /// that the workload has resolved is the better one. Clients say that they encrypt also when they
    /// do not (GREASE), so a server name that was resolved as well stands.
    fn see_through_ech(
        &self,
        seen: &Seen,
        origin: &Origin,
        (policy, view): (&Policy, &View),
        facts: &mut Facts,
    ) {
        let Seen::Tls(hello) = seen else { return };
        if !hello.ech {
            return;
        }
        let resolved = self.resolved(origin, view);
        let same = |claim: &Claim| Some(&claim.host) == facts.claimed.as_ref().map(|it| &it.host);
        if !resolved.iter().any(same) {
            policy.see_through_ech(facts, resolved.into_iter().next(), view);
        }
    }

    /// The verdict of policy; the claimed name is verified if that would change it.
    async fn judge(
        &self,
        policy: &Policy,
        facts: &mut Facts,
        view: &View,
        origin: &Origin,
    ) -> Verdict {
        let mut verdict = policy.decide(facts, view);
        if verdict.note.is_some() && Box::pin(self.verify(facts)).await {
            verdict = policy.decide(facts, view);
        }
        let policy::Decision::Tunnel(tunnel) = &verdict.decision else {
            return verdict;
        };
        if tunnel.mismatch == policy::Mismatch::Nothing || self.has_resolved(facts, origin) {
            return verdict;
        }
        if Box::pin(self.verify(facts)).await {
            return verdict;
        }
        verdict.contradicted(facts.original_dst)
    }

    /// Whether the workload has resolved the name that it claims to the address.
    fn has_resolved(&self, facts: &Facts, origin: &Origin) -> bool {
        let claimed = facts.claimed.as_ref().and_then(|claim| claim.host.name());
        let names = || self.knowledge.names(origin.cgroup_id, origin.dst.ip());
        claimed.is_some_and(|name| names().contains(name))
    }

    /// Finds out whether the claimed name belongs to the address.
    async fn verify(&self, facts: &mut Facts) -> bool {
        if let Some(name) = facts.claimed.as_ref().and_then(|claim| claim.host.name()) {
            let addr = facts.original_dst.ip();
            facts.claimed_is_verified = self.resolver.maps(name, addr).await;
        }
        facts.claimed_is_verified
    }
}

/// What the kernel side tells of a connection.
#[derive(Clone)]
struct Origin {
    dst: OriginalDst,
    cgroup_id: u64,
    pid: u32,
    /// The workload's network namespace; `None`: the agent's.
    from: Option<Arc<Vantage>>,
    /// The host that `dst` stands for, if it is a virtual address; policy tells.
    host: Option<HostName>,
}

impl Origin {
    /// What is known of the connection before it says something.
    fn facts(&self) -> Facts {
        match &self.host {
            Some(host) => Facts::of_virtual(self.dst, host.clone()),
            None => Facts::new(self.dst),
        }
    }
}

/// What has arrived of a connection, and from whom.
struct Arrived {
    dst: OriginalDst,
    /// The host that it stands for, if it is a virtual address.
    host: Option<HostName>,
    who: Arc<Workload>,
    from: Option<Arc<Vantage>>,
    /// Read already.
    bytes: Bytes,
    speaks_tls: bool,
}

/// A host that a virtual address stands for, and from where that was connected to.
#[derive(Clone, Copy)]
struct StandsFor<'a> {
    host: &'a HostName,
    from: Option<&'a Arc<Vantage>>,
}

impl<'a> StandsFor<'a> {
    /// This host, if there is one.
    fn new(host: Option<&'a HostName>, from: Option<&'a Arc<Vantage>>) -> Option<Self> {
        host.map(|host| Self { host, from })
    }
}

impl Arrived {
    /// What fields for a proxy may tell of it.
    fn context<'a>(&'a self, decision: &'a policy::TunnelDecision) -> HeaderContext<'a> {
        HeaderContext {
            workload: &self.who,
            target: &decision.target,
            original_dst: self.dst,
        }
    }
}

#[cfg(test)]
mod tests;
