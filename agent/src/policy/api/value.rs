//! Values that stand in the specs of several kinds.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU16;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Unexpected, Visitor};

use super::rules;
use crate::name::{Host, HostName};
use crate::policy::problem::quotable;

/// A TCP port.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(in crate::policy) struct Port(NonZeroU16);

impl Port {
    /// The number.
    pub(in crate::policy) fn get(self) -> u16 {
        self.0.get()
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PortVisitor;

        impl Visitor<'_> for PortVisitor {
            type Value = Port;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number from 1 to 65535")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Port, E> {
                u16::try_from(number)
                    .ok()
                    .and_then(NonZeroU16::new)
                    .map(Port)
                    .ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
            }
        }

        deserializer.deserialize_u16(PortVisitor)
    }
}

impl JsonSchema for Port {
    fn schema_name() -> Cow<'static, str> {
        "Port".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": 65535 })
    }
}

/// A host by name or address, as a document gives it.
#[derive(Clone, Debug, Eq, Hash, JsonSchema, PartialEq)]
#[schemars(with = "String", extend("x-kubernetes-validations" = rules::HOST, "maxLength" = rules::LONGEST_HOST))]
pub(in crate::policy) struct HostField(pub(in crate::policy) Host);

impl<'de> Deserialize<'de> for HostField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        host(&text).map(Self).map_err(de::Error::custom)
    }
}

/// A host by name.
#[derive(Clone, Debug, Eq, Hash, JsonSchema, PartialEq)]
#[schemars(with = "String", extend("x-kubernetes-validations" = rules::HOST, "maxLength" = rules::LONGEST_HOST))]
pub(in crate::policy) struct HostNameField(pub(in crate::policy) HostName);

impl<'de> Deserialize<'de> for HostNameField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match host(&text).map_err(de::Error::custom)? {
            Host::Name(name) => Ok(Self(name)),
            Host::Addr(addr) => Err(de::Error::custom(format!(
                "expected a name, found the address {addr}"
            ))),
        }
    }
}

/// One name, or all below one.
#[derive(Clone, Debug, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd)]
#[schemars(with = "String", extend("x-kubernetes-validations" = rules::HOST_PATTERN, "maxLength" = rules::LONGEST_HOST))]
pub(in crate::policy) enum HostPattern {
    /// `*`: every name.
    Any,
    /// `*.example.com`: every name below.
    Below(HostName),
    /// `www.example.com`: this name.
    Exact(HostName),
}

impl HostPattern {
    /// The name, if it is one.
    pub(in crate::policy) fn name(&self) -> Option<&HostName> {
        match self {
            Self::Exact(name) => Some(name),
            Self::Any | Self::Below(_) => None,
        }
    }

    /// Whether `name` is meant.
    pub(in crate::policy) fn matches(&self, name: &HostName) -> bool {
        match self {
            Self::Any => true,
            Self::Below(domain) => name.is_below(domain),
            Self::Exact(exact) => name == exact,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Below(domain) => write!(f, "*.{domain}"),
            Self::Exact(name) => write!(f, "{name}"),
        }
    }
}

impl<'de> Deserialize<'de> for HostPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "*" {
            return Ok(Self::Any);
        }
        let (rest, below) = match text.strip_prefix("*.") {
            Some(domain) => (domain, true),
            None => (&*text, false),
        };
        if rest.contains('*') {
            return Err(de::Error::custom(format!(
                "`{}` is no pattern: a `*` stands alone, or for the whole first part, as in \
                 `*.example.com`",
                quotable(&text)
            )));
        }
        match host(rest).map_err(de::Error::custom)? {
            Host::Name(name) if below => Ok(Self::Below(name)),
            Host::Name(name) => Ok(Self::Exact(name)),
            Host::Addr(addr) => Err(de::Error::custom(format!(
                "expected a name or `*.` and a name, found the address {addr}; addresses of a \
                 service stand in `spec.addresses` of its ServiceEntry"
            ))),
        }
    }
}

/// Where the host of the target comes from.
#[derive(Clone, Debug, Eq, JsonSchema, PartialEq)]
#[schemars(with = "String", extend("x-kubernetes-validations" = rules::TARGET_HOST, "maxLength" = rules::LONGEST_HOST))]
pub(in crate::policy) enum TargetHost {
    /// `AUTO_SNI`: the name the workload asks for.
    AutoSni,
    /// This host, whatever the workload asks for.
    Fixed(Host),
    /// `ORIGINAL_DST`: the address the workload connects to.
    OriginalDst,
}

impl<'de> Deserialize<'de> for TargetHost {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "AUTO_SNI" => Ok(Self::AutoSni),
            "ORIGINAL_DST" => Ok(Self::OriginalDst),
            // Underscores may stand in names, so these would pass as hosts.
            word if ["AUTO_SNI", "ORIGINAL_DST"]
                .iter()
                .any(|known| known.eq_ignore_ascii_case(word)) =>
            {
                let capitals = word.to_ascii_uppercase();
                Err(de::Error::custom(format!("write it as `{capitals}`")))
            }
            _ => host(&text).map(Self::Fixed).map_err(de::Error::custom),
        }
    }
}

fn host(text: &str) -> Result<Host, String> {
    // Not quoted: a URL may carry a password.
    if text.contains("://") || text.contains('@') {
        return Err(
            "a URL is not a host: give the name or the address alone, and the port in the field \
             for ports"
                .to_owned(),
        );
    }
    text.parse::<Host>().map_err(|err| {
        let alone = text.rsplit_once(':').filter(|(host, port)| {
            port.bytes().all(|b| b.is_ascii_digit()) && host.parse::<Host>().is_ok()
        });
        match alone {
            Some((host, _)) => {
                format!("a port does not belong here: give the host alone, `{host}`")
            }
            None => err.to_string(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_the_target_host_are_not_taken_for_names() {
        let parse = |text: &str| serde_json::from_value::<TargetHost>(text.into());
        assert_eq!(parse("AUTO_SNI").unwrap(), TargetHost::AutoSni);
        assert_eq!(parse("ORIGINAL_DST").unwrap(), TargetHost::OriginalDst);
        for text in ["example.com", "203.0.113.7", "2001:db8::1"] {
            let host = text.parse().unwrap();
            assert_eq!(parse(text).unwrap(), TargetHost::Fixed(host));
        }
        assert_eq!(
            parse("auto_sni").unwrap_err().to_string(),
            "write it as `AUTO_SNI`"
        );
        for bad in ["", "*.example.com", "example.com:443", "a b"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_url_in_place_of_a_host_is_not_repeated() {
        let err = host("http://user:hunter2@proxy.example").unwrap_err();
        assert!(!err.contains("hunter2"));
        assert!(!host("user:hunter2@proxy").unwrap_err().contains("hunter2"));
    }
}
