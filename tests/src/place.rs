//! One side of a world: a network namespace with a file system view of its own.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::Must as _;
use crate::process::Cmd;
use crate::spawn::Entry;

/// For [`Place::set_net`], where many connections do not get on: small buffers in the kernel. Of one
/// connection all together hold little more than a mebibyte, of a thousand less than a usual machine
/// has for TCP in all; an agent's reads can still be as large as they ever are.
pub const SMALL_BUFFERS: [(&str, &str); 2] = [
    ("ipv4/tcp_rmem", "4096 131072 524288"),
    ("ipv4/tcp_wmem", "4096 16384 131072"),
];

/// A network namespace without a name, and a mount namespace with its own `/etc/hosts`,
/// `/etc/resolv.conf`, `/run`, `/dev/shm` and BPF file system.
///
/// Both live as long as somebody holds a descriptor or runs in them, so they need no removal.
#[derive(Clone)]
pub struct Place {
    net: Arc<OwnedFd>,
    mnt: Arc<OwnedFd>,
    dir: PathBuf,
    cgroup: PathBuf,
    logs: Arc<AtomicU32>,
}

impl Place {
    /// Makes a namespace whose loopback is down. `dir` takes its files and logs; processes start
    /// in `cgroup` unless they ask for another one.
    pub(crate) fn new(dir: &Path, cgroup: &Path, resolv_conf: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("resolv.conf"), resolv_conf)?;
        // Some programs look their own machine up.
        let own = fs::read_to_string("/proc/sys/kernel/hostname")?;
        let hosts = format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {own}");
        fs::write(dir.join("hosts"), hosts)?;
        let unshared = thread::scope(|scope| scope.spawn(|| unshare_thread(dir)).join());
        let (net, mnt) = unshared.expect("the unsharing thread does not panic")?;
        Ok(Self {
            net: Arc::new(net),
            mnt: Arc::new(mnt),
            dir: dir.into(),
            cgroup: cgroup.into(),
            logs: Arc::default(),
        })
    }

    /// A fresh network namespace, whose loopback is down, with the file system of this place.
    pub(crate) fn with_own_network(&self) -> anyhow::Result<Self> {
        let unshared = thread::scope(|scope| {
            let unshare = || -> anyhow::Result<OwnedFd> {
                unshare(CloneFlags::CLONE_NEWNET).context("unshare the network namespace")?;
                Ok(File::open("/proc/thread-self/ns/net")?.into())
            };
            scope.spawn(unshare).join()
        });
        let net = unshared.expect("the unsharing thread does not panic")?;
        Ok(Self {
            net: Arc::new(net),
            ..self.clone()
        })
    }

    /// The inode of its network namespace, as `/status` of the agent has it.
    pub fn netns(&self) -> u64 {
        let stat = nix::sys::stat::fstat(self.net.as_ref()).must("ask a namespace its number");
        stat.st_ino
    }

    /// A command to run here.
    pub fn command(&self, program: impl AsRef<Path>) -> Cmd {
        Cmd::new(self.clone(), program.as_ref())
    }

    /// Runs `action` on a thread inside the network namespace. Sockets made there stay there,
    /// whoever uses them later.
    pub fn within<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let net = Arc::clone(&self.net);
        let run = move || {
            setns(net.as_ref(), CloneFlags::CLONE_NEWNET).must("enter the network namespace");
            action()
        };
        match thread::scope(|scope| scope.spawn(run).join()) {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Sets what the file below `/proc/sys/net` has for this network namespace; gives what it had.
    #[track_caller]
    pub fn set_net(&self, name: &str, value: &str) -> String {
        self.try_set_net(name, value)
            .must(format_args!("set {name} to {value}"))
    }

    /// As [`set_net`](Self::set_net), of what the machine may not allow.
    ///
    /// # Errors
    /// What the file says to being read or written.
    pub fn try_set_net(&self, name: &str, value: &str) -> io::Result<String> {
        let file = format!("/proc/sys/net/{name}");
        self.within(|| {
            let was = fs::read_to_string(&file)?;
            fs::write(&file, value)?;
            Ok(was)
        })
    }

    /// Opens a TCP connection from here.
    ///
    /// # Errors
    /// Whatever `connect` says, or a time-out after two seconds.
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.within(move || TcpStream::connect_timeout(&to, Duration::from_secs(2)))
    }

    /// Where its files and logs are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path under which other processes can open its network namespace.
    pub(crate) fn net_path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.net.as_raw_fd())
    }

    /// What a child needs in order to start here, in `cgroup` if one is given.
    pub(crate) fn entry(&self, cgroup: Option<&Path>) -> anyhow::Result<Entry> {
        let procs = cgroup.unwrap_or(&self.cgroup).join("cgroup.procs");
        let file = File::options().write(true).open(&procs);
        Ok(Entry {
            namespaces: Some((Arc::clone(&self.net), Arc::clone(&self.mnt))),
            cgroup_procs: Some(file.with_context(|| format!("open {}", procs.display()))?),
            new_session: false,
        })
    }

    /// A path for a log that no other process of this place uses.
    pub(crate) fn log_path(&self, label: &str) -> PathBuf {
        let number = self.logs.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("{number:03}-{label}"))
    }
}

/// Gives the calling thread fresh namespaces and returns descriptors of them.
fn unshare_thread(dir: &Path) -> anyhow::Result<(OwnedFd, OwnedFd)> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("unshare network and mount namespace (tests need root)")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("make mounts private")?;

    let resolv_conf = fs::canonicalize("/etc/resolv.conf").context("resolve /etc/resolv.conf")?;
    for (kind, target) in [
        ("tmpfs", "/run"),
        ("tmpfs", "/dev/shm"),
        ("bpf", "/sys/fs/bpf"),
    ] {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), none)
            .with_context(|| format!("mount a {kind} on {target}"))?;
    }
    // Where a resolver service keeps the file below /run, the new /run has lost it.
    if let (false, Some(parent)) = (resolv_conf.exists(), resolv_conf.parent()) {
        fs::create_dir_all(parent)?;
        File::create(&resolv_conf)?;
    }
    for (file, target) in [
        ("resolv.conf", resolv_conf.as_path()),
        ("hosts", "/etc/hosts".as_ref()),
    ] {
        mount(Some(&dir.join(file)), target, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("bind {}", target.display()))?;
    }
    let net = File::open("/proc/thread-self/ns/net")?;
    let mnt = File::open("/proc/thread-self/ns/mnt")?;
    Ok((net.into(), mnt.into()))
}
