//! Sets of TCP ports.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

use serde::{Serialize, Serializer};

/// A set of TCP ports, kept as ranges.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PortSet {
    /// In order, and never touching each other.
    ranges: Vec<RangeInclusive<u16>>,
}

impl PortSet {
    /// Every port there is, from 1 to 65535.
    pub fn all() -> Self {
        Self {
            ranges: Vec::from([1..=u16::MAX]),
        }
    }

    /// No port.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether `port` is in it.
    pub fn contains(&self, port: u16) -> bool {
        self.ranges.iter().any(|range| range.contains(&port))
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ports as ranges, in order, with gaps between them.
    pub fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.ranges
    }

    /// Takes a port out.
    pub fn remove(&mut self, port: u16) {
        let Some(at) = self.ranges.iter().position(|range| range.contains(&port)) else {
            return;
        };
        let (first, last) = (*self.ranges[at].start(), *self.ranges[at].end());
        let below = port.checked_sub(1).map(|end| first..=end);
        let above = port.checked_add(1).map(|start| start..=last);
        let rest = below.into_iter().chain(above).filter(|r| !r.is_empty());
        self.ranges.splice(at..=at, rest);
    }
}

impl FromIterator<u16> for PortSet {
    /// Takes the ports in any order, 0 left out.
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        let ports: BTreeSet<u16> = ports.into_iter().filter(|port| *port != 0).collect();
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        for port in ports {
            match ranges.last_mut() {
                Some(last) if *last.end() == port - 1 => *last = *last.start()..=port,
                _ => ranges.push(port..=port),
            }
        }
        Self { ranges }
    }
}

impl fmt::Display for PortSet {
    /// `1-24,26-65535`, or `none`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (n, range) in self.ranges.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{first}")?,
                (first, last) => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl Serialize for PortSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_range() {
        let ports: PortSet = [443, 80, 444, 0, 65535, 443, 445].into_iter().collect();
        assert_eq!(ports.to_string(), "80,443-445,65535");
    }

    #[test]
    fn ports_are_taken_out_one_by_one() {
        let mut ports = PortSet::all();
        assert_eq!(ports.to_string(), "1-65535");
        for port in [25, 1, 65535, 27, 25, 0, 65533] {
            ports.remove(port);
        }
        assert_eq!(ports.to_string(), "2-24,26,28-65532,65534");
        for (port, expected) in [
            (1, false),
            (2, true),
            (25, false),
            (26, true),
            (65534, true),
        ] {
            assert_eq!(ports.contains(port), expected, "{port}");
        }
        ports.remove(26);
        assert_eq!(ports.to_string(), "2-24,28-65532,65534");
        assert!(!ports.is_empty());
        assert_eq!(PortSet::none().to_string(), "none");
    }
}
