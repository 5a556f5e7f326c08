//! The spans of a connection and of its requests: what is told of them, and in which trace.

use std::net::SocketAddr;
use std::time::Instant;

use crate::name::{OriginalDst, Target};
use crate::telemetry::label::Label;
use crate::telemetry::outcome::{Decision, Inspection, ResponseFlag, TargetSource, TunnelProtocol};
use crate::trace::{Kind, Span, SpanContext, Tracer};

/// What a connection leaves in traces.
///
/// In which trace it belongs may be known only when its first bytes are read: that of the first
/// request that is recorded, if it carries requests, else one of its own. Until then its span has not
/// begun. Where nothing is traced, what is known of it is not kept.
#[derive(Debug, Default)]
pub struct Trail {
    known: Option<Box<Known>>,
    span: Option<Span>,
}

/// What is known of a connection that may be in a trace.
#[derive(Debug)]
struct Known {
    tracer: Tracer,
    accepted: Instant,
    begun: Instant,
    src: SocketAddr,
    original_dst: OriginalDst,
    pid: u32,
    cgroup: u64,
    inspected: Option<(Instant, Instant, Inspection)>,
}

impl Trail {
    /// That of a connection that was accepted then and is served from now on.
    pub fn new(tracer: Tracer, accepted: Instant, src: SocketAddr) -> Self {
        let known = tracer.is_on().then(|| Known {
            tracer,
            accepted,
            begun: Instant::now(),
            src,
            original_dst: OriginalDst(src),
            pid: 0,
            cgroup: 0,
            inspected: None,
        });
        Self {
            known: known.map(Box::new),
            span: None,
        }
    }

    pub(super) fn captured(&mut self, original_dst: OriginalDst, pid: u32, cgroup: u64) {
        if let Some(known) = &mut self.known {
            known.original_dst = original_dst;
            known.pid = pid;
            known.cgroup = cgroup;
        }
    }

    /// Its first bytes were waited for since `start`, and are this.
    pub(super) fn inspected(&mut self, start: Instant, what: Inspection) {
        if let Some(known) = &mut self.known {
            known.inspected = Some((start, Instant::now(), what));
        }
    }

    /// The span of a connection without requests.
    pub(super) fn span(&mut self) -> &mut Span {
        if self.span.is_none() {
            self.span = Some(self.connection(None));
        }
        self.span.get_or_insert_default()
    }

    /// The span of a request that begins now; `parents` are the values of all its fields
    /// [`TRACEPARENT`](crate::trace::TRACEPARENT).
    ///
    /// It is below the span that the request tells of. A request that tells of none begins a trace, in
    /// which the connection is if it is in none yet. The connection's span, where it is not the one
    /// above, is linked.
    pub fn request<'a>(&mut self, parents: impl IntoIterator<Item = &'a [u8]>) -> Span {
        let Some(known) = &self.known else {
            return Span::none();
        };
        let now = Instant::now();
        let parent = SpanContext::read(parents);
        if parent.is_none() && self.span.is_none() {
            let connection = self.connection(None);
            let span = connection.child_from("HTTP", Kind::Client, now);
            self.span = Some(connection).filter(Span::is_recorded);
            return span;
        }
        let mut span = known.tracer.begin(parent, "HTTP", Kind::Client, now);
        if span.is_recorded() {
            if self.span.is_none() {
                self.span = Some(self.connection(parent));
            }
            span.link(self.span.as_ref().and_then(Span::context));
        }
        span
    }

    /// The span of the connection, with what is known of it.
    fn connection(&self, parent: Option<SpanContext>) -> Span {
        let Some(known) = &self.known else {
            return Span::none();
        };
        let internal = Kind::Internal;
        let mut span = known
            .tracer
            .begin(parent, "connection", internal, known.accepted);
        if !span.is_recorded() {
            return span;
        }
        span.text("client.address", Some(known.src.ip()));
        span.number("client.port", i64::from(known.src.port()));
        let OriginalDst(dst) = known.original_dst;
        span.text("destination.address", Some(dst.ip()));
        span.number("destination.port", i64::from(dst.port()));
        span.word("network.transport", "tcp");
        let is_v4 = dst.ip().to_canonical().is_ipv4();
        span.word("network.type", if is_v4 { "ipv4" } else { "ipv6" });
        span.number("process.pid", i64::from(known.pid));
        span.number("underpass.cgroup.id", i64::try_from(known.cgroup).ok());
        let waited = known.begun.saturating_duration_since(known.accepted);
        drop(span.past("capture", known.accepted, waited));
        if let Some((start, end, what)) = known.inspected {
            let mut inspect = span.past("inspect", start, end.saturating_duration_since(start));
            inspect.word("underpass.inspection", what.as_str());
        }
        span
    }
}

/// What a record tells a span in the end.
pub(super) struct Told<'a> {
    pub(super) target: Option<(&'a Target, TargetSource)>,
    pub(super) decision: Option<Decision>,
    pub(super) policy: Option<&'a Label>,
    pub(super) proxy: Option<&'a Label>,
    pub(super) endpoint: Option<&'a Label>,
    pub(super) protocol: Option<TunnelProtocol>,
    pub(super) code: Option<u16>,
    pub(super) flag: ResponseFlag,
    pub(super) error: Option<&'a str>,
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl Told<'_> {
    pub(super) fn to(&self, span: &mut Span) {
        if !span.is_recorded() {
            return;
        }
        span.text("underpass.target", self.target.map(|(target, _)| target));
        let source = self.target.map(|(_, source)| source.as_str());
        span.word("underpass.target.source", source);
        span.word("underpass.decision", self.decision.map(Decision::as_str));
        span.text("underpass.policy", self.policy);
        span.text("underpass.proxy", self.proxy);
        span.text("underpass.proxy.endpoint", self.endpoint);
        let protocol = self.protocol.map(TunnelProtocol::as_str);
        span.word("underpass.tunnel.protocol", protocol);
        span.number("underpass.tunnel.status_code", self.code.map(i64::from));
        span.number("underpass.bytes_sent", i64::try_from(self.sent).ok());
        span.number(
            "underpass.bytes_received",
            i64::try_from(self.received).ok(),
        );
        if self.flag != ResponseFlag::None {
            span.word("underpass.flags", self.flag.as_str());
            span.failed(self.flag.as_str(), &self.error.unwrap_or_default());
        }
    }
}

/// The host and the port of an authority (RFC 9110 section 4.2.3), in which anything may stand.
pub(super) fn host_and_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (authority, None),
        },
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests;
