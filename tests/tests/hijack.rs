//! Whoever tries to get at what workloads send, or past the agent, without being allowed to.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use underpass_tests::agent::{Agent, exec, tunnel_policy, underpass};
use underpass_tests::cgroup::Cgroup;
use underpass_tests::process::{Cmd, Running};
use underpass_tests::python::interpreter;
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::{Must as _, Scene, addr, wait_for};

const SECONDS: Duration = Duration::from_secs(30);
const SITE: [&str; 2] = ["203.0.113.10", "2001:db8:113::10"];
const MISSES: &str = "underpass_capture_original_destination_misses_total";

/// The text of a script, since a user without rights may not be able to read the file.
fn text(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
    fs::read_to_string(folder.join(name)).must("read a script")
}

/// `intruder.py` as root.
fn root(scene: &Scene, cgroup: &Cgroup) -> Cmd {
    let python = scene.world.host().command(interpreter()).in_cgroup(cgroup);
    python.args(["-c", &text("intruder.py")])
}

/// `intruder.py` as a user who may nothing.
fn nobody(scene: &Scene, cgroup: &Cgroup) -> Cmd {
    let setpriv = scene.world.host().command("setpriv").in_cgroup(cgroup);
    setpriv
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        // Another may be in a folder of root's.
        .arg("/usr/bin/python3")
        .args(["-c", &text("intruder.py")])
}

/// The lines that a program says.
fn said(command: Cmd) -> Vec<String> {
    let said = command.run(SECONDS).expect_success().stdout;
    said.lines().map(str::to_owned).collect()
}

/// What an ordinary workload sees of the site.
fn look(scene: &Scene, address: &str) -> String {
    said(root(scene, scene.world.workload()).args(["leave", address, "80"])).join(" ")
}

fn detach(scene: &Scene) {
    let detach = underpass(&scene.world).arg("detach");
    detach.run(SECONDS).expect_success();
}

#[test]
fn nobody_can_take_a_dead_agents_place() {
    let scene = Scene::new("hijack");
    let sysctl = scene.world.host().command("sysctl");
    let sysctl = sysctl.args(["-w", "net.ipv4.tcp_max_tw_buckets=0"]);
    sysctl.run(SECONDS).expect_success();
    let _proxy = FakeProxy::start(scene.world.inet(), addr::proxy_v4(), Answer::tunnel());
    let mut agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let ports = agent.listeners();
    assert_eq!(ports.len(), 2, "{ports:?}");
    agent.process().kill();

    // Whoever binds the dead agent's ports, as any user may, gets nothing. (Connections of the
    // agent in TIME_WAIT would hold the ports for a minute; here none are kept.)
    let strangers: Vec<Running> = ports.iter().map(|port| bind(&scene, *port)).collect();
    let got_nothing = |address: &str| {
        for stranger in &strangers {
            assert_eq!(stranger.stdout(), "bound\n", "{address}");
        }
    };
    for address in SITE {
        assert_eq!(look(&scene, address), "EPERM", "{address}");
        got_nothing(address);
    }
    // Nor after the next agent has come, which listens elsewhere.
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    for address in SITE {
        assert_eq!(look(&scene, address), "data", "{address}");
        got_nothing(address);
    }
    // They do hear who comes by himself, so they would have heard.
    for port in &ports {
        let stranger = [port.ip().to_string(), port.port().to_string()];
        let services = scene.world.services();
        said(nobody(&scene, services).args(["leave"]).args(stranger));
    }
    wait_for("both were called", SECONDS, || {
        strangers.iter().all(|it| it.stdout().contains("got"))
    });
    drop(agent);
    scene.world.expect_no_direct_arrivals();
    detach(&scene);
}

/// A user without rights, who listens there.
fn bind(scene: &Scene, port: SocketAddr) -> Running {
    let bind = nobody(scene, scene.world.services()).arg("bind");
    let running = bind
        .args([port.ip().to_string(), port.port().to_string()])
        .start();
    wait_for("it listens", SECONDS, || running.stdout() == "bound\n");
    running
}

#[test]
fn a_living_listener_shares_its_port_with_nobody() {
    let scene = Scene::new("share");
    let proxy = FakeProxy::start(scene.world.inet(), addr::proxy_v4(), Answer::tunnel());
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    for listener in agent.listeners() {
        let port = listener.port().to_string();
        let any = if listener.is_ipv6() { "::" } else { "0.0.0.0" };
        for host in [listener.ip().to_string(), any.to_owned()] {
            for options in [&[][..], &["reuseport"]] {
                let bind = nobody(&scene, scene.world.services());
                let bind = bind.args(["bind", &host, &port]).args(options);
                assert_eq!(said(bind), ["EADDRINUSE"], "{host} {port} {options:?}");
            }
        }
    }
    for address in SITE {
        assert_eq!(look(&scene, address), "data");
    }
    assert_eq!(proxy.requests().len(), 2);
    scene.world.expect_no_direct_arrivals();
    drop(agent);
    detach(&scene);
}

