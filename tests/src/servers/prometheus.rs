//! Prometheus, which scrapes an agent and answers what dashboards ask.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::agent::METRICS;
use crate::process::Running;
use crate::{Must as _, Place, World, http, poll};

/// Where it answers: on the host, as if somebody ran it beside the agent.
const ADDRESS: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9090));

/// Between two scrapes, in milliseconds.
const INTERVAL: u64 = 250;

/// A Prometheus of the test's own, with a directory of its own for what it keeps.
pub struct Prometheus {
    running: Running,
    place: Place,
    started: f64,
}

/// One series of an answer.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its labels.
    pub labels: Value,
    /// Its values, oldest first; those that are no numbers, such as 0/0, are left out.
    pub values: Vec<f64>,
}

impl Prometheus {
    /// Starts it and waits until it has scraped the agent.
    #[track_caller]
    pub fn start(world: &World) -> Self {
        let configuration = format!(
            "global: {{scrape_interval: {INTERVAL}ms, scrape_timeout: {INTERVAL}ms}}\n\
             scrape_configs:\n\
             - job_name: underpass\n\
             \x20 static_configs: [{{targets: ['{METRICS}']}}]\n"
        );
        Self::start_with(world, &[("prometheus.yml", &configuration)])
    }

    /// Starts it with these files in one directory, of which `prometheus.yml` is its configuration, in
    /// less of a hurry than anybody outside of a test is; waits until it has scraped the agent.
    #[track_caller]
    pub fn start_with(world: &World, files: &[(&str, &str)]) -> Self {
        let dir = world.dir().join("prometheus");
        fs::create_dir(&dir).must("make prometheus' directory");
        for (name, content) in files {
            let content = content.replace("_interval: 15s", &format!("_interval: {INTERVAL}ms"));
            fs::write(dir.join(name), content).must(format_args!("write {name}"));
        }
        let file = dir.join("prometheus.yml");
        let started = now();
        let mut running = world
            .host()
            .command("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}/data", dir.display()))
            .arg(format!("--web.listen-address={ADDRESS}"))
            .arg("--log.level=warn")
            .start();
        running.wait_for("prometheus is ready", Duration::from_secs(20), || {
            http::get(world.host(), ADDRESS, "/-/ready").is_ok_and(|answer| answer.status == 200)
        });
        let prometheus = Self {
            running,
            place: world.host().clone(),
            started,
        };
        prometheus.wait_for("up", 1.0);
        prometheus
    }

    /// What `query` gave at any time since the start.
    #[track_caller]
    pub fn ask(&self, query: &str) -> Vec<Series> {
        // Finer than scrapes, so that no two of them are passed over.
        let step = INTERVAL as f64 / 1000.0 / 2.5;
        // One step past now, for what was scraped since the last step before it.
        let path = format!(
            "/api/v1/query_range?query={}&start={:.3}&end={:.3}&step={step}",
            escaped(query),
            self.started,
            now() + step
        );
        self.answer(query, &path, "values")
    }

    /// What `query` gives now.
    #[track_caller]
    pub fn ask_now(&self, query: &str) -> Vec<Series> {
        let path = format!("/api/v1/query?query={}", escaped(query));
        self.answer(query, &path, "value")
    }

    /// Waits until the one value of `query` is `value`.
    #[track_caller]
    pub fn wait_for(&self, query: &str, value: f64) {
        let mut last = Vec::new();
        let reached = poll(Duration::from_secs(20), || {
            last = self.ask_now(query);
            matches!(&last[..], [one] if one.values == [value]).then_some(())
        });
        assert!(
            reached.is_some(),
            "{query} is {last:?}, not {value}\n{}",
            self.running.tails()
        );
    }

    #[track_caller]
    fn answer(&self, query: &str, path: &str, key: &str) -> Vec<Series> {
        let answer = http::get(&self.place, ADDRESS, path).must("ask prometheus");
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
        let answer: Value = serde_json::from_str(&answer.body).must("read JSON");
        let series = answer["data"]["result"]
            .as_array()
            .expect("a list of series");
        series
            .iter()
            .map(|one| Series {
                labels: one["metric"].clone(),
                values: match key {
                    "value" => value(&one[key]).into_iter().collect(),
                    _ => one[key]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(value)
                        .collect(),
                },
            })
            .collect()
    }
}

/// Of `[time, "value"]`.
fn value(pair: &Value) -> Option<f64> {
    let value: f64 = pair[1].as_str()?.parse().ok()?;
    value.is_finite().then_some(value)
}

fn escaped(query: &str) -> String {
    query.bytes().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "%{byte:02x}");
        text
    })
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.must("a time after 1970").as_secs_f64()
}
