//! Text for HTML: nothing in it is markup, moves anything, or turns the direction of writing.

use std::fmt::{self, Write};

use super::super::table::safe;

/// Escapes whatever the template puts in, as one line of text, for content and for attributes in quotes.
#[derive(Clone, Copy)]
pub(super) struct Html;

impl askama::filters::Escaper for Html {
    fn write_escaped_str<W: Write>(&self, mut to: W, text: &str) -> fmt::Result {
        for c in safe(text).chars() {
            match c {
                '&' => to.write_str("&amp;"),
                '<' => to.write_str("&lt;"),
                '>' => to.write_str("&gt;"),
                '"' => to.write_str("&quot;"),
                '\'' => to.write_str("&#39;"),
                c => to.write_char(c),
            }?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use askama::filters::Escaper as _;

    use super::Html;

    fn escape(text: &str) -> String {
        let mut out = String::new();
        Html.write_escaped_str(&mut out, text).expect("a string takes all");
        out
    }

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
    }
}
