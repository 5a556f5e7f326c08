//! The modes of TLS that DestinationRules have, DISABLE, SIMPLE and MUTUAL, for a target and for the
//! proxy on the way to it: each with each, and what either saw of who asks.

use std::net::SocketAddr;
use std::time::Duration;

use underpass_tests::addr::OTHER_V4;
use underpass_tests::agent::Agent;
use underpass_tests::pki::{Issued, Request};
use underpass_tests::process::Running;
use underpass_tests::servers::apache;
use underpass_tests::servers::forward::{Credentials, ForwardProxy, Options, Security};
use underpass_tests::servers::policy::policy;
use underpass_tests::servers::stage::Stage;

const MINUTE: Duration = Duration::from_secs(60);

/// Where `who.py` listens without TLS; with it, and with client certificates, one and two further.
const WHO: u16 = 9000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Disable,
    Simple,
    Mutual,
}

const MODES: [Mode; 3] = [Mode::Disable, Mode::Simple, Mode::Mutual];

impl Mode {
    /// Where the target wants just this.
    fn port(self) -> u16 {
        WHO + self as u16
    }

    /// `tls` of a DestinationRule.
    fn settings(self, stage: &Stage, own: &Issued) -> String {
        let ca = stage.scene.pki.ca();
        let ca = ca.display();
        match self {
            Self::Disable => "{ mode: DISABLE }".to_owned(),
            Self::Simple => format!("{{ mode: SIMPLE, caCertificates: {ca} }}"),
            Self::Mutual => format!(
                "{{ mode: MUTUAL, caCertificates: {ca}, clientCertificate: {}, privateKey: {} }}",
                own.certificate.display(),
                own.key.display()
            ),
        }
    }

    /// What the target must say.
    fn seen(self) -> &'static str {
        match self {
            Self::Disable => "- - -\n",
            Self::Simple => "TLSv1.3 other.example -\n",
            Self::Mutual => "TLSv1.3 other.example to-target\n",
        }
    }
}

/// One mode of the proxy, with targets of every mode behind it.
struct Modes {
    proxy: ForwardProxy,
    who: Running,
    own: Issued,
    mode: Mode,
    stage: Stage,
}

impl Modes {
    #[track_caller]
    fn new(mode: Mode) -> Self {
        let stage = Stage::new(&format!("modes-{mode:?}").to_lowercase());
        let proxy = apache::start(stage.world(), &options(&stage, mode));
        let client = Request::client("to-target");
        let own = stage.clients.issue(stage.world(), "to-target", &client);
        let inet = stage.world().inet();
        let mut who = inet
            .python("who")
            .args([OTHER_V4.to_string(), WHO.to_string()])
            .args([stage.scene.pki.certificate(), stage.scene.pki.key()])
            .arg(stage.clients.certificate())
            .start();
        for target in MODES {
            who.wait_until_listening(inet, SocketAddr::from((OTHER_V4, target.port())));
        }
        Self {
            proxy,
            who,
            own,
            mode,
            stage,
        }
    }

    /// An agent with this mode for a target that wants that of `port`.
    #[track_caller]
    fn agent(&self, target: Mode, port: u16) -> Agent {
        let stage = &self.stage;
        let proxy = options(stage, self.mode);
        let mut policy = policy(stage, "HTTP-CONNECT", &proxy, Credentials::None);
        if self.mode == Mode::Disable {
            policy += &rule("proxy", "proxy.example", "{ mode: DISABLE }");
        }
        policy += &format!(
            "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: other}}
spec:
  hosts: [other.example]
  addresses: [{OTHER_V4}]
  location: MESH_EXTERNAL
  resolution: DNS
  ports:
  - {{number: 80, name: http, protocol: HTTP, targetPort: {port}}}
  - {{number: 7, name: tcp, protocol: TCP, targetPort: {port}}}
"
        );
        policy += &rule("other", "other.example", &target.settings(stage, &self.own));
        Agent::start(stage.world(), &policy)
    }

