//! A connection of HTTP/2: its requests are served at the same time.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use tokio::io::{AsyncReadExt as _, join};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::refused::Refused;
use super::targets::{Carried, MAX_TRIES, SWEEP, Target, Targets, Way};
use super::tries::Tried;
use super::upstream::{Key, MAX_IDLE};
use super::{KEEP_ALIVE, Requests};
use crate::connection::Failure;
use crate::connection::first_bytes::last_words;
use crate::policy::Facts;
use crate::relay::http2::{
    Client, End, ExchangeError, Incoming, OwnAnswer, Request, exchange, serve as serve_streams,
    translate,
};
use crate::relay::{Progress, Shared};
use crate::sockets::Carrier;
use crate::telemetry::{RequestRecord, ResponseFlag, TunnelLog as _};
use crate::trace::{Onward, TRACEPARENT};

/// Serves a connection, of which `early` has been read, to its end.
pub(super) async fn serve(
    requests: Requests,
    workload: &TcpStream,
    early: Bytes,
) -> Result<(), Failure> {
    let requests = Arc::new(requests);
    let targets = Arc::new(Targets::new(MAX_IDLE));
    let io = join(
        std::io::Cursor::new(early).chain(Shared(workload)),
        Shared(workload),
    );
    let served = serve_streams(io, KEEP_ALIVE, &requests.way.closing, |incoming| {
        let session = Session {
            requests: Arc::clone(&requests),
            targets: Arc::clone(&targets),
        };
        session.serve(incoming)
    });
    let served = tokio::select! {
        served = served => served,
        () = sweep(&targets) => Ok(()),
    };
    let Err(error) = served else {
        return Ok(());
    };
    let flag = if error.is_io() {
        ResponseFlag::DownstreamClosed
    } else {
        // It has been told why, by GOAWAY, and should get to read it.
        last_words(workload, b"").await;
        ResponseFlag::DownstreamProtocol
    };
    let error = format!("HTTP/2 with the workload failed: {error}");
    Err(Failure::new(flag, error))
}

/// Gives up what has been idle for too long. Never ends.
async fn sweep(targets: &Targets) {
    loop {
        sleep(SWEEP).await;
        targets.sweep();
    }
}

/// What each request has of its connection.
struct Session {
    requests: Arc<Requests>,
    targets: Arc<Targets>,
}

impl Session {
    async fn serve(self, incoming: Incoming) -> End {
        let Incoming { head, mut client } = incoming;
        let parents = head.headers.get_all(TRACEPARENT).iter();
        let mut record = self.requests.record(parents.map(HeaderValue::as_bytes));
        let authority = head.uri.authority().map(|one| one.as_str().as_bytes());
        let host = || {
            head.headers
                .get(http::header::HOST)
                .map(HeaderValue::as_bytes)
        };
        let authority = authority.or_else(host).unwrap_or_default();
        record.head(head.method.as_str(), authority);
        let manner = (false, head.method == Method::HEAD);
        let mut request = match Request::check(head) {
            Ok(request) => request,
            Err(error) => {
                let flag = ResponseFlag::DownstreamProtocol;
                let refused = Refused::new(flag, error.status(), &error);
                return end(&refused, &mut client, manner, &mut record);
            }
        };
        if request.is_call() {
            record.grpc();
        }
        for (name, value) in record.span().onward().iter().flat_map(Onward::changes) {
            request.set(name, value);
        }
        let manner = (request.is_call(), manner.1);
        let progress = record.progress();
        let patience = self.requests.way.relay.idle;
        let result = tokio::select! {
            biased;
            result = Box::pin(self.attempt(&request, &mut client, &mut record)) => result,
            refused = late(request.timeout(), &progress) => Err(refused),
            () = progress.silence(patience) => Err(Refused::silent(patience)),
        };
        match result {
            Ok(()) => {
                record.finished();
                End::Other
            }
            Err(refused) => end(&refused, &mut client, manner, &mut record),
        }
    }

    /// Decides about a request and carries it out.
    async fn attempt(
        &self,
        request: &Request,
        client: &mut Client,
        record: &mut RequestRecord,
    ) -> Result<(), Refused> {
        let requests = &self.requests;
        let mut facts = requests.facts(request.host());
        let decided = tokio::select! {
            decided = requests.decide(&mut facts, record) => decided,
            error = client.reset() => Err(given_up(error)),
        };
        record.show_on(&requests.live);
        let (route, target) = decided?;
        let tried = Tried {
            method: request.method().as_str(),
            path: request.path(),
            is_repeatable: client.has_no_body() && request.is_idempotent(),
        };
        let tries = requests.tries(&route, target.as_ref(), &tried)?;
        let progress = record.progress();
        tries.watch(&progress);
        let whose = route.leads_to(&requests.origin);
        let way = Way {
            route: &route,
            key: Key::of(&route, requests.origin.dst, tries.circuit(), false),
            circuit: tries.circuit(),
            whose: &whose,
        };
        let trying = async {
            loop {
                // On the heap, since each that takes it in hand has room for it twice.
                let once = Box::pin(self.once(request, client, &way, &mut facts, record));
                let refused = match tries.once(&whose, &progress, once).await {
                    Ok(()) => {
                        tries.note(record);
                        return Ok(());
                    }
                    Err(refused) => refused,
                };
                tokio::select! {
                    again = tries.again(refused, record) => again?,
                    error = client.reset() => return Err(given_up(error)),
                }
            }
        };
        tries.in_time(&whose, &progress, trying).await
    }

