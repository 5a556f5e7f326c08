//! Running programs so that nothing is left behind: a signal that would end this program first
//! lets it stop the program it waits for and clean up.

use std::{
    env, fmt,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::{Pid, geteuid},
};

/// The signals that ask a verb to stop.
const STOP: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// How long an ended program may go unnoticed, in milliseconds, where another thread takes its
/// SIGCHLD.
const LOOK_AGAIN: u16 = 200;

/// The signals a supervisor holds back.
pub(crate) fn held() -> SigSet {
    let mut held: SigSet = STOP.into_iter().collect();
    held.add(Signal::SIGCHLD);
    held
}

/// Runs programs while the signals that ask to stop are held back.
///
/// They stay blocked in this thread until this program ends. Children inherit that, so each is
/// started through [`launch`](crate::launch), which lifts it again.
#[derive(Debug)]
pub(crate) struct Supervisor {
    signals: SignalFd,
    /// This program.
    launcher: PathBuf,
}

/// The error of a verb that a signal stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stopped(Signal);

impl Stopped {
    /// Exit status by the shell's convention.
    pub(crate) fn exit_code(self) -> u8 {
        128 + u8::try_from(self.0 as i32).unwrap_or(0)
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped by {}", self.0)
    }
}

impl std::error::Error for Stopped {}

impl Supervisor {
    /// Holds the signals back from now on.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let launcher = env::current_exe().context("this program's own path")?;
        held().thread_block().context("blocking signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&held(), flags).context("opening a signalfd")?;
        Ok(Self { signals, launcher })
    }

    /// Runs a program to its end. A signal that asks to stop is passed on to it.
    ///
    /// # Errors
    /// If it does not start, or if a signal asked to stop ([`Stopped`]): the program has ended then.
    pub(crate) fn run(&self, command: &Command) -> anyhow::Result<ExitStatus> {
        self.supervise(self.launched(command, None), |pid, signal| {
            // Where it has just ended there is nobody to tell.
            let _ = kill(pid, signal);
        })
    }

    /// Like [`run`](Self::run), inside a cgroup; `stop` ends everything in there.
    pub(crate) fn run_in_cgroup(
        &self,
        command: &Command,
        cgroup: &Path,
        stop: impl Fn(),
    ) -> anyhow::Result<ExitStatus> {
        self.supervise(self.launched(command, Some(cgroup)), |_, _| stop())
    }

    /// The command, through the launcher.
    fn launched(&self, command: &Command, cgroup: Option<&Path>) -> Command {
        let mut launched = Command::new(&self.launcher);
        launched.arg("launch");
        if let Some(cgroup) = cgroup {
            launched.arg("--cgroup").arg(cgroup);
        }
        launched
            .arg("--")
            .arg(command.get_program())
            .args(command.get_args());
        if let Some(directory) = command.get_current_dir() {
            launched.current_dir(directory);
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => launched.env(name, value),
                None => launched.env_remove(name),
            };
        }
        launched
    }

    fn supervise(
        &self,
        mut command: Command,
        stop: impl Fn(Pid, Signal),
    ) -> anyhow::Result<ExitStatus> {
        let mut child = command
            .spawn()
            .with_context(|| format!("{} does not start", command.get_program().display()))?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        let mut stopped = None;
        loop {
            if let Some(status) = child.try_wait()? {
                return match stopped {
                    None => Ok(status),
                    Some(signal) => Err(Stopped(signal).into()),
                };
            }
            let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(LOOK_AGAIN)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("waiting for a signal"),
            }
            while let Some(signal) = self.signals.read_signal().context("reading a signal")? {
                let signal = Signal::try_from(i32::try_from(signal.ssi_signo)?)?;
                if STOP.contains(&signal) {
                    stopped = Some(signal);
                    stop(pid, signal);
                }
            }
        }
    }

    /// Runs a program that must succeed.
    pub(crate) fn check(&self, command: &Command) -> anyhow::Result<()> {
        let status = self.run(command)?;
        succeeded(command, status)
    }
}

/// Some verbs load eBPF programs and make network namespaces.
pub(crate) fn require_root() -> anyhow::Result<()> {
    if !geteuid().is_root() {
        bail!("this loads eBPF programs and makes network namespaces: run it as root");
    }
    Ok(())
}

/// An error naming the command unless it was successful.
pub(crate) fn succeeded(command: &Command, status: ExitStatus) -> anyhow::Result<()> {
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// A command as one would type it, with the variables that were set for it.
pub(crate) fn line(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!(
                "{}={}",
                name.display(),
                quoted(&value.to_string_lossy())
            ));
        }
    }
    words.push(quoted(&command.get_program().to_string_lossy()));
    words.extend(
        command
            .get_args()
            .map(|argument| quoted(&argument.to_string_lossy())),
    );
    words.join(" ")
}

/// A word as it is written in a shell.
pub(crate) fn quoted(word: &str) -> String {
    let plain =
        |character: char| character.is_ascii_alphanumeric() || "%+,-./:=@_".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_status_of_the_program_is_returned() {
        let supervisor = Supervisor::new().unwrap();
        let status = supervisor.supervise(shell("exit 3"), |_, _| {}).unwrap();
        assert_eq!(status.code(), Some(3));
        let error = succeeded(&shell("exit 3"), status).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`sh -c 'exit 3'` failed (exit status: 3)"
        );
    }

    #[test]
    fn a_signal_stops_the_program_and_is_reported() {
        let supervisor = Supervisor::new().unwrap();
        // Only this thread has it blocked, so it must go to this thread.
        raise(Signal::SIGTERM).unwrap();
        let stop = |pid, _| kill(pid, Signal::SIGKILL).unwrap();
        let error = supervisor
            .supervise(shell("exec sleep 60"), stop)
            .unwrap_err();
        let stopped = error.downcast::<Stopped>().unwrap();
        assert_eq!(stopped, Stopped(Signal::SIGTERM));
        assert_eq!(stopped.exit_code(), 143);
    }

    #[test]
    fn programs_are_started_through_the_launcher() {
        let mut supervisor = Supervisor::new().unwrap();
        supervisor.launcher = "xtask".into();
        let mut command = shell("true");
        command.env("NAME", "value").current_dir("/");
        let launched = supervisor.launched(&command, Some(Path::new("/cgroup")));
        assert_eq!(
            line(&launched),
            "NAME=value xtask launch --cgroup /cgroup -- sh -c true"
        );
        assert_eq!(launched.get_current_dir(), Some(Path::new("/")));
    }

    #[test]
    fn command_lines_can_be_typed() {
        let mut command = shell("echo it's");
        command.env("LLVM_PREFIX", "/a b").env_remove("HOME");
        assert_eq!(line(&command), r"LLVM_PREFIX='/a b' sh -c 'echo it'\''s'");
    }
}
