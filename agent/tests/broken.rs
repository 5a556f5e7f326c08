//! Broken documents, each with exactly what `underpass check` says of it: `NAME.yaml` and
//! `NAME.txt` in `tests/broken`.
//!
//! To see what has become of a message, run the check by hand, in the directory of this package:
//! `underpass check tests/broken/NAME.yaml`.

use std::fs;
use std::path::{Path, PathBuf};

use underpass::policy::{Options, Paths, load};

/// Every password, token and key in the corpus has this in it.
const SECRET: &str = "hunter2";

#[test]
fn every_broken_document_is_refused_in_the_words_beside_it() {
    let documents = documents();
    assert!(documents.len() >= 45, "only {}", documents.len());
    let mut failed = Vec::new();
    for path in documents {
        let expected = fs::read_to_string(path.with_extension("txt")).unwrap_or_default();
        let said = check(&path);
        assert!(!said.contains(SECRET), "{said}");
        if said != expected || said.is_empty() {
            failed.push(format!(
                "{}\nsaid:\n{said}expected:\n{expected}",
                path.display()
            ));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn what_is_expected_belongs_to_a_document() {
    for path in corpus().filter(|path| path.extension().is_some_and(|ext| ext == "txt")) {
        assert!(path.with_extension("yaml").exists(), "{}", path.display());
    }
}

/// What the verb prints: a line a problem.
fn check(path: &Path) -> String {
    let paths = Paths {
        policy: vec![path.to_owned()],
        secrets: Vec::new(),
    };
    match load(&paths, &Options::default(), None).policy {
        Ok(_) => String::new(),
        Err(error) => error
            .problems()
            .iter()
            .map(|problem| format!("{problem}\n"))
            .collect(),
    }
}

fn documents() -> Vec<PathBuf> {
    let is_document = |path: &PathBuf| path.extension().is_some_and(|ext| ext == "yaml");
    let mut documents: Vec<_> = corpus().filter(is_document).collect();
    documents.sort();
    documents
}

/// As paths from the directory of the package, which is where tests run.
fn corpus() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("tests/broken").expect("the corpus");
    entries.map(|entry| entry.expect("an entry").path())
}
