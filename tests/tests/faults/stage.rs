//! Where a row is played: a world, an agent that has served one connection, and how it stood then.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use underpass_tests::addr::{INTERNAL_V4, OTHER_V4, OTHER_V6, proxy_v4};
use underpass_tests::agent::{Access, Agent, tunnel_policy};
use underpass_tests::metrics::Metrics;
use underpass_tests::process::{Cmd, Running};
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::tcp::Server;
use underpass_tests::{World, addr, poll};

use crate::row::{PROXY, Row};

/// The port of the echo servers.
pub(crate) const ECHO: u16 = 7;
/// How long a workload may take beyond the row's limit before it is killed.
const GRACE: Duration = Duration::from_secs(20);
/// For an end that is due.
const SOON: Duration = Duration::from_secs(10);

/// The scene of a row.
pub(crate) struct Stage {
    /// `None` once it was ended on purpose.
    pub(crate) agent: Option<Agent>,
    pub(crate) proxy: FakeProxy,
    pub(crate) dns: Dns,
    pub(crate) world: World,
    _echoes: Vec<Server>,
    before: Before,
    limit: Duration,
}

/// How the agent stood before the fault.
struct Before {
    metrics: Metrics,
    records: usize,
    files: usize,
    pipes: usize,
}

/// What a workload saw.
#[derive(Debug)]
pub(crate) struct Saw {
    pub(crate) what: String,
    pub(crate) elapsed: Duration,
}

impl Saw {
    /// Something that a row saw itself.
    pub(crate) fn since(start: Instant, what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            elapsed: start.elapsed(),
        }
    }
}

impl Stage {
    /// Makes the world of `row` and starts the agent.
    pub(crate) fn set(row: &Row) -> Self {
        let world = World::new(row.name);
        let dns = Dns::start_with(&world, &addr::NAMES, row.ttl);
        let proxy = FakeProxy::start(world.inet(), proxy_v4(), Answer::tunnel());
        let places = [OTHER_V4.into(), OTHER_V6.into(), INTERNAL_V4.into()];
        let echoes = places
            .map(|place| Server::echo(world.inet(), SocketAddr::new(place, ECHO)))
            .into();
        let policy = tunnel_policy(row.policy).replace(PROXY, row.proxy);
        let policy = policy + &(row.documents)(&world);
        let agent = match row.launcher {
            Some(launcher) => Agent::start_by(launcher(&world), &world, &policy, row.options),
            None => Agent::start_with(&world, &policy, row.options),
        };
        let mut stage = Self {
            before: Before {
                metrics: Metrics::default(),
                records: 0,
                files: 0,
                pipes: 0,
            },
            agent: Some(agent),
            proxy,
            dns,
            world,
            _echoes: echoes,
            limit: Duration::from_secs(row.within),
        };
        if row.proxy == PROXY {
            // What is made once and kept must not count as left behind.
            let saw = stage.see("echo", &[]);
            assert_eq!(saw.what, "echoed", "{}", stage.tails());
        }
        stage.rest();
        let agent = stage.agent();
        let files = (0..5).map(|_| agent.open_files()).min().unwrap_or_default();
        stage.before = Before {
            metrics: agent.metrics(),
            records: agent.access_log().len(),
            files,
            pipes: agent.open_pipes(),
        };
        stage
    }

