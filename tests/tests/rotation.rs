//! Credentials and certificates change while connections go on: nobody is refused for it, and what
//! cannot be used is not put in the place of what can.

#[path = "rotation/certificates.rs"]
mod certificates;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use underpass_tests::addr::{proxy_v4, proxy_v6};
use underpass_tests::agent::{ADMIN, Agent, METRICS, binary, tunnel_policy, underpass};
use underpass_tests::load::Load;
use underpass_tests::process::Running;
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy, Request};
use underpass_tests::servers::forward::Credentials;
use underpass_tests::servers::identity::Identities;
use underpass_tests::{Must as _, Scene, World, http, wait_for};

const SECONDS: Duration = Duration::from_secs(20);

const GENERATION: &str = "underpass_policy_generation";
const SUCCESSFUL: &str = "underpass_policy_last_reload_successful";

/// Puts another content in the place of a file, at one moment.
#[track_caller]
fn replace(file: &Path, content: impl AsRef<[u8]>) {
    let new = file.with_extension("new");
    fs::write(&new, content).must("write");
    fs::set_permissions(&new, Permissions::from_mode(0o600)).must("hide");
    fs::rename(&new, file).must("put it in place");
}

/// A Secret as Kubernetes mounts it: all keys turn to another version at one moment.
struct Mounted(PathBuf);

impl Mounted {
    #[track_caller]
    fn new(directory: PathBuf, keys: &[(&str, &str)]) -> Self {
        let mounted = Self(directory);
        mounted.publish("..1", keys);
        for (key, _) in keys {
            let link = format!("..data/{key}");
            symlink(link, mounted.0.join(key)).must("link a key");
        }
        mounted
    }

    #[track_caller]
    fn publish(&self, version: &str, keys: &[(&str, &str)]) {
        let old = fs::read_link(self.0.join("..data")).ok();
        let content = self.0.join(version);
        fs::create_dir_all(&content).must("make a version");
        for (key, value) in keys {
            fs::write(content.join(key), value).must("write a key");
        }
        symlink(version, self.0.join("..data_tmp")).must("link it");
        fs::rename(self.0.join("..data_tmp"), self.0.join("..data")).must("turn to it");
        if let Some(old) = old {
            fs::remove_dir_all(self.0.join(old)).must("remove the old version");
        }
    }
}

/// `underpass gateway` that knows the users of a file, and logs them.
struct Gateway {
    running: Running,
    users: PathBuf,
}

impl Gateway {
    #[track_caller]
    fn start(world: &World, users: &str) -> Self {
        let file = world.dir().join("users");
        replace(&file, users);
        let command = world.inet().command(binary()).arg("gateway");
        let command = command
            .args(["--listen", &proxy_v4().to_string()])
            .args(["--listen", &proxy_v6().to_string()])
            .args(["--allow", "203.0.113.0/24:*"])
            .args(["--allow", "[2001:db8:113::/64]:*"])
            .arg("--credentials")
            .arg(&file);
        let mut running = command.start();
        running.wait_until_listening(world.inet(), proxy_v6());
        Self {
            running,
            users: file,
        }
    }

    /// Lets these in and no others, from when this returns.
    #[track_caller]
    fn know(&self, users: &str) {
        let before = self.read_again();
        replace(&self.users, users);
        wait_for("the gateway knows its users", SECONDS, || {
            self.read_again() > before
        });
    }

    fn read_again(&self) -> usize {
        self.running.stderr().matches("read again").count()
    }

    /// How many tunnels were opened for the user.
    fn tunnels(&self, user: &str) -> usize {
        let log = self.running.stderr();
        let of_user = format!("user=\"{user}\"");
        let lines = log.lines().filter(|line| line.contains(&of_user));
        lines.filter(|line| line.contains("code=200")).count()
    }
}

const OLD: Credentials<'_> = Credentials::Basic("old-user", "the-first-secret");
const NEW: Credentials<'_> = Credentials::Basic("new-user", "the-second-secret");

/// A hundred connections a second, and some that outlive the change.
const LOAD: [&str; 2] = ["short=4:40", "long=4:1000"];

#[test]
fn credentials_change_under_load() {
    change_credentials("HTTP-CONNECT");
}

