//! Text for terminals: aligned columns, times, and no control characters from guests.

use std::time::{Duration, SystemTime};

use crate::rfc3339;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// `text` with everything escaped that could move the cursor, end a line, or turn the direction
/// of writing: names and reasons come from people and from guests.
pub(super) fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // Marks, embeddings and isolates that reorder what stands beside them.
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.extend(c.escape_unicode());
            }
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// Rows in columns that are as wide as their widest cell, two spaces between them. Cells are made
/// [`safe`]; the last column isn't padded.
pub(super) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let rows = std::iter::once(header.map(str::to_owned)).chain(rows.iter().cloned());
    let rows = rows.map(|row| row.map(|cell| safe(&cell))).collect::<Vec<_>>();
    let width = |column: usize| rows.iter().map(|row| row[column].width()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    rows.iter().map(|cells| row(widths, cells) + "\n").collect()
}

/// Cells side by side, each as wide as its column.
pub(super) fn row<const N: usize>(widths: [usize; N], cells: &[String; N]) -> String {
    let cells = cells.iter().zip(widths).map(|(cell, width)| padded(cell, width) + "  ");
    cells.collect::<String>().trim_end().to_owned()
}

/// `text` and as many spaces as make it `width` columns of a terminal wide.
pub(super) fn padded(text: &str, width: usize) -> String {
    text.to_owned() + &" ".repeat(width.saturating_sub(text.width()))
}

/// `text`, or as much of it and `end` as have room in `width` columns of a terminal.
pub(super) fn shortened(text: &str, width: usize, end: &str) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let room = width.saturating_sub(end.width());
    let mut used = 0;
    let fits = |c: &char| {
        used += c.width().unwrap_or(0);
        used <= room
    };
    let kept: String = text.chars().take_while(fits).collect();
    let end = if width < end.width() { "" } else { end };
    kept.trim_end().to_owned() + end
}

/// Lines of a name and a value, the values below each other.
pub(super) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.width()).max().unwrap_or(0);
    let mut out = String::new();
    for (name, value) in fields {
        let line = format!("{name:width$}  {}", safe(value));
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// `value`, or a dash for what isn't known or didn't happen.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A time that may not be known.
pub(super) fn time(time: Option<SystemTime>) -> String {
    or_dash(time.map(rfc3339::format))
}

/// Seconds with one decimal, or a dash.
pub(super) fn seconds(seconds: Option<f64>) -> String {
    or_dash(seconds.map(|seconds| format!("{seconds:.1}s")))
}

/// A duration as it would stand in the configuration.
pub(super) fn duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}

/// A span in at most four characters, for columns: `9s`, `12m`, `3h`, `40d`.
pub(super) fn brief(span: Duration) -> String {
    match span.as_secs() {
        seconds @ 0..100 => format!("{seconds}s"),
        seconds @ 100..6000 => format!("{}m", seconds / 60),
        seconds @ 6000..360_000 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", (seconds / 86_400).min(999)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{brief, fields, safe, shortened, table};

    #[test]
    fn control_characters_and_direction_marks_are_escaped_and_letters_are_not() {
        assert_eq!(safe("a\x1b[2J\nb\u{9b}\u{202e}"), "a\\u{1b}[2J\\nb\\u{9b}\\u{202e}");
        assert_eq!(safe("wéb \"1\" \\"), "wéb \"1\" \\");
    }

    #[test]
    fn columns_are_aligned_by_their_width_after_escaping() {
        let rows = [["é".to_owned(), "x".to_owned()], ["a\n".to_owned(), String::new()]];
        assert_eq!(table(["N", "LAST"], &rows), "N    LAST\né    x\na\\n\n");
        let rows = [["東京".to_owned(), "x".to_owned()], ["e\u{301}".to_owned(), "y".to_owned()]];
        assert_eq!(table(["N", "LAST"], &rows), "N     LAST\n東京  x\ne\u{301}     y\n");
        assert_eq!(
            fields(&[("a", "1".to_owned()), ("long", "2".to_owned())]),
            "a     1\nlong  2\n"
        );
    }

    #[test]
    fn what_is_too_long_is_shortened_to_the_columns_that_there_are() {
        assert_eq!(shortened("as it is", 8, "…"), "as it is");
        assert_eq!(shortened("too long", 5, "…"), "too…");
        assert_eq!(shortened("東京東京", 6, "…"), "東京…");
        assert_eq!(shortened("東京東京", 7, "~"), "東京東~");
        assert_eq!(shortened("abc", 0, "…"), "");
    }

    #[test]
    fn a_brief_span_has_four_characters_at_most() {
        let spans = [0, 99, 100, 5999, 6000, 359_999, 360_000, u64::MAX];
        let spans = spans.map(|seconds| brief(Duration::from_secs(seconds)));
        assert_eq!(spans, ["0s", "99s", "1m", "99m", "1h", "99h", "4d", "999d"]);
    }
}