    /// What the target says to HTTP, with its status, and what it says to bytes.
    #[track_caller]
    fn ask(&self) -> (u64, String, String) {
        let scene = &self.stage.scene;
        let seen = scene.captured(&scene.curl("http://other.example/").args(["-4"]));
        let talk = scene
            .program("talk")
            .args(["203.0.113.11", "7", r"who goes there?\n"]);
        let said = talk.run(MINUTE).expect_success().stdout;
        let said = said.trim().splitn(4, ' ').collect::<Vec<_>>();
        let said = format!("{} {}", said[1], said.get(3).copied().unwrap_or_default());
        (seen.status, seen.body, said)
    }

    #[track_caller]
    fn with_every_target(&self) {
        for target in MODES {
            let agent = self.agent(target, target.port());
            let before = self.proxy.log().len();
            let (status, body, said) = self.ask();
            let which = format!("{target:?} through {:?}", self.mode);
            let seen = target.seen();
            assert_eq!(
                (status, body.as_str()),
                (200, seen),
                "{which}\n{}",
                agent.tails()
            );
            assert_eq!(
                said,
                format!("data b'{}\\n'", seen.trim()),
                "{which}\n{}",
                agent.tails()
            );
            // Of bytes Apache and Python do not say by TLS that they have ended, which is told.
            let records = agent.wait_for_accesses(2);
            assert_eq!(records[0].text("flags"), "", "{records:?}");
            assert_eq!(records[1].text("tunnel.code"), "200", "{records:?}");

            // The proxy sees its own kind of TLS, and of the target's only the name.
            let mut expected = self.stage.tunnel(
                "HTTP/1.1",
                &options(&self.stage, self.mode),
                Credentials::None,
            );
            expected.target = format!("other.example:{}", target.port());
            let mut log = self.proxy.wait_for_log(before + 2).split_off(before);
            for one in log.iter_mut().filter_map(|one| one.tls.as_mut()) {
                one.resumed = false;
            }
            assert_eq!(log, [expected.clone(), expected], "{which}");
        }
        self.stage.world().expect_no_direct_arrivals();
    }

    /// A target that wants more than its rule gives serves nobody, and nobody is told that it did.
    #[track_caller]
    fn with_too_little(&self) {
        for (target, wants) in [
            (Mode::Disable, Mode::Simple),
            (Mode::Disable, Mode::Mutual),
            (Mode::Simple, Mode::Disable),
            (Mode::Simple, Mode::Mutual),
            (Mode::Mutual, Mode::Disable),
        ] {
            let agent = self.agent(target, wants.port());
            let (status, _, said) = self.ask();
            let which = format!("{target:?} where {wants:?} is wanted: {status} {said}");
            assert_eq!(status, 502, "{which}\n{}", agent.tails());
            assert!(!said.contains("TLSv"), "{which}");
            let records = agent.wait_for_accesses(2);
            assert_ne!(records[0].text("flags"), "", "{which}: {records:?}");
        }
        assert!(self.who.stdout().lines().count() > 0, "it complained");
    }
}

/// How the proxy listens.
fn options(stage: &Stage, mode: Mode) -> Options<'_> {
    Options {
        security: match mode {
            Mode::Disable => Security::Plain,
            Mode::Simple => Security::Tls(&stage.proxy),
            Mode::Mutual => Security::Mutual(&stage.proxy, &stage.clients),
        },
        ..Options::default()
    }
}

fn rule(name: &str, host: &str, tls: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}}}
spec: {{host: {host}, trafficPolicy: {{tls: {tls}}}}}
"
    )
}

#[test]
fn through_a_proxy_without_tls() {
    let modes = Modes::new(Mode::Disable);
    modes.with_every_target();
    modes.with_too_little();
}

#[test]
fn through_a_proxy_with_tls() {
    Modes::new(Mode::Simple).with_every_target();
}

#[test]
fn through_a_proxy_that_wants_certificates() {
    Modes::new(Mode::Mutual).with_every_target();
}
