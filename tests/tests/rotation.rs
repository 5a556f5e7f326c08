//! Credentials and certificates change while connections go on: nobody is refused for it, and what
//! cannot be used is not put in the place of what can.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use underpass_tests::addr::{proxy_v4, proxy_v6};
use underpass_tests::agent::{ADMIN, Agent, METRICS, binary, tunnel_policy, underpass};
use underpass_tests::load::Load;
use underpass_tests::pki::{Authority, Issued, Request};
use underpass_tests::process::Running;
use underpass_tests::servers::apache;
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::forward::{Credentials, ForwardProxy, Options, Security};
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
    let world = World::new("rotation");
    let _dns = Dns::start(&world);
    let identities = Identities::start(world.inet(), &[9001]);
    let mut gateway = Gateway::start(&world, "old-user:the-first-secret\n");
    let secrets = world.dir().join("secrets");
    let login = Mounted::new(
        secrets.join("login"),
        &[("username", "old-user"), ("password", "the-first-secret")],
    );
    let policy = tunnel_policy(&[]).replace(
        "port: 3128",
        "port: 3128\n    authentication: {credentialName: login}",
    );
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

/// TLS to the proxy by files that a DestinationRule names.
struct Files {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

/// A proxy that wants certificates, and an agent that has one.
struct Secured {
    agent: Agent,
    proxy: ForwardProxy,
    files: Files,
    clients: Authority,
    scene: Scene,
}

impl Secured {
    #[track_caller]
    fn new(name: &str) -> Self {
        let scene = Scene::new(name);
        let clients = Authority::new(&scene.world, "clients");
        let identity = scene.pki.server().clone();
        let options = Options {
            security: Security::Mutual(&identity, &clients),
            ..Options::default()
        };
        let proxy = apache::start(&scene.world, &options);
        let dir = scene.world.dir().join("tls");
        fs::create_dir(&dir).must("make a directory");
        let files = Files {
            ca: dir.join("ca.pem"),
            certificate: dir.join("client.pem"),
            key: dir.join("client.key"),
        };
        replace(&files.ca, read(&scene.pki.ca()));
        let first = clients.issue(&scene.world, "first", &Request::client("first"));
        replace(&files.certificate, read(&first.certificate));
        replace(&files.key, read(&first.key));
        let policy = format!(
            "{}---\n\
             apiVersion: networking.istio.io/v1\n\
             kind: DestinationRule\n\
             metadata: {{name: proxy}}\n\
             spec:\n\
             \x20 host: proxy.example\n\
             \x20 trafficPolicy:\n\
             \x20   tls:\n\
             \x20     mode: MUTUAL\n\
             \x20     caCertificates: {}\n\
             \x20     clientCertificate: {}\n\
             \x20     privateKey: {}\n",
            tunnel_policy(&[]),
            files.ca.display(),
            files.certificate.display(),
            files.key.display()
        );
        let agent = Agent::start(&scene.world, &policy);
        Self {
            agent,
            proxy,
            files,
            clients,
            scene,
        }
    }

    /// Changes files, and waits until what they are is in force.
    #[track_caller]
    fn change(&self, change: impl FnOnce()) {
        let before = self.agent.metrics().sum(GENERATION, &[]);
        change();
        let next = before.expect("a generation") + 1.0;
        self.agent.wait_for_metric(GENERATION, &[], next);
        self.agent.wait_for_metric(SUCCESSFUL, &[], 1.0);
    }

    /// Changes a file into something that cannot be used; what is told of it.
    #[track_caller]
    fn spoil(&self, file: &Path, content: impl AsRef<[u8]>) -> Value {
        let generation = self.agent.metrics().sum(GENERATION, &[]);
        replace(file, content);
        self.agent.wait_for_metric(SUCCESSFUL, &[], 0.0);
        assert_eq!(self.agent.metrics().sum(GENERATION, &[]), generation);
        self.agent.admin("/status")["policy"]["reload"].clone()
    }

    /// A client's certificate in the place of the last, which are two files.
    #[track_caller]
    fn become_client(&self, issued: &Issued) {
        self.change(|| {
            replace(&self.files.certificate, read(&issued.certificate));
            replace(&self.files.key, read(&issued.key));
        });
    }

    /// The subject of the certificate that the proxy sees with the next request, which is served.
    #[track_caller]
    fn seen_as(&self) -> String {
        let before = self.proxy.log().len();
        let site = self.scene.curl("https://site.example/").args(["-4"]);
        self.scene.captured(&site).expect_ok();
        let log = self.proxy.wait_for_log(before + 1);
        let tls = log[before].tls.clone().expect("TLS to the proxy");
        tls.client.trim_start_matches("CN=").to_owned()
    }

