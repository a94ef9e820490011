//! Single values of the configuration: what may stand there, and what is said of anything else.

use std::{fmt::Display, marker::PhantomData, ops::RangeInclusive, path::PathBuf, time::Duration};

use glob::Pattern;
use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeValue, ValueDeserializer},
};

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

/// What is wrong, and at which byte of the text.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) offset: usize,
    pub(super) message: String,
}

impl Problem {
    pub(super) fn at<T>(value: &Spanned<T>, message: impl Into<String>) -> Self {
        Self { offset: value.span().start, message: message.into() }
    }
}

impl From<toml::de::Error> for Problem {
    fn from(error: toml::de::Error) -> Self {
        let offset = error.span().map_or(0, |span| span.start);
        Self { offset, message: error.message().to_owned() }
    }
}

/// What one key may be.
pub(super) trait Rule {
    /// What is made of it.
    type Value;

    /// The value as it is used.
    ///
    /// # Errors
    /// If it may not stand there.
    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<Self::Value, Problem>;

    /// The value of a key that has no default and was not written; `None`: it must be written.
    fn unset(&self) -> Option<Self::Value> {
        None
    }

    /// What it may be, in words; may be empty.
    fn allowed(&self) -> String {
        String::new()
    }
}

/// `value` as serde reads it.
pub(super) fn typed<T: DeserializeOwned>(
    value: Spanned<DeValue<'_>>,
) -> Result<Spanned<T>, Problem> {
    let place = value.span();
    T::deserialize(ValueDeserializer::from(value))
        .map(|read| Spanned::new(place.clone(), read))
        .map_err(|error| Problem {
            offset: error.span().unwrap_or(place).start,
            message: error.message().to_owned(),
        })
}

/// Any value that serde takes for this type.
pub(super) struct Any<T>(PhantomData<T>);

/// Any value that serde takes for a `T`.
pub(super) const fn any<T>() -> Any<T> {
    Any(PhantomData)
}

impl<T: DeserializeOwned> Rule for Any<T> {
    type Value = T;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<T, Problem> {
        Ok(typed(value)?.into_inner())
    }

    /// What serde says that it expected, where it got something else.
    fn allowed(&self) -> String {
        let refused = typed::<T>(Spanned::new(0..0, DeValue::String("?".into())));
        let message = refused.err().map(|problem| problem.message).unwrap_or_default();
        let expected = message.split_once("expected ").map_or("", |(_, expected)| expected);
        match expected.trim_start_matches("one of ") {
            "a boolean" => "`true` or `false`".to_owned(),
            words => words.to_owned(),
        }
    }
}

/// A value that may be missing.
pub(super) struct Optional<R>(pub(super) R);

impl<R: Rule> Rule for Optional<R> {
    type Value = Option<R::Value>;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<Self::Value, Problem> {
        self.0.read(value).map(Some)
    }

    fn unset(&self) -> Option<Self::Value> {
        Some(None)
    }

    fn allowed(&self) -> String {
        self.0.allowed()
    }
}

/// A number in a range.
pub(super) struct Count(pub(super) RangeInclusive<u32>);

impl Rule for Count {
    type Value = u32;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<u32, Problem> {
        let given = typed::<i64>(value)?;
        let count = u32::try_from(*given.get_ref()).ok().filter(|count| self.0.contains(count));
        count.ok_or_else(|| Problem::at(&given, format!("must be {}", between(&self.0))))
    }

    fn allowed(&self) -> String {
        format!("{} to {}", self.0.start(), self.0.end())
    }
}

/// A duration in a range.
pub(super) struct Within(pub(super) RangeInclusive<Duration>);

impl Rule for Within {
    type Value = Duration;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<Duration, Problem> {
        let (given, duration) = duration(value)?;
        if self.0.contains(&duration) {
            return Ok(duration);
        }
        let range = say(*self.0.start())..=say(*self.0.end());
        let message = format!("{} is not {}", given.get_ref(), between(&range));
        Err(Problem::at(&given, message))
    }

    fn allowed(&self) -> String {
        format!("{} to {}", say(*self.0.start()), say(*self.0.end()))
    }
}

/// A duration in a range, or zero for *never*.
pub(super) struct NeverOr(pub(super) RangeInclusive<Duration>);

impl Rule for NeverOr {
    type Value = Duration;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<Duration, Problem> {
        let (given, duration) = duration(value)?;
        if duration.is_zero() || self.0.contains(&duration) {
            return Ok(duration);
        }
        let range = say(*self.0.start())..=say(*self.0.end());
        let text = given.get_ref();
        let message = format!("{text} is neither \"0s\", which is never, nor {}", between(&range));
        Err(Problem::at(&given, message))
    }

    fn allowed(&self) -> String {
        format!("0s, or {} to {}", say(*self.0.start()), say(*self.0.end()))
    }
}

fn between<T: Display>(range: &RangeInclusive<T>) -> String {
    format!("between {} and {}", range.start(), range.end())
}

fn duration(value: Spanned<DeValue<'_>>) -> Result<(Spanned<String>, Duration), Problem> {
    let given = typed::<String>(value)?;
    let text = given.get_ref();
    let duration = humantime::parse_duration(text).map_err(|error| {
        Problem::at(&given, format!("`{text}` is no duration such as \"10s\": {error}"))
    })?;
    Ok((given, duration))
}

/// A duration as it may stand in the configuration, in the largest unit that divides it.
pub(super) fn say(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [(DAY, "days"), (HOUR, "h"), (MINUTE, "m"), (SECOND, "s"), (MS, "ms")];
    let divides = |(unit, _): &(Duration, _)| ms > 0 && ms.is_multiple_of(unit.as_millis());
    let (unit, name) = units.into_iter().find(divides).unwrap_or((SECOND, "s"));
    let name = if duration == DAY { "day" } else { name };
    format!("{}{name}", ms / unit.as_millis())
}

/// The absolute path of a directory.
pub(super) struct Directory;

impl Rule for Directory {
    type Value = PathBuf;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<PathBuf, Problem> {
        let path = typed::<PathBuf>(value)?;
        if path.get_ref().is_absolute() {
            Ok(path.into_inner())
        } else {
            Err(Problem::at(&path, "must be an absolute path"))
        }
    }

    fn allowed(&self) -> String {
        "an absolute path".to_owned()
    }
}

/// A pattern that could match something.
pub(super) struct NamePattern;

impl Rule for NamePattern {
    type Value = Pattern;

    fn read(&self, value: Spanned<DeValue<'_>>) -> Result<Pattern, Problem> {
        pattern(&typed::<String>(value)?)
    }

    fn allowed(&self) -> String {
        "a pattern with `*`, `?` and `[...]`".to_owned()
    }
}

pub(super) fn pattern(text: &Spanned<String>) -> Result<Pattern, Problem> {
    if text.get_ref().is_empty() {
        return Err(Problem::at(text, "is empty and would match nothing"));
    }
    Pattern::new(text.get_ref())
        .map_err(|error| Problem::at(text, format!("not a valid pattern: {}", error.msg)))
}
