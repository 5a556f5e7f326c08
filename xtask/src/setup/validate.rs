//! Gets kubernetes-validate, which has the schemas of many versions of Kubernetes.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use underpass_ebpf_builder::linker;

use super::{Session, pip};
use crate::{report, supervise};

/// Its environment among the tools.
const ENVIRONMENT: &str = "kubernetes-validate";

pub(super) fn install(session: &Session<'_>) -> anyhow::Result<String> {
    let tools = linker::tools_dir(&session.project.target_dir);
    let environment = tools.join(ENVIRONMENT);
    if runs(&environment) {
        return Ok("already there".to_owned());
    }
    let installed = pip::in_environment(
        session,
        &environment,
        "kubernetes-validate-requirements.txt",
    )
    .and_then(|mut pip| session.run(&mut pip));
    match installed {
        Ok(()) => Ok(session.outcome("installed").to_owned()),
        Err(error) if error.is::<supervise::Stopped>() => Err(error),
        Err(error) => {
            report::progress(format_args!("warning: {error:#}"));
            Ok("not installed: tests of manifests will fail".to_owned())
        }
    }
}

fn runs(environment: &Path) -> bool {
    let output = Command::new(environment.join("bin/kubernetes-validate"))
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    output.is_ok_and(|output| output.status.success())
}
