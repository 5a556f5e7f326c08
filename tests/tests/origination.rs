//! TLS that the agent speaks to targets, as their DestinationRules say: for each port of a service,
//! under which name, who must be at the other end, and as whom.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use underpass_tests::addr::OTHER_V4;
use underpass_tests::agent::{Agent, tunnel_policy, underpass};
use underpass_tests::curl::Seen;
use underpass_tests::pki::{Authority, Issued, Request};
use underpass_tests::process::Running;
use underpass_tests::servers::squid::{Options, Squid};
use underpass_tests::{Must as _, Scene};

const MINUTE: Duration = Duration::from_secs(60);

/// Where `who.py` listens without TLS; with it, and with client certificates, one and two further.
const WHO: u16 = 9000;

/// The ports of the service, where each leads, its protocol, and the TLS of its own in the
/// DestinationRule.
const PORTS: [(u16, u16, &str, &str); 8] = [
    (8000, WHO, "HTTP", ""),
    (
        8001,
        WHO + 1,
        "HTTP",
        "mode: SIMPLE, sni: mail.example, caCertificates: CA.PEM",
    ),
    (
        8002,
        WHO + 1,
        "HTTP",
        "mode: SIMPLE, subjectAltNames: [mail.example], caCertificates: CA.PEM",
    ),
    (
        8003,
        WHO + 1,
        "HTTP",
        "mode: SIMPLE, subjectAltNames: [nobody.example], caCertificates: CA.PEM",
    ),
    (
        8004,
        WHO + 2,
        "HTTP",
        "mode: MUTUAL, credentialName: to-target",
    ),
    (
        8005,
        WHO + 1,
        "HTTP",
        "mode: SIMPLE, insecureSkipVerify: true",
    ),
    (8006, WHO + 1, "HTTP", "mode: SIMPLE"),
    (8443, WHO + 1, "TLS", "mode: SIMPLE, caCertificates: CA.PEM"),
];

struct Behind {
    agent: Agent,
    squid: Squid,
    _who: Running,
    /// The policy.
    file: PathBuf,
    scene: Scene,
}

impl Behind {
    #[track_caller]
    fn new(name: &str) -> Self {
        let scene = Scene::new(name);
        let options = Options {
            connect_ports: &[WHO, WHO + 1, WHO + 2],
            ..Options::default()
        };
        let squid = Squid::start_with(&scene.world, &options);
        let clients = Authority::new(&scene.world, "clients");
        let own = clients.issue(&scene.world, "own", &Request::client("to-target"));
        let inet = scene.world.inet();
        let mut who = inet
            .python("who")
            .args([OTHER_V4.to_string(), WHO.to_string()])
            .args([scene.pki.certificate(), scene.pki.key()])
            .arg(clients.certificate())
            .start();
        for port in WHO..=WHO + 2 {
            who.wait_until_listening(inet, SocketAddr::from((OTHER_V4, port)));
        }
        let policy = policy(&own, &scene.pki.ca());
        let file = scene.world.dir().join("origination.yaml");
        fs::write(&file, &policy).must("write the policy");
        let agent = Agent::start(&scene.world, &policy);
        Self {
            agent,
            squid,
            _who: who,
            file,
            scene,
        }
    }

    #[track_caller]
    fn get(&self, scheme: &str, port: u16) -> Seen {
        let url = format!("{scheme}://other.example:{port}/");
        self.scene
            .captured(&self.scene.curl(&url).args(["-4", "--http1.1"]))
    }
}

/// One DestinationRule for all ports; what most of them have is without TLS.
fn policy(own: &Issued, ca: &Path) -> String {
    let of_service = |(port, target, protocol, _): &(u16, u16, &str, &str)| {
        format!(
            "  - {{number: {port}, name: p{port}, protocol: {protocol}, targetPort: {target}}}\n"
        )
    };
    let of_rule = |(port, _, _, tls): &(u16, u16, &str, &str)| match *tls {
        "" => String::new(),
        tls => format!("    - {{port: {{number: {port}}}, tls: {{{tls}}}}}\n"),
    };
    let pem = |file: &Path| {
        let text = fs::read_to_string(file).must("read PEM");
        text.replace('\n', "\n    ")
    };
    let text = format!(
        "{}---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: other}}
spec:
  hosts: [other.example]
  addresses: [{OTHER_V4}]
  location: MESH_EXTERNAL
  resolution: DNS
  ports:
{}---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: other}}
spec:
  host: other.example
  trafficPolicy:
    tls: {{mode: DISABLE}}
    portLevelSettings:
{}---
apiVersion: v1
kind: Secret
metadata: {{name: to-target}}
stringData:
  tls.crt: |
    {}
  tls.key: |
    {}
  ca.crt: |
    {}
",
        tunnel_policy(&[]),
        PORTS.iter().map(of_service).collect::<String>(),
        PORTS.iter().map(of_rule).collect::<String>(),
        pem(&own.certificate),
        pem(&own.key),
        pem(ca),
    );
    text.replace("CA.PEM", &ca.display().to_string())
}

#[test]
fn each_port_has_its_own_tls() {
    let mut behind = Behind::new("origination");
    for (scheme, port, seen) in [
        ("http", 8000, "- - -\n"),
        ("http", 8001, "TLSv1.3 mail.example -\n"),
        ("http", 8002, "TLSv1.3 other.example -\n"),
        ("http", 8004, "TLSv1.3 other.example to-target\n"),
        ("http", 8005, "TLSv1.3 other.example -\n"),
        // The workload's own, and no other inside or around it.
        ("https", 8443, "TLSv1.3 other.example -\n"),
    ] {
        let got = behind.get(scheme, port).expect_ok();
        assert_eq!(got.body, seen, "{port}: {}", behind.agent.tails());
    }
    for (port, why) in [
        (8003, "nobody.example"),
        // Nobody of the system's authorities vouches for it.
        (8006, "none of the CAs"),
    ] {
        let got = behind.get("http", port);
        assert_eq!(got.status, 502, "{port}: {got:?}");
        assert!(got.body.contains("TLS with other.example:9001"), "{got:?}");
        assert!(got.body.contains(why), "{port}: {got:?}");
    }
    let asked = behind.squid.connects(8);
    let expected = [
        WHO,
        WHO + 1,
        WHO + 1,
        WHO + 2,
        WHO + 1,
        WHO + 1,
        WHO + 1,
        WHO + 1,
    ];
    assert_eq!(asked, expected.map(|port| format!("other.example:{port}")));
    let records = behind.agent.wait_for_accesses(8);
    let flags: Vec<String> = records.iter().map(|one| one.text("flags")).collect();
    assert_eq!(flags, ["", "", "", "", "", "", "UF", "UF"], "{records:?}");
    behind.scene.world.expect_no_direct_arrivals();

    // That one of them verifies nobody is told at the start, and by `check`.
    let told = "spec.trafficPolicy.portLevelSettings[4].tls.insecureSkipVerify: no certificate is \
                verified: everybody on the way can read and change what is sent";
    let said = behind.agent.process().wait_for_logged(told);
    assert_eq!(said.matches(told).count(), 1, "{said}");
    let check = underpass(&behind.scene.world)
        .arg("check")
        .arg(&behind.file);
    let said = check.run(MINUTE).expect_success();
    let said = said.stdout + &said.stderr;
    assert_eq!(said.matches(told).count(), 1, "{said}");
}
