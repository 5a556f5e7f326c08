//! Connections to targets, and those that are kept for the next request.

use std::fmt;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, sleep_until, timeout};

use super::super::outbound::{ORIGINATION_DEADLINE, Opened, until, within};
use super::super::{Arrived, StandsFor, Way};
use super::Route;
use super::forward::Forwarder;
use super::lease::Lease;
use super::refused::{Fault, Refused};
use crate::circuit::{Circuit, Id, Place};
use crate::name::{Host, OriginalDst, Target};
use crate::policy::{Facts, RankedProxy, TunnelDecision};
use crate::telemetry::request::OpenTunnel;
use crate::telemetry::{self, Label, RequestRecord, ResponseFlag, TunnelLog as _};
use crate::tls::{ClientTls, TlsError};
use crate::trace::Span;
use crate::tunnel::{Stream, Tunnel, originate};

/// How many idle connections one connection of a workload may have.
pub(super) const MAX_IDLE: usize = 8;

/// How long an idle connection is kept.
pub(super) const KEEP_IDLE: Duration = Duration::from_secs(90);

/// A connection to a target, direct or through a tunnel.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) stream: Stream,
    /// What has come of it already.
    pub(super) early: Bytes,
    /// Whether it may serve other requests for which policy says the same.
    keep: bool,
    through: Option<OpenTunnel>,
    /// Whether TLS is spoken with the target.
    pub(super) is_encrypted: bool,
    /// What policy allows it.
    pub(super) lease: Box<Lease>,
    /// The proxy that is at its end, if it does not lead to the target.
    pub(super) forwarder: Option<Forwarder>,
}

impl Upstream {
    fn direct(stream: Stream, keep: bool, lease: Box<Lease>) -> Self {
        Self {
            stream,
            early: Bytes::new(),
            keep,
            through: None,
            is_encrypted: false,
            lease,
            forwarder: None,
        }
    }

    /// Whether it may serve other requests for which policy says the same.
    pub(super) fn is_kept(&self) -> bool {
        self.keep
    }

    /// Its tunnel, if it goes through one, and what policy allows it.
    pub(super) fn into_parts(self) -> (Stream, Bytes, Option<OpenTunnel>, Box<Lease>) {
        (self.stream, self.early, self.through, self.lease)
    }

    /// Writes down that a request uses it again.
    pub(super) fn reused(&self, record: &mut RequestRecord) {
        if let Some(through) = &self.through {
            record.reuses(through);
        }
    }

    /// The proxy through which it goes.
    pub(super) fn proxy(&self) -> Option<&Label> {
        self.through.as_ref().map(OpenTunnel::proxy)
    }
}

/// What is wanted of a new connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// A proxy may get requests as they are.
    pub(super) forward: bool,
    /// The protocols of which a target of TLS may choose (ALPN).
    pub(super) protocols: &'a [&'a [u8]],
}

impl Way {
    /// A new connection for a request on this route.
    pub(super) async fn reach(
        &self,
        arrived: &Arrived,
        route: &Route,
        wanted: Wanted<'_>,
        (circuit, place): (&Circuit, Place),
        facts: &mut Facts,
        record: &mut RequestRecord,
    ) -> Result<Upstream, Refused> {
        let lease = Box::new(Lease::new(place, circuit));
        match route {
            Route::Direct => {
                let span = record.span();
                let stream = self.reach_directly(arrived, circuit, span).await?;
                Ok(Upstream::direct(stream, true, lease))
            }
            Route::Tunnel(decision) => {
                let counted = (circuit, lease);
                self.reach_by_proxy(arrived, decision, wanted, counted, facts, record)
                    .await
            }
        }
    }

