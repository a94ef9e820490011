//! An error as one line of text.

use std::{error::Error, fmt::Write as _};

/// `error` and all its causes, joined by ": ". For logs and for states that keep a reason as text; an
/// error's own text never has its cause in it.
pub(crate) fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a string can't fail.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the door")]
    struct Outer(#[source] io::Error);

    #[test]
    fn every_cause_is_named_once() {
        let error = Outer(io::Error::other("no key"));
        assert_eq!(in_full(&error), "cannot open the door: no key");
    }
}
