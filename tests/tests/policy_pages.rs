//! The pages in `docs/policy` list every field there is, and none that there is not.
//!
//! Which there are, `underpass check` says itself: a field it does not know is answered with those
//! it expects in that place.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use underpass_tests::agent::underpass;
use underpass_tests::{Must as _, World};

/// The kinds whose unknown fields are errors, with a version and their page. Of a Service only what
/// is of use is read.
const KINDS: [(&str, &str, &str); 5] = [
    (
        "DestinationRule",
        "networking.istio.io/v1",
        "destination-rule",
    ),
    ("Secret", "v1", "secret"),
    ("ServiceEntry", "networking.istio.io/v1", "service-entry"),
    ("Tunnel", "underpass.dev/v1alpha1", "tunnel"),
    (
        "VirtualService",
        "networking.istio.io/v1",
        "virtual-service",
    ),
];

/// A field that no document has.
const UNKNOWN: &str = "zzz";

/// The fields of a kind as dotted paths, `[]` after a list: `spec.ports[].number`.
type Fields = BTreeSet<String>;

fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("the repository").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).must(format_args!("read {path}"))
}

/// A document with `field` at the place `path`, which is empty for the document itself.
fn document(kind: &str, version: &str, name: &str, path: &str, field: &str) -> Value {
    let mut inside = json!({ field: 1 });
    for step in path.rsplit('.').filter(|step| !step.is_empty()) {
        inside = match step.strip_suffix("[]") {
            Some(list) => json!({ list: [inside] }),
            None => json!({ step: inside }),
        };
    }
    let mut document = json!({
        "apiVersion": version,
        "kind": kind,
        "metadata": { "name": name },
    });
    for (key, value) in inside.as_object().expect("a mapping") {
        match (key.as_str(), value) {
            ("metadata", Value::Object(more)) => {
                let metadata = document["metadata"].as_object_mut();
                metadata.expect("a mapping").extend(more.clone());
            }
            _ => document[key] = value.clone(),
        }
    }
    document
}

/// Asks `check` about one document for each of `places`, a kind with a path, and gives back what
/// fields are expected where `field` is unknown.
#[track_caller]
fn expected_at(
    world: &World,
    places: &[(usize, String)],
    field: impl Fn(usize) -> String,
) -> BTreeMap<usize, Vec<String>> {
    let documents = places.iter().enumerate().map(|(number, (kind, path))| {
        let (kind, version, _) = KINDS[*kind];
        let name = format!("number-{number}");
        document(kind, version, &name, path, &field(number)).to_string()
    });
    let text = documents.collect::<Vec<_>>().join("\n---\n");
    let file = world.dir().join("fields.yaml");
    fs::write(&file, text).must("write documents");
    let check = underpass(world).arg("check").arg(&file);
    let answer = check.run(Duration::from_secs(20)).stdout;
    let mut expected = BTreeMap::new();
    for line in answer.lines() {
        let Some((place, reason)) = line.split_once(": unknown field ") else {
            continue;
        };
        let number = place.split("/number-").nth(1).and_then(|rest| {
            let (number, key) = rest.split_once(": ")?;
            let number: usize = number.parse().ok()?;
            let path = &places[number].1.replace("[]", "[0]");
            let there = format!("{path}.{}", field(number));
            (key == there.trim_start_matches('.')).then_some(number)
        });
        let Some(number) = number else { continue };
        let (_, fields) = reason.split_once(", expected ").expect("what is expected");
        let fields = fields.split('`').skip(1).step_by(2).map(str::to_owned);
        expected.insert(number, fields.collect());
    }
    expected
}

/// The fields of every kind, as `check` tells them.
#[track_caller]
fn fields_there_are(world: &World) -> Vec<Fields> {
    let mut found = vec![Fields::new(); KINDS.len()];
    let mut places: Vec<(usize, String)> =
        (0..KINDS.len()).map(|kind| (kind, String::new())).collect();
    while !places.is_empty() {
        // What is no mapping may be a list of them, or just a value.
        let expected = expected_at(world, &places, |_| UNKNOWN.to_owned());
        let (mappings, others): (Vec<_>, Vec<_>) =
            (0..places.len()).partition(|n| expected.contains_key(n));
        let lists: Vec<_> = others
            .into_iter()
            .map(|number| (places[number].0, format!("{}[]", places[number].1)))
            .collect();
        let expected_in_lists = expected_at(world, &lists, |_| UNKNOWN.to_owned());
        let mappings = mappings
            .into_iter()
            .map(|number| (&places[number], &expected[&number]));
        let lists = expected_in_lists
            .iter()
            .map(|(number, fields)| (&lists[*number], fields));
        let mut next = Vec::new();
        for ((kind, path), fields) in mappings.chain(lists) {
            for field in fields {
                let field = format!("{path}.{field}");
                let field = field.trim_start_matches('.').to_owned();
                next.push((*kind, field.clone()));
                found[*kind].insert(field);
            }
        }
        places = next;
    }
    found
}

