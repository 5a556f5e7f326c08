//! Queries of workloads to name servers: answered from policy, or passed on to the server they are for.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Arrived, Failure, InForce, Origin, Way};
use crate::capture::{Asked, MAX_MESSAGE};
use crate::dns::{ForwardError, Kind, Outcome, Query, grant_existence, without_ech_keys};
use crate::name::OriginalDst;
use crate::policy::{self, Served, View};
use crate::sockets::{SocketFactory, Vantage};
use crate::telemetry::{self, ConnectionRecord, Label, ResponseFlag};
use crate::tunnel::Stream;

/// How long an answer of ours is good. The addresses stay the same; policy may not.
const TTL: Duration = Duration::from_secs(60);

/// The same for an address that was given on demand: nobody knows whose it is when the agent has been
/// started again, until somebody asks.
const TTL_ON_DEMAND: Duration = Duration::from_secs(10);

/// How long a connection for queries may be idle, and an answer take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What becomes of a query.
enum Answer {
    /// This is the answer; there is none where it cannot be written.
    Ours(Option<Vec<u8>>),
    /// Its server is to be asked, and this done to what it says.
    OfServer(Edits),
}

/// What is done to the answer of a server on its way.
#[derive(Clone, Copy, Default)]
struct Edits {
    /// The name exists, whatever the server says.
    exists: bool,
    /// Keys for ECH are taken out.
    without_keys: bool,
}

impl Way {
    /// The answer to a query over UDP of a workload that is there, or where the agent is.
    pub(crate) async fn answer(
        &self,
        asked: &Asked,
        from: Option<&Arc<Vantage>>,
    ) -> Option<Vec<u8>> {
        let origin = Origin {
            dst: OriginalDst(asked.server),
            cgroup_id: asked.cgroup_id,
            pid: asked.pid,
            from: from.cloned(),
            host: None,
        };
        let policy = self.policy.load_full();
        let (_, view) = self.look_from(&policy, &origin).await;
        let edits = match self.consider(&asked.message, &origin, &policy, &view) {
            Answer::Ours(answer) => return answer,
            Answer::OfServer(edits) => edits,
        };
        let asking = (asked.server, &*asked.message);
        let sockets = self.sockets_at(from);
        let answer = self.forwarder.ask(asking, sockets, from).await;
        match answer {
            Ok(answer) => self.forwarded(answer, &asked.message, edits, &origin),
            Err(error) => {
                tracing::debug!(server = %asked.server, %error, "query not answered");
                self.metrics.dns.asked(match error {
                    ForwardError::TooMany => Outcome::Refused,
                    ForwardError::Io(_) | ForwardError::Silence => Outcome::Failed,
                });
                match error {
                    // The workload would have heard of that at once.
                    ForwardError::Io(_) => Query::read(&asked.message).ok()??.failure(),
                    ForwardError::Silence | ForwardError::TooMany => None,
                }
            }
        }
    }

    /// What policy says of a query.
    fn consider(&self, message: &[u8], origin: &Origin, policy: &InForce, view: &View) -> Answer {
        let Ok(Some(query)) = Query::read(message) else {
            // What we cannot read, its server may.
            return Answer::OfServer(Edits::default());
        };
        let served = policy.serves(&query.name, view);
        let (Some(served), Some(range)) = (served, policy.virtual_range()) else {
            let removes = || policy.removes_ech_keys(&query.name, view);
            return Answer::OfServer(Edits {
                exists: false,
                without_keys: query.may_tell_keys() && removes(),
            });
        };
        if query.kind == Kind::Other {
            return Answer::OfServer(Edits {
                exists: true,
                without_keys: false,
            });
        }
        let mut ttl = TTL;
        let addresses = match (served, query.kind) {
            (_, Kind::Service | Kind::Other) => Vec::new(),
            (Served::At(addresses), _) => addresses,
            (Served::Virtual(slot), _) => range.addresses(slot).to_vec(),
            (Served::OnDemand, _) => {
                ttl = TTL_ON_DEMAND;
                let now = Instant::now();
                let given = self
                    .virtuals
                    .give(&query.name, range, origin.cgroup_id, now);
                self.count_virtuals(policy);
                match given {
                    Ok(slot) => range.addresses(slot).to_vec(),
                    Err(error) => {
                        tracing::warn!(name = %query.name, %error, "query refused");
                        self.metrics.dns.asked(Outcome::Refused);
                        return Answer::Ours(query.failure());
                    }
                }
            }
        };
        self.metrics.dns.asked(Outcome::Answered);
        let answer = query.answer(&addresses, ttl);
        if let Some(answer) = &answer
            && !addresses.iter().any(|address| policy.is_virtual(*address))
        {
            self.knowledge.tell(origin.cgroup_id, answer);
        }
        Answer::Ours(answer)
    }

    /// Has the metric tell how many hosts have virtual addresses.
    pub(crate) fn count_virtuals(&self, policy: &InForce) {
        let hosts = policy.virtual_hosts() + self.virtuals.len();
        self.metrics.dns.set_virtual_hosts(hosts);
    }

    /// The answer of a server as it goes on to the workload, which then knows what it says.
    fn forwarded(
        &self,
        mut answer: Vec<u8>,
        asked: &[u8],
        edits: Edits,
        origin: &Origin,
    ) -> Option<Vec<u8>> {
        if edits.exists {
            grant_existence(&mut answer);
        }
        if edits.without_keys {
            match without_ech_keys(&answer) {
                Ok(None) => {}
                Ok(Some(changed)) => answer = changed,
                Err(error) => {
                    // It may have keys.
                    tracing::debug!(%error, "answer with or without keys for ECH not passed on");
                    self.metrics.dns.asked(Outcome::Failed);
                    return Query::read(asked).ok()??.failure();
                }
            }
        }
        self.knowledge.tell(origin.cgroup_id, &answer);
        self.metrics.dns.asked(Outcome::Forwarded);
        Some(answer)
    }

