//! What is measured of the agent alone, each in its own way.

use std::time::Duration;

use serde_json::Value;

use super::paths::Setting;
use super::{connect, growth, programs, slow};

/// One of them.
pub(crate) struct Study {
    pub(crate) name: &'static str,
    /// Measures, prints a table, and gives everything that was measured.
    pub(crate) run: fn(&Setting, &Rounds) -> anyhow::Result<Value>,
}

/// All of them.
pub(crate) const STUDIES: [Study; 6] = [
    Study {
        name: "connect",
        run: connect::run,
    },
    Study {
        name: "programs",
        run: programs::run,
    },
    Study {
        name: "slow",
        run: slow::run,
    },
    Study {
        name: "tunnels",
        run: growth::tunnels,
    },
    Study {
        name: "policies",
        run: growth::policies,
    },
    Study {
        name: "namespaces",
        run: growth::namespaces,
    },
];

/// How often each measurement is made, and how long one takes.
pub(crate) struct Rounds {
    pub(crate) reps: usize,
    pub(crate) time: Duration,
}
