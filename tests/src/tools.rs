//! Programs that `cargo xtask setup` leaves beside the build, since they are not installed.

use std::env;
use std::path::{Path, PathBuf};

use crate::process::Cmd;
use crate::{Must as _, Place};

/// What is at `path` among the tools.
#[track_caller]
pub fn find(path: impl AsRef<Path>) -> Option<PathBuf> {
    let own = env::current_exe().must("find this program");
    let mut beside = own
        .ancestors()
        .map(|dir| dir.join("tools").join(path.as_ref()));
    beside.find(|tool| tool.is_file())
}

/// A command for the program at `path` in a package of Debian's; the installed one where set-up
/// found that it would do.
#[track_caller]
pub fn unpacked(place: &Place, package: &str, path: &str) -> Cmd {
    let path = Path::new(path);
    let name = path.file_name().expect("the path of a program");
    let Some(program) = find(Path::new(package).join(path)) else {
        return place.command(name);
    };
    let root = program.ancestors().nth(path.components().count());
    let root = root.expect("the root of the package");
    let libraries = root.join(format!("usr/lib/{}-linux-gnu", env::consts::ARCH));
    place.command(&program).env("LD_LIBRARY_PATH", libraries)
}
