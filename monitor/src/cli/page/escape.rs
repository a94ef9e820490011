//! Text for HTML: nothing in it is markup, moves anything, or turns the direction of writing.

use super::super::table::safe;

/// One line of text, for content and for attributes in quotes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in safe(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// The same for text of many lines, which stay lines.
pub(super) fn lines(text: &str) -> String {
    let line = |line: &str| escape(&line.replace('\t', "    ")) + "\n";
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::{escape, lines};

    #[test]
    fn no_text_becomes_markup_or_leaves_an_attribute() {
        assert_eq!(
            escape("</pre><script src='x' a=\"b\">&amp;"),
            "&lt;/pre&gt;&lt;script src=&#39;x&#39; a=&quot;b&quot;&gt;&amp;amp;"
        );
    }

    #[test]
    fn control_and_direction_characters_are_shown_and_not_obeyed() {
        assert_eq!(escape("a\u{1b}[2J\u{0}\nb\u{202e}"), "a\\u{1b}[2J\\u{0}\\nb\\u{202e}");
        assert_eq!(lines("a\tb<\r\nc\u{7}"), "a    b&lt;\nc\\u{7}\n");
    }
}
