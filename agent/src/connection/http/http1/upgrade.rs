//! Requests of HTTP/1.1 that go to their target in HTTP/2, where policy wants it.

use std::future::pending;
use std::sync::Arc;

use h2::Reason;

use super::super::refused::Refused;
use super::super::targets::{Carried, MAX_TRIES, Target, Targets, Way};
use super::{After, Session};
use crate::policy::Facts;
use crate::relay::Shared;
use crate::relay::http::{Client, Request};
use crate::relay::http2::{ExchangeError, Upgrade, UpgradeError};
use crate::telemetry::RequestRecord;

impl Session<'_> {
    /// Tries once to carry a request out; in HTTP/1.1 all the same if by ALPN the target does not
    /// speak HTTP/2. `None`: it wants to hear this request in HTTP/1.1.
    pub(super) async fn upgraded(
        &mut self,
        request: &Request,
        upgrade: &Upgrade<'_>,
        way: &Way<'_>,
        facts: &mut Facts,
        record: &mut RequestRecord,
    ) -> Result<Option<After>, Refused> {
        let targets = self.shared_targets();
        let mut avoid = Vec::new();
        loop {
            if targets.speak_http1(&way.key)
                && let Some(upstream) = self.pool.take(&way.key)
            {
                upstream.reused(record);
                let carried = self.carry(request, None, (upstream, true), way, record);
                match carried.await? {
                    Some(after) => return Ok(Some(after)),
                    None => continue,
                }
            }
            let (target, reused) = tokio::select! {
                biased;
                reached = targets.reach(&self.requests, way, &avoid, facts, record) => reached?,
                () = self.pool.watch() => pending().await,
            };
            let line = match target {
                Target::Http2(line) => line,
                Target::Http1(upstream) => {
                    let upstream = (*upstream, reused);
                    return self.carry(request, None, upstream, way, record).await;
                }
            };
            self.check_more(request).await?;
            let carried = Carried(&targets);
            let moving = record.moves(&self.requests.live, line.proxy());
            let progress = record.progress();
            let client = Client {
                input: &mut self.input,
                output: &mut Shared(self.socket),
            };
            let patience = self.requests.way.relay.idle;
            let exchanged = upgrade
                .exchange(client, &line.connection, &line.scheme, patience, &progress)
                .await;
            drop(moving);
            let error = match exchanged {
                Ok(persists) => {
                    targets.put(&way.key, Target::Http2(line), true);
                    return Ok(Some(if persists { After::Next } else { After::Close }));
                }
                Err(error) => error,
            };
            drop(carried);
            let is_untouched = upgrade.is_untouched();
            let again = match &error {
                UpgradeError::Stream(ExchangeError::NotTaken(_)) => is_untouched,
                // It ended while it was idle, as far as anybody can tell.
                UpgradeError::Stream(ExchangeError::Lost(_)) => {
                    reused && !progress.heard() && request.is_replayable()
                }
                UpgradeError::Stream(ExchangeError::Reset(Reason::HTTP_1_1_REQUIRED))
                    if is_untouched && progress.traffic.received() == 0 =>
                {
                    return Ok(None);
                }
                _ => false,
            };
            if !again || avoid.len() + 1 >= MAX_TRIES {
                return Err(Refused::upgraded(&error, way.whose, is_untouched));
            }
            avoid.push(line);
        }
    }

    /// Those of the workload, whatever connection of it asks for them.
    fn shared_targets(&mut self) -> Arc<Targets> {
        let requests = &self.requests;
        let shared = self
            .shared
            .get_or_insert_with(|| requests.way.shared_targets.of(&requests.origin));
        Arc::clone(shared)
    }
}
