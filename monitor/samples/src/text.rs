//! Foreign text, bounded and made printable.

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
    use super::*;

    #[test]
    fn control_characters_and_non_ascii_do_not_get_through() {
        assert_eq!(printable("a\u{1b}[31m\nb\u{e9}\u{202e} c", 64), "a?[31m?b?? c");
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(printable(&"x".repeat(1_000_000), 64).len(), 64);
    }
}
