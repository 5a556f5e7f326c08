//! Connections of plain HTTP: every request has a decision, a target and a record of its own.
//!
//! What a request is does not depend on how it is written: what is known of it, what policy says,
//! what is refused and what is recorded stand here, in `refused` and in `upstream`. `http1` reads
//! and answers requests of HTTP/1.1; `http2` those of HTTP/2, many at a time, for which `targets`
//! has the connections.

mod forward;
mod http1;
mod http2;
mod lease;
mod refused;
mod shared;
mod targets;
mod tries;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::first_bytes::claim;
use super::outbound::target_source;
use super::{Arrived, InForce, OBSCURE, Origin, Rest, Way};
use crate::inspect::Source;
use crate::name::Host;
use crate::policy::{self, Facts, TargetPolicy, TunnelDecision, View};
use crate::telemetry::record::Live;
use crate::telemetry::request::Captured;
use crate::telemetry::{
    self, ConnectionRecord, Destination, Label, RequestRecord, Trail, TunnelLog as _,
};
use crate::workload::Workload;
use refused::Refused;
pub(crate) use shared::SharedTargets;

/// How long a connection is kept for the next request.
const KEEP_ALIVE: Duration = Duration::from_secs(5 * 60);

/// How requests are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// Where a request goes.
#[derive(Clone, Debug)]
enum Route {
    Direct,
    Tunnel(TunnelDecision),
}

impl Route {
    /// Whom it leads to, for messages.
    fn leads_to(&self, origin: &Origin) -> String {
        match self {
            Self::Direct => origin.dst.to_string(),
            Self::Tunnel(decision) => decision.target.to_string(),
        }
    }
}

/// What the requests of one connection have in common.
struct Requests {
    way: Arc<Way>,
    origin: Origin,
    captured: Captured,
    live: Live,
    trail: Mutex<Trail>,
    outlook: Mutex<Outlook>,
}

/// Policy, and what it looks like from the workload.
#[derive(Clone)]
struct Outlook {
    policy: Arc<InForce>,
    who: Arc<Workload>,
    view: Arc<View>,
    /// The workload as labels.
    source: Arc<telemetry::Workload>,
}

impl Way {
    /// Serves a connection whose first bytes are the head of a request, or the preface of HTTP/2.
    pub(super) fn requests<'a>(
        self: &Arc<Self>,
        workload: &'a TcpStream,
        arrived: Arrived,
        origin: &Origin,
        (policy, view): (Arc<InForce>, Arc<View>),
        version: Version,
        record: &mut ConnectionRecord,
    ) -> Rest<'a> {
        record.by_request();
        let requests = Requests {
            way: Arc::clone(self),
            origin: origin.clone(),
            captured: origin.seen_from(record),
            live: record.live(),
            trail: Mutex::new(std::mem::take(record.trail())),
            outlook: Mutex::new(Outlook {
                policy,
                source: self.metrics.sources.of(&arrived.who),
                who: arrived.who,
                view,
            }),
        };
        match version {
            Version::Http1 => Box::pin(http1::serve(requests, workload, arrived.bytes)),
            Version::Http2 => Box::pin(http2::serve(requests, workload, arrived.bytes)),
        }
    }
}

impl Requests {
    /// A request begins; `parents` are the values of its fields
    /// [`TRACEPARENT`](crate::trace::TRACEPARENT).
    fn record<'a>(&self, parents: impl IntoIterator<Item = &'a [u8]>) -> RequestRecord {
        let mut record = RequestRecord::begin(&self.way.metrics, self.captured);
        {
            let outlook = self.outlook.lock();
            record.workload(Arc::clone(&outlook.source), Arc::clone(&outlook.who));
        }
        record.traced(self.trail.lock().request(parents));
        record
    }

    /// What is known of a request for this host.
    fn facts(&self, host: Option<&Host>) -> Facts {
        let mut facts = self.origin.facts();
        if self.origin.host.is_none() {
            facts.claimed = host.map(|host| claim((host.clone(), Source::HttpHost)));
        }
        facts
    }

    /// What policy says of a request, and of its target.
    async fn decide(
        &self,
        facts: &mut Facts,
        record: &mut RequestRecord,
    ) -> Result<(Route, Option<Arc<TargetPolicy>>), Refused> {
        let Outlook {
            policy, view, who, ..
        } = self.outlook().await;
        if self.way.is_obscure(&policy, &who) {
            let reason = telemetry::DenyReason::UnknownWorkload;
            return Err(Refused::denied(reason, &OBSCURE));
        }
        let judging = self.way.judge(&policy, facts, &view, &self.origin);
        let verdict = record.span().around("policy", judging).await;
        if let Some(service) = &verdict.destination_service {
            record.destination(Destination::declared(
                Label::shared(service),
                Label::default(),
            ));
        }
        match verdict.decision {
            policy::Decision::Deny { policy, reason } => {
                let by = Some(Label::shared(&policy));
                record.decided(telemetry::Decision::Deny, by);
                let from = telemetry::TargetSource::HttpHost;
                let label = self.way.denied(reason, from);
                Err(Refused::denied(label, &reason))
            }
            policy::Decision::Direct(rule) => {
                let by = rule.policy().map(Label::shared);
                record.decided(telemetry::Decision::Direct, by);
                Ok((Route::Direct, verdict.target))
            }
            policy::Decision::Tunnel(decision) => {
                let by = Some(Label::shared(&decision.policy));
                record.decided(telemetry::Decision::Tunnel, by);
                record.target(decision.target.clone(), target_source(decision.source));
                Ok((Route::Tunnel(decision), verdict.target))
            }
        }
    }

    /// The policy in force, found out anew where it has changed.
    async fn outlook(&self) -> Outlook {
        let last = self.outlook.lock().clone();
        let policy = self.way.policy.load_full();
        if Arc::ptr_eq(&policy, &last.policy) {
            return last;
        }
        let (who, view) = self.way.look_from(&policy, &self.origin).await;
        let source = self.way.metrics.sources.of(&who);
        let outlook = Outlook {
            policy,
            who,
            view,
            source,
        };
        self.outlook.lock().clone_from(&outlook);
        outlook
    }

    /// What tunnels are told of the workload. What it has sent is none of their business.
    fn arrived(&self) -> Arrived {
        Arrived {
            dst: self.origin.dst,
            host: self.origin.host.clone(),
            who: Arc::clone(&self.outlook.lock().who),
            from: self.origin.from.clone(),
            bytes: Bytes::new(),
            speaks_tls: false,
        }
    }
}

impl Origin {
    /// What is told of each request on the connection with this record.
    pub(super) fn seen_from(&self, record: &ConnectionRecord) -> Captured {
        Captured {
            src: record.src(),
            original_dst: self.dst,
            pid: self.pid,
            cgroup: self.cgroup_id,
        }
    }
}
