//! What is checked inside the emulated machine of `cargo xtask kernels`: the agent on a kernel
//! other than the one that builds it. Tells its results on the console, one line each.
//!
//! `tests/guest/init` has prepared the machine. The targets are on loopback, directly reachable,
//! and tell who came to them, so that a connection that slips past the tunnel is seen.

#![expect(
    clippy::print_stdout,
    reason = "the console is how it tells its results"
)]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use underpass_tests::poll;

const AGENT: &str = "/bin/underpass";
const CGROUPS: &str = "/sys/fs/cgroup";
const WORKLOAD: &str = "/sys/fs/cgroup/workload";
const PROXY: &str = "127.0.0.1:3128";
const PROXY_LOG: &str = "/tmp/proxy.log";
const EXEC_LOG: &str = "/tmp/exec.log";
const RUN_LOG: &str = "/tmp/run.log";

/// An emulated machine may be twenty times slower than a real one.
const PATIENCE: Duration = Duration::from_secs(30);

/// Lines of each log that are shown at the end.
const LINES: usize = 30;

/// The kinds of sockets that are captured in ways of their own: name, what the client calls
/// `connect` with, and what the proxy is to be asked for. Each target has a port of its own, by
/// which the logs tell them apart.
const TARGETS: [(&str, &str, &str); 3] = [
    ("ipv4", "198.51.100.7:443", "198.51.100.7:443"),
    ("ipv6", "[2001:db8::7]:444", "[2001:db8::7]:444"),
    ("mapped", "[::ffff:198.51.100.7]:445", "198.51.100.7:445"),
];

const POLICY: &str = "\
apiVersion: underpass.dev/v1alpha1
kind: Tunnel
metadata:
  name: everything
spec:
  proxy:
    host: proxy.example
    port: 3128
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.split_first() {
        None => {
            check_all();
            Ok(())
        }
        Some((verb, addresses)) if verb == "connect" => client(addresses),
        Some((verb, cgroup)) if verb == "in-cgroup" => in_cgroup(cgroup),
        Some(_) => Err(anyhow::anyhow!("usage: guest [connect ADDRESS…]")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The host counts on every check being there and on the last line.
fn check_all() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("@kernel {}", release.trim());
    if let Err(error) = checks() {
        tell("set-up", Err(error));
    }
    tails();
    println!("@end");
}

fn checks() -> anyhow::Result<()> {
    for (_, _, address) in TARGETS {
        target(address.parse()?)?;
    }
    fs::create_dir(WORKLOAD).context("making the workload's cgroup")?;
    fs::write("/tmp/policy.yaml", POLICY)?;
    let mut proxy = Agent::start(&["gateway", "--listen", PROXY, "--allow", "*:*"], PROXY_LOG)?;
    until("the gateway listens", || TcpStream::connect(PROXY).is_ok())?;

    let direct = ask_all(&[]);
    tell(
        "targets answer",
        answered(&direct, |client| !client.tunnelled),
    );

    let exec = ["exec", "--proxy", "http://proxy.example:3128"];
    let logged = ["--log-level", "debug", "--log-file", EXEC_LOG, "--"];
    for (name, result) in captured(&ask_all(&[&[AGENT], &exec[..], &logged].concat())) {
        tell(&format!("exec {name}"), result);
    }
    tell("programs log", contains(EXEC_LOG, "redirected, port 443"));
    tell("exec killed", exec_killed(&exec));

    let mut run = Agent::start(
        &["run", "--policy", "/tmp/policy.yaml", "--cgroup", WORKLOAD],
        RUN_LOG,
    )?;
    tell(
        "run ready",
        until("readiness", || get(15021, "/healthz/ready").is_ok()),
    );
    let me = std::env::current_exe()?;
    let enter = [me.to_str().context("own path")?, "in-cgroup", WORKLOAD];
    for (name, result) in captured(&ask_all(&enter)) {
        tell(&format!("run {name}"), result);
    }
    let _ = until("the counts", || counted().is_ok());
    tell("counted", counted());
    tell("run killed", run_killed(&mut run, &enter));
    proxy.kill()?;
    Ok(())
}

/// Prints one result.
fn tell(name: &str, result: anyhow::Result<()>) {
    match result {
        Ok(()) => println!("@check {name}: ok"),
        Err(error) => {
            let why = format!("{error:#}").replace('\n', " | ");
            println!("@check {name}: failed: {why}");
        }
    }
}

/// Prints the ends of the logs, for whoever wants to know why.
fn tails() {
    for log in [PROXY_LOG, EXEC_LOG, RUN_LOG] {
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            println!("{log}: {line}");
        }
    }
}

