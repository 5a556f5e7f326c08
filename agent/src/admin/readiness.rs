//! Whether the agent does its job.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

/// A set of named checks. The agent is ready when there are some and all of them are well, so
/// that it cannot be called ready before its parts have said what they wait for. Clones share one
/// set.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    checks: Arc<Mutex<BTreeMap<&'static str, Status>>>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Status {
    Failed(String),
    Ok,
    Pending,
}

impl Readiness {
    /// Adds a check, pending; one of the same name is taken over as it is.
    pub fn check(&self, name: &'static str) -> Check {
        self.checks.lock().entry(name).or_insert(Status::Pending);
        Check {
            name,
            readiness: self.clone(),
        }
    }

    /// Whether all is well.
    pub fn ready(&self) -> bool {
        self.problems().is_empty()
    }

    /// One line per check that is not well: `name: reason`.
    pub fn problems(&self) -> Vec<String> {
        let checks = self.checks.lock();
        if checks.is_empty() {
            return vec!["agent: starting".to_owned()];
        }
        let problem = |(name, status): (&&str, &Status)| match status {
            Status::Failed(reason) => Some(format!("{name}: {reason}")),
            Status::Ok => None,
            Status::Pending => Some(format!("{name}: pending")),
        };
        checks.iter().filter_map(problem).collect()
    }

    /// Every check with its state, well or not, ordered by name.
    pub fn to_json(&self) -> Value {
        let checks = self.checks.lock();
        let check = |(name, status): (&&str, &Status)| match status {
            Status::Failed(reason) => json!({"name": name, "state": "failed", "reason": reason}),
            Status::Ok => json!({"name": name, "state": "ok"}),
            Status::Pending => json!({"name": name, "state": "pending"}),
        };
        checks.iter().map(check).collect()
    }
}

/// One check of a [`Readiness`], for the part of the agent that it is about. Changes are logged.
#[derive(Clone, Debug)]
pub struct Check {
    name: &'static str,
    readiness: Readiness,
}

impl Check {
    /// All is well.
    pub fn ok(&self) {
        if self.set(Status::Ok) {
            tracing::info!(check = self.name, "readiness check passed");
        }
    }

    /// Not known yet, or no longer.
    pub fn pending(&self) {
        if self.set(Status::Pending) {
            tracing::info!(check = self.name, "readiness check pending");
        }
    }

    /// Something is wrong.
    pub fn failed(&self, reason: &dyn Display) {
        // One line per check, whatever the reason holds.
        let reason = reason.to_string().replace(char::is_control, " ");
        if self.set(Status::Failed(reason.clone())) {
            tracing::warn!(check = self.name, reason, "readiness check failed");
        }
    }

    /// Says whether that changed anything.
    fn set(&self, status: Status) -> bool {
        let mut checks = self.readiness.checks.lock();
        let old = checks.insert(self.name, status.clone());
        old != Some(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_all_is_well() {
        let readiness = Readiness::default();
        assert_eq!(readiness.problems(), ["agent: starting"]);

        let policy = readiness.check("policy");
        let canary = readiness.check("canary");
        policy.ok();
        assert_eq!(readiness.problems(), ["canary: pending"]);
        canary.ok();
        assert!(readiness.ready());

        canary.failed(&"not\ncaptured");
        policy.failed(&"no file");
        assert_eq!(
            readiness.problems(),
            ["canary: not captured", "policy: no file"]
        );
        assert_eq!(
            readiness.to_json(),
            json!([
                {"name": "canary", "state": "failed", "reason": "not captured"},
                {"name": "policy", "state": "failed", "reason": "no file"},
            ])
        );
        canary.pending();
        policy.ok();
        assert_eq!(readiness.problems(), ["canary: pending"]);
        assert!(!readiness.ready());
    }

    #[test]
    fn a_check_taken_over_keeps_its_state() {
        let readiness = Readiness::default();
        readiness.check("canary").ok();
        let again = readiness.check("canary");
        assert!(readiness.ready());
        again.failed(&"gone");
        assert!(!readiness.ready());
    }
}
