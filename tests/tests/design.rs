//! The configurations of the design, as `deploy/examples/design` has them, each with a real proxy:
//! what the proxy was asked for, who was reached, and which TLS lay on each leg.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use underpass_tests::addr::{HOST_V4, PROXY_V4, PROXY_V6, SITE_V4, SITE_V6};
use underpass_tests::agent::{Agent, Endpoints, underpass};
use underpass_tests::curl::{Curl, Seen};
use underpass_tests::pki::{Issued, Pki, Request};
use underpass_tests::servers::apache;
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::envoy::{self, Versions};
use underpass_tests::servers::forward::{
    Credentials, ForwardProxy, Handshake, Logged, Options, Security,
};
use underpass_tests::servers::nginx::{self, Nginx};
use underpass_tests::{Must as _, World};

/// The forward proxy of all of them.
const PROXY: &str = "external-forward-proxy.net";

/// What the name server of these tests knows.
const NAMES: [(&str, &[IpAddr]); 5] = [
    (PROXY, &[IpAddr::V4(PROXY_V4), IpAddr::V6(PROXY_V6)]),
    ("google.com", SITE),
    ("www.google.com", SITE),
    ("mail.google.com", SITE),
    ("www.example.org", &[IpAddr::V4(SITE_V4)]),
];

const SITE: &[IpAddr] = &[IpAddr::V4(SITE_V4), IpAddr::V6(SITE_V6)];

/// What the Secrets beside the examples hold.
const TOKEN: Credentials<'_> = Credentials::Bearer("replace-with-the-token");
const PASSWORD: Credentials<'_> = Credentials::Basic("workloads", "replace-with-the-password");

/// A world in which google.com and the proxy are what the design says they are.
struct Design {
    nginx: Nginx,
    _dns: Dns,
    pki: Pki,
    /// The proxy's certificate.
    identity: Issued,
    world: World,
}

impl Design {
    #[track_caller]
    fn new(name: &str) -> Self {
        let world = World::new(name);
        let dns = Dns::start_with(&world, &NAMES, 0);
        let pki = Pki::new(&world);
        let issue = |name: &str, names: &[&str]| {
            pki.authority().issue(&world, name, &Request::server(names))
        };
        let identity = issue("proxy", &[&format!("DNS:{PROXY}")]);
        let targets = NAMES.iter().filter(|(name, _)| *name != PROXY);
        let targets: Vec<String> = targets.map(|(name, _)| format!("DNS:{name}")).collect();
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        let options = nginx::Options {
            identity: &issue("targets", &targets),
            clients: None,
        };
        let nginx = Nginx::start_with(&world, &options);
        Self {
            nginx,
            _dns: dns,
            pki,
            identity,
            world,
        }
    }

    /// An agent that trusts the authority of these tests as whom the system trusts.
    #[track_caller]
    fn agent(&self, policy: &str) -> Agent {
        let program = underpass(&self.world)
            .in_cgroup(self.world.services())
            .env("SSL_CERT_FILE", self.pki.ca());
        let mut agent = Agent::launch(program, &self.world, policy, &[], Endpoints::default());
        agent.wait_until_ready();
        agent
    }

    /// How the proxy listens where a DestinationRule asks for TLS to it.
    fn tls(&self) -> Options<'_> {
        Options {
            security: Security::Tls(&self.identity),
            ..Options::default()
        }
    }

    /// A request by a workload, over IPv4.
    #[track_caller]
    fn get(&self, url: &str) -> Seen {
        self.get_with(url, &["-4"])
    }

    #[track_caller]
    fn get_with(&self, url: &str, options: &[&str]) -> Seen {
        let curl = Curl::get(url)
            .trusting(&self.pki.ca())
            .args(options.iter().copied());
        let program = self.world.host().command("curl");
        curl.run(program.in_cgroup(self.world.workload()))
    }

    /// The one request that the target has had since `before` of them.
    #[track_caller]
    fn reached(&self, before: usize) -> nginx::Request {
        let requests = self.nginx.requests();
        assert_eq!(requests.len(), before + 1, "{requests:?}");
        let request = requests[before].clone();
        assert_ne!(
            request.peer,
            HOST_V4.to_string(),
            "the target sees the proxy"
        );
        request
    }

    /// What the proxy is to log of a tunnel to `target`.
    #[track_caller]
    fn connect(&self, target: &str, options: &Options<'_>) -> Logged {
        Logged {
            method: "CONNECT".into(),
            target: target.into(),
            protocol: "HTTP/1.1".into(),
            status: 200,
            authorization: options.credentials.header(&self.world).unwrap_or_default(),
            tls: options.security.identity().map(|_| Handshake {
                version: "TLSv1.3".into(),
                server_name: PROXY.into(),
                client: String::new(),
                resumed: false,
            }),
        }
    }
}

