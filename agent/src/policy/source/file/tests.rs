//! Files and directories as they come.

use std::os::unix::fs::symlink;

use crate::policy::{LoadError, Loaded, Options, Paths, Policy, load};

use super::*;

fn tunnel(name: &str) -> String {
    format!(
        "apiVersion: underpass.dev/v1alpha1\nkind: Tunnel\nmetadata:\n  name: {name}\n\
         spec:\n  proxy: {{host: proxy.example, port: 3128}}\n"
    )
}

fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn load_policy(paths: &[PathBuf]) -> Result<Policy, LoadError> {
    let paths = Paths {
        policy: paths.to_vec(),
        secrets: Vec::new(),
    };
    load(&paths, &Options::default(), None).policy
}

/// Problems without the directory they are in.
fn problems(result: Result<Policy, LoadError>, directory: &Path) -> Vec<String> {
    let directory = directory.display().to_string();
    let error = result.unwrap_err();
    let lines = error.problems().iter().map(ToString::to_string);
    lines.map(|line| line.replace(&directory, "DIR")).collect()
}

#[test]
fn a_directory_is_read_in_the_order_of_names() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    write(path, "b.yml", &tunnel("same"));
    write(path, "a.yaml", &tunnel("same"));
    write(path, "c.json", "{\"kind\": \"Secret\"}");
    write(path, "notes.txt", "kind: [");
    write(path, ".hidden.yaml", "kind: [");
    fs::create_dir(path.join("deeper.yaml")).unwrap();
    write(&path.join("deeper.yaml"), "d.yaml", "kind: [");
    assert_eq!(
        problems(load_policy(&[path.into()]), path),
        [
            "DIR/b.yml:4: Tunnel/same: metadata.name: `same` is already the name of a Tunnel in \
             DIR/a.yaml:4",
            "DIR/c.json:1: document 1: apiVersion: it is missing",
            "DIR/c.json:1: document 1: metadata: it is missing",
        ]
    );
}

#[test]
fn a_mounted_config_map_is_read_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::create_dir(path.join("..2024")).unwrap();
    write(&path.join("..2024"), "a.yaml", &tunnel("all"));
    symlink("..2024", path.join("..data")).unwrap();
    symlink("..data/a.yaml", path.join("a.yaml")).unwrap();
    let policy = load_policy(&[path.into()]).unwrap();
    assert_eq!(policy.proxies().count(), 1);
    let both = [path.to_owned(), path.join("a.yaml")];
    assert!(load_policy(&both).is_ok());
}

#[test]
fn what_cannot_be_read_is_a_problem_and_hides_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let empty = path.join("empty");
    fs::create_dir(&empty).unwrap();
    write(&empty, "e.yaml", "---\n# nothing\n");
    let paths = [
        path.join("missing.yaml"),
        empty,
        write(path, "bad.yaml", "kind: Tunnel\n"),
        path.join("latin1.yaml"),
        path.join("huge.yaml"),
    ];
    fs::write(path.join("latin1.yaml"), b"a: 1\nb: \xe9\n").unwrap();
    let huge = File::create(path.join("huge.yaml")).unwrap();
    huge.set_len(MAX_FILE + 1).unwrap();
    symlink("nowhere", path.join("dangling.yaml")).unwrap();
    assert_eq!(
        problems(load_policy(&paths), path),
        [
            "DIR/bad.yaml:1: document 1: apiVersion: it is missing",
            "DIR/bad.yaml:1: document 1: metadata: it is missing",
            "DIR/empty:1: directory: path: there is no document in it; they are looked for in \
             *.yaml, *.yml and *.json",
            "DIR/huge.yaml:1: file: path: it cannot be read: it is larger than 16 MiB",
            "DIR/latin1.yaml:2: file: yaml: it is not UTF-8 text",
            "DIR/missing.yaml:1: file: path: it cannot be read: No such file or directory (os \
             error 2)",
        ]
    );
    let found = problems(load_policy(&[path.into()]), path);
    assert!(
        found
            .iter()
            .any(|line| line.starts_with("DIR/dangling.yaml:1: file: path: ")),
        "{found:?}"
    );
}

#[test]
fn the_error_has_one_line_per_problem() {
    let error = load_policy(&["/nonexistent/a".into()]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the policy is not valid:\n/nonexistent/a:1: file: path: it cannot be read: No such file \
         or directory (os error 2)"
    );
}

