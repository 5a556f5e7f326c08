//! A document as a tree in which every key knows its line.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::fmt;

use secrecy::zeroize::Zeroize as _;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

/// A value of a document. What [`decode`](super::decode) found wrong is marked as taken out.
pub(in crate::policy) struct Node {
    /// The line it begins on, from 1.
    pub(in crate::policy) line: u32,
    pub(super) taken_out: bool,
    /// What stands there.
    pub(in crate::policy) value: Value,
}

/// What can stand in a document.
pub(in crate::policy) enum Value {
    /// `true` or `false`.
    Bool(bool),
    /// Any other number.
    Float(f64),
    /// A whole number.
    Int(i64),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the document.
    Map(Vec<Entry>),
    /// `null`, `~`, or nothing at all.
    Null,
    /// A string.
    Text(String),
}

/// A key of a mapping and its value.
pub(in crate::policy) struct Entry {
    pub(super) key: String,
    /// The line of the key.
    pub(super) line: u32,
    /// Where the same key already stood.
    pub(super) repeats: Option<u32>,
    pub(super) node: Node,
}

impl Node {
    /// The root of what was not written as a document.
    pub(in crate::policy) fn nothing() -> Self {
        Self {
            line: 1,
            taken_out: false,
            value: Value::Null,
        }
    }

    /// The value of a key, if this is a mapping.
    pub(in crate::policy) fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|entry| &entry.node)
    }

    /// The text, if this is a string.
    pub(in crate::policy) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The line of the key or item that `path` (`spec.ports[1].number`) names, or of the nearest
    /// around it that there is.
    pub(in crate::policy) fn line_of(&self, path: &str) -> u32 {
        let mut line = self.line;
        let mut node = self;
        for step in path.split('.') {
            let (key, indexes) = step.split_once('[').unwrap_or((step, ""));
            let Some(entry) = node.entry(key) else { break };
            line = entry.line;
            node = &entry.node;
            for index in indexes.split('[').filter(|index| !index.is_empty()) {
                let index = index.trim_end_matches(']').parse::<usize>();
                let (Value::List(items), Ok(index)) = (&node.value, index) else {
                    return line;
                };
                let Some(item) = items.get(index) else {
                    return line;
                };
                line = item.line;
                node = item;
            }
        }
        line
    }

    /// Forgets all values and keeps the lines: what stood here is secret.
    pub(in crate::policy) fn forget_values(&mut self) {
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(Self::forget_values),
            Value::Map(entries) => entries
                .iter_mut()
                .for_each(|entry| entry.node.forget_values()),
            Value::Text(text) => text.zeroize(),
            Value::Bool(_) | Value::Float(_) | Value::Int(_) | Value::Null => {}
        }
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }
}

impl From<serde_json::Value> for Node {
    /// A document that was not written into a file: every line of it is 0.
    fn from(json: serde_json::Value) -> Self {
        use serde_json::Value as Json;
        let value = match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(value),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => Value::Int(number),
                // Larger than any number of policy.
                (None, Some(_)) => Value::Int(i64::MAX),
                (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::Text(text),
            Json::Array(items) => Value::List(items.into_iter().map(Self::from).collect()),
            Json::Object(fields) => Value::Map(
                fields
                    .into_iter()
                    .map(|(key, value)| Entry {
                        key,
                        line: 0,
                        repeats: None,
                        node: value.into(),
                    })
                    .collect(),
            ),
        };
        Self {
            line: 0,
            taken_out: false,
            value,
        }
    }
}

impl Value {
    /// What it is, for messages.
    pub(in crate::policy) fn what(&self) -> &'static str {
        match self {
            Self::Bool(_) => "true or false",
            Self::Float(_) | Self::Int(_) => "a number",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
            Self::Null => "nothing",
            Self::Text(_) => "a string",
        }
    }
}

impl fmt::Debug for Node {
    /// Without the content: it may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in line {}", self.value.what(), self.line)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            line: line(&spanned.referenced),
            taken_out: false,
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

/// Up to how many keys a mapping is small.
const FEW: usize = 16;

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a number, a list or a mapping")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        // Larger than any number of policy; that it is too large is all that matters.
        Ok(Value::Int(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = seq.next_element()? {
            nodes.push(node);
        }
        Ok(Value::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen = HashMap::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let line = line(&key.referenced);
            // Most mappings are small, and faster looked through than hashed.
            let repeats = if entries.len() < FEW {
                let same = entries.iter().find(|entry| entry.key == key.value);
                same.map(|entry| entry.line)
            } else {
                if seen.is_empty() {
                    let before = entries.iter().rev();
                    seen.extend(before.map(|entry| (entry.key.clone(), entry.line)));
                }
                match seen.entry(key.value.clone()) {
                    MapEntry::Occupied(first) => Some(*first.get()),
                    MapEntry::Vacant(vacant) => {
                        vacant.insert(line);
                        None
                    }
                }
            };
            entries.push(Entry {
                key: key.value,
                line,
                repeats,
                node: map.next_value()?,
            });
        }
        Ok(Value::Map(entries))
    }
}

pub(super) fn line(location: &Location) -> u32 {
    u32::try_from(location.line()).unwrap_or(u32::MAX).max(1)
}
