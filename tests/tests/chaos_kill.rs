//! An agent that is killed again and again under load. One test: it has the machine to itself.

use std::net::SocketAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use underpass_tests::World;
use underpass_tests::agent::{Agent, Endpoints, tunnel_policy, underpass};
use underpass_tests::load::Load;
use underpass_tests::random::Random;
use underpass_tests::servers::dns::Dns;
use underpass_tests::servers::gateway::Gateway;
use underpass_tests::servers::identity::Identities;
use underpass_tests::snapshot::Snapshot;

const KILLS: usize = 200;
/// Every so many, the agent must become ready and serve before it is killed.
const SERVING: usize = 10;
/// A kill comes before this time is over: an agent takes about half of it to start.
const LIFE: Duration = Duration::from_millis(400);
/// Five hundred connections a second, and some that last longer than most agents.
const LOAD: [&str; 5] = [
    "short=20:40",
    "half=4:100",
    "reset=4:100",
    "slow=2:100",
    "long=10:1500",
];
const PORTS: [u16; 3] = [9001, 9002, 9003];
const INTERVAL: Duration = Duration::from_millis(100);
const SECONDS: Duration = Duration::from_secs(20);

#[test]
fn two_hundred_kills_let_nothing_slip_and_leave_nothing() {
    let seed = Random::seed_from("CHAOS_SEED");
    println!("CHAOS_SEED={seed}");
    let mut random = Random::new(seed);
    let world = World::new("chaos-kill");
    let _dns = Dns::start(&world);
    let identities = Identities::start(world.inet(), &PORTS);
    let _gateway = Gateway::start(&world);
    let before = Snapshot::take(&world);

    let policy = tunnel_policy(&[]);
    let launch = || {
        Agent::launch(
            underpass(&world),
            &world,
            &policy,
            &[],
            Endpoints::default(),
        )
    };
    let mut agent = launch();
    // Before the first agent was there, nothing was promised.
    agent.wait_until_ready();
    let program = Path::new(env!("CARGO_BIN_EXE_load"));
    let targets = identities.addresses();
    let mut load = Load::start(&world, program, INTERVAL, &targets, &LOAD);
    load.wait_for("the first agent serves", |counts| counts.all("ok") > 100);

    let start = Instant::now();
    let (mut ready, mut serving, mut served) = (0, 0, load.counts().all("ok"));
    for kill in 1..=KILLS {
        if kill % SERVING == 0 {
            agent.wait_until_ready();
            let served = load.counts().all("ok");
            load.wait_for("a later agent serves", |counts| {
                counts.all("ok") > served + 20
            });
            ready += 1;
        }
        sleep(random.moment(LIFE));
        assert!(agent.process().is_running(), "{}", agent.tails());
        // Some die while they drain.
        if random.below(8) == 0 {
            agent.process().signal(Signal::SIGTERM);
            sleep(random.moment(LIFE / 8));
        }
        agent.process().kill();
        // The next one comes at once or a little later.
        if random.below(2) == 0 {
            sleep(random.moment(LIFE / 8));
        }
        let now = load.counts().all("ok");
        serving += usize::from(now > served);
        served = now;
        agent = launch();
        world.expect_no_direct_arrivals();
    }
    agent.wait_until_ready();
    let (counts, _) = load.finish();
    println!(
        "{KILLS} kills in {:.1?}, {serving} of an agent that had served, {ready} times waited for: \
         {counts}",
        start.elapsed()
    );

    world.expect_no_direct_arrivals();
    assert_eq!(identities.misdelivered(), Vec::<String>::new());
    // A killed agent resets: its connections never look as if they had ended by themselves, and
    // nobody is left to wait.
    assert_eq!(
        (counts.all("ended"), counts.all("timed-out")),
        (0, 0),
        "{counts}"
    );
    assert!(
        counts.all("ok") > 0 && counts.all("refused") > 0,
        "{counts}"
    );

    agent.process().kill();
    drop(agent);
    assert!(talk(&world, targets[0]).contains(" refused "));
    world.expect_no_direct_arrivals();
    underpass(&world)
        .arg("detach")
        .run(SECONDS)
        .expect_success();
    // Nothing holds the connections of workloads any more.
    assert!(talk(&world, targets[0]).contains(" data "));
    assert_eq!(world.direct_arrivals().len(), 1);
    before.expect_same_again(&world);
}

/// One more connection, by a program of its own.
fn talk(world: &World, to: SocketAddr) -> String {
    let talk = world.host().python("talk").in_cgroup(world.workload());
    let question = format!("nonce {to} echo\\n");
    let talk = talk.args([to.ip().to_string(), to.port().to_string(), question]);
    talk.run(SECONDS).expect_success().stdout
}
