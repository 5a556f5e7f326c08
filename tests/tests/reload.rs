//! Policy is read again when it changes, and at SIGHUP.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::Value;
use underpass_tests::addr::{DNS_V4, HOST_V4, OTHER_V4, proxy_v4};
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Must as _, Scene, World, wait_for};

const RELOADS: &str = "underpass_policy_reload_total";
const GENERATION: &str = "underpass_policy_generation";

const SECONDS: Duration = Duration::from_secs(20);

/// Puts another file in the place of one, so that nobody sees it half written.
#[track_caller]
fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).must("write a policy");
    fs::rename(&new, file).must("put it in place");
}

/// What is told of the last reading, if that came out so and this generation is in force.
#[track_caller]
fn expect_generation(agent: &Agent, generation: u64, result: &str) -> Value {
    let dump = agent.admin("/config_dump");
    assert_eq!(dump["policy_generation"], generation, "{dump}");
    let reload = dump["policy_reload"].clone();
    assert_eq!(reload["result"], result, "{dump}");
    reload
}

#[test]
fn a_good_policy_counts_from_then_on_and_a_bad_one_changes_nothing() {
    let scene = Scene::new("reload");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let mut agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let file = scene.world.dir().join("policy.yaml");
    let site = scene.curl("http://site.example/").args(["-4"]);
    let asked = |count: usize| {
        scene.captured(&site).expect_ok();
        proxy.request_lines(count).swap_remove(count - 1)
    };
    assert_eq!(asked(1), "CONNECT site.example:80 HTTP/1.1");
    expect_generation(&agent, 1, "success");

    replace(&file, &tunnel_policy(&["targetHost: ORIGINAL_DST"]));
    agent.wait_for_metric(GENERATION, &[], 2.0);
    agent.wait_for_metric(RELOADS, &[("result", "success")], 1.0);
    assert_eq!(asked(2), "CONNECT 203.0.113.10:80 HTTP/1.1");
    expect_generation(&agent, 2, "success");
    let dump = agent.admin("/config_dump").to_string();
    assert!(dump.contains("ORIGINAL_DST"), "{dump}");

    // The ninth line of the file.
    replace(&file, &tunnel_policy(&["targetHots: AUTO_SNI"]));
    agent.wait_for_metric(RELOADS, &[("result", "failure")], 1.0);
    agent.wait_for_metric("underpass_policy_last_reload_successful", &[], 0.0);
    let place = format!("{}:9", file.display());
    let log = agent.process().wait_for_logged(&place);
    assert!(log.contains("targetHots"), "{log}");
    let reload = expect_generation(&agent, 2, "failure");
    let problems = reload["problems"].as_array().expect("a list of problems");
    assert_eq!(problems.len(), 1, "{reload}");
    let problem = problems[0].as_str().unwrap_or_default();
    assert!(
        problem.contains(&place) && problem.contains("targetHots"),
        "{reload}"
    );
    assert_eq!(asked(3), "CONNECT 203.0.113.10:80 HTTP/1.1");

    fs::remove_file(&file).must("remove the policy");
    agent.wait_for_metric(RELOADS, &[("result", "failure")], 2.0);
    assert_eq!(asked(4), "CONNECT 203.0.113.10:80 HTTP/1.1");

    // In place, and now the file is not even there before.
    fs::write(&file, tunnel_policy(&[])).must("mend the policy");
    agent.wait_for_metric("underpass_policy_last_reload_successful", &[], 1.0);
    assert_eq!(asked(5), "CONNECT site.example:80 HTTP/1.1");
    fs::write(&file, tunnel_policy(&["targetHost: ORIGINAL_DST"])).must("write in place");
    wait_for("the policy in force is the new one", SECONDS, || {
        let dump = agent.admin("/config_dump").to_string();
        dump.contains("ORIGINAL_DST")
    });
    assert_eq!(asked(6), "CONNECT 203.0.113.10:80 HTTP/1.1");
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn what_is_the_same_is_not_read_again_unless_asked_to() {
    let world = World::new("reload-same");
    let options = ["--log-level", "info,underpass::app::reload=debug"];
    let mut agent = Agent::start_with(&world, &tunnel_policy(&[]), &options);
    let file = world.dir().join("policy.yaml");
    let mut looked = |times: usize, what: &str| {
        wait_for(what, SECONDS, || {
            let log = agent.process().stderr();
            log.matches("policy has not changed").count() >= times
        });
    };
    looked(1, "it looks at the start");
    replace(&file, &tunnel_policy(&[]));
    looked(2, "it looks at an equal file");
    fs::File::options()
        .append(true)
        .open(&file)
        .and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH))
        .must("touch the file");
    looked(3, "it looks at a file that was touched");
    assert_eq!(agent.metrics().sum(RELOADS, &[]).unwrap_or(0.0), 0.0);
    expect_generation(&agent, 1, "success");

    agent.process().signal(Signal::SIGHUP);
    agent.wait_for_metric(RELOADS, &[("result", "success")], 1.0);
    agent.wait_for_metric(GENERATION, &[], 2.0);
}

