//! A connection of HTTP/1.1.

mod upgrade;

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::forward::can_forward;
use super::refused::Refused;
use super::targets::{self, Targets};
use super::tries::{Tried, Tries};
use super::upstream::{Key, Pool, Upstream, Wanted};
use super::{KEEP_ALIVE, Requests, Route};
use crate::circuit::{Circuit, Refusal};
use crate::connection::Failure;
use crate::connection::first_bytes::{REJECTION_DEADLINE, last_words};
use crate::inspect::InspectError;
use crate::policy::{Facts, TunnelDecision};
use crate::relay::http::{
    Body, Client, ExchangeError, Framing, Input, Patience, Request, exchange, next_request,
    own_answer,
};
use crate::relay::http2::Upgrade;
use crate::relay::{Shared, Timeouts, broken, relay};
use crate::sockets::Carrier;
use crate::telemetry::{RequestRecord, ResponseFlag, TunnelLog as _};
use crate::trace::{Onward, TRACEPARENT};

/// The protocol that is spoken to targets (RFC 7301 section 6).
const ALPN: &[&[u8]] = &[b"http/1.1"];

/// What comes after a request.
enum After {
    /// The end of the connection, which its peers have seen.
    End,
    /// The end of the connection, of which the workload has still to be told.
    Close,
    /// Another request.
    Next,
}

/// One connection of a workload.
struct Session<'a> {
    requests: Requests,
    socket: &'a TcpStream,
    input: Input<Shared<'a>>,
    pool: Pool,
    /// Where its requests become streams.
    shared: Option<Arc<Targets>>,
}

/// Serves a connection, of which `early` has been read, to its end.
pub(super) async fn serve(
    requests: Requests,
    workload: &TcpStream,
    early: Bytes,
) -> Result<(), Failure> {
    let mut session = Session {
        requests,
        socket: workload,
        input: Input::new(Shared(workload), early),
        pool: Pool::default(),
        shared: None,
    };
    session.run().await
}

