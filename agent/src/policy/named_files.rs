//! The contents of files that documents name: certificates and keys.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Contents by path, or why a file cannot be read. Some are secret, so `Debug` tells the paths only.
#[derive(Clone, Default)]
pub struct NamedFiles(BTreeMap<PathBuf, Result<Vec<u8>, String>>);

impl fmt::Debug for NamedFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.paths()).finish()
    }
}

impl NamedFiles {
    /// The files.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.keys().map(PathBuf::as_path)
    }

    /// What is in a file, if it was looked at.
    pub(super) fn get(&self, path: &Path) -> Option<&Result<Vec<u8>, String>> {
        self.0.get(path)
    }

    /// Reads a file that was not looked at before.
    pub(super) fn look_at(
        &mut self,
        path: PathBuf,
        read: impl FnOnce(&Path) -> Result<Vec<u8>, String>,
    ) {
        self.0.entry(path).or_insert_with_key(|path| read(path));
    }

    /// Has every file that could be read before be as it was.
    pub(super) fn hold(&mut self, last: &Self) {
        let readable = last.0.iter().filter(|(_, content)| content.is_ok());
        self.0
            .extend(readable.map(|(path, content)| (path.clone(), content.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_read_stays_and_is_not_shown() {
        let files = |all: &[(&str, Result<&str, &str>)]| {
            let mut files = NamedFiles::default();
            for (path, content) in all {
                let content = content
                    .map(|text| text.as_bytes().to_vec())
                    .map_err(str::to_owned);
                files.look_at(path.into(), |_| content);
            }
            files
        };
        let last = files(&[("/key", Ok("old")), ("/gone", Err("lost"))]);
        let mut now = files(&[("/key", Ok("new")), ("/gone", Ok("back"))]);
        now.look_at("/key".into(), |_| panic!("it was looked at"));
        now.hold(&last);
        let text = |path: &str| now.get(Path::new(path)).unwrap().clone().unwrap();
        assert_eq!(
            (text("/key"), text("/gone")),
            (b"old".into(), b"back".into())
        );
        assert_eq!(format!("{now:?}"), r#"{"/gone", "/key"}"#);
    }
}
