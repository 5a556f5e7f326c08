//! Trees into types, with every fault found in one go.
//!
//! Serde stops at the first error. So the value at fault is taken out of the tree and the rest is
//! decoded again, until nothing is wrong any more or a required field is missing.

use std::fmt::{self, Display};
use std::slice;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;

use super::node::{Entry, Node, Value};
use crate::policy::problem::quotable;

/// How many faults of one document are told; decoding starts over after each.
const MAX_FAULTS: usize = 50;

/// What is wrong with one value.
#[derive(Debug, Eq, PartialEq)]
pub(in crate::policy) struct Fault {
    /// Where, as a dotted path: `spec.noProxy[2]`.
    pub(in crate::policy) key: String,
    /// The line of that key, from 1.
    pub(in crate::policy) line: u32,
    /// What is wrong.
    pub(in crate::policy) reason: String,
}

/// What is known about fields besides what their types say. Fields are dotted paths, with `[]` for
/// every item of a list: `spec.ports[].number`.
#[derive(Debug)]
pub(in crate::policy) struct FieldNotes {
    /// Fields of the API that are taken and not acted on, because what they ask for has no meaning
    /// here. The types do not have them.
    pub(in crate::policy) ignored: &'static [&'static str],
    /// Why a field has to be there, where that is not plain.
    pub(in crate::policy) required: &'static [(&'static str, &'static str)],
}

/// Takes the fields out that are not acted on, and says which there were.
pub(in crate::policy) fn take_out_ignored(root: &mut Node, notes: &FieldNotes) -> Vec<Fault> {
    let mut found = Vec::new();
    for path in notes.ignored {
        ignore(root, path, "", &mut found);
    }
    found
}

fn ignore(node: &mut Node, path: &str, at: &str, found: &mut Vec<Fault>) {
    let (step, rest) = path.split_once('.').unwrap_or((path, ""));
    let (name, list) = match step.strip_suffix("[]") {
        Some(name) => (name, true),
        None => (step, false),
    };
    let Value::Map(entries) = &mut node.value else {
        return;
    };
    for entry in entries.iter_mut().filter(|entry| entry.key == name) {
        let mut key = at.to_owned();
        push_key(&mut key, name);
        match &mut entry.node.value {
            _ if rest.is_empty() => {
                entry.node.taken_out = true;
                found.push(Fault {
                    key,
                    line: entry.line,
                    reason: "it is ignored: underpass does not act on this field".to_owned(),
                });
            }
            Value::List(items) if list => {
                for (index, item) in items.iter_mut().enumerate() {
                    ignore(item, rest, &format!("{key}[{index}]"), found);
                }
            }
            Value::Map(_) if !list => ignore(&mut entry.node, rest, &key, found),
            // Whatever is wrong with it is found when it is decoded.
            _ => {}
        }
    }
}

/// Makes a `T` of a document.
///
/// # Errors
/// All faults, at most 50.
pub(in crate::policy) fn decode<T: DeserializeOwned>(
    root: &mut Node,
    notes: &FieldNotes,
) -> Result<T, Vec<Fault>> {
    let mut faults = Vec::new();
    loop {
        let error = match T::deserialize(NodeDeserializer(root)) {
            Ok(value) if faults.is_empty() => return Ok(value),
            Ok(_) => return Err(faults),
            Err(error) => error,
        };
        if let Some(fault) = error.fault(root, notes) {
            faults.push(fault);
        }
        if error.path.is_empty() || faults.len() == MAX_FAULTS {
            return Err(faults);
        }
        error.take_out(root);
    }
}

/// An error of serde on its way out, gathering the path to the value at fault.
#[derive(Debug)]
struct DecodeError {
    /// From the inside out.
    path: Vec<Step>,
    line: Option<u32>,
    reason: Reason,
}

#[derive(Debug)]
struct Step {
    /// The place in the list, or of the entry in the mapping.
    index: usize,
    key: Option<String>,
}

#[derive(Debug)]
enum Reason {
    Missing(&'static str),
    Other(String),
    Repeated(u32),
    Unknown(&'static [&'static str]),
}

impl DecodeError {
    fn new(reason: Reason) -> Self {
        Self {
            path: Vec::new(),
            line: None,
            reason,
        }
    }

    fn within(mut self, index: usize, key: Option<&str>, line: u32) -> Self {
        self.path.push(Step {
            index,
            key: key.map(str::to_owned),
        });
        self.line.get_or_insert(line);
        self
    }

    /// `None` if this only follows from a fault told already.
    fn fault(&self, root: &Node, notes: &FieldNotes) -> Option<Fault> {
        let mut key = String::new();
        for step in self.path.iter().rev() {
            match &step.key {
                Some(name) => push_key(&mut key, name),
                None => key.push_str(&format!("[{}]", step.index)),
            }
        }
        let reason = match &self.reason {
            Reason::Missing(field) => {
                if self.node(root)?.get(field).is_some_and(|n| n.taken_out) {
                    return None;
                }
                push_key(&mut key, field);
                let pattern = without_indexes(&key);
                match notes.required.iter().find(|(field, _)| *field == pattern) {
                    Some((_, why)) => format!("it is missing; {why}"),
                    None => "it is missing".to_owned(),
                }
            }
            Reason::Other(text) => text.clone(),
            Reason::Repeated(first) => format!("it already stands in line {first}"),
            Reason::Unknown(expected) => self.unknown_field(expected),
        };
        Some(Fault {
            key,
            line: self.line.unwrap_or(root.line),
            reason,
        })
    }