/// A server that greets whoever comes with his own address.
fn target(address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("target {address}"))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || greet(&stream));
        }
    });
    Ok(())
}

fn greet(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    writeln!(stream, "{} {}", stream.peer_addr()?, line.trim())
}

/// The workload: tells for each address what it saw, in the form of [`Seen`].
fn client(addresses: &[String]) -> anyhow::Result<()> {
    for address in addresses {
        match connect(address) {
            Ok(seen) => println!("{address} {seen}"),
            Err(error) => println!("{address} failed: {error:#}"),
        }
    }
    Ok(())
}

fn connect(address: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"hello\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
    Ok(format!("{peer} {local} {}", answer.trim()))
}

/// Becomes the command in another cgroup.
fn in_cgroup(arguments: &[String]) -> anyhow::Result<()> {
    let [cgroup, program, rest @ ..] = arguments else {
        bail!("usage: guest in-cgroup DIRECTORY PROGRAM ARGUMENT…");
    };
    fs::write(Path::new(cgroup).join("cgroup.procs"), "0").context("entering the cgroup")?;
    Err(Command::new(program).args(rest).exec().into())
}

/// What the workload saw of one connection.
struct Seen {
    /// What `getpeername` said.
    peer: String,
    /// Whether somebody else came to the target in its place.
    tunnelled: bool,
    /// How often the proxy was asked for the target meanwhile.
    asked: usize,
}

/// Connects to every target, below a command that starts the client.
fn ask_all(before: &[&str]) -> Vec<anyhow::Result<Seen>> {
    let asked = |target: &str| {
        let log = fs::read_to_string(PROXY_LOG).unwrap_or_default();
        log.matches(&format!("CONNECT {target} ")).count()
    };
    let already = TARGETS.map(|(_, _, target)| asked(target));
    let output = run_client(before);
    let seen = |(index, (_, address, target)): (usize, (&str, &str, &str))| {
        let text = output
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(address)?.strip_prefix(' '))
            .with_context(|| format!("the client said only: {text}"))?;
        let [peer, local, came, "hello"] = line.split(' ').collect::<Vec<_>>()[..] else {
            bail!("the client: {line}");
        };
        let plain = |address: &str| anyhow::Ok(canonical(address.parse()?));
        let tunnelled = plain(local)? != plain(came)?;
        // The gateway writes its record when the tunnel has ended.
        let _ = until("a record", || !tunnelled || asked(target) > already[index]);
        Ok(Seen {
            peer: peer.to_owned(),
            tunnelled,
            asked: asked(target) - already[index],
        })
    };
    TARGETS.into_iter().enumerate().map(seen).collect()
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn run_client(before: &[&str]) -> anyhow::Result<String> {
    let me = std::env::current_exe()?;
    let client = [me.to_str().context("own path")?, "connect"];
    let addresses = TARGETS.map(|(_, address, _)| address);
    let words = [before, &client, &addresses].concat();
    let output = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", words[0]))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{}: {text} {errors}",
        output.status
    );
    Ok(text)
}

