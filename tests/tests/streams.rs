//! Many tunnels over few connections to the proxy, by HTTP/2.

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use underpass_tests::addr::OTHER_V4;
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::servers::gateway::Gateway;
use underpass_tests::servers::tcp::Server;
use underpass_tests::{Must as _, Scene};

const TUNNELS: usize = 5000;
/// What is meant by a handful.
const CONNECTIONS: f64 = 6.0;
const LONG: Duration = Duration::from_secs(240);

const OTHER: &str = "203.0.113.11";

fn policy() -> String {
    tunnel_policy(&[]).replace("port: 3128", "port: 3128\n    protocol: HTTP2-CONNECT")
}

#[test]
fn five_thousand_tunnels_share_a_handful_of_connections() {
    // Inherited by everything the test starts.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).must("read a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).must("raise a limit");

    let scene = Scene::new("streams");
    let _gateway = Gateway::start(&scene.world);
    let _echo = Server::echo(scene.world.inet(), SocketAddr::from((OTHER_V4, 7)));
    let options = ["--max-pending-tunnels", "0", "--threads", "2"];
    let agent = Agent::start_with(&scene.world, &policy(), &options);

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
