//! The emulated machine.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use nix::libc::SIGKILL;

use crate::supervise::{self, Supervisor};

/// For one kernel, from power-on to power-off; it takes a tenth of that.
const DEADLINE: &str = "90";

/// QEMU, unpacked with all its libraries.
#[derive(Debug)]
pub(super) struct Emulator<'a> {
    root: &'a Path,
}

impl<'a> Emulator<'a> {
    /// That of a system unpacked to `root`.
    pub(super) fn of(root: &'a Path) -> Self {
        Self { root }
    }

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
        command.args(["--signal=KILL", DEADLINE]);
        self.program(&mut command);
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

    /// The program, by its own loader: its libraries may be newer than this machine's, and it
    /// looks for firmware where it would be installed.
    fn program(&self, command: &mut Command) {
        let libraries = self.root.join("usr/lib/x86_64-linux-gnu");
        command
            .arg(libraries.join("ld-linux-x86-64.so.2"))
            .arg("--library-path")
            .arg(&libraries)
            .arg(self.root.join("usr/bin/qemu-system-x86_64"));
        for directory in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(self.root.join(directory));
        }
    }
}
