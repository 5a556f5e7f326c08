//! How often a request is tried, and for how long, as policy wants it.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use super::refused::{Fault, Refused};
use super::{Requests, Route};
use crate::circuit::{Attempt, Circuit, Held, Leads, Outcome};
use crate::policy::{HttpRoute, Retries, TargetPolicy};
use crate::relay::{Head, Progress};
use crate::telemetry::{Label, RequestRecord};

/// What is tried.
pub(super) struct Tried<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    /// Whether it may be sent again once it has been sent.
    pub(super) is_repeatable: bool,
}

/// The tries of one request.
pub(super) struct Tries {
    circuit: Circuit,
    limits: Option<Limits>,
    is_connect: bool,
    shared: Arc<Shared>,
    /// It counts among the requests to the target as long as this lives.
    _request: Held,
}

/// What policy says of the request.
struct Limits {
    /// The VirtualService.
    policy: Arc<str>,
    timeout: Option<(Duration, Instant)>,
    retries: Option<Arc<Retries>>,
    label: Label,
}

/// What the one who sees the answer first shares with the one who tries.
struct Shared {
    circuit: Circuit,
    retries: Option<Arc<Retries>>,
    is_repeatable: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The try that is under way, until its answer begins.
    attempt: Option<Attempt>,
    /// Retries so far, the one that is about to come included.
    retries: u32,
    /// Each counts among those to the target until the next, or the end.
    retry: Option<Held>,
    /// It would have been tried again if it had not been so often.
    is_exhausted: bool,
}

impl Requests {
    /// The tries of a request on this route.
    pub(super) fn tries(
        &self,
        route: &Route,
        target: Option<&Arc<TargetPolicy>>,
        tried: &Tried<'_>,
    ) -> Result<Tries, Refused> {
        let leads = match route {
            Route::Direct => Leads::Direct(self.origin.dst.0),
            Route::Tunnel(decision) => Leads::Tunnel(decision.target.clone()),
        };
        let circuit = self.way.circuits.of(target, leads);
        let request = circuit
            .request()
            .map_err(|refusal| Refused::limit(&refusal))?;
        let limits = target.and_then(|target| limits(target, tried));
        let shared = Shared {
            circuit: circuit.clone(),
            retries: limits.as_ref().and_then(|limits| limits.retries.clone()),
            is_repeatable: tried.is_repeatable,
            state: Mutex::default(),
        };
        Ok(Tries {
            circuit,
            limits,
            is_connect: tried.method == "CONNECT",
            shared: Arc::new(shared),
            _request: request,
        })
    }
}

fn limits(target: &TargetPolicy, tried: &Tried<'_>) -> Option<Limits> {
    let routes = target.routes.as_ref()?;
    let HttpRoute {
        timeout, retries, ..
    } = routes.of(tried.method, tried.path, target.port)?;
    Some(Limits {
        policy: Arc::clone(&routes.policy),
        timeout: timeout.map(|time| (time, Instant::now() + time)),
        retries: retries.clone(),
        label: Label::shared(&target.declared),
    })
}

impl Tries {
    /// What is counted of the target.
    pub(super) fn circuit(&self) -> &Circuit {
        &self.circuit
    }

    /// Sees to it that answers are looked at before the workload gets them.
    pub(super) fn watch(&self, progress: &Progress) {
        let is_of_interest = self.circuit.settings().is_some() || self.limits.is_some();
        if is_of_interest {
            let shared = Arc::clone(&self.shared);
            progress.judge(move |head| shared.takes(head));
        }
    }

    /// Bounds all tries together, to the end of the answer; but not what has become a stream of
    /// bytes.
    pub(super) async fn in_time<T>(
        &self,
        whose: &str,
        progress: &Progress,
        trying: impl Future<Output = Result<T, Refused>>,
    ) -> Result<T, Refused> {
        let late = async {
            let Some((limits, (time, until))) = self.limits.as_ref().and_then(|limits| {
                let timeout = limits.timeout?;
                Some((limits, timeout))
            }) else {
                return pending().await;
            };
            sleep_until(until).await;
            match progress.status() {
                Some(101) => pending().await,
                Some(200..=299) if self.is_connect => pending().await,
                _ => Refused::out_of_time(whose, "timeout", time, &limits.policy),
            }
        };
        tokio::select! {
            biased;
            result = trying => result,
            refused = late => {
                self.shared.failed();
                Err(refused)
            }
        }
    }

