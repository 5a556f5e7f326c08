//! What the documents say is so.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use underpass_tests::addr::{OTHER_V4, proxy_v4};
use underpass_tests::agent::{Agent, METRICS, binary, tunnel_policy, underpass};
use underpass_tests::servers::fake_proxy::{Answer, FakeProxy};
use underpass_tests::{Must as _, Scene, World, http};

const SECONDS: Duration = Duration::from_secs(20);

fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("the repository").to_owned()
}

/// Files with this extension in a folder of the repository.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).must(format_args!("list {folder}"));
    let paths = entries.map(|entry| entry.must("list").path());
    let mut files: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|is| is == extension))
        .collect();
    files.sort();
    files
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).must(format_args!("read {}", path.display()))
}

/// README, that of `deploy`, and everything in `docs`: what users read.
fn user_documents() -> Vec<PathBuf> {
    let mut documents = files("docs", "md");
    documents.extend(files("docs/policy", "md"));
    documents.push(root().join("README.md"));
    documents.push(root().join("deploy/README.md"));
    documents
}

/// The fenced blocks of a document with what follows their opening fence.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(language), None) => open = Some((language.trim().to_owned(), String::new())),
            (None, Some((_, block))) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block without an end");
    blocks
}

/// The text outside fenced blocks.
fn prose(text: &str) -> String {
    let mut inside = false;
    text.lines()
        .filter(|line| {
            let fence = line.trim_start().starts_with("```");
            inside ^= fence;
            !inside && !fence
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// What links to the headings of a document end in.
fn headings(document: &Path) -> BTreeSet<String> {
    let text = prose(&read(document));
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let kept = |c: &char| c.is_alphanumeric() || *c == ' ' || *c == '-';
    headings
        .map(|line| line.trim_start_matches('#').trim().to_lowercase())
        .map(|title| {
            title
                .chars()
                .filter(kept)
                .collect::<String>()
                .replace(' ', "-")
        })
        .collect()
}

/// What stands between single backticks.
fn spans(text: &str) -> Vec<String> {
    let prose = prose(text);
    prose
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_policy_shown_is_valid() {
    let world = World::new("examples");
    let mut policies = files("deploy/examples", "yaml");
    assert!(!policies.is_empty());
    let mut shown = 0;
    for document in user_documents() {
        let yaml = blocks(&read(&document))
            .into_iter()
            .filter(|(language, text)| language == "yaml" && text.contains("kind:"));
        for (number, (_, text)) in yaml.enumerate() {
            let name = document.file_stem().unwrap_or_default().display();
            let file = world.dir().join(format!("{name}-{number}.yaml"));
            fs::write(&file, text).must("write a policy");
            policies.push(file);
            shown += 1;
        }
    }
    assert!(shown > 1, "README and docs/policy.md show policies");
    for policy in policies {
        let done = underpass(&world).arg("check").arg(&policy).run(SECONDS);
        assert_eq!(
            done.status.code(),
            Some(0),
            "{}: {done:?}",
            policy.display()
        );
        assert_eq!(done.stdout, "", "{}", policy.display());
        // The one thing worth a word is that names are refused while the agent is gone.
        let mut words = done.stderr.lines();
        assert!(
            words.all(|line| line.contains("warning") && line.contains("names in it are refused")),
            "{}",
            done.stderr
        );
    }
}

#[test]
fn every_link_leads_somewhere() {
    let mut documents = user_documents();
    documents.extend(files(".", "md"));
    let mut followed = 0;
    for document in documents {
        let text = prose(&read(&document));
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap_or_default();
            if target.contains("://") {
                continue;
            }
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let folder = document.parent().expect("a folder");
            let path = if path.is_empty() {
                document.clone()
            } else {
                folder.join(path)
            };
            assert!(
                path.exists() && (heading.is_empty() || headings(&path).contains(heading)),
                "{}: {target} leads nowhere",
                document.display()
            );
            followed += 1;
        }
    }
    assert!(followed > 2, "README links to the other documents");
}

#[test]
fn readme_names_the_two_commands() {
    let commands: String = blocks(&read(&root().join("README.md")))
        .into_iter()
        .map(|(_, block)| block)
        .collect();
    for command in ["cargo xtask demo", "cargo xtask test"] {
        assert!(commands.contains(command), "{command}");
    }
}

/// The verbs that the program says it has.
fn verbs(world: &World) -> BTreeSet<String> {
    let help = underpass(world).arg("--help").run(SECONDS);
    let help = help.expect_success().stdout;
    help.lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_verb_that_documents_use_exists() {
    let world = World::new("verbs");
    let known = verbs(&world);
    let mut used = BTreeSet::new();
    for document in user_documents() {
        let text = read(&document);
        let code = blocks(&text).into_iter().map(|(_, block)| block);
        for code in code.chain(spans(&text)) {
            for line in code.lines() {
                let words: Vec<&str> = line.split_whitespace().collect();
                let verbs = words
                    .windows(2)
                    .filter(|pair| pair[0] == "underpass" && !pair[1].starts_with('-'));
                used.extend(verbs.map(|pair| pair[1].to_owned()));
            }
        }
    }
    assert!(used.len() >= 4, "{used:?}");
    for verb in &used {
        assert!(known.contains(verb), "{verb} is none of {known:?}");
    }
}

#[test]
fn every_option_that_documents_name_exists() {
    let world = World::new("options");
    let help: String = verbs(&world)
        .iter()
        .map(|verb| {
            let help = underpass(&world).args([verb, "--help"]).run(SECONDS);
            help.expect_success().stdout
        })
        .collect();
    let mut named = 0;
    for document in user_documents() {
        for span in spans(&read(&document)) {
            // Other programs have options too.
            if span.starts_with("cargo ") {
                continue;
            }
            for option in span
                .split_whitespace()
                .filter(|word| word.starts_with("--") && *word != "---")
            {
                assert!(
                    help.contains(option),
                    "{}: no verb has {option}",
                    document.display()
                );
                named += 1;
            }
        }
    }
    assert!(named > 5, "docs/operations.md names options");
}

/// The metrics that a document names, each as the names it can mean: `_active` after
/// `underpass_proxy_connections_total` is a short form that replaces the end of the full name.
fn metrics_named(text: &str) -> Vec<BTreeSet<String>> {
    let is_name = |word: &str| {
        word.chars()
            .all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    let mut full = String::new();
    let mut named = Vec::new();
    for span in spans(text).into_iter().filter(|span| is_name(span)) {
        if span.starts_with("underpass_") || span.starts_with("istio_") {
            full.clone_from(&span);
            named.push(BTreeSet::from([span]));
        } else if span.starts_with('_') && !full.is_empty() {
            let starts = full.match_indices('_').map(|(at, _)| &full[..at]);
            named.push(starts.map(|start| format!("{start}{span}")).collect());
        }
    }
    named
}

/// A target that is refused after one failure, and whose requests are tried again.
const FRAGILE: &str = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: fragile}
spec: {host: other.example, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 1}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: fragile}
spec: {hosts: [other.example], http: [{retries: {attempts: 1, retryOn: 5xx}}]}
";

#[test]
fn the_metrics_documented_are_those_there_are() {
    let scene = Scene::new("documented-metrics");
    let proxy = FakeProxy::start(scene.world.inet(), proxy_v4(), Answer::tunnel());
    let policy = tunnel_policy(&["targetHost: AUTO_SNI"]) + FRAGILE;
    let agent = Agent::start(&scene.world, &policy);
    // One of each: served, denied by policy, tried again and refused, failed at the proxy; and
    // policy read again.
    let site = scene.curl("https://site.example/").args(["-4"]);
    scene.captured(&site).expect_ok();
    let plain = scene.curl("http://site.example/").args(["-4"]);
    scene.captured(&plain).expect_ok();
    let inet = scene.world.inet();
    let calls = inet.debian_python("grpc_site");
    let mut calls = calls.args([&OTHER_V4.to_string(), "8080"]).start();
    calls.wait_until_listening(inet, (OTHER_V4, 8080).into());
    let client = scene.grpc_client("other.example:8080");
    let client = client.input(r#"[["echo", "abc"]]"#).run(SECONDS);
    assert!(client.expect_success().stdout.contains("ok"));
    let moods = inet.python("moods");
    let mut moods = moods.args([&OTHER_V4.to_string(), "8081"]).start();
    moods.wait_until_listening(inet, (OTHER_V4, 8081).into());
    let failing = scene.curl("http://other.example:8081/status/503");
    assert_eq!(scene.captured(&failing).status, 503);
    let nameless = scene.curl("https://203.0.113.10/").args(["--insecure"]);
    assert_ne!(scene.captured(&nameless).exit, 0);
    proxy.set_answer(Answer::Reset);
    assert_ne!(scene.captured(&site).exit, 0);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(agent.pid().cast_signed()),
        Signal::SIGHUP,
    )
    .must("have policy read again");
    let reloaded = [("result", "success")];
    agent.wait_for_metric("underpass_policy_reload_total", &reloaded, 1.0);

    let scrape = http::get(scene.world.host(), METRICS, "/metrics").must("scrape");
    let families: BTreeSet<&str> = scrape
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .filter(|name| name.starts_with("underpass_") || name.starts_with("istio_"))
        .collect();
    let mut documented = BTreeSet::new();
    for names in metrics_named(&read(&root().join("docs/operations.md"))) {
        let exist: Vec<&String> = names
            .iter()
            .filter(|name| families.contains(name.as_str()))
            .collect();
        assert_eq!(
            exist.len(),
            1,
            "documented: {names:?}, there are: {exist:?}"
        );
        documented.insert(exist[0].as_str().to_owned());
    }
    for family in families {
        assert!(documented.contains(family), "{family} is not documented");
    }
}

#[test]
fn the_unit_for_systemd_starts_the_program_as_it_is() {
    let world = World::new("unit");
    let unit = read(&root().join("deploy/systemd/underpass.service"));
    let start = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="))
        .expect("a unit starts something");
    let words: Vec<&str> = start.split_whitespace().collect();
    assert!(words[0].ends_with("/underpass"), "{start}");
    let help = world.host().command(binary()).args([words[1], "--help"]);
    let help = help.run(SECONDS).expect_success().stdout;
    for option in words.iter().filter(|word| word.starts_with("--")) {
        assert!(help.contains(option), "{option}");
    }
}
