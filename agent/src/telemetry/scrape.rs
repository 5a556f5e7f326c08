//! For tests: what a scrape says, read back from its text as Prometheus does.

use std::collections::BTreeMap;

use prometheus::{Registry, TextEncoder};

/// One scrape.
#[derive(Debug)]
pub(crate) struct Scrape {
    /// Type of each metric; each has help and stands once.
    pub(crate) types: BTreeMap<String, String>,
    /// The samples.
    pub(crate) samples: Vec<Sample>,
}

#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Scrape {
    pub(crate) fn of(registry: &Registry) -> Self {
        let text = TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        Self::parse(&text)
    }

    /// Panics over whatever the format does not allow.
    pub(crate) fn parse(text: &str) -> Self {
        let mut helped = Vec::new();
        let mut types = BTreeMap::new();
        let mut samples = Vec::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(!help.is_empty(), "no help: {line}");
                assert!(!helped.contains(&name), "twice: {line}");
                helped.push(name);
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(helped.last(), Some(&name), "no help before: {line}");
                types.insert(name.to_owned(), kind.to_owned());
            } else {
                samples.push(Sample::parse(line));
            }
        }
        Self { types, samples }
    }

    /// The value of the one sample of that name which has these labels, among others.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = self.samples.iter().filter(|sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|is| is == value))
        });
        let value = found.next()?.value;
        assert!(found.next().is_none(), "several {name}{labels:?}");
        Some(value)
    }

    /// The sum over all samples of that name.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        let samples = self.samples.iter().filter(|sample| sample.name == name);
        samples.map(|sample| sample.value).sum()
    }
}

impl Sample {
    fn parse(line: &str) -> Self {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, mut rest) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
            None => (series, ""),
        };
        let mut labels = BTreeMap::new();
        while !rest.is_empty() {
            let (key, after) = rest.split_once("=\"").unwrap();
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().unwrap() {
                    (at, '"') => break at,
                    (_, '\\') => value.push(chars.next().unwrap().1),
                    (_, c) => value.push(c),
                }
            };
            assert!(labels.insert(key.to_owned(), value).is_none(), "{line}");
            rest = after[end + 1..].trim_start_matches(',');
        }
        Self {
            name: name.to_owned(),
            labels,
            value: value.parse().unwrap(),
        }
    }
}
