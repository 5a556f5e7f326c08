//! `underpass exec`: one command, tunnelled.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::agent::{ADMIN, METRICS, READY, exec};
use underpass_tests::process::{Cmd, Finished, Running};
use underpass_tests::servers::apache;
use underpass_tests::servers::forward::{self, Credentials, Security};
use underpass_tests::servers::squid::{self, Options, Squid};
use underpass_tests::servers::stage::Stage;
use underpass_tests::{Must as _, Scene, World, http, poll, wait_for};

const PROXY: &str = "http://proxy.example:3128";
/// By address: a proxy that cannot be resolved would be worth a warning.
const PROXY_BY_ADDRESS: &str = "http://192.0.2.20:3128";
const SECONDS: Duration = Duration::from_secs(20);

fn sh(launcher: Cmd, script: &str) -> Cmd {
    launcher.args(["sh", "-c", script])
}

#[test]
fn a_command_is_tunnelled() {
    let scene = Scene::new("exec");
    let squid = Squid::start(&scene.world);
    let curl = scene.curl("https://site.example/").args(["-4"]);
    let seen = curl.run_by(exec(&scene.world, PROXY, &[])).expect_ok();
    assert_eq!(seen.remote_ip, "203.0.113.10");
    assert_eq!(squid.connects(1), ["site.example:443"]);
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn the_exit_status_is_the_commands() {
    let world = World::new("exec-status");
    for (script, status) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -9 $$", 137),
    ] {
        let done = sh(exec(&world, PROXY, &[]), script).run(SECONDS);
        assert_eq!(done.status.code(), Some(status), "{script}: {done:?}");
    }
    let missing = exec(&world, PROXY, &[]).arg("no-such-program").run(SECONDS);
    assert_eq!(missing.status.code(), Some(127), "{missing:?}");
    assert!(missing.stderr.contains("no-such-program"), "{missing:?}");
    let usage = exec(&world, "ftp://proxy.example", &[])
        .arg("true")
        .run(SECONDS);
    assert_eq!(usage.status.code(), Some(64), "{usage:?}");
}

#[test]
fn input_output_and_terminal_are_the_commands() {
    let world = World::new("exec-io");
    let cat = sh(
        exec(&world, PROXY_BY_ADDRESS, &[]),
        "cat; echo complaint >&2",
    )
    .input("passes through");
    let done = cat.run(SECONDS).expect_success();
    assert_eq!(
        (done.stdout.as_str(), done.stderr.as_str()),
        ("passes through", "complaint\n")
    );

    // Inside script(1), standard input is a terminal; it must still be one for the command.
    let binary = underpass_tests::agent::binary();
    let inner = format!(
        "{} exec --proxy {PROXY_BY_ADDRESS} -- sh -c 'tty; stty size'",
        binary.display()
    );
    let script = world
        .host()
        .command("script")
        .args(["-qec", &inner, "/dev/null"]);
    let done = script.run(SECONDS).expect_success();
    assert!(done.stdout.starts_with("/dev/pts/"), "{done:?}");
}

#[test]
fn signals_reach_the_command() {
    let world = World::new("exec-signals");
    for (signal, name) in [(Signal::SIGTERM, "TERM"), (Signal::SIGINT, "INT")] {
        let script =
            format!("trap 'echo caught; exit 42' {name}; echo up; while :; do sleep 0.05; done");
        let mut running = sh(exec(&world, PROXY, &[]), &script).start();
        wait_for_output(&mut running, "up\n");
        running.signal(signal);
        let done = running.finish(SECONDS);
        assert_eq!(done.status.code(), Some(42), "{done:?}");
        assert_eq!(done.stdout, "up\ncaught\n");
    }
}

