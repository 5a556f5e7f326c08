//! Builds a real API server of Kubernetes, for tests. Nobody packages kube-apiserver, but Debian's sid
//! has the sources of the part that serves custom resources, with all that they need, and etcd.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Context as _;
use underpass_ebpf_builder::linker;

use super::{Session, word};
use crate::{
    debian::{Installed, Room},
    project::Project,
    report,
    supervise::{self, Supervisor},
};

const SUITE: &str = "sid";

/// The compiler, and what is taken as it is.
const GO: &str = "1.26";
const ETCD: [&str; 2] = ["etcd-server", "etcd-client"];

/// The packages with sources that the API server is made of. Not what apt finds that they need, which
/// is twelve times as much, for programs that are not built here.
const SOURCES: &str = include_str!("kubernetes-packages.txt");

/// What is made of them.
const API_SERVER: &str = "apiextensions-apiserver";
const PROGRAMS: [&str; 3] = [API_SERVER, "etcd", "etcdctl"];

/// The directory among the tools that has the programs.
const DIRECTORY: &str = "kubernetes";

/// Whether the API server has been built.
pub(crate) fn has_api_server(project: &Project) -> bool {
    is_there(&linker::tools_dir(&project.target_dir).join(DIRECTORY))
}

pub(super) fn install(session: &Session<'_>) -> anyhow::Result<String> {
    let tools = linker::tools_dir(&session.project.target_dir);
    let programs = tools.join(DIRECTORY);
    if is_there(&programs) {
        return Ok("already there".to_owned());
    }
    let Some(supervisor) = session.supervisor else {
        report::result(format_args!(
            "# {SUITE}: go build k8s.io/{API_SERVER}, to {}",
            word(&programs)
        ));
        return Ok(session.outcome("built").to_owned());
    };
    // It moves, and on some days it is broken. The tests are skipped then, and say so.
    match build(&tools, &programs, supervisor) {
        Ok(()) => Ok("built".to_owned()),
        Err(error) if error.is::<supervise::Stopped>() => Err(error),
        Err(error) => {
            report::progress(format_args!("warning: {error:#}"));
            Ok("NOT BUILT: tests against the real API server of Kubernetes are skipped".to_owned())
        }
    }
}

fn build(tools: &Path, programs: &Path, supervisor: &Supervisor) -> anyhow::Result<()> {
    let scratch = tools.join("kubernetes.build");
    fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
    let machine = Room::of_machine(&scratch.join("machine.apt"), supervisor)?;
    machine.update_reachable()?;
    let archive = machine.archive()?;
    let nothing = Installed::Nothing;
    let room = Room::of_suite(&scratch.join("apt"), supervisor, &archive, SUITE, nothing)?;
    room.update()
        .with_context(|| format!("reading Debian's {SUITE}"))?;
    let go = [format!("golang-{GO}-go"), format!("golang-{GO}-src")];
    let packages: Vec<&str> = go
        .iter()
        .map(String::as_str)
        .chain(ETCD)
        .chain(SOURCES.lines())
        .collect();
    let archives = room.download_all(&packages)?;
    let root = scratch.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
    }
    room.unpack(&archives, &root)?;

    fs::create_dir_all(programs).with_context(|| format!("making {}", programs.display()))?;
    for name in ["etcd", "etcdctl"] {
        let from = root.join("usr/bin").join(name);
        fs::copy(&from, programs.join(name))
            .with_context(|| format!("copying {}", from.display()))?;
    }
    supervisor.check(&go_build(&root, &scratch, &programs.join(API_SERVER)))?;
    fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))
}

/// The command that compiles the API server, from the sources below `root` and from nothing else.
fn go_build(root: &Path, scratch: &Path, to: &Path) -> Command {
    let go = root.join(format!("usr/lib/go-{GO}"));
    let mut command = Command::new(go.join("bin/go"));
    command
        .args(["build", "-trimpath", "-ldflags=-s -w", "-o"])
        .arg(to)
        .arg(format!("k8s.io/{API_SERVER}"))
        .env("GOROOT", &go)
        .env("GOPATH", root.join("usr/share/gocode"))
        .env("GOCACHE", scratch.join("cache"))
        .env("GO111MODULE", "off")
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "")
        .env("CGO_ENABLED", "0");
    command
}

fn is_there(programs: &Path) -> bool {
    PROGRAMS.iter().all(|name| runs(&programs.join(name)))
}

fn runs(program: &Path) -> bool {
    let mut command = Command::new(program);
    command.arg("--help").env_clear().stdin(Stdio::null());
    command.output().is_ok_and(|output| output.status.success())
}