    /// Makes sockets where a workload is, or the agent.
    pub(super) fn sockets_at<'a>(
        &'a self,
        from: Option<&'a Arc<Vantage>>,
    ) -> &'a Arc<dyn SocketFactory> {
        from.map_or(&self.sockets, |from| from.sockets())
    }

    /// Serves a connection to port 53: queries and answers, one after the other. Its server is
    /// connected to when the first query comes that is for it, the way that policy has for it.
    pub(super) async fn queries_over_tcp(
        &self,
        workload: &mut TcpStream,
        arrived: Arrived,
        origin: &Origin,
        policy: Arc<InForce>,
        view: Arc<View>,
        record: &mut ConnectionRecord,
    ) -> Result<(), Failure> {
        let mut server: Option<Stream> = None;
        let gone = |error: io::Error| Failure::new(ResponseFlag::DownstreamClosed, error);
        loop {
            let Some(message) = read_message(workload).await.map_err(gone)? else {
                return Ok(());
            };
            let answer = match self.consider(&message, origin, &policy, &view) {
                Answer::Ours(answer) => {
                    if server.is_none() {
                        let rule = Some(Label::fixed("DNS: answered from policy"));
                        record.decided(telemetry::Decision::Direct, None, rule);
                    }
                    answer
                }
                Answer::OfServer(edits) => {
                    let stream = match &mut server {
                        Some(stream) => stream,
                        None => {
                            let there = self.name_server(&arrived, origin, &policy, &view, record);
                            let there = there.await.inspect_err(|_| {
                                self.metrics.dns.asked(Outcome::Failed);
                            })?;
                            server.insert(there)
                        }
                    };
                    let asking = exchange(stream, &message);
                    let answer = asking.await.map_err(|error| {
                        self.metrics.dns.asked(Outcome::Failed);
                        Failure::new(ResponseFlag::UpstreamFailure, error)
                    })?;
                    self.forwarded(answer, &message, edits, origin)
                }
            };
            let Some(answer) = answer else {
                continue;
            };
            write_message(workload, &answer).await.map_err(gone)?;
        }
    }

    /// A connection to the name server that a workload has connected to.
    async fn name_server(
        &self,
        arrived: &Arrived,
        origin: &Origin,
        policy: &InForce,
        view: &View,
        record: &mut ConnectionRecord,
    ) -> Result<Stream, Failure> {
        let mut facts = origin.facts();
        let verdict = self.judge(policy, &mut facts, view, origin).await;
        match verdict.decision {
            policy::Decision::Deny { policy, reason } => {
                record.decided(
                    telemetry::Decision::Deny,
                    Some(Label::shared(&policy)),
                    None,
                );
                let label = self.denied(reason, telemetry::TargetSource::OriginalDst);
                record.denied(label, &reason);
                Err(Failure::new(ResponseFlag::Deny, reason))
            }
            policy::Decision::Direct(rule) => {
                let by = rule.policy().map(Label::shared);
                record.decided(telemetry::Decision::Direct, by, Some(Label::of(&rule)));
                // What is on loopback, or in the pod's network, is so for the workload only.
                let connecting = self.sockets_at(origin.from.as_ref()).connect(origin.dst.0);
                let connected = timeout(self.direct_deadline, connecting).await;
                match connected.map_err(io::Error::from).flatten() {
                    Ok(stream) => Ok(stream.into()),
                    Err(error) => {
                        let error = format!("cannot connect to {}: {error}", origin.dst);
                        Err(Failure::new(ResponseFlag::UpstreamFailure, error))
                    }
                }
            }
            policy::Decision::Tunnel(decision) => {
                let by = Some(Label::shared(&decision.policy));
                record.decided(telemetry::Decision::Tunnel, by, None);
                let source = super::outbound::target_source(decision.source);
                record.target(decision.target.clone(), source);
                let opened = Box::pin(self.open(arrived, &decision, None, record)).await;
                match opened {
                    Ok(tunnel) => Ok(tunnel.stream),
                    Err(error) => Err(Failure::new(super::outbound::flag(&error), error)),
                }
            }
        }
    }
}

/// Asks over a connection, and waits for the answer.
async fn exchange(stream: &mut Stream, query: &[u8]) -> io::Result<Vec<u8>> {
    let asking = async {
        write_message(stream, query).await?;
        let answer = read_message(stream).await?;
        answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    };
    timeout(PATIENCE, asking)
        .await
        .map_err(io::Error::from)
        .flatten()
}

/// Reads a message with its length before it (RFC 1035 section 4.2.2); `None` at the end, or where
/// nothing comes for a while.
async fn read_message(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
) -> io::Result<Option<Vec<u8>>> {
    let reading = async {
        let length = match stream.read_u16().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            length => length?,
        };
        let mut message = vec![0; usize::from(length).min(MAX_MESSAGE)];
        stream.read_exact(&mut message).await?;
        Ok(Some(message))
    };
    timeout(PATIENCE, reading).await.unwrap_or(Ok(None))
}

async fn write_message(
    stream: &mut (impl tokio::io::AsyncWrite + Unpin),
    message: &[u8],
) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await?;
    stream.flush().await
}
