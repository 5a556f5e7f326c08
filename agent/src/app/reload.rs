//! Reads policy again, when asked to or when it has changed, and puts it into force.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::cgroups::Cgroups;
use super::fronts::Fronts;
use super::policy_source::{PolicySource, Read};
use super::proxies::Proxies;
use super::watch::{Fingerprint, Watch};
use crate::capture::{Capture, CaptureError, Dns};
use crate::connection::{InForce, Way};
use crate::kubernetes::Feed;
use crate::policy::{Captured, FailureMode, LoadError, Policy, Problem, Side};
use crate::telemetry::{Label, Metrics, Reload};

/// Why policy is read again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cause {
    /// Somebody wants it.
    Asked,
    /// It may have changed.
    Changed,
    /// That of the cluster has.
    Cluster,
}

/// What policy is put into force with.
pub(super) struct Reloader {
    pub(super) source: PolicySource,
    pub(super) way: Arc<Way>,
    pub(super) capture: Arc<Mutex<Capture>>,
    pub(super) cgroups: Arc<Cgroups>,
    pub(super) proxies: Arc<Proxies>,
    pub(super) fronts: Fronts,
    pub(super) state: Arc<PolicyState>,
    /// What was read last, whatever came of it. Locked while policy is read.
    pub(super) last: Mutex<Fingerprint>,
    pub(super) asked: Notify,
    /// What comes from the cluster.
    pub(super) feed: Option<Arc<Feed>>,
}

impl Reloader {
    /// Has policy read again soon, whether it has changed or not.
    pub(super) fn ask(&self) {
        self.asked.notify_one();
    }

    /// Reads policy whenever it has changed or it is asked to, until `closing`. One reading comes
    /// after the other, and each on a thread that may block, since there may be many files.
    pub(super) async fn follow(self: Arc<Self>, closing: CancellationToken) {
        let mut watch = Watch::new();
        // It may have changed since it was read at the start.
        let mut cause = Cause::Changed;
        loop {
            let reloader = Arc::clone(&self);
            let reading = spawn_blocking(move || {
                reloader.reload(cause, &mut watch);
                watch
            });
            watch = match reading.await {
                Ok(watch) => watch,
                Err(error) => {
                    tracing::error!(%error, "policy is not read any more");
                    return;
                }
            };
            cause = tokio::select! {
                biased;
                () = closing.cancelled() => return,
                () = self.asked.notified() => Cause::Asked,
                () = self.changed_in_cluster() => Cause::Cluster,
                () = watch.changed() => Cause::Changed,
            };
        }
    }

    async fn changed_in_cluster(&self) {
        match &self.feed {
            Some(feed) => feed.changed().await,
            None => std::future::pending().await,
        }
    }

    /// A policy that cannot be used changes nothing but what is told about it.
    fn reload(&self, cause: Cause, watch: &mut Watch) {
        let mut last = self.last.lock();
        if cause == Cause::Changed {
            let paths = self.source.watched_paths();
            watch.renew(paths.clone());
            if *last == Fingerprint::of(&paths) {
                tracing::debug!("policy has not changed");
                return;
            }
        }
        let Read {
            fingerprint,
            policy,
            rejected,
        } = self.source.read(|paths| watch.renew(paths));
        *last = fingerprint;

        let policy = policy.map_err(Failure::Load).and_then(|policy| {
            self.warn(&policy, cause);
            self.put_into_force(policy).map_err(Failure::Capture)
        });
        match policy {
            Ok(()) => self.succeeded(&rejected),
            Err(failure) => self.failed(&failure),
        }
    }

    fn succeeded(&self, rejected: &[Problem]) {
        let metrics = &self.way.metrics;
        let result = if rejected.is_empty() {
            Reload::Success
        } else {
            Reload::Partial
        };
        if let Some(feed) = &self.feed {
            feed.judge(rejected, None);
        }
        let texts: Vec<String> = rejected.iter().map(ToString::to_string).collect();
        // In a cluster others change policy all the time, and what is bad stays bad meanwhile.
        for problem in self.state.news(&texts, self.feed.is_some()) {
            log_rejected(problem);
        }
        let generation = self.state.next(result, texts);
        metrics.policy.reloaded(result);
        metrics.policy.in_force(generation);
        tracing::info!(generation, result = result.as_str(), "policy reloaded");
    }

