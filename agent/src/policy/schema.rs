//! The kinds of policy as an API server takes them: CustomResourceDefinitions.
//!
//! They are derived from the types that documents are read into. An API server wants them
//! *structural*: every node has one type, nothing is referred to, and what is not listed is pruned.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::api::Object;
use super::api::destination_rule::{DestinationRule, DestinationRuleSpec};
use super::api::service_entry::{ServiceEntry, ServiceEntrySpec};
use super::api::tunnel::{Tunnel, TunnelSpec};

const GROUP: &str = "underpass.dev";
const VERSION: &str = "v1alpha1";

/// A CustomResourceDefinition.
#[derive(Clone, Debug, PartialEq)]
pub struct CustomResource {
    /// `tunnels.underpass.dev`
    pub name: String,
    /// What an API server is given.
    pub definition: Value,
}

/// What is said of a kind besides its fields.
struct Names {
    plural: &'static str,
    singular: &'static str,
    short: &'static str,
    /// Columns of `kubectl get`: heading and path.
    columns: &'static [(&'static str, &'static str)],
    /// What agents tell of it, if they do.
    status: Option<Value>,
}

/// What becomes of a Tunnel, as agents tell.
fn tunnel_status() -> Value {
    let text = |what: &str| json!({"type": "string", "description": what});
    let count = |what: &str| json!({"type": "integer", "minimum": 0, "description": what});
    json!({
        "type": "object",
        "description": "What has become of it.",
        "properties": {
            "conditions": {
                "type": "array",
                "description": "Whether it is valid (`Accepted`), and in force on all nodes (`Programmed`).",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status"],
                    "properties": {
                        "type": text("`Accepted` or `Programmed`."),
                        "status": {
                            "type": "string",
                            "description": "Whether it is so.",
                            "enum": ["True", "False", "Unknown"],
                        },
                        "reason": text("Why, in a word."),
                        "message": text("Why."),
                        "observedGeneration": count("The version that this is about."),
                        "lastTransitionTime": {
                            "type": "string",
                            "format": "date-time",
                            "description": "Since when it is so.",
                        },
                    },
                },
            },
            "nodes": {
                "type": "object",
                "description": "On how many nodes it is.",
                "properties": {
                    "programmed": count("Those that have this version in force."),
                    "total": count("Those with an agent."),
                },
            },
        },
    })
}

/// The kinds of `underpass.dev`, for clusters that keep policy in their API.
pub fn custom_resources() -> Vec<CustomResource> {
    vec![
        custom_resource::<Tunnel, TunnelSpec>(&Names {
            plural: "tunnels",
            singular: "tunnel",
            short: "tun",
            columns: &[
                ("Action", ".spec.action"),
                ("Proxy", ".spec.proxy.host"),
                ("Target", ".spec.targetHost"),
                (
                    "Programmed",
                    ".status.conditions[?(@.type==\"Programmed\")].status",
                ),
            ],
            status: Some(tunnel_status()),
        }),
        custom_resource::<ServiceEntry, ServiceEntrySpec>(&Names {
            plural: "serviceentries",
            singular: "serviceentry",
            short: "se",
            columns: &[
                ("Hosts", ".spec.hosts"),
                ("Location", ".spec.location"),
                ("Resolution", ".spec.resolution"),
            ],
            status: None,
        }),
        custom_resource::<DestinationRule, DestinationRuleSpec>(&Names {
            plural: "destinationrules",
            singular: "destinationrule",
            short: "dr",
            columns: &[
                ("Host", ".spec.host"),
                ("Proxy", ".spec.trafficPolicy.tunnel.proxy.host"),
            ],
            status: None,
        }),
    ]
}

fn custom_resource<T: Object, S: JsonSchema>(names: &Names) -> CustomResource {
    let Names {
        plural,
        singular,
        short,
        columns,
        status,
    } = names;
    let name = format!("{plural}.{GROUP}");
    let mut columns: Vec<_> = columns
        .iter()
        .map(|(name, path)| json!({"name": name, "type": "string", "jsonPath": path}))
        .collect();
    columns.push(json!({
        "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
    }));
    let mut definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": T::KIND,
                "listKind": format!("{}List", T::KIND),
                "plural": plural,
                "singular": singular,
                "shortNames": [short],
                "categories": ["underpass"],
            },
            "scope": "Namespaced",
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": {"type": "string"},
                        "kind": {"type": "string"},
                        "metadata": {"type": "object"},
                        "spec": structural::<S>(),
                    },
                }},
            }],
        },
    });
    if let Some(status) = status {
        let version = &mut definition["spec"]["versions"][0];
        version["subresources"] = json!({"status": {}});
        version["schema"]["openAPIV3Schema"]["properties"]["status"] = status.clone();
    }
    CustomResource { name, definition }
}

/// The schema of a type, as an API server wants it.
fn structural<S: JsonSchema>() -> Value {
    let mut settings = SchemaSettings::openapi3();
    settings.inline_subschemas = true;
    settings.meta_schema = None;
    let mut schema = settings
        .into_generator()
        .into_root_schema_for::<S>()
        .to_value();
    straighten(&mut schema);
    schema
}

