//! `cargo xtask demo`: the main job, for someone who sees Underpass for the first time.
//!
//! A closed world of two hosts: on one curl runs under `underpass exec`, on the other are a TLS
//! site and `underpass gateway` as the forward proxy. What each of them saw is shown.

#![expect(clippy::print_stdout, reason = "it is there to be read")]

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use underpass_tests::addr::{SITE_V4, proxy_v4};
use underpass_tests::agent::underpass;
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::{Must as _, Scene};

const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let scene = Scene::new("demo");
    let gateway = scene
        .world
        .inet()
        .command(underpass_tests::agent::binary())
        .args(["gateway", "--listen", &proxy_v4().to_string()]);
    let mut gateway = gateway.start();
    gateway.wait_until_listening(scene.world.inet(), proxy_v4());

    println!("Two hosts without a way out, joined by one cable:");
    println!("  workload host   curl, under underpass exec");
    println!("  \"internet\"      https://site.example/ at {SITE_V4}, and a forward proxy at");
    println!("                  proxy.example:3128 (underpass gateway)\n");

    // curl knows nothing of a proxy. The second curl reads the agent's metrics, over loopback,
    // which is never captured.
    let log = scene.world.dir().join("agent.log");
    let script = "curl -4 -sS --cacert \"$CA\" https://site.example/ \
                  -w 'curl: connected to %{remote_ip} port %{remote_port}, HTTP/%{http_version}, \
                  certificate %{ssl_verify_result} (0 = good), status %{http_code}\\n' \
                  && curl -sS http://127.0.0.1:15020/metrics >\"$METRICS\"";
    let metrics = scene.world.dir().join("metrics");
    println!("$ underpass exec --proxy http://proxy.example:3128 -- curl -4 https://site.example/");
    let exec = underpass(&scene.world)
        .args(["exec", "--proxy", "http://proxy.example:3128"])
        .args(["--metrics-addr", "127.0.0.1:15020", "--log-level", "info"])
        .arg("--log-file")
        .arg(&log)
        .args(["--", "sh", "-c", script])
        .env("CA", scene.pki.ca())
        .env("METRICS", &metrics);
    let done = exec.run(PATIENCE);
    print!("{}{}", done.stdout, done.stderr);

    println!("\nWhat the proxy saw:");
    let asked: Vec<String> = lines_with(&gateway.stderr(), "CONNECT ");
    show(&asked);
    println!("\nWhat the agent wrote into its access log:");
    let records = lines_with(
        &fs::read_to_string(&log).must("read the log"),
        "underpass::access",
    );
    show(&records);
    println!("\nWhat its metrics say:");
    let metrics = fs::read_to_string(&metrics).unwrap_or_default();
    let counted: Vec<String> = [
        "underpass_tunnel_requests_total",
        "underpass_capture_redirected_total",
        "istio_tcp_connections_opened_total",
    ]
    .iter()
    .flat_map(|name| lines_with(&metrics, name))
    .filter(|line| !line.starts_with('#'))
    .map(|line| without_unknown(&line))
    .collect();
    show(&counted);
    let direct = scene.world.direct_arrivals();
    println!(
        "\nConnections that reached the site without the proxy: {}",
        direct.len()
    );

    let checks = [
        (done.status.success(), "curl succeeded"),
        (done.stdout.contains(Nginx::GREETING), "it got the page"),
        (
            done.stdout
                .contains(&format!("connected to {SITE_V4} port 443")),
            "it saw the site's own address",
        ),
        (
            asked
                .iter()
                .any(|line| line.contains("CONNECT site.example:443")),
            "the proxy was asked for the site by name",
        ),
        (records.len() == 1, "the access log has one record"),
        (!counted.is_empty(), "the metrics count it"),
        (direct.is_empty(), "nothing went past the proxy"),
    ];
    let failed: Vec<&str> = checks
        .iter()
        .filter_map(|(held, what)| (!held).then_some(*what))
        .collect();
    if failed.is_empty() {
        println!("\nSUCCESS: curl knew of no proxy, and all it did went through one.");
        ExitCode::SUCCESS
    } else {
        println!("\nFAILURE: not so: {}.", failed.join("; "));
        ExitCode::FAILURE
    }
}

fn lines_with(text: &str, what: &str) -> Vec<String> {
    text.lines()
        .filter(|line| line.contains(what))
        .map(str::to_owned)
        .collect()
}

/// A sample without the labels that say nothing.
fn without_unknown(line: &str) -> String {
    let (name, rest) = line.split_once('{').unwrap_or((line, ""));
    let Some((labels, value)) = rest.rsplit_once('}') else {
        return line.to_owned();
    };
    let telling: Vec<&str> = labels
        .split(',')
        .filter(|label| !label.ends_with("=\"unknown\""))
        .collect();
    format!("{name}{{{}}}{value}", telling.join(","))
}

fn show(lines: &[String]) {
    for line in lines {
        println!("  {line}");
    }
}