#[test]
fn an_entry_serves_no_later_connection_from_the_same_port() {
    let scene = Scene::new("steal");
    let proxy = FakeProxy::start(scene.world.inet(), addr::proxy_v4(), Answer::tunnel());
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let steal = |scene: &Scene, cgroup: &Cgroup, to: SocketAddr, local: &str| {
        let (host, port) = (to.ip().to_string(), to.port().to_string());
        nobody(scene, cgroup).args(["steal", &host, &port, local])
    };
    let listeners = agent.listeners();
    let mut misses = 0.0;
    for (site, family) in SITE.iter().zip(["127.0.0.1", "::1"]) {
        let of_family = |it: &&SocketAddr| it.ip().to_string() == family;
        let listener = *listeners.iter().find(of_family).expect("a listener");
        for (cgroup, local) in [
            (scene.world.services(), "20001"),
            (scene.world.workload(), "20002"),
        ] {
            // A workload that was served, and is gone.
            let site = SocketAddr::new(site.parse().must("an address"), 80);
            let served = steal(&scene, scene.world.workload(), site, local);
            assert_eq!(said(served), ["data"]);
            let requests = proxy.requests().len();
            assert_eq!(said(steal(&scene, cgroup, listener, local)), ["ECONNRESET"]);
            misses += 1.0;
            agent.wait_for_metric(MISSES, &[], misses);
            assert_eq!(proxy.requests().len(), requests);
        }
    }
    // One that waits behind the workload whose port it has.
    let listener = *listeners.iter().find(|it| it.is_ipv4()).expect("IPv4");
    let requests = proxy.requests().len();
    agent.hold();
    let leave = scene.program("send_and_close");
    let leave = leave.args([SITE[0], "80", "GET / HTTP/1.0\r\n\r\n", "20003"]);
    leave.run(SECONDS).expect_success();
    let behind = steal(&scene, scene.world.services(), listener, "20003").start();
    wait_for("it is connected", SECONDS, || {
        waiting(&scene, listener) == 2
    });
    agent.resume();
    assert_eq!(behind.finish(SECONDS).stdout, "ECONNRESET\n");
    agent.wait_for_metric(MISSES, &[], misses + 1.0);
    assert!(proxy.requests().len() <= requests + 1);
    scene.world.expect_no_direct_arrivals();
    drop(agent);
    detach(&scene);
}

/// How many connections wait to be accepted.
fn waiting(scene: &Scene, listener: SocketAddr) -> usize {
    let ss = scene.world.host().command("ss");
    let ss = ss.args(["-H", "-l", "-t", "-n", &format!("src {listener}")]);
    let line = ss.run(SECONDS).expect_success().stdout;
    let queue = line.split_whitespace().nth(1);
    queue.and_then(|queue| queue.parse().ok()).unwrap_or(0)
}

#[test]
fn a_mark_on_the_socket_opens_no_way_around() {
    let scene = Scene::new("mark");
    let proxy = FakeProxy::start(scene.world.inet(), addr::proxy_v4(), Answer::tunnel());
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    for address in SITE {
        // As root, which may set it.
        let mark = root(&scene, scene.world.workload()).args(["mark", address, "80"]);
        assert_eq!(said(mark), ["data"; 5]);
    }
    assert_eq!(proxy.requests().len(), 10);
    scene.world.expect_no_direct_arrivals();
    drop(agent);
    detach(&scene);
}

#[test]
fn nobody_leaves_the_cgroup() {
    let scene = Scene::new("leave");
    let proxy = FakeProxy::start(scene.world.inet(), addr::proxy_v4(), Answer::tunnel());
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let world = &scene.world;
    let parent = world.workload().path().parent().expect("a parent");
    for address in SITE {
        let leave = nobody(&scene, world.workload()).args(["leave", address, "80"]);
        let leave = leave.args([world.services().path(), parent]);
        assert_eq!(said(leave), ["EACCES", "EACCES", "data"]);
    }
    assert_eq!(proxy.requests().len(), 2);
    world.expect_no_direct_arrivals();
    drop(agent);
    detach(&scene);
}

