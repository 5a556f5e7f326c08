//! The search on machines made of shell scripts that answer as rustc, rustup and bpf-linker do.

use std::{fs, os::unix::fs::PermissionsExt as _};

use tempfile::TempDir;

use super::*;
use crate::linker::Stamp;

struct Machine {
    root: TempDir,
    search: Search,
}

impl Machine {
    /// A machine without any toolchain.
    fn bare() -> Self {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        let search = Search {
            distribution: at("usr/bin/rustc"),
            rustup: at("cargo/bin/rustup").into(),
            cargo: "cargo".into(),
            tools: at("target/tools"),
            path: Some(at("cargo/bin").into()),
        };
        Self { root, search }
    }

    fn script(&self, path: &str, body: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Written by another process: a descriptor open for writing here could be inherited by a
        // program another test starts, and the script would be busy.
        let status = Command::new("sh")
            .args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$2\" > \"$1\"", "sh"])
            .args([path.as_os_str(), body.as_ref()])
            .status()
            .unwrap();
        assert!(status.success());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn file(&self, path: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    fn rustc(&self, path: &str, sysroot: &str, release: &str, llvm: u32) {
        let sysroot = self.root.path().join(sysroot);
        self.script(
            path,
            &format!(
                "[ \"$1\" = --print ] && echo '{}' && exit\n\
                 echo 'host: x86_64-unknown-linux-gnu'\necho 'release: {release}'\n\
                 echo 'LLVM version: {llvm}.1.0'",
                sysroot.display()
            ),
        );
    }

    fn distribution(&self, release: &str, llvm: u32) {
        self.rustc("usr/bin/rustc", "usr", release, llvm);
    }

    fn prebuilt_core(&self) {
        self.file("usr/lib/rustlib/bpfel-unknown-none/lib/libcore-0123.rlib");
    }

    fn nightly(&self, llvm: u32) {
        self.rustc("nightly/bin/rustc", "nightly", "1.99.0-nightly", llvm);
        self.file("nightly/bin/cargo");
        let rustc = self.root.path().join("nightly/bin/rustc");
        self.script(
            "cargo/bin/rustup",
            &format!(
                "[ \"$*\" = 'which --toolchain nightly rustc' ] || exit 1\necho '{}'",
                rustc.display()
            ),
        );
    }

    fn rust_src(&self) {
        self.file("nightly/lib/rustlib/src/rust/library/core/Cargo.toml");
    }

    fn linker_in_tools(&self, llvm: u32) {
        self.script("target/tools/bin/bpf-linker", "exit 0");
        Stamp {
            version: "0.13.0".into(),
            llvm,
        }
        .write(&self.search.tools)
        .unwrap();
    }

    fn linker_on_path(&self) {
        self.script("cargo/bin/bpf-linker", "exit 0");
    }

    fn found(&self) -> (Core, PathBuf) {
        let toolchain = self.search.find().unwrap();
        let linker = toolchain.linker.strip_prefix(self.root.path()).unwrap();
        (toolchain.core, linker.to_owned())
    }

    /// What each of the two ways lacks.
    fn lacks(&self) -> [Vec<String>; 2] {
        let root = format!("{}/", self.root.path().display());
        let ways = self.search.find().unwrap_err().ways;
        let whats = |way: Way| {
            way.pieces
                .into_iter()
                .map(|piece| piece.what.replace(&root, ""))
                .collect()
        };
        <[Way; 2]>::try_from(ways).unwrap().map(whats)
    }
}

const NO_LINKER: &str = "no bpf-linker, neither target/tools/bin/bpf-linker nor on PATH";

#[test]
fn a_bare_machine_lacks_both_compilers() {
    let machine = Machine::bare();
    assert_eq!(
        machine.lacks(),
        [vec!["no usr/bin/rustc"], vec!["no rustup on PATH"]]
    );
}

#[test]
fn every_missing_piece_is_listed_at_once() {
    let machine = Machine::bare();
    machine.distribution("1.85.0", 19);
    machine.nightly(23);
    let [distribution, nightly] = machine.lacks();
    assert_eq!(
        distribution,
        [
            &*format!("usr/bin/rustc (1.85.0, LLVM 19) is older than {MINIMUM_RUST}"),
            "no core library for BPF in usr/lib/rustlib/bpfel-unknown-none/lib",
            NO_LINKER,
        ]
    );
    assert_eq!(
        nightly,
        [
            "nightly/bin/rustc (1.99.0-nightly, LLVM 23) is without rust-src",
            NO_LINKER
        ]
    );
}

#[test]
fn a_complete_distribution_is_preferred() {
    let machine = Machine::bare();
    machine.distribution("1.96.0", 22);
    machine.prebuilt_core();
    machine.nightly(22);
    machine.rust_src();
    machine.linker_in_tools(22);
    machine.linker_on_path();
    assert_eq!(
        machine.found(),
        (Core::Prebuilt, "target/tools/bin/bpf-linker".into())
    );
}

#[test]
fn nightly_serves_where_the_distribution_is_incomplete() {
    let machine = Machine::bare();
    machine.distribution("1.96.0", 22);
    machine.nightly(22);
    machine.rust_src();
    machine.linker_on_path();
    assert_eq!(
        machine.found(),
        (Core::FromSource, "cargo/bin/bpf-linker".into())
    );
    assert_eq!(
        machine.search.find().unwrap().cargo,
        machine.root.path().join("nightly/bin/cargo")
    );
}

#[test]
fn a_linker_with_an_older_llvm_is_passed_over() {
    let machine = Machine::bare();
    machine.distribution("1.96.0", 22);
    machine.prebuilt_core();
    machine.linker_in_tools(21);
    let [distribution, _] = machine.lacks();
    assert_eq!(
        distribution,
        [
            "target/tools/bin/bpf-linker was built for LLVM 21, older than 22, \
          and there is none on PATH"
        ]
    );
    machine.linker_on_path();
    assert_eq!(
        machine.found(),
        (Core::Prebuilt, "cargo/bin/bpf-linker".into())
    );
}

#[test]
fn a_linker_that_does_not_run_is_passed_over() {
    let machine = Machine::bare();
    machine.distribution("1.96.0", 22);
    machine.prebuilt_core();
    machine.linker_in_tools(22);
    machine.script("target/tools/bin/bpf-linker", "exit 127");
    let [distribution, _] = machine.lacks();
    assert_eq!(
        distribution,
        ["target/tools/bin/bpf-linker does not run, and there is none on PATH"]
    );
}

#[test]
fn a_compiler_that_fails_is_named_with_its_message() {
    let machine = Machine::bare();
    machine.script("usr/bin/rustc", "echo 'no libLLVM' >&2\nexit 127");
    let [distribution, _] = machine.lacks();
    assert_eq!(
        distribution,
        ["usr/bin/rustc -vV failed (exit status: 127): no libLLVM"]
    );
}
