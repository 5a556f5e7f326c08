//! Many tunnels over few connections to the proxy, by HTTP/2.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use parking_lot::Mutex;
use underpass_tests::addr::{OTHER_V4, proxy_v4};
use underpass_tests::agent::{Agent, binary, tunnel_policy};
use underpass_tests::process::Running;
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Must as _, Scene, World};

const TUNNELS: usize = 5000;
/// What is meant by a handful.
const CONNECTIONS: f64 = 6.0;
const LONG: Duration = Duration::from_secs(240);

const OTHER: &str = "203.0.113.11";

/// Each test has the machine to itself: one would slow the other down.
static ALONE: Mutex<()> = Mutex::new(());

/// A proxy that takes as many streams on a connection as it is asked for.
fn gateway(world: &World) -> Running {
    let command = world.inet().command(binary()).arg("gateway");
    let command = command
        .args(["--listen", &proxy_v4().to_string()])
        .args(["--allow", "203.0.113.0/24:*", "--log-level", "warn"])
        .args(["--max-streams", "2000", "--max-connections", "20000"]);
    let mut running = command.start();
    running.wait_until_listening(world.inet(), proxy_v4());
    running
}

fn policy() -> String {
    tunnel_policy(&[]).replace("port: 3128", "port: 3128\n    protocol: HTTP2-CONNECT")
}

#[test]
fn five_thousand_tunnels_share_a_handful_of_connections() {
    // Inherited by everything the test starts.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).must("read a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).must("raise a limit");

    let _alone = ALONE.lock();
    let scene = Scene::new("streams");
    let _gateway = gateway(&scene.world);
    let _echo = Server::echo(scene.world.inet(), SocketAddr::from((OTHER_V4, 7)));
    let pending = ["--max-pending-tunnels", "0"];
    let agent = Agent::start_with(&scene.world, &policy(), &pending);

    let program = scene.program("many").args([OTHER, "7"]);
    let mut program = program.args([TUNNELS.to_string(), "1".to_owned()]).start();
    let (mut tunnels, mut connections) = (0.0f64, 0.0f64);
    while program.is_running() {
        let metrics = agent.metrics();
        let most = |name: &str, known: f64| metrics.sum(name, &[]).unwrap_or_default().max(known);
        tunnels = most("underpass_tunnels_active", tunnels);
        connections = most("underpass_proxy_connections_active", connections);
    }
    let done = program.finish(LONG).expect_success();
    println!("{tunnels} tunnels at a time over {connections} connections");
    assert_eq!(done.stdout, format!("{TUNNELS} {{}}\n"));
    assert!((1.0..=CONNECTIONS).contains(&connections), "{connections}");

    agent.wait_for_metric("underpass_tunnels_active", &[], 0.0);
    let asked = [("protocol", "http2-connect"), ("code", "200")];
    agent.wait_for_metric("underpass_tunnel_requests_total", &asked, TUNNELS as f64);
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn streams_that_nobody_reads_hold_up_no_other() {
    const STUCK: usize = 20;
    const LENGTH: usize = 64 << 20;

    let _alone = ALONE.lock();
    let scene = Scene::new("stuck-streams");
    let _gateway = gateway(&scene.world);
    let _flood = Server::start(
        scene.world.inet(),
        SocketAddr::from((OTHER_V4, 7)),
        |mut stream, _| {
            let chunk = vec![b'x'; 64 * 1024];
            let _ = stream.read(&mut [0; 16]);
            while stream.write_all(&chunk).is_ok() {}
        },
    );
    let _source = Server::source(scene.world.inet(), SocketAddr::from((OTHER_V4, 9)), LENGTH);
    let agent = Agent::start(&scene.world, &policy());
    let download = || {
        let program = scene.program("download").args([OTHER, "9"]);
        let done = program.run(LONG).expect_success();
        let (bytes, seconds) = done.stdout.trim().split_once(' ').expect("two numbers");
        assert_eq!(bytes, LENGTH.to_string());
        seconds.parse::<f64>().expect("seconds")
    };

    let alone = download();
    let thirsty = scene.program("thirsty").args([OTHER, "7"]);
    let mut thirsty = thirsty.arg(STUCK.to_string()).start();
    let waits = |thirsty: &Running| thirsty.stdout().contains("waiting");
    let mut seen = false;
    thirsty.wait_for("all have asked", LONG, || {
        // Until nothing moves any more: all that is under way has found its place.
        let before = received(&agent);
        std::thread::sleep(Duration::from_millis(500));
        seen |= before > 0.0;
        seen && before == received(&agent)
    });
    assert!(waits(&thirsty));
    let beside = download();
    agent.wait_for_metric("underpass_proxy_connections_active", &[], 1.0);
    println!(
        "{LENGTH} bytes take {alone} s alone, {beside} s beside {STUCK} streams that nobody reads: \
         {:.2} times as long",
        beside / alone
    );
    scene.world.expect_no_direct_arrivals();
}

/// What has come from targets.
fn received(agent: &Agent) -> f64 {
    let metrics = agent.metrics();
    let bytes = metrics.sum("underpass_proxy_received_bytes_total", &[]);
    bytes.unwrap_or_default()
}