/// Whether each connection went through the proxy without the workload's noticing.
fn captured(
    all: &[anyhow::Result<Seen>],
) -> impl Iterator<Item = (&'static str, anyhow::Result<()>)> {
    TARGETS.iter().zip(all).map(|((name, address, _), seen)| {
        let check = || {
            let seen = seen
                .as_ref()
                .map_err(|error| anyhow::anyhow!("{error:#}"))?;
            ensure!(seen.tunnelled, "it went past the proxy");
            ensure!(seen.asked == 1, "the proxy was asked {} times", seen.asked);
            ensure!(&seen.peer == address, "getpeername says {}", seen.peer);
            Ok(())
        };
        (*name, check())
    })
}

fn answered(all: &[anyhow::Result<Seen>], expected: impl Fn(&Seen) -> bool) -> anyhow::Result<()> {
    for ((name, ..), seen) in TARGETS.iter().zip(all) {
        let seen = seen
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{name}: {error:#}"))?;
        ensure!(expected(seen), "{name}: tunnelled: {}", seen.tunnelled);
    }
    Ok(())
}

/// What the command has started must end with the supervisor, and the cgroup with it. The command
/// itself would end anyway: the kernel tells it that its parent died.
fn exec_killed(exec: &[&str]) -> anyhow::Result<()> {
    let command = ["--", "/bin/sh", "-c", "sleep 1000 & wait"];
    let mut agent = Agent::start(&[exec, &command].concat(), EXEC_LOG)?;
    until("its child runs", || running("1000"))?;
    agent.kill()?;
    until("its child ends", || !running("1000"))?;
    until("its cgroup goes", || ours().is_empty()).with_context(|| format!("{:?}", ours()))
}

/// What an agent captured is refused when it has been killed, since its policy is closed; then it
/// can be freed, and nothing is left of the agent.
fn run_killed(run: &mut Agent, enter: &[&str]) -> anyhow::Result<()> {
    run.kill()?;
    let text = run_client(enter)?;
    let refused = text.lines().filter(|line| line.ends_with("(os error 1)"));
    ensure!(refused.count() == TARGETS.len(), "not refused: {text}");
    let status = Command::new(AGENT)
        .arg("detach")
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "detach: {status}");
    ensure!(ours().is_empty(), "left behind: {:?}", ours());
    answered(&ask_all(enter), |seen| !seen.tunnelled)
}

/// Cgroups of the agent's.
fn ours() -> Vec<String> {
    let mut found = Vec::new();
    for parent in [CGROUPS, WORKLOAD] {
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        found.extend(names.filter(|name| name.starts_with("underpass-")));
    }
    found
}

/// Whether a process has this as an argument.
fn running(word: &str) -> bool {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .any(|line| {
            line.split(|byte| *byte == 0)
                .any(|part| part == word.as_bytes())
        })
}

fn counted() -> anyhow::Result<()> {
    let metrics = get(15020, "/metrics")?;
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix("underpass_capture_redirected_total "));
    ensure!(value == Some("3"), "redirected: {value:?}");
    let waiting = metrics
        .lines()
        .find_map(|line| line.strip_prefix("underpass_capture_map_entries{map=\"FLOWS\"} "));
    ensure!(waiting == Some("0"), "not taken: {waiting:?}");
    Ok(())
}

fn contains(log: &str, what: &str) -> anyhow::Result<()> {
    ensure!(
        fs::read_to_string(log)?.contains(what),
        "{log} has no `{what}`"
    );
    Ok(())
}

/// The body of a good answer of the agent's endpoints.
fn get(port: u16, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.split(' ').nth(1) == Some("200"), "{answer}");
    Ok(answer)
}

fn until(what: &str, mut condition: impl FnMut() -> bool) -> anyhow::Result<()> {
    poll(PATIENCE, || condition().then_some(())).with_context(|| format!("in vain: {what}"))
}

/// A running agent of any verb; killed when dropped.
struct Agent(Child);

impl Agent {
    fn start(arguments: &[&str], log: &str) -> anyhow::Result<Self> {
        let child = Command::new(AGENT)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(log)?)
            .spawn()
            .context("starting the agent")?;
        Ok(Self(child))
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
