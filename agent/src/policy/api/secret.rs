//! `kind: Secret`, as Kubernetes has it.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretSlice};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Object;
use super::metadata::{Metadata, ObjectName};
use crate::policy::yaml::FieldNotes;

/// Credentials and certificates.
#[derive(Debug, Deserialize)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a mapping with apiVersion, kind, metadata and data"
)]
pub(in crate::policy) struct Secret {
    #[serde(rename = "apiVersion")]
    _api_version: Option<IgnoredAny>,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    /// Name and namespace.
    pub(in crate::policy) metadata: Metadata,
    /// Values in base64.
    #[serde(default)]
    pub(in crate::policy) data: BTreeMap<String, Base64Value>,
    /// Values as they are; they go before those in `data`.
    #[serde(default)]
    pub(in crate::policy) string_data: BTreeMap<String, TextValue>,
    #[serde(rename = "type")]
    _type: Option<IgnoredAny>,
    #[serde(rename = "immutable")]
    _immutable: Option<IgnoredAny>,
}

impl Object for Secret {
    const KIND: &'static str = "Secret";
    const API_VERSIONS: &'static [&'static str] = &["v1"];
    const NOTES: FieldNotes = FieldNotes {
        ignored: &[],
        required: &[],
    };
    const SECRET: bool = true;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl Secret {
    /// A Secret that is a directory of files.
    pub(in crate::policy) fn mounted(name: ObjectName, values: BTreeMap<String, Vec<u8>>) -> Self {
        Self {
            _api_version: None,
            _kind: IgnoredAny,
            metadata: Metadata::named(name),
            data: BTreeMap::new(),
            string_data: values
                .into_iter()
                .map(|(key, value)| (key, TextValue(value.into())))
                .collect(),
            _type: None,
            _immutable: None,
        }
    }

    /// The value of a key.
    pub(in crate::policy) fn get(&self, key: &str) -> Option<&[u8]> {
        let text = self.string_data.get(key).map(|value| &value.0);
        let value = text.or_else(|| self.data.get(key).map(|value| &value.0))?;
        Some(value.expose_secret())
    }

    /// The keys there are.
    pub(in crate::policy) fn keys(&self) -> impl Iterator<Item = &str> {
        self.data
            .keys()
            .chain(self.string_data.keys())
            .map(String::as_str)
    }
}

/// A value in base64.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub(in crate::policy) struct Base64Value(SecretSlice<u8>);

impl TryFrom<String> for Base64Value {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let text = Zeroizing::new(text);
        // Long values are often folded.
        let packed: Zeroizing<String> = Zeroizing::new(text.split_ascii_whitespace().collect());
        BASE64_STANDARD
            .decode(packed.as_bytes())
            .map(|bytes| Self(bytes.into()))
            .map_err(|_| "it is not base64; a value as it is stands in `stringData`")
    }
}

/// A value as it is.
#[derive(Clone, Deserialize)]
#[serde(from = "String")]
pub(in crate::policy) struct TextValue(SecretSlice<u8>);

impl From<String> for TextValue {
    fn from(text: String) -> Self {
        Self(text.into_bytes().into())
    }
}

impl fmt::Debug for Base64Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("secret")
    }
}

impl fmt::Debug for TextValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("secret")
    }
}