fn folder() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.join("../deploy/examples/design")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).must(format_args!("read {}", path.display()))
}

/// An example, with what it leaves to exist elsewhere.
fn example(name: &str) -> String {
    let file = format!("{name}.yaml");
    let with = folder().join("with").join(&file);
    let mut text = read(&folder().join(&file));
    if with.exists() {
        text.push_str("---\n");
        text.push_str(&read(&with));
    }
    text
}

/// The documents of `text` for which `keep` holds.
fn only(text: &str, keep: impl Fn(&str) -> bool) -> String {
    let documents: Vec<&str> = text.split("---\n").filter(|text| keep(text)).collect();
    documents.join("---\n")
}

fn is_destination_rule(document: &str) -> bool {
    document.contains("kind: DestinationRule")
}

/// Sessions with the proxy may go on from one connection to the next.
fn fresh(mut logged: Vec<Logged>) -> Vec<Logged> {
    for tls in logged.iter_mut().filter_map(|logged| logged.tls.as_mut()) {
        tls.resumed = false;
    }
    logged
}

#[test]
fn every_example_is_valid_with_what_it_leaves_to_exist_elsewhere() {
    let world = World::new("design-check");
    let mut checked = 0;
    for entry in fs::read_dir(folder()).must("list the examples") {
        let path = entry.must("list").path();
        if path.is_dir() {
            continue;
        }
        let name = path.file_name().unwrap_or_default();
        let with = folder().join("with").join(name);
        let check = underpass(&world).arg("check").arg(&path);
        let check = check.args(with.exists().then_some(with));
        let done = check.run(Duration::from_secs(20));
        assert_eq!(done.status.code(), Some(0), "{}: {done:?}", path.display());
        let words = (done.stdout.as_str(), done.stderr.as_str());
        assert_eq!(words, ("", ""), "{}", path.display());
        checked += 1;
    }
    assert_eq!(checked, 8, "one file for each configuration of the design");
}

/// The workload speaks TLS to www.google.com, which passes through; the proxy is spoken to by TLS.
#[test]
fn virtual_service_of_today() {
    let design = Design::new("design-virtual-service");
    let options = design.tls();
    let proxy = apache::start(&design.world, &options);
    let agent = design.agent(&example("virtual-service"));

    let seen = design.get("https://www.google.com/page").expect_ok();
    assert_eq!(seen.body, Nginx::GREETING);
    assert_eq!(
        seen.remote_ip,
        SITE_V4.to_string(),
        "the original destination"
    );
    assert_eq!(seen.verification, 0, "the target's own certificate");
    let expected = design.connect("www.google.com:443", &options);
    assert_eq!(proxy.wait_for_log(1), [expected]);
    let request = design.reached(0);
    assert_eq!(
        (request.sni.as_str(), request.tls.as_str()),
        ("www.google.com", "TLSv1.3")
    );
    let record = agent.wait_for_access("the request", |_| true);
    let route = "VirtualService/route-outbound-traffic-to-google-via-external-forward-proxy";
    assert_eq!(record.text("policy"), route);
    design.world.expect_no_direct_arrivals();
}