impl Session<'_> {
    async fn run(&mut self) -> Result<(), Failure> {
        loop {
            let after = match self.next().await {
                Ok(None) => return Ok(()),
                Ok(Some(request)) => Box::pin(self.serve(request)).await?,
                Err(InspectError::Read(error)) => {
                    let error = format!("reading from the workload failed: {error}");
                    return Err(Failure::new(ResponseFlag::DownstreamClosed, error));
                }
                Err(error) => self.reject(&error).await?,
            };
            match after {
                After::Next => {}
                After::End => return Ok(()),
                After::Close => {
                    last_words(self.socket, b"").await;
                    return Ok(());
                }
            }
        }
    }

    /// The next request, or the end. Connections to targets are given up meanwhile as they end.
    async fn next(&mut self) -> Result<Option<Request>, InspectError> {
        let patience = Patience {
            idle: KEEP_ALIVE,
            head: self.requests.way.inspection.rest,
        };
        let pool = &mut self.pool;
        tokio::select! {
            biased;
            request = next_request(&mut self.input, &patience) => request,
            () = pool.watch() => Ok(None),
            () = self.requests.way.closing.cancelled() => Ok(None),
        }
    }

    /// Answers what is no request, or none that can be served.
    async fn reject(&mut self, error: &InspectError) -> Result<After, Failure> {
        let mut record = self.requests.record([]);
        let flag = ResponseFlag::DownstreamProtocol;
        record.failed(flag, error);
        let refused = Refused::new(flag, error.status(), error);
        self.answer(&refused, &record, false, true).await?;
        Ok(After::Close)
    }

    async fn serve(&mut self, mut request: Request) -> Result<After, Failure> {
        let mut record = self.requests.record(request.values(TRACEPARENT));
        record.head(request.method(), request.authority());
        for (name, value) in record.span().onward().iter().flat_map(Onward::changes) {
            request.set(name, value);
        }
        let socket = self.socket;
        let result = tokio::select! {
            biased;
            result = self.attempt(&request, &mut record) => result,
            error = broken(socket) => Err(Refused::gone(&error)),
        };
        let refused = match result {
            Ok(after) => {
                record.finished();
                return Ok(after);
            }
            Err(refused) => refused,
        };
        refused.note(&mut record);
        if record.progress().status().is_some() {
            // The workload must not take what it got for the whole.
            return Err(refused.into_failure());
        }
        let close = request.is_last() || !Body::new(request.framing()).is_over();
        let head_only = request.method() == "HEAD";
        self.answer(&refused, &record, head_only, close).await?;
        Ok(if close { After::Close } else { After::Next })
    }

    /// Tells the workload what came of its request.
    async fn answer(
        &self,
        refused: &Refused,
        record: &RequestRecord,
        head_only: bool,
        close: bool,
    ) -> Result<(), Failure> {
        let Some(status) = refused.status() else {
            return Err(refused.to_failure());
        };
        let answer = own_answer(status, refused.text(), record.id(), head_only, close);
        let mut socket = Shared(self.socket);
        match timeout(REJECTION_DEADLINE, socket.write_all(&answer)).await {
            Ok(Ok(())) => {
                record.progress().answered(status.as_u16(), answer.len());
                Ok(())
            }
            _ => Err(refused.to_failure()),
        }
    }

    /// Decides about a request and carries it out.
    async fn attempt(
        &mut self,
        request: &Request,
        record: &mut RequestRecord,
    ) -> Result<After, Refused> {
        let requests = &self.requests;
        let mut facts = requests.facts(request.host());
        let decided = requests.decide(&mut facts, record).await;
        record.show_on(&requests.live);
        let (route, target) = decided?;
        self.check(request)?;
        let tried = Tried {
            method: request.method(),
            path: request.path(),
            is_repeatable: request.is_replayable(),
        };
        let tries = self.requests.tries(&route, target.as_ref(), &tried)?;
        let progress = record.progress();
        tries.watch(&progress);
        let whose = route.leads_to(&self.requests.origin);
        let trying = async {
            loop {
                let once = self.once(request, (&route, &whose), &tries, &mut facts, record);
                // On the heap, since each that takes it in hand has room for it twice.
                let once = Box::pin(once);
                match tries.once(&whose, &progress, once).await {
                    Ok(after) => {
                        tries.note(record);
                        return Ok(after);
                    }
                    Err(refused) => tries.again(refused, record).await?,
                }
            }
        };
        tries.in_time(&whose, &progress, trying).await
    }

    /// Tries once to carry a request out.
    async fn once(
        &mut self,
        request: &Request,
        (route, whose): (&Route, &str),
        tries: &Tries,
        facts: &mut Facts,
        record: &mut RequestRecord,
    ) -> Result<After, Refused> {
        let circuit = tries.circuit();
        let forward = match route {
            Route::Direct => None,
            Route::Tunnel(decision) => Some(decision).filter(|it| can_forward(request, it)),
        };
        let way = targets::Way {
            route,
            key: Key::of(route, self.requests.origin.dst, circuit, false),
            circuit,
            whose,
        };
        if forward.is_none()
            && circuit.settings().is_some_and(|it| it.http.upgrades)
            && let Some(upgrade) = Upgrade::of(request)
        {
            // On the heap: most connections have no use for the room.
            let upgraded = Box::pin(self.upgraded(request, &upgrade, &way, facts, record));
            if let Some(after) = upgraded.await? {
                return Ok(after);
            }
        }
        let mut pooled = None;
        if forward.is_some() {
            let key = Key::of(route, self.requests.origin.dst, circuit, true);
            pooled = self.pool.take(&key);
        }
        // What takes a connection for itself gets a new one: of an older one its peer may just have
        // had enough, and this cannot be sent twice.
        if pooled.is_none() && !request.may_switch() {
            pooled = self.pool.take(&way.key);
        }
        loop {
            let reused = pooled.is_some();
            let upstream = match pooled.take() {
                Some(upstream) => {
                    upstream.reused(record);
                    upstream
                }
                None => {
                    let wanted = Wanted {
                        forward: forward.is_some(),
                        protocols: ALPN,
                    };
                    // On the heap: most requests have no use for the room.
                    Box::pin(self.reach(route, wanted, circuit, facts, record)).await?
                }
            };
            let carried = self.carry(request, forward, (upstream, reused), &way, record);
            if let Some(after) = carried.await? {
                return Ok(after);
            }
        }
    }

    /// Carries a request out on a connection of HTTP/1.1, which is `reused` or new. `None`: it was
    /// closed while it was idle, as far as anybody can tell.
    async fn carry(
        &mut self,
        request: &Request,
        forward: Option<&TunnelDecision>,
        (mut upstream, reused): (Upstream, bool),
        way: &targets::Way<'_>,
        record: &mut RequestRecord,
    ) -> Result<Option<After>, Refused> {
        self.check_more(request).await?;
        let moving = record.moves(&self.requests.live, upstream.proxy());
        let written = match (&upstream.forwarder, forward) {
            (Some(forwarder), Some(decision)) => {
                Some(forwarder.write(request, &self.requests.arrived(), decision))
            }
            _ => None,
        };
        let request = written.as_ref().unwrap_or(request);
        let timeouts = self.requests.way.patience_with(way.circuit);
        let exchanged = self
            .exchange(request, &mut upstream, &timeouts, record)
            .await;
        drop(moving);
        if let Some(forwarder) = &mut upstream.forwarder {
            forwarder.note(exchanged.as_ref().err(), record);
        }
        match exchanged {
            Ok(answered) => {
                if answered.upstream_persists {
                    let dst = self.requests.origin.dst;
                    let is_forward = upstream.forwarder.is_some();
                    let key = Key::of(way.route, dst, way.circuit, is_forward);
                    self.pool.put(key, upstream);
                }
                Ok(Some(answered.after))
            }
            Err(ExchangeError::NoAnswer(_))
                if reused && !record.progress().heard() && request.is_replayable() =>
            {
                Ok(None)
            }
            Err(error) => Err(match (&upstream.forwarder, forward) {
                (Some(forwarder), Some(decision)) => forwarder.refused(&error, decision),
                _ => Refused::exchange(&error, way.whose),
            }),
        }
    }

    /// A new connection. Those that are kept give way if there may be only so many.
    async fn reach(
        &mut self,
        route: &Route,
        wanted: Wanted<'_>,
        circuit: &Circuit,
        facts: &mut Facts,
        record: &mut RequestRecord,
    ) -> Result<Upstream, Refused> {
        let limit = |refusal: Refusal| Refused::limit(&refusal);
        let waiting = circuit.wait().map_err(limit)?;
        let place = tokio::select! {
            biased;
            place = waiting.connection() => place.map_err(limit)?,
            () = self.pool.watch() => pending().await,
        };
        let arrived = self.requests.arrived();
        let way = &self.requests.way;
        let counted = (circuit, place);
        way.reach(&arrived, route, wanted, counted, facts, record)
            .await
    }

    /// Refuses a body that breaks the rules as far as it has come.
    fn check(&self, request: &Request) -> Result<(), Refused> {
        Body::new(request.framing())
            .check(self.input.buffered())
            .map_err(|error| {
                let error = ExchangeError::BrokenRequest(error);
                Refused::exchange(&error, "the target")
            })
    }

    /// The same, with what has come since.
    async fn check_more(&mut self, request: &Request) -> Result<(), Refused> {
        if request.framing() == Framing::Chunked && self.input.buffered().len() < MAX_AHEAD {
            let input = &mut self.input;
            let read = poll_fn(|cx| match input.poll_fill(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(_)) | Poll::Pending => Poll::Ready(Ok(())),
            });
            read.await.map_err(|error| Refused::gone(&error))?;
        }
        self.check(request)
    }

    async fn exchange(
        &mut self,
        request: &Request,
        upstream: &mut Upstream,
        timeouts: &Timeouts,
        record: &mut RequestRecord,
    ) -> Result<Done, ExchangeError> {
        let progress = record.progress();
        let last = upstream.lease.serve();
        let traffic = record.traffic();
        upstream.stream.abort_on_drop();
        let early = std::mem::take(&mut upstream.early);
        let mut output = Shared(self.socket);
        let client = Client {
            input: &mut self.input,
            output: &mut output,
        };
        let answered = exchange(
            request,
            client,
            &mut upstream.stream,
            early,
            request.is_last() || last,
            self.requests.way.relay.idle,
            &progress,
        )
        .await?;
        if let Some(early) = answered.switched {
            let ahead = self.input.take();
            let mut near = Shared(self.socket);
            let relaying = relay(
                &mut near,
                &mut upstream.stream,
                ahead,
                early,
                timeouts,
                &traffic,
            );
            Box::pin(relaying).await.map_err(ExchangeError::Switched)?;
            upstream.stream.finish_on_drop();
            return Ok(Done {
                upstream_persists: false,
                after: After::End,
            });
        }
        if let Some(error) = &answered.proxy_error {
            let error = String::from_utf8_lossy(error);
            record.refused_by_proxy(&format_args!("the proxy answered by itself: {error}"));
        }
        upstream.stream.finish_on_drop();
        Ok(Done {
            upstream_persists: answered.upstream_persists,
            after: if answered.client_persists {
                After::Next
            } else {
                After::Close
            },
        })
    }
}

/// What is read of a body before its request has gone anywhere, in bytes.
const MAX_AHEAD: usize = 16 * 1024;

struct Done {
    upstream_persists: bool,
    after: After,
}
