//! Builds bpf-linker for the LLVM of the distribution's compiler.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use underpass_ebpf_builder::{
    DISTRIBUTION_RUSTC, MINIMUM_RUST, Toolchain,
    linker::{self, Stamp, VERSION},
    rustc::Rustc,
};

use super::{Session, word};

pub(super) fn install(session: &Session<'_>, debian: bool) -> anyhow::Result<String> {
    let target_dir = &session.project.target_dir;
    if !debian && let Ok(toolchain) = Toolchain::find(target_dir) {
        return Ok(format!("not needed, there is {toolchain}"));
    }
    let Some(rustc) = distribution() else {
        let way = if session.prints_only() && debian {
            "to be built for the LLVM of rustc-web, once that is installed"
        } else {
            "not built, the distribution has no compiler for BPF"
        };
        return Ok(way.to_owned());
    };

    let tools = linker::tools_dir(target_dir);
    let wanted = Stamp {
        version: VERSION.to_owned(),
        llvm: rustc.llvm,
    };
    if Stamp::read(&tools).as_ref() == Some(&wanted) && linker::runs(&linker::in_tools(&tools)) {
        return Ok(format!("already there ({wanted})"));
    }
    if !linker::LLVM.contains(&rustc.llvm) {
        bail!(
            "bpf-linker {VERSION} can be built for LLVM {} to {}, and {rustc} has another",
            linker::LLVM.start(),
            linker::LLVM.end()
        );
    }

    let prefix = llvm_prefix(session, &rustc, &tools)?;
    session.change(&format!("rm -f {}", word(&Stamp::path(&tools))), || {
        Stamp::remove(&tools).context("removing the old stamp")
    })?;
    let build = tools.join("build");
    let mut cargo = session.project.cargo("install");
    cargo
        .args([&format!("bpf-linker@{VERSION}"), "--locked", "--force"])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{}", rustc.llvm),
        ])
        .arg("--root")
        .arg(&tools)
        .arg("--target-dir")
        .arg(&build)
        .env("LLVM_PREFIX", prefix);
    session.run(&mut cargo)?;

    session.change(
        &format!("echo '{wanted}' > {}", word(&Stamp::path(&tools))),
        || {
            let built = linker::in_tools(&tools);
            if !linker::runs(&built) {
                bail!("{} was built but does not run", built.display());
            }
            wanted.write(&tools).context("writing the stamp")
        },
    )?;
    session.change(&format!("rm -r {}", word(&build)), || {
        fs::remove_dir_all(&build).with_context(|| format!("removing {}", build.display()))
    })?;
    Ok(format!("{} ({wanted})", session.outcome("built")))
}

/// The distribution's compiler, if it compiles for BPF.
fn distribution() -> Option<Rustc> {
    Rustc::query(Path::new(DISTRIBUTION_RUSTC))
        .ok()
        .filter(|rustc| rustc.at_least(MINIMUM_RUST) && rustc.has_prebuilt_core())
}

/// A prefix with the compiler's LLVM in `lib`, as bpf-linker's build wants it.
///
/// It links with the shared library and needs nothing else of LLVM: no headers, no llvm-config. The
/// compiler's own libLLVM will do, which saves the 90 MB of Debian's `llvm-NN-dev`.
fn llvm_prefix(session: &Session<'_>, rustc: &Rustc, tools: &Path) -> anyhow::Result<PathBuf> {
    let installed = PathBuf::from(format!("/usr/lib/llvm-{}", rustc.llvm));
    if installed.join("lib/libLLVM.so").exists() {
        return Ok(installed);
    }
    let directory = Path::new("/usr/lib").join(multiarch(&rustc.host));
    let library = shared_llvm(&directory, rustc.llvm).with_context(|| {
        format!(
            "no libLLVM.so.{0}.* in {1}: apt-get install libllvm{0}",
            rustc.llvm,
            directory.display()
        )
    })?;
    let prefix = tools.join(format!("llvm-{}", rustc.llvm));
    let lib = prefix.join("lib");
    let link = lib.join("libLLVM.so");
    let same_as = format!(
        "mkdir -p {} && ln -sf {} {}",
        word(&lib),
        word(&library),
        word(&link)
    );
    session.change(&same_as, || {
        fs::create_dir_all(&lib).with_context(|| format!("making {}", lib.display()))?;
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => symlink(&library, &link).with_context(|| format!("making {}", link.display())),
        }
    })?;
    Ok(prefix)
}

/// The LLVM library with this major version in a directory.
fn shared_llvm(directory: &Path, llvm: u32) -> Option<PathBuf> {
    let prefix = format!("libLLVM.so.{llvm}.");
    directory
        .read_dir()
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .max()
}

/// Debian's name for the architecture of a Rust triple: the triple without its vendor.
fn multiarch(host: &str) -> String {
    let parts: Vec<&str> = host.split('-').filter(|part| *part != "unknown").collect();
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiarch_is_the_triple_without_its_vendor() {
        assert_eq!(multiarch("x86_64-unknown-linux-gnu"), "x86_64-linux-gnu");
        assert_eq!(multiarch("aarch64-unknown-linux-gnu"), "aarch64-linux-gnu");
    }

    #[test]
    fn the_library_of_the_wanted_llvm_is_found() {
        let directory = tempfile::tempdir().unwrap();
        for name in [
            "libLLVM.so.2.1",
            "libLLVM.so.21.1",
            "libLLVM.so.22.1",
            "libLLVM-22.so",
        ] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let found = shared_llvm(directory.path(), 22);
        assert_eq!(found, Some(directory.path().join("libLLVM.so.22.1")));
        assert_eq!(shared_llvm(directory.path(), 23), None);
    }
}
