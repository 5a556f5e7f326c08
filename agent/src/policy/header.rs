//! Fields of the request for a tunnel that policy adds.

use std::fmt;

use http::{HeaderName, HeaderValue, header};

use super::problem::quotable;
use crate::name::{OriginalDst, Target};
use crate::workload::Workload;

/// Fields that the request has anyway, or that would change its meaning.
const TAKEN: &[HeaderName] = &[
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::HOST,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::USER_AGENT,
];

/// A field whose value may have what is known of a connection in it: `{workload.namespace}`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct HeaderTemplate {
    name: HeaderName,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Part {
    Text(String),
    Variable(Variable),
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Variable {
    Cgroup,
    Label(String),
    Namespace,
    OriginalDst,
    Pod,
    ServiceAccount,
    TargetHost,
    TargetPort,
    Unit,
}

/// How each is written; labels besides, as `workload.labels.NAME`.
const VARIABLES: &[(&str, Variable)] = &[
    ("original_dst", Variable::OriginalDst),
    ("target.host", Variable::TargetHost),
    ("target.port", Variable::TargetPort),
    ("workload.cgroup", Variable::Cgroup),
    ("workload.name", Variable::Pod),
    ("workload.namespace", Variable::Namespace),
    ("workload.serviceAccount", Variable::ServiceAccount),
    ("workload.unit", Variable::Unit),
];

const LABEL: &str = "workload.labels.";

/// What the variables stand for.
#[derive(Clone, Copy, Debug)]
pub struct HeaderContext<'a> {
    /// Who connects.
    pub workload: &'a Workload,
    /// Where the tunnel leads.
    pub target: &'a Target,
    /// Where the workload connected to.
    pub original_dst: OriginalDst,
}

impl HeaderTemplate {
    /// Reads a field and its value. `{{` stands for `{`.
    ///
    /// # Errors
    /// A name that is none or not to be had, a variable that is not known, and characters that may
    /// not stand in a field.
    pub(super) fn parse(name: &str, value: &str) -> Result<Self, String> {
        let shown = quotable(name);
        let name: HeaderName = name
            .parse()
            .map_err(|_| format!("`{shown}` is not the name of a header field"))?;
        if name == header::PROXY_AUTHORIZATION {
            return Err(
                "credentials stand in a Secret: name it in `authentication.credentialName`"
                    .to_owned(),
            );
        }
        if TAKEN.contains(&name) {
            return Err(format!("`{name}` cannot be set"));
        }
        let parts = parts(value)?;
        for part in &parts {
            if let Part::Text(text) = part
                && HeaderValue::from_str(text).is_err()
            {
                return Err("the value has characters that may not stand in a header".to_owned());
            }
        }
        Ok(Self { name, parts })
    }

    /// The field for one connection. `None` if a variable in it is not known, or has characters
    /// that may not stand in a field: half a value would say something else.
    pub fn render(&self, context: &HeaderContext<'_>) -> Option<(HeaderName, HeaderValue)> {
        let mut value = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => value.push_str(text),
                Part::Variable(variable) => value.push_str(&variable.of(context)?),
            }
        }
        let value = HeaderValue::from_str(&value).ok()?;
        Some((self.name.clone(), value))
    }

    /// Whether the original destination is told.
    pub(super) fn tells_original_dst(&self) -> bool {
        let told = Part::Variable(Variable::OriginalDst);
        self.parts.contains(&told)
    }

    /// Whether who connects matters.
    pub(super) fn wants_workload(&self) -> bool {
        self.parts.iter().any(|part| match part {
            Part::Text(_) => false,
            Part::Variable(variable) => !matches!(
                variable,
                Variable::OriginalDst | Variable::TargetHost | Variable::TargetPort
            ),
        })
    }
}

impl fmt::Display for HeaderTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        for part in &self.parts {
            match part {
                Part::Text(text) => f.write_str(&text.replace('{', "{{"))?,
                Part::Variable(Variable::Label(label)) => write!(f, "{{{LABEL}{label}}}")?,
                Part::Variable(variable) => {
                    let known = VARIABLES.iter().find(|(_, known)| known == variable);
                    write!(f, "{{{}}}", known.map_or("", |(name, _)| name))?;
                }
            }
        }
        Ok(())
    }
}

