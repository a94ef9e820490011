//! Single values of the configuration: what may stand there, and what is said of anything else.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use glob::Pattern;
use toml::Spanned;

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

/// What is wrong, and at which byte of the text.
pub(super) struct Problem {
    pub(super) offset: usize,
    pub(super) message: String,
}

impl Problem {
    pub(super) fn at<T>(value: &Spanned<T>, message: impl Into<String>) -> Self {
        Self { offset: value.span().start, message: message.into() }
    }
}

/// The number `given` or the default, if it lies in `range`.
pub(super) fn count(
    given: Option<&Spanned<i64>>,
    default: u32,
    range: RangeInclusive<u32>,
) -> Result<u32, Problem> {
    let Some(given) = given else {
        return Ok(default);
    };
    u32::try_from(*given.get_ref()).ok().filter(|count| range.contains(count)).ok_or_else(|| {
        Problem::at(given, format!("must be between {} and {}", range.start(), range.end()))
    })
}

/// The duration `given` or the default, if it lies between `least` and `most`.
pub(super) fn duration(
    given: Option<&Spanned<String>>,
    default: Duration,
    least: Duration,
    most: Duration,
) -> Result<Duration, Problem> {
    let Some(given) = given else {
        return Ok(default);
    };
    let text = given.get_ref();
    let value = humantime::parse_duration(text).map_err(|error| {
        Problem::at(given, format!("`{text}` is no duration such as \"10s\": {error}"))
    })?;
    if value < least || value > most {
        let message = format!("{text} is not between {} and {}", say(least), say(most));
        return Err(Problem::at(given, message));
    }
    Ok(value)
}

/// A duration as it may stand in the configuration.
pub(super) fn say(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}

/// The directory `given` or the default, as an absolute path.
pub(super) fn directory(
    given: Option<Spanned<PathBuf>>,
    default: &str,
) -> Result<PathBuf, Problem> {
    let Some(path) = given else {
        return Ok(PathBuf::from(default));
    };
    if !path.get_ref().is_absolute() {
        return Err(Problem::at(&path, "must be an absolute path"));
    }
    Ok(path.into_inner())
}

/// A pattern that could match something.
pub(super) fn pattern(text: &Spanned<String>) -> Result<Pattern, Problem> {
    if text.get_ref().is_empty() {
        return Err(Problem::at(text, "is empty and would match nothing"));
    }
    Pattern::new(text.get_ref())
        .map_err(|error| Problem::at(text, format!("not a valid pattern: {}", error.msg)))
}
