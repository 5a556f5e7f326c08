//! The agent under test.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::http;
use crate::metrics::Metrics;
use crate::process::{Cmd, Running};
use crate::servers::api_server::ApiServer;
use crate::{Must as _, Place, Scene, World, poll};

/// Where the agents of all tests serve metrics: every world has a loopback of its own.
pub const METRICS: SocketAddr = local(15020);
/// Where they serve readiness.
pub const READY: SocketAddr = local(15021);
/// Where they serve the admin interface.
pub const ADMIN: SocketAddr = local(15000);

/// How long what must happen may take on a machine that has much else to do; none of it takes more
/// than moments on an idle one.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where one agent has its endpoints.
#[derive(Clone, Copy, Debug)]
pub struct Endpoints {
    /// Metrics.
    pub metrics: SocketAddr,
    /// Readiness.
    pub ready: SocketAddr,
    /// The admin interface.
    pub admin: SocketAddr,
}

impl Default for Endpoints {
    fn default() -> Self {
        Self {
            metrics: METRICS,
            ready: READY,
            admin: ADMIN,
        }
    }
}

impl Endpoints {
    /// Those of the agent with this number, so that several run side by side.
    pub fn numbered(number: u16) -> Self {
        let port = 16000 + 3 * number;
        Self {
            metrics: local(port),
            ready: local(port + 1),
            admin: local(port + 2),
        }
    }
}

/// `underpass run` on the world's host, capturing the world's workload cgroup.
pub struct Agent {
    running: Running,
    place: Place,
    endpoints: Endpoints,
}

impl Agent {
    /// Starts it with one policy file and waits until it is ready.
    #[track_caller]
    pub fn start(world: &World, policy: &str) -> Self {
        Self::start_with(world, policy, &[])
    }

    /// As [`start`](Self::start), with further options.
    #[track_caller]
    pub fn start_with(world: &World, policy: &str, options: &[&str]) -> Self {
        Self::start_in(world.services(), world, policy, options)
    }

    /// As [`start_with`](Self::start_with), with the agent itself in `cgroup`.
    #[track_caller]
    pub fn start_in(cgroup: &Cgroup, world: &World, policy: &str, options: &[&str]) -> Self {
        let program = underpass(world).in_cgroup(cgroup);
        let mut agent = Self::launch(program, world, policy, options, Endpoints::default());
        agent.wait_until_ready();
        agent
    }

    /// As [`start_with`](Self::start_with), by a command that takes the program and its arguments
    /// as its last ones, and becomes it.
    #[track_caller]
    pub fn start_by(launcher: Cmd, world: &World, policy: &str, options: &[&str]) -> Self {
        let program = launcher.arg(binary());
        let mut agent = Self::launch(program, world, policy, options, Endpoints::default());
        agent.wait_until_ready();
        agent
    }

    /// An agent that `command` starts, with the endpoints that agents have by default; waits until it
    /// is ready.
    #[track_caller]
    pub fn by(command: Cmd, world: &World) -> Self {
        let mut agent = Self {
            running: command.start(),
            place: world.host().clone(),
            endpoints: Endpoints::default(),
        };
        agent.wait_until_ready();
        agent
    }

    /// Starts it in the cluster of this API server, as the agent of `node-1`, and waits for nothing.
    #[track_caller]
    pub fn launch_in_cluster(scene: &Scene, api: &ApiServer, options: &[&str]) -> Self {
        let program = underpass(&scene.world)
            .in_cgroup(scene.world.services())
            .args(["run", "--kubernetes", "--node-name", "node-1"])
            .args(["--kubeconfig", api.kubeconfig()]);
        Self::capturing(program, &scene.world, options, Endpoints::default())
    }

    /// The same, on the node whose hierarchy begins at the world's [root](World::root), as a node in a
    /// container sees it, and with nobody telling it which cgroup to capture.
    #[track_caller]
    pub fn launch_on_node(scene: &Scene, kubeconfig: &str, options: &[&str]) -> Self {
        let world = &scene.world;
        let program = node(world)
            .args(["run", "--kubernetes", "--node-name", "node-1"])
            .args(["--kubeconfig", kubeconfig]);
        Self::serving(program, world, options, Endpoints::default())
    }

