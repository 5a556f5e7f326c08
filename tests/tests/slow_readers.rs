//! A thousand workloads that read nothing: what the agent holds for them, and one beside them that
//! reads all.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use parking_lot::Mutex;
use underpass_tests::addr::OTHER_V4;
use underpass_tests::agent::{Agent, tunnel_policy};
use underpass_tests::place::SMALL_BUFFERS;
use underpass_tests::process::Running;
use underpass_tests::servers::gateway::Gateway;
use underpass_tests::servers::tcp::Server;
use underpass_tests::usage::resident;
use underpass_tests::{Must as _, World, wait_for};

const COUNT: usize = 1000;
/// What the target has to send to each of them: many times more than anybody keeps for it.
const OFFERED: usize = 64 << 20;
/// What the other one reads.
const LENGTH: usize = 64 << 20;
const LONG: Duration = Duration::from_secs(240);

/// What a connection is besides bytes: its task, its entries in tables, its streams. Seen: 10 KiB.
const STATE: u64 = 32 << 10;
/// The most that the relay reads at a time, and so keeps if the workload takes nothing of it.
const READ: u64 = 256 << 10;
/// The most that a proxy may send on a stream of HTTP/2 that nobody reads, and half as much again for
/// the frames that it comes in.
const WINDOW: u64 = (256 << 10) * 3 / 2;

/// Each test has the machine to itself: one would slow the other down.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_thousand_cost_a_bounded_amount_of_memory_and_hurt_nobody() {
    println!("{}", thousand("HTTP-CONNECT", READ + STATE));
}

#[test]
fn the_same_as_streams_of_http2() {
    println!("{}", thousand("HTTP2-CONNECT", WINDOW + READ + STATE));
}

/// A thousand by this protocol, for each of which the agent may hold so many bytes. Tells what it held,
/// and how long the other one took.
fn thousand(protocol: &str, most: u64) -> String {
    let _alone = ALONE.lock();
    // Inherited by everything the test starts.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).must("read a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).must("raise a limit");

    let world = World::new("slow-readers");
    // What the kernel keeps is not the agent's. For a thousand connections it would be more than the
    // machine has for TCP, and everybody would be slow for that.
    for (name, value) in SMALL_BUFFERS {
        world.host().set_net(name, value);
        world.inet().set_net(name, value);
    }
    let _gateway = Gateway::start(&world);
    let sent = Arc::new(AtomicU64::new(0));
    let _flood = flood(&world, &sent);
    let source = SocketAddr::from((OTHER_V4, 9));
    let _source = Server::source(world.inet(), source, LENGTH);
    let address = format!("192.0.2.20\n    protocol: {protocol}");
    let policy = tunnel_policy(&["targetHost: ORIGINAL_DST"]).replace("proxy.example", &address);
    let agent = Agent::start(&world, &policy);
    let alone = download(&world);

    let before = resident(agent.pid());
    let mut thirsty = thirsty(&world);
    agent.wait_for_metric("underpass_tunnels_active", &[], COUNT as f64);
    let now = || sent.load(Ordering::Relaxed);
    wait_for("everything is stuck", LONG, || {
        let before = now();
        std::thread::sleep(Duration::from_millis(500));
        before > COUNT as u64 * STATE && before == now()
    });
    let stuck = now();
    assert!(
        stuck < (COUNT * OFFERED) as u64,
        "nothing held back: {stuck}"
    );
    let each = (resident(agent.pid()) - before).max(0.0) * 1024.0 / COUNT as f64;
    assert!(each <= most as f64, "{each} bytes per connection");

    let beside = download(&world);
    // Meanwhile nobody else has had anything, and all are there still.
    assert_eq!(now(), stuck);
    assert!(thirsty.is_running() && thirsty.stdout().contains("waiting"));
    agent.wait_for_metric("underpass_tunnels_active", &[], COUNT as f64);
    world.expect_no_direct_arrivals();
    format!(
        "{protocol}: {each:.0} bytes of memory for a slow reader; {LENGTH} bytes take {alone} s alone, \
         {beside} s beside {COUNT} of them"
    )
}

/// A target that sends as fast as it can, and counts.
fn flood(world: &World, sent: &Arc<AtomicU64>) -> Server {
    let sent = Arc::clone(sent);
    let address = SocketAddr::from((OTHER_V4, 7));
    Server::start(world.inet(), address, move |mut stream, _| {
        let chunk = vec![b'x'; 64 << 10];
        let _ = stream.read(&mut [0; 16]);
        for _ in 0..OFFERED / chunk.len() {
            match stream.write(&chunk) {
                Ok(length) => sent.fetch_add(length as u64, Ordering::Relaxed),
                Err(_) => return,
            };
        }
    })
}

fn thirsty(world: &World) -> Running {
    let program = world.host().python("thirsty").in_cgroup(world.workload());
    let count = COUNT.to_string();
    program.args([&OTHER_V4.to_string(), "7", &count]).start()
}

/// Reads all that the other target has; gives after how many seconds.
fn download(world: &World) -> f64 {
    let program = world.host().python("download").in_cgroup(world.workload());
    let done = program.args([&OTHER_V4.to_string(), "9"]).run(LONG);
    let said = done.expect_success().stdout;
    let (bytes, seconds) = said.trim().split_once(' ').expect("two numbers");
    assert_eq!(bytes, LENGTH.to_string());
    seconds.parse().must("read the time")
}