/// The fields that the tables of a page list: those whose first column is of fields.
fn fields_listed(page: &str) -> Fields {
    let mut fields = Fields::new();
    let mut prefix = None;
    let mut inside = false;
    for line in page.lines() {
        let Some(row) = line.strip_prefix('|') else {
            inside = false;
            continue;
        };
        let cell = row.split('|').next().unwrap_or_default().trim();
        if !inside {
            inside = true;
            prefix = match cell {
                "field" => Some(""),
                "field of `spec`" => Some("spec."),
                _ => None,
            };
        } else if let Some(prefix) = prefix {
            let spans = cell.split('`').skip(1).step_by(2);
            fields.extend(spans.map(|field| format!("{prefix}{field}")));
        }
    }
    fields
}

/// Takes out what stands below `at`: it is what also stands below `of` in `among`, and described
/// there.
#[track_caller]
fn described_elsewhere(fields: &mut Fields, at: &str, of: &str, among: &Fields) {
    let below = |fields: &Fields, at: &str| -> Fields {
        let rest = fields.iter().filter_map(|field| field.strip_prefix(at));
        rest.map(str::to_owned).collect()
    };
    assert_eq!(below(fields, at), below(among, of), "{at} and {of}");
    assert!(!below(fields, at).is_empty(), "{at}");
    fields.retain(|field| !field.starts_with(at));
}

#[test]
fn every_field_is_on_its_page() {
    let world = World::new("fields");
    let there_are = fields_there_are(&world);
    let of = |kind: &str| {
        let index = KINDS.iter().position(|(known, ..)| *known == kind);
        &there_are[index.expect("a kind")]
    };
    let policy = fields_listed(&read("docs/policy.md"));
    for ((kind, _, page), fields) in KINDS.iter().zip(&there_are) {
        let (metadata, mut fields): (Fields, Fields) = fields
            .iter()
            .cloned()
            .partition(|field| field.starts_with("metadata."));
        assert_eq!(metadata, policy, "docs/policy.md on metadata of {kind}");
        for known in ["apiVersion", "kind", "metadata", "spec", "status"] {
            fields.remove(known);
        }
        let own = fields.clone();
        match *kind {
            "DestinationRule" => {
                let (beside, inside) = (
                    "spec.trafficPolicy.proxy",
                    "spec.trafficPolicy.tunnel.proxy",
                );
                described_elsewhere(&mut fields, beside, inside, &own);
                for what in ["tls", "connectionPool", "loadBalancer", "outlierDetection"] {
                    let port = format!("spec.trafficPolicy.portLevelSettings[].{what}.");
                    let all = format!("spec.trafficPolicy.{what}.");
                    described_elsewhere(&mut fields, &port, &all, &own);
                }
            }
            "Tunnel" => {
                described_elsewhere(&mut fields, "spec.proxies[].", "spec.proxy.", &own);
                let tls = of("DestinationRule");
                let (proxy, rule) = ("spec.proxy.tls.", "spec.trafficPolicy.tls.");
                described_elsewhere(&mut fields, proxy, rule, tls);
            }
            "VirtualService" => {
                let (tcp, tls) = ("spec.tcp[].route[].", "spec.tls[].route[].");
                described_elsewhere(&mut fields, tcp, tls, &own);
            }
            _ => {}
        }
        assert!(fields.len() >= 4, "{kind}: {fields:?}");
        let listed = fields_listed(&read(&format!("docs/policy/{page}.md")));
        let missing: Vec<_> = fields.difference(&listed).collect();
        let invented: Vec<_> = listed.difference(&fields).collect();
        assert!(
            missing.is_empty() && invented.is_empty(),
            "docs/policy/{page}.md lacks {missing:?}, and there is no {invented:?}"
        );
    }
}

/// The fields that a page says are ignored.
fn said_to_be_ignored(page: &str) -> Fields {
    let (_, list) = page
        .split_once("## Accepted and ignored\n")
        .unwrap_or_default();
    let items = list.lines().filter_map(|line| line.strip_prefix("- `"));
    let fields = items.filter_map(|item| item.strip_suffix('`'));
    fields.map(|field| format!("spec.{field}")).collect()
}

#[test]
fn every_field_that_is_ignored_is_on_its_page() {
    let world = World::new("ignored");
    let mut listed = Vec::new();
    for (index, (kind, _, page)) in KINDS.iter().enumerate() {
        let module = page.replace('-', "_");
        let source = read(&format!("agent/src/policy/api/{module}.rs"));
        let (_, list) = source.split_once("ignored: &[").unwrap_or(("", "],"));
        let (list, _) = list.split_once("],").expect("the end of a list");
        let ignored: Fields = list
            .split('"')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect();
        let said = said_to_be_ignored(&read(&format!("docs/policy/{page}.md")));
        assert_eq!(said, ignored, "{kind}");
        listed.extend(said.into_iter().map(|field| (index, field)));
    }
    assert!(listed.len() > 20, "{listed:?}");

    // They are accepted where another would be unknown.
    let (places, names): (Vec<_>, Vec<_>) = listed
        .iter()
        .map(|(kind, field)| {
            let (path, name) = field.rsplit_once('.').expect("a path");
            ((*kind, path.to_owned()), name.to_owned())
        })
        .unzip();
    let unknown = expected_at(&world, &places, |number| names[number].clone());
    assert_eq!(unknown, BTreeMap::new());
    let others = expected_at(&world, &places, |_| UNKNOWN.to_owned());
    assert_eq!(others.len(), places.len());
}
