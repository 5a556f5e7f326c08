//! Workloads that need a real program with real sockets: small Python scripts in `programs/`.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use crate::process::Cmd;
use crate::{Must as _, Place};

impl Place {
    /// A command that runs `programs/NAME.py`.
    pub fn python(&self, name: &str) -> Cmd {
        self.script(interpreter(), name)
    }

    /// The same by the interpreter of the distribution, which alone finds its libraries.
    pub fn system_python(&self, name: &str) -> Cmd {
        self.script(Path::new("/usr/bin/python3"), name)
    }

    fn script(&self, interpreter: &Path, name: &str) -> Cmd {
        let script = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("programs")
            .join(name);
        self.command(interpreter).arg(script.with_extension("py"))
    }
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