#[test]
fn the_command_runs_as_the_user_who_called_sudo() {
    let scene = Scene::new("exec-sudo");
    let squid = Squid::start(&scene.world);
    let launch = || {
        let launcher = exec(&scene.world, PROXY, &[]);
        launcher.env("SUDO_UID", "65534").env("SUDO_GID", "65534")
    };
    let done = sh(launch(), "id -u; id -g; id -G; echo $HOME")
        .run(SECONDS)
        .expect_success();
    let mut lines = done.stdout.lines();
    assert_eq!(lines.next(), Some("65534"));
    assert_eq!(lines.next(), Some("65534"));
    assert_eq!(lines.next(), Some("65534"), "no group of root's");
    assert_ne!(
        lines.next(),
        Some(scene.world.host().dir().to_str().unwrap_or_default())
    );
    scene
        .curl("https://site.example/")
        .run_by(launch())
        .expect_ok();
    assert_eq!(squid.connects(1), ["site.example:443"]);
    // Without sudo it stays who it is.
    let done = sh(exec(&scene.world, PROXY, &[]), "id -u")
        .run(SECONDS)
        .expect_success();
    assert_eq!(done.stdout, "0\n");
}

#[test]
fn when_the_supervisor_is_killed_its_command_ends_with_it() {
    let scene = Scene::new("exec-kill");
    let _squid = Squid::start(&scene.world);
    let pids = scene.world.dir().join("pids");
    // The command, a child of it, and one in a session of its own that ignores what it can.
    let script = format!(
        "echo $$ >>{0}; sleep 1000 & echo $! >>{0}; \
         setsid sh -c 'trap \"\" HUP TERM INT; echo $$ >>{0}; while :; do sleep 1; done' & \
         wait",
        pids.display()
    );
    let mut running = sh(exec(&scene.world, PROXY, &[]), &script).start();
    let lines = || {
        fs::read_to_string(&pids)
            .unwrap_or_default()
            .lines()
            .count()
    };
    running.wait_for("three processes run", SECONDS, || lines() == 3);
    let pids = fs::read_to_string(&pids).must("read the process ids");
    let alive = || pids.lines().filter(|pid| is_alive(pid)).count();
    assert_eq!(alive(), 3);
    let cgroups = || exec_cgroups(&scene.world);
    assert_eq!(cgroups(), 1);

    running.signal(Signal::SIGKILL);
    wait_for("the command is gone", Duration::from_secs(2), || {
        alive() == 0
    });
    wait_for("its cgroup is gone", Duration::from_secs(2), || {
        cgroups() == 0
    });
}

#[test]
fn nothing_is_left_when_the_command_has_ended() {
    let world = World::new("exec-end");
    // A child that would stay must not stay: it would go on without a tunnel.
    let done = sh(exec(&world, PROXY, &[]), "setsid sleep 1000 & echo $!").run(SECONDS);
    let pid = done.expect_success().stdout.trim().to_owned();
    assert!(!is_alive(&pid), "{pid} is left");
    assert_eq!(exec_cgroups(&world), 0);
}

#[test]
fn a_password_is_used_but_not_shown() {
    let scene = Scene::new("exec-password");
    let options = Options {
        credentials: Some(("meg", "open:s@same")),
        ..Options::default()
    };
    let squid = Squid::start_with(&scene.world, &options);
    let proxy = "http://meg:open%3As%40same@proxy.example:3128";

    scene
        .curl("https://site.example/")
        .run_by(exec(&scene.world, proxy, &[]))
        .expect_ok();
    let line = squid.wait_for_log(1).swap_remove(0);
    assert_eq!((line.status, line.user.as_str()), (200, "meg"));

    let log = scene.world.dir().join("exec.log");
    let log_file = log.display().to_string();
    let options = [
        "--log-level",
        "debug",
        "--log-file",
        &log_file,
        "--admin-addr",
        "127.0.0.1:1",
    ];
    let mut running = sh(
        exec(&scene.world, proxy, &options),
        "env; echo up; sleep 1000",
    )
    .start();
    wait_for_output(&mut running, "up\n");
    let shown = |text: &str| text.contains("same@") || text.contains("open:s");
    assert_eq!(
        command_lines()
            .into_iter()
            .filter(|line| shown(line))
            .count(),
        0
    );
    let mine = command_lines()
        .into_iter()
        .find(|line| line.contains("//meg"));
    assert!(
        mine.is_some(),
        "the user name may stay, to know one from another"
    );
    assert!(
        !shown(&running.stdout()),
        "not in the command's environment"
    );
    let dump = http::get(
        scene.world.host(),
        ([127, 0, 0, 1], 1).into(),
        "/config_dump",
    );
    let dump = dump.must("ask for the configuration").body;
    assert!(dump.contains("proxy.example") && !shown(&dump), "{dump}");
    assert!(!shown(&fs::read_to_string(log).must("read the log")));
}

