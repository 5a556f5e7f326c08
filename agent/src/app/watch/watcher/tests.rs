use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

/// For what must happen.
const SECONDS: Duration = Duration::from_secs(20);

/// A directory with a policy file, of which the file or all is watched.
struct Scene {
    directory: TempDir,
    watcher: Watcher,
    writing: Mutex<Writing>,
}

impl Scene {
    fn of_file() -> Self {
        Self::new("policy.yaml")
    }

    fn of_directory() -> Self {
        Self::new("")
    }

    fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("policy.yaml"), "1").unwrap();
        let places = Places::on_the_way_to(&[directory.path().join(name)]);
        Self {
            directory,
            watcher: Watcher::new(places).unwrap(),
            writing: Mutex::default(),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn open(&self, name: &str) -> File {
        let mut options = File::options();
        options.append(true).create(true);
        options.open(self.at(name)).unwrap()
    }

    /// Whether there was anything that matters.
    fn matters(&self) -> bool {
        let events = self.watcher.inotify.pending().unwrap();
        self.watcher.note(events, &mut self.writing.lock())
    }

    /// Waits for changes until a file is half written or none is. That one is closed can be told
    /// late, when another test starts a process meanwhile.
    async fn expect(&self, half_written: bool, what: &str) {
        let told = async { while self.watcher.change(&self.writing).await != half_written {} };
        timeout(SECONDS, told).await.expect(what);
    }
}

#[tokio::test]
async fn a_log_beside_the_policy_file_tells_nothing_while_it_is_written() {
    let scene = Scene::of_file();
    let of = |name: &str| {
        let events = scene.watcher.inotify.pending().unwrap();
        let named = |event: &&InotifyEvent| event.name.as_deref().is_some_and(|its| its == name);
        events.iter().filter(named).count()
    };
    let mut log = scene.open("access.log");
    assert_eq!(of("access.log"), 1, "it is made");
    for line in 0..1000 {
        writeln!(log, "{line}").unwrap();
    }
    fs::read(scene.at("access.log")).unwrap();
    assert_eq!(of("access.log"), 0);
    fs::remove_file(scene.at("access.log")).unwrap();
    assert_eq!(of("access.log"), 1, "it is removed");
}

#[tokio::test]
async fn what_matters_is_told_by_kind_and_place() {
    let of_file = Scene::of_file();
    let of_directory = Scene::of_directory();
    let both = [&of_file, &of_directory];
    for scene in both {
        fs::read(scene.at("policy.yaml")).unwrap();
        assert!(!scene.matters(), "reading");
        fs::write(scene.at("other.yaml"), "1").unwrap();
    }
    assert!(!of_file.matters());
    assert!(of_directory.matters());
    for scene in both {
        fs::write(scene.at("policy.yaml"), "2").unwrap();
        assert!(scene.matters());
    }
}

#[tokio::test]
async fn a_file_is_half_written_until_it_is_closed_goes_or_is_replaced() {
    for scene in [Scene::of_file(), Scene::of_directory()] {
        let mut file = scene.open("policy.yaml");
        assert!(!scene.matters(), "opened");
        file.write_all(b"2").unwrap();
        scene.expect(true, "written").await;
        drop(file);
        scene.expect(false, "closed").await;

        let file = scene.open("policy.yaml");
        file.set_len(0).unwrap();
        scene.expect(true, "cut off").await;
        fs::write(scene.at("new"), "3").unwrap();
        fs::rename(scene.at("new"), scene.at("policy.yaml")).unwrap();
        scene.expect(false, "replaced").await;
        drop(file);

        fs::remove_file(scene.at("policy.yaml")).unwrap();
        scene.expect(false, "gone").await;
        // Nobody watches the new one itself yet.
        let file = scene.open("policy.yaml");
        scene.expect(true, "made").await;
        drop(file);
        scene.expect(false, "the new one is closed").await;
    }
}

#[tokio::test]
async fn a_link_is_complete_when_it_is_made() {
    let scene = Scene::of_directory();
    symlink("policy.yaml", scene.at("link.yaml")).unwrap();
    assert!(scene.matters());
    fs::hard_link(scene.at("policy.yaml"), scene.at("hard.yaml")).unwrap();
    assert!(scene.matters());
    fs::create_dir(scene.at("directory")).unwrap();
    assert!(scene.matters());
    assert!(scene.writing.lock().is_empty());
}

#[tokio::test]
async fn lost_events_count_as_change() {
    let scene = Scene::of_file();
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    // Each is two events at least, of no matter but that they fill the queue.
    let fill = |files: usize| {
        for _ in 0..files {
            fs::write(scene.at("other"), "").unwrap();
            fs::remove_file(scene.at("other")).unwrap();
        }
    };
    fill(limit / 30);
    assert!(!scene.matters());
    fill(limit / 2 + 1);
    assert!(scene.matters());
}

#[test]
fn limits_are_named_with_their_sysctl() {
    let watches = WatchError::at(Path::new("/etc"), Errno::ENOSPC);
    assert!(watches.to_string().contains("fs.inotify.max_user_watches"));
    let instances = WatchError::Instances.to_string();
    assert!(instances.contains("fs.inotify.max_user_instances"));
}