    fn unknown_field(&self, expected: &[&str]) -> String {
        let field = self.path.first().and_then(|step| step.key.as_deref());
        let expected: Vec<_> = expected.iter().map(|name| format!("`{name}`")).collect();
        format!(
            "unknown field `{}`, expected {}{}",
            quotable(field.unwrap_or_default()),
            if expected.len() > 1 { "one of " } else { "" },
            expected.join(", ")
        )
    }

    fn node<'a>(&self, root: &'a Node) -> Option<&'a Node> {
        self.path
            .iter()
            .rev()
            .try_fold(root, |node, step| match &node.value {
                Value::List(nodes) => nodes.get(step.index),
                Value::Map(entries) => entries.get(step.index).map(|entry| &entry.node),
                _ => None,
            })
    }

    fn take_out(&self, root: &mut Node) {
        let node = self
            .path
            .iter()
            .rev()
            .try_fold(root, |node, step| match &mut node.value {
                Value::List(nodes) => nodes.get_mut(step.index),
                Value::Map(entries) => entries.get_mut(step.index).map(|entry| &mut entry.node),
                _ => None,
            });
        if let Some(node) = node {
            node.taken_out = true;
        }
    }
}

/// `spec.ports[2].number` as `spec.ports[].number`.
fn without_indexes(key: &str) -> String {
    let mut pattern = String::new();
    let mut inside = false;
    for c in key.chars() {
        if c == ']' {
            inside = false;
        }
        if !inside {
            pattern.push(c);
        }
        if c == '[' {
            inside = true;
        }
    }
    pattern
}

fn push_key(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    if key.is_empty() {
        // Or nobody would see that there is a key.
        path.push_str("\"\"");
    } else {
        path.push_str(&quotable(key));
    }
}

impl Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.reason)
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: Display>(msg: T) -> Self {
        Self::new(Reason::Other(msg.to_string()))
    }

    // Only numbers are shown: any other value may be a secret that stands at a wrong place.
    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Bool(_) => "true or false",
            Unexpected::Float(_) | Unexpected::Signed(_) | Unexpected::Unsigned(_) => "a number",
            Unexpected::Map => "a mapping",
            Unexpected::Seq => "a list",
            Unexpected::Str(_) => "a string",
            Unexpected::Unit => "nothing",
            _ => "something else",
        };
        let expected = in_words(expected);
        let hint = match (&*expected, found) {
            ("a string", "a number" | "true or false") => ": put it in quotes",
            _ => "",
        };
        Self::new(Reason::Other(format!(
            "expected {expected}, found {found}{hint}"
        )))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Signed(number) => format!(", found {number}"),
            Unexpected::Unsigned(number) => format!(", found {number}"),
            _ => String::new(),
        };
        let expected = in_words(expected);
        Self::new(Reason::Other(format!("expected {expected}{found}")))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Reason::Missing(field))
    }

    fn unknown_field(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Reason::Unknown(expected))
    }
}

/// What serde expects, in the words of YAML.
fn in_words(expected: &dyn Expected) -> String {
    match expected.to_string().as_str() {
        "a sequence" => "a list".to_owned(),
        "a map" => "a mapping".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "u16" => "a number from 0 to 65535".to_owned(),
        expected => expected.to_owned(),
    }
}

struct NodeDeserializer<'a>(&'a Node);

impl<'de> Deserializer<'de> for NodeDeserializer<'_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match &self.0.value {
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Int(value) => visitor.visit_i64(*value),
            Value::List(nodes) => visitor.visit_seq(List {
                nodes: nodes.iter(),
                next: 0,
            }),
            Value::Map(entries) => visitor.visit_map(Map {
                entries,
                next: 0,
                value: None,
            }),
            Value::Null => visitor.visit_unit(),
            Value::Text(text) => visitor.visit_str(text),
        }
    }

    /// A list would do for a mapping otherwise, item by item.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match &self.0.value {
            Value::List(_) => Err(de::Error::invalid_type(Unexpected::Seq, &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct List<'a> {
    nodes: slice::Iter<'a, Node>,
    next: usize,
}

impl<'de> SeqAccess<'de> for List<'_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        for node in self.nodes.by_ref() {
            let index = self.next;
            self.next += 1;
            if !node.taken_out {
                return seed
                    .deserialize(NodeDeserializer(node))
                    .map(Some)
                    .map_err(|error| error.within(index, None, node.line));
            }
        }
        Ok(None)
    }
}

struct Map<'a> {
    entries: &'a [Entry],
    next: usize,
    value: Option<(usize, &'a Entry)>,
}

impl<'de> MapAccess<'de> for Map<'_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        while let Some(entry) = self.entries.get(self.next) {
            let index = self.next;
            self.next += 1;
            if entry.node.taken_out {
                continue;
            }
            self.value = Some((index, entry));
            let key: StrDeserializer<'_, DecodeError> = entry.key.as_str().into_deserializer();
            return match entry.repeats {
                Some(first) => Err(DecodeError::new(Reason::Repeated(first))),
                None => seed.deserialize(key).map(Some),
            }
            .map_err(|error| error.within(index, Some(&entry.key), entry.line));
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, DecodeError> {
        let (index, entry) = self
            .value
            .take()
            .ok_or_else(|| de::Error::custom("a value was asked for before its key"))?;
        seed.deserialize(NodeDeserializer(&entry.node))
            .map_err(|error| error.within(index, Some(&entry.key), entry.line))
    }
}

#[cfg(test)]
mod tests;
