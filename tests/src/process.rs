//! Processes inside a world.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::spawn::enter;
use crate::{Must as _, Place, poll};

/// Lines of a log shown when something fails.
const TAIL: usize = 25;

/// How long a line may take to the log; a bound for failures.
const LOGGED: Duration = Duration::from_secs(20);

/// A command that will run in a [`Place`], with a clean environment and its output in files.
pub struct Cmd {
    command: Command,
    place: Place,
    label: String,
    cgroup: Option<PathBuf>,
    input: Option<Vec<u8>>,
}

impl Cmd {
    pub(crate) fn new(place: Place, program: &Path) -> Self {
        let mut command = Command::new(program);
        // Neither a proxy variable nor a configuration file of whoever runs the tests may matter.
        command
            .env_clear()
            .env("LC_ALL", "C")
            .env("HOME", place.dir());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let label = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Self {
            command,
            place,
            label,
            cgroup: None,
            input: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item: AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Starts it in `cgroup` rather than in the one of the world's services.
    #[must_use]
    pub fn in_cgroup(mut self, cgroup: &Cgroup) -> Self {
        self.cgroup = Some(cgroup.path().into());
        self
    }

    /// Gives it `bytes` on standard input, then its end.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// Starts it.
    #[track_caller]
    pub fn start(mut self) -> Running {
        let log = self.place.log_path(&self.label);
        let (stdout, stderr) = (log.with_extension("out"), log.with_extension("err"));
        let entry = self
            .place
            .entry(self.cgroup.as_deref())
            .must("prepare the start");
        enter(&mut self.command, entry);
        self.command.stdin(if self.input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        self.command
            .stdout(File::create(&stdout).must("make a log"));
        self.command
            .stderr(File::create(&stderr).must("make a log"));
        let started = Instant::now();
        let mut child = self
            .command
            .spawn()
            .must(format_args!("start {}", self.label));
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), self.input) {
            // A thread, for a program may answer before it has read everything.
            std::thread::spawn(move || pipe.write_all(&input));
        }
        Running {
            child,
            label: self.label,
            stdout,
            stderr,
            started,
        }
    }

    /// Runs it to its end; kills it and panics when that takes longer than `timeout`.
    #[track_caller]
    pub fn run(self, timeout: Duration) -> Finished {
        self.start().finish(timeout)
    }
}

/// A process that ends when this value is dropped: asked first, then killed.
pub struct Running {
    child: Child,
    label: String,
    stdout: PathBuf,
    stderr: PathBuf,
    started: Instant,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().must("wait").is_none()
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill(pid(&self.child), signal).must(format_args!("send {signal} to {}", self.label));
    }

    /// Waits at most `timeout` for its end.
    pub fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        poll(timeout, || self.child.try_wait().must("wait"))
    }

    /// Waits for its end and takes its output; panics with the output after `timeout`.
    #[track_caller]
    pub fn finish(mut self, timeout: Duration) -> Finished {
        let Some(status) = self.wait(timeout) else {
            panic!(
                "{} did not end within {timeout:?}\n{}",
                self.label,
                self.tails()
            );
        };
        Finished {
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
            elapsed: self.started.elapsed(),
        }
    }

    /// Waits until `condition` holds; panics with the output when the process ends before, or
    /// after `timeout`.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
        let mut ended = None;
        let reached = poll(timeout, || {
            ended = self.child.try_wait().must("wait");
            (ended.is_some() || condition()).then_some(())
        });
        if let Some(status) = ended {
            panic!(
                "{} ended ({status}) before: {what}\n{}",
                self.label,
                self.tails()
            );
        }
        if reached.is_none() {
            panic!("waited {timeout:?} in vain for: {what}\n{}", self.tails());
        }
    }

    /// As [`wait_for`](Self::wait_for), until the log has `text`, which may be some milliseconds
    /// after what it tells of was seen elsewhere. Returns the log.
    #[track_caller]
    pub fn wait_for_logged(&mut self, text: &str) -> String {
        let log = self.stderr.clone();
        self.wait_for(&format!("{text:?} is logged"), LOGGED, || {
            read(&log).contains(text)
        });
        self.stderr()
    }

    /// As [`wait_for`](Self::wait_for): a connection from `place` to `address` is accepted.
    #[track_caller]
    pub fn wait_until_listening(&mut self, place: &Place, address: SocketAddr) {
        let what = format!("{} answers on {address}", self.label);
        self.wait_for(&what, Duration::from_secs(10), || {
            place.connect(address).is_ok()
        });
    }

    /// Asks it to end, and kills it when it has not within two seconds.
    pub fn stop(&mut self) {
        if self.is_running() {
            let _ = kill(pid(&self.child), Signal::SIGTERM);
            // A held process must go on before it can end.
            let _ = kill(pid(&self.child), Signal::SIGCONT);
            if self.wait(Duration::from_secs(2)).is_none() {
                self.kill();
            }
        }
    }

    /// Ends it without asking.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The ends of both outputs, for a message.
    pub fn tails(&self) -> String {
        let label = &self.label;
        let (out, err) = (tail(&self.stdout()), tail(&self.stderr()));
        format!("--- {label} stdout\n{out}\n--- {label} stderr\n{err}")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a process left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// From its start to its end.
    pub elapsed: Duration,
}

impl Finished {
    /// Panics with the output unless it ended with status 0.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert!(
            self.status.success(),
            "{}\n--- stdout\n{}\n--- stderr\n{}",
            self.status,
            tail(&self.stdout),
            tail(&self.stderr)
        );
        self
    }
}

/// The last lines of a text.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
