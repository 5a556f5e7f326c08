//! Documents from files: the only place in policy that does I/O.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::policy::document::Documents;
use crate::policy::problem::{Place, Problem, Subject, quotable};

/// The largest file that is read, in bytes: some 50,000 documents.
const MAX_FILE: u64 = 16 << 20;

/// Adds the documents of files and directories. What cannot be read is reported there too.
pub(super) fn read(paths: &[PathBuf], documents: &mut Documents) {
    let mut seen = HashSet::new();
    for path in paths {
        if path.is_dir() {
            read_directory(path, documents, &mut seen);
        } else {
            read_file(path, documents, &mut seen);
        }
    }
}

/// Adds the Secrets that are directories in `paths`.
pub(super) fn read_secrets(paths: &[PathBuf], documents: &mut Documents) {
    for path in paths {
        if let Err(err) = read_secrets_in(path, documents) {
            report(documents, path, Subject::Directory, unreadable(&err));
        }
    }
}

fn read_secrets_in(path: &Path, documents: &mut Documents) -> io::Result<()> {
    for directory in visible(path)? {
        if !directory.is_dir() {
            continue;
        }
        if let Some(values) = read_keys(&directory, documents)? {
            let name = directory.file_name().unwrap_or_default();
            let name = name.to_string_lossy().into_owned();
            documents.add_mounted_secret(&directory, name, values);
        }
    }
    Ok(())
}

/// The keys of a mounted Secret. `None` if one cannot be read: a part of a Secret would pass for
/// another one.
fn read_keys(
    directory: &Path,
    documents: &mut Documents,
) -> io::Result<Option<BTreeMap<String, Vec<u8>>>> {
    let mut values = BTreeMap::new();
    let mut is_whole = true;
    for file in visible(directory)? {
        let Some(key) = file.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if file.is_dir() {
            continue;
        }
        match read_bounded(&file) {
            Ok(value) => {
                values.insert(key.to_owned(), value);
            }
            Err(err) => {
                let reason = format!("`{}` in it cannot be read: {err}", quotable(key));
                report(documents, directory, Subject::Directory, reason);
                is_whole = false;
            }
        }
    }
    Ok(is_whole.then_some(values))
}

/// What is in a directory, in the order of names, without what begins with a dot: a mounted Secret
/// or ConfigMap keeps its versions there.
fn visible(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Reads a file that documents name.
pub(super) fn read_named(path: &Path) -> Result<Vec<u8>, String> {
    read_bounded(path).map_err(|err| err.to_string())
}

fn read_directory(path: &Path, documents: &mut Documents, seen: &mut HashSet<PathBuf>) {
    let files = match policy_files(path) {
        Ok(files) => files,
        Err(err) => return report(documents, path, Subject::Directory, unreadable(&err)),
    };
    let mut count = 0;
    for file in files {
        count += read_file(&file, documents, seen);
    }
    if count == 0 {
        let reason = "there is no document in it; they are looked for in *.yaml, *.yml and *.json";
        report(documents, path, Subject::Directory, reason.to_owned());
    }
}

/// The files of a directory that are policy, in the order of their names. Symbolic links are
/// followed, as in a mounted ConfigMap.
fn policy_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = visible(directory)?;
    files.retain(|path| {
        let policy = path
            .extension()
            .is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
        policy && !path.is_dir()
    });
    Ok(files)
}

/// How many documents there were. A file that was read already is not read again.
fn read_file(path: &Path, documents: &mut Documents, seen: &mut HashSet<PathBuf>) -> usize {
    let text = fs::canonicalize(path).and_then(|canonical| {
        if seen.insert(canonical) {
            read_bounded(path).map(Some)
        } else {
            Ok(None)
        }
    });
    match text.map(|bytes| bytes.map(String::from_utf8)) {
        Ok(None) => 1,
        Ok(Some(Ok(text))) => documents.add(path, &text),
        Ok(Some(Err(err))) => {
            let valid = &err.as_bytes()[..err.utf8_error().valid_up_to()];
            let newlines = valid.iter().filter(|b| **b == b'\n').count();
            let line = u32::try_from(newlines + 1).unwrap_or(u32::MAX);
            let place = Place { file: path, line };
            let reason = "it is not UTF-8 text";
            documents.report(Problem::new(place, Subject::File, "yaml", reason));
            1
        }
        Err(err) => {
            report(documents, path, Subject::File, unreadable(&err));
            1
        }
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other("it is larger than 16 MiB"));
    }
    Ok(bytes)
}

fn unreadable(err: &io::Error) -> String {
    format!("it cannot be read: {err}")
}

fn report(documents: &mut Documents, path: &Path, subject: Subject, reason: String) {
    let place = Place {
        file: path,
        line: 1,
    };
    documents.report(Problem::new(place, subject, "path", reason));
}

#[cfg(test)]
mod tests;