#[test]
fn a_socket_belongs_to_the_cgroup_in_which_it_was_made() {
    let scene = Scene::new("move");
    let proxy = FakeProxy::start(scene.world.inet(), addr::proxy_v4(), Answer::tunnel());
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let (inside, outside) = (scene.world.workload(), scene.world.services());
    // Root may move. A socket made inside stays captured wherever its process goes or whoever it
    // is handed to; one made outside is not captured, and so whoever hands one to a workload hands
    // it a way around.
    let go = |from: &Cgroup, to: &Cgroup| {
        let go = root(&scene, from).args(["move", SITE[0], "80"]);
        assert_eq!(said(go.arg(to.path())), ["moved", "data"]);
    };
    go(inside, outside);
    assert_eq!(proxy.requests().len(), 1);
    scene.world.expect_no_direct_arrivals();
    go(outside, inside);
    assert_eq!(proxy.requests().len(), 1);
    assert_eq!(scene.world.direct_arrivals().len(), 1);
    drop(agent);
    detach(&scene);
}

#[test]
fn a_socket_made_before_the_agent_came_is_captured() {
    let scene = Scene::new("early");
    let proxy = FakeProxy::start(scene.world.inet(), addr::proxy_v4(), Answer::tunnel());
    let go = scene.world.dir().join("go");
    let early = SITE.map(|address| {
        let early = root(&scene, scene.world.workload()).args(["early", address, "80"]);
        early.arg(&go).start()
    });
    for process in &early {
        wait_for("a socket", SECONDS, || process.stdout() == "made\n");
    }
    let agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    fs::write(&go, "").must("write a file");
    for process in early {
        let said = process.finish(SECONDS).expect_success().stdout;
        assert_eq!(said, "made\ndata\n");
    }
    assert_eq!(proxy.requests().len(), 2);
    scene.world.expect_no_direct_arrivals();
    drop(agent);
    detach(&scene);
}

#[test]
fn nobody_opens_what_is_pinned() {
    let scene = Scene::new("pins");
    let _proxy = FakeProxy::start(scene.world.inet(), addr::proxy_v4(), Answer::tunnel());
    let mut agent = Agent::start(&scene.world, &tunnel_policy(&[]));
    let find = scene.world.host().command("find");
    let find = find.args(["/sys/fs/bpf", "-path", "*underpass*", "-type", "f"]);
    let pins = find.run(SECONDS).expect_success().stdout;
    let pins: Vec<&str> = pins.lines().collect();
    assert_eq!(pins.len(), 6, "{pins:?}");
    let all = |outcome: &str| vec![outcome.to_owned(); pins.len()];
    let services = scene.world.services();
    for alive in [true, false] {
        if !alive {
            agent.process().kill();
        }
        let opened = said(nobody(&scene, services).arg("open").args(&pins));
        let refused = ["EPERM", "EACCES"].map(all);
        assert!(refused.contains(&opened), "{opened:?}");
        let rm = scene.world.host().command("setpriv");
        let rm = rm.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        let rm = rm.args(["--", "rm", "-f"]).args(&pins).run(SECONDS);
        assert!(!rm.status.success(), "{rm:?}");
    }
    assert_eq!(
        said(root(&scene, services).arg("open").args(&pins)),
        all("opened")
    );
    assert_eq!(look(&scene, SITE[0]), "EPERM");
    scene.world.expect_no_direct_arrivals();
    detach(&scene);
}

#[test]
fn a_network_namespace_of_its_own_is_no_way_out_of_exec() {
    let scene = Scene::new("unshare");
    let proxy = FakeProxy::start(scene.world.inet(), addr::proxy_v4(), Answer::tunnel());
    let url = "http://proxy.example:3128";
    let script = text("intruder.py");
    let outcome = |launcher: &[&str]| {
        let python = interpreter().to_string_lossy();
        let command = exec(&scene.world, url, &[]).args(launcher);
        let command = command.args([&*python, "-c", &script, "leave", SITE[0], "80"]);
        let done = command.run(SECONDS);
        done.stdout.trim().to_owned()
    };
    assert_eq!(outcome(&["env"]), "data", "so the way through works");
    assert_eq!(proxy.requests().len(), 1);
    // Without the programs this would be ENETUNREACH: they refuse before there is a route.
    assert_eq!(outcome(&["unshare", "--net"]), "EPERM");
    assert_eq!(
        outcome(&["unshare", "--net", "--user", "--map-root-user"]),
        "EPERM"
    );
    assert_eq!(proxy.requests().len(), 1);
    scene.world.expect_no_direct_arrivals();
}