    /// Makes one try: as long as policy lets it, and if the target may be tried at all.
    pub(super) async fn once<T>(
        &self,
        whose: &str,
        progress: &Progress,
        trying: impl Future<Output = Result<T, Refused>>,
    ) -> Result<T, Refused> {
        let attempt = self.circuit.attempt();
        let attempt = attempt.map_err(|refusal| Refused::limit(&refusal))?;
        self.shared.state.lock().attempt = Some(attempt);
        progress.starts();
        let late = async {
            let limits = self.limits.as_ref();
            let limits = limits.and_then(|limits| Some((limits, limits.retries.as_ref()?)));
            let Some((limits, time)) =
                limits.and_then(|(limits, retries)| Some((limits, retries.per_try_timeout?)))
            else {
                return pending().await;
            };
            sleep(time).await;
            if progress.status().is_some() {
                // It has begun in time, and may go on.
                return pending().await;
            }
            let by = &limits.policy;
            Refused::out_of_time(whose, "perTryTimeout", time, by).because(Fault::NoAnswer)
        };
        tokio::select! {
            biased;
            result = trying => result,
            refused = late => Err(refused),
        }
    }

    /// Waits until the next try, if there is one after this.
    ///
    /// # Errors
    /// There is none.
    pub(super) async fn again(
        &self,
        refused: Refused,
        record: &mut RequestRecord,
    ) -> Result<(), Refused> {
        let Some(fault) = refused.fault() else {
            return Err(refused);
        };
        if fault.is_of_target() {
            self.shared.failed();
        }
        let progress = record.progress();
        let is_untouched = progress.status().is_none() && progress.traffic.received() == 0;
        if !is_untouched || !self.shared.repeats(fault) {
            let is_exhausted = self.shared.state.lock().is_exhausted;
            return Err(if is_exhausted && is_untouched {
                refused.exhausted()
            } else {
                refused
            });
        }
        let number = self.shared.state.lock().retries;
        record.tried_again();
        if let Some(limits) = &self.limits {
            record.metrics().circuits.retried(&limits.label);
        }
        tracing::debug!(
            id = record.id(),
            number,
            reason = refused.text(),
            "trying again"
        );
        let retries = self.shared.retries.as_ref();
        let wait = retries.map(|retries| retries.wait(number, fastrand::f64()));
        sleep(wait.unwrap_or_default()).await;
        Ok(())
    }

    /// Writes down what is to be known of an answer that came to its end.
    pub(super) fn note(&self, record: &mut RequestRecord) {
        if self.shared.state.lock().is_exhausted {
            record.exhausted();
        }
    }
}

impl Shared {
    /// Whether an answer that begins goes to the workload.
    fn takes(&self, head: Head) -> bool {
        let status = status_of(head);
        if let Some(attempt) = self.state.lock().attempt.take() {
            attempt.ended(Outcome::Answered(status));
        }
        let Some(retries) = &self.retries else {
            return true;
        };
        let grpc = head
            .grpc_status
            .and_then(|status| u8::try_from(status).ok());
        let is_one = retries.on.answer(head.status, grpc);
        !(is_one && self.is_repeatable && head.is_first && self.one_more(retries))
    }

    /// No answer of the target.
    fn failed(&self) {
        if let Some(attempt) = self.state.lock().attempt.take() {
            attempt.ended(Outcome::Failed);
        }
    }

    /// Whether a request that failed so is tried again.
    fn repeats(&self, fault: Fault) -> bool {
        let Some(retries) = &self.retries else {
            return false;
        };
        let on = &retries.on;
        let (is_one, is_safe) = match fault {
            // It has been decided when it came.
            Fault::Unwanted => return true,
            Fault::NoConnection | Fault::NoTunnel => (on.no_connection(), true),
            Fault::NotTaken { is_untouched } => (on.refused(), is_untouched),
            Fault::NoAnswer => (on.no_answer(), self.is_repeatable),
        };
        is_one && is_safe && self.one_more(retries)
    }

    /// Takes the place of another retry, if there may be one.
    fn one_more(&self, retries: &Retries) -> bool {
        let mut state = self.state.lock();
        if state.retries >= retries.attempts {
            state.is_exhausted = true;
            return false;
        }
        // The one before is over.
        state.retry = None;
        match self.circuit.retry() {
            Ok(retry) => {
                state.retry = Some(retry);
                state.retries += 1;
                true
            }
            Err(_) => false,
        }
    }
}

/// The status of an answer; of a call that failed, what HTTP has for the status of gRPC, as Envoy
/// does.
fn status_of(head: Head) -> u16 {
    match head.grpc_status {
        Some(4) => 504,
        Some(14) => 503,
        Some(2 | 13 | 15) => 500,
        Some(12) => 501,
        _ => head.status,
    }
}
