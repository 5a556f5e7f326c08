//! `underpass detach`: what a killed agent left behind goes, what a running one has stays.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use underpass_tests::agent::{Agent, tunnel_policy, underpass};
use underpass_tests::{Must as _, World};

const SECONDS: Duration = Duration::from_secs(20);

/// The cgroups below the world's workload.
fn cgroups(world: &World) -> Vec<PathBuf> {
    let entries = fs::read_dir(world.workload().path()).must("list a cgroup");
    entries
        .map(|entry| entry.must("list a cgroup"))
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

#[test]
fn the_cgroup_of_a_killed_agent_goes_and_that_of_a_running_one_stays() {
    let (dead, alive) = (World::new("detach-dead"), World::new("detach-alive"));
    let mut killed = Agent::start(&dead, &tunnel_policy(&[]));
    let running = Agent::start(&alive, &tunnel_policy(&[]));
    let [left] = &cgroups(&dead)[..] else {
        panic!("not one cgroup: {:?}", cgroups(&dead));
    };
    let left = left.clone();
    let kept = cgroups(&alive);
    assert_eq!(kept.len(), 1, "{kept:?}");

    killed.process().kill();
    assert_eq!(
        cgroups(&dead),
        std::slice::from_ref(&left),
        "nobody is there to remove it"
    );

    let done = underpass(&dead).arg("detach").run(SECONDS).expect_success();
    let said = format!("removed cgroup {}", left.display());
    assert!(done.stdout.lines().any(|line| line == said), "{done:?}");
    assert_eq!(cgroups(&dead), [] as [PathBuf; 0]);

    assert_eq!(cgroups(&alive), kept);
    for kept in &kept {
        assert!(
            !done.stdout.contains(&kept.display().to_string()),
            "{done:?}"
        );
    }
    // Not only is its cgroup there: it still works.
    let redirected = running.metrics();
    assert!(
        redirected
            .sum("underpass_namespaces_enrolled", &[])
            .is_some()
    );

    let again = underpass(&dead).arg("detach").run(SECONDS).expect_success();
    assert!(!again.stdout.contains(&said), "{again:?}");
}

#[test]
fn an_agent_that_is_told_to_stop_leaves_nothing_to_detach() {
    let world = World::new("detach-stopped");
    let mut agent = Agent::start(&world, &tunnel_policy(&[]));
    assert_eq!(cgroups(&world).len(), 1);
    agent.process().signal(nix::sys::signal::Signal::SIGTERM);
    let status = agent.process().wait(SECONDS).expect("it ends");
    assert_eq!(status.code(), Some(0), "{}", agent.tails());
    assert_eq!(cgroups(&world), [] as [PathBuf; 0]);
}
