//! The documents of a policy, checked one by one.

use std::path::{Path, PathBuf};

use super::api::LATER_KINDS;
use super::api::metadata::ObjectName;
use super::api::tunnel::{self, Tunnel};
use super::problem::{Place, Problem, Subject, quotable};
use super::yaml::{self, Fault, Node, Value};

/// Documents gathered from files, and what was wrong with some of them.
#[derive(Debug, Default)]
pub struct Documents {
    tunnels: Vec<Document<Tunnel>>,
    problems: Vec<Problem>,
}

impl Documents {
    /// Adds the documents of a text: YAML, many in a stream, empty ones ignored. `file` is only
    /// for messages. What is wrong is kept for [`Policy::compile`](super::Policy::compile) to
    /// report. Returns how many documents there were, good or bad.
    pub fn add(&mut self, file: &Path, text: &str) -> usize {
        let parsed = yaml::parse(text);
        let count = parsed.len();
        for (document, number) in parsed.into_iter().zip(1..) {
            match document {
                Ok(root) => self.add_document(file, number, root),
                Err(error) => {
                    let place = Place {
                        file,
                        line: error.line,
                    };
                    let subject = Subject::Document(number);
                    self.report(Problem::new(place, subject, "yaml", error.reason));
                }
            }
        }
        count
    }

    /// What was wrong so far, in the order of finding.
    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Keeps a problem with the others.
    pub(super) fn report(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// The Tunnels that are right by themselves.
    pub(super) fn tunnels(&self) -> &[Document<Tunnel>] {
        &self.tunnels
    }

    fn add_document(&mut self, file: &Path, number: usize, mut root: Node) {
        let subject = subject(&root, number);
        let faults = match examine(&mut root) {
            Ok(object) => {
                self.tunnels.push(Document {
                    file: file.to_owned(),
                    object,
                    root,
                    subject,
                });
                return;
            }
            Err(faults) => faults,
        };
        for Fault { key, line, reason } in faults {
            let place = Place { file, line };
            self.report(Problem::new(place, subject.clone(), key, reason));
        }
    }
}

/// An object and where it was written.
#[derive(Debug)]
pub(super) struct Document<T> {
    file: PathBuf,
    /// What was written.
    pub(super) object: T,
    root: Node,
    subject: Subject,
}

impl<T> Document<T> {
    /// Where `key` (`spec.proxy`) stands, or would stand.
    pub(super) fn place(&self, key: &str) -> Place<'_> {
        Place {
            file: &self.file,
            line: self.root.line_of(key),
        }
    }

    /// A problem with the value of `key`.
    pub(super) fn problem(&self, key: &str, reason: impl Into<String>) -> Problem {
        Problem::new(self.place(key), self.subject.clone(), key, reason)
    }

    /// `KIND/NAME`.
    pub(super) fn subject(&self) -> &Subject {
        &self.subject
    }
}

/// What the document is called in problems. Names that are none could be anything.
fn subject(root: &Node, number: usize) -> Subject {
    let kind = root.get("kind").and_then(Node::text);
    let name = root
        .get("metadata")
        .and_then(|metadata| metadata.get("name"))
        .and_then(Node::text);
    match (kind, name) {
        (Some(kind), Some(name))
            if !kind.is_empty()
                && kind.len() <= 63
                && kind.bytes().all(|b| b.is_ascii_alphanumeric())
                && ObjectName::try_from(name.to_owned()).is_ok() =>
        {
            Subject::Object {
                kind: kind.to_owned(),
                name: name.to_owned(),
            }
        }
        _ => Subject::Document(number),
    }
}

fn examine(root: &mut Node) -> Result<Tunnel, Vec<Fault>> {
    if !matches!(root.value, Value::Map(_)) {
        let reason = format!(
            "expected a mapping with apiVersion, kind, metadata and spec, found {}",
            root.value.what()
        );
        return Err(vec![fault(root, "document", reason)]);
    }
    let kind = text_field(root, "kind").map_err(|fault| vec![fault])?;
    if kind != tunnel::KIND {
        let reason = if LATER_KINDS.contains(&kind) {
            format!("`{kind}` is not supported by this version")
        } else {
            let kind = quotable(kind);
            format!("unknown kind `{kind}`, expected `{}`", tunnel::KIND)
        };
        return Err(vec![fault(root, "kind", reason)]);
    }
    let version = text_field(root, "apiVersion").and_then(|version| {
        if tunnel::API_VERSIONS.contains(&version) {
            return Ok(());
        }
        let reason = format!(
            "`{}` has no kind `{kind}`, expected one of `{}`",
            quotable(version),
            tunnel::API_VERSIONS.join("`, `")
        );
        Err(fault(root, "apiVersion", reason))
    });
    match (version, yaml::decode(root, &tunnel::NOTES)) {
        (Ok(()), decoded) => decoded,
        (Err(fault), Ok(_)) => Err(vec![fault]),
        (Err(fault), Err(mut faults)) => {
            faults.insert(0, fault);
            Err(faults)
        }
    }
}

fn text_field<'a>(root: &'a Node, key: &str) -> Result<&'a str, Fault> {
    let Some(node) = root.get(key) else {
        return Err(fault(root, key, "it is missing"));
    };
    node.text().ok_or_else(|| {
        let reason = format!("expected a string, found {}", node.value.what());
        fault(root, key, reason)
    })
}

fn fault(root: &Node, key: &str, reason: impl Into<String>) -> Fault {
    Fault {
        key: key.to_owned(),
        line: root.line_of(key),
        reason: reason.into(),
    }
}
