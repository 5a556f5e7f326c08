//! The load-only verifier test: the running kernel takes every program, and the object's maps are
//! those that `underpass-abi` names.

use underpass_abi::map;

use super::super::{CaptureConfig, Reach};
use super::*;

/// Loading needs root. Where there is none the test must not pass by doing nothing, so it is
/// ignored unless asked for, and `cargo xtask test` asks.
#[test]
#[ignore = "needs CAP_BPF; cargo xtask test runs it"]
fn the_kernel_takes_the_programs() {
    let config = CaptureConfig {
        max_connections: 1024,
        reach: Reach::OwnNamespace,
        verbose: true,
    };
    let mut object = Object::load(&config).unwrap();
    for name in [
        map::ANSWERS,
        map::ASKERS,
        map::CONFIG,
        map::COUNTERS,
        map::FLOWS,
        map::NAMESPACES,
        map::NEWCOMERS,
        map::PORTS,
        map::PREFIXES,
        map::PROXIES,
        map::QUERIES,
        map::QUESTIONS,
        map::REDIRECTS,
        map::ROLES,
    ] {
        assert!(object.ebpf().map(name).is_some(), "no map {name}");
    }
    let expected = SOCK_ADDR_PROGRAMS
        .into_iter()
        .chain(QUERY_PROGRAMS)
        // The last is loaded where it is asked, by `netns::ask`.
        .chain([SOCK_OPS_PROGRAM, "tell_netns"])
        .chain(PACKET_PROGRAMS.map(|(name, ..)| name));
    let mut programs: Vec<_> = object.ebpf().programs().map(|(name, _)| name).collect();
    programs.sort_unstable();
    let mut expected: Vec<_> = expected.collect();
    expected.sort_unstable();
    assert_eq!(
        programs, expected,
        "the object has others than those that are loaded"
    );
}
