use super::*;
use crate::capture::Netns;

fn resident() -> Resident {
    Resident {
        thread: 7,
        cgroup: Some("/pod".into()),
    }
}

#[test]
fn a_failure_is_told_until_nobody_lives_there() {
    let mut roll = Roll::default();
    let id = Netns::own().unwrap().id();
    let reason = NotEnrolled::NotPermitted;
    roll.failed(id, resident(), reason, "no".to_owned());
    assert!(roll.failed_within(id, Duration::from_secs(60)));
    assert!(!roll.failed_within(id, Duration::ZERO));
    let told = roll.to_json();
    assert_eq!(told["enrolled"], 1, "its own");
    assert_eq!(told["not_enrolled"][0]["reason"], "not_permitted");
    assert_eq!(told["not_enrolled"][0]["pid"], 7);

    let mut sight = Sight::default();
    sight.namespaces.insert(id, resident());
    roll.forget_failures(&sight);
    assert!(roll.failed_within(id, Duration::from_secs(60)));
    roll.forget_failures(&Sight::default());
    assert!(!roll.failed_within(id, Duration::from_secs(60)));
}

#[test]
fn a_sandbox_counts_once_while_it_is_there() {
    let mut roll = Roll::default();
    let sandboxes = |paths: &[&str]| -> Sandboxes {
        let kinds = paths.iter().map(|path| ((*path).into(), "gVisor"));
        kinds.collect()
    };
    assert_eq!(roll.set_sandboxes(sandboxes(&[])), 0);
    assert_eq!(roll.set_sandboxes(sandboxes(&["/a", "/b"])), 2);
    assert_eq!(roll.set_sandboxes(sandboxes(&["/b"])), 0);
    assert_eq!(roll.to_json()["sandboxed"], json!({"/b": "gVisor"}));
    assert_eq!(roll.set_sandboxes(sandboxes(&["/a", "/b"])), 1);
}

#[test]
fn processes_that_are_not_seen_count_when_there_are_more() {
    let mut roll = Roll::default();
    let reason = NotEnrolled::OtherPidNamespace;
    assert!(!roll.set_unseen(reason, 0));
    assert!(roll.set_unseen(reason, 2));
    assert!(!roll.set_unseen(reason, 2));
    assert_eq!(roll.to_json()["unseen_processes"]["other_pid_namespace"], 2);
}