    async fn reach_directly(
        &self,
        arrived: &Arrived,
        circuit: &Circuit,
        span: &Span,
    ) -> Result<Stream, Refused> {
        let dst = arrived.dst;
        let time = within(self.direct_deadline, circuit);
        let host = StandsFor::new(arrived.host.as_ref(), arrived.from.as_ref());
        let connecting = timeout(time, self.dial(dst, host));
        let refused = match span.around("direct", connecting).await {
            Ok(Ok(stream)) => return Ok(stream.into()),
            Ok(Err(error)) => Refused::new(
                ResponseFlag::UpstreamFailure,
                StatusCode::SERVICE_UNAVAILABLE,
                &format_args!("cannot connect directly to {dst}: {error}"),
            ),
            Err(_) => Refused::new(
                ResponseFlag::UpstreamTimeout,
                StatusCode::GATEWAY_TIMEOUT,
                &format_args!("no answer from {dst} within {time:?}"),
            ),
        };
        Err(refused.because(Fault::NoConnection))
    }

    async fn reach_by_proxy(
        &self,
        arrived: &Arrived,
        decision: &TunnelDecision,
        wanted: Wanted<'_>,
        (circuit, lease): (&Circuit, Box<Lease>),
        facts: &mut Facts,
        record: &mut RequestRecord,
    ) -> Result<Upstream, Refused> {
        let pending = self.admission.begin_tunnel().map_err(|refusal| {
            let failure = self.over(refusal);
            let status = StatusCode::SERVICE_UNAVAILABLE;
            Refused::new(failure.flag, status, &failure.error)
        })?;
        let until = until(circuit);
        let opened = if wanted.forward {
            self.open_or_connect(arrived, decision, until, record).await
        } else {
            let opened = self.open(arrived, decision, until, record).await;
            opened.map(Opened::Tunnel)
        };
        let tunnel = match opened {
            Ok(Opened::Tunnel(tunnel)) => tunnel,
            Ok(Opened::Line(proxy, line)) => {
                record.is_forwarded();
                return Ok(Upstream {
                    stream: line.stream,
                    early: Bytes::new(),
                    keep: true,
                    through: record.take_tunnel(),
                    is_encrypted: false,
                    lease,
                    forwarder: Some(Forwarder::new(&proxy, line.endpoint, line.trial)),
                });
            }
            Err(error) => {
                drop(pending);
                // A refusal is the proxy's decision, not its failure.
                if error.refusal().is_some() || !self.may_pass(decision, facts).await {
                    return Err(Refused::tunnel(&error));
                }
                tracing::warn!(%error, "failureMode is open: going direct");
                let by = Some(Label::shared(&decision.policy));
                record.decided(telemetry::Decision::Direct, by);
                // The next request is to find out anew whether the proxy is there.
                let span = record.span();
                let stream = self.reach_directly(arrived, circuit, span).await?;
                return Ok(Upstream::direct(stream, false, lease));
            }
        };
        let through = record.take_tunnel();
        let Tunnel {
            mut stream,
            mut early,
            ..
        } = tunnel;
        if let Some(tls) = &decision.tls {
            let deadline = Instant::now() + ORIGINATION_DEADLINE;
            let deadline = until.map_or(deadline, |until| until.min(deadline));
            let client = tls.client.offering(wanted.protocols);
            let early = std::mem::take(&mut early);
            let originating = originate(stream, early, &client, &tls.name, deadline);
            stream = record
                .span()
                .attempt("originate", originating, TlsError::reason)
                .await
                .map_err(|error| {
                    Refused::new(
                        ResponseFlag::UpstreamFailure,
                        StatusCode::BAD_GATEWAY,
                        &format_args!("TLS with {}: {error}", decision.target),
                    )
                    .because(Fault::NoConnection)
                })?;
        }
        drop(pending);
        Ok(Upstream {
            stream,
            early,
            keep: true,
            through,
            is_encrypted: decision.tls.is_some(),
            lease,
            forwarder: None,
        })
    }
}

/// What a connection is good for: requests for which policy says just the same.
#[derive(Clone, Debug)]
pub(super) struct Key {
    way: KeyWay,
    /// Where the workload connected to, where that makes a difference.
    dst: Option<OriginalDst>,
    /// What they count among, and the limits of policy.
    counted: Option<Id>,
}

#[derive(Clone, Debug)]
enum KeyWay {
    Direct,
    /// Whatever the target is.
    Forward(Arc<[RankedProxy]>),
    Tunnel {
        policy: Arc<str>,
        proxies: Arc<[RankedProxy]>,
        target: Target,
        tls: Option<(Arc<ClientTls>, Host)>,
    },
}

