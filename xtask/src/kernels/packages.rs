//! What the matrix needs of Debian, unpacked once and kept.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use super::Kernel;
use crate::{
    debian::{Installed, Room},
    report,
    supervise::Supervisor,
};

/// Where the emulator is from, whatever this machine runs: that of bookworm lets one boot in four
/// of a 6.12 kernel end in a panic.
const TOOLS: &str = "trixie";

/// The unpacked packages below one directory; what is missing there is downloaded.
#[derive(Debug)]
pub(super) struct Packages<'a> {
    directory: &'a Path,
    supervisor: &'a Supervisor,
    /// Where Debian's archive is, once somebody had to know.
    archive: Option<String>,
}

impl<'a> Packages<'a> {
    pub(super) fn new(directory: &'a Path, supervisor: &'a Supervisor) -> Self {
        Self {
            directory,
            supervisor,
            archive: None,
        }
    }

    /// The root of a system with QEMU and a busybox without libraries.
    pub(super) fn tools(&mut self) -> anyhow::Result<PathBuf> {
        self.unpacked("tools", |packages| {
            let room = packages.suite_room("tools", TOOLS)?;
            let archives = room.download_with_needs(&["qemu-system-x86", "busybox-static"])?;
            Ok((room, archives))
        })
    }

    /// The image of a kernel.
    pub(super) fn kernel(&mut self, kernel: &Kernel) -> anyhow::Result<PathBuf> {
        let root = self.unpacked(kernel.version, |packages| {
            let room = packages.suite_room(kernel.version, kernel.suite)?;
            let package = room.dependency("linux-image-cloud-amd64")?;
            if !package.starts_with(&format!("linux-image-{}.", kernel.version)) {
                bail!("the kernel of {} is {package}", kernel.suite);
            }
            let archives = room.download(&package)?;
            Ok((room, archives))
        })?;
        let boot = root.join("boot");
        for entry in fs::read_dir(&boot).with_context(|| format!("reading {}", boot.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("vmlinuz-") {
                return Ok(path);
            }
        }
        bail!("no kernel in {}", boot.display())
    }

    /// The directory `name` with packages unpacked in it; if it is not there, those that `get`
    /// downloads. It is there only if it is complete.
    fn unpacked(
        &mut self,
        name: &str,
        get: impl FnOnce(&mut Self) -> anyhow::Result<(Room<'a>, Vec<PathBuf>)>,
    ) -> anyhow::Result<PathBuf> {
        let root = self.directory.join(name);
        if root.exists() {
            return Ok(root);
        }
        report::progress(format_args!("getting {name} from Debian's archive"));
        let (room, archives) = get(self)?;
        room.unpack(&archives, &root)?;
        room.leave()?;
        Ok(root)
    }

    /// A room with the lists of one release of Debian, for getting `name`.
    fn suite_room(&mut self, name: &str, suite: &str) -> anyhow::Result<Room<'a>> {
        let archive = self.archive()?;
        let directory = self.directory.join(format!("{name}.apt"));
        let alone = Installed::Nothing;
        let room = Room::of_suite(&directory, self.supervisor, &archive, suite, alone)?;
        room.update()
            .with_context(|| format!("reading Debian's {suite}"))?;
        Ok(room)
    }

    fn archive(&mut self) -> anyhow::Result<String> {
        if let Some(archive) = &self.archive {
            return Ok(archive.clone());
        }
        let room = Room::of_machine(&self.directory.join("machine.apt"), self.supervisor)?;
        room.update_reachable()?;
        let archive = room.archive()?;
        room.leave()?;
        self.archive = Some(archive.clone());
        Ok(archive)
    }
}