#[test]
fn a_password_in_the_environment_stays_there() {
    let scene = Scene::new("exec-environment");
    let options = Options {
        credentials: Some(("meg", "sesame")),
        ..Options::default()
    };
    let squid = Squid::start_with(&scene.world, &options);
    let launch = || {
        let proxy = "http://meg:sesame@proxy.example:3128";
        let command = underpass_tests::agent::underpass(&scene.world);
        command.env("UNDERPASS_PROXY", proxy).args(["exec", "--"])
    };
    scene
        .curl("https://site.example/")
        .run_by(launch())
        .expect_ok();
    assert_eq!(squid.wait_for_log(1)[0].user, "meg");
    let done = sh(launch(), "env").run(SECONDS).expect_success();
    assert!(!done.stdout.contains("sesame"), "{}", done.stdout);
}

#[test]
fn the_way_to_the_proxy_may_be_tls() {
    let stage = Stage::new("exec-tls");
    let world = stage.world();
    let credentials = Credentials::Basic("meg", "sesame");
    let options = forward::Options {
        // Where it is looked for if the URL has no port.
        port: 443,
        security: Security::Tls(&stage.proxy),
        credentials,
    };
    let apache = apache::start(world, &options);
    let squid = Squid::start_with(
        world,
        &Options {
            tls: Some(&stage.proxy),
            ..Options::default()
        },
    );
    let trusting = |command: Cmd| command.env("SSL_CERT_FILE", stage.scene.pki.ca());
    let curl = stage.scene.curl("https://site.example/page");
    let url = "https://meg:sesame@proxy.example";
    // Apache ends TLS without saying so, which is told.
    let log = world.dir().join("exec.log").display().to_string();
    let log = ["--log-file", &*log];
    curl.run_by(trusting(exec(world, url, &log))).expect_ok();
    let by_environment = trusting(underpass_tests::agent::underpass(world))
        .env("UNDERPASS_PROXY", url)
        .arg("exec")
        .args(log)
        .arg("--");
    curl.run_by(by_environment).expect_ok();
    let expected = stage.tunnel("HTTP/1.1", &options, credentials);
    let logged = apache.wait_for_log(2);
    assert_eq!(logged, [expected.clone(), expected]);
    let squid_url = format!("https://proxy.example:{}", squid::TLS_PORT);
    curl.run_by(trusting(exec(world, &squid_url, &log)))
        .expect_ok();
    assert_eq!(squid.connects(1), ["site.example:443"]);

    // Whom the system trusts does not vouch for it, nor does anybody for another name of it.
    for (launcher, reason) in [
        (exec(world, url, &[]), "CAs that this system trusts"),
        (
            trusting(exec(world, "https://192.0.2.20:3129", &[])),
            "192.0.2.20",
        ),
    ] {
        let script = "curl -sk https://site.example/; echo curl: $?";
        let done = sh(launcher, script).run(SECONDS);
        assert!(!done.stdout.ends_with("curl: 0\n"), "{done:?}");
        assert!(done.stderr.contains("certificate"), "{done:?}");
        assert!(done.stderr.contains(reason), "{done:?}");
        assert!(!done.stderr.contains("sesame"), "{done:?}");
    }
    // Nobody at all is trusted.
    let launcher = exec(world, url, &[]).env("SSL_CERT_FILE", "/no/such/file");
    let done = launcher.arg("true").run(SECONDS);
    assert_eq!(done.status.code(), Some(64), "{done:?}");
    assert!(done.stderr.contains("/no/such/file"), "{done:?}");
    world.expect_no_direct_arrivals();
}

