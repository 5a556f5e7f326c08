//! What can go wrong on the kernel side.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

/// Why connections cannot be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Nobody can wait for the answers that workloads get.
    #[error("cannot wait for answers of name servers: {0}")]
    AnswersPoll(io::Error),
    /// A program could not be attached.
    #[error(
        "cannot attach program `{program}` to cgroup {}: {}; another program without the \
         multi-attach flag may hold the hook (`bpftool cgroup tree` shows it)",
        cgroup.display(), chain(source)
    )]
    Attach {
        /// The program.
        program: &'static str,
        /// The cgroup.
        cgroup: PathBuf,
        /// What the kernel said.
        source: ProgramError,
    },
    /// Capabilities that the process lacks.
    #[error(
        "missing {}: run as root, or give the process {} (in a container: \
         securityContext.capabilities.add)",
        .0.join(", "), .0.join(" ")
    )]
    Capabilities(Vec<&'static str>),
    /// No captured connection came through.
    #[error("a canary connection was not captured: {0}")]
    Canary(String),
    /// The helper process that makes canary sockets failed.
    #[error("the canary's helper process in cgroup {}: {source}", cgroup.display())]
    CanaryHelper {
        /// Where it should run.
        cgroup: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// Something about a cgroup.
    #[error("cgroup {}: cannot {action}: {source}", path.display())]
    Cgroup {
        /// The cgroup directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A path that is not a cgroup.
    #[error(
        "{} is not a directory of the cgroup v2 hierarchy, which is mounted at {}",
        path.display(), mount.display()
    )]
    NotACgroup {
        /// The path given.
        path: PathBuf,
        /// Where cgroup v2 is.
        mount: PathBuf,
    },
    /// No cgroup v2.
    #[error(
        "no cgroup v2 hierarchy is mounted: mount one with \
         `mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with \
         systemd.unified_cgroup_hierarchy=1"
    )]
    NoCgroup2,
    /// No cgroup of pods.
    #[error(
        "there is no cgroup of pods in {} yet: kubelet makes it, as `kubepods` or `kubepods.slice`, there \
         or one level below; where it is called otherwise, --cgroup names it",
        .0.display()
    )]
    NoPods(PathBuf),
    /// A cgroup without programs.
    #[error("the programs are not on cgroup {}; the log says why", .0.display())]
    NotAttached(PathBuf),
    /// Nobody can be told of changes of cgroups.
    #[error("cannot watch cgroups: {0} (fs.inotify.max_user_instances?)")]
    Inotify(io::Error),
    /// Programs that somebody detached.
    #[error(
        "{} not attached to cgroup {} any more: connections are not captured as they should be; \
         start the agent again",
        .programs.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
        cgroup.display()
    )]
    Detached {
        /// The programs.
        programs: Vec<&'static str>,
        /// The cgroup.
        cgroup: PathBuf,
    },
    /// A kernel that is too old.
    #[error("kernel {found} is too old: Underpass needs 5.10 or later")]
    Kernel {
        /// The running kernel's release.
        found: String,
    },
    /// A link that is none.
    #[error(
        "program `{program}` has no link, is the kernel older than 5.7? {}",
        chain(source)
    )]
    Link {
        /// The program.
        program: &'static str,
        /// What aya said.
        source: aya::programs::links::LinkError,
    },
    /// A listener on loopback.
    #[error("cannot listen on {address} for redirected connections: {source}")]
    Listen {
        /// The loopback address.
        address: std::net::IpAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The object did not load.
    #[error("the kernel did not take the eBPF programs: {}", chain(.0))]
    Load(#[source] Box<EbpfError>),
    /// The programs' log map.
    #[error("cannot read what the eBPF programs log: {}", chain(.0))]
    Logs(#[source] aya_log::Error),
    /// The same, when waiting for it.
    #[error("cannot wait for what the eBPF programs log: {0}")]
    LogsPoll(#[source] io::Error),
    /// A map operation.
    #[error("eBPF map {name}: cannot {action}: {}", chain(source))]
    Map {
        /// The map.
        name: &'static str,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// A map or program that the object should have.
    #[error("the eBPF object has no `{0}`: agent and programs are not of the same build")]
    Missing(&'static str),
    /// A network namespace, or the agent's way into it.
    #[error("a network namespace: cannot {action}: {source}")]
    Netns {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The namespace cannot be told apart.
    #[error("cannot read the cookie of the network namespace: {0}")]
    NetnsCookie(io::Error),
    /// No BPF file system.
    #[error(
        "a closed policy needs the BPF file system, so that its programs outlive the agent, and \
         none is mounted: mount it with `mount -t bpf bpf /sys/fs/bpf` ({0}), or choose \
         failureMode: open"
    )]
    NoBpffs(io::Error),
    /// A build without programs.
    #[error(
        "this build of Underpass has no eBPF programs, so it cannot capture anything: build it \
         with `cargo xtask setup` and `cargo xtask build`"
    )]
    NoPrograms,
    /// A pin in the BPF file system.
    #[error("cannot pin, or take over what is pinned, at {}: {source}", path.display())]
    Pin {
        /// The pin or its directory.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The verifier or the kernel refused a program.
    #[error("the kernel did not take program `{program}`: {}", chain(source))]
    Program {
        /// The program.
        program: &'static str,
        /// What the kernel said, with the verifier's log.
        source: ProgramError,
    },
    /// More prefix rules than the kernel side takes.
    #[error(
        "eBPF map PREFIXES takes {max} rules, and the policy in force and the new one have \
         {rules} together: use fewer and wider prefixes, or change them in several steps"
    )]
    TooManyPrefixes {
        /// Those in force and those that are new.
        rules: usize,
        /// How many there may be.
        max: usize,
    },
    /// The process's own state in `/proc`.
    #[error("cannot read {what} from /proc: {source}")]
    Proc {
        /// What was read.
        what: &'static str,
        /// What failed.
        source: procfs::ProcError,
    },
}

impl CaptureError {
    /// What the kernel said, where that is all there is to it.
    pub fn os_error(&self) -> Option<i32> {
        match self {
            Self::Listen { source, .. } | Self::Netns { source, .. } => source.raw_os_error(),
            Self::NetnsCookie(source) => source.raw_os_error(),
            _ => None,
        }
    }
}

/// An error with its causes on one line; aya's own texts often hold only the outermost.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        cause = error.source();
    }
    text
}