    /// Whether it is ready, and if not, why.
    #[track_caller]
    pub fn readiness(&self) -> (bool, String) {
        let answer = http::get(&self.place, self.endpoints.ready, "/healthz/ready");
        let answer = answer.must("ask for readiness");
        (answer.status == 200, answer.body)
    }

    /// Starts `program` as the agent without waiting for anything.
    #[track_caller]
    pub fn launch(
        program: Cmd,
        world: &World,
        policy: &str,
        options: &[&str],
        endpoints: Endpoints,
    ) -> Self {
        let file = world.dir().join("policy.yaml");
        fs::write(&file, policy).must("write a policy");
        let program = program.arg("run").arg("--policy").arg(file);
        Self::capturing(program, world, options, endpoints)
    }

    /// Starts `program`, which knows its policy, to capture the workload of the world.
    #[track_caller]
    fn capturing(program: Cmd, world: &World, options: &[&str], endpoints: Endpoints) -> Self {
        let program = program.arg("--cgroup").arg(world.workload().path());
        Self::serving(program, world, options, endpoints)
    }

    #[track_caller]
    fn serving(program: Cmd, world: &World, options: &[&str], endpoints: Endpoints) -> Self {
        let running = program
            .args(["--metrics-addr", &endpoints.metrics.to_string()])
            .args(["--ready-addr", &endpoints.ready.to_string()])
            .args(["--admin-addr", &endpoints.admin.to_string()])
            .args(["--log-format", "json"])
            .args(options)
            .start();
        Self {
            running,
            place: world.host().clone(),
            endpoints,
        }
    }

    /// Waits until it says that it is ready.
    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        let (place, address) = (&self.place, self.endpoints.ready);
        let running = &mut self.running;
        running.wait_for("the agent is ready", Duration::from_secs(20), || {
            http::get(place, address, "/healthz/ready").is_ok_and(|answer| answer.status == 200)
        });
    }

    /// The process.
    pub fn process(&mut self) -> &mut Running {
        &mut self.running
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Holds it still until [`resume`](Self::resume).
    pub fn hold(&self) {
        self.running.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.running.signal(Signal::SIGCONT);
    }

    /// How many descriptors it has open, without those of [`pipes`](Self::open_pipes).
    pub fn open_files(&self) -> usize {
        self.descriptors().filter(|is_pipe| !is_pipe).count()
    }

    /// How many ends of pipes it has open. Each of its threads keeps a pipe once it has moved bulk.
    pub fn open_pipes(&self) -> usize {
        self.descriptors().filter(|is_pipe| *is_pipe).count()
    }

    /// Whether each is the end of a pipe.
    fn descriptors(&self) -> impl Iterator<Item = bool> {
        let path = format!("/proc/{}/fd", self.pid());
        let entries = fs::read_dir(path).must("list the agent's descriptors");
        // One that has been closed since is not there any more.
        let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links.map(|link| link.to_string_lossy().starts_with("pipe:"))
    }

    /// A scrape of its metrics.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        let answer =
            http::get(&self.place, self.endpoints.metrics, "/metrics").must("scrape metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        Metrics::parse(&answer.body)
    }

    /// Waits until the sum of these samples is `value`; panics with the sum when that takes too long.
    #[track_caller]
    pub fn wait_for_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        let reached = poll(PATIENCE, || {
            (self.metrics().sum(name, labels) == Some(value)).then_some(())
        });
        let is = self.metrics().sum(name, labels);
        assert!(
            reached.is_some(),
            "{name}{labels:?} is {is:?}, not {value}\n{}",
            self.tails()
        );
    }

    /// A document of the admin interface.
    #[track_caller]
    pub fn admin(&self, path: &str) -> Value {
        let answer =
            http::get(&self.place, self.endpoints.admin, path).must("ask the admin interface");
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        serde_json::from_str(&answer.body).must(format_args!("read {path} as JSON"))
    }

    /// The access log so far.
    pub fn access_log(&self) -> Vec<Access> {
        access_log(&self.running)
    }

    /// Waits for a record for which `condition` holds; panics with the log when that takes too long.
    #[track_caller]
    pub fn wait_for_access(&self, what: &str, condition: impl Fn(&Access) -> bool) -> Access {
        let found = || {
            self.access_log()
                .into_iter()
                .find(|record| condition(record))
        };
        poll(PATIENCE, found)
            .unwrap_or_else(|| panic!("no access log record: {what}\n{}", self.tails()))
    }

    /// Waits until the access log has `count` records; panics with the log when that takes too long.
    #[track_caller]
    pub fn wait_for_accesses(&self, count: usize) -> Vec<Access> {
        let complete = || Some(self.access_log()).filter(|log| log.len() >= count);
        poll(PATIENCE, complete)
            .unwrap_or_else(|| panic!("no {count} access log records\n{}", self.tails()))
    }

    /// The addresses it listens on for captured connections: all that are none of its endpoints.
    #[track_caller]
    pub fn listeners(&self) -> Vec<SocketAddr> {
        let ss = self.place.command("ss").args(["-H", "-l", "-t", "-n"]);
        let table = ss.run(Duration::from_secs(5)).expect_success().stdout;
        let local = table
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3)?.parse().ok());
        let Endpoints {
            metrics,
            ready,
            admin,
        } = self.endpoints;
        let own = [metrics, ready, admin];
        local.filter(|address| !own.contains(address)).collect()
    }

    /// The ends of its logs, for a message.
    pub fn tails(&self) -> String {
        self.running.tails()
    }
}