impl Key {
    /// Of connections for this route of a workload that connected to `dst`; `forward`: of those
    /// that end at a proxy.
    pub(super) fn of(route: &Route, dst: OriginalDst, circuit: &Circuit, forward: bool) -> Self {
        let matters = match route {
            Route::Direct => true,
            Route::Tunnel(decision) => {
                let mut proxies = decision.proxies.iter();
                proxies.any(|ranked| ranked.proxy.is_told_original_dst())
            }
        };
        let way = match route {
            Route::Direct => KeyWay::Direct,
            Route::Tunnel(decision) if forward => KeyWay::Forward(Arc::clone(&decision.proxies)),
            Route::Tunnel(decision) => KeyWay::Tunnel {
                policy: Arc::clone(&decision.policy),
                proxies: Arc::clone(&decision.proxies),
                target: decision.target.clone(),
                tls: decision
                    .tls
                    .as_ref()
                    .map(|tls| (Arc::clone(&tls.client), tls.name.clone())),
            },
        };
        Self {
            way,
            dst: matters.then_some(dst),
            counted: circuit.id(),
        }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.way == other.way && self.dst == other.dst && self.counted == other.counted
    }
}

impl PartialEq for KeyWay {
    /// Settings are the same only if they come of the same reading of policy.
    fn eq(&self, other: &Self) -> bool {
        let (
            Self::Tunnel {
                policy,
                proxies,
                target,
                tls,
            },
            Self::Tunnel {
                policy: other_policy,
                proxies: other_proxies,
                target: other_target,
                tls: other_tls,
            },
        ) = (self, other)
        else {
            return match (self, other) {
                (Self::Forward(proxies), Self::Forward(other)) => Arc::ptr_eq(proxies, other),
                _ => matches!((self, other), (Self::Direct, Self::Direct)),
            };
        };
        let same_tls = match (tls, other_tls) {
            (None, None) => true,
            (Some((tls, name)), Some((other, other_name))) => {
                Arc::ptr_eq(tls, other) && name == other_name
            }
            _ => false,
        };
        same_tls
            && policy == other_policy
            && Arc::ptr_eq(proxies, other_proxies)
            && target == other_target
    }
}

/// Idle connections of one connection of a workload, oldest first. They are shared with no other:
/// a target may have learnt something of the workload on them.
#[derive(Debug, Default)]
pub(super) struct Pool(Vec<Idle>);

#[derive(Debug)]
struct Idle {
    key: Key,
    upstream: Upstream,
    until: Instant,
    /// Another request waits for its place.
    gives_way: GivesWay,
}

/// A future that is only polled by who has it.
struct GivesWay(Pin<Box<dyn Future<Output = ()> + Send + Sync>>);

impl fmt::Debug for GivesWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GivesWay")
    }
}

impl Pool {
    /// One for this key that its peer has not closed.
    pub(super) fn take(&mut self, key: &Key) -> Option<Upstream> {
        loop {
            let at = self.0.iter().rposition(|idle| idle.key == *key)?;
            let mut idle = self.0.remove(at);
            let mut cx = Context::from_waker(std::task::Waker::noop());
            if idle.until > Instant::now() && !idle.has_ended(&mut cx) {
                return Some(idle.upstream);
            }
        }
    }

    /// Keeps one.
    pub(super) fn put(&mut self, key: Key, upstream: Upstream) {
        let lease = &upstream.lease;
        if !upstream.keep || !lease.is_good() || lease.is_wanted() {
            return;
        }
        if self.0.len() >= MAX_IDLE {
            self.0.remove(0);
        }
        self.0.push(Idle {
            key,
            until: Instant::now() + lease.idle(),
            gives_way: GivesWay(lease.wanted()),
            upstream,
        });
    }