/// A workload that speaks plain HTTP is given TLS inside the tunnel; one that speaks TLS is not.
/// The proxy stands beside `tunnel`, as it is printed, or inside.
#[test]
fn destination_rule_with_proxy() {
    let design = Design::new("design-destination-rule");
    let options = Options {
        credentials: TOKEN,
        ..design.tls()
    };
    let proxy = apache::start(&design.world, &options);
    let expected = design.connect("www.google.com:443", &options);
    let mut asked = Vec::new();
    for name in ["destination-rule", "destination-rule-nested"] {
        let _agent = design.agent(&example(name));
        // The one host that the tunnel leads to, whichever of the domain is meant.
        for url in ["http://www.google.com/plain", "https://www.google.com/tls"] {
            let before = asked.len();
            let seen = design.get(url).expect_ok();
            assert_eq!(seen.body, Nginx::GREETING);
            assert_eq!(seen.verification, 0);
            let request = design.reached(before);
            assert_eq!(request.port, "443", "{url}");
            assert_eq!(request.sni, "www.google.com", "{url}");
            assert_eq!(request.host, "www.google.com", "{url}");
            assert_eq!(request.tls, "TLSv1.3", "{url}");
            asked.push(expected.clone());
            assert_eq!(fresh(proxy.wait_for_log(asked.len())), asked, "{url}");
        }
    }
    design.world.expect_no_direct_arrivals();
}

/// TLS originated by the agent is verified: a target that cannot show who it is gets nothing.
#[test]
fn originated_tls_is_verified() {
    let design = Design::new("design-origination");
    let options = Options {
        credentials: TOKEN,
        ..design.tls()
    };
    let proxy = apache::start(&design.world, &options);
    let elsewhere = example("destination-rule").replace("sni: www.google.com", "sni: google.net");
    let agent = design.agent(&elsewhere);

    let seen = design.get("http://www.google.com/");
    assert_eq!(seen.status, 502, "{seen:?}");
    assert!(
        seen.body.contains("TLS with www.google.com:443"),
        "{seen:?}"
    );
    assert_eq!(proxy.wait_for_log(1)[0].target, "www.google.com:443");
    assert_eq!(design.nginx.requests(), []);
    let record = agent.wait_for_access("the failure", |_| true);
    assert!(record.text("error").contains("google.net"), "{record:?}");
    design.world.expect_no_direct_arrivals();
}

/// Everything external, declared or not, under the name that each connection tells; TLS and the
/// protocol that a workload and its target agree on are left to them.
#[test]
fn tunnel_for_all_services() {
    let design = Design::new("design-all");
    let options = design.tls();
    let proxy = apache::start(&design.world, &options);
    let _agent = design.agent(&example("tunnel-for-all"));
    everything_goes_through(&design, &proxy, &options);
}

/// The same without the DestinationRule: TLS to the proxy is spoken only where one asks for it.
#[test]
fn tunnel_for_all_services_through_a_proxy_without_tls() {
    let design = Design::new("design-all-plain");
    let options = Options::default();
    let proxy = apache::start(&design.world, &options);
    let all = example("tunnel-for-all");
    let plain = only(&all, |document| !is_destination_rule(document));
    assert_ne!(plain, all);
    let _agent = design.agent(&plain);
    everything_goes_through(&design, &proxy, &options);
}

#[track_caller]
fn everything_goes_through(design: &Design, proxy: &ForwardProxy, options: &Options<'_>) {
    // What is asked for, how, the target, the SNI that reaches it, and what ALPN agrees on there.
    let cases = [
        (
            "https://www.google.com/",
            "--http2",
            "www.google.com:443",
            "www.google.com",
            "h2",
        ),
        (
            "https://google.com/",
            "--http1.1",
            "google.com:443",
            "google.com",
            "http/1.1",
        ),
        (
            "http://www.google.com/",
            "--http1.1",
            "www.google.com:80",
            "-",
            "",
        ),
        (
            "https://www.example.org/",
            "--http2",
            "www.example.org:443",
            "www.example.org",
            "h2",
        ),
    ];
    let mut asked = Vec::new();
    for (number, (url, version, target, sni, alpn)) in cases.into_iter().enumerate() {
        let seen = design.get_with(url, &["-4", version]).expect_ok();
        assert_eq!(seen.verification, 0, "{url}");
        let request = design.reached(number);
        assert_eq!(
            (request.sni.as_str(), request.alpn.as_str()),
            (sni, alpn),
            "{url}"
        );
        asked.push(design.connect(target, options));
        assert_eq!(fresh(proxy.wait_for_log(asked.len())), asked, "{url}");
    }
    design.world.expect_no_direct_arrivals();
}

