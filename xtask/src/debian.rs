//! Packages of Debian's that are not installed but unpacked somewhere: no root is needed, and
//! whatever is installed does not mind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::{
    report,
    supervise::{self, Stopped, Supervisor},
};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt in a room of its own: a directory with package lists and archives, while no lock of the
/// machine's apt is held. What an interrupted run has left in it is used.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    directory: PathBuf,
    supervisor: &'a Supervisor,
}

/// What the packages of a [`Room`] have to get along with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Installed {
    /// Themselves: all that they need comes with them.
    Nothing,
    /// What this machine has.
    Here,
}

impl<'a> Room<'a> {
    /// With the machine's own sources.
    pub(crate) fn of_machine(directory: &Path, supervisor: &'a Supervisor) -> anyhow::Result<Self> {
        Self::furnish(directory, supervisor, Vec::new())
    }

    /// With one suite of Debian's archive, for a machine of its own or for this one.
    pub(crate) fn of_suite(
        directory: &Path,
        supervisor: &'a Supervisor,
        archive: &str,
        suite: &str,
        installed: Installed,
    ) -> anyhow::Result<Self> {
        let (sources, status) = (directory.join("sources.list"), directory.join("status"));
        let mut options = vec![
            format!("Dir::Etc::sourcelist \"{}\";", sources.display()),
            "Dir::Etc::sourceparts \"/dev/null\";".to_owned(),
            "Dir::Etc::preferences \"/dev/null\";".to_owned(),
            "Dir::Etc::preferencesparts \"/dev/null\";".to_owned(),
        ];
        if installed == Installed::Nothing {
            options.push(format!("Dir::State::status \"{}\";", status.display()));
        }
        let room = Self::furnish(directory, supervisor, options)?;
        let signed = if Path::new(KEYRING).exists() {
            format!("[signed-by={KEYRING}] ")
        } else {
            String::new()
        };
        fs::write(&sources, format!("deb {signed}{archive} {suite} main\n"))
            .and_then(|()| fs::write(&status, ""))
            .with_context(|| format!("furnishing {}", directory.display()))?;
        Ok(room)
    }

    fn furnish(
        directory: &Path,
        supervisor: &'a Supervisor,
        mut options: Vec<String>,
    ) -> anyhow::Result<Self> {
        for below in ["lists/partial", "cache/archives/partial"] {
            let path = directory.join(below);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        let directory = directory.canonicalize()?;
        let below = directory.display();
        options.push(format!("Dir::State::lists \"{below}/lists\";"));
        options.push(format!("Dir::Cache \"{below}/cache\";"));
        options.push("Acquire::Languages \"none\";".to_owned());
        // The user that apt usually downloads as may not enter the target directory.
        options.push("APT::Sandbox::User \"\";".to_owned());
        options.push("Debug::NoLocking \"true\";".to_owned());
        let room = Self {
            directory,
            supervisor,
        };
        let path = room.configuration();
        fs::write(&path, options.join("\n"))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(room)
    }

    fn configuration(&self) -> PathBuf {
        self.directory.join("apt.conf")
    }

    /// Fetches the lists of packages.
    pub(crate) fn update(&self) -> anyhow::Result<()> {
        self.supervisor.check(self.command("apt-get").arg("update"))
    }

    /// As [`update`](Self::update), content with those of the sources that can be reached.
    pub(crate) fn update_reachable(&self) -> anyhow::Result<()> {
        match self.update() {
            Err(error) if !error.is::<Stopped>() => {
                report::progress(format_args!("warning: {error:#}"));
                Ok(())
            }
            result => result,
        }
    }

    /// Where Debian's archive is, as the machine's sources have it.
    pub(crate) fn archive(&self) -> anyhow::Result<String> {
        let targets = self.query(
            "apt-get",
            &[
                "indextargets",
                "--format",
                "$(REPO_URI)",
                "Created-By: Packages",
                "Origin: Debian",
                "Label: Debian",
            ],
        )?;
        let first = targets.lines().next().map(str::to_owned);
        first.context("none of the machine's apt sources is Debian's archive")
    }

    /// The first package that `package` depends on.
    pub(crate) fn dependency(&self, package: &str) -> anyhow::Result<String> {
        let depends = self.query("apt-cache", &["depends", package])?;
        first_dependency(&depends)
            .map(str::to_owned)
            .with_context(|| format!("{package} is not there or depends on nothing"))
    }

    /// Downloads a package, without what it needs.
    pub(crate) fn download(&self, package: &str) -> anyhow::Result<Vec<PathBuf>> {
        let mut command = self.command("apt-get");
        command
            .args(["download", package])
            .current_dir(self.archives());
        self.supervisor.check(&command)?;
        self.archived(&format!("{package}_"))
    }

    /// Downloads packages and what of their needs is not installed.
    pub(crate) fn download_with_needs(&self, packages: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let mut command = self.command("apt-get");
        command
            .args([
                "install",
                "--download-only",
                "--yes",
                "--no-install-recommends",
            ])
            .args(packages);
        self.supervisor.check(&command)?;
        self.archived("")
    }

    /// Unpacks packages to `root`, which is there only if it is complete.
    pub(crate) fn unpack(&self, archives: &[PathBuf], root: &Path) -> anyhow::Result<()> {
        let unfinished = root.with_added_extension("unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)
                .with_context(|| format!("removing {}", unfinished.display()))?;
        }
        for archive in archives {
            let mut command = Command::new("dpkg-deb");
            command.arg("--extract").arg(archive).arg(&unfinished);
            self.supervisor.check(&command)?;
        }
        fs::rename(&unfinished, root).with_context(|| format!("renaming {}", unfinished.display()))
    }

    /// Gives the space back.
    pub(crate) fn leave(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.directory)
            .with_context(|| format!("removing {}", self.directory.display()))
    }

    fn archives(&self) -> PathBuf {
        self.directory.join("cache/archives")
    }

    fn archived(&self, prefix: &str) -> anyhow::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.archives())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(prefix) && name.ends_with(".deb") {
                found.push(self.archives().join(name));
            }
        }
        if found.is_empty() {
            bail!("apt has downloaded no package {prefix}");
        }
        Ok(found)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // Only errors: what apt would install where nothing is concerns nobody.
        command
            .arg("--quiet=2")
            .arg("--config-file")
            .arg(self.configuration())
            .stdin(Stdio::null());
        command
    }

    fn query(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command(program);
        command.args(arguments).env("LC_ALL", "C");
        let output = command
            .output()
            .with_context(|| format!("{program} does not start"))?;
        if !output.status.success() {
            bail!(
                "`{}`: {}",
                supervise::line(&command),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// From what `apt-cache depends` prints.
fn first_dependency(depends: &str) -> Option<&str> {
    depends
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("Depends: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_dependency_is_found() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-50-cloud-amd64\n\
                       \x20 Depends: other\n";
        assert_eq!(
            first_dependency(depends),
            Some("linux-image-6.1.0-50-cloud-amd64")
        );
        assert_eq!(first_dependency("linux-image-cloud-amd64\n"), None);
    }
}
