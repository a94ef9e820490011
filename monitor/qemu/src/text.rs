//! Text for logs, states and files: an error with its causes, and foreign text cut and made printable.

use std::{error::Error, fmt::Write as _};

pub use flatline_samples::{MAX_TEXT_CHARS, printable};

/// `error` and all its causes, joined by ": ". For logs and for states that keep a reason as text; an
/// error's own text never has its cause in it.
pub fn error_chain(error: &dyn Error) -> String {
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
        assert_eq!(error_chain(&error), "cannot open the door: no key");
    }
}
