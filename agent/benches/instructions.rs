//! How many instructions it takes to look at a connection and to decide about it, which unlike time
//! is the same each time: `cargo xtask bench --instructions`.
//!
//! Each is run once before it is counted, so that what is only made once is there.
#![expect(
    missing_docs,
    unused_qualifications,
    reason = "what the macros of gungraun write"
)]

use std::hint::black_box;
use std::sync::Arc;

use gungraun::Callgrind;
use gungraun::prelude::*;
use tokio::runtime::{Builder, Runtime};
use underpass::inspect::client_hello::{self, ClientHello, Incomplete};
use underpass::inspect::http_head::{self, Found};
use underpass::inspect::{InspectError, Inspected, Limits, inspect};
use underpass::name::Target;
use underpass::policy::{Facts, Policy, Verdict, View};
use underpass::tunnel::answer::{self, Answer, BadAnswer};
use underpass::tunnel::connect;

mod inputs {
    pub(crate) mod connection;
    pub(crate) mod policy;
}
use inputs::connection::{CLIENT_HELLO, REFUSAL, REQUEST, SHORT, TARGET};
use inputs::policy::{LARGE, Lookup, SMALL, Size};

main!(
    // Without caches in the simulation, which is quicker.
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = [inspection, exchange, policy]
);

library_benchmark_group!(
    name = inspection,
    benchmarks = [parse_client_hello, parse_request, inspect_connection]
);

library_benchmark_group!(name = exchange, benchmarks = [write_connect, parse_answer]);

library_benchmark_group!(name = policy, benchmarks = [lookup]);

#[library_benchmark]
#[bench::whole(after_one(client_hello::parse, CLIENT_HELLO))]
fn parse_client_hello(bytes: &[u8]) -> Result<Option<ClientHello>, Incomplete> {
    client_hello::parse(black_box(bytes))
}

#[library_benchmark]
#[bench::whole(after_one(http_head::parse, REQUEST))]
fn parse_request(bytes: &[u8]) -> Result<Found, InspectError> {
    http_head::parse(black_box(bytes))
}

#[library_benchmark]
#[bench::client_hello(Connection::with(CLIENT_HELLO))]
#[bench::request(Connection::with(REQUEST))]
fn inspect_connection(connection: &Connection) -> Result<Inspected, InspectError> {
    connection.inspect()
}

#[library_benchmark]
#[bench::plain(after_one(request, target()))]
fn write_connect(target: &Target) -> Vec<u8> {
    request(black_box(target))
}

#[library_benchmark]
#[bench::short(after_one(answer::parse, SHORT))]
#[bench::refusal(after_one(answer::parse, REFUSAL))]
fn parse_answer(bytes: &[u8]) -> Result<Option<Answer>, BadAnswer> {
    answer::parse(black_box(bytes))
}

#[library_benchmark]
#[bench::small_exact_name(Question::new(SMALL, Lookup::ExactName))]
#[bench::small_wildcard(Question::new(SMALL, Lookup::Wildcard))]
#[bench::small_destination_rule(Question::new(SMALL, Lookup::DestinationRule))]
#[bench::small_address(Question::new(SMALL, Lookup::Address))]
#[bench::small_range(Question::new(SMALL, Lookup::Range))]
#[bench::small_for_all(Question::new(SMALL, Lookup::ForAll))]
#[bench::small_miss(Question::new(SMALL, Lookup::Miss))]
#[bench::small_internal(Question::new(SMALL, Lookup::Internal))]
#[bench::large_exact_name(Question::new(LARGE, Lookup::ExactName))]
#[bench::large_wildcard(Question::new(LARGE, Lookup::Wildcard))]
#[bench::large_address(Question::new(LARGE, Lookup::Address))]
#[bench::large_miss(Question::new(LARGE, Lookup::Miss))]
fn lookup(question: &Question) -> Verdict {
    question.ask()
}

/// The input, after it was used once.
fn after_one<I: Copy, O>(work: impl FnOnce(I) -> O, input: I) -> I {
    black_box(work(input));
    input
}

/// Where things are left that are not to be dropped while instructions are counted.
fn leaked<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

fn target() -> &'static Target {
    leaked(TARGET.parse().expect("a target"))
}

fn request(target: &Target) -> Vec<u8> {
    connect::request(target, &[], None)
}

/// A connection on which the first bytes are already there.
struct Connection {
    bytes: &'static [u8],
    runtime: Runtime,
}

impl Connection {
    fn with(bytes: &'static [u8]) -> &'static Self {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let connection = leaked(Self { bytes, runtime });
        after_one(Self::inspect, connection)
    }

    fn inspect(&self) -> Result<Inspected, InspectError> {
        let mut bytes = black_box(self.bytes);
        self.runtime
            .block_on(inspect(&mut bytes, &Limits::default()))
    }
}

/// A policy, and what it is asked.
struct Question {
    policy: Policy,
    view: Arc<View>,
    facts: Facts,
}

impl Question {
    fn new(size: Size, lookup: Lookup) -> &'static Self {
        let documents = inputs::policy::documents(size, lookup.has_rest());
        let policy = inputs::policy::compile(&inputs::policy::parse(&documents));
        let question = leaked(Self {
            view: policy.view(&inputs::policy::workload()),
            facts: lookup.facts(size),
            policy,
        });
        lookup.check(&question.ask().decision);
        question
    }

    fn ask(&self) -> Verdict {
        self.policy
            .decide(black_box(&self.facts), black_box(&self.view))
    }
}

// In place of those of the C library: two things that are another each time, and with them the count.

/// The seeds of hash tables come from here: how often a table has to look on depends on them.
#[expect(unsafe_code, reason = "under another name nobody would call it")]
// SAFETY: it does what it promises, only that nobody is surprised by the bytes.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    // SAFETY: the caller promises that there is room.
    unsafe { buffer.write_bytes(0, length) };
    length.cast_signed()
}

/// Time stands still: whether a timeout ends in the next second makes a difference.
#[expect(unsafe_code, reason = "under another name nobody would call it")]
// SAFETY: it does what it promises; a clock may be that coarse.
#[unsafe(no_mangle)]
extern "C" fn clock_gettime(_clock: i32, time: *mut [i64; 2]) -> i32 {
    // SAFETY: the caller promises that there is room for seconds and nanoseconds.
    unsafe { time.write([1_000_000, 0]) };
    0
}
