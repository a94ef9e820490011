//! Figures that could not be read.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

/// A figure, or why it couldn't be read. Missing is not zero.
pub type Reading<T> = Result<T, Missing>;

/// A figure that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Which figure.
    pub what: Cow<'static, str>,
    /// Why, in words for an operator.
    pub why: String,
}

impl Missing {
    /// `what` could not be read because of `why`.
    pub fn new(what: &'static str, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into() }
    }

    /// The same reason, for the figure `what` that depends on this one.
    #[must_use]
    pub fn of(self, what: &'static str) -> Self {
        Self { what: what.into(), why: self.why }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be read: {}", self.what, self.why)
    }
}
