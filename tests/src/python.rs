//! Workloads that need a real program with real sockets: small Python scripts in `programs/`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::process::Cmd;
use crate::{Must as _, Place};

impl Place {
    /// A command that runs `programs/NAME.py`.
    pub fn python(&self, name: &str) -> Cmd {
        self.command(interpreter()).arg(script(name))
    }

    /// The same by the interpreter of the distribution, for which its packages bring libraries.
    pub fn debian_python(&self, name: &str) -> Cmd {
        self.command("/usr/bin/python3").arg(script(name))
    }
}

fn script(name: &str) -> PathBuf {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
    programs.join(name).with_extension("py")
}

/// The interpreter that `python3` stands for. A version manager's wrapper script would cost its
/// start-up time in every test, and needs an environment that tests do not pass on.
pub fn interpreter() -> &'static Path {
    static INTERPRETER: OnceLock<String> = OnceLock::new();
    let found = INTERPRETER.get_or_init(|| {
        let print = ["-c", "import sys; print(sys.executable)"];
        let output = Command::new("python3")
            .args(print)
            .output()
            .must("run python3");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    });
    Path::new(found)
}