    /// The agent.
    pub(crate) fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("the agent runs")
    }

    /// A workload with the echo server as its target.
    pub(crate) fn fault(&self, what: &str, args: &[&str]) -> Cmd {
        self.fault_to(what, &OTHER_V4.to_string(), ECHO, args)
    }

    /// A workload with this target.
    pub(crate) fn fault_to(&self, what: &str, host: &str, port: u16, args: &[&str]) -> Cmd {
        let program = self.world.host().python("fault");
        program
            .in_cgroup(self.world.workload())
            .args([what, host, &port.to_string()])
            .args(args)
    }

    /// Runs a workload with the echo server as its target to its end.
    pub(crate) fn see(&self, what: &str, args: &[&str]) -> Saw {
        self.finish(self.fault(what, args).start())
    }

    /// As [`see`](Self::see), with another target.
    pub(crate) fn see_to(&self, what: &str, host: &str, port: u16, args: &[&str]) -> Saw {
        self.finish(self.fault_to(what, host, port, args).start())
    }

    /// Has the proxy answer so, and a workload say hello to the echo server.
    pub(crate) fn see_answer(&self, answer: Answer) -> Saw {
        self.proxy.set_answer(answer);
        self.see("echo", &[])
    }

    /// Waits for a workload to end.
    pub(crate) fn finish(&self, workload: Running) -> Saw {
        let done = workload.finish(self.limit + GRACE);
        let what = done.stdout.lines().last().map(str::to_owned);
        Saw {
            what: what.unwrap_or_else(|| format!("nothing: {}", done.stderr)),
            elapsed: done.elapsed,
        }
    }

    /// The ends of the agent's logs.
    pub(crate) fn tails(&self) -> String {
        self.agent.as_ref().map(Agent::tails).unwrap_or_default()
    }

    /// The access log and the metrics must have what the row says.
    pub(crate) fn expect_told(&self, row: &Row) {
        let Some(agent) = &self.agent else {
            return;
        };
        if let Some(logged) = row.log {
            let fits = |record: &Access| {
                record.text("flags") == logged.flags
                    && record.text("tunnel.code") == logged.code
                    && logged
                        .words
                        .iter()
                        .all(|word| record.text("error").contains(word))
            };
            let told = || {
                let log = agent.access_log();
                log.iter().skip(self.before.records).any(fits).then_some(())
            };
            assert!(
                poll(SOON, told).is_some(),
                "no record with flags `{}`, code `{}`, words {:?} in\n{:#?}",
                logged.flags,
                logged.code,
                logged.words,
                &agent.access_log()[self.before.records..]
            );
        }
        if let (Some(code), Some(logged)) = (row.request, row.log) {
            self.expect_one_request(agent, code, logged.flags);
        }
        if let Some((name, labels)) = row.counted {
            let before = self.before.metrics.sum(name, labels).unwrap_or_default();
            let grown = || (agent.metrics().sum(name, labels) > Some(before)).then_some(());
            let metrics = agent.metrics();
            assert!(
                poll(SOON, grown).is_some(),
                "{name}{labels:?} was {before} and is {:?}",
                metrics.sum(name, labels)
            );
        }
    }

    /// One request with this `response_code` and this flag, and no connection of bytes.
    fn expect_one_request(&self, agent: &Agent, code: &str, flag: &str) {
        let metrics = agent.metrics();
        let grown = |name: &str, labels: &[(&str, &str)]| {
            let before = self.before.metrics.sum(name, labels).unwrap_or_default();
            metrics.sum(name, labels).unwrap_or_default() - before
        };
        let flag = if flag.is_empty() { "-" } else { flag };
        let labels = [("response_code", code), ("response_flags", flag)];
        for name in ["istio_requests_total", "istio_request_bytes_count"] {
            let counted = (grown(name, &labels), grown(name, &[]));
            assert_eq!(counted, (1.0, 1.0), "{name}{labels:?}\n{}", self.tails());
        }
        let records = self.requests_logged();
        let status = if code == "0" { "" } else { code };
        let statuses: Vec<String> = records.iter().map(|one| one.text("status")).collect();
        assert_eq!(statuses, [status], "{records:?}");
    }

    /// The requests in the access log since the fault began.
    pub(crate) fn requests_logged(&self) -> Vec<Access> {
        let log = self.agent.as_ref().map(Agent::access_log);
        let log = log.unwrap_or_default().into_iter();
        log.skip(self.before.records)
            .filter(|record| !record.text("request_id").is_empty())
            .collect()
    }

    /// How many records there were before the fault.
    pub(crate) fn records_before(&self) -> usize {
        self.before.records
    }

    /// Nothing slipped past the tunnel, and nothing is left of the fault.
    pub(crate) fn expect_clean(&self) {
        self.world.expect_no_direct_arrivals();
        let Some(agent) = &self.agent else {
            return;
        };
        self.rest();
        let closed = || (agent.open_files() <= self.before.files).then_some(());
        assert!(
            poll(SOON, closed).is_some(),
            "files before {}, after {}",
            self.before.files,
            agent.open_files()
        );
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let pipes = agent.open_pipes();
        assert!(pipes <= self.before.pipes + 2 * threads, "{pipes} pipes");
        self.world.expect_no_direct_arrivals();
    }

    /// Waits until nothing is open.
    fn rest(&self) {
        let agent = self.agent();
        agent.wait_for_metric("underpass_tunnels_active", &[], 0.0);
        agent.wait_for_metric("underpass_capture_map_entries", &[("map", "FLOWS")], 0.0);
        let ended = || (agent.admin("/connections") == Value::Array(Vec::new())).then_some(());
        assert!(
            poll(SOON, ended).is_some(),
            "still open: {}",
            agent.admin("/connections")
        );
    }
}
