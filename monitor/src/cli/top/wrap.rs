//! Text in lines that are no wider than a terminal.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// `text` in lines of at most `width` columns, broken between words, and within those that are longer than a line.
/// There is at least one line; a character that is wider than `width` is left out.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if used > 0 && used + 1 + word.width() <= width {
            push(&mut lines, " ");
            used += 1;
        } else if used > 0 {
            lines.push(String::new());
            used = 0;
        }
        for c in word.chars() {
            let columns = c.width().unwrap_or(0);
            if columns > width {
                continue;
            }
            if used + columns > width {
                lines.push(String::new());
                used = 0;
            }
            push(&mut lines, c.encode_utf8(&mut [0; 4]));
            used += columns;
        }
    }
    lines
}

fn push(lines: &mut [String], text: &str) {
    if let Some(line) = lines.last_mut() {
        line.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr as _;

    use super::wrap;

    #[test]
    fn lines_break_between_words_and_within_long_ones() {
        assert_eq!(wrap("the guest sent 12 packets", 10), ["the guest", "sent 12", "packets"]);
        assert_eq!(wrap("a/long/path is", 6), ["a/long", "/path", "is"]);
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("東京東京 x", 5), ["東京", "東京", "x"]);
    }

    #[test]
    fn no_width_is_too_small_and_none_is_exceeded() {
        for width in 0..20 {
            let lines = wrap("東京 is a city and 東京東京東京東京 is not, e\u{301}", width);
            assert!(lines.iter().all(|line| line.width() <= width), "{width}: {lines:?}");
        }
    }
}