#[test]
fn a_mounted_config_map_is_followed() {
    let scene = Scene::new("reload-config-map");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let mount = scene.world.dir().join("mount");
    let publish = |version: &str, policy: &str| {
        let content = mount.join(version);
        fs::create_dir_all(&content).must("make a version");
        fs::write(content.join("policy.yaml"), policy).must("write a version");
        symlink(version, mount.join("..data_tmp")).must("link it");
        fs::rename(mount.join("..data_tmp"), mount.join("..data")).must("turn to it");
    };
    publish("..1", &tunnel_policy(&[]));
    symlink("..data/policy.yaml", mount.join("policy.yaml")).must("link the file");
    let options = ["--policy", &mount.display().to_string()];
    let mut agent = Agent::start_with(&scene.world, "", &options);
    let site = scene.curl("http://site.example/").args(["-4"]);
    let asked = |count: usize| {
        scene.captured(&site).expect_ok();
        proxy.request_lines(count).swap_remove(count - 1)
    };
    assert_eq!(asked(1), "CONNECT site.example:80 HTTP/1.1");

    publish("..2", &tunnel_policy(&["targetHost: ORIGINAL_DST"]));
    fs::remove_dir_all(mount.join("..1")).must("remove the old version");
    agent.wait_for_metric(GENERATION, &[], 2.0);
    assert_eq!(asked(2), "CONNECT 203.0.113.10:80 HTTP/1.1");
    publish("..3", &tunnel_policy(&[]));
    fs::remove_dir_all(mount.join("..2")).must("remove the old version");
    agent.wait_for_metric(GENERATION, &[], 3.0);
    assert_eq!(asked(3), "CONNECT site.example:80 HTTP/1.1");

    // The whole directory goes, and another one comes.
    fs::rename(&mount, scene.world.dir().join("aside")).must("take it away");
    agent.wait_for_metric(RELOADS, &[("result", "failure")], 1.0);
    assert_eq!(asked(4), "CONNECT site.example:80 HTTP/1.1");
    let other = scene.world.dir().join("other");
    fs::create_dir(&other).must("make another");
    let policy = tunnel_policy(&["targetHost: ORIGINAL_DST"]);
    fs::write(other.join("a.yaml"), policy).must("write a policy");
    fs::rename(&other, &mount).must("put it there");
    agent.wait_for_metric(GENERATION, &[], 4.0);
    assert_eq!(asked(5), "CONNECT 203.0.113.10:80 HTTP/1.1");
    replace(&mount.join("a.yaml"), &tunnel_policy(&[]));
    agent.wait_for_metric(GENERATION, &[], 5.0);
    assert_eq!(asked(6), "CONNECT site.example:80 HTTP/1.1");
    agent.wait_for_metric(RELOADS, &[("result", "failure")], 1.0);
    let log = agent.process().stderr();
    assert!(!log.contains("inotify"), "nothing is wrong in {log}");
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn what_programs_and_agent_call_external_changes_together() {
    let scene = Scene::new("reload-prefixes");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let site = scene.curl("http://site.example/").args(["-4"]);
    scene.captured(&site).expect_ok();
    assert_eq!(proxy.requests().len(), 1);
    scene.world.expect_no_direct_arrivals();

    let file = scene.world.dir().join("policy.yaml");
    let direct = tunnel_policy(&["noProxy: [203.0.113.0/24]"]);
    replace(&file, &direct);
    agent.wait_for_metric(RELOADS, &[("result", "success")], 1.0);
    scene.captured(&site).expect_ok();
    assert_eq!(proxy.requests().len(), 1);
    assert_eq!(scene.world.direct_arrivals().len(), 1, "it goes direct now");
}

#[test]
fn rules_that_do_not_fit_change_nothing() {
    let scene = Scene::new("reload-too-many");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let file = scene.world.dir().join("policy.yaml");
    let many: Vec<String> = (0..17_000_u32)
        .map(|number| format!("198.18.{}.{}", number >> 8, number & 0xff))
        .collect();
    // The site would go direct.
    let policy = format!("noProxy: [203.0.113.0/24, {}]", many.join(", "));
    replace(&file, &tunnel_policy(&[&policy]));
    agent.wait_for_metric(RELOADS, &[("result", "failure")], 1.0);
    let reload = expect_generation(&agent, 1, "failure");
    let problem = reload["problems"][0].as_str().unwrap_or_default();
    assert!(problem.contains("PREFIXES takes 16384"), "{reload}");
    let site = scene.curl("http://site.example/").args(["-4"]);
    scene.captured(&site).expect_ok();
    assert_eq!(proxy.requests().len(), 1);
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn a_proxy_that_is_new_is_left_alone_too() {
    let scene = Scene::new("reload-proxy");
    let (first, second) = (proxy_v4(), SocketAddr::from((DNS_V4, 3129)));
    let _first = FakeProxy::start(scene.world.inet(), first, Answer::tunnel());
    let second_proxy = FakeProxy::start(scene.world.inet(), second, Answer::tunnel());
    // By address, so that there is no other reason to look where the proxies are.
    let by = |proxy: SocketAddr| {
        tunnel_policy(&[])
            .replace("proxy.example", &proxy.ip().to_string())
            .replace("3128", &proxy.port().to_string())
    };
    let agent = Agent::start(&scene.world, &by(first));
    replace(&scene.world.dir().join("policy.yaml"), &by(second));
    wait_for("the agent knows the new proxy", SECONDS, || {
        let dump = agent.admin("/config_dump");
        dump["proxy_addresses"] == serde_json::json!([second])
    });

    // A program that speaks to the new proxy itself reaches it itself.
    let own = scene
        .curl("https://site.example/")
        .args(["-4", "-x", &format!("http://{second}")]);
    scene.captured(&own).expect_ok();
    assert_eq!(second_proxy.requests()[0].peer.ip(), HOST_V4);
    assert_eq!(
        scene
            .world
            .arrivals_at(DNS_V4)
            .iter()
            .filter(|arrival| arrival.destination == second)
            .count(),
        1
    );
    assert!(agent.access_log().is_empty(), "{}", agent.tails());
}

#[test]
fn what_is_open_stays_open() {
    let scene = Scene::new("reload-open");
    let _proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let sink = Server::sink(scene.world.inet(), SocketAddr::from((OTHER_V4, 9000)));
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let gate = scene.world.dir().join("go-on");
    let script = format!(
        "(echo one; while [ ! -e {} ]; do sleep 0.02; done; echo two) | nc -N 203.0.113.11 9000",
        gate.display()
    );
    let nc = scene.workload("sh").args(["-c", &script]).start();
    wait_for("the tunnel is open", SECONDS, || {
        sink.open_connections() == 1
    });
    let file = scene.world.dir().join("policy.yaml");
    replace(&file, &tunnel_policy(&["noProxy: [203.0.113.0/24]"]));
    agent.wait_for_metric(RELOADS, &[("result", "success")], 1.0);
    fs::write(&gate, "").must("go on");
    let report = sink.wait_for_reports(1)[0];
    assert_eq!((report.received, report.complete), (8, true));
    nc.finish(SECONDS).expect_success();
    scene.world.expect_no_direct_arrivals();
}
