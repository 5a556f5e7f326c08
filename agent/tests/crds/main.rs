//! `deploy/crds` is what the types of policy say.

use std::fs;
use std::path::Path;

mod files;

#[test]
fn the_committed_definitions_are_those_of_the_types() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    let files = files::files().expect("definitions");
    for (name, text) in &files {
        let committed = fs::read_to_string(directory.join(name)).expect(name);
        assert!(
            committed == *text,
            "{name} is not up to date: cargo xtask crds"
        );
    }
    let entries = fs::read_dir(&directory).expect("a directory");
    assert_eq!(
        entries.count(),
        files.len(),
        "{} has other files",
        directory.display()
    );
}

/// What is written is read back as the same.
#[test]
fn the_files_are_yaml() {
    let resources = underpass::policy::custom_resources();
    for ((name, text), resource) in files::files().expect("definitions").iter().zip(resources) {
        let read: serde_json::Value = serde_saphyr::from_str(text).expect(name);
        assert_eq!(read, resource.definition, "{name}");
    }
}
