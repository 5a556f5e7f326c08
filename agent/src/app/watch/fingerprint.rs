//! Whether what would be read is what was read.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, Digest, SHA256};

/// More of a file is never read, as nothing that is configured by files may be larger.
const MAX_FILE: u64 = 16 << 20;

/// A digest of the names and contents of files. Of a directory it is that of the files in it, not
/// going deeper and leaving out names that begin with a dot.
#[derive(Clone, Debug)]
pub(in crate::app) struct Fingerprint(Digest);

impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_ref() == other.0.as_ref()
    }
}

impl Fingerprint {
    pub(in crate::app) fn of(paths: &[PathBuf]) -> Self {
        let mut context = Context::new(&SHA256);
        for path in paths {
            if path.is_dir() {
                let files = files(path);
                add(&mut context, b"directory", path);
                add_outcome(&mut context, files.as_ref().map(Vec::len));
                for file in files.into_iter().flatten() {
                    add_file(&mut context, &file);
                }
            } else {
                add_file(&mut context, path);
            }
        }
        Self(context.finish())
    }
}

fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if !entry.file_name().as_encoded_bytes().starts_with(b".") && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn add_file(context: &mut Context, path: &Path) {
    add(context, b"file", path);
    let content = read(path);
    add_outcome(context, content.as_ref().map(Vec::len));
    context.update(content.as_deref().unwrap_or_default());
}

/// What is not a regular file is not read: it could block, or never end.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    if fs::metadata(path)?.is_file() {
        File::open(path)?
            .take(MAX_FILE + 1)
            .read_to_end(&mut content)?;
    }
    Ok(content)
}

/// Everything of variable length comes after its length, so that no two lists of files look alike.
fn add(context: &mut Context, kind: &[u8], path: &Path) {
    let path = path.as_os_str().as_bytes();
    for part in [kind, path] {
        context.update(&part.len().to_be_bytes());
        context.update(part);
    }
}

/// The length of what follows, or why there is nothing.
fn add_outcome(context: &mut Context, outcome: Result<usize, &io::Error>) {
    let number = match outcome {
        Ok(length) => length,
        Err(error) => !usize::try_from(error.raw_os_error().unwrap_or(0)).unwrap_or(0),
    };
    context.update(&number.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn it_is_another_when_a_content_or_name_is() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let paths = [at("one.yaml"), directory.path().join("d"), at("absent")];
        fs::write(at("one.yaml"), "a: 1").unwrap();
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/two.yaml"), "b").unwrap();
        let mut seen = vec![Fingerprint::of(&paths)];
        let mut expect_another = |what: &str| {
            let now = Fingerprint::of(&paths);
            assert!(!seen.contains(&now), "{what}");
            seen.push(now);
        };
        fs::write(at("one.yaml"), "a: 2").unwrap();
        expect_another("another content");
        fs::rename(at("d/two.yaml"), at("d/three.yaml")).unwrap();
        expect_another("another name");
        fs::write(at("absent"), "").unwrap();
        expect_another("a file that was not there");
        fs::remove_dir_all(at("d")).unwrap();
        expect_another("a directory that is gone");
        fs::create_dir(at("d")).unwrap();
        expect_another("an empty one in its place");
    }

    #[test]
    fn it_is_the_same_when_only_the_way_there_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for version in ["..1", "..2"] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("a.yaml"), "a").unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/a.yaml", at("a.yaml")).unwrap();
        let paths = [directory.path().to_owned()];
        let first = Fingerprint::of(&paths);
        fs::remove_file(at("..data")).unwrap();
        symlink("..2", at("..data")).unwrap();
        assert!(Fingerprint::of(&paths) == first);
        fs::write(at("..2/a.yaml"), "b").unwrap();
        assert!(Fingerprint::of(&paths) != first);
    }

    #[test]
    fn what_could_block_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe.yaml");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        Fingerprint::of(&[pipe, directory.path().to_owned()]);
    }
}
