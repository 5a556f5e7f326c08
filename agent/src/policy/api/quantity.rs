//! Numbers and times as fields have them.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Unexpected, Visitor};

/// The longest time that a field may ask for.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// How many there may be. As Istio has it, 0 is as good as nothing said: no limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::policy) struct Limit(u32);

impl Limit {
    /// The number, if there is a limit at all.
    pub(in crate::policy) fn get(self) -> Option<u32> {
        (self.0 != 0).then_some(self.0)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_i64(CountVisitor).map(Self)
    }
}

impl JsonSchema for Limit {
    fn schema_name() -> Cow<'static, str> {
        "Limit".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0, "maximum": i32::MAX })
    }
}

/// How many there are; 0 means none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::policy) struct Count(pub(in crate::policy) u32);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_i64(CountVisitor).map(Self)
    }
}

impl JsonSchema for Count {
    fn schema_name() -> Cow<'static, str> {
        "Count".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0, "maximum": i32::MAX })
    }
}

/// Takes what an `int32` of Istio's may have, and is not negative.
struct CountVisitor;

impl Visitor<'_> for CountVisitor {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a number from 0 to {}", i32::MAX)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<u32, E> {
        i32::try_from(number)
            .ok()
            .and_then(|number| u32::try_from(number).ok())
            .ok_or_else(|| E::invalid_value(Unexpected::Signed(number), &self))
    }
}

/// A share in percent.
#[derive(Clone, Copy, Debug, serde::Deserialize, Eq, PartialEq)]
#[serde(try_from = "i64")]
pub(in crate::policy) struct Percent(pub(in crate::policy) u8);

impl TryFrom<i64> for Percent {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        u8::try_from(number)
            .ok()
            .filter(|percent| *percent <= 100)
            .map(Self)
            .ok_or_else(|| format!("expected a number from 0 to 100, found {number}"))
    }
}

impl JsonSchema for Percent {
    fn schema_name() -> Cow<'static, str> {
        "Percent".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0, "maximum": 100 })
    }
}

/// A time as Go writes it: `10s`, `1m30s`, `500ms`, from 1ms to 24h.
#[derive(Clone, Copy, Debug, serde::Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub(in crate::policy) struct Time(pub(in crate::policy) Duration);

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let within = Duration::from_millis(1)..=LONGEST;
        duration(&text)
            .filter(|time| within.contains(time))
            .map(Self)
            .ok_or_else(|| "expected a time from 1ms to 24h, such as `10s` or `1m30s`".to_owned())
    }
}

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^([0-9]+(\\.[0-9]+)?(ms|s|m|h))+$" })
    }
}

/// The same, or `0s`, which stands for no bound at all.
#[derive(Clone, Copy, Debug, serde::Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub(in crate::policy) struct Bound(Duration);

impl Bound {
    /// The time, if there is a bound.
    pub(in crate::policy) fn get(self) -> Option<Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }
}

impl TryFrom<String> for Bound {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_within =
            |time: &Duration| time.is_zero() || (Duration::from_millis(1)..=LONGEST).contains(time);
        duration(&text).filter(is_within).map(Self).ok_or_else(|| {
            "expected a time from 1ms to 24h, such as `10s` or `1m30s`, or `0s` for no bound"
                .to_owned()
        })
    }
}

impl JsonSchema for Bound {
    fn schema_name() -> Cow<'static, str> {
        "Bound".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Time::json_schema(generator)
    }
}

/// Numbers with units, all together.
fn duration(text: &str) -> Option<Duration> {
    if text.is_empty() {
        return None;
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let (number, tail) = rest.split_at(rest.find(|c| !is_number(c))?);
        let unit = tail.find(is_number).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = tail;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use serde::de::value::I64Deserializer;

    use super::*;

    #[test]
    fn times_are_read_as_go_writes_them() {
        let time = |text: &str| Time::try_from(text.to_owned()).map(|time| time.0.as_millis());
        for (text, millis) in [
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("1.5s", 1_500),
            ("24h", 86_400_000),
            ("1ms", 1),
        ] {
            assert_eq!(time(text), Ok(millis), "{text}");
        }
        for text in [
            "", "10", "s", "0s", "1d", "-1s", "1s1", "25h", "1..5s", "1µs", "1e9s",
        ] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_is_no_bound_and_no_limit() {
        let bound = |text: &str| Bound::try_from(text.to_owned()).map(Bound::get);
        assert_eq!(bound("0s"), Ok(None));
        assert_eq!(bound("2s"), Ok(Some(Duration::from_secs(2))));
        for text in ["", "0", "0.1ms", "25h", "-1s"] {
            assert!(bound(text).is_err(), "{text}");
        }
        let limit = |number: i64| {
            let limit = Limit::deserialize(I64Deserializer::<de::value::Error>::new(number));
            limit.map(Limit::get).ok()
        };
        let expected = [Some(None), Some(Some(7)), None, None];
        assert_eq!([0, 7, -1, 1 << 31].map(limit), expected);
    }
}
