//! Text for logs, states and files: an error with its causes, and foreign text cut and made printable.

use std::{error::Error, fmt::Write as _};

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

/// The most characters that any text from a QEMU keeps. QEMU's own names (run states, events,
/// actions) are below 30; error descriptions are cut to four times this.
pub const MAX_TEXT_CHARS: usize = 64;

/// `text` as printable ASCII, every other character replaced by `?`, cut to `max_chars`.
pub fn printable(text: &str, max_chars: usize) -> String {
    text.chars()
        .take(max_chars)
        .map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' })
        .collect()
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

    #[test]
    fn control_characters_and_non_ascii_do_not_get_through() {
        assert_eq!(printable("a\u{1b}[31m\nb\u{e9}\u{202e} c", 64), "a?[31m?b?? c");
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(printable(&"x".repeat(1_000_000), 64).len(), 64);
    }
}