/// One record of the access log.
#[derive(Clone, Debug)]
pub struct Access(Value);

impl Access {
    /// A field as text, whatever its type; empty if it is not there.
    pub fn text(&self, field: &str) -> String {
        match &self.0[field] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }

    /// A field as a number.
    #[track_caller]
    pub fn number(&self, field: &str) -> u64 {
        let text = self.text(field);
        text.parse()
            .unwrap_or_else(|_| panic!("{field} is no number: {:?}", self.0))
    }
}

/// `underpass exec`, still without its command: arguments added to the result are the command's.
pub fn exec(world: &World, proxy: &str, options: &[&str]) -> Cmd {
    underpass(world)
        .args(["exec", "--proxy", proxy])
        .args(options)
        .arg("--")
}

/// The access log a process has written to its standard error as JSON.
pub fn access_log(process: &Running) -> Vec<Access> {
    let log = process.stderr();
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let records = lines.filter(|line| line["logger"] == "underpass::access");
    records.map(Access).collect()
}

/// A policy with one Tunnel for everything through the world's proxy; `spec` are further lines of
/// its `spec`, such as `targetHost: AUTO_SNI`.
pub fn tunnel_policy(spec: &[&str]) -> String {
    let more: String = spec.iter().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: underpass.dev/v1alpha1\n\
         kind: Tunnel\n\
         metadata:\n\
         \x20 name: everything\n\
         spec:\n\
         \x20 proxy:\n\
         \x20   host: proxy.example\n\
         \x20   port: 3128\n\
         {more}"
    )
}

/// The program on the world's host.
#[track_caller]
pub fn underpass(world: &World) -> Cmd {
    world.host().command(binary())
}

/// The program on the world's host, in a hierarchy of cgroups that begins at the world's root.
#[track_caller]
pub fn node(world: &World) -> Cmd {
    let launcher = world.host().command("unshare").in_cgroup(world.root());
    launcher
        .args(["--cgroup", "--mount", "--", "sh", "-c", HIERARCHY, "sh"])
        .arg(binary())
}

/// Leaves no hierarchy of cgroups but that of the calling process's namespace.
const HIERARCHY: &str = "umount --recursive /sys/fs/cgroup && \
     mount -t cgroup2 none /sys/fs/cgroup && exec \"$@\"";

/// The program under test: `$UNDERPASS_BIN`, or the release build beside this test's own.
#[track_caller]
pub fn binary() -> PathBuf {
    let beside = || {
        // This is TARGET/debug/deps/NAME.
        let own = std::env::current_exe().must("find this program");
        let target = own
            .ancestors()
            .nth(3)
            .expect("a test runs from cargo's target folder");
        target.join("release/underpass")
    };
    let path = std::env::var_os("UNDERPASS_BIN").map_or_else(beside, PathBuf::from);
    assert!(
        path.is_file(),
        "no agent at {}: `cargo xtask build --release` makes it, UNDERPASS_BIN names another",
        path.display()
    );
    path
}

const fn local(port: u16) -> SocketAddr {
    SocketAddr::V4(std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}
