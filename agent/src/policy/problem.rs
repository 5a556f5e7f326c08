//! What is wrong with a policy, and where.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// One problem of one document. Its text is a line of `underpass check`:
/// `FILE:LINE: KIND/NAME: key: reason`. Of an object of a cluster it is
/// `KIND NAMESPACE/NAME: key: reason`.
///
/// Problems order by file, then by line.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Problem {
    file: PathBuf,
    line: u32,
    subject: Subject,
    key: String,
    reason: String,
}

impl Problem {
    pub(super) fn new(
        place: Place<'_>,
        subject: Subject,
        key: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            file: place.file.to_owned(),
            line: place.line,
            subject,
            key: key.into(),
            reason: reason.into(),
        }
    }

    /// The file it is in; of a cluster, `KIND NAMESPACE/NAME`.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The line in the file, from 1; 0 where it is in no file.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// The object that it is about, if that is known.
    pub fn object(&self) -> Option<ObjectRef<'_>> {
        match &self.subject {
            Subject::Object {
                kind,
                namespace,
                name,
            } => Some(ObjectRef {
                kind,
                namespace: namespace.as_deref(),
                name,
            }),
            Subject::Directory | Subject::Document(_) | Subject::File => None,
        }
    }

    /// What it is about: `KIND/NAME`, or what is known of it.
    pub fn subject(&self) -> String {
        self.subject.to_string()
    }

    pub(super) fn about(&self) -> &Subject {
        &self.subject
    }

    /// Where in the document, as a dotted path: `spec.proxy.port`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What is wrong.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            subject,
            key,
            reason,
        } = self;
        let place = file.display();
        if *line == 0 {
            return write!(f, "{place}: {key}: {reason}");
        }
        write!(f, "{place}:{line}: {subject}: {key}: {reason}")
    }
}

/// An object by name.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ObjectRef<'a> {
    /// `Tunnel`.
    pub kind: &'a str,
    /// Its namespace, if it has one.
    pub namespace: Option<&'a str>,
    /// `metadata.name`.
    pub name: &'a str,
}

/// A line of a file, or an object of a cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// The file, or `KIND NAMESPACE/NAME`.
    pub(super) file: &'a Path,
    /// The line, from 1; 0 where there is no file.
    pub(super) line: u32,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.file.display();
        match self.line {
            0 => write!(f, "{place}"),
            line => write!(f, "{place}:{line}"),
        }
    }
}

/// What a problem is about.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Subject {
    /// A directory as such.
    Directory,
    /// A document whose kind or name is not known: its number in the file, from 1.
    Document(usize),
    /// A file as such.
    File,
    /// A document by kind and name.
    Object {
        /// `Tunnel`.
        kind: String,
        /// `metadata.namespace`. Messages leave it out: they have the place.
        namespace: Option<String>,
        /// `metadata.name`.
        name: String,
    },
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory => f.write_str("directory"),
            Self::Document(number) => write!(f, "document {number}"),
            Self::File => f.write_str("file"),
            Self::Object { kind, name, .. } => write!(f, "{kind}/{name}"),
        }
    }
}

/// Text of a document as a message may quote it: on one line, and not endless.
pub(super) fn quotable(text: &str) -> String {
    const LIMIT: usize = 80;
    let mut shown = String::new();
    for c in text.chars().take(LIMIT) {
        // Letters of all alphabets stay readable; what breaks or turns a line does not.
        if c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    if text.chars().nth(LIMIT).is_some() {
        shown.push_str("...");
    }
    shown
}

/// Some of many things, as a message may list them.
pub(super) fn some(things: impl IntoIterator<Item = impl fmt::Display>) -> String {
    const LIMIT: usize = 8;
    let mut things = things.into_iter();
    let mut shown: Vec<_> = things.by_ref().take(LIMIT).map(|t| t.to_string()).collect();
    if things.next().is_some() {
        shown.push("...".to_owned());
    }
    shown.join(", ")
}

/// Labels as a message may show them: `a=b, c=d`.
pub(super) fn labels(labels: &BTreeMap<String, String>) -> String {
    some(labels.iter().map(|(key, value)| {
        let (key, value) = (quotable(key), quotable(value));
        format!("{key}={value}")
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_as_the_contract_has_it() {
        let place = Place {
            file: Path::new("etc/a.yaml"),
            line: 7,
        };
        let subject = Subject::Object {
            kind: "Tunnel".into(),
            namespace: None,
            name: "all".into(),
        };
        let problem = Problem::new(place, subject, "spec.proxy.port", "it is missing");
        assert_eq!(
            problem.to_string(),
            "etc/a.yaml:7: Tunnel/all: spec.proxy.port: it is missing"
        );
        let place_in_cluster = Place {
            file: Path::new("Tunnel team-a/all"),
            line: 0,
        };
        let problem = Problem::new(
            place_in_cluster,
            problem.about().clone(),
            "spec.proxy",
            "no",
        );
        assert_eq!(problem.to_string(), "Tunnel team-a/all: spec.proxy: no");
        let problem = Problem::new(place, Subject::Document(3), "kind", "it is missing");
        assert_eq!(
            problem.to_string(),
            "etc/a.yaml:7: document 3: kind: it is missing"
        );
    }

    #[test]
    fn quoted_text_stays_on_one_short_line() {
        assert_eq!(quotable("a\nb\u{1b}[0m é"), "a\\nb\\u{1b}[0m é");
        assert_eq!(quotable(&"x".repeat(81)), format!("{}...", "x".repeat(80)));
        assert_eq!(some(1..=8), "1, 2, 3, 4, 5, 6, 7, 8");
        assert_eq!(some(1..=9), "1, 2, 3, 4, 5, 6, 7, 8, ...");
        let both = [("a", "b"), ("c\n", "d\u{1b}")];
        let both = both.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(labels(&both.into()), "a=b, c\\n=d\\u{1b}");
    }
}
