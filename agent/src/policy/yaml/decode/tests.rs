//! Faults of a sample type.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::*;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[expect(dead_code, reason = "only what is wrong with it matters here")]
struct Sample {
    name: String,
    count: Option<u16>,
    #[serde(default)]
    list: Vec<u8>,
    inner: Inner,
    any: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[expect(dead_code, reason = "only what is wrong with it matters here")]
struct Inner {
    value: bool,
}

const NOTES: FieldNotes = FieldNotes {
    ignored: &["inner.foreign", "none.such"],
    required: &[("inner.value", "it is of value")],
};

fn faults(text: &str) -> Vec<String> {
    let mut node = crate::policy::yaml::parse(text).remove(0).unwrap();
    let ignored = take_out_ignored(&mut node, &NOTES);
    let found = match decode::<Sample>(&mut node, &NOTES) {
        Ok(_) => Vec::new(),
        Err(faults) => faults,
    };
    ignored
        .into_iter()
        .chain(found)
        .map(|fault| format!("{} {}: {}", fault.line, fault.key, fault.reason))
        .collect()
}

#[test]
fn what_is_right_has_no_fault() {
    let text = "name: a\ncount: null\nlist: [1, 2]\ninner: {value: true}\nany: {b: [c]}\n";
    assert_eq!(faults(text), [""; 0]);
}

#[test]
fn a_list_is_no_mapping() {
    assert_eq!(
        faults("name: a\ninner: [true]\n"),
        ["2 inner: expected a mapping, found a list"]
    );
}

#[test]
fn every_fault_is_found_with_its_line_and_key() {
    let text = "\
name: 7
count: 65536
list:
  - 1
  - x
  - 256
  - 2
inner:
  value: secret
  foreign:
    not: looked at
  other: 1
count: 2
any: {x: 1, x: 2}
wrong: 1
";
    assert_eq!(
        faults(text),
        [
            "10 inner.foreign: it is ignored: underpass does not act on this field",
            "1 name: expected a string, found a number: put it in quotes",
            "2 count: expected a number from 0 to 65535, found 65536",
            "5 list[1]: expected u8, found a string",
            "6 list[2]: expected u8, found 256",
            "9 inner.value: expected true or false, found a string",
            "12 inner.other: unknown field `other`, expected `value`",
            "13 count: it already stands in line 2",
            "14 any.x: it already stands in line 14",
            "15 wrong: unknown field `wrong`, expected one of `name`, `count`, `list`, \
             `inner`, `any`",
        ]
    );
}

#[test]
fn missing_fields_are_told_at_what_should_hold_them() {
    assert_eq!(
        faults("name: a\ninner:\n  {}\nlist: [x]\n"),
        [
            "2 inner.value: it is missing; it is of value",
            "4 list[0]: expected u8, found a string",
        ]
    );
    assert_eq!(faults("\nname: a\n"), ["2 inner: it is missing"]);
    assert_eq!(
        faults("name: a\ninner: x\n"),
        ["2 inner: expected a mapping, found a string"]
    );
}

#[test]
fn hostile_keys_stay_on_one_line_and_faults_are_bounded() {
    let found = faults("name: a\ninner: {value: true}\n\"x\\ny\": 1\n");
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("3 x\\ny: unknown field `x\\ny`"));
    let many: String = (0..1000).map(|n| format!("k{n}: 1\n")).collect();
    assert_eq!(faults(&many).len(), MAX_FAULTS);
}

#[test]
fn repeats_are_found_in_large_mappings_too() {
    let mut text: String = (0..40).map(|n| format!("k{n}: {n}\n")).collect();
    text += "k3: 1\nk39: 1\nk40: 1\nk40: 1\n";
    let parsed = crate::policy::yaml::parse(&text).remove(0).unwrap();
    let Value::Map(entries) = &parsed.value else {
        panic!("{parsed:?}");
    };
    let repeated: Vec<_> = entries.iter().filter_map(|entry| entry.repeats).collect();
    assert_eq!(repeated, [4, 40, 43]);
}