/// The other protocols that the comment in the example names.
#[test]
fn tunnel_for_all_services_over_http2() {
    let design = Design::new("design-http2");
    let plain = only(&example("tunnel-for-all"), |document| {
        !is_destination_rule(document)
    });
    let proxy = envoy::start(&design.world, &Options::default(), Versions::Http2);
    for (number, (protocol, method)) in [("HTTP2-CONNECT", "CONNECT"), ("HTTP2-POST", "POST")]
        .into_iter()
        .enumerate()
    {
        let policy = plain.replace("protocol: HTTP-CONNECT", &format!("protocol: {protocol}"));
        let agent = design.agent(&policy);
        design.get("https://www.google.com/").expect_ok();
        // A stream may be logged only when its connection ends.
        drop(agent);
        let expected = Logged {
            method: method.into(),
            protocol: "HTTP/2".into(),
            ..design.connect("www.google.com:443", &Options::default())
        };
        assert_eq!(proxy.wait_for_log(number + 1)[number], expected);
        assert_eq!(design.reached(number).sni, "www.google.com");
    }
    design.world.expect_no_direct_arrivals();
}

/// Only services with the label, under the first of their hosts.
#[test]
fn tunnel_with_selector() {
    let design = Design::new("design-selector");
    let options = Options::default();
    let proxy = apache::start(&design.world, &options);
    let agent = design.agent(&example("tunnel-with-selector"));

    for (number, name) in ["www.google.com", "google.com"].into_iter().enumerate() {
        design.get(&format!("https://{name}/")).expect_ok();
        let expected = design.connect("google.com:443", &options);
        assert_eq!(proxy.wait_for_log(number + 1)[number], expected);
        assert_eq!(design.reached(number).sni, name, "TLS passes through");
    }
    design.world.expect_no_direct_arrivals();
    let record = agent.wait_for_access("the first", |_| true);
    let policy = "Tunnel/tunnel-traffic-to-google-via-external-forward-proxy";
    assert_eq!(record.text("policy"), policy);

    // Neither another service nor another port of this one is selected.
    for (number, url) in ["https://www.example.org/", "http://www.google.com/"]
        .into_iter()
        .enumerate()
    {
        design.get(url).expect_ok();
        assert_eq!(design.world.direct_arrivals().len(), number + 1, "{url}");
    }
    assert_eq!(proxy.log().len(), 2);
}

/// The name that a connection itself tells, and none without one.
#[test]
fn auto_sni() {
    let design = Design::new("design-auto-sni");
    let options = Options::default();
    let proxy = apache::start(&design.world, &options);
    let agent = design.agent(&example("auto-sni"));

    design.get("https://mail.google.com/").expect_ok();
    design.get("http://mail.google.com/").expect_ok();
    let nameless = design.get_with("https://203.0.113.10/", &["--insecure"]);
    assert_ne!(nameless.exit, 0, "{nameless:?}");
    let expected = ["mail.google.com:443", "mail.google.com:80"];
    let expected = expected.map(|target| design.connect(target, &options));
    assert_eq!(proxy.wait_for_log(2), expected);
    assert_eq!(design.nginx.requests()[0].sni, "mail.google.com");
    let denied = agent.wait_for_access("the nameless one", |r| r.text("decision") == "deny");
    assert_eq!(denied.text("flags"), "DENY");
    design.world.expect_no_direct_arrivals();
}

