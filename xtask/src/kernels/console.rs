//! What the guest told on its console: lines that begin with `@`, among those of the kernel and
//! of logs.

/// What a kernel says when it breaks down.
const BREAKDOWNS: [&str; 3] = ["Kernel panic", "Oops: ", "BUG: "];

/// The results of one kernel.
#[derive(Debug, Default)]
pub(super) struct Results {
    release: Option<String>,
    checks: Vec<Check>,
    /// The guest came to its end.
    complete: bool,
    /// The kernel itself did something wrong.
    broken: bool,
}

#[derive(Debug)]
struct Check {
    name: String,
    /// Why it failed, if it did.
    failure: Option<String>,
}

impl Results {
    pub(super) fn parse(console: &str) -> Self {
        let mut results = Self::default();
        for line in console.lines() {
            let line = line.trim_end();
            if let Some(release) = line.strip_prefix("@kernel ") {
                results.release = Some(release.to_owned());
            } else if let Some((name, outcome)) = line
                .strip_prefix("@check ")
                .and_then(|check| check.split_once(": "))
            {
                let why = outcome.strip_prefix("failed: ").unwrap_or(outcome);
                results.checks.push(Check {
                    name: name.to_owned(),
                    failure: (outcome != "ok").then(|| why.to_owned()),
                });
            } else if line == "@end" {
                results.complete = true;
            } else if BREAKDOWNS.iter().any(|words| line.contains(words)) {
                results.broken = true;
            }
        }
        results
    }

    /// Every check succeeded, and there was at least one.
    pub(super) fn passed(&self) -> bool {
        let good = self.checks.iter().all(|check| check.failure.is_none());
        self.judges_the_agent() && good && !self.checks.is_empty()
    }

    /// Whether the kernel did its part, so that the results are the agent's.
    pub(super) fn judges_the_agent(&self) -> bool {
        self.complete && !self.broken
    }

    /// The result in a few words.
    pub(super) fn summary(&self) -> String {
        let all = self.checks.len();
        let good = self.checks.iter().filter(|check| check.failure.is_none());
        let end = match (self.broken, self.complete) {
            (true, _) => ", and the kernel broke down",
            (false, false) => ", and no end in time",
            (false, true) => "",
        };
        format!("{} of {all} checks passed{end}", good.count())
    }

    /// What `uname -r` says there.
    pub(super) fn release(&self) -> &str {
        self.release.as_deref().unwrap_or("did not start")
    }

    /// The checks, in their order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.checks.iter().map(|check| check.name.as_str())
    }

    /// The result of one check, as it stands in a table.
    pub(super) fn cell(&self, name: &str) -> &'static str {
        match self.checks.iter().find(|check| check.name == name) {
            None => "not reached",
            Some(check) if check.failure.is_some() => "FAILED",
            Some(_) => "ok",
        }
    }

    /// A line for everything that went wrong.
    pub(super) fn failures(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .checks
            .iter()
            .filter_map(|check| Some(format!("{}: {}", check.name, check.failure.as_ref()?)))
            .collect();
        if self.broken {
            lines.push("the kernel broke down; its console says where".to_owned());
        } else if !self.complete {
            lines.push("it did not come to its end in time".to_owned());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_among_others() {
        let results = Results::parse(
            "[    0.1] Linux\r\n@kernel 6.1.0\r\n@check exec ipv4: ok\r\n  log: x\r\n\
             @check exec ipv6: failed: it: broke\r\n@end\r\n[ 5.4] reboot: Power down\r\n",
        );
        assert_eq!(results.release(), "6.1.0");
        assert_eq!(results.cell("exec ipv4"), "ok");
        assert_eq!(results.cell("exec ipv6"), "FAILED");
        assert_eq!(results.cell("run"), "not reached");
        assert_eq!(results.failures(), ["exec ipv6: it: broke"]);
        assert_eq!(results.summary(), "1 of 2 checks passed");
        assert!(!results.passed());
    }

    #[test]
    fn only_a_complete_run_with_checks_passes() {
        assert!(Results::parse("@check a: ok\n@end\n").passed());
        assert!(!Results::parse("@check a: ok\n").passed());
        assert!(!Results::parse("@end\n").passed());
        assert!(!Results::parse("").passed());
    }

    #[test]
    fn a_kernel_that_breaks_down_does_not_judge_the_agent() {
        let panic = "[    7.0] Kernel panic - not syncing: Attempted to kill init!\n";
        assert!(!Results::parse(panic).judges_the_agent());
        let oops = "@check a: ok\n[    1.0] Oops: 0010 [#1]\n@end\n";
        assert!(!Results::parse(oops).judges_the_agent());
        assert!(!Results::parse(oops).passed());
        assert!(!Results::parse("@check a: ok\n").judges_the_agent());
        assert!(Results::parse("@check a: failed: no\n@end\n").judges_the_agent());
    }
}
