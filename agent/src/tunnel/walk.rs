//! The tries of one request at the endpoints of a proxy.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::upstream::{Tried, Turn, Upstream};
use super::{Attempt, Cause, Observer, Request, Time, TunnelError};

/// Tries of one request at one proxy.
const MAX_TRIES: usize = 8;

/// Goes from endpoint to endpoint, until one does or no other may do better.
pub(super) struct Walk<'a> {
    request: &'a Request<'a>,
    time: Time,
    upstream: Arc<Upstream>,
    observer: &'a Arc<dyn Observer>,
    label: &'a Arc<str>,
    tried: Tried,
    tries: usize,
    last: Option<(Cause, Attempt)>,
    /// One endpoint could not serve the target.
    is_refused: bool,
    is_over: bool,
    /// Whoever opens a tunnel is one of so many.
    permit: Option<OwnedSemaphorePermit>,
}

/// A try at one endpoint.
pub(super) struct Try {
    pub(super) turn: Turn,
    /// When it has to be done.
    pub(super) deadline: Instant,
    pub(super) attempt: Attempt,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        request: &'a Request<'a>,
        time: Time,
        upstream: Arc<Upstream>,
        observer: &'a Arc<dyn Observer>,
    ) -> Self {
        Self {
            label: request.proxy.label(),
            request,
            time,
            upstream,
            observer,
            tried: Tried::default(),
            tries: 0,
            last: None,
            is_refused: false,
            is_over: false,
            permit: None,
        }
    }

    /// The next try. What comes of it is [told](Self::took).
    pub(super) fn next(&mut self) -> Option<Try> {
        if self.is_over || self.tries == MAX_TRIES {
            return None;
        }
        if self.tries == 0 {
            match self.upstream.begin() {
                Ok(permit) => self.permit = permit,
                Err(cause) => {
                    self.observer.over_limit(self.label, "pending");
                    self.is_over = true;
                    self.last = Some((cause, Attempt::default()));
                    return None;
                }
            }
        }
        self.tries += 1;
        let turn = self.upstream.next(&self.tried)?;
        if let Some((cause, _)) = &self.last {
            self.observer.retried(self.label, cause.reason());
        }
        let others = self.time.has_others || self.upstream.has_others(&self.tried);
        Some(Try {
            turn,
            deadline: self.time.share(others),
            attempt: Attempt::default(),
        })
    }

    /// How long a try took, and what went wrong with it if anything did.
    pub(super) fn took(&self, attempt: &Attempt, cause: Option<&Cause>) {
        self.observer
            .took(self.label, attempt.spoken, &attempt.timings);
        attempt.tell(self.request.span, cause);
    }

    /// A try failed.
    pub(super) fn failed(&mut self, Try { turn, attempt, .. }: Try, cause: Cause) {
        let retryable = cause.retryable();
        self.is_over = !retryable || Instant::now() >= self.time.deadline;
        match cause.refusal() {
            Some(_) if retryable && !self.is_refused => {
                self.is_refused = true;
                turn.refused(&mut self.tried);
            }
            Some(_) => {
                self.is_over = true;
                turn.worked(attempt.address);
            }
            None => {
                self.observer.failed(&turn.endpoint().place, cause.reason());
                if cause.is_over_max_connections() {
                    self.observer.over_limit(self.label, "connections");
                }
                if cause.is_our_own() {
                    turn.set_aside(&mut self.tried);
                } else {
                    turn.failed(&cause, attempt.address, &mut self.tried);
                }
            }
        }
        self.last = Some((cause, attempt));
    }

    /// What was met last.
    pub(super) fn into_error(self) -> TunnelError {
        let nothing = (Cause::NoEndpoint, Attempt::default());
        let (cause, attempt) = self.last.unwrap_or(nothing);
        TunnelError::new(self.request, attempt, cause)
    }
}