#[test]
fn no_fixed_port_is_opened_so_two_can_run_at_once() {
    let scene = Scene::new("exec-ports");
    let squid = Squid::start(&scene.world);
    let mut first = sh(exec(&scene.world, PROXY, &[]), "echo up; sleep 1000").start();
    wait_for_output(&mut first, "up\n");
    let ss = scene
        .world
        .host()
        .command("ss")
        .args(["-H", "-l", "-t", "-n"]);
    let listening = ss.run(SECONDS).expect_success().stdout;
    for endpoint in [METRICS, READY, ADMIN] {
        assert!(
            !listening.contains(&format!(":{} ", endpoint.port())),
            "{listening}"
        );
    }
    for line in listening.lines() {
        let local = line.split_whitespace().nth(3).unwrap_or_default();
        assert!(
            local.starts_with("127.0.0.1:") || local.starts_with("[::1]:"),
            "{line}"
        );
    }
    scene
        .curl("https://site.example/")
        .run_by(exec(&scene.world, PROXY, &[]))
        .expect_ok();
    assert!(first.is_running());
    assert_eq!(squid.connects(1), ["site.example:443"]);
    scene.world.expect_no_direct_arrivals();
}

#[test]
fn without_the_capabilities_it_says_what_is_missing() {
    let world = World::new("exec-plain");
    let setpriv = world
        .host()
        .command("setpriv")
        .args(["--reuid", "65534", "--clear-groups"]);
    // A copy, for the build folder may not be open to everybody.
    let copy = world.dir().join("underpass");
    fs::copy(underpass_tests::agent::binary(), &copy).must("copy the program");
    let done = setpriv
        .arg(&copy)
        .args(["exec", "--proxy", PROXY, "--", "true"])
        .run(SECONDS);
    assert_eq!(done.status.code(), Some(125), "{done:?}");
    assert!(
        done.stderr.contains("CAP_") || done.stderr.contains("root"),
        "{done:?}"
    );
}

#[test]
fn the_command_is_not_started_when_it_cannot_be_tunnelled() {
    let world = World::new("exec-broken");
    let marker = world.dir().join("ran");
    let script = format!("touch {}", marker.display());
    // The metrics port is taken: exec cannot start as it was told to.
    let _taken = underpass_tests::servers::tcp::Server::echo(world.host(), METRICS);
    let address = METRICS.to_string();
    let done: Finished =
        sh(exec(&world, PROXY, &["--metrics-addr", &address]), &script).run(SECONDS);
    assert_ne!(done.status.code(), Some(0), "{done:?}");
    assert!(done.stderr.contains("15020"), "{done:?}");
    assert!(!marker.exists());
    assert_eq!(exec_cgroups(&world), 0);
}

#[track_caller]
fn wait_for_output(running: &mut Running, end: &str) {
    let stdout = || running.stdout().ends_with(end);
    let up = poll(SECONDS, || stdout().then_some(()));
    assert!(up.is_some(), "{}", running.tails());
}

/// Whether this process exists and is no zombie.
fn is_alive(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// How many cgroups of `exec` there are below the world's.
fn exec_cgroups(world: &World) -> usize {
    let own = fs::read_dir(world.services().path())
        .must("list cgroups")
        .flatten();
    own.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .count()
}

/// The command lines of all processes, as anybody can read them.
fn command_lines() -> Vec<String> {
    let processes = fs::read_dir("/proc").must("list processes").flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .collect()
}
