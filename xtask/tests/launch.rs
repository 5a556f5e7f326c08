//! The launcher between xtask and the programs it starts.

use std::process::{Command, Output};

use nix::sys::signal::{SigSet, Signal};

fn launch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("launch")
        .args(arguments)
        .output()
        .expect("xtask starts")
}

#[test]
fn programs_start_with_no_signal_held_back() {
    let held = SigSet::from_iter([
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGCHLD,
    ]);
    held.thread_block().unwrap();
    let inherited = Command::new("grep")
        .args(["SigBlk", "/proc/self/status"])
        .output()
        .unwrap();
    let launched = launch(&["--", "grep", "SigBlk", "/proc/self/status"]);
    assert_eq!(
        String::from_utf8_lossy(&inherited.stdout),
        "SigBlk:\t0000000000014003\n"
    );
    assert_eq!(
        String::from_utf8_lossy(&launched.stdout),
        "SigBlk:\t0000000000000000\n"
    );
}

#[test]
fn the_program_takes_the_launchers_place() {
    let output = launch(&["--", "sh", "-c", "echo \"$1\"; exit 3", "sh", "--cgroup"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "--cgroup\n");
}

#[test]
fn what_cannot_start_is_named() {
    let program = launch(&["--", "/no/such/program"]);
    assert!(String::from_utf8_lossy(&program.stderr).contains("/no/such/program does not start"));
    let cgroup = launch(&["--cgroup", "/no/such/cgroup", "--", "true"]);
    assert!(!cgroup.status.success());
    assert!(String::from_utf8_lossy(&cgroup.stderr).contains("the cgroup /no/such/cgroup"));
}
