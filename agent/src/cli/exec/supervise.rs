//! Looks after the command: passes signals on, stops when it stops, and learns how it ended.

use std::process::{Child, ExitCode};

use anyhow::Context;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Passed on to the command, which decides what they mean.
const PASSED_ON: [Signal; 8] = [
    Signal::SIGALRM,
    Signal::SIGCONT,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Signals as they come in, instead of interrupting.
pub(super) struct Signals(SignalFd);

impl Signals {
    /// Takes the signals over. To be called before any other thread is started, since threads
    /// inherit the mask.
    pub(super) fn take() -> anyhow::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        set.add(Signal::SIGTSTP);
        for signal in PASSED_ON {
            set.add(signal);
        }
        set.thread_block().context("cannot block signals")?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)
            .context("cannot open a signal descriptor")?;
        Ok(Self(fd))
    }

    /// Waits until the command has ended; its exit status is the return value. As shells have it,
    /// 128 + N for a command that signal N ended.
    pub(super) fn supervise(&mut self, command: &Child) -> anyhow::Result<ExitCode> {
        let pid = Pid::from_raw(i32::try_from(command.id())?);
        loop {
            let Some(info) = self.0.read_signal().context("cannot read signals")? else {
                continue;
            };
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGCHLD) => {
                    if let Some(status) = reap(pid)? {
                        return Ok(status);
                    }
                }
                // The command stops by itself if it wants to; see `reap`.
                Ok(Signal::SIGTSTP) | Err(_) => {}
                // What the terminal sends, it has sent to the command as well.
                Ok(_) if from_terminal(&info) => {}
                Ok(signal) => match kill(pid, signal) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => tracing::warn!(%signal, %errno, "signal not passed on"),
                },
            }
        }
    }
}

fn from_terminal(info: &siginfo) -> bool {
    info.ssi_code == libc::SI_KERNEL
}

/// The command's exit status, once it has one.
fn reap(pid: Pid) -> anyhow::Result<Option<ExitCode>> {
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED;
    match waitpid(pid, Some(flags)).context("cannot wait for the command")? {
        // Only the low byte of a status reaches the parent, so it fits.
        WaitStatus::Exited(_, status) => Ok(Some(ExitCode::from((status & 0xff) as u8))),
        WaitStatus::Signaled(_, signal, _) => Ok(Some(ExitCode::from(128 + signal as u8))),
        // Job control: the shell takes the terminal back only when the whole job is stopped.
        WaitStatus::Stopped(_, Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU) => {
            raise(Signal::SIGSTOP).context("cannot stop")?;
            let _ = kill(pid, Signal::SIGCONT);
            Ok(None)
        }
        _ => Ok(None),
    }
}