    fn failed(&self, failure: &Failure) {
        if let Some(feed) = &self.feed {
            match failure {
                Failure::Load(error) => {
                    // What is not bad is as it was.
                    let failure = "the rest of policy does not go without it".to_owned();
                    feed.judge(error.problems(), Some(failure));
                }
                Failure::Capture(error) => feed.judge([], Some(error.to_string())),
            }
        }
        let problems = failure.problems();
        let told = self.feed.is_some() && self.state.news(&problems, true).next().is_none();
        let generation = self.state.failed(problems);
        self.way.metrics.policy.reloaded(Reload::Failure);
        if !told {
            tracing::error!(
                generation,
                error = %failure,
                "policy not reloaded, the last good one stays in force"
            );
        }
    }

    /// In a cluster, of what is new only.
    fn warn(&self, policy: &Policy, cause: Cause) {
        let warnings = policy.warnings().iter();
        if cause == Cause::Cluster {
            let old = self.way.policy.load();
            let old: HashSet<_> = old.warnings().iter().collect();
            warn_of(warnings.filter(|warning| !old.contains(warning)));
        } else {
            warn_of(warnings);
        }
    }

    /// From the old policy to the new, so that each connection goes a way that one of them gives.
    ///
    /// The programs decide who comes to the agent, the agent what becomes of who has come; a
    /// connection that should have stayed away is let go direct by the agent, but one that should
    /// have come and did not is lost to policy. So what matters is that a destination that both
    /// policies capture is captured at every moment, which [`apply`] sees to. Then:
    ///
    /// - A destination that only the new policy captures comes to the agent while the old policy
    ///   still decides: it goes direct, as that policy wants it.
    /// - One that only the old policy captures stays away already, as the new policy wants it; what
    ///   was on its way meanwhile is decided by either.
    /// - A proxy of the new policy is let alone before that decides: else what speaks to it itself
    ///   would come to the agent, and be sent to that proxy through that proxy. One of the old
    ///   policy is let alone until the new one decides.
    ///
    /// The programs come before the agent because they can fail: then their old rules come back, and
    /// the old policy was in force all the time.
    fn put_into_force(&self, policy: Policy) -> Result<(), CaptureError> {
        Handle::current().block_on(self.proxies.prepare(&policy));
        // Queries come to the agent only when there is somebody who hears them.
        let opened = match policy.takes_queries() {
            true => self.fronts.set(true),
            false => Ok(()),
        };
        if let Err(error) = opened.and_then(|()| self.tell_programs(&policy)) {
            self.proxies.abandon();
            self.follow_with_fronts();
            return Err(error);
        }
        if let Err(error) = self.cgroups.set_outliving(must_outlive(&policy)) {
            tracing::error!(%error, "the programs do not follow the policy's failure mode");
        }
        announce(&policy, &self.way.metrics);
        self.proxies.put_into_force(InForce::new(policy));
        self.follow_with_fronts();
        self.cgroups.ask();
        self.way.count_virtuals(&self.way.policy.load());
        self.way.tunneler.serve(self.way.policy.load().proxies());
        Ok(())
    }

    /// Has fronts be there or not, as the policy in force wants it.
    fn follow_with_fronts(&self) {
        let wanted = self.way.policy.load().takes_queries();
        if let Err(error) = self.fronts.set(wanted) {
            tracing::error!(%error, wanted, "queries of workloads do not come as policy has it");
        }
    }

    fn tell_programs(&self, policy: &Policy) -> Result<(), CaptureError> {
        let mut capture = self.capture.lock();
        apply(policy, &mut capture).inspect_err(|_| {
            if let Err(error) = apply(&self.way.policy.load(), &mut capture) {
                tracing::error!(%error, "the programs have rules of two policies");
            }
        })
    }
}

/// Why a policy is not in force.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Capture(CaptureError),
    #[error(transparent)]
    Load(LoadError),
}

impl Failure {
    /// One line each.
    fn problems(&self) -> Vec<String> {
        match self {
            Self::Capture(error) => vec![error.to_string()],
            Self::Load(error) => error.problems().iter().map(ToString::to_string).collect(),
        }
    }
}

/// Which policy is in force, and what came of the last reading.
#[derive(Debug)]
pub(super) struct PolicyState(Mutex<State>);

#[derive(Clone, Debug)]
struct State {
    generation: u64,
    result: Reload,
    /// RFC 3339, as in the log.
    at: String,
    problems: Vec<String>,
}

impl PolicyState {
    /// The first policy is in force.
    pub(super) fn new(rejected: &[Problem]) -> Self {
        for problem in rejected {
            log_rejected(problem);
        }
        Self(Mutex::new(State {
            generation: 1,
            result: if rejected.is_empty() {
                Reload::Success
            } else {
                Reload::Partial
            },
            at: now(),
            problems: rejected.iter().map(ToString::to_string).collect(),
        }))
    }

