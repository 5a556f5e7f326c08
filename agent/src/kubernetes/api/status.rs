//! The conditions of a Tunnel.

use serde_json::{Value, json};

use super::nodes::is_rejected;
use crate::kubernetes::feed::{Name, TunnelFacts, Verdict};

/// The longest message, in characters.
const MAX_MESSAGE: usize = 1024;

/// The status of a Tunnel, as one agent writes it for all. What has not changed since `facts` keeps
/// its time.
pub(super) fn status(
    tunnel: &Name,
    facts: &TunnelFacts,
    verdict: &Verdict,
    (all, with): (usize, usize),
    now: &str,
) -> Value {
    let object = ("Tunnel".to_owned(), tunnel.clone());
    let accepted = match verdict.problems.get(&object) {
        Some(problems) => ("False", "Invalid", shortened(&problems.join("; "))),
        None => ("True", "Accepted", "it is valid".to_owned()),
    };
    let programmed = if is_rejected(verdict, tunnel) {
        let message = format!("this version is on none of {all} nodes: it is not accepted");
        ("False", "Invalid", message)
    } else if with == all && all > 0 {
        (
            "True",
            "Programmed",
            format!("it is in force on all {all} nodes"),
        )
    } else {
        let reason = match &verdict.failure {
            Some(failure) => format!(": {failure}"),
            None => String::new(),
        };
        let message = shortened(&format!("it is in force on {with} of {all} nodes{reason}"));
        ("False", "Pending", message)
    };
    let condition = |kind: &str, (status, reason, message): (&str, &str, String)| {
        let before = condition(&facts.status, kind);
        let since = before.filter(|it| it["status"] == status);
        let since = since.and_then(|it| it["lastTransitionTime"].as_str());
        json!({
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": facts.generation,
            "lastTransitionTime": since.unwrap_or(now),
        })
    };
    json!({
        "conditions": [condition("Accepted", accepted), condition("Programmed", programmed)],
        "nodes": {"programmed": with, "total": all},
    })
}

/// What a status says besides one that stands there.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum News {
    /// Nothing.
    None,
    /// On how many of the nodes it is meanwhile.
    Progress,
    /// That it is another version, or has become another in a word.
    Turn,
}

/// What `status` says besides what stands there. Conditions of others are none of our business.
pub(super) fn news(facts: &TunnelFacts, status: &Value) -> News {
    let differs = |kind: &str| condition(&facts.status, kind) != condition(status, kind);
    let turn = |status| {
        let of = |field: &str| condition(status, "Programmed").map(|it| it[field].clone());
        (of("reason"), of("observedGeneration"))
    };
    if differs("Accepted") || turn(&facts.status) != turn(status) {
        News::Turn
    } else if differs("Programmed") || facts.status["nodes"] != status["nodes"] {
        News::Progress
    } else {
        News::None
    }
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = status["conditions"].as_array()?;
    conditions.iter().find(|it| it["type"] == kind)
}

pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_MESSAGE - 3) {
        Some((end, _)) if text.chars().nth(MAX_MESSAGE).is_some() => format!("{}...", &text[..end]),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-02T00:00:00Z";
    const BEFORE: &str = "2026-01-01T00:00:00Z";

    fn tunnel() -> Name {
        ("team-a".to_owned(), "t".to_owned())
    }

    fn summary(status: &Value) -> Vec<String> {
        let conditions = status["conditions"].as_array().unwrap();
        let shown = |it: &Value| {
            let word = |key: &str| it[key].as_str().unwrap().to_owned();
            [
                word("type"),
                word("status"),
                word("reason"),
                word("message"),
            ]
            .join(" ")
        };
        conditions.iter().map(shown).collect()
    }

    #[test]
    fn a_tunnel_is_accepted_and_programmed_or_it_is_said_why_not() {
        let facts = TunnelFacts::default();
        let mut verdict = Verdict::default();
        let all = status(&tunnel(), &facts, &verdict, (3, 3), NOW);
        assert_eq!(
            summary(&all),
            [
                "Accepted True Accepted it is valid",
                "Programmed True Programmed it is in force on all 3 nodes"
            ]
        );
        assert_eq!(all["nodes"], json!({"programmed": 3, "total": 3}));
        let some = status(&tunnel(), &facts, &verdict, (3, 2), NOW);
        assert_eq!(
            summary(&some)[1],
            "Programmed False Pending it is in force on 2 of 3 nodes"
        );
        let object = ("Tunnel".to_owned(), tunnel());
        verdict
            .problems
            .insert(object, vec!["spec.proxy.port: it is missing".to_owned()]);
        let none = status(&tunnel(), &facts, &verdict, (3, 0), NOW);
        assert_eq!(
            summary(&none)[0],
            "Accepted False Invalid spec.proxy.port: it is missing"
        );
        assert!(summary(&none)[1].starts_with("Programmed False Invalid this version"));
    }

    #[test]
    fn times_stay_with_what_stays() {
        let verdict = Verdict::default();
        let mut facts = TunnelFacts::default();
        facts.status = status(&tunnel(), &facts, &verdict, (3, 2), BEFORE);
        let other = status(&tunnel(), &facts, &verdict, (3, 3), NOW);
        assert_eq!(other["conditions"][0]["lastTransitionTime"], BEFORE);
        assert_eq!(other["conditions"][1]["lastTransitionTime"], NOW);
    }

    #[test]
    fn what_is_new_is_told_from_what_stands_there_whoever_else_writes() {
        let verdict = Verdict::default();
        let mut facts = TunnelFacts::default();
        let now = |facts: &TunnelFacts, count| status(&tunnel(), facts, &verdict, count, NOW);
        assert_eq!(news(&facts, &now(&facts, (3, 2))), News::Turn);
        facts.status = now(&facts, (3, 2));
        let others = json!({"type": "Admired", "status": "True"});
        let conditions = facts.status["conditions"].as_array_mut().unwrap();
        conditions.insert(0, others);
        assert_eq!(news(&facts, &now(&facts, (3, 2))), News::None);
        assert_eq!(news(&facts, &now(&facts, (3, 1))), News::Progress);
        assert_eq!(news(&facts, &now(&facts, (3, 3))), News::Turn);
        facts.generation += 1;
        assert_eq!(news(&facts, &now(&facts, (3, 2))), News::Turn);
        // Somebody has written over ours.
        facts.generation -= 1;
        facts.status["conditions"][1]["status"] = "Unknown".into();
        assert_eq!(news(&facts, &now(&facts, (3, 2))), News::Turn);
    }

    #[test]
    fn messages_are_bounded() {
        let long = shortened(&"é".repeat(2000));
        assert!(long.chars().count() <= MAX_MESSAGE && long.ends_with("..."));
        let short = "x".repeat(MAX_MESSAGE);
        assert_eq!(shortened(&short), short);
    }
}
