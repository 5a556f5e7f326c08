//! `underpass gateway --policy`: an egress gateway that leads through further proxies.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use underpass_tests::addr::PROXY_V4;
use underpass_tests::agent::{binary, tunnel_policy};
use underpass_tests::curl::{Curl, Seen};
use underpass_tests::process::Running;
use underpass_tests::servers::apache;
use underpass_tests::servers::forward::{Credentials, Options, Security};
use underpass_tests::servers::nginx::Nginx;
use underpass_tests::servers::squid::{self, Squid};
use underpass_tests::servers::stage::{Stage, TARGET};
use underpass_tests::{Must as _, Place, Scene, World};

const SECONDS: Duration = Duration::from_secs(20);

/// Where the gateway of these tests listens: on the workloads' own host, so that what it does not
/// lead through a proxy is a direct arrival.
const GATEWAY: &str = "127.0.0.1:8080";

/// A gateway with this policy.
struct Egress {
    running: Running,
    policy: PathBuf,
}

impl Egress {
    #[track_caller]
    fn start(world: &World, policy: &str, options: &[&str]) -> Self {
        let file = world.dir().join("egress.yaml");
        fs::write(&file, policy).must("write a policy");
        let running = start(world.host(), GATEWAY, &file, options);
        Self {
            running,
            policy: file,
        }
    }

    /// The lines of the log of requests.
    #[track_caller]
    fn access(&mut self) -> Vec<String> {
        self.running.stop();
        let log = self.running.stderr();
        let lines = log
            .lines()
            .filter(|line| line.contains("underpass::access"));
        lines.map(str::to_owned).collect()
    }
}

#[track_caller]
fn start(place: &Place, address: &str, policy: &Path, options: &[&str]) -> Running {
    let gateway = place
        .command(binary())
        .args(["gateway", "--listen", address]);
    let gateway = gateway.args(["--allow", "*:*", "--policy"]).arg(policy);
    let mut running = gateway.args(options).start();
    running.wait_until_listening(place, address.parse().must("read an address"));
    running
}

/// curl, not captured, with the gateway as its proxy.
#[track_caller]
fn get(world: &World, curl: Curl) -> Seen {
    let curl = curl.args(["-4", "-x", &format!("http://{GATEWAY}"), "--noproxy", ""]);
    curl.run(world.host().command("curl"))
}

/// A directory of Secrets with one, `egress`, of a user and a password.
#[track_caller]
fn secrets(world: &World, password: &str) -> String {
    let all = world.dir().join("secrets");
    let secret = all.join("egress");
    fs::create_dir_all(&secret).must("make a Secret");
    for (key, value) in [("username", "egress"), ("password", password)] {
        fs::write(secret.join(key), value).must("write a Secret");
    }
    fs::set_permissions(&secret, Permissions::from_mode(0o700)).must("hide a Secret");
    all.display().to_string()
}

/// `tunnel_policy` with more about the proxy.
fn through_proxy(port: u16, proxy: &[&str]) -> String {
    let more: String = proxy.iter().map(|line| format!("    {line}\n")).collect();
    let policy = tunnel_policy(&[]).replace("port: 3128\n", &format!("port: {port}\n"));
    policy + &more
}

const AUTHENTICATED: &str = "authentication: {credentialName: egress}";

/// What is done with one host, past the Tunnel for everything.
fn exception(host: &str, action: &str) -> String {
    let name = action.to_lowercase();
    format!(
        "---\napiVersion: underpass.dev/v1alpha1\nkind: Tunnel\nmetadata: {{name: {name}}}\n\
         spec: {{action: {action}, selector: {{matchLabels: {{rule: {name}}}}}}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: {name}, labels: {{rule: {name}}}}}\n\
         spec: {{hosts: [{host}], location: MESH_EXTERNAL, resolution: NONE, \
         ports: [{{number: 443, name: tls, protocol: TLS}}, \
         {{number: 80, name: http, protocol: HTTP}}]}}\n"
    )
}

