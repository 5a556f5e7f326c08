//! Which traces are recorded.

use super::{SpanContext, TraceId};

/// Decides which traces are recorded, by the rules and under the names of OpenTelemetry
/// (`OTEL_TRACES_SAMPLER`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sampler {
    rule: Rule,
    /// Whether a parent's own decision comes before the rule.
    by_parent: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Rule {
    Always,
    Never,
    /// Ids of which the low 63 bits are below it.
    Below(u64),
}

impl Default for Sampler {
    /// Joins the traces that programs record, and starts none.
    fn default() -> Self {
        Self {
            rule: Rule::Never,
            by_parent: true,
        }
    }
}

/// Why there is no such sampler.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum SamplerError {
    /// Its argument is no share.
    #[error("`{0}` is no share of traces: a number from 0 to 1 is expected")]
    Share(String),
    /// Nothing has that name.
    #[error(
        "`{0}` is no sampler: always_on, always_off, traceidratio, parentbased_always_on, \
         parentbased_always_off and parentbased_traceidratio are"
    )]
    Unknown(String),
}

impl Sampler {
    /// The sampler of this name, with this argument.
    ///
    /// # Errors
    /// Nothing has that name, or its argument is no number from 0 to 1. Without one it is 1.
    pub fn parse(name: &str, argument: Option<&str>) -> Result<Self, SamplerError> {
        let (by_parent, rule) = match name.strip_prefix("parentbased_") {
            Some(rule) => (true, rule),
            None => (false, name),
        };
        let rule = match rule {
            "always_on" => Rule::Always,
            "always_off" => Rule::Never,
            "traceidratio" => {
                let argument = argument.unwrap_or("1").trim();
                let share: f64 = argument.parse().unwrap_or(f64::NAN);
                if !(0.0..=1.0).contains(&share) {
                    return Err(SamplerError::Share(argument.to_owned()));
                }
                // As OpenTelemetry's own libraries do, so that all pick the same traces.
                Rule::Below((share * (1u64 << 63) as f64) as u64)
            }
            _ => return Err(SamplerError::Unknown(name.to_owned())),
        };
        Ok(Self { rule, by_parent })
    }

    /// Whether that is known of a span below `parent` before it has an id: the answer is no.
    pub(super) fn never_samples(&self, parent: Option<&SpanContext>) -> bool {
        match parent {
            Some(parent) if self.by_parent => !parent.is_sampled(),
            _ => self.rule == Rule::Never,
        }
    }

    /// Whether a span of `trace` below `parent` is recorded.
    pub fn samples(&self, parent: Option<&SpanContext>, trace: TraceId) -> bool {
        if let Some(parent) = parent.filter(|_| self.by_parent) {
            return parent.is_sampled();
        }
        match self.rule {
            Rule::Always => true,
            Rule::Never => false,
            Rule::Below(bound) => trace.low() >> 1 < bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(flags: &str) -> SpanContext {
        let value = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
        SpanContext::read([value.as_bytes()]).unwrap()
    }

    #[test]
    fn each_does_what_its_name_says() {
        let (yes, no) = (parent("01"), parent("00"));
        for (name, without, sampled, unsampled) in [
            ("always_on", true, true, true),
            ("always_off", false, false, false),
            ("parentbased_always_on", true, true, false),
            ("parentbased_always_off", false, true, false),
        ] {
            let sampler = Sampler::parse(name, None).unwrap();
            let decide = |parent: Option<&SpanContext>| {
                let decided = sampler.samples(parent, yes.trace);
                assert!(!decided || !sampler.never_samples(parent), "{name}");
                decided
            };
            assert_eq!(decide(None), without, "{name}");
            assert_eq!(decide(Some(&yes)), sampled, "{name}");
            assert_eq!(decide(Some(&no)), unsampled, "{name}");
        }
        let default = Sampler::parse("parentbased_always_off", None);
        assert_eq!(default, Ok(Sampler::default()));
    }

    #[test]
    fn a_share_is_the_share_of_traces() {
        for (share, least, most) in [("0", 0, 0), ("0.25", 2200, 2800), ("1", 10_000, 10_000)] {
            let sampler = Sampler::parse("parentbased_traceidratio", Some(share)).unwrap();
            let picked = (0..10_000)
                .filter_map(|_| TraceId::random())
                .filter(|trace| sampler.samples(None, *trace))
                .count();
            assert!((least..=most).contains(&picked), "{share}: {picked}");
            assert!(sampler.samples(Some(&parent("01")), parent("01").trace));
        }
    }

    #[test]
    fn what_is_none_is_told() {
        for bad in [
            "",
            "always",
            "parentbased_",
            "jaeger_remote",
            "parentbased_xray",
        ] {
            let error = Sampler::parse(bad, None).unwrap_err();
            assert_eq!(error, SamplerError::Unknown(bad.to_owned()));
        }
        for bad in ["", "x", "-0.1", "1.1", "NaN", "inf"] {
            let error = Sampler::parse("traceidratio", Some(bad)).unwrap_err();
            assert_eq!(error, SamplerError::Share(bad.to_owned()));
        }
    }
}
