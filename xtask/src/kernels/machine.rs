//! The emulated machine.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use nix::libc::SIGKILL;

use crate::supervise::{self, Supervisor};

/// For one kernel, from power-on to power-off; it takes a tenth of that.
const DEADLINE: &str = "90";

/// QEMU.
#[derive(Debug)]
pub(super) struct Emulator {
    /// The directory it was unpacked to; None if it is installed.
    pub(super) unpacked: Option<PathBuf>,
}

impl Emulator {
    /// Runs a kernel with an initial RAM disk until it powers off, the deadline passes or this
    /// program is asked to stop. What it says on its console is in a file then.
    pub(super) fn boot(
        &self,
        supervisor: &Supervisor,
        kernel: &Path,
        image: &Path,
        console: &Path,
    ) -> anyhow::Result<()> {
        // Nothing of an earlier run may be taken for this one's.
        fs::write(console, "").with_context(|| format!("creating {}", console.display()))?;
        let mut serial = std::ffi::OsString::from("file:");
        serial.push(console);
        // Whatever becomes of this program, the emulator ends in time.
        let mut command = Command::new("timeout");
        command
            .args(["--signal=KILL", DEADLINE])
            .arg(self.program());
        self.find_files(&mut command);
        command
            // Hardware acceleration is not everywhere, and where machines are emulated in
            // emulated machines it may hang.
            .args(["-accel", "tcg", "-m", "768"])
            .args(["-nodefaults", "-nic", "none", "-no-reboot"])
            .args(["-display", "none", "-monitor", "none", "-serial"])
            .arg(serial)
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(image)
            .args(["-append", "console=ttyS0 panic=-1 quiet"])
            .stdin(Stdio::null());
        let status = supervisor.run(&command)?;
        // Killed by `timeout`, at the deadline: the console tells how far it came.
        if !status.success() && status.signal() != Some(SIGKILL) {
            bail!(
                "the emulator failed ({status}): {}",
                supervise::line(&command)
            );
        }
        Ok(())
    }

    fn program(&self) -> PathBuf {
        match &self.unpacked {
            Some(root) => root.join("usr/bin").join(Self::NAME),
            None => Self::NAME.into(),
        }
    }

    /// An unpacked emulator looks for libraries and firmware where it would be installed.
    fn find_files(&self, command: &mut Command) {
        let Some(root) = &self.unpacked else {
            return;
        };
        for directory in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.join(directory));
        }
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        let libraries = libraries.map(|directory| root.join(directory).display().to_string());
        command.env("LD_LIBRARY_PATH", libraries.join(":"));
    }

    /// Its program.
    pub(super) const NAME: &'static str = "qemu-system-x86_64";
}
