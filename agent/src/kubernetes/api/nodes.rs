//! What each node has programmed: a Lease of its own, which only it writes.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use serde_json::{Value, json};

use crate::kubernetes::feed::{Name, Verdict};

/// The label of these Leases.
pub(super) const LABEL: &str = "underpass.dev/node";

/// Which Tunnels a node has programmed, in which version.
const PROGRAMMED: &str = "underpass.dev/programmed";

/// Between two renewals of a Lease in which nothing changes.
pub(super) const RENEWAL: Duration = Duration::from_secs(60);

/// A node counts for so long after its last renewal.
const ALIVE: Duration = Duration::from_secs(150);

/// The versions of Tunnels, by `NAMESPACE/NAME`.
pub(super) type Programmed = BTreeMap<String, i64>;

/// What this node has programmed, by what it was told.
pub(super) fn programmed(verdict: &Verdict, before: &Programmed) -> Programmed {
    if verdict.failure.is_some() {
        return before.clone();
    }
    let tunnels = verdict.tunnels.iter();
    let good = tunnels.filter(|(name, _)| !is_rejected(verdict, name));
    good.map(|((namespace, name), facts)| (format!("{namespace}/{name}"), facts.generation))
        .collect()
}

pub(super) fn is_rejected(verdict: &Verdict, tunnel: &Name) -> bool {
    let object = ("Tunnel".to_owned(), tunnel.clone());
    verdict.problems.contains_key(&object)
}

/// The name of a node's Lease.
pub(super) fn name(node: &str) -> String {
    format!("underpass-{node}")
}

/// A node's Lease, to be applied.
pub(super) fn lease(node: &str, programmed: &Programmed, now: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name(node),
            "labels": {LABEL: "true", "app.kubernetes.io/name": "underpass"},
            "annotations": {PROGRAMMED: json!(programmed).to_string()},
        },
        "spec": {
            "holderIdentity": node,
            "leaseDurationSeconds": ALIVE.as_secs(),
            "renewTime": now,
        },
    })
}

/// The nodes as one of them sees the others.
#[derive(Debug, Default)]
pub(super) struct Nodes(HashMap<String, Node>);

#[derive(Debug)]
struct Node {
    version: String,
    renewed: Instant,
    programmed: Programmed,
}

impl Nodes {
    /// Takes the Leases as they are now. Returns those of nodes that have been gone for long.
    pub(super) fn see(&mut self, leases: Vec<Lease>, now: Instant) -> Vec<String> {
        let mut before = std::mem::take(&mut self.0);
        for lease in leases {
            let metadata = lease.metadata;
            let Some(name) = metadata.name else { continue };
            let version = metadata.resource_version.unwrap_or_default();
            let renewed = match before.remove(&name) {
                Some(node) if node.version == version => node.renewed,
                _ => now,
            };
            let annotations = metadata.annotations.unwrap_or_default();
            let programmed = annotations.get(PROGRAMMED);
            let programmed = programmed.and_then(|text| serde_json::from_str(text).ok());
            let node = Node {
                version,
                renewed,
                programmed: programmed.unwrap_or_default(),
            };
            self.0.insert(name, node);
        }
        let gone = self
            .0
            .iter()
            .filter(|(_, node)| now - node.renewed > ALIVE * 4);
        gone.map(|(name, _)| name.clone()).collect()
    }

    /// How many nodes there are, and how many of them have this version of a Tunnel.
    pub(super) fn count(&self, tunnel: &Name, generation: i64, now: Instant) -> (usize, usize) {
        let key = format!("{}/{}", tunnel.0, tunnel.1);
        let alive = self.0.values().filter(|node| now - node.renewed <= ALIVE);
        let (mut all, mut with) = (0, 0);
        for node in alive {
            all += 1;
            with += usize::from(node.programmed.get(&key) == Some(&generation));
        }
        (all, with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(node: &str, version: &str, programmed: &[(&str, i64)]) -> Lease {
        let programmed = programmed
            .iter()
            .map(|(name, it)| ((*name).to_owned(), *it));
        let mut lease = lease(node, &programmed.collect(), "2026-01-01T00:00:00.000000Z");
        lease["metadata"]["resourceVersion"] = version.into();
        serde_json::from_value(lease).unwrap()
    }

    #[test]
    fn nodes_count_while_they_renew_their_leases() {
        let tunnel = ("team-a".to_owned(), "t".to_owned());
        let start = Instant::now();
        let mut nodes = Nodes::default();
        let one = |version: &str| seen("one", version, &[("team-a/t", 2)]);
        let two = || seen("two", "5", &[("team-a/t", 1)]);
        assert!(nodes.see(vec![one("4"), two()], start).is_empty());
        assert_eq!(nodes.count(&tunnel, 2, start), (2, 1));
        assert_eq!(nodes.count(&tunnel, 1, start), (2, 1));
        let later = start + ALIVE + Duration::from_secs(1);
        assert!(nodes.see(vec![one("6"), two()], later).is_empty());
        assert_eq!(nodes.count(&tunnel, 2, later), (1, 1));
        let much_later = start + ALIVE * 5;
        assert_eq!(
            nodes.see(vec![one("7"), two()], much_later),
            ["underpass-two"]
        );
    }
}