    /// The next request fails in the handshake with the proxy; why.
    #[track_caller]
    fn failure(&self) -> String {
        let before = self.agent.access_log().len();
        let site = self.scene.curl("https://site.example/").args(["-4"]);
        assert_eq!(self.scene.captured(&site).status, 0);
        let record = self.agent.wait_for_accesses(before + 1).swap_remove(before);
        assert_eq!(record.text("decision"), "tunnel", "{record:?}");
        record.text("error")
    }
}

#[track_caller]
fn read(file: &Path) -> Vec<u8> {
    fs::read(file).must(format_args!("read {}", file.display()))
}

#[test]
fn the_agents_certificate_is_rotated() {
    let secured = Secured::new("rotation-client");
    assert_eq!(secured.seen_as(), "first");
    let world = &secured.scene.world;
    let second = Request::client("second");
    let second = secured.clients.issue(world, "second", &second);
    secured.become_client(&second);
    assert_eq!(secured.seen_as(), "second");
    secured.scene.world.expect_no_direct_arrivals();
}

#[test]
fn whom_the_agent_trusts_is_rotated() {
    let secured = Secured::new("rotation-ca");
    assert_eq!(secured.seen_as(), "first");
    let own = read(&secured.scene.pki.ca());
    let other = Authority::new(&secured.scene.world, "other");
    let other = read(&other.certificate());
    // Sessions of before do not stand in for a certificate.
    secured.change(|| replace(&secured.files.ca, &other));
    let error = secured.failure();
    assert!(error.contains("the CAs configured for it"), "{error}");
    secured.change(|| replace(&secured.files.ca, [other, own].concat()));
    assert_eq!(secured.seen_as(), "first");
    secured.scene.world.expect_no_direct_arrivals();
}

#[test]
fn what_cannot_be_used_is_told_and_changes_nothing() {
    let mut secured = Secured::new("rotation-wrong");
    let world = &secured.scene.world;
    let second = Request::client("second");
    let second = secured.clients.issue(world, "second", &second);
    let Files {
        ca,
        certificate,
        key,
    } = &secured.files;
    let good = [ca, certificate, key].map(|file| (file.clone(), read(file)));
    // Cut off; of another pair; no PEM at all; empty.
    let cut = &good[1].1[..good[1].1.len() / 2];
    for (file, content, field, reason) in [
        (
            certificate,
            cut.to_vec(),
            "clientCertificate",
            "not good PEM: a section has no END line",
        ),
        // Which of the two is the wrong one cannot be told.
        (
            certificate,
            read(&second.certificate),
            "privateKey",
            "does not belong",
        ),
        (key, read(&second.key), "privateKey", "does not belong"),
        (
            key,
            b"secret words".to_vec(),
            "privateKey",
            "no private key in PEM form",
        ),
        (
            ca,
            b"nobody".to_vec(),
            "caCertificates",
            "no certificate in PEM form",
        ),
        (
            ca,
            Vec::new(),
            "caCertificates",
            "no certificate in PEM form",
        ),
    ] {
        let told = secured.spoil(file, &content);
        assert_eq!(told["result"], "failure", "{told}");
        let problem = told["problems"][0].as_str().unwrap_or_default();
        let files = [
            ("clientCertificate", certificate),
            ("privateKey", key),
            ("caCertificates", ca),
        ];
        let (_, named) = files
            .iter()
            .find(|(name, _)| *name == field)
            .expect("a file");
        let start = format!(
            "DestinationRule/proxy: spec.trafficPolicy.tls.{field}: {}: ",
            named.display()
        );
        for part in [&*start, reason] {
            assert!(problem.contains(part), "no {part} in {told}");
        }
        assert!(!problem.contains("secret words"), "{problem}");
        let status = underpass(&secured.scene.world).arg("status").run(SECONDS);
        let status = status.expect_success().stdout;
        assert!(status.contains(problem), "no {problem} in {status}");
        assert_eq!(secured.seen_as(), "first", "{problem}");
        secured.change(|| {
            for (file, content) in &good {
                replace(file, content);
            }
        });
        assert_eq!(secured.seen_as(), "first");
    }
    // Not even there.
    fs::remove_file(&secured.files.ca).must("remove a file");
    secured.agent.wait_for_metric(SUCCESSFUL, &[], 0.0);
    assert_eq!(secured.seen_as(), "first");
    let log = secured.agent.process().stderr();
    assert!(log.contains("ca.pem cannot be read"), "{log}");
    secured.scene.world.expect_no_direct_arrivals();
}