    /// Tries once to carry a request out.
    async fn once(
        &self,
        request: &Request,
        client: &mut Client,
        way: &Way<'_>,
        facts: &mut Facts,
        record: &mut RequestRecord,
    ) -> Result<(), Refused> {
        let requests = &self.requests;
        let mut avoid = Vec::new();
        loop {
            let (target, reused) = tokio::select! {
                biased;
                // Also what has turned out to be malformed meanwhile goes nowhere.
                error = client.reset() => Err(given_up(error)),
                reached = self.targets.reach(requests, way, &avoid, facts, record) => reached,
            }?;
            if request.is_connect() && matches!(target, Target::Http1(_)) {
                self.targets.put(&way.key, target, true);
                let text = "the target speaks HTTP/1.1, where CONNECT of HTTP/2 has no counterpart on \
                            a connection for several requests";
                let flag = ResponseFlag::DownstreamProtocol;
                return Err(Refused::new(flag, StatusCode::NOT_IMPLEMENTED, &text));
            }
            let moving = record.moves(&requests.live, target.proxy());
            let progress = record.progress();
            let carried = Carried(&self.targets);
            let (target, result) = carry(request, client, target, &progress).await;
            drop(moving);
            let error = match result {
                Ok(persists) => {
                    self.targets.put(&way.key, target, persists);
                    return Ok(());
                }
                Err(error) => error,
            };
            drop(carried);
            let is_untouched = client.is_untouched();
            let again = match &error {
                ExchangeError::NotTaken(_) => is_untouched,
                // It ended while it was idle, as far as anybody can tell.
                ExchangeError::Lost(_) | ExchangeError::NoAnswer(_) => {
                    reused && !progress.heard() && client.has_no_body() && request.is_idempotent()
                }
                _ => false,
            };
            if !again || avoid.len() + 1 >= MAX_TRIES {
                return Err(Refused::stream(&error, way.whose, is_untouched));
            }
            if let Target::Http2(line) = target {
                avoid.push(line);
            }
        }
    }
}

/// Carries one request to its target. Says whether that can serve another.
async fn carry(
    request: &Request,
    client: &mut Client,
    target: Target,
    progress: &Progress,
) -> (Target, Result<bool, ExchangeError>) {
    match target {
        Target::Http2(line) => {
            let exchanged =
                exchange(request, client, &line.connection, &line.scheme, progress).await;
            (Target::Http2(line), exchanged.map(|()| true))
        }
        Target::Http1(mut upstream) => {
            upstream.stream.abort_on_drop();
            upstream.lease.serve();
            let early = std::mem::take(&mut upstream.early);
            let stream = &mut upstream.stream;
            let exchanged = translate(request, client, stream, early, progress).await;
            if exchanged.is_ok() {
                upstream.stream.finish_on_drop();
            }
            (Target::Http1(upstream), exchanged)
        }
    }
}

/// Tells the workload what came of its request.
fn end(
    refused: &Refused,
    client: &mut Client,
    manner: (bool, bool),
    record: &mut RequestRecord,
) -> End {
    refused.note(record);
    let progress = record.progress();
    let status = refused.status().filter(|_| progress.status().is_none());
    let answered = status.is_some_and(|status| {
        let answer = OwnAnswer {
            status,
            grpc: refused.grpc_status(),
            reason: refused.text(),
            id: record.id(),
        };
        client.answer(&answer, manner, &progress).is_ok()
    });
    if !answered {
        client.abort(refused.reset());
    }
    if refused.is_given_up() {
        End::GivenUp
    } else {
        End::Other
    }
}

/// The workload does not wait for the answer.
fn given_up(error: h2::Error) -> Refused {
    Refused::stream(&ExchangeError::waiting(error), "", true)
}

/// Ends when the workload would not wait any longer, unless the answer has begun by then.
async fn late(timeout: Option<Duration>, progress: &Progress) -> Refused {
    if let Some(timeout) = timeout {
        sleep(timeout).await;
        if progress.status().is_none() {
            return Refused::late(timeout);
        }
    }
    pending().await
}
