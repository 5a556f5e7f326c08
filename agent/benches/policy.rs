//! How long policy takes: `cargo bench --package underpass --bench policy`.
//!
//! A large policy beside a small one, in the same run: what matters is that a lookup in the large
//! one takes no longer. Times are the best of several rounds, as anything else on the machine only
//! adds to them.
#![expect(clippy::print_stdout, reason = "what is measured is for people")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

mod inputs {
    pub(crate) mod policy;
}
use inputs::policy::{LARGE, Lookup, SMALL, Size, compile, documents, parse, workload};

/// Lookups between two looks at the clock.
const LOOKUPS: u32 = 20_000;

const ROUNDS: usize = 15;

fn main() {
    let large = measure(LARGE);
    let small = measure(SMALL);
    println!(
        "{:<34}{:>14}{:>14}{:>9}",
        "",
        shown(LARGE),
        shown(SMALL),
        "ratio"
    );
    for ((what, large), (_, small)) in large.iter().zip(&small) {
        let ratio = large.in_unit() / small.in_unit();
        println!("{what:<34}{large:>14}{small:>14}{ratio:>9.2}");
    }
}

fn shown(size: Size) -> String {
    format!("{} + {}", size.entries, size.tunnels)
}

/// Something that is measured.
#[derive(Clone, Copy)]
enum Figure {
    Time(Duration),
    Bytes(usize),
}

impl Figure {
    /// In nanoseconds, or bytes.
    fn in_unit(self) -> f64 {
        match self {
            Self::Time(time) => time.as_secs_f64() * 1e9,
            #[expect(
                clippy::as_conversions,
                clippy::cast_precision_loss,
                reason = "for a ratio"
            )]
            Self::Bytes(bytes) => bytes as f64,
        }
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Self::Time(time) if *time >= Duration::from_millis(1) => {
                format!("{:.1} ms", time.as_secs_f64() * 1e3)
            }
            Self::Time(time) if *time >= Duration::from_micros(10) => {
                format!("{:.1} us", time.as_secs_f64() * 1e6)
            }
            Self::Time(time) => format!("{:.0} ns", time.as_secs_f64() * 1e9),
            Self::Bytes(bytes) => format!("{} KiB", bytes / 1024),
        };
        f.pad(&text)
    }
}

fn measure(size: Size) -> Vec<(&'static str, Figure)> {
    let text = documents(size, true);
    let parsing = best(5, || parse(&text));
    let parsed = parse(&text);
    let compiling = best(5, || compile(&parsed));
    let before = ALLOCATOR.live();
    let policy = compile(&parsed);
    let memory = ALLOCATOR.live() - before;
    drop(parsed);
    assert!(policy.rule_count() > size.tunnels);

    let without_rest = compile(&parse(&documents(size, false)));
    let workload = workload();
    let view = policy.view(&workload);
    let view_without_rest = without_rest.view(&workload);
    let lookup = |lookup: Lookup| {
        let (policy, view) = if lookup.has_rest() {
            (&policy, &view)
        } else {
            (&without_rest, &view_without_rest)
        };
        let facts = lookup.facts(size);
        lookup.check(&policy.decide(&facts, view).decision);
        let time = best(ROUNDS, || {
            for _ in 0..LOOKUPS {
                black_box(policy.decide(black_box(&facts), black_box(view)));
            }
        });
        Figure::Time(time / LOOKUPS)
    };
    vec![
        ("parse the YAML", Figure::Time(parsing)),
        ("compile what was parsed", Figure::Time(compiling)),
        ("both", Figure::Time(parsing + compiling)),
        ("memory of the policy", Figure::Bytes(memory)),
        (
            "view of a workload",
            Figure::Time(best(ROUNDS, || policy.view(black_box(&workload)))),
        ),
        ("lookup: exact name", lookup(Lookup::ExactName)),
        ("lookup: wildcard", lookup(Lookup::Wildcard)),
        (
            "lookup: host of a DestinationRule",
            lookup(Lookup::DestinationRule),
        ),
        ("lookup: address", lookup(Lookup::Address)),
        ("lookup: range", lookup(Lookup::Range)),
        ("lookup: for all", lookup(Lookup::ForAll)),
        ("lookup: miss", lookup(Lookup::Miss)),
        ("lookup: internal", lookup(Lookup::Internal)),
    ]
}

/// The shortest of some rounds, without what it takes to forget the results.
fn best<T>(rounds: usize, mut work: impl FnMut() -> T) -> Duration {
    let round = |_| {
        let start = Instant::now();
        let result = black_box(work());
        let time = start.elapsed();
        drop(result);
        time
    };
    (0..rounds).map(round).min().unwrap_or_default()
}

#[global_allocator]
static ALLOCATOR: Counting = Counting(AtomicUsize::new(0));

/// The allocator of the system, and how many bytes of it are in use.
struct Counting(AtomicUsize);

impl Counting {
    fn live(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[expect(unsafe_code, reason = "an allocator is")]
// SAFETY: everything is left to the allocator of the system.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller promises what is asked for here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.0.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: likewise.
        unsafe { System.dealloc(pointer, layout) }
    }
}
