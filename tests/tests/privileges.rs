//! What a running agent may still do.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use underpass_tests::addr::proxy_v4;
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::pod::Node;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy, Step};
use underpass_tests::{Must as _, World, wait_for};

const SECONDS: std::time::Duration = std::time::Duration::from_secs(30);

/// Bits of linux/capability.h, by name.
const KEPT: [(&str, u32); 6] = [
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_DAC_READ_SEARCH", 2),
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_BPF", 39),
];

/// The lines of a `status` file by their names.
fn status(path: &Path) -> Option<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).ok()?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let fields = lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    Some(fields.collect())
}

/// The status of each thread of these processes.
fn threads(pids: &[u32]) -> Vec<BTreeMap<String, String>> {
    let tasks = pids.iter().flat_map(|pid| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        tasks.into_iter().flatten().flatten()
    });
    tasks
        .filter_map(|task| status(&task.path().join("status")))
        .collect()
}

fn children(pid: u32) -> Vec<u32> {
    let listed = fs::read_dir(format!("/proc/{pid}/task")).must("list threads");
    let listed = listed.flatten().flat_map(|task| {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let children = children
            .split_whitespace()
            .filter_map(|child| child.parse().ok());
        children.collect::<Vec<u32>>()
    });
    listed.collect()
}

#[test]
fn a_running_agent_has_given_up_what_it_does_not_need() {
    let world = World::new("privileges");
    let node = Node::new(&world);
    let answer = Answer::opened([Step::TellTarget, Step::Finish]);
    let proxy = FakeProxy::start(world.inet(), proxy_v4(), answer);
    let policy = |spec| tunnel_policy(&[spec]).replace("proxy.example", "192.0.2.20");
    let agent = Agent::start(&world, &policy("targetHost: ORIGINAL_DST"));

    let own = threads(&[std::process::id()]);
    let held = u64::from_str_radix(&own[0]["CapPrm"], 16).must("read what this test may do");
    let wanted = KEPT.iter().filter(|(_, bit)| held & (1 << bit) != 0);
    let mask = wanted.clone().fold(0u64, |all, (_, bit)| all | 1 << bit);
    assert_ne!(held, mask, "there is something to give up");
    wait_for("the canaries' helper runs", SECONDS, || {
        !children(agent.pid()).is_empty()
    });
    let mut pids = children(agent.pid());
    pids.push(agent.pid());
    let threads = threads(&pids);
    assert!(threads.len() > 4, "{threads:?}");
    for thread in &threads {
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            let has = u64::from_str_radix(&thread[set], 16).must("read a set");
            assert_eq!(has & !mask, 0, "{set} of {}", thread["Name"]);
        }
        assert_eq!(thread["CapInh"], "0000000000000000", "{}", thread["Name"]);
        assert_eq!(thread["CapAmb"], "0000000000000000", "{}", thread["Name"]);
        assert_eq!(thread["NoNewPrivs"], "1", "{}", thread["Name"]);
    }
    let told = agent.admin("/status")["capabilities"].clone();
    let names: Vec<&str> = wanted.map(|(name, _)| *name).collect();
    assert_eq!(told, serde_json::json!(names));

    // It still enrols pods, captures, tells about programs, and takes new policy.
    let pod = node.start(1);
    agent.wait_for_metric("underpass_namespaces_enrolled", &[], 2.0);
    let connect = pod.program("from_port").args(["203.0.113.11", "443", "0"]);
    let heard = connect.run(SECONDS).expect_success().stdout;
    assert_eq!(heard, "203.0.113.11:443\n", "{}", agent.tails());
    assert_eq!(proxy.requests().len(), 1);
    // An open policy: nothing is to outlive the agent any more.
    let open = policy("failureMode: open");
    fs::write(world.dir().join("policy.yaml"), open).must("write another policy");
    agent.wait_for_metric("underpass_policy_generation", &[], 2.0);
    agent.wait_for_metric("underpass_policy_last_reload_successful", &[], 1.0);
    agent.wait_for_metric("underpass_capture_healthy", &[("check", "programs")], 1.0);
}
