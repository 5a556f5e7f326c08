//! A row of the table, and how it is played.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use underpass_tests::World;
use underpass_tests::process::Cmd;

use crate::stage::{Saw, Stage};

/// One fault.
pub(crate) struct Row {
    /// The name of its test.
    pub(crate) name: &'static str,
    /// What is done.
    pub(crate) fault: &'static str,
    /// What the workload must see: the last line of `programs/fault.py`.
    pub(crate) workload: &'static str,
    /// Within how many seconds.
    pub(crate) within: u64,
    /// What the access log must have of it.
    pub(crate) log: Option<Logged>,
    /// Whether the fault is that of one request of HTTP, and its `response_code` then: it has one
    /// record, and is counted once.
    pub(crate) request: Option<&'static str>,
    /// The counter that must have grown, with labels.
    pub(crate) counted: Option<(&'static str, &'static [(&'static str, &'static str)])>,
    /// Lines of the Tunnel's `spec`.
    pub(crate) policy: &'static [&'static str],
    /// Documents beside the Tunnel, and the files that they name.
    pub(crate) documents: fn(&World) -> String,
    /// The proxy's host. Any other than this one is not tried before the fault.
    pub(crate) proxy: &'static str,
    /// Options of the agent.
    pub(crate) options: &'static [&'static str],
    /// For how many seconds names may be kept.
    pub(crate) ttl: u32,
    /// What starts the agent, if that is not simply done.
    pub(crate) launcher: Option<fn(&World) -> Cmd>,
    /// Does it.
    pub(crate) play: fn(&mut Stage) -> Saw,
}

/// A record of the access log.
#[derive(Clone, Copy)]
pub(crate) struct Logged {
    /// `flags`; empty for a connection that was served and ended in order.
    pub(crate) flags: &'static str,
    /// `tunnel.code`; empty without an answer.
    pub(crate) code: &'static str,
    /// Parts of `error`.
    pub(crate) words: &'static [&'static str],
}

impl Logged {
    /// Served through a tunnel, and ended in order.
    pub(crate) const SERVED: Self = Self {
        flags: "",
        code: "200",
        words: &[],
    };
}

/// The name of the proxy in a world.
pub(crate) const PROXY: &str = "proxy.example";

impl Row {
    /// What most rows have.
    pub(crate) const USUAL: Self = Self {
        name: "",
        fault: "",
        workload: "echoed",
        within: 3,
        log: Some(Logged::SERVED),
        request: None,
        counted: None,
        policy: &[],
        documents: |_| String::new(),
        proxy: PROXY,
        options: &[],
        ttl: 0,
        launcher: None,
        play: |stage| stage.see("echo", &[]),
    };

    /// Longer than anybody waits with patience.
    pub(crate) fn is_slow(&self) -> bool {
        self.within > 3
    }

    /// Makes its world, plays it, and holds what is seen against the row.
    fn check(&self) {
        let mut stage = Stage::set(self);
        let saw = (self.play)(&mut stage);
        assert_eq!(saw.what, self.workload, "{}", stage.tails());
        let limit = Duration::from_secs(self.within);
        assert!(saw.elapsed <= limit, "after {:?}", saw.elapsed);
        stage.expect_told(self);
        stage.expect_clean();
    }
}

/// Makes a table, and a test of each row.
macro_rules! faults {
    ($($(#[$attribute:meta])* $name:ident { $($field:ident: $value:expr,)* })*) => {
        pub(crate) static TABLE: &[$crate::row::Row] = &[
            $($crate::row::Row {
                name: stringify!($name),
                $($field: $value,)*
                ..$crate::row::Row::USUAL
            },)*
        ];
        $(
            $(#[$attribute])*
            #[test]
            fn $name() {
                $crate::row::run(stringify!($name));
            }
        )*
    };
}

pub(crate) use faults;

/// The record with these flags, this code of the tunnel, and these words.
pub(crate) const fn logged(
    flags: &'static str,
    code: &'static str,
    words: &'static [&'static str],
) -> Option<Logged> {
    Some(Logged { flags, code, words })
}

/// All rows.
pub(crate) fn all() -> impl Iterator<Item = &'static Row> {
    crate::table::TABLE.iter().chain(crate::requests::TABLE)
}

/// Plays a row. Those that wait for something are all started with the first of them, since they
/// cost patience only.
pub(crate) fn run(name: &str) {
    static SLOW: OnceLock<Mutex<HashMap<&str, JoinHandle<()>>>> = OnceLock::new();
    let row = all().find(|row| row.name == name);
    let row = row.expect("the row of a test");
    if !row.is_slow() {
        return row.check();
    }
    let slow = SLOW.get_or_init(|| {
        let rows = all().filter(|row| row.is_slow());
        Mutex::new(
            rows.map(|row| (row.name, thread::spawn(|| row.check())))
                .collect(),
        )
    });
    let row = slow.lock().remove(name).expect("each row is played once");
    if let Err(panic) = row.join() {
        // What that thread printed belongs to the test that started it, so it is said again here.
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        panic!("{}", text.unwrap_or("it panicked without words"));
    }
}
