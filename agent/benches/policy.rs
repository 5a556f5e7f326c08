//! How long policy takes: `cargo bench --package underpass --bench policy`.
//!
//! A large policy beside a small one, in the same run: what matters is that a lookup in the large
//! one takes no longer. Times are the best of several rounds, as anything else on the machine only
//! adds to them.
#![expect(clippy::print_stdout, reason = "what is measured is for people")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use underpass::name::OriginalDst;
use underpass::policy::{
    Claim, Decision, Documents, Facts, Materials, NameSource, Options, Policy, View,
};
use underpass::workload::Workload;

/// How many documents there are.
#[derive(Clone, Copy)]
struct Size {
    entries: usize,
    tunnels: usize,
}

const LARGE: Size = Size {
    entries: 10_000,
    tunnels: 1_000,
};

const SMALL: Size = Size {
    entries: 10,
    tunnels: 1,
};

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
    let materials = Materials::none();
    let options = Options::default();
    let compile =
        |documents: &Documents| Policy::compile(documents, &materials, &options).expect("a policy");
    let parse = |text: &str| {
        let mut documents = Documents::default();
        documents.add(Path::new("bench.yaml"), text);
        documents
    };

    let parsing = best(5, || parse(&text));
    let parsed = parse(&text);
    let compiling = best(5, || compile(&parsed));
    let before = ALLOCATOR.live();
    let policy = compile(&parsed);
    let memory = ALLOCATOR.live() - before;
    drop(parsed);
    assert!(policy.rule_count() > size.tunnels);

    let without_rest = compile(&parse(&documents(size, false)));
    let workload = Workload {
        namespace: Some("team-7".into()),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        ..Workload::default()
    };
    let view = policy.view(&workload);
    let view_without_rest = without_rest.view(&workload);
    let last = size.entries - 1;
    // Of ten entries one is a wildcard and two have addresses, see `documents`.
    let (named, below) = (last / 10 * 10 + 3, last / 10 * 10);
    let lookup = |policy: &Policy, view: &View, facts: &Facts, policies: &str| {
        let decision = policy.decide(facts, view).decision;
        let by = match &decision {
            Decision::Tunnel(tunnel) => &*tunnel.policy,
            Decision::Direct(_) => "",
            Decision::Deny { policy, .. } => policy,
        };
        assert!(by.starts_with(policies), "{decision:?}");
        let time = best(ROUNDS, || {
            for _ in 0..LOOKUPS {
                black_box(policy.decide(black_box(facts), black_box(view)));
            }
        });
        Figure::Time(time / LOOKUPS)
    };
    let claim = |name: String| Some((name, NameSource::Sni));
    vec![
        ("parse the YAML", Figure::Time(parsing)),
        ("compile what was parsed", Figure::Time(compiling)),
        ("both", Figure::Time(parsing + compiling)),
        ("memory of the policy", Figure::Bytes(memory)),
        (
            "view of a workload",
            Figure::Time(best(ROUNDS, || policy.view(black_box(&workload)))),
        ),
        (
            "lookup: exact name",
            lookup(
                &policy,
                &view,
                &facts("198.51.100.7:443", claim(format!("s{named}.example.com"))),
                "Tunnel/t",
            ),
        ),
        (
            "lookup: wildcard",
            lookup(
                &policy,
                &view,
                &facts(
                    "198.51.100.7:443",
                    claim(format!("a.b.s{below}.example.com")),
                ),
                "Tunnel/t",
            ),
        ),
        (
            "lookup: host of a DestinationRule",
            lookup(
                &policy,
                &view,
                &facts("198.51.100.7:443", claim("host0.example.org".to_owned())),
                "DestinationRule/",
            ),
        ),
        (
            "lookup: address",
            lookup(
                &policy,
                &view,
                &facts(&address(last / 10 * 10 + 1), None),
                "Tunnel/t",
            ),
        ),
        (
            "lookup: range",
            lookup(&policy, &view, &facts("100.65.0.9:443", None), "Tunnel/t"),
        ),
        (
            "lookup: for all",
            lookup(
                &policy,
                &view,
                &facts("198.51.100.7:443", claim("www.elsewhere.test".to_owned())),
                "Tunnel/rest",
            ),
        ),
        (
            "lookup: miss",
            lookup(
                &without_rest,
                &view_without_rest,
                &facts("198.51.100.7:443", claim("www.elsewhere.test".to_owned())),
                "",
            ),
        ),
        (
            "lookup: internal",
            lookup(&policy, &view, &facts("10.1.2.3:443", None), ""),
        ),
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

fn facts(dst: &str, claimed: Option<(String, NameSource)>) -> Facts {
    Facts {
        original_dst: OriginalDst(dst.parse().expect("an address")),
        claimed: claimed.map(|(host, source)| Claim {
            host: host.parse().expect("a host"),
            source,
        }),
        claimed_is_verified: false,
        hides_name: false,
    }
}

fn address(entry: usize) -> String {
    format!("198.18.{}.{}:443", entry / 256, entry % 256)
}

/// Services of as many teams as there are Tunnels, each Tunnel for one team; and hosts of their
/// own, and with `rest` everything else.
fn documents(size: Size, rest: bool) -> String {
    let mut text = String::new();
    for entry in 0..size.entries {
        let mut hosts = format!("s{entry}.example.com");
        let mut addresses = String::new();
        match entry % 10 {
            0 => hosts = format!("'*.s{entry}.example.com'"),
            1 => addresses = address(entry).trim_end_matches(":443").to_owned(),
            2 => addresses = format!("100.{}.{}.0/24", 65 + entry / 10 / 256, entry / 10 % 256),
            _ => {}
        }
        let team = entry % size.tunnels;
        document(
            &mut text,
            "networking.istio.io/v1",
            "ServiceEntry",
            &format!("s{entry}\n  labels: {{team: team-{team}, environment: production}}"),
            &format!(
                "  hosts: [{hosts}]\n  addresses: [{addresses}]\n  ports:\n    - number: 443\n      \
                 name: tls\n      protocol: TLS\n  location: MESH_EXTERNAL\n  resolution: DNS\n"
            ),
        );
    }
    let proxy = "  proxy:\n    host: proxy.example\n    port: 3128\n";
    for tunnel in 0..size.tunnels {
        // Those for some workloads only stand before one for all.
        if tunnel % 3 == 1 {
            document(
                &mut text,
                "underpass.dev/v1alpha1",
                "Tunnel",
                &format!("t{tunnel}-web"),
                &format!(
                    "  selector:\n    matchLabels: {{team: team-{tunnel}}}\n  workloadSelector:\n    \
                     namespaces: [team-{tunnel}]\n    matchLabels: {{app: web}}\n{proxy}"
                ),
            );
        }
        document(
            &mut text,
            "underpass.dev/v1alpha1",
            "Tunnel",
            &format!("t{tunnel}"),
            &format!("  selector:\n    matchLabels: {{team: team-{tunnel}}}\n{proxy}"),
        );
    }
    for host in 0..size.tunnels {
        document(
            &mut text,
            "networking.istio.io/v1",
            "DestinationRule",
            &format!("host{host}"),
            &format!(
                "  host: host{host}.example.org\n  trafficPolicy:\n    tunnel:\n      proxy:\n        \
                 host: proxy.example\n        port: 3128\n"
            ),
        );
    }
    if rest {
        document(&mut text, "underpass.dev/v1alpha1", "Tunnel", "rest", proxy);
    }
    text
}

fn document(text: &mut String, version: &str, kind: &str, name: &str, spec: &str) {
    let written = write!(
        text,
        "---\napiVersion: {version}\nkind: {kind}\nmetadata:\n  name: {name}\nspec:\n{spec}"
    );
    written.expect("room for a document");
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