/// Takes out of a schema what an API server does not take, or what would change documents.
fn straighten(schema: &mut Value) {
    let Value::Object(node) = schema else { return };
    one_or_null(node);
    one_of_words(node);
    for key in [
        "title", // An absent field is as good as null, and absent it stays.
        "nullable", "default", // Not known to an API server; the bounds say the same.
        "format",
    ] {
        node.remove(key);
    }
    if let Some(Value::Array(words)) = node.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
    if node.contains_key("properties") {
        // What is not listed is pruned, or refused.
        node.remove("additionalProperties");
    }
    if let Some(Value::String(text)) = node.get_mut("description") {
        // Without the links of rustdoc.
        *text = text
            .replace('\n', " ")
            .replace("[`", "`")
            .replace("`]", "`");
    }
    for (key, value) in node.iter_mut() {
        match (key.as_str(), value) {
            ("properties", Value::Object(fields)) => fields.values_mut().for_each(straighten),
            ("items" | "additionalProperties", value) => {
                straighten(value);
                // What a list holds, the list says; the fields of what it holds say more.
                if let Value::Object(item) = value
                    && !item.contains_key("properties")
                {
                    item.remove("description");
                }
            }
            _ => {}
        }
    }
}

/// Something or nothing, as just something: the field may be absent.
fn one_or_null(node: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = node.remove("anyOf") else {
        return;
    };
    let Some(Value::Object(something)) = choices.into_iter().next() else {
        return;
    };
    for (key, value) in something {
        // Its own description goes before.
        node.entry(key).or_insert(value);
    }
}

/// Words that have descriptions of their own, as a plain list.
fn one_of_words(node: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = node.get("oneOf") else {
        return;
    };
    let words = choices
        .iter()
        .filter_map(|choice| match choice.get("enum") {
            Some(Value::Array(words)) => Some(words.clone()),
            _ => None,
        });
    let words: Vec<Value> = words.flatten().collect();
    node.remove("oneOf");
    node.insert("type".to_owned(), json!("string"));
    node.insert("enum".to_owned(), words.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What "structural" means, after the documentation of Kubernetes.
    fn check(schema: &Value, at: &str) {
        let node = schema
            .as_object()
            .unwrap_or_else(|| panic!("{at} is no schema"));
        let kind = node.get("type").and_then(Value::as_str);
        let kind = kind.unwrap_or_else(|| panic!("{at} has no type"));
        let known = [
            "type",
            "description",
            "properties",
            "required",
            "items",
            "additionalProperties",
            "enum",
            "minimum",
            "maximum",
            "pattern",
        ];
        for key in node.keys() {
            assert!(known.contains(&key.as_str()), "{at}: {key}");
        }
        assert_eq!(node.contains_key("items"), kind == "array", "{at}");
        let bounds = ["minimum", "maximum"].map(|key| node.contains_key(key));
        assert_eq!(bounds, [kind == "integer"; 2], "{at}");
        if let Some(words) = node.get("enum") {
            let words = words.as_array().unwrap();
            assert!(
                !words.is_empty() && words.iter().all(Value::is_string),
                "{at}"
            );
        }
        match (node.get("properties"), node.get("additionalProperties")) {
            (Some(_), Some(_)) => panic!("{at} has both fields and values of any name"),
            (Some(fields), None) => {
                let fields = fields.as_object().unwrap();
                for (name, field) in fields {
                    check(field, &format!("{at}.{name}"));
                    let described = field["description"].as_str();
                    assert!(
                        described.is_some_and(|text| !text.is_empty()),
                        "{at}.{name}"
                    );
                }
                for name in node
                    .get("required")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    assert!(fields.contains_key(name.as_str().unwrap()), "{at}: {name}");
                }
            }
            (None, Some(values)) => check(values, &format!("{at}.*")),
            (None, None) => assert_ne!(kind, "object", "{at} would be pruned"),
        }
        if let Some(items) = node.get("items") {
            check(items, &format!("{at}[]"));
        }
    }

    #[test]
    fn every_definition_is_structural() {
        for CustomResource { name, definition } in custom_resources() {
            let version = &definition["spec"]["versions"][0];
            let schema = &version["schema"]["openAPIV3Schema"];
            check(&schema["properties"]["spec"], &name);
            for column in version["additionalPrinterColumns"].as_array().unwrap() {
                let path = column["jsonPath"].as_str().unwrap();
                let mut node = schema;
                for step in path.split('.').filter(|step| !step.is_empty()) {
                    if step == "creationTimestamp" || step.contains('[') {
                        break;
                    }
                    node = &node["properties"][step];
                    assert!(!node.is_null(), "{name}: no {path}");
                }
            }
            let plural = definition["spec"]["names"]["plural"].as_str().unwrap();
            assert_eq!(name, format!("{plural}.{GROUP}"));
        }
    }

    #[test]
    fn the_version_is_one_that_documents_may_have() {
        let version = format!("{GROUP}/{VERSION}");
        assert!(Tunnel::API_VERSIONS.contains(&version.as_str()));
        assert!(ServiceEntry::API_VERSIONS.contains(&version.as_str()));
        assert!(DestinationRule::API_VERSIONS.contains(&version.as_str()));
    }
}