#[test]
fn clients_get_through_squid_with_credentials_that_they_do_not_know() {
    let scene = Scene::new("chain");
    let world = &scene.world;
    // A name that only the proxy can resolve.
    let hosts = world.inet().dir().join("hosts");
    let mut hosts = File::options().append(true).open(hosts).must("open hosts");
    writeln!(hosts, "\n203.0.113.10 inside.example").must("add a name");
    let squid = Squid::start_with(
        world,
        &squid::Options {
            credentials: Some(("egress", "s3same")),
            connect_ports: &[80],
            ..squid::Options::default()
        },
    );
    let secrets = secrets(world, "s3same");
    let policy = through_proxy(3128, &[AUTHENTICATED]);
    let options = ["--secrets", &*secrets, "--log-level", "trace"];
    let mut egress = Egress::start(world, &policy, &options);

    let page = "https://site.example/page";
    get(world, scene.curl(page)).expect_ok();
    // Forwarded, and not tunnelled, as far as the client knows.
    for url in ["http://site.example/plain", "http://inside.example/there"] {
        let seen = get(world, scene.curl(url)).expect_ok();
        assert_eq!((seen.connect_status, &*seen.body), (0, Nginx::GREETING));
    }
    // The client's own do not go to Squid, which would refuse them.
    let curl = scene.curl(page).args(["--proxy-user", "some:body"]);
    get(world, curl).expect_ok();
    let logged = squid.wait_for_log(4);
    let logged: Vec<_> = logged
        .iter()
        .map(|line| (&*line.method, &*line.target, line.status, &*line.user))
        .collect();
    let to = |target| ("CONNECT", target, 200, "egress");
    let expected = [TARGET, "site.example:80", "inside.example:80", TARGET];
    assert_eq!(logged, expected.map(to));
    world.expect_no_direct_arrivals();

    // Others are taken when the Secret changes, and what Squid then says is told.
    fs::write(Path::new(&secrets).join("egress/password"), "wrong").must("write");
    egress.running.wait_for("Squid refuses", SECONDS, || {
        get(world, scene.curl(page)).connect_status == 502
    });
    let log = egress.access();
    assert_eq!(log.len(), squid.log().len(), "{log:?}");
    for part in [
        "route=\"tunnel\"",
        "policy=\"Tunnel/everything\"",
        "proxy=\"proxy.example:3128\"",
        "code=200",
    ] {
        assert!(log[0].contains(part), "{part}: {}", log[0]);
    }
    let told = log.last().expect("a request");
    assert!(told.contains("does not accept the credentials"), "{told}");
    let log = egress.running.stderr();
    // Both in Basic credentials as well.
    for secret in ["s3same", "ZWdyZXNzOnMzc2FtZQ", "ZWdyZXNzOndyb25n"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

#[test]
fn the_policy_says_what_is_tunnelled_direct_or_denied() {
    let scene = Scene::new("chain-ways");
    let world = &scene.world;
    let mut squid = Squid::start(world);
    let policy = tunnel_policy(&[])
        + &exception("other.example", "Deny")
        + &exception("v4.example", "Direct");
    let options = ["--deny", "v6.example", "--metrics-addr", "127.0.0.1:9901"];
    let mut egress = Egress::start(world, &policy, &options);
    let code = |host: &str| get(world, scene.curl(&format!("https://{host}/"))).connect_status;

    assert_eq!(code("site.example"), 200);
    assert_eq!(code("other.example"), 403);
    let plain = get(world, scene.curl("http://other.example/"));
    assert_eq!(plain.status, 403);
    assert!(plain.body.contains("Tunnel/deny"), "{plain:?}");
    // The gateway's own rules come first, and what is internal they alone keep from clients.
    for host in ["v6.example", "internal.example", "10.9.0.10", "127.0.0.1"] {
        assert_eq!(code(host), 403, "{host}");
    }
    world.expect_no_direct_arrivals();
    assert_eq!(code("v4.example"), 200);
    assert_eq!(world.direct_arrivals().len(), 1);
    assert_eq!(squid.connects(1), [TARGET]);

    let metrics = ([127, 0, 0, 1], 9901).into();
    let scrape = || underpass_tests::http::get(world.host(), metrics, "/metrics");
    egress.running.wait_for("all is counted", SECONDS, || {
        let scrape = scrape().must("scrape").body;
        [
            "gateway_routes_total{route=\"deny\"} 6",
            "gateway_routes_total{route=\"direct\"} 1",
            "gateway_routes_total{route=\"tunnel\"} 1",
            "gateway_denied_total{reason=\"policy\"} 2",
            "tunnel_requests_total{code=\"200\",policy=\"Tunnel/everything\",\
             protocol=\"http1-connect\",proxy=\"proxy.example:3128\"} 1",
            "proxy_connections_total{endpoint=\"proxy.example:3128\",proxy=\"proxy.example:3128\"} 1",
        ]
        .iter()
        .all(|sample| scrape.contains(&format!("underpass_{sample}")))
    });

    // Closed, as it is by default; then open.
    squid.stop();
    assert_eq!(code("site.example"), 502);
    assert_eq!(world.direct_arrivals().len(), 1);
    let open = tunnel_policy(&["failureMode: open"]);
    fs::write(&egress.policy, open).must("write another policy");
    egress
        .running
        .wait_for("the other is in force", SECONDS, || {
            scrape().must("scrape").body.contains("what=\"policy\"} 1")
        });
    assert_eq!(code("site.example"), 200);
    assert_eq!(world.direct_arrivals().len(), 2);
    // Also then not where the rules do not allow it.
    assert_eq!(code("v6.example"), 403);

    // A bad one changes nothing.
    fs::write(&egress.policy, "kind: Tunnel\n").must("write a bad policy");
    egress.running.wait_for("the bad one is told", SECONDS, || {
        scrape()
            .must("scrape")
            .body
            .contains("result=\"failure\",what=\"policy\"")
    });
    assert_eq!(code("site.example"), 200);
}

#[test]
fn it_speaks_tls_to_the_proxy_and_to_the_target() {
    let stage = Stage::new("chain-tls");
    let world = stage.world();
    let credentials = Credentials::Basic("egress", "s3same");
    let options = Options {
        port: 3129,
        security: Security::Mutual(&stage.proxy, &stage.clients),
        credentials,
    };
    let apache = apache::start(world, &options);
    let tls = format!(
        "tls: {{mode: MUTUAL, caCertificates: {}, clientCertificate: {}, privateKey: {}}}",
        stage.scene.pki.ca().display(),
        stage.client.certificate.display(),
        stage.client.key.display(),
    );
    // Plain HTTP to the site becomes HTTPS, as a DestinationRule has it.
    let site = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: site}}\n\
         spec: {{hosts: [site.example], location: MESH_EXTERNAL, resolution: NONE, \
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 443}}]}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: site}}\n\
         spec: {{host: site.example, trafficPolicy: {{tls: {{mode: SIMPLE, \
         caCertificates: {}}}}}}}\n",
        stage.scene.pki.ca().display(),
    );
    let policy = through_proxy(3129, &[AUTHENTICATED, &tls]) + &site;
    let secrets = secrets(world, "s3same");
    let _egress = Egress::start(world, &policy, &["--secrets", &secrets]);
    get(world, stage.scene.curl("https://site.example/page")).expect_ok();
    let seen = get(world, Curl::get("http://site.example/plain")).expect_ok();
    assert_eq!((seen.connect_status, &*seen.body), (0, Nginx::GREETING));
    let first = stage.tunnel("HTTP/1.1", &options, credentials);
    let logged = apache.wait_for_log(2);
    assert_eq!(logged[0], first);
    assert_eq!((&*logged[1].target, logged[1].status), (TARGET, 200));
    let requests = stage.scene.nginx.requests();
    let plain = requests.last().expect("a request");
    assert_eq!((&*plain.path, &*plain.tls), ("/plain", "TLSv1.3"));
    assert_eq!(
        (&*plain.sni, &*plain.host),
        ("site.example", "site.example")
    );
    world.expect_no_direct_arrivals();
}

