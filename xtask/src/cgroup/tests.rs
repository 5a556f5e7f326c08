use super::*;

const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";

#[test]
fn the_own_path_is_the_one_of_version_2() {
    let cgroup = "4:memory:/process\n1:cpu:/\n0::/user.slice/session-1.scope\n";
    assert_eq!(own_path(cgroup), Some("/user.slice/session-1.scope"));
    assert_eq!(own_path("4:memory:/process\n"), None);
}

#[test]
fn the_directory_is_below_the_mount_point() {
    assert_eq!(
        directory(HYBRID, "/").unwrap(),
        Path::new("/sys/fs/cgroup/unified")
    );
    assert_eq!(
        directory(HYBRID, "/a/b").unwrap(),
        Path::new("/sys/fs/cgroup/unified/a/b")
    );
}

#[test]
fn a_mount_of_a_part_shows_only_that_part() {
    let part = "7 1 0:38 /pods/one /mnt/my\\040cgroups rw - cgroup2 none rw\n";
    assert_eq!(
        directory(part, "/pods/one/x").unwrap(),
        Path::new("/mnt/my cgroups/x")
    );
    assert_eq!(directory(part, "/pods/other"), None);
}

#[test]
fn without_version_2_there_is_no_directory() {
    let version_1 = HYBRID.replace("cgroup2", "cgroup");
    assert_eq!(directory(&version_1, "/"), None);
    assert_eq!(directory("", "/"), None);
}

#[test]
fn a_subtree_is_named_after_its_process() {
    assert_eq!(owner("underpass-tests-42", "underpass-tests"), Some(42));
    for name in [
        "underpass-tests",
        "underpass-tests-",
        "underpass-tests-x",
        "other-42",
    ] {
        assert_eq!(owner(name, "underpass-tests"), None, "{name}");
    }
}

#[test]
fn killing_one_by_one_never_lists_this_process() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("child")).unwrap();
    fs::write(directory.path().join("cgroup.procs"), "0\n12\n").unwrap();
    fs::write(directory.path().join("child/cgroup.procs"), "34\n").unwrap();
    assert_eq!(processes(directory.path()).unwrap(), [12, 34]);
}