/// The address that the workload connected to, whatever name it tells.
#[test]
fn original_dst() {
    let design = Design::new("design-original-dst");
    let options = Options::default();
    let proxy = apache::start(&design.world, &options);
    let _agent = design.agent(&example("original-dst"));

    let cases = [
        ("-4", format!("{SITE_V4}:443")),
        ("-6", format!("[{SITE_V6}]:443")),
    ];
    for (number, (family, target)) in cases.into_iter().enumerate() {
        design
            .get_with("https://www.google.com/", &[family])
            .expect_ok();
        let expected = design.connect(&target, &options);
        assert_eq!(proxy.wait_for_log(number + 1)[number], expected);
        assert_eq!(design.nginx.requests()[number].sni, "www.google.com");
    }
    design.world.expect_no_direct_arrivals();
}

/// Proxy-Authorization from a Secret; it is shown to nobody else.
#[test]
fn authentication() {
    let design = Design::new("design-authentication");
    let options = Options {
        credentials: PASSWORD,
        ..Options::default()
    };
    let proxy = apache::start(&design.world, &options);
    let mut agent = design.agent(&example("authentication"));

    design.get("https://www.google.com/").expect_ok();
    let expected = design.connect("www.google.com:443", &options);
    assert!(expected.authorization.starts_with("Basic "), "{expected:?}");
    let secret = expected.authorization["Basic ".len()..].to_owned();
    assert_eq!(proxy.wait_for_log(1), [expected]);
    design.reached(0);
    let dump = agent.admin("/config_dump").to_string();
    let log = agent.process().stderr();
    for shown in [&dump, &log] {
        assert!(shown.contains(PROXY), "{shown}");
        for hidden in [secret.as_str(), "replace-with-the-password"] {
            assert!(!shown.contains(hidden), "{shown}");
        }
    }
    design.world.expect_no_direct_arrivals();
}

/// The recipe of today, and the Tunnel that says the same without a VirtualService.
#[test]
fn recipe_of_today_and_tunnel_ask_for_the_same() {
    let design = Design::new("design-same");
    let options = design.tls();
    let recipe = example("virtual-service");
    // TLS to the proxy is a matter of its DestinationRule in both.
    let tls = only(&example("tunnel-for-all"), is_destination_rule);
    let tunnel = format!("{}---\n{tls}", as_tunnel(&recipe));
    ask_for_the_same(&design, &options, [&recipe, &tunnel]);
}

/// The same through a proxy without TLS.
#[test]
fn recipe_of_today_and_tunnel_ask_for_the_same_without_tls() {
    let design = Design::new("design-same-plain");
    let recipe = example("virtual-service");
    let tls = format!("    tls:\n      mode: SIMPLE\n      sni: {PROXY}\n");
    let plain = recipe.replace(&tls, "");
    assert_ne!(plain, recipe);
    let tunnel = as_tunnel(&recipe);
    ask_for_the_same(&design, &Options::default(), [&plain, &tunnel]);
}

/// The ServiceEntries of the recipe, and a Tunnel for the one that is no proxy.
fn as_tunnel(recipe: &str) -> String {
    let entries = only(recipe, |document| document.contains("kind: ServiceEntry"));
    let labelled = entries.replace(
        "  name: google\n",
        "  name: google\n  labels: {via: proxy}\n",
    );
    assert_ne!(labelled, entries);
    format!(
        "{labelled}---\n\
         apiVersion: underpass.dev/v1alpha1\n\
         kind: Tunnel\n\
         metadata: {{name: google}}\n\
         spec:\n\
         \x20 selector: {{matchLabels: {{via: proxy}}}}\n\
         \x20 proxy: {{host: {PROXY}}}\n"
    )
}

#[track_caller]
fn ask_for_the_same(design: &Design, options: &Options<'_>, policies: [&str; 2]) {
    let proxy = apache::start(&design.world, options);
    for (number, policy) in policies.into_iter().enumerate() {
        let _agent = design.agent(policy);
        design.get("https://www.google.com/page").expect_ok();
        let logged = fresh(proxy.wait_for_log(number + 1));
        let expected = design.connect("www.google.com:443", options);
        assert_eq!(logged[number], expected, "{policy}");
        assert_eq!(design.reached(number).sni, "www.google.com");
    }
    design.world.expect_no_direct_arrivals();
}
