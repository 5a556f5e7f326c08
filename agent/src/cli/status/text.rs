//! A status as lines for people.

use std::fmt;

use serde_json::{Map, Value};

/// Names of a workload that are shown.
const MAX_NAMES: usize = 8;

/// An answer of `/status`. What an agent of another version does not tell is left out.
pub(super) struct Text<'a>(pub(super) &'a Value);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.0;
        let ready = if status["ready"] == true {
            "ready"
        } else {
            "NOT READY"
        };
        write!(
            f,
            "underpass {}, process {}: {ready}",
            plain(&status["version"]),
            plain(&status["pid"])
        )?;
        line(f, "cgroup", &plain(&status["cgroup"]))?;
        for cgroup in items(&status["named_cgroups"]) {
            line(f, "named by policy", &plain(cgroup))?;
        }
        let capabilities: Vec<_> = items(&status["capabilities"]).map(plain).collect();
        if !capabilities.is_empty() {
            line(f, "capabilities", &capabilities.join(" "))?;
        }
        for check in items(&status["checks"]) {
            let mut state = plain(&check["state"]);
            if let Some(reason) = check["reason"].as_str() {
                state = format!("{state}: {reason}");
            }
            line(f, &format!("check {}", plain(&check["name"])), &state)?;
        }
        policy(f, &status["policy"])?;
        line(f, "connections", &plain(&status["connections"]))?;
        let capture = &status["capture"];
        line(f, "redirected", &plain(&capture["redirected"]))?;
        for outcome in ["skipped", "refused"] {
            line(f, outcome, &counts(&capture[outcome]))?;
        }
        if status["dns"]["served"] == true {
            line(f, "virtual hosts", &plain(&status["dns"]["virtual_hosts"]))?;
        }
        namespaces(f, &status["namespaces"])?;
        for (map, fill) in fields(&status["maps"]) {
            let fill = format!(
                "{} of {}",
                plain(&fill["entries"]),
                plain(&fill["capacity"])
            );
            line(f, &format!("map {map}"), &fill)?;
        }
        for workload in items(&status["names"]) {
            names(f, workload)?;
        }
        Ok(())
    }
}

/// What a workload has resolved.
fn names(f: &mut fmt::Formatter<'_>, workload: &Value) -> fmt::Result {
    let whose = match &workload["cgroup"] {
        Value::Null => format!("cgroup {}", plain(&workload["cgroup_id"])),
        path => plain(path),
    };
    let mut shown: Vec<_> = items(&workload["names"])
        .map(|it| format!("{} at {}", plain(&it["name"]), plain(&it["address"])))
        .collect();
    let more = shown.len().saturating_sub(MAX_NAMES);
    if more > 0 {
        shown.truncate(MAX_NAMES);
        shown.push(format!("{more} more (--output json)"));
    }
    line(f, "names", &format!("{whose}: {}", shown.join(", ")))
}

fn policy(f: &mut fmt::Formatter<'_>, policy: &Value) -> fmt::Result {
    let generation = format!(
        "generation {}, {} prefixes, {} warnings",
        plain(&policy["generation"]),
        plain(&policy["prefixes"]),
        plain(&policy["warnings"])
    );
    line(f, "policy", &generation)?;
    let reload = &policy["reload"];
    let result = format!("{} at {}", plain(&reload["result"]), plain(&reload["at"]));
    line(f, "last read", &result)?;
    for problem in items(&policy["reload"]["problems"]) {
        line(f, "problem", &plain(problem))?;
    }
    for proxy in items(&policy["proxies"]) {
        line(f, "proxy", &plain(proxy))?;
    }
    Ok(())
}

/// Their number, and each that could not be enrolled.
fn namespaces(f: &mut fmt::Formatter<'_>, namespaces: &Value) -> fmt::Result {
    if namespaces.is_null() {
        return Ok(());
    }
    line(f, "namespaces", &plain(&namespaces["enrolled"]))?;
    for failed in items(&namespaces["not_enrolled"]) {
        let told = format!(
            "{} of process {}, {}: {}",
            plain(&failed["inode"]),
            plain(&failed["pid"]),
            plain(&failed["cgroup"]),
            plain(&failed["error"])
        );
        line(f, "not enrolled", &told)?;
    }
    for (cgroup, kind) in fields(&namespaces["sandboxed"]) {
        line(f, "not covered", &format!("{cgroup} ({})", plain(kind)))?;
    }
    for (reason, processes) in fields(&namespaces["unseen_processes"]) {
        let told = format!("{} processes ({reason})", plain(processes));
        line(f, "not enrolled", &told)?;
    }
    Ok(())
}

