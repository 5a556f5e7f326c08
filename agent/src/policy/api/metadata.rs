//! `metadata`, as Kubernetes has it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::policy::problem::quotable;

/// What identifies and describes an object.
#[derive(Debug, Deserialize)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with name"
)]
pub(in crate::policy) struct Metadata {
    /// Unique among the objects of a kind in a namespace.
    pub(in crate::policy) name: ObjectName,
    /// The namespace, if it has one.
    pub(in crate::policy) namespace: Option<Namespace>,
    /// When it came to be; the older of two objects wins.
    pub(in crate::policy) creation_timestamp: Option<Timestamp>,
    /// By which a selector finds it.
    pub(in crate::policy) labels: Option<BTreeMap<String, String>>,
    #[serde(rename = "annotations")]
    _annotations: Option<BTreeMap<String, String>>,
    // What an API server adds to objects it gives out.
    #[serde(rename = "finalizers")]
    _finalizers: Option<IgnoredAny>,
    #[serde(rename = "generation")]
    _generation: Option<IgnoredAny>,
    #[serde(rename = "managedFields")]
    _managed_fields: Option<IgnoredAny>,
    #[serde(rename = "ownerReferences")]
    _owner_references: Option<IgnoredAny>,
    #[serde(rename = "resourceVersion")]
    _resource_version: Option<IgnoredAny>,
    #[serde(rename = "selfLink")]
    _self_link: Option<IgnoredAny>,
    #[serde(rename = "uid")]
    _uid: Option<IgnoredAny>,
}

impl Metadata {
    /// That of an object of which only the name is known.
    pub(in crate::policy) fn named(name: ObjectName) -> Self {
        Self {
            name,
            namespace: None,
            creation_timestamp: None,
            labels: None,
            _annotations: None,
            _finalizers: None,
            _generation: None,
            _managed_fields: None,
            _owner_references: None,
            _resource_version: None,
            _self_link: None,
            _uid: None,
        }
    }
}

/// A name of an object: an RFC 1123 subdomain, as Kubernetes asks for.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[serde(try_from = "String")]
pub(in crate::policy) struct ObjectName(Box<str>);

impl TryFrom<String> for ObjectName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.len() <= 253 && text.split('.').all(is_label) {
            Ok(Self(text.into()))
        } else {
            Err(format!(
                "`{}` is not a name: at most 253 lower-case letters, digits, `-` and `.`, with a \
                 letter or digit at either end of each part",
                quotable(&text)
            ))
        }
    }
}

impl AsRef<str> for ObjectName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name of a namespace: an RFC 1123 label.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[serde(try_from = "String")]
pub struct Namespace(Box<str>);

impl FromStr for Namespace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for Namespace {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.len() <= 63 && is_label(&text) {
            Ok(Self(text.into()))
        } else {
            Err(format!(
                "`{}` is not a namespace: at most 63 lower-case letters, digits and `-`, with a \
                 letter or digit at either end",
                quotable(&text)
            ))
        }
    }
}

impl AsRef<str> for Namespace {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.bytes().all(|b| inner(b) || b == b'-')
        && text.bytes().next().is_some_and(inner)
        && text.bytes().next_back().is_some_and(inner)
}

/// A time as Kubernetes writes it: UTC, to the second. Earlier is less.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(try_from = "String")]
pub(in crate::policy) struct Timestamp(Box<str>);

impl TryFrom<String> for Timestamp {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        const FORM: &[u8] = b"dddd-dd-ddTdd:dd:ddZ";
        // Fixed width and most significant first, so that the order of text is that of time.
        let fits = text.len() == FORM.len()
            && text.bytes().zip(FORM).all(|(b, form)| match form {
                b'd' => b.is_ascii_digit(),
                _ => b == *form,
            });
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(format!(
                "`{}` is not a time such as 2024-05-01T12:00:00Z",
                quotable(&text)
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_kubernetes() {
        for good in ["a", "a-1", "a.b-c.2", "0"] {
            assert!(ObjectName::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in [
            "", "-a", "a-", "A", "a_b", "a..b", ".a", "a/b", "a b", "a\nb", "é",
        ] {
            assert!(ObjectName::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        assert!(ObjectName::try_from("a".repeat(254)).is_err());
        assert!(Namespace::try_from("a.b".to_owned()).is_err());
        assert!(Namespace::try_from("a".repeat(64)).is_err());
        assert!(Namespace::try_from("team-a".to_owned()).is_ok());
    }

    #[test]
    fn times_order_as_they_passed() {
        let time = |text: &str| Timestamp::try_from(text.to_owned());
        assert!(time("2024-05-01T12:00:00Z").unwrap() < time("2024-05-01T12:00:01Z").unwrap());
        for bad in [
            "",
            "2024-05-01",
            "2024-05-01T12:00:00+02:00",
            "2024-05-01 12:00:00Z",
        ] {
            assert!(time(bad).is_err(), "{bad:?}");
        }
    }
}
