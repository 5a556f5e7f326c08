use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;

/// For what must happen.
const SECONDS: Duration = Duration::from_secs(20);

/// A directory with files as a ConfigMap is mounted: each a link through `..data`.
fn config_map() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("..1")).unwrap();
    fs::write(directory.path().join("..1/a.yaml"), "one").unwrap();
    symlink("..1", directory.path().join("..data")).unwrap();
    symlink("..data/a.yaml", directory.path().join("a.yaml")).unwrap();
    directory
}

/// Turns it to another version, as the kubelet does.
fn swap(directory: &Path, old: &str, new: &str) {
    fs::create_dir(directory.join(new)).unwrap();
    fs::write(directory.join(new).join("a.yaml"), new).unwrap();
    symlink(new, directory.join("..data_tmp")).unwrap();
    fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    fs::remove_dir_all(directory.join(old)).unwrap();
}

fn watch(path: impl Into<PathBuf>) -> Watch {
    let mut watch = Watch::new();
    watch.renew(vec![path.into()]);
    assert!(matches!(watch.state, State::Watching(_)));
    watch
}

/// Waits for the change to be told, and watches on.
async fn expect_change(watch: &mut Watch, what: &str) {
    timeout(SECONDS, watch.changed()).await.expect(what);
    watch.renew(watch.paths.clone());
}

#[tokio::test]
async fn a_file_is_followed_through_all_that_can_happen_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("deep/er/policy.yaml");
    let watch = &mut watch(&file);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    expect_change(watch, "its directories come").await;
    fs::write(&file, "1").unwrap();
    expect_change(watch, "it comes").await;
    fs::write(&file, "2").unwrap();
    expect_change(watch, "it is written in place").await;
    let other = file.with_extension("new");
    fs::write(&other, "3").unwrap();
    fs::rename(&other, &file).unwrap();
    expect_change(watch, "it is replaced").await;
    fs::write(&file, "4").unwrap();
    expect_change(watch, "the new one is written").await;
    fs::remove_file(&file).unwrap();
    expect_change(watch, "it goes").await;
    fs::write(&file, "5").unwrap();
    expect_change(watch, "it comes back").await;

    let deep = directory.path().join("deep");
    fs::rename(&deep, directory.path().join("aside")).unwrap();
    expect_change(watch, "a directory above it goes").await;
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "6").unwrap();
    expect_change(watch, "it comes back with another in it").await;
    fs::write(&file, "7").unwrap();
    expect_change(watch, "that one is written").await;
}

#[tokio::test]
async fn a_mounted_config_map_is_followed_as_directory_and_as_file() {
    for name in ["", "a.yaml"] {
        let directory = config_map();
        let watch = &mut watch(directory.path().join(name));
        swap(directory.path(), "..1", "..2");
        expect_change(watch, "first swap").await;
        swap(directory.path(), "..2", "..3");
        expect_change(watch, "second swap").await;
        fs::write(directory.path().join("..3/a.yaml"), "x").unwrap();
        expect_change(watch, "the file behind the links is written").await;
    }
}

#[tokio::test]
async fn a_link_out_of_the_directory_is_followed() {
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("target.yaml");
    fs::write(&target, "1").unwrap();
    let directory = tempfile::tempdir().unwrap();
    symlink(&target, directory.path().join("a.yaml")).unwrap();
    let watch = &mut watch(directory.path());
    fs::write(&target, "2").unwrap();
    expect_change(watch, "the target is written").await;
}

#[tokio::test]
async fn a_file_that_is_written_through_another_name_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("etc")).unwrap();
    fs::create_dir(directory.path().join("other")).unwrap();
    let file = directory.path().join("etc/policy.yaml");
    let other = directory.path().join("other/name");
    fs::write(&file, "1").unwrap();
    fs::hard_link(&file, &other).unwrap();
    let watch = &mut watch(&file);
    fs::write(&other, "2").unwrap();
    expect_change(watch, "written as another name").await;
}

#[tokio::test(start_paused = true)]
async fn without_events_time_counts_as_change() {
    let directory = tempfile::tempdir().unwrap();
    let paths = vec![directory.path().to_owned()];
    let mut watch = Watch::new();
    watch.open = |_| Err(WatchError::Instances);
    watch.renew(paths.clone());
    let start = Instant::now();
    watch.changed().await;
    assert_eq!(start.elapsed(), POLL);
    // And events are used when there are some again.
    watch.open = Watcher::new;
    watch.renew(paths);
    assert!(matches!(watch.state, State::Watching(_)));
}

#[tokio::test(start_paused = true)]
async fn places_that_keep_changing_are_looked_at_again() {
    let directory = tempfile::tempdir().unwrap();
    let paths = vec![directory.path().join("a/".repeat(2 * ATTEMPTS))];
    let mut watch = Watch::new();
    // Another directory on the way comes each time.
    watch.open = |places| {
        let deepest = places.to_watch().map(|(path, _)| path.join("a")).last();
        let watcher = Watcher::new(places);
        fs::create_dir(deepest.unwrap()).unwrap();
        watcher
    };
    watch.renew(paths.clone());
    let start = Instant::now();
    watch.changed().await;
    assert_eq!(start.elapsed(), PATIENCE);
    watch.open = Watcher::new;
    watch.renew(paths);
    assert!(matches!(watch.state, State::Watching(_)));
}

#[tokio::test(start_paused = true)]
async fn a_change_is_told_when_it_is_quiet_or_has_been_loud_for_too_long() {
    let (tell, told) = mpsc::unbounded_channel();
    let told = tokio::sync::Mutex::new(told);
    let change = || async { told.lock().await.recv().await.unwrap() };
    tell.send(false).unwrap();
    let start = Instant::now();
    settled(change).await;
    assert_eq!(start.elapsed(), QUIET);

    let start = Instant::now();
    let noise = tokio::spawn(async move {
        while tell.send(false).is_ok() {
            sleep(QUIET / 2).await;
        }
    });
    settled(change).await;
    assert!(start.elapsed() >= PATIENCE && start.elapsed() < PATIENCE + QUIET);
    noise.abort();
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_being_written_is_waited_for() {
    let (tell, told) = mpsc::unbounded_channel();
    let told = tokio::sync::Mutex::new(told);
    let change = || async { told.lock().await.recv().await.unwrap() };
    let start = Instant::now();
    tell.send(true).unwrap();
    let pause = QUIET * 3;
    tokio::join!(settled(change), async {
        sleep(pause).await;
        tell.send(false).unwrap();
    });
    assert_eq!(start.elapsed(), pause + QUIET);

    // But not for ever.
    let start = Instant::now();
    tell.send(true).unwrap();
    settled(change).await;
    assert_eq!(start.elapsed(), PATIENCE);
}
