//! `underpass check`: what is wrong with a policy, and where.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use underpass_tests::agent::{tunnel_policy, underpass};
use underpass_tests::process::Finished;
use underpass_tests::{Must as _, World};

struct Checker {
    world: World,
}

impl Checker {
    fn new(name: &str) -> Self {
        Self {
            world: World::new(name),
        }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.world.dir().join(name);
        fs::write(&path, text).must("write a policy");
        path
    }

    fn run(&self, args: impl IntoIterator<Item = PathBuf>) -> Finished {
        underpass(&self.world)
            .arg("check")
            .args(args)
            .run(Duration::from_secs(10))
    }
}

#[test]
fn a_good_policy_passes_without_a_word() {
    let checker = Checker::new("check-good");
    let full = tunnel_policy(&[
        "targetHost: AUTO_SNI",
        "targetPort: 443",
        "noProxy: ['203.0.113.7:25', 203.0.113.0/24]",
    ]);
    let full = checker.file("full.yaml", &full);
    let done = checker.run([full]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("", ""));
}

#[test]
fn a_tunnel_that_never_applies_is_worth_a_warning() {
    let checker = Checker::new("check-shadowed");
    let several = format!("{}---\n---\n{}", tunnel_policy(&[]), tunnel_policy(&[]));
    let file = checker.file(
        "several.yaml",
        &several.replacen("everything", "another", 1),
    );
    let done = checker.run([file.clone()]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert_eq!(done.stdout, "");
    let start = format!("underpass: warning: {}:", file.display());
    assert!(done.stderr.starts_with(&start), "{done:?}");
    assert!(done.stderr.contains("Tunnel/everything"), "{done:?}");
}

#[test]
fn each_problem_is_one_line_with_position_object_key_and_reason() {
    let checker = Checker::new("check-bad");
    // (what replaces what, line, key, a word of the reason)
    let cases = [
        ("port: 3128", "port: 99999", 8, "spec.proxy.port", "99999"),
        (
            "port: 3128",
            "port: 3128\n    prot: 1",
            9,
            "spec.proxy.prot",
            "prot",
        ),
        (
            "host: proxy.example",
            "host: 'a b'",
            7,
            "spec.proxy.host",
            "a b",
        ),
        (
            "  proxy:",
            "  targetHost: 'not a name'\n  proxy:",
            6,
            "spec.targetHost",
            "not a name",
        ),
        (
            "  proxy:",
            "  targetPort: 0\n  proxy:",
            6,
            "spec.targetPort",
            "0",
        ),
        (
            "  proxy:",
            "  noProxy: [a.example, '300.1.2.3/8']\n  proxy:",
            6,
            "spec.noProxy[1]",
            "300",
        ),
        ("kind: Tunnel", "kind: Tunel", 2, "kind", "Tunel"),
    ];
    for (number, (old, new, line, key, word)) in cases.into_iter().enumerate() {
        let text = tunnel_policy(&[]).replacen(old, new, 1);
        assert_ne!(text, tunnel_policy(&[]));
        let file = checker.file(&format!("bad-{number}.yaml"), &text);
        let done = checker.run([file.clone()]);
        assert_eq!(done.status.code(), Some(64), "{new}: {done:?}");
        let lines: Vec<&str> = done.stdout.lines().collect();
        let [problem] = lines[..] else {
            panic!("{new}: not one line: {done:?}")
        };
        let object = if key == "kind" {
            "Tunel/everything"
        } else {
            "Tunnel/everything"
        };
        let start = format!("{}:{line}: {object}: {key}: ", file.display());
        let reason = problem.strip_prefix(&start);
        let reason = reason.unwrap_or_else(|| panic!("{problem}\ndoes not start with\n{start}"));
        assert!(reason.contains(word), "{problem}");
    }
}

#[test]
fn every_document_of_every_file_is_looked_at() {
    let checker = Checker::new("check-all");
    let bad = tunnel_policy(&[]).replace("3128", "none");
    let first = checker.file(
        "first.yaml",
        &format!("{bad}---\n{}", bad.replace("every", "no")),
    );
    let dir = checker.world.dir().join("more");
    fs::create_dir(&dir).must("make a directory");
    fs::write(dir.join("good.yaml"), tunnel_policy(&[])).must("write");
    fs::write(dir.join("bad.yml"), &bad).must("write");
    fs::write(dir.join("notes.txt"), "not YAML: [").must("write");
    let done = checker.run([first.clone(), dir.clone()]);
    let (first, second) = (first.display(), dir.join("bad.yml"));
    let starts = [
        format!("{first}:8: Tunnel/everything: spec.proxy.port: "),
        format!("{first}:17: Tunnel/nothing: spec.proxy.port: "),
        format!(
            "{}:8: Tunnel/everything: spec.proxy.port: ",
            second.display()
        ),
    ];
    assert_eq!(done.status.code(), Some(64), "{done:?}");
    assert_eq!(done.stdout.lines().count(), 3, "{}", done.stdout);
    for (line, start) in done.stdout.lines().zip(starts) {
        assert!(
            line.starts_with(&start),
            "{line}\ndoes not start with\n{start}"
        );
    }
}

/// The same for programs, with this exit status and nothing on standard error.
#[track_caller]
fn as_json(checker: &Checker, paths: &[PathBuf], exit: i32) -> Value {
    let options = ["--output", "json"].map(PathBuf::from);
    let done = checker.run(paths.iter().cloned().chain(options));
    assert_eq!(done.status.code(), Some(exit), "{done:?}");
    assert_eq!(done.stderr, "");
    let told: Value = serde_json::from_str(&done.stdout).must(format_args!("read {done:?}"));
    let keys: Vec<&String> = told.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["problems", "valid", "warnings"]);
    told
}