#[test]
fn a_bad_document_keeps_its_last_good_version_and_what_it_refers_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let paths = Paths {
        policy: vec![path.into()],
        secrets: Vec::new(),
    };
    let again = |last: &Loaded| load(&paths, &Options::default(), Some(&last.sources));
    let proxies = |loaded: &Loaded| {
        let policy = loaded.policy.as_ref().unwrap();
        let mut proxies: Vec<String> = policy.proxies().map(ToString::to_string).collect();
        proxies.sort();
        proxies
    };
    let rejected = |loaded: &Loaded| {
        let subjects = loaded.rejected.iter().map(Problem::subject);
        subjects.collect::<Vec<_>>()
    };
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: proxy}\n\
                 spec: {hosts: [a.example], ports: [{number: 8080, name: p, protocol: HTTP}]}\n";
    let by_entry = tunnel("a").replace("proxy.example, port: 3128", "a.example");
    write(path, "entry.yaml", entry);
    write(path, "a.yaml", &by_entry);
    write(path, "b.yaml", &tunnel("b"));
    let first = load(&paths, &Options::default(), None);
    assert_eq!(proxies(&first), ["a.example:8080", "proxy.example:3128"]);

    // One is bad by itself, another for want of a third, and one is good.
    fs::remove_file(path.join("entry.yaml")).unwrap();
    write(path, "b.yaml", &tunnel("b").replace("3128", "none"));
    write(path, "c.yaml", &tunnel("c").replace("3128", "3129"));
    let second = again(&first);
    assert_eq!(rejected(&second), ["Tunnel/a", "Tunnel/b"]);
    let all = ["a.example:8080", "proxy.example:3128", "proxy.example:3129"];
    assert_eq!(proxies(&second), all);

    // It is still so without any of them being read again.
    let third = again(&second);
    assert_eq!(rejected(&third), ["Tunnel/a", "Tunnel/b"]);
    assert_eq!(proxies(&third), all);

    // Nobody needs the third any more.
    fs::remove_file(path.join("a.yaml")).unwrap();
    let fourth = again(&third);
    assert_eq!(rejected(&fourth), ["Tunnel/b"]);
    assert_eq!(proxies(&fourth), all[1..]);
    assert_eq!(fourth.sources.documents.service_entries.len(), 0);

    // What goes, goes, whatever else is bad.
    fs::remove_file(path.join("c.yaml")).unwrap();
    let fifth = again(&fourth);
    assert_eq!(rejected(&fifth), ["Tunnel/b"]);
    assert_eq!(proxies(&fifth), all[1..2]);

    // Nothing is there but what was kept.
    let problems = again(&fifth).policy.unwrap_err();
    assert_eq!(problems.problems().len(), 1, "{problems}");
}

#[test]
fn half_a_secret_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let login = path.join("secrets/login");
    fs::create_dir_all(&login).unwrap();
    write(&login, "username", "meg");
    write(&login, "password", "secret");
    let with_login = tunnel("a").replace(
        "port: 3128",
        "port: 3128, authentication: {credentialName: login}",
    );
    let other = write(path, "b.yaml", &tunnel("b"));
    let paths = Paths {
        policy: vec![write(path, "a.yaml", &with_login), other.clone()],
        secrets: vec![path.join("secrets")],
    };
    let credentials = |loaded: &Loaded| {
        let policy = loaded.policy.as_ref().unwrap();
        let mut with = policy.proxies().filter_map(|p| p.credentials.as_ref());
        with.next().map(|it| it.header().to_owned())
    };
    let first = load(&paths, &Options::default(), None);
    let good = credentials(&first);

    fs::remove_file(login.join("password")).unwrap();
    symlink("nowhere", login.join("password")).unwrap();
    write(path, "b.yaml", &tunnel("b").replace("3128", "3129"));
    let second = load(&paths, &Options::default(), Some(&first.sources));
    assert_eq!(credentials(&second), good);
    let rejected: Vec<_> = second.rejected.iter().map(ToString::to_string).collect();
    let expected = format!(
        "{}:1: directory: path: `password` in it cannot be read: No such file or directory \
         (os error 2)",
        login.display()
    );
    assert_eq!(rejected, [expected]);
    assert_eq!(second.policy.unwrap().proxies().count(), 2);
}
