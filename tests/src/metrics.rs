//! Reading the Prometheus text format.

use std::collections::BTreeMap;

/// The samples of one scrape.
#[derive(Debug, Default)]
pub struct Metrics(Vec<Sample>);

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads an exposition; panics at a line that is none.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(
            lines
                .map(|line| sample(line).unwrap_or_else(|| panic!("a sample? {line}")))
                .collect(),
        )
    }

    /// The sum of all samples called `name` that carry at least `labels`; `None` if there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let matches = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|is| is == value))
        };
        self.0
            .iter()
            .filter(matches)
            .map(|sample| sample.value)
            .reduce(|a, b| a + b)
    }

    /// All values of `label` among the samples called `name`.
    pub fn label_values(&self, name: &str, label: &str) -> Vec<&str> {
        let samples = self.0.iter().filter(|sample| sample.name == name);
        samples
            .filter_map(|sample| sample.labels.get(label).map(String::as_str))
            .collect()
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = match line.find('{') {
        Some(_) => line.rsplit_once("} ")?,
        None => line.split_once(' ')?,
    };
    let (name, mut rest) = series.split_once('{').unwrap_or((series, ""));
    let mut labels = BTreeMap::new();
    while let Some((key, after)) = rest.split_once("=\"") {
        let (value, end) = quoted(after)?;
        labels.insert(key.into(), value);
        rest = after[end..].trim_start_matches(',');
    }
    let value = value.split(' ').next()?.parse().ok()?;
    Some(Sample {
        name: name.into(),
        labels,
        value,
    })
}

/// The value up to the closing quote, unescaped, and where the text after that quote starts.
fn quoted(text: &str) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, at + 1)),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn samples_are_summed_by_name_and_labels() {
        let metrics = Metrics::parse(
            "# HELP a What.\n# TYPE a counter\na{x=\"1\",y=\"q\\\"}\\n\"} 2\na{x=\"2\"} 3 1700000000\nb 1.5e3\n",
        );
        assert_eq!(metrics.sum("a", &[]), Some(5.0));
        assert_eq!(metrics.sum("a", &[("x", "2")]), Some(3.0));
        assert_eq!(metrics.sum("a", &[("y", "q\"}\n")]), Some(2.0));
        assert_eq!(metrics.sum("b", &[]), Some(1500.0));
        assert_eq!(metrics.sum("b", &[("x", "1")]), None);
        assert_eq!(metrics.label_values("a", "x"), ["1", "2"]);
    }
}
