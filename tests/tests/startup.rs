//! What is missing is said at the start: what, and what to do.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use underpass_tests::agent::{binary, tunnel_policy};
use underpass_tests::process::{Cmd, Finished};
use underpass_tests::{Must as _, World};

const SECONDS: Duration = Duration::from_secs(20);

struct Start {
    world: World,
    policy: PathBuf,
}

impl Start {
    fn new(name: &str) -> Self {
        let world = World::new(name);
        let policy = world.dir().join("policy.yaml");
        fs::write(&policy, tunnel_policy(&[])).must("write a policy");
        Self { world, policy }
    }

    /// Starts the agent by `launcher`, which takes a command as its last arguments.
    fn run_by(&self, launcher: Cmd, options: &[&str]) -> Finished {
        self.begin(launcher)
            .arg("--policy")
            .arg(&self.policy)
            .args(options)
            .run(SECONDS)
    }

    fn begin(&self, launcher: Cmd) -> Cmd {
        launcher.arg(binary()).args([
            "run",
            "--metrics-addr",
            "127.0.0.1:0",
            "--ready-addr",
            "127.0.0.1:0",
            "--admin-addr",
            "127.0.0.1:0",
        ])
    }

    fn env(&self) -> Cmd {
        self.world.host().command("env")
    }

    /// Without the capabilities that `removed` names as setpriv(1) does.
    fn without(&self, removed: &str) -> Cmd {
        let setpriv = self.world.host().command("setpriv");
        setpriv.arg(format!("--bounding-set={removed}"))
    }
}

/// Ended with this status, and one line said all of `words`.
#[track_caller]
fn expect(done: &Finished, status: i32, words: &[&str]) {
    assert_eq!(done.status.code(), Some(status), "{done:?}");
    let said = done
        .stderr
        .lines()
        .any(|line| words.iter().all(|word| line.contains(word)));
    assert!(said, "no line has {words:?}: {done:?}");
}

#[test]
fn missing_capabilities_are_named() {
    let start = Start::new("capabilities");
    let cgroup = start.world.workload().path().display().to_string();
    let here = ["--cgroup", cgroup.as_str()];
    let cases: [(&str, &[&str], &[&str]); 4] = [
        (
            "-net_admin",
            &["CAP_NET_ADMIN"],
            &["CAP_BPF", "CAP_PERFMON"],
        ),
        (
            "-sys_admin,-bpf",
            &["CAP_BPF"],
            &["CAP_PERFMON", "CAP_NET_ADMIN"],
        ),
        (
            "-sys_admin,-perfmon",
            &["CAP_PERFMON"],
            &["CAP_BPF", "CAP_NET_ADMIN"],
        ),
        ("-all", &["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"], &[]),
    ];
    for (removed, named, not_named) in cases {
        let done = start.run_by(start.without(removed), &here);
        expect(&done, 1, &[&["missing"], named].concat());
        for name in not_named {
            assert!(!done.stderr.contains(name), "{removed}: {done:?}");
        }
    }
    // `exec` says the same, with the status of what is not the command's.
    let exec = start
        .without("-all")
        .arg(binary())
        .args(["exec", "--proxy"]);
    let done = exec
        .args(["http://192.0.2.20:3128", "--", "true"])
        .run(SECONDS);
    expect(&done, 125, &["missing", "CAP_NET_ADMIN"]);
}

#[test]
fn a_machine_without_cgroup_v2_is_told_how_to_get_it() {
    const UNMOUNT: &str = "awk '/ - cgroup2 /{print $5}' /proc/self/mountinfo | sort -r | \
                           while read -r mount; do umount -l \"$mount\" || exit 9; done; exec \"$@\"";
    let start = Start::new("no-cgroup2");
    let launcher = start.world.host().command("unshare");
    let launcher = launcher.args(["--mount", "--", "sh", "-ec", UNMOUNT, "sh"]);
    let done = start.run_by(launcher, &[]);
    expect(&done, 1, &["cgroup v2", "mount -t cgroup2"]);
}

#[test]
fn a_path_that_is_no_cgroup_is_refused() {
    let start = Start::new("no-cgroup");
    let dir = start.world.dir().display().to_string();
    let done = start.run_by(start.env(), &["--cgroup", &dir]);
    expect(
        &done,
        64,
        &[&dir, "not a directory of the cgroup v2 hierarchy"],
    );
    let missing = start.world.workload().path().join("missing");
    let missing = missing.display().to_string();
    let done = start.run_by(start.env(), &["--cgroup", &missing]);
    expect(&done, 64, &[&missing, "No such file"]);
}

#[test]
fn a_policy_that_cannot_be_used_is_named() {
    let mut start = Start::new("no-policy");
    let cgroup = start.world.workload().path().display().to_string();
    let here = ["--cgroup", cgroup.as_str()];

    start.policy = start.world.dir().join("missing.yaml");
    let done = start.run_by(start.env(), &here);
    expect(&done, 64, &["missing.yaml", "No such file"]);

    start.policy = start.world.dir().join("bad.yaml");
    let bad = tunnel_policy(&[]).replace("3128", "seventy");
    fs::write(&start.policy, bad).must("write a policy");
    let done = start.run_by(start.env(), &here);
    expect(
        &done,
        64,
        &["bad.yaml:8", "Tunnel/everything", "spec.proxy.port"],
    );

    let without = start.begin(start.env()).args(here).run(SECONDS);
    expect(&without, 64, &["--policy"]);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let start = Start::new("bad-options");
    for options in [
        ["--internal-cidr", "10.0.0.0/33"],
        ["--internal-cidr", "corp.example"],
        ["--max-connections", "0"],
        ["--max-connections", "many"],
        ["--log-format", "xml"],
        ["--log-level", "underpass=loud"],
    ] {
        let done = start.run_by(start.env(), &options);
        expect(&done, 64, &[options[1]]);
    }
    let nowhere = start.run_by(start.env(), &["--log-file", "/no/such/folder/log"]);
    expect(&nowhere, 64, &["/no/such/folder/log"]);
}

#[test]
fn nothing_is_left_of_a_start_that_failed() {
    let start = Start::new("failed-start");
    let workload = start.world.workload();
    let cgroup = workload.path().display().to_string();
    // Bound after the programs were attached would be too late.
    let taken = ["--cgroup", &cgroup, "--metrics-addr", "192.0.2.99:1"];
    let launcher = start.env().arg(binary()).args(["run", "--policy"]);
    let done = launcher.arg(&start.policy).args(taken).run(SECONDS);
    expect(&done, 1, &["192.0.2.99:1", "--metrics-addr"]);
    let entries = fs::read_dir(workload.path()).must("list a cgroup");
    let children = entries
        .map(|entry| entry.must("list a cgroup"))
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    assert_eq!(children.count(), 0);
}
