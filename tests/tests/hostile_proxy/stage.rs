//! A world with such a proxy, an agent before it, and workloads.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::addr::{OTHER_V4, proxy_v4};
use underpass_tests::agent::{Access, Agent, tunnel_policy};
use underpass_tests::process::{Cmd, Finished, Running};
use underpass_tests::servers::h2_proxy::{ECHO, H2Proxy};
use underpass_tests::{Must as _, World, poll};

/// What bounds everything that ends by itself.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// What the agent's memory may grow by for one connection to a proxy that floods it: far less than
/// what was sent.
pub(crate) const BOUND: u64 = 16 << 20;

pub(crate) struct Stage {
    pub(crate) agent: Agent,
    pub(crate) proxy: H2Proxy,
    pub(crate) world: World,
}

impl Stage {
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, &[])
    }

    /// With these SETTINGS of the proxy.
    #[track_caller]
    pub(crate) fn with(name: &str, settings: &[(u16, u32)]) -> Self {
        let world = World::new(&format!("hostile-{name}"));
        let proxy = H2Proxy::start(&world, proxy_v4(), settings);
        // By address: no name server is needed.
        let policy = tunnel_policy(&["  protocol: HTTP2-CONNECT"]);
        let agent = Agent::start(&world, &policy.replace("proxy.example", "192.0.2.20"));
        Self {
            agent,
            proxy,
            world,
        }
    }

    /// A program of `programs/` as a workload; the proxy makes of it what it does of `port`.
    pub(crate) fn program(&self, name: &str, port: u16) -> Cmd {
        let program = self.world.host().python(name);
        let program = program.in_cgroup(self.world.workload());
        program.args([OTHER_V4.to_string(), port.to_string()])
    }

    /// Starts `count` connections that talk to the echo server round by round.
    pub(crate) fn rounds(&self, count: usize) -> Rounds {
        let program = self.program("rounds", ECHO).arg(count.to_string());
        Rounds {
            running: program.start(),
            told: 0,
        }
    }

    /// One connection that says something to the echo server; what it saw.
    #[track_caller]
    pub(crate) fn see(&self) -> String {
        let fault = self.world.host().python("fault").args(["echo"]);
        let fault = fault.args([OTHER_V4.to_string(), ECHO.to_string()]);
        let done = fault.in_cgroup(self.world.workload()).run(LONG);
        done.stdout.lines().last().unwrap_or_default().to_owned()
    }

    /// Tunnels of now are served.
    #[track_caller]
    pub(crate) fn expect_well(&self) {
        assert_eq!(self.see(), "echoed", "{}", self.agent.tails());
    }

    /// Whatever has happened, nothing went past the tunnel, and nothing is left in the agent.
    #[track_caller]
    pub(crate) fn expect_clean(&self) {
        self.agent
            .wait_for_metric("underpass_tunnels_active", &[], 0.0);
        self.world.expect_no_direct_arrivals();
    }

    /// The records of connections that ended with this flag, once there are `count`.
    #[track_caller]
    pub(crate) fn flagged(&self, flag: &str, count: usize) -> Vec<Access> {
        let of = || {
            let log = self.agent.access_log().into_iter();
            let of: Vec<Access> = log.filter(|one| one.text("flags") == flag).collect();
            (of.len() >= count).then_some(of)
        };
        let found = poll(Duration::from_secs(20), of);
        let found = found.unwrap_or_else(|| panic!("no {count} {flag}\n{}", self.agent.tails()));
        assert_eq!(found.len(), count, "{found:#?}");
        found
    }

    /// The agent's resident memory in bytes.
    #[track_caller]
    pub(crate) fn memory(&self) -> u64 {
        let statm = self.proc("statm");
        let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
        pages.map_or_else(|| panic!("{statm}"), |pages: u64| pages * 4096)
    }

    /// Processor time that the agent has had.
    #[track_caller]
    fn time(&self) -> Duration {
        let stat = self.proc("stat");
        let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
        let ticks = |at: usize| {
            fields
                .split(' ')
                .nth(at)
                .and_then(|n| n.parse::<u64>().ok())
        };
        // Of a hundredth of a second each, whatever the kernel's own.
        let ticks = ticks(11).zip(ticks(12)).map(|(user, system)| user + system);
        Duration::from_millis(10 * ticks.expect("times of a process"))
    }

    /// It comes to rest: soon it spends next to nothing.
    #[track_caller]
    pub(crate) fn expect_rest(&self) {
        let rests = || {
            let before = self.time();
            std::thread::sleep(Duration::from_secs(1));
            (self.time() - before < Duration::from_millis(200)).then_some(())
        };
        let rests = poll(Duration::from_secs(10), rests);
        assert!(rests.is_some(), "it is busy\n{}", self.agent.tails());
    }

    /// What its memory has grown by is bounded.
    #[track_caller]
    pub(crate) fn expect_bounded(&self, before: u64) {
        let grown = self.memory().saturating_sub(before);
        assert!(grown < BOUND, "{} KiB", grown >> 10);
    }

    fn proc(&self, file: &str) -> String {
        let path = format!("/proc/{}/{file}", self.agent.pid());
        fs::read_to_string(path).must("read of the agent's process")
    }
}

/// `programs/rounds.py`.
pub(crate) struct Rounds {
    running: Running,
    told: usize,
}

impl Rounds {
    /// What came of the round that goes on: how many saw what.
    #[track_caller]
    pub(crate) fn outcome(&mut self) -> BTreeMap<String, u64> {
        let told = self.told;
        let line = || self.running.stdout().lines().nth(told).map(str::to_owned);
        let line = poll(LONG, line).unwrap_or_else(|| panic!("{}", self.running.tails()));
        self.told += 1;
        read(&line)
    }

    /// All of them were echoed.
    #[track_caller]
    pub(crate) fn expect(&mut self, count: u64, agent: &Agent) {
        let outcome = self.outcome();
        assert_eq!(outcome, saw([("echoed", count)]), "{}", agent.tails());
    }

    /// Another round.
    #[track_caller]
    pub(crate) fn next(&mut self) -> BTreeMap<String, u64> {
        self.running.signal(Signal::SIGUSR1);
        self.outcome()
    }

    /// The end of those that are left.
    #[track_caller]
    pub(crate) fn end(self) -> BTreeMap<String, u64> {
        self.running.signal(Signal::SIGTERM);
        let Finished { stdout, .. } = self.running.finish(LONG).expect_success();
        read(stdout.lines().last().unwrap_or_default())
    }
}

fn read(line: &str) -> BTreeMap<String, u64> {
    serde_json::from_str(line).must(format_args!("read {line:?}"))
}

/// How many saw what.
pub(crate) fn saw<const N: usize>(what: [(&str, u64); N]) -> BTreeMap<String, u64> {
    what.map(|(what, count)| (what.to_owned(), count)).into()
}
