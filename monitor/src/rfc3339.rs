//! Times in JSON: RFC 3339 in UTC with whole seconds, rounded down.
//!
//! Whole seconds because common tools (jq's `fromdate`) refuse a fraction; spans that need one
//! are figures in seconds of their own.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The last second that the format can hold, 9999-12-31T23:59:59Z.
const LAST_SECOND: u64 = 253_402_300_799;

/// `time` as text. A time outside of 1970..9999 is given as the nearest one inside.
pub(crate) fn format(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let inside = std::time::Duration::from_secs(seconds.min(LAST_SECOND));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + inside).to_string()
}

/// For `#[serde(with)]`.
pub(crate) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&format(*time))
}

/// For `#[serde(with)]`; takes fractions of a second too.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_rfc3339(&text).map_err(de::Error::custom)
}

/// A time in a list or an option, which takes it as this module has it.
#[derive(Serialize, Deserialize)]
struct Text(#[serde(with = "self")] SystemTime);

/// The same for a time that may be null.
pub(crate) mod option {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Text;

    /// For `#[serde(with)]`.
    pub(crate) fn serialize<S: Serializer>(
        time: &Option<SystemTime>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(Text).serialize(to)
    }

    /// For `#[serde(with)]`.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        Ok(Option::<Text>::deserialize(from)?.map(|text| text.0))
    }
}

/// The same for several times.
pub(crate) mod list {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::Text;

    /// For `#[serde(with)]`.
    pub(crate) fn serialize<S: Serializer>(times: &[SystemTime], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(times.iter().copied().map(Text))
    }

    /// For `#[serde(with)]`.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<SystemTime>, D::Error> {
        Ok(Vec::<Text>::deserialize(from)?.into_iter().map(|text| text.0).collect())
    }
}