#[test]
fn credentials_change_under_load_over_http2() {
    let connections = change_credentials("HTTP2-CONNECT");
    assert_eq!(connections, 1.0, "credentials are of each stream");
}

/// Changes them at the proxy and in a Secret while workloads talk; how many connections to the proxy
/// there have been.
#[track_caller]
fn change_credentials(protocol: &str) -> f64 {
    let world = World::new(&format!("rotation-{}", protocol.to_lowercase()));
    let _dns = Dns::start(&world);
    let identities = Identities::start(world.inet(), &[9001]);
    let mut gateway = Gateway::start(&world, "old-user:the-first-secret\n");
    let secrets = world.dir().join("secrets");
    let login = Mounted::new(
        secrets.join("login"),
        &[("username", "old-user"), ("password", "the-first-secret")],
    );
    let more = format!("    protocol: {protocol}\n    authentication: {{credentialName: login}}");
    let policy = tunnel_policy(&[]).replace("port: 3128", &format!("port: 3128\n{more}"));
    let options = ["--secrets", &secrets.display().to_string()];
    let mut agent = Agent::start_with(&world, &policy, &options);
    let program = Path::new(env!("CARGO_BIN_EXE_load"));
    let interval = Duration::from_millis(100);
    let mut load = Load::start(&world, program, interval, &identities.addresses(), &LOAD);
    load.wait_for("the agent serves", |counts| counts.of("short", "ok") > 100);
    expect_hidden(&mut agent, &world);

    gateway.know("old-user:the-first-secret\nnew-user:the-second-secret\n");
    assert_eq!(gateway.tunnels("new-user"), 0);
    login.publish(
        "..2",
        &[("username", "new-user"), ("password", "the-second-secret")],
    );
    agent.wait_for_metric(GENERATION, &[], 2.0);
    wait_for("the proxy sees the new user", SECONDS, || {
        gateway.tunnels("new-user") > 0
    });
    // What was on its way under the old policy is done when it is logged; a hundred later, all is.
    let soon = gateway.tunnels("new-user") + 100;
    wait_for("more of them", SECONDS, || {
        gateway.tunnels("new-user") > soon
    });
    gateway.know("new-user:the-second-secret\n");
    let last = gateway.tunnels("new-user") + 100;
    wait_for("more without the old one", SECONDS, || {
        gateway.tunnels("new-user") > last
    });
    expect_hidden(&mut agent, &world);

    let (counts, failed) = load.finish();
    assert!(failed.is_empty(), "{counts}: {failed:?}");
    assert!(counts.of("short", "ok") > 300, "{counts}");
    assert!(counts.of("long", "ok") > 0, "{counts}");
    assert_eq!(identities.misdelivered(), Vec::<String>::new());
    let refused = [("code", "407")];
    let refused = agent
        .metrics()
        .sum("underpass_tunnel_requests_total", &refused);
    assert_eq!(refused, None, "nobody was refused");
    let reloads = agent.metrics();
    let reloads = reloads.sum("underpass_policy_reload_total", &[("result", "failure")]);
    assert_eq!(reloads, None, "no version was seen half");
    world.expect_no_direct_arrivals();
    gateway.running.stop();
    let log = gateway.running.stderr();
    for secret in ["the-first-secret", "the-second-secret"] {
        assert!(!log.contains(secret), "{secret} in the gateway's log");
    }
    let connections = agent.metrics();
    let connections = connections.sum("underpass_proxy_connections_total", &[]);
    connections.unwrap_or_default()
}

/// Neither secret is in anything that is shown.
#[track_caller]
fn expect_hidden(agent: &mut Agent, world: &World) {
    let get = |address, path| http::get(world.host(), address, path).must("ask").body;
    let status = underpass(world).arg("status").run(SECONDS);
    let process = |file: &str| {
        let path = format!("/proc/{}/{file}", agent.pid());
        String::from_utf8_lossy(&fs::read(path).must("read of the process")).into_owned()
    };
    let shown = [
        ("status", status.expect_success().stdout),
        ("/status", get(ADMIN, "/status")),
        ("/config_dump", get(ADMIN, "/config_dump")),
        ("/connections", get(ADMIN, "/connections")),
        ("/metrics", get(METRICS, "/metrics")),
        ("cmdline", process("cmdline")),
        ("environ", process("environ")),
        ("log", agent.process().stderr() + &agent.process().stdout()),
    ];
    let basic = [OLD, NEW].map(|credentials| credentials.header(world).unwrap_or_default());
    let basic = basic.map(|header| header["Basic ".len()..].to_owned());
    for (what, text) in &shown {
        for secret in [
            "the-first-secret",
            "the-second-secret",
            &basic[0],
            &basic[1],
        ] {
            assert!(!text.contains(secret), "{secret} in {what}: {text}");
        }
    }
    let [_, _, (_, dump), ..] = &shown;
    assert!(dump.contains("proxy.example"), "it dumps something: {dump}");
}