/// One line; control characters in it would be somebody else's, and move the cursor.
fn line(f: &mut fmt::Formatter<'_>, name: &str, value: &str) -> fmt::Result {
    let value = value.replace(char::is_control, " ");
    write!(f, "\n  {name:<20} {value}")
}

/// `internal 12, proxy 3`; reasons that nothing was counted for are left out.
fn counts(counts: &Value) -> String {
    let some: Vec<String> = fields(counts)
        .filter(|(_, count)| **count != 0)
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    if some.is_empty() {
        "0".to_owned()
    } else {
        some.join(", ")
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "?".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_says_all_there_is() {
        let status = json!({
            "ready": false,
            "checks": [
                {"name": "programs", "state": "failed", "reason": "gone"},
                {"name": "tasks", "state": "ok"},
            ],
            "version": "0.1.0",
            "pid": 7,
            "cgroup": "/sys/fs/cgroup",
            "named_cgroups": ["/sys/fs/cgroup/a.service"],
            "capabilities": ["CAP_NET_ADMIN", "CAP_BPF"],
            "policy": {
                "generation": 3,
                "reload": {"result": "failure", "at": "2026-01-02T03:04:05Z", "problems": ["a\u{1b}b"]},
                "proxies": ["proxy.example:3128"],
                "prefixes": 12,
                "warnings": 1,
            },
            "connections": 5,
            "capture": {
                "redirected": 9,
                "skipped": {"internal": 4, "port": 0, "proxy": 1},
                "refused": {"listener": 0},
            },
            "dns": {"served": true, "virtual_hosts": 6},
            "namespaces": {
                "enrolled": 3,
                "workloads": [{"inode": 7, "pid": 8, "cgroup": "/a", "cookie": 9, "ports": [1, 2]}],
                "not_enrolled": [
                    {"inode": 4, "pid": 5, "cgroup": "/b", "reason": "other", "error": "no"},
                ],
                "sandboxed": {"/c": "gVisor"},
                "unseen_processes": {"not_permitted": 2},
            },
            "maps": {"FLOWS": {"entries": 1, "capacity": 100}},
            "names": [
                {"cgroup_id": 7, "cgroup": "/a", "names": [
                    {"name": "a.test", "address": "203.0.113.7"},
                    {"name": "b.test", "address": "2001:db8::7"},
                ]},
                {"cgroup_id": 8, "cgroup": null, "names": vec![
                    json!({"name": "c.test", "address": "203.0.113.8"}); 10
                ]},
            ],
        });
        assert_eq!(
            Text(&status).to_string(),
            "underpass 0.1.0, process 7: NOT READY\n  \
             cgroup               /sys/fs/cgroup\n  \
             named by policy      /sys/fs/cgroup/a.service\n  \
             capabilities         CAP_NET_ADMIN CAP_BPF\n  \
             check programs       failed: gone\n  \
             check tasks          ok\n  \
             policy               generation 3, 12 prefixes, 1 warnings\n  \
             last read            failure at 2026-01-02T03:04:05Z\n  \
             problem              a b\n  \
             proxy                proxy.example:3128\n  \
             connections          5\n  \
             redirected           9\n  \
             skipped              internal 4, proxy 1\n  \
             refused              0\n  \
             virtual hosts        6\n  \
             namespaces           3\n  \
             not enrolled         4 of process 5, /b: no\n  \
             not covered          /c (gVisor)\n  \
             not enrolled         2 processes (not_permitted)\n  \
             map FLOWS            1 of 100\n  \
             names                /a: a.test at 203.0.113.7, b.test at 2001:db8::7\n  \
             names                cgroup 8: c.test at 203.0.113.8, c.test at 203.0.113.8, \
             c.test at 203.0.113.8, c.test at 203.0.113.8, c.test at 203.0.113.8, \
             c.test at 203.0.113.8, c.test at 203.0.113.8, c.test at 203.0.113.8, \
             2 more (--output json)"
        );
    }

    #[test]
    fn what_is_not_told_is_no_trouble() {
        let text = Text(&json!({"ready": true})).to_string();
        assert!(
            text.starts_with("underpass ?, process ?: ready\n"),
            "{text}"
        );
    }
}
