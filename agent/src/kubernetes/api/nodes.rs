//! What each node has programmed: a Lease of its own, which only it writes.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::kubernetes::feed::{Name, TunnelFacts, Verdict};

/// The label of these Leases.
pub(super) const LABEL: &str = "underpass.dev/node";

/// Which Tunnels a node has programmed, in which version.
const PROGRAMMED: &str = "underpass.dev/programmed";

/// Between two renewals of a Lease in which nothing changes.
pub(super) const RENEWAL: Duration = Duration::from_secs(60);

/// A node counts for so long after its last renewal.
const ALIVE: Duration = Duration::from_secs(150);

/// The generations of Tunnels, by their uids: what is created anew under an old name is another.
pub(super) type Programmed = BTreeMap<String, i64>;

/// What this node has programmed, by what it was told.
pub(super) fn programmed(verdict: &Verdict, before: &Programmed) -> Programmed {
    if verdict.failure.is_some() {
        return before.clone();
    }
    let tunnels = verdict.tunnels.iter();
    let good = tunnels.filter(|(name, _)| !is_rejected(verdict, name));
    good.map(|(_, facts)| (facts.uid.clone(), facts.generation))
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

/// The nodes as one of them sees itself and the others.
#[derive(Debug)]
pub(super) struct Nodes {
    /// What this one has, which its Lease says later.
    own: Programmed,
    /// The name of that Lease.
    own_lease: String,
    /// The others, by their Leases.
    others: HashMap<String, Node>,
    are_known: bool,
    /// The Leases of a list that is not at its end.
    listed: HashSet<String>,
}

#[derive(Debug)]
struct Node {
    version: String,
    renewed: Instant,
    programmed: Programmed,
}

impl Nodes {
    /// There is this one, and nothing is known of others.
    pub(super) fn new(own: &str) -> Self {
        Self {
            own: Programmed::new(),
            own_lease: name(own),
            others: HashMap::new(),
            are_known: false,
            listed: HashSet::new(),
        }
    }

    /// Whether the others are known.
    pub(super) fn are_known(&self) -> bool {
        self.are_known
    }

    /// This node has programmed what it was told.
    pub(super) fn judge(&mut self, verdict: &Verdict) {
        self.own = programmed(verdict, &self.own);
    }

    /// Takes what a watch of the Leases tells. Returns whether it counts.
    pub(super) fn take(&mut self, event: Event<Lease>, now: Instant) -> bool {
        match event {
            Event::Init => {
                self.listed.clear();
                false
            }
            Event::InitApply(lease) => {
                self.listed.extend(lease.metadata.name.clone());
                self.see(lease, now)
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let before = self.others.len();
                self.others.retain(|name, _| listed.contains(name));
                let were_known = std::mem::replace(&mut self.are_known, true);
                !were_known || self.others.len() != before
            }
            Event::Apply(lease) => self.see(lease, now),
            Event::Delete(lease) => {
                let name = lease.metadata.name.unwrap_or_default();
                self.others.remove(&name).is_some()
            }
        }
    }

    /// Takes a Lease as it is now. Returns whether it says anything new.
    fn see(&mut self, lease: Lease, now: Instant) -> bool {
        let metadata = lease.metadata;
        let Some(name) = metadata.name.filter(|name| *name != self.own_lease) else {
            return false;
        };
        let version = metadata.resource_version.unwrap_or_default();
        let annotations = metadata.annotations.unwrap_or_default();
        let programmed = annotations.get(PROGRAMMED);
        let programmed = programmed.and_then(|text| serde_json::from_str(text).ok());
        let node = Node {
            version,
            renewed: now,
            programmed: programmed.unwrap_or_default(),
        };
        match self.others.entry(name) {
            Entry::Vacant(place) => {
                place.insert(node);
                true
            }
            // It has been listed anew.
            Entry::Occupied(known) if known.get().version == node.version => false,
            Entry::Occupied(mut known) => {
                let before = known.insert(node);
                !before.is_alive(now) || before.programmed != known.get().programmed
            }
        }
    }

    /// The Leases of nodes that have been gone for long.
    pub(super) fn gone(&self, now: Instant) -> Vec<String> {
        let others = self.others.iter();
        let gone = others.filter(|(_, node)| now - node.renewed > ALIVE * 4);
        gone.map(|(name, _)| name.clone()).collect()
    }

    /// How many nodes there are, and how many of them have this version of a Tunnel.
    pub(super) fn count(&self, tunnel: &TunnelFacts, now: Instant) -> (usize, usize) {
        let others = self.others.values().filter(|node| node.is_alive(now));
        let all = others.map(|node| &node.programmed).chain([&self.own]);
        all.fold((0, 0), |(all, with), programmed| {
            let has = programmed.get(&tunnel.uid) == Some(&tunnel.generation);
            (all + 1, with + usize::from(has))
        })
    }
}

impl Node {
    fn is_alive(&self, now: Instant) -> bool {
        now - self.renewed <= ALIVE
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn tunnel(generation: i64) -> TunnelFacts {
        TunnelFacts {
            uid: "u-1".to_owned(),
            generation,
            ..TunnelFacts::default()
        }
    }

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
        let start = Instant::now();
        let mut nodes = Nodes::new("own");
        let one = |version: &str| seen("one", version, &[("u-1", 2)]);
        let two = |version: &str| seen("two", version, &[("u-1", 1)]);
        let list = [Event::InitApply(one("4")), Event::InitApply(two("5"))];
        assert!(!nodes.take(Event::Init, start) && !nodes.are_known());
        for event in list {
            assert!(nodes.take(event, start));
        }
        assert!(nodes.take(Event::InitDone, start) && nodes.are_known());
        assert_eq!(nodes.count(&tunnel(2), start), (3, 1));
        assert_eq!(nodes.count(&tunnel(1), start), (3, 1));
        let mut anew = tunnel(2);
        anew.uid = "u-2".to_owned();
        assert_eq!(nodes.count(&anew, start), (3, 0));
        let later = start + ALIVE + Duration::from_secs(1);
        // One lives again, the other is listed once more.
        assert!(nodes.take(Event::Apply(one("6")), later));
        assert!(!nodes.take(Event::InitApply(two("5")), later));
        assert_eq!(nodes.count(&tunnel(2), later), (2, 1));
        // A renewal alone says nothing new.
        assert!(!nodes.take(Event::Apply(one("7")), later));
        assert_eq!(nodes.gone(later), [""; 0]);
        let much_later = start + ALIVE * 5;
        assert!(nodes.take(Event::Apply(one("8")), much_later));
        assert_eq!(nodes.gone(much_later), ["underpass-two"]);
        // It is not listed any more.
        nodes.take(Event::Init, much_later);
        assert!(!nodes.take(Event::InitApply(one("8")), much_later));
        assert!(nodes.take(Event::InitDone, much_later));
        assert_eq!(nodes.gone(much_later), [""; 0]);
        assert!(nodes.take(Event::Delete(one("9")), much_later));
        assert_eq!(nodes.count(&tunnel(2), much_later), (1, 0));
    }

    #[test]
    fn of_itself_a_node_knows_before_its_lease_says_so() {
        let now = Instant::now();
        let mut nodes = Nodes::new("own");
        let name = ("team-a".to_owned(), "t".to_owned());
        let tunnels = BTreeMap::from([(name, Arc::new(tunnel(2)))]);
        let mut verdict = Verdict {
            tunnels: Arc::new(tunnels),
            ..Verdict::default()
        };
        nodes.judge(&verdict);
        assert_eq!(nodes.count(&tunnel(2), now), (1, 1));
        let lease = seen("own", "5", &[("u-1", 1)]);
        assert!(!nodes.take(Event::Apply(lease), now));
        assert_eq!(nodes.count(&tunnel(2), now), (1, 1));
        // What was there before stays in force.
        verdict.failure = Some("why".to_owned());
        verdict.tunnels = Arc::default();
        nodes.judge(&verdict);
        assert_eq!(nodes.count(&tunnel(2), now), (1, 1));
    }
}