impl Variable {
    fn parse(name: &str) -> Result<Self, String> {
        if let Some(label) = name.strip_prefix(LABEL) {
            return Ok(Self::Label(label.to_owned()));
        }
        let known = VARIABLES.iter().find(|(known, _)| *known == name);
        known.map(|(_, variable)| variable.clone()).ok_or_else(|| {
            let known: Vec<_> = VARIABLES.iter().map(|(name, _)| *name).collect();
            format!(
                "`{{{}}}` is not known, expected one of `{}`, `{LABEL}NAME`; `{{{{` stands for a \
                 brace",
                quotable(name),
                known.join("`, `")
            )
        })
    }

    fn of(&self, context: &HeaderContext<'_>) -> Option<String> {
        let workload = context.workload;
        let known = |value: &Option<Box<str>>| value.as_deref().map(str::to_owned);
        match self {
            Self::Cgroup => known(&workload.cgroup),
            Self::Label(label) => workload.labels.get(label).cloned(),
            Self::Namespace => known(&workload.namespace),
            Self::OriginalDst => Some(context.original_dst.to_string()),
            Self::Pod => known(&workload.name),
            Self::ServiceAccount => known(&workload.service_account),
            Self::TargetHost => Some(context.target.host.to_string()),
            Self::TargetPort => Some(context.target.port.to_string()),
            Self::Unit => known(&workload.unit),
        }
    }
}

fn parts(value: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut rest = value;
    while let Some(at) = rest.find('{') {
        text.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('{') {
            text.push('{');
            rest = after;
            continue;
        }
        let Some((name, after)) = rest.split_once('}') else {
            return Err("a `{` has no `}`; `{{` stands for a brace".to_owned());
        };
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut text)));
        }
        parts.push(Part::Variable(Variable::parse(name)?));
        rest = after;
    }
    text.push_str(rest);
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_stand_for_what_is_known() {
        let workload = Workload {
            namespace: Some("team-a".into()),
            labels: [("app".to_owned(), "web\n".to_owned())].into(),
            ..Workload::in_cgroup("/system.slice/backup.service")
        };
        let target = Target {
            host: "2001:db8::1".parse().unwrap(),
            port: 443,
        };
        let context = HeaderContext {
            workload: &workload,
            target: &target,
            original_dst: OriginalDst("198.51.100.7:80".parse().unwrap()),
        };
        for (template, expected) in [
            ("plain", Some("plain")),
            ("", Some("")),
            ("a {{b}", Some("a {b}")),
            (
                "{workload.namespace}/{workload.unit}",
                Some("team-a/backup.service"),
            ),
            ("{target.host}:{target.port}", Some("[2001:db8::1]:443")),
            ("{original_dst}", Some("198.51.100.7:80")),
            ("{workload.cgroup}", Some("/system.slice/backup.service")),
            ("{workload.serviceAccount}", None),
            ("{workload.labels.tier}", None),
            // What a label says must not become another field.
            ("{workload.labels.app}", None),
        ] {
            let parsed = HeaderTemplate::parse("X-Workload", template).unwrap();
            let rendered = parsed.render(&context);
            let value = rendered.as_ref().map(|(_, value)| value.to_str().unwrap());
            assert_eq!(value, expected, "{template}");
            assert_eq!(parsed.to_string(), format!("x-workload: {template}"));
        }
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        for (name, value, reason) in [
            ("Host", "x", "`host` cannot be set"),
            ("Proxy-Authorization", "x", "credentials stand in a Secret"),
            ("a b", "x", "not the name of a header field"),
            ("X", "a\r\nB: c", "characters that may not stand"),
            ("X", "{target}", "`{target}` is not known"),
            ("X", "{target.host", "has no `}`"),
        ] {
            let error = HeaderTemplate::parse(name, value).unwrap_err();
            assert!(error.contains(reason), "{name}: {value}: {error}");
        }
    }
}