/// The one problem of the last reading, which was taken but for that.
#[track_caller]
fn only_problem(agent: &Agent) -> String {
    let reload = agent.admin("/status")["policy"]["reload"].clone();
    assert_eq!(reload["result"], "partial", "{reload}");
    let problems = reload["problems"].as_array().expect("a list");
    let [problem] = &problems[..] else {
        panic!("not one problem: {reload}");
    };
    problem.as_str().expect("a text").to_owned()
}

/// A Secret that cannot be used stays what it was, and nothing else is held up by that.
#[test]
fn credentials_that_are_none_are_told_and_change_nothing() {
    let scene = Scene::new("rotation-credentials");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let secrets = scene.world.dir().join("secrets");
    let login = Mounted::new(
        secrets.join("login"),
        &[("username", "meg"), ("password", "the-first-secret")],
    );
    let policy = |target: &str| {
        format!(
            "apiVersion: underpass.dev/v1alpha1\n\
             kind: Tunnel\n\
             metadata: {{name: with-login}}\n\
             spec: {{proxy: {{host: 192.0.2.20, port: 3128, \
             authentication: {{credentialName: login}}}}}}\n\
             ---\n\
             apiVersion: networking.istio.io/v1\n\
             kind: DestinationRule\n\
             metadata: {{name: without}}\n\
             spec: {{host: other.example, trafficPolicy: {{tunnel: {{targetHost: {target}, \
             targetPort: 80, proxy: {{host: 192.0.2.20, port: 3128}}}}}}}}\n"
        )
    };
    let options = ["--secrets", &secrets.display().to_string()];
    let agent = Agent::start_with(&scene.world, &policy("v4.example"), &options);
    let asked = |host: &str| {
        let before = proxy.requests().len();
        let header = format!("Host: {host}");
        let curl = scene.curl("http://203.0.113.10/");
        scene
            .captured(&curl.args(["--header", &header]))
            .expect_ok();
        proxy.requests()[before].clone()
    };
    let basic = Credentials::Basic("meg", "the-first-secret").header(&scene.world);
    let login_of = |request: &Request| request.header("Proxy-Authorization").map(str::to_owned);
    assert_eq!(login_of(&asked("site.example")), basic);

    // Basic has no such user (RFC 7617, section 2).
    let publish = |version, username| {
        let keys = [("username", username), ("password", "the-second-secret")];
        login.publish(version, &keys);
    };
    publish("..2", "meg:ann");
    agent.wait_for_metric(SUCCESSFUL, &[], 0.0);
    let problem = only_problem(&agent);
    assert!(
        problem.contains("login") && !problem.contains("second"),
        "{problem}"
    );
    assert_eq!(login_of(&asked("site.example")), basic, "the last good one");
    let request = asked("other.example");
    assert_eq!(request.line(), "CONNECT v4.example:80 HTTP/1.1");
    assert_eq!(login_of(&request), None);

    let before = agent.metrics().sum(GENERATION, &[]).expect("a generation");
    replace(&scene.world.dir().join("policy.yaml"), policy("v6.example"));
    agent.wait_for_metric(GENERATION, &[], before + 1.0);
    assert_eq!(only_problem(&agent), problem);
    assert_eq!(
        asked("other.example").line(),
        "CONNECT v6.example:80 HTTP/1.1"
    );
    assert_eq!(login_of(&asked("site.example")), basic);

    publish("..3", "ann");
    agent.wait_for_metric(SUCCESSFUL, &[], 1.0);
    let basic = Credentials::Basic("ann", "the-second-secret").header(&scene.world);
    assert_eq!(login_of(&asked("site.example")), basic);
    scene.world.expect_no_direct_arrivals();
}
