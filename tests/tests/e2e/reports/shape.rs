//! What a report must look like: a type for each value, and that every field is there.

use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value};

use Shape::{Bool, Both, List, Number, Object, OneOf, OrNull, Text, Time, Unsigned};

/// What a JSON value must be.
pub(super) enum Shape {
    Bool,
    Text,
    OneOf(&'static [&'static str]),
    Unsigned,
    /// A number from the first to the second.
    Number(f64, f64),
    /// RFC 3339, not in the future.
    Time,
    OrNull(&'static Shape),
    /// May be empty; whether it is makes no difference to scripts.
    List(&'static Shape),
    /// At least these fields: more may be added.
    Object(&'static [(&'static str, Shape)]),
    /// An object with the fields of both.
    Both(&'static Shape, &'static Shape),
}

impl Shape {
    /// Checks `value`, which stands at `place` in the report.
    pub(super) fn check(&self, place: &str, value: &Value) -> Result<()> {
        let fits = match self {
            Bool => value.is_boolean(),
            Text => value.is_string(),
            OneOf(words) => value.as_str().is_some_and(|text| words.contains(&text)),
            Unsigned => value.is_u64(),
            Number(least, most) => value.as_f64().is_some_and(|n| (*least..=*most).contains(&n)),
            Time => time(value).is_some_and(|time| time <= SystemTime::now()),
            OrNull(shape) => {
                return if value.is_null() { Ok(()) } else { shape.check(place, value) };
            }
            List(shape) => match value.as_array() {
                Some(items) => {
                    for (index, item) in items.iter().enumerate() {
                        shape.check(&format!("{place}[{index}]"), item)?;
                    }
                    true
                }
                None => false,
            },
            Object(fields) => match value.as_object() {
                Some(object) => {
                    for (name, shape) in *fields {
                        shape.check(&format!("{place}.{name}"), field(place, object, name)?)?;
                    }
                    true
                }
                None => false,
            },
            Both(one, other) => {
                one.check(place, value)?;
                return other.check(place, value);
            }
        };
        ensure!(fits, "{place} is not what it should be: {value}");
        Ok(())
    }
}

/// A field that must be there, even if it is null.
fn field<'a>(place: &str, object: &'a Map<String, Value>, name: &str) -> Result<&'a Value> {
    object.get(name).with_context(|| format!("{place} has no {name}: {object:?}"))
}

pub(super) fn time(value: &Value) -> Option<SystemTime> {
    humantime::parse_rfc3339(value.as_str()?).ok()
}