/// Each of a list as it is for people.
#[track_caller]
fn lines(list: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let list = list.as_array().expect("a list").iter();
    list.map(|it| {
        let [file, object, key, reason] = ["file", "object", "key", "reason"].map(|k| text(&it[k]));
        assert_eq!(it.as_object().map(serde_json::Map::len), Some(5), "{it}");
        format!("{file}:{}: {object}: {key}: {reason}", it["line"])
    })
    .collect()
}

#[test]
fn programs_are_told_the_same_as_people() {
    let checker = Checker::new("check-json");
    let good = checker.file("good.yaml", &tunnel_policy(&[]));
    let told = as_json(&checker, &[good], 0);
    let nothing = json!({"valid": true, "problems": [], "warnings": []});
    assert_eq!(told, nothing);

    let twice = format!("{}---\n{}", tunnel_policy(&[]), tunnel_policy(&[]));
    let warned = checker.file("warned.yaml", &twice.replacen("everything", "another", 1));
    let told = as_json(&checker, std::slice::from_ref(&warned), 0);
    assert_eq!(told["valid"], true, "{told}");
    assert_eq!(told["problems"], json!([]), "{told}");
    let warnings = lines(&told["warnings"]);
    let said = checker.run([warned.clone()]).stderr;
    let said: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("underpass: warning: "))
        .collect();
    assert_eq!(warnings, said);
    assert_eq!(warnings.len(), 1, "{told}");

    // Of a policy with problems nothing else is worth a word.
    let bad = tunnel_policy(&["targetHots: AUTO_SNI", "targetPort: 0"]);
    let bad = checker.file("bad.yaml", &bad);
    let broken = checker.file("broken.yaml", "kind: [");
    let missing = checker.world.dir().join("missing.yaml");
    let paths = [bad.clone(), warned, broken, missing];
    let told = as_json(&checker, &paths, 64);
    assert_eq!(told["valid"], false, "{told}");
    assert_eq!(told["warnings"], json!([]), "{told}");
    let problems = lines(&told["problems"]);
    let done = checker.run(paths);
    assert_eq!(problems, done.stdout.lines().collect::<Vec<_>>());
    assert_eq!(problems.len(), 4, "{told}");
    let first = &told["problems"][0];
    assert_eq!(first["file"], bad.display().to_string(), "{told}");
    assert_eq!(first["line"], 9, "{told}");
    assert_eq!(first["object"], "Tunnel/everything", "{told}");
    assert_eq!(first["key"], "spec.targetHots", "{told}");
}

#[test]
fn secrets_that_are_directories_are_looked_at() {
    let checker = Checker::new("check-secrets");
    let secrets = checker.world.dir().join("secrets");
    let login = secrets.join("login");
    fs::create_dir_all(&login).must("make a Secret");
    fs::write(login.join("username"), "meg").must("write a key");
    let policy = tunnel_policy(&[]).replace(
        "port: 3128",
        "port: 3128\n    authentication: {credentialName: login}",
    );
    let file = checker.file("policy.yaml", &policy);
    let told = as_json(&checker, std::slice::from_ref(&file), 64);
    assert_eq!(told["problems"][0]["line"], 9, "{told}");

    let with = |secrets: PathBuf| [file.clone(), "--secrets".into(), secrets];
    let told = as_json(&checker, &with(secrets), 0);
    assert_eq!(told["valid"], true, "{told}");
    let nowhere = checker.world.dir().join("nowhere");
    let told = as_json(&checker, &with(nowhere.clone()), 64);
    let problem = &told["problems"][0];
    assert_eq!(problem["file"], nowhere.display().to_string(), "{told}");
    assert_eq!(problem["object"], "directory", "{told}");
}

#[test]
fn wrong_usage_exits_64() {
    let checker = Checker::new("check-usage");
    let file = checker.world.dir().join("missing.yaml");
    for args in [vec![], vec![PathBuf::from("--no-such-option")], vec![file]] {
        let done = checker.run(args.clone());
        assert_eq!(done.status.code(), Some(64), "{args:?}: {done:?}");
        assert!(!(done.stdout + &done.stderr).is_empty(), "{args:?}");
    }
}

#[test]
fn a_bad_policy_stops_run_before_it_starts() {
    let checker = Checker::new("check-run");
    let file = checker.file("bad.yaml", &tunnel_policy(&[]).replace("3128", "0"));
    let run = underpass(&checker.world)
        .arg("run")
        .arg("--policy")
        .arg(&file);
    let done = run.arg("--cgroup").arg(checker.world.workload().path());
    let done = done.run(Duration::from_secs(10));
    assert_eq!(done.status.code(), Some(64), "{done:?}");
    let position = format!("{}:8: Tunnel/everything: spec.proxy.port: ", file.display());
    assert!(done.stderr.contains(&position), "{done:?}");
}
