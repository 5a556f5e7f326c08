//! Certificates and keys that a DestinationRule names as files.

use std::fs;
use std::path::{Path, PathBuf};

use underpass_tests::agent::{Agent, tunnel_policy, underpass};
use underpass_tests::pki::{Authority, Issued, Request};
use underpass_tests::servers::apache;
use underpass_tests::servers::forward::{ForwardProxy, Options, Security};
use underpass_tests::{Must as _, Scene};

use super::{GENERATION, SECONDS, SUCCESSFUL, only_problem, replace};

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
    fn spoil(&self, file: &Path, content: impl AsRef<[u8]>) -> String {
        replace(file, content);
        self.agent.wait_for_metric(SUCCESSFUL, &[], 0.0);
        only_problem(&self.agent)
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
    let cut = &good[1].1[..good[1].1.len() / 2];
    let other = [&second.certificate, &second.key].map(|file| read(file));
    for (file, content, told, reason) in [
        (certificate, cut, "clientCertificate", "no END line"),
        // Which of the two is the wrong one cannot be told.
        (certificate, &other[0], "privateKey", "does not belong"),
        (key, &other[1], "privateKey", "does not belong"),
        (key, b"secret words", "privateKey", "no private key"),
        (ca, b"nobody", "caCertificates", "no certificate"),
        (ca, b"", "caCertificates", "no certificate"),
    ] {
        let problem = secured.spoil(file, content);
        let named = match told {
            "caCertificates" => ca,
            "clientCertificate" => certificate,
            _ => key,
        };
        let named = named.display();
        let start = format!("DestinationRule/proxy: spec.trafficPolicy.tls.{told}: {named}: ");
        for part in [&*start, reason] {
            assert!(problem.contains(part), "no {part} in {problem}");
        }
        assert!(!problem.contains("secret words"), "{problem}");
        let status = underpass(&secured.scene.world).arg("status").run(SECONDS);
        let status = status.expect_success().stdout;
        assert!(status.contains(&problem), "no {problem} in {status}");
        assert_eq!(secured.seen_as(), "first", "{problem}");
        secured.change(|| replace_all(&good));
        assert_eq!(secured.seen_as(), "first");
    }

    // Not even there; and nothing else is held up by that.
    let lost = &secured.files.ca;
    fs::remove_file(lost).must("remove a file");
    secured.agent.wait_for_metric(SUCCESSFUL, &[], 0.0);
    let problem = only_problem(&secured.agent);
    assert!(problem.contains("ca.pem cannot be read"), "{problem}");
    assert_eq!(secured.seen_as(), "first");
    let policy = secured.scene.world.dir().join("policy.yaml");
    let text = fs::read_to_string(&policy).must("read the policy");
    let by_address = text.replace(
        "spec:\n  proxy:",
        "spec:\n  targetHost: ORIGINAL_DST\n  proxy:",
    );
    assert_ne!(by_address, text);
    let before = secured.agent.metrics().sum(GENERATION, &[]);
    replace(&policy, by_address);
    let next = before.expect("a generation") + 1.0;
    secured.agent.wait_for_metric(GENERATION, &[], next);
    let about = |problem: &str| problem.split_once(": ").map(|(_, what)| what.to_owned());
    assert_eq!(about(&only_problem(&secured.agent)), about(&problem));
    assert_eq!(secured.seen_as(), "first");
    let log = secured.proxy.log();
    let target = log.last().map(|logged| logged.target.clone());
    assert_eq!(target.as_deref(), Some("203.0.113.10:443"));
    let process = secured.agent.process();
    process.wait_for_logged("ca.pem cannot be read");
    secured.scene.world.expect_no_direct_arrivals();
}

#[track_caller]
fn replace_all(files: &[(PathBuf, Vec<u8>)]) {
    for (file, content) in files {
        replace(file, content);
    }
}