    pub(super) fn generation(&self) -> u64 {
        self.0.lock().generation
    }

    /// Another policy is in force, but for what was rejected; its generation.
    fn next(&self, result: Reload, problems: Vec<String>) -> u64 {
        let mut state = self.0.lock();
        *state = State {
            generation: state.generation + 1,
            result,
            at: now(),
            problems,
        };
        state.generation
    }

    /// There would have been another one; the generation that stays.
    fn failed(&self, problems: Vec<String>) -> u64 {
        let mut state = self.0.lock();
        *state = State {
            generation: state.generation,
            result: Reload::Failure,
            at: now(),
            problems,
        };
        state.generation
    }

    /// Those of `problems` that were not there before, or all of them.
    fn news<'a>(
        &self,
        problems: &'a [String],
        only: bool,
    ) -> impl Iterator<Item = &'a String> + use<'a> {
        let known: HashSet<String> = match only {
            true => self.0.lock().problems.iter().cloned().collect(),
            false => HashSet::new(),
        };
        problems
            .iter()
            .filter(move |problem| !known.contains(*problem))
    }

    /// The last reading, the first one included.
    pub(super) fn reload(&self) -> Value {
        let state = self.0.lock();
        json!({
            "result": state.result.as_str(),
            "at": state.at,
            "problems": state.problems,
        })
    }
}

fn now() -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

fn log_rejected(problem: &dyn fmt::Display) {
    tracing::error!("rejected, its last good version stays in force if it has one: {problem}");
}

/// Logs what the author of a policy should know.
pub(super) fn warn_of<'a>(warnings: impl IntoIterator<Item = &'a Problem>) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

/// Whether the programs must refuse what they capture when the agent is gone.
pub(super) fn must_outlive(policy: &Policy) -> bool {
    policy.failure_mode() == FailureMode::Closed
}

/// Tells the programs what policy wants captured. What was captured and still is to be, is captured
/// at every moment: addresses and ports each change from old to new without anything between, and
/// such a destination has both of its addresses' and both of its ports' sides on the captured one.
pub(super) fn apply(policy: &Policy, capture: &mut Capture) -> Result<(), CaptureError> {
    let plan = policy.capture_plan();
    let side = |side: Side| match side {
        Side::External => underpass_abi::Side::External,
        Side::Internal => underpass_abi::Side::Internal,
        Side::Open => underpass_abi::Side::Open,
        Side::Virtual => underpass_abi::Side::Virtual,
    };
    let prefixes = plan.prefixes.iter().map(|(prefix, captured)| {
        let Captured { tcp, quic, udp } = *captured;
        let sides = underpass_abi::Sides::new(side(tcp), side(quic), side(udp));
        (*prefix, None, sides)
    });
    let internal = underpass_abi::Sides::all(underpass_abi::Side::Internal);
    let exceptions = plan
        .exceptions
        .iter()
        .map(|(prefix, port)| (*prefix, Some(*port), internal));
    capture.rules().set_dns(if policy.takes_queries() {
        Dns::Served
    } else if policy.observes_dns() {
        Dns::Observed
    } else {
        Dns::Ignored
    })?;
    capture.rules().set_prefixes(prefixes.chain(exceptions))?;
    capture.rules().set_ports(|port| plan.ports.contains(port))
}

/// Has the proxies' series stand at zero before anything happens, so that a rate has a start.
pub(super) fn announce(policy: &Policy, metrics: &Metrics) {
    for proxy in policy.proxies() {
        metrics.proxy.announce(&Label::of(proxy));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_tells_of_the_policy_in_force_and_of_the_last_reading() {
        let state = PolicyState::new(&[]);
        assert_eq!(state.generation(), 1);
        assert_eq!(state.reload()["result"], "success");

        let problem = "a.yaml:1: file: path: it cannot be read".to_owned();
        assert_eq!(state.failed(vec![problem.clone()]), 1);
        let reload = state.reload();
        assert_eq!(reload["result"], "failure");
        assert_eq!(reload["problems"], json!([problem]));
        let at = reload["at"].as_str().unwrap();
        assert!(at.starts_with("20") && at.ends_with('Z'), "{at}");

        assert_eq!(state.next(Reload::Success, Vec::new()), 2);
        assert_eq!(state.reload()["problems"], json!([]));
        assert_eq!(state.reload()["result"], "success");
    }
}
