//! A connection of HTTP/1.1.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::refused::Refused;
use super::upstream::{Key, Pool, Upstream};
use super::{KEEP_ALIVE, Requests};
use crate::connection::Failure;
use crate::connection::first_bytes::{REJECTION_DEADLINE, last_words};
use crate::inspect::InspectError;
use crate::relay::http::{
    Body, Client, ExchangeError, Framing, Input, Patience, Request, exchange, next_request,
    own_answer,
};
use crate::relay::{Shared, broken, relay};
use crate::sockets::Carrier;
use crate::telemetry::{RequestRecord, ResponseFlag};

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
    };
    session.run().await
}

impl Session<'_> {
    async fn run(&mut self) -> Result<(), Failure> {
        loop {
            let after = match self.next().await {
                Ok(None) => return Ok(()),
                Ok(Some(request)) => Box::pin(self.serve(&request)).await?,
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
        let mut record = self.requests.record();
        let flag = ResponseFlag::DownstreamProtocol;
        record.failed(flag, error);
        let refused = Refused::new(flag, error.status(), error);
        self.answer(&refused, &record, false, true).await?;
        Ok(After::Close)
    }

    async fn serve(&mut self, request: &Request) -> Result<After, Failure> {
        let mut record = self.requests.record();
        record.head(request.method(), request.authority());
        let socket = self.socket;
        let result = tokio::select! {
            biased;
            result = self.attempt(request, &mut record) => result,
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
        let route = requests.decide(&mut facts, record).await;
        record.show_on(&requests.live);
        let route = route?;
        let key = Key::of(&route);
        self.check(request)?;
        let mut pooled = self.pool.take(&key);
        loop {
            let reused = pooled.is_some();
            let mut upstream = match pooled.take() {
                Some(upstream) => {
                    upstream.reused(record);
                    upstream
                }
                None => {
                    let arrived = self.requests.arrived();
                    let way = &self.requests.way;
                    way.reach(&arrived, (&route, ALPN), &mut facts, record)
                        .await?
                }
            };
            self.check_more(request).await?;
            let moving = record.moves(&self.requests.live, upstream.proxy());
            let exchanged = self.exchange(request, &mut upstream, record).await;
            drop(moving);
            match exchanged {
                Ok(answered) => {
                    if answered.upstream_persists {
                        self.pool.put(key, upstream);
                    }
                    return Ok(answered.after);
                }
                // It was closed while it was idle, as far as anybody can tell.
                Err(ExchangeError::NoAnswer(_))
                    if reused && !record.progress().heard() && request.is_replayable() => {}
                Err(error) => {
                    let who = route.leads_to(&self.requests.origin);
                    return Err(Refused::exchange(&error, &who));
                }
            }
        }
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
        record: &RequestRecord,
    ) -> Result<Done, ExchangeError> {
        let progress = record.progress();
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
            request.is_last(),
            self.requests.way.relay.idle,
            &progress,
        )
        .await?;
        if let Some(early) = answered.switched {
            let ahead = self.input.take();
            let mut near = Shared(self.socket);
            let timeouts = &self.requests.way.relay;
            relay(
                &mut near,
                &mut upstream.stream,
                ahead,
                early,
                timeouts,
                &traffic,
            )
            .await
            .map_err(ExchangeError::Switched)?;
            upstream.stream.finish_on_drop();
            return Ok(Done {
                upstream_persists: false,
                after: After::End,
            });
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
