//! Values made of files, made again when a file changes.

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::telemetry::Reload;

/// What some files say. Where they are changed into something that cannot be used, it stays what
/// it was.
pub struct Followed<T> {
    what: &'static str,
    files: Box<Files>,
    load: Box<Load<T>>,
    value: ArcSwap<T>,
    stamps: Mutex<Stamps>,
}

type Files = dyn Fn() -> Vec<PathBuf> + Send + Sync;

type Load<T> = dyn Fn() -> Result<Loaded<T>, Box<dyn Error + Send + Sync>> + Send + Sync;

/// What was read.
pub(super) struct Loaded<T> {
    pub(super) value: T,
    /// Whether it is all that the files say. Else the value has an older version of some of it.
    pub(super) is_whole: bool,
}

impl<T> Followed<T> {
    /// Loads the value for the first time. `what` it is stands in the log and in metrics.
    pub(super) fn new<E: Error + Send + Sync + 'static>(
        what: &'static str,
        files: Vec<PathBuf>,
        load: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        let whole = move || {
            let is_whole = true;
            load().map(|value| Loaded { value, is_whole })
        };
        Self::of_changing(what, move || files.clone(), whole)
    }

    /// As [`Self::new`], where which files there are changes, and may depend on what is in them, and
    /// some of them may be of use where others are not.
    pub(super) fn of_changing<E: Error + Send + Sync + 'static>(
        what: &'static str,
        files: impl Fn() -> Vec<PathBuf> + Send + Sync + 'static,
        load: impl Fn() -> Result<Loaded<T>, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        let (stamps, loaded) = read(&files, &load);
        Ok(Self {
            what,
            files: Box::new(files),
            value: ArcSwap::from_pointee(loaded?.value),
            load: Box::new(move || load().map_err(Into::into)),
            stamps: Mutex::new(stamps),
        })
    }

    /// What the files said when they were last read and could be used.
    pub(super) fn current(&self) -> Arc<T> {
        self.value.load_full()
    }
}

impl<T> std::fmt::Debug for Followed<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Followed")
            .field("what", &self.what)
            .finish_non_exhaustive()
    }
}

/// A [`Followed`] value of any type.
pub(super) trait Refresh: Send + Sync {
    /// What it is.
    fn what(&self) -> &'static str;

    /// Reads the files again if they have changed, or anyhow if `forced`; says in the log and here
    /// how it went. `None` is nothing to do.
    fn refresh(&self, forced: bool) -> Option<Reload>;
}

impl<T: Send + Sync> Refresh for Followed<T> {
    fn what(&self) -> &'static str {
        self.what
    }

    fn refresh(&self, forced: bool) -> Option<Reload> {
        let mut stamps_before = self.stamps.lock();
        if *stamps_before == stamps((self.files)()) && !forced {
            return None;
        }
        let (stamps, loaded) = read(&self.files, &self.load);
        *stamps_before = stamps;
        match loaded {
            Ok(Loaded { value, is_whole }) => {
                self.value.store(Arc::new(value));
                let result = if is_whole {
                    Reload::Success
                } else {
                    Reload::Partial
                };
                tracing::info!(what = self.what, result = result.as_str(), "read again");
                Some(result)
            }
            Err(error) => {
                tracing::error!(
                    what = self.what,
                    %error,
                    "cannot be used; what was read before stays in force"
                );
                Some(Reload::Failure)
            }
        }
    }
}

/// Tells one content of a file from the next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

type Stamps = Vec<(PathBuf, Option<Stamp>)>;

/// Reads the value, and what its files were before that: a change in between is seen the next time.
/// If the value names other files than were looked at, it is read again with them.
fn read<T>(files: impl Fn() -> Vec<PathBuf>, load: impl Fn() -> T) -> (Stamps, T) {
    let mut attempt = 1;
    loop {
        let stamps = stamps(files());
        let value = load();
        let same = files().iter().eq(stamps.iter().map(|(file, _)| file));
        if same || attempt == ATTEMPTS {
            return (stamps, value);
        }
        attempt += 1;
    }
}

/// Symbolic links are followed, so that a mounted Secret is seen to be another.
fn stamps(files: Vec<PathBuf>) -> Stamps {
    let stamped = files.into_iter().map(|file| {
        let stamp = stamp(&file);
        (file, stamp)
    });
    stamped.collect()
}

fn stamp(file: &Path) -> Option<Stamp> {
    let meta = fs::metadata(file).ok()?;
    Some(Stamp {
        file: (meta.dev(), meta.ino()),
        size: meta.size(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    })
}

/// How often files are read until those that are named stay the same.
const ATTEMPTS: usize = 3;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn number(file: &Path) -> Followed<u32> {
        let path = file.to_owned();
        Followed::new("a number", vec![path.clone()], move || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            text.trim().parse::<u32>()
        })
        .unwrap()
    }

    #[test]
    fn changes_count_and_mistakes_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("number");
        fs::write(&file, "1").unwrap();
        let followed = number(&file);
        assert_eq!((followed.refresh(false), *followed.current()), (None, 1));

        fs::write(&file, "22").unwrap();
        assert_eq!(
            (followed.refresh(false), *followed.current()),
            (Some(Reload::Success), 22)
        );
        for broken in [Some("x"), None] {
            match broken {
                Some(text) => fs::write(&file, text).unwrap(),
                None => fs::remove_file(&file).unwrap(),
            }
            assert_eq!(followed.refresh(false), Some(Reload::Failure));
            // Told once and not at every look.
            assert_eq!((followed.refresh(false), *followed.current()), (None, 22));
        }
        fs::write(&file, "333").unwrap();
        assert_eq!(followed.refresh(false), Some(Reload::Success));
        assert_eq!(followed.refresh(true), Some(Reload::Success), "asked for");
        assert_eq!(*followed.current(), 333);
    }

    #[test]
    fn files_that_come_are_followed_too() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().to_owned();
        let files = move || {
            let entries = fs::read_dir(&list).unwrap();
            let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
            files.sort();
            files
        };
        let sum = {
            let files = files.clone();
            move || {
                let numbers = files().into_iter().map(|file| {
                    let text = fs::read_to_string(file).unwrap();
                    text.parse::<u32>()
                });
                let is_whole = true;
                let sum: Result<u32, _> = numbers.sum();
                sum.map(|value| Loaded { value, is_whole })
            }
        };
        fs::write(dir.path().join("a"), "1").unwrap();
        let followed = Followed::of_changing("a sum", files, sum).unwrap();
        for (file, text, expected) in [("b", "20", 21), ("b", "300", 301), ("a", "4", 304)] {
            assert_eq!(followed.refresh(false), None);
            fs::write(dir.path().join(file), text).unwrap();
            assert_eq!(followed.refresh(false), Some(Reload::Success), "{file}");
            assert_eq!(*followed.current(), expected);
        }
        fs::remove_file(dir.path().join("a")).unwrap();
        assert_eq!(
            (followed.refresh(false), *followed.current()),
            (Some(Reload::Success), 300)
        );
    }

    #[test]
    fn another_file_behind_the_same_link_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two, data] = ["one", "two", "data"].map(|name| dir.path().join(name));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&two).unwrap();
        fs::write(one.join("number"), "1").unwrap();
        fs::write(two.join("number"), "2").unwrap();
        symlink(&one, &data).unwrap();
        let followed = number(&data.join("number"));
        let next = dir.path().join("next");
        symlink(&two, &next).unwrap();
        fs::rename(&next, &data).unwrap();
        assert_eq!(
            (followed.refresh(false), *followed.current()),
            (Some(Reload::Success), 2)
        );
    }
}
