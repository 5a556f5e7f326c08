//! Values by host name.

use std::collections::HashMap;

use super::api::value::HostPattern;
use super::hash::Seed;
use crate::name::HostName;

/// A table from patterns of names to values, found by name in time that grows only with the number
/// of its labels.
#[derive(Clone, Debug)]
pub(super) struct HostTable<T> {
    any: Vec<T>,
    names: HashMap<Box<str>, Values<T>, Seed>,
}

#[derive(Clone, Debug)]
struct Values<T> {
    itself: Vec<T>,
    below: Vec<T>,
}

impl<T> Default for HostTable<T> {
    fn default() -> Self {
        Self {
            any: Vec::new(),
            names: HashMap::default(),
        }
    }
}

impl<T> HostTable<T> {
    /// Adds a value behind the others of the same pattern.
    pub(super) fn push(&mut self, pattern: &HostPattern, value: T) {
        match pattern {
            HostPattern::Any => self.any.push(value),
            HostPattern::Below(domain) => self.values(domain).below.push(value),
            HostPattern::Exact(name) => self.values(name).itself.push(value),
        }
    }

    /// The values of every pattern that matches `name`: its own first, then by the longest domain.
    pub(super) fn matching(&self, name: &HostName) -> impl Iterator<Item = &T> {
        let name = name.as_str();
        let itself = self.names.get(name).map(|values| &values.itself);
        let domains = name
            .match_indices('.')
            .filter_map(|(dot, _)| self.names.get(&name[dot + 1..]))
            .map(|values| &values.below);
        itself.into_iter().chain(domains).flatten().chain(&self.any)
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.any.is_empty() && self.names.is_empty()
    }

    fn values(&mut self, name: &HostName) -> &mut Values<T> {
        self.names
            .entry(name.as_str().into())
            .or_insert_with(|| Values {
                itself: Vec::new(),
                below: Vec::new(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_name_comes_first_then_the_longest_domain() {
        let mut table = HostTable::default();
        let below = |domain: &str| HostPattern::Below(domain.parse().unwrap());
        let exact = |name: &str| HostPattern::Exact(name.parse().unwrap());
        table.push(&HostPattern::Any, 5);
        table.push(&below("com"), 4);
        table.push(&below("google.com"), 3);
        table.push(&exact("www.google.com"), 1);
        table.push(&exact("www.google.com"), 2);
        table.push(&exact("google.com"), 6);
        for (name, expected) in [
            ("www.google.com", &[1, 2, 3, 4, 5][..]),
            ("a.www.google.com", &[3, 4, 5]),
            ("google.com", &[6, 4, 5]),
            ("notgoogle.com", &[4, 5]),
            ("com", &[5]),
            ("www.google.org", &[5]),
        ] {
            let found: Vec<i32> = table.matching(&name.parse().unwrap()).copied().collect();
            assert_eq!(found, expected, "{name}");
        }
    }
}