    /// Drops those that have come to their end by now.
    pub(super) fn prune(&mut self) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let now = Instant::now();
        self.0
            .retain_mut(|idle| idle.until > now && !idle.has_ended(&mut cx));
    }

    /// Drops those that their peers end, that have been idle too long, or whose place another
    /// request waits for. Never ends.
    pub(super) async fn watch(&mut self) {
        loop {
            let Some(until) = self.0.iter().map(|idle| idle.until).min() else {
                return pending().await;
            };
            let ended = poll_fn(|cx| {
                let before = self.0.len();
                self.0.retain_mut(|idle| !idle.has_ended(cx));
                if self.0.len() < before {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            });
            let is_late = tokio::select! {
                () = ended => false,
                () = sleep_until(until) => true,
            };
            if is_late {
                self.0.retain(|idle| idle.until > until);
            }
        }
    }
}

impl Idle {
    /// Whether the peer has closed it, or says what nobody has asked for; or another needs its
    /// place.
    fn has_ended(&mut self, cx: &mut Context<'_>) -> bool {
        if self.gives_way.0.as_mut().poll(cx).is_ready() {
            return true;
        }
        let mut byte = [0];
        let mut byte = ReadBuf::new(&mut byte);
        let stream = Pin::new(&mut self.upstream.stream);
        stream.poll_read(cx, &mut byte).is_ready()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A connection, and the target's end of it.
    async fn pair() -> (Upstream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(near, listener.accept());
        let lease = Box::new(Lease::new(Place::default(), &Circuit::default()));
        let upstream = Upstream::direct(near.unwrap().into(), true, lease);
        (upstream, far.unwrap().0)
    }

    const DIRECT: Key = Key {
        way: KeyWay::Direct,
        dst: None,
        counted: None,
    };

    fn tunnel(host: &str, port: u16, proxies: &Arc<[RankedProxy]>) -> Key {
        let way = KeyWay::Tunnel {
            policy: "Tunnel/t".into(),
            proxies: Arc::clone(proxies),
            target: Target {
                host: host.parse().unwrap(),
                port,
            },
            tls: None,
        };
        Key {
            way,
            dst: None,
            counted: None,
        }
    }

    #[tokio::test]
    async fn a_connection_serves_what_is_decided_just_so() {
        let proxies: Arc<[RankedProxy]> = [].into();
        let read_again: Arc<[RankedProxy]> = [].into();
        let mut pool = Pool::default();
        let (upstream, _far) = pair().await;
        pool.put(tunnel("a.test", 80, &proxies), upstream);
        for other in [
            DIRECT,
            tunnel("b.test", 80, &proxies),
            tunnel("a.test", 81, &proxies),
            tunnel("a.test", 80, &read_again),
        ] {
            assert!(pool.take(&other).is_none(), "{other:?}");
        }
        assert!(pool.take(&tunnel("a.test", 80, &proxies)).is_some());
        assert!(pool.take(&tunnel("a.test", 80, &proxies)).is_none());
    }

    #[tokio::test]
    async fn one_that_has_ended_or_says_something_is_of_no_use() -> io::Result<()> {
        for says in ["", "HTTP/1.1 408 Request Timeout\r\n\r\n"] {
            let mut pool = Pool::default();
            let (upstream, mut far) = pair().await;
            pool.put(DIRECT, upstream);
            far.write_all(says.as_bytes()).await?;
            far.shutdown().await?;
            // Ends only when none is left to watch, so a second look must find none.
            while !pool.0.is_empty() {
                tokio::select! {
                    () = pool.watch() => {}
                    () = tokio::task::yield_now() => {}
                }
            }
            assert!(pool.take(&DIRECT).is_none(), "{says:?}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn there_are_only_so_many_and_some_are_not_kept() {
        let mut pool = Pool::default();
        let mut far_ends = Vec::new();
        for _ in 0..MAX_IDLE + 3 {
            let (upstream, far) = pair().await;
            far_ends.push(far);
            pool.put(DIRECT, upstream);
        }
        assert_eq!(pool.0.len(), MAX_IDLE);
        let mut pool = Pool::default();
        let (mut upstream, _far) = pair().await;
        upstream.keep = false;
        pool.put(DIRECT, upstream);
        assert!(pool.take(&DIRECT).is_none());
    }
}