#[test]
fn gateways_lead_to_gateways_but_not_in_a_circle() {
    let stage = Stage::new("chain-circle");
    let world = stage.world();
    let (certificate, key) = (
        stage.proxy.certificate.display().to_string(),
        stage.proxy.key.display().to_string(),
    );
    let far = SocketAddr::from((PROXY_V4, 3130)).to_string();
    let tls = ["--tls-cert", &*certificate, "--tls-key", &*key];
    let far_policy = world.dir().join("far.yaml");
    // To nowhere yet: only what is named goes on.
    fs::write(&far_policy, tunnel_policy(&["noProxy: [site.example]"])).must("write a policy");
    let mut other = start(world.inet(), &far, &far_policy, &tls);
    let simple = format!(
        "tls: {{mode: SIMPLE, caCertificates: {}}}",
        stage.scene.pki.ca().display()
    );
    let policy = through_proxy(3130, &[&simple]);
    let mut egress = Egress::start(world, &policy, &["--listen", "0.0.0.0:8081"]);
    get(world, stage.scene.curl("https://site.example/")).expect_ok();

    // The far one leads back, and then the near one to itself.
    let back = |host: &str| {
        format!(
            "apiVersion: underpass.dev/v1alpha1\nkind: Tunnel\nmetadata: {{name: back}}\n\
             spec: {{proxy: {{host: {host}, port: 8081}}}}\n"
        )
    };
    fs::write(&far_policy, back("198.51.100.2")).must("write a policy");
    let code = || get(world, stage.scene.curl("https://site.example/")).connect_status;
    other.wait_for("the circle is told", SECONDS, || code() == 508);
    fs::write(&egress.policy, back("127.0.0.1")).must("write a policy");
    other.stop();
    egress
        .running
        .wait_for("it is told of its own", SECONDS, || code() == 508);
    let log = egress.access();
    let of_circle = log.iter().filter(|line| line.contains("in a circle"));
    assert!(of_circle.count() >= 2, "{log:?}");
    world.expect_no_direct_arrivals();
}
